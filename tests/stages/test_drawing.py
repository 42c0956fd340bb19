"""Drawing: noise and smoothing on a coarser grid are those of the whole one."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from stages.drawing import noise, smooth


def correlation_length(plane: np.ndarray, axis: int) -> float:
    """Pixels over which noise stays like itself: from the spread of its differences, at its deviation 1."""
    slope = np.diff(plane, axis=axis).std()
    return float(plane.std() / slope / np.sqrt(2))


@pytest.mark.parametrize("sigma", [1.0, 4.0, (12.0, 2.0), (7.0, 30.0)])
def test_noise_is_as_smooth_as_that_of_a_filter_over_every_pixel(sigma: float | tuple[float, float]) -> None:
    rng = np.random.default_rng(4)
    ours = [noise(rng, (200, 300), sigma) for _ in range(12)]
    whole = [ndimage.gaussian_filter(rng.normal(0, 1, (200, 300)), sigma) for _ in range(12)]
    for plane in ours:
        assert plane.shape == (200, 300)
        assert plane.dtype == np.float32
        assert plane.std() == pytest.approx(1, abs=1e-4)
    for axis in (0, 1):
        mine, other = (
            np.median([correlation_length(plane, axis) for plane in all_]) for all_ in (ours, whole)
        )
        assert mine == pytest.approx(other, rel=0.15)


@pytest.mark.parametrize("shape", [(1, 200), (9, 7), (90, 60)])
def test_noise_has_any_shape(shape: tuple[int, int]) -> None:
    plane = noise(np.random.default_rng(0), shape, (0 if shape[0] == 1 else shape[0] / 2, shape[1] / 3))
    assert plane.shape == shape
    assert np.isfinite(plane).all()


@pytest.mark.parametrize("sigma", [2.0, 9.0, (30.0, 2.0)])
def test_smoothing_leaves_what_a_filter_over_every_pixel_leaves(sigma: float | tuple[float, float]) -> None:
    rows, columns = np.mgrid[0:180, 0:240].astype(np.float32)
    steps = 30 * (columns > 100) + rows / 9
    plane = np.asarray(steps + np.random.default_rng(1).normal(0, 10, steps.shape), np.float32)
    expected = ndimage.gaussian_filter(plane, sigma)
    assert np.abs(smooth(plane, sigma) - expected).mean() < 0.05 * expected.std()
