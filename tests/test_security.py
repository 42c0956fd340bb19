"""What no file of the project may do, and what no request may reach; docs/security.md tells the rest."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.conftest import MODEL_NAME

ROOT = Path(__file__).parents[1]
SOURCES = [
    path
    for folder in ("stages", "serving", "scripts", "benchmarks")
    for path in (ROOT / folder).rglob("*.py")
]

MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
"""They run what a file tells them to."""
FLAGS = {"allow_pickle": True, "safe_mode": False}
"""Arguments with which np.load and keras.models.load_model do so too."""
NAMES = {"enable_unsafe_deserialization", "read_pickle", "to_pickle"}
BUILTINS = {"eval", "exec"}

CHECKED = {"stages/imagenet.py": ["pickle"]}
"""Reads one file, whose hash it knows, and makes tensors of it or fails: tests/stages/test_imagenet.py."""


def unsafe(source: str) -> Iterator[str]:
    """What in a source file would run code that came in as data."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.split(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            yield str(node.module)
        elif isinstance(node, ast.Attribute) and node.attr in NAMES:
            yield node.attr
        elif isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id in BUILTINS:
                yield node.func.id
            for keyword in node.keywords:
                value = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
                if keyword.arg in FLAGS and value is not (not FLAGS[keyword.arg]):
                    yield keyword.arg


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_code_comes_in_as_data(path: Path) -> None:
    assert list(unsafe(path.read_text())) == CHECKED.get(path.relative_to(ROOT).as_posix(), [])


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import joblib.externals as j",
        "from cloudpickle import loads",
        "np.load('a.npz', allow_pickle=True)",
        "np.load('a.npz', allow_pickle=settings.pickle)",
        "keras.models.load_model('a.keras', safe_mode=False)",
        "keras.config.enable_unsafe_deserialization()",
        "eval('1')",
    ],
)
def test_the_check_above_finds_what_it_looks_for(source: str) -> None:
    assert list(unsafe(source))
    assert not list(unsafe("np.load('a.npz', allow_pickle=False); model.evaluate(x); re.compile('a')"))


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models/other",
        "/v1/models/../other",
        "/v1/models/..%2Fother",
        "/v1/models/%2e%2e%2fother",
        f"/v1/models/{MODEL_NAME}%2F..%2F..%2Fother",
        f"/v1/models/{MODEL_NAME}/versions/..%2F..%2Fother%2F1",
        f"/v1/models/{MODEL_NAME}/versions/../../other/1",
        f"/v1/models/{MODEL_NAME}/../../../../etc/passwd",
        "/../../../../etc/passwd",
        "/..%2f..%2f..%2fetc/passwd",
        "/index.html",
    ],
)
def test_a_path_of_a_request_is_a_name_and_never_one_of_a_file(
    server_url: str, servable_path: Path, path: str
) -> None:
    other = servable_path.parent / "other"  # a model beside the configured folder
    if not other.exists():
        other.symlink_to(servable_path)
    for suffix in ("", "/metadata", ":predict"):
        method = "POST" if suffix == ":predict" else "GET"
        request = requests.Request(method, server_url, data="{}" if suffix == ":predict" else None).prepare()
        request.url = server_url + path + suffix  # as it is: requests would take the dots out
        with requests.Session() as session:
            session.trust_env = False
            answer = session.send(request, timeout=30)
        assert answer.status_code in (400, 404)
        assert answer.json().keys() == {"error"}


def audit(folder: Path, answer: str, code: int = 0) -> Any:
    """Runs the audit with a stand-in for pip-audit, which gives this answer."""
    (folder / "pip_audit.py").write_text(f"print({answer!r}); raise SystemExit({code})")
    return subprocess.run(
        [sys.executable, "scripts/audit.py"],
        cwd=ROOT,
        env={"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
    )


def test_an_audit_tells_vulnerable_packages_from_those_it_could_not_ask_about(tmp_path: Path) -> None:
    sound = {"name": "a", "version": "1", "vulns": []}
    known = {"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["2"]}
    bad = {"name": "b", "version": "1", "vulns": [known]}
    unknown = {"name": "c", "skip_reason": "not found"}

    def of(*packages: dict[str, Any]) -> Any:
        code = int(bad in packages)
        return audit(tmp_path, json.dumps({"dependencies": packages, "fixes": []}), code)

    assert (of(sound).returncode, of(sound).stdout) == (0, "no known vulnerability in 1 packages\n")
    done = of(sound, bad)
    assert done.returncode == 1
    assert done.stdout == "b 1: PYSEC-1, CVE-1; mended in 2\n"
    assert "1 of 2 packages have known vulnerabilities" in done.stderr
    done = of(sound, unknown)
    assert done.returncode == 1
    assert "1 of 2 packages were not audited" in done.stderr
    done = audit(tmp_path, "no JSON", 1)
    assert done.returncode == 1
    assert "nothing was audited" in done.stderr


ENTROPY = ("Base64HighEntropyString", "HexHighEntropyString")
"""Not asked for: checksums and pictures are what they would find."""


CHECKSUMS = r"^stages/manifest\.sha256$|^pretrained/.*\.h5$"
"""2,700 lines of digests and 7 MB of weights, a fifth of the time of the scan."""


def secrets(folder: Path, *flags: str) -> list[str]:
    """Files below a folder, as git tracks them, with keys, tokens or passwords, by detect-secrets."""
    disabled = [word for name in ENTROPY for word in ("--disable-plugin", name)]
    disabled += ["--exclude-files", CHECKSUMS]
    done = subprocess.run(
        [str(Path(sys.executable).parent / "detect-secrets"), "scan", *disabled, *flags],
        cwd=folder,
        check=True,
        capture_output=True,
        text=True,
    )
    return list(json.loads(done.stdout)["results"])


def test_no_file_has_a_secret() -> None:
    assert secrets(ROOT) == []


def test_the_scan_above_finds_what_it_looks_for(tmp_path: Path) -> None:
    kinds = {
        "aws": "AKIA" + "IOSFODNN7" + "QWERTYU",
        "github": "token: ghp" + "_" + "a1B2" * 9,
        "key": "-----BEGIN RSA " + "PRIVATE KEY-----",
        "phrase": "pass" + 'word = "correct-horse-battery"',
    }
    for name, text in kinds.items():
        (tmp_path / f"{name}.txt").write_text(text + "\n")
    assert sorted(secrets(tmp_path, "--all-files")) == sorted(f"{name}.txt" for name in kinds)
