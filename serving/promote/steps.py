"""Promotion and rollback. Each can be killed at any point and run again."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from serving.errors import ConfigError
from serving.fingerprint import fingerprint
from serving.labels import read_labels, set_labels
from serving.promote.candidate import Candidate, read_info
from serving.promote.criteria import Criterion, Finding, compare_metrics
from serving.promote.deployment import Deployment

__all__ = ["CANARY", "STABLE", "Target", "Verdict", "promote", "roll_back"]

STABLE, CANARY = "stable", "canary"


@dataclass(frozen=True)
class Target:
    """Where versions are served.

    Attributes:
        deployment: folder of the versions.
        config: file with their labels, `models.config` of TensorFlow Serving.
        model: its name there.
        grace: seconds within which servers have read the labels again.
    """

    deployment: Deployment
    config: Path
    model: str
    grace: float


@dataclass(frozen=True)
class Verdict:
    """What came of a promotion.

    Attributes:
        number: of the version.
        findings: what each criterion says.
        notes: what a person should know besides.
        serving: number of the version that it was compared with, None without one.
    """

    number: int
    findings: list[Finding]
    notes: list[str]
    serving: int | None

    @property
    def passed(self) -> bool:
        return all(finding.passed for finding in self.findings)


def promote(
    target: Target,
    fetch: Callable[[Path], Candidate],
    criteria: Sequence[Criterion],
    *,
    label: str = STABLE,
    keep: int = 2,
    check_only: bool = False,
) -> Verdict:
    """Puts a version into the serving folder and labels it, if it may be served.

    Args:
        target: where to.
        fetch: copies the version to a scratch folder.
        criteria: what it must reach.
        label: `stable` or `canary`; `stable` takes the place of a `canary` of the same version.
        keep: newest versions that stay; labelled ones, and that to go back to, stay anyway.
        check_only: look, and change nothing.

    Raises:
        ConfigError: it can't be done; the server goes on as before.
    """
    folder = target.deployment
    with folder.locked() as scratch:
        if not check_only:
            _finish_rollback(target)
        labels = read_labels(target.config, target.model)
        serving = _serving(target, labels)
        candidate = fetch(scratch)
        number = candidate.number
        there = folder.base_path / str(number)
        if there.exists() and fingerprint(there) != candidate.sha256:
            raise ConfigError(
                f"{folder.base_path} has a version {number} of other contents; export a new version"
            )
        served = read_info(folder.base_path / str(serving)) if serving is not None else {}
        findings = [*_may_be_served(folder, candidate)]
        findings += compare_metrics(criteria, candidate.info.get("metrics", {}), served.get("metrics"))
        verdict = Verdict(number, findings, _notes(folder, candidate, served), serving)
        if not verdict.passed or check_only:
            return verdict
        was_there = number in folder.versions()
        # What stable goes back to; this version itself if it is blessed once more.
        previous = serving if serving != number else folder.blessing(number).get("previous")
        folder.put(candidate.folder, number, _blessing(candidate, verdict, label, previous))
        changes: dict[str, int | None] = {label: number}
        if label == STABLE and labels.get(CANARY) == number:
            changes[CANARY] = None
        try:
            labels = set_labels(target.config, changes, folder.base_path, target.model)
        except ConfigError:
            if not was_there:  # it would be what calls without a label get
                folder.remove_all_but(set(folder.versions()) - {number})
            raise
        to_go_back_to = {folder.blessing(one).get("previous") for one in labels.values()}
        folder.remove_all_but({*labels.values(), *to_go_back_to, *folder.versions()[-keep:]})
    return verdict


def roll_back(target: Target, label: str = STABLE, *, check_only: bool = False) -> tuple[int, int | None]:
    """Takes the version that a label names out of service.

    `stable` goes back to what it named before; other labels of the version are removed. Once servers
    have read that, the version leaves the folder, so that calls without a label don't get it either.

    Args:
        target: where.
        label: `stable` or `canary`.
        check_only: look, and change nothing.

    Returns:
        Number of the version, and what `stable` names now.

    Raises:
        ConfigError: there is nothing to go back to.
    """
    folder = target.deployment
    with folder.locked():
        journal = folder.pending_rollback()
        if not journal:
            labels = read_labels(target.config, target.model)
            bad = labels.get(label)
            if bad is None:
                raise ConfigError(f"no version is labelled {label} in {target.config}")
            to = labels.get(STABLE)
            others = set(folder.versions()) - {bad}
            if to == bad:
                to = folder.blessing(bad).get("previous")
                others &= {to}
            if not others:
                raise ConfigError(f"nothing to go back to from version {bad} in {folder.base_path}")
            journal = {"bad": bad, "to": to}
            if not check_only:
                folder.begin_rollback(journal)
        if not check_only:
            _finish_rollback(target)
    return journal["bad"], journal["to"]


def _finish_rollback(target: Target) -> None:
    """Does what the journal says; parts of it may have been done before."""
    folder = target.deployment
    journal = folder.pending_rollback()
    if not journal:
        return
    named = [name for name, one in read_labels(target.config, target.model).items() if one == journal["bad"]]
    if named:
        changes = {name: journal["to"] if name == STABLE else None for name in named}
        try:
            set_labels(target.config, changes, folder.base_path, target.model)
        except ConfigError:
            folder.end_rollback()  # nothing is changed yet, and no later promotion is to do it unasked
            raise
    # A server that still has the old labels must find the version.
    time.sleep(target.grace)
    folder.withdraw(journal["bad"])
    folder.end_rollback()


def _serving(target: Target, labels: Mapping[str, int]) -> int | None:
    """The version that callers get now."""
    there = target.deployment.versions()
    stable = labels.get(STABLE)
    if stable is None:
        return there[-1] if there else None
    if stable not in there:
        raise ConfigError(
            f"{target.config} labels version {stable} {STABLE}, but it is not in "
            f"{target.deployment.base_path}; mend one of them (`python -m serving.labels {STABLE}=`)"
        )
    return stable


def _may_be_served(folder: Deployment, candidate: Candidate) -> list[Finding]:
    number, validated = candidate.number, candidate.validated or {}
    if not validated:
        finding = Finding(False, "validate has not passed there; `dvc repro validate`")
    elif validated.get("sha256") != candidate.sha256:
        finding = Finding(
            False, f"validate passed for version {validated.get('version')}, not for these files"
        )
    else:
        finding = Finding(
            True, f"validate passed: served masks are the evaluated ones on {validated['images']} images"
        )
    aside = folder.withdrawn(number)
    if aside:
        return [
            finding,
            Finding(False, f"version {number} was rolled back; to allow it again, delete {aside}"),
        ]
    return [finding]


def _notes(folder: Deployment, candidate: Candidate, served: Mapping[str, Any]) -> list[str]:
    notes = []
    if served and served.get("data_version") != candidate.info.get("data_version"):
        notes.append("measured on other data than the version now serving: compare with care")
    if folder.is_private:
        notes.append(
            f"none but its owner can read {folder.base_path}, a container's user neither; if it has to: "
            f"`chmod -R a+rX {folder.base_path}`"
        )
    newest = max(folder.versions(), default=0)
    if newest > candidate.number:
        notes.append(f"version {newest} is newer: calls without a label go on getting that")
    return notes


def _blessing(candidate: Candidate, verdict: Verdict, label: str, previous: int | None) -> dict[str, Any]:
    return {
        "version": candidate.number,
        "label": label,
        "promoted": datetime.now(UTC).isoformat(timespec="seconds"),
        "source": candidate.source,
        "sha256": candidate.sha256,
        "git_revision": candidate.info.get("git_revision"),
        "data_version": candidate.info.get("data_version"),
        "compared_with": verdict.serving,
        "previous": previous,
        "reasons": [finding.text for finding in verdict.findings],
        "notes": verdict.notes,
    }
