"""Stage `check_packages`: the versions of all packages that the pipeline runs on, as requirements.

Only what pyproject.toml asks for under `pipeline`, and what that needs, is listed: a linter that
is installed beside it does not make training run again.
"""

from __future__ import annotations

import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from stages.errors import StageError, run_stage

__all__ = ["check_packages", "installed_closure", "required_packages"]


def check_packages(project: Path, out: Path) -> None:
    """Writes `name==version` lines, sorted; the file is left alone if nothing changed.

    Raises:
        StageError: names all packages that are missing or of a version that is not allowed.
    """
    wanted = required_packages(tomllib.loads(project.read_text())["project"], "pipeline")
    lines = [f"{name}=={version}" for name, version in sorted(installed_closure(wanted).items())]
    text = "\n".join(lines) + "\n"
    if not out.exists() or out.read_text() != text:
        out.write_text(text)


def required_packages(project: dict[str, Any], extra: str) -> list[Requirement]:
    """What a project asks for, with one of its extras, and the extras of its own that this one names."""
    wanted = [Requirement(text) for text in project["dependencies"]]
    queue, seen = [extra], set()
    while queue:
        name = queue.pop()
        seen.add(name)
        for requirement in map(Requirement, project["optional-dependencies"][name]):
            if canonicalize_name(requirement.name) == canonicalize_name(project["name"]):
                queue += requirement.extras - seen
            else:
                wanted.append(requirement)
    return wanted


def installed_closure(wanted: list[Requirement]) -> dict[str, str]:
    """Version of each installed package that the requirements reach."""
    found: dict[str, str] = {}
    problems: list[str] = []
    queue = [(one, True) for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})]
    seen: set[tuple[str, str]] = set()
    while queue:
        requirement, direct = queue.pop()
        name = canonicalize_name(requirement.name)
        extras = sorted(requirement.extras) or [""]
        try:
            package = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            problems.append(f"{requirement}: not installed")
            continue
        if direct and not requirement.specifier.contains(package.version, prereleases=True):
            problems.append(f"{requirement}: installed is {package.version}")
        found[name] = package.version
        for extra in extras:
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            for text in package.requires or []:
                needed = Requirement(text)
                if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                    queue.append((needed, False))
    if problems:
        raise StageError("\n  ".join(["the environment differs; run `make setup`:", *sorted(problems)]))
    return found


def main() -> None:
    """Runs the stage."""
    check_packages(Path("pyproject.toml"), Path("environment.txt"))


if __name__ == "__main__":
    run_stage(main)
