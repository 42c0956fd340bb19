"""The documentation against the project: each command in it is run by a test or says why it can't be.

Above each fenced `bash` block stands a comment that a reader does not see:

    <!-- run by tests/serving/test_labels.py, tests/test_ci.py; needs Docker -->

Each command of the block must occur in one of these tests, with its subcommand, or be of a program that
what is needed excuses. tests/test_tutorial.py runs docs/tutorial.md as it stands.
"""

from __future__ import annotations

import functools
import operator
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from scripts.params_table import replace_table
from stages.params import Params

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TUTORIAL = ROOT / "docs/tutorial.md"
# What tests have no access to, and the programs that this excuses.
NEEDS = {
    "Docker": {"docker"},
    "GitHub": {"gh", "git"},
    "a GPU": {"pip", "dvc"},
    "a CPU with bfloat16": {"dvc"},
    "a cluster": {"kubectl", "helm", "ray"},
    "AWS": {"aws"},
    "a server": {"apt", "curl", "install", "systemctl"},
}
SHELL = {"$EDITOR", "base64", "cat", "cd", "cp", "echo", "export", "head", "kill", "mkdir", "openssl"}
SHELL |= {"printf", "source", "tee", "tr"}
# Of these the next word matters too, and after some words the one after it.
WITH_SUBCOMMANDS = {"dvc", "gto", "make", "git"}
WITH_TWO = {"artifacts", "data", "exp", "metrics", "params", "plots", "queue", "remote"}


@dataclass(frozen=True)
class Block:
    """A fenced block of commands.

    Attributes:
        place: page and line, for messages.
        tests: files that are said to run it.
        needs: what is said to be needed.
        commands: one a line, continued lines joined, without comments.
    """

    place: str
    tests: tuple[str, ...]
    needs: tuple[str, ...]
    commands: tuple[str, ...]


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text()
    for match in re.finditer(r"(?:<!-- ([^\n]*) -->\n)?```bash\n(.*?)```", text, re.DOTALL):
        mark = dict(
            part.split(" ", 1) for part in (match[1] or "").replace("run by", "run-by").split("; ") if part
        )
        lines = re.sub(r"(\\|\|)\n\s*", lambda end: end[1].strip("\\") + " ", match[2]).splitlines()
        commands = (re.sub(r"(^|\s+)# .*", "", line).strip() for line in lines)
        yield Block(
            place=f"{os.path.relpath(page, ROOT)}:{text[: match.start(2)].count(chr(10)) + 1}",
            tests=tuple(filter(None, mark.get("run-by", "").split(", "))),
            needs=tuple(filter(None, mark.get("needs", "").split(", "))),
            commands=tuple(filter(None, commands)),
        )


BLOCKS = [block for page in PAGES for block in blocks(page)]


def signature(command: str) -> list[str]:
    """Program and subcommands, or the module that Python runs: what a test has that runs the command."""
    if substitution := re.match(r'(?:export )?[\w="]*\$\((.*?)\)', command):
        return signature(substitution[1])
    words = [word for word in command.removeprefix("sudo ").split() if not re.match(r"\w+=", word)]
    if not words:
        return ["cd"]  # it sets a variable, no more
    if words[0].endswith("python"):
        return [words[words.index("-m") + 1]]
    if words[0] not in WITH_SUBCOMMANDS:
        return words[:1]
    return words[: 3 if words[1] in WITH_TWO else 2]


def source(test: str) -> str:
    """What a test has in it; for the one that runs the tutorial, that too."""
    text = (ROOT / test).read_text()
    return text + TUTORIAL.read_text() if test == "tests/test_tutorial.py" else text


def problems(block: Block) -> list[str]:
    """What is wrong with the comment of a block."""
    if not (block.tests or block.needs):
        return ["no comment above it says which test runs it, or what it needs"]
    if unknown := [need for need in block.needs if need not in NEEDS]:
        return [f"needs {unknown}; there are {', '.join(NEEDS)}"]
    if missing := [test for test in block.tests if not (ROOT / test).is_file()]:
        return [f"there is no {test}" for test in missing]
    excused = SHELL.union(*(NEEDS[need] for need in block.needs))
    sources = [source(test) for test in block.tests]
    found = []
    parts = (part for command in block.commands for part in re.split(r" (?:\||&&) ", command))
    for words in map(signature, parts):
        # One after the other, with whatever quotes and commas a list of arguments puts between.
        pattern = r"""["',\s(]+""".join(map(re.escape, words))
        if words[0] not in excused and not any(
            re.search(rf"(?<![\w.]){pattern}(?!\w)", text) for text in sources
        ):
            found.append(f"none of {', '.join(block.tests) or 'no test'} has `{' '.join(words)}`")
    return found


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.place)
def test_each_command_is_run_by_a_test_or_says_why_not(block: Block) -> None:
    assert problems(block) == []


@pytest.mark.parametrize(
    "mark",
    [
        "",
        "<!-- needs luck -->",
        "<!-- needs Docker -->",
        "<!-- run by tests/test_that_is_not_there.py -->",
        "<!-- run by tests/stages/test_metrics.py -->",
        "<!-- run by tests/stages/test_metrics.py; needs Docker, GitHub -->",
    ],
)
def test_a_command_that_no_test_runs_is_refused(mark: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"{mark}\n```bash\ndocker ps\npython -m serving.labels  # shows them\n```\n")
    (block,) = blocks(page)
    assert block.commands == ("docker ps", "python -m serving.labels")
    assert problems(block)


def test_links_between_pages_lead_somewhere() -> None:
    broken = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in [*PAGES, ROOT / "CHANGELOG.md"]
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text())
        if not (page.parent / target).exists()
    ]
    assert not broken


def test_each_page_is_linked_from_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    assert [page.name for page in PAGES[2:] if f"(docs/{page.name})" not in readme] == []


def test_the_table_of_parameters_is_that_of_the_code() -> None:
    page = (ROOT / "docs/reference.md").read_text()
    assert page == replace_table(page), "run `python -m scripts.params_table --write`"
    assert all(f"`{info.alias or name}." in page for name, info in Params.model_fields.items())


def test_each_program_is_in_the_reference() -> None:
    page = (ROOT / "docs/reference.md").read_text()
    programs = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
        for folder in ("stages", "serving", "scripts", "benchmarks")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if path.name == "__main__.py" or 'if __name__ == "__main__":' in path.read_text()
    ]
    assert len(programs) > 10
    assert [name for name in programs if f"`python -m {name}" not in page] == []
    targets = re.findall(r"^(\w+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert [name for name in targets if f"`make {name}`" not in page and name != "help"] == []


def test_the_citation_is_valid() -> None:
    checker = Path(sys.executable).with_name("check-jsonschema")
    subprocess.run(
        [checker, "--builtin-schema", "vendor.citation-file-format", "CITATION.cff"], cwd=ROOT, check=True
    )


def test_make_real_changes_parameters_that_exist() -> None:
    command = ["make", "real", "DATA=tiles.zip", "--dry-run", "--assume-old=.venv/.requirements"]
    plan = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    yaml = YAML(typ="safe")
    values: dict[str, Any] = yaml.load(ROOT / "params.yaml")
    changes = re.findall(r'-S "?([\w.]+)=([^"\s]+)', plan)
    assert dict(changes)["data_load.source"] == str(ROOT / "tiles.zip")
    for name, value in changes:
        *sections, key = name.split(".")
        inside = functools.reduce(operator.getitem, sections, values)
        assert key in inside
        inside[key] = yaml.load(value)
    Params.model_validate(values)
