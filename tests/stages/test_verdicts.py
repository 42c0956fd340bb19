"""Sizes, exposures and tables, counted by hand."""

from __future__ import annotations

import math
import subprocess
import sys

from stages.verdicts import SIZES, Exposures, compare_exposures, size_of


def test_every_area_has_a_size() -> None:
    assert [size_of(least) for least in SIZES.values()] == list(SIZES)
    assert [size_of(least - 1) for least in SIZES.values() if least > 1] == list(SIZES)[:-1]
    assert size_of(10**9) == "10000+"


def test_exposures_by_hand() -> None:
    images = [
        *[("one", True, True), ("one", True, True), ("one", True, True)],
        *[("both", False, True), ("both", False, False)],
        *[("truth differs", True, True), ("truth differs", False, False)],
        ("alone", True, False),
    ]
    exposures = compare_exposures(images)
    assert exposures == Exposures(["one"], ["both"], ["truth differs"])
    assert exposures.agreement == 0.5
    assert math.isnan(compare_exposures(images[-1:]).agreement)


def test_a_report_need_not_load_keras() -> None:
    code = "import sys, stages.report.__main__; print({'keras', 'tensorflow'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
