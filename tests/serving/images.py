"""Builds Dockerfile.serving and runs it: with Docker, or without any engine, with Debian's buildah.

Without an engine no base image can be had either. There, a stand-in takes its place: an image with
nothing but bash and a `tensorflow_model_server` that is the embedded server, run by this machine's
Python, which is lent to the container read-only. What the Dockerfile adds is the same on both.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol

import psutil
import pytest
import requests

from serving.errors import ServerUnavailable
from serving.up import IMAGE, choose_backend, free_port

ROOT = Path(__file__).parents[2]
NAME = "magnetic-tiles"
LAUNCHER = f"""\
#!/bin/bash
export PYTHONPATH={ROOT} PYTHONDONTWRITEBYTECODE=1 CUDA_VISIBLE_DEVICES=-1
exec {sys.executable} -m serving.local "$@"
"""
# Remounts the root of a container before it starts, in a mount namespace of its own.
READ_ONLY = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'


@dataclass(frozen=True)
class Container:
    """One that runs: its REST API, and a way to run commands in it."""

    url: str
    port: str  # of the REST API, inside
    enter: Callable[[], Sequence[str]]  # gives what goes before a command to run it inside
    ended: Callable[[], bool]

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Runs a command in it, as its user, and waits."""
        return subprocess.run([*self.enter(), *command], capture_output=True, text=True, timeout=60)

    def wait(self, is_ready: Callable[[], bool], seconds: float = 60) -> None:
        """Waits until a condition holds; a container that ends before is a failure."""
        deadline = time.monotonic() + seconds
        while True:
            with contextlib.suppress(requests.ConnectionError):
                if is_ready():
                    return
            assert not self.ended(), "the container ended; see its log"
            assert time.monotonic() < deadline, "the container is not ready; see its log"
            time.sleep(0.2)


class Engine(Protocol):
    """Builds the image and runs containers of it."""

    def build(self, context: Path) -> None: ...

    def config(self) -> dict[str, Any]:
        """What the image says of itself."""

    def run(self, *flags: str, volumes: dict[Path, str]) -> contextlib.AbstractContextManager[Container]: ...


def make_context(folder: Path, servable: Path) -> Path:
    """A build context as a checkout with an exported model, and with files that are none of the image's."""
    for name in ("Dockerfile.serving", ".dockerignore"):
        shutil.copy(ROOT / name, folder / name)
    shutil.copytree(ROOT / "serving", folder / "serving", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(servable, folder / "models" / NAME)
    for secret in ("models/unet.keras", "data/tile.jpg", ".env"):
        (folder / secret).parent.mkdir(exist_ok=True)
        (folder / secret).write_text("not for the image")
    return folder


class Docker:
    """Docker, with the real base image."""

    tag = "magnetic-tiles:test"

    def build(self, context: Path) -> None:
        base = os.environ.get("BASE_IMAGE", IMAGE)
        command = ["docker", "build", "-f", "Dockerfile.serving", "--build-arg", f"BASE_IMAGE={base}"]
        subprocess.run([*command, "-t", self.tag, "."], cwd=context, check=True)

    def config(self) -> dict[str, Any]:
        (image,) = json.loads(_output("docker", "image", "inspect", self.tag))
        config: dict[str, Any] = image["Config"]
        return config

    @contextlib.contextmanager
    def run(self, *flags: str, volumes: dict[Path, str]) -> Iterator[Container]:
        mounts = [f"--volume={source}:{target}:ro" for source, target in volumes.items()]
        hard = ["--init", "--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges"]
        command = ["docker", "run", "--detach", *hard, "--publish=127.0.0.1::8501", *mounts, self.tag, *flags]
        name = _output(*command).strip()
        try:
            address = _output("docker", "port", name, "8501/tcp").splitlines()[0]
            state = ["docker", "inspect", "--format={{.State.Running}}", name]
            yield Container(
                f"http://{address}",
                "8501",
                lambda: ["docker", "exec", name],
                lambda: _output(*state).strip() != "true",
            )
        finally:
            log = subprocess.run(["docker", "logs", name], capture_output=True, text=True)
            sys.stderr.write(log.stdout + log.stderr)
            subprocess.run(["docker", "rm", "--force", name], capture_output=True, check=True)


class Buildah:
    """Debian's buildah, with the stand-in as base image. Needs root, and all its files in one folder."""

    base, tag = "localhost/stand-in", "localhost/magnetic-tiles"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        storage = [f"--root={folder}/storage", f"--runroot={folder}/run", "--storage-driver=vfs"]
        # TMPDIR: a container that is ended by force leaves its folder there.
        self._buildah = ["env", f"TMPDIR={folder}", "buildah", *storage]
        self._bud = [*self._buildah, "bud", "--isolation=chroot", "--format=docker", "--quiet"]
        self._lent = _python_folders()

    def build(self, context: Path) -> None:
        rootfs = self._folder / "rootfs"
        for name in ("usr/bin", "usr/local/bin", "etc", "proc", "dev", "sys", "run", "tmp"):
            (rootfs / name).mkdir(parents=True)
        for name in ("bin", "lib", "lib64"):
            (rootfs / name).symlink_to(f"usr/{name}")
        # buildah's own mounts need their places before the root is read-only.
        for name in ("etc/hosts", "etc/hostname", "etc/resolv.conf", "run/.containerenv"):
            (rootfs / name).touch()
        for path in self._lent:
            (rootfs / path.relative_to("/")).mkdir(parents=True)
        shutil.copy("/bin/bash", rootfs / "usr/bin/bash")
        launcher = rootfs / "usr/bin/tensorflow_model_server"
        launcher.write_text(LAUNCHER)
        launcher.chmod(0o755)
        (self._folder / "Dockerfile").write_text("FROM scratch\nCOPY rootfs /\n")
        _output(*self._bud, "-t", self.base, "-f", f"{self._folder}/Dockerfile", str(self._folder))
        arguments = ["--build-arg", f"BASE_IMAGE={self.base}", "-f", f"{context}/Dockerfile.serving"]
        _output(*self._bud, "-t", self.tag, *arguments, str(context))

    def config(self) -> dict[str, Any]:
        image = json.loads(_output(*self._buildah, "inspect", "--type=image", self.tag))
        config: dict[str, Any] = image["Docker"]["config"]
        return config

    @contextlib.contextmanager
    def run(self, *flags: str, volumes: dict[Path, str]) -> Iterator[Container]:
        config = self.config()
        name = _output(*self._buildah, "from", self.tag).strip()
        root = _output(*self._buildah, "mount", name).strip()
        port = str(free_port())  # without an engine a container has no network of its own
        mounts = {**{path: str(path) for path in self._lent}, **volumes}
        command = [
            *("unshare", "--mount", "--propagation=private", "bash", "-c", READ_ONLY, root),
            *(*self._buildah, "run", "--isolation=chroot", f"--volume={self._scratch()}:/tmp"),
            *(f"--volume={source}:{target}:ro" for source, target in mounts.items()),
            # As Docker does it: flags of the user take the place of CMD.
            *(name, "--", *config["Entrypoint"], *(flags or config["Cmd"]), f"--rest_api_port={port}"),
        ]
        log = self._folder / f"{name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
        try:
            yield Container(
                f"http://127.0.0.1:{port}",
                port,
                lambda: _enter(process.pid, config["User"]),
                lambda: process.poll() is not None,
            )
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # buildah does not pass signals on
            process.wait()
            sys.stderr.write(log.read_text(errors="replace"))

    def _scratch(self) -> Path:
        """A /tmp that anyone may write to: Python needs one, TensorFlow Serving doesn't."""
        folder = self._folder / "tmp"
        folder.mkdir(exist_ok=True)
        folder.chmod(0o1777)
        return folder


def _enter(pid: int, user: str) -> list[str]:
    """Enters the file system of a container's process, as its user; `buildah run` would start anew."""
    for process in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.uids().real == int(user.split(":")[0]):
                return ["chroot", f"--userspec={user}", f"/proc/{process.pid}/root"]
    return ["false", "it has not started yet"]


def _python_folders() -> list[Path]:
    """What this machine's Python needs of the file system: its libraries, itself, this project."""
    wanted = ["/usr/lib", "/usr/lib64", sys.base_prefix, sys.prefix, os.path.realpath(sys.prefix), str(ROOT)]
    folders = [Path(path) for path in dict.fromkeys(wanted) if Path(path).is_dir()]
    return [path for path in folders if not any(other in path.parents for other in folders)]


def why_not(backend: str) -> str:
    """Why TensorFlow Serving can't be had by a backend of `serving.up`; empty where it can."""
    try:
        choose_backend(backend)
    except ServerUnavailable as error:
        return str(error)
    return ""


def skip_tfserving(reason: str) -> NoReturn:
    """Skips what needs TensorFlow Serving; where REQUIRE_TFSERVING says that it is there, fails."""
    text = f"not run against TensorFlow Serving: {reason}"
    if os.environ.get("REQUIRE_TFSERVING"):
        pytest.fail(text)
    pytest.skip(text, allow_module_level=True)


def why_no_buildah(folder: Path) -> str:
    """Empty where buildah can build and run images without an engine."""
    missing = [name for name in ("buildah", "unshare") if not shutil.which(name)]
    if missing:
        return f"no {' and no '.join(missing)} on the PATH; `make tools` installs it on Debian"
    if os.geteuid() != 0:
        return "buildah with chroot isolation needs root"
    if sys.base_prefix == "/usr":
        return "the stand-in's Python is lent from its own folder, not from /usr"
    probe = ["unshare", "--mount", "bash", "-c", READ_ONLY, str(folder), "true"]
    done = subprocess.run(probe, capture_output=True, text=True)
    return f"mounting is not permitted here: {done.stderr.strip()}" if done.returncode else ""


def _output(*command: str) -> str:
    """What a command prints; its complaint becomes part of the failure."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout
