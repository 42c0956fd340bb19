"""Loss terms against values by hand and plain NumPy formulas."""

from __future__ import annotations

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from stages.losses import SegmentationLoss, answer_loss, focal_cross_entropy, soft_dice_loss

SHAPE = (2, 3, 4, 1)
fractions = st.lists(st.floats(0, 1, width=32), min_size=24, max_size=24).map(
    lambda values: np.array(values, np.float32).reshape(SHAPE)
)


def column(*values: float) -> np.ndarray:
    return np.array(values, np.float32).reshape(1, -1, 1, 1)


def test_cross_entropy_by_hand() -> None:
    # A defect predicted with 0.5, a good pixel with 0.25: -(ln 0.5 + ln 0.75) / 2.
    loss = float(focal_cross_entropy(column(1, 0), column(0.5, 0.25), 0.0))
    assert loss == pytest.approx(-(math.log(0.5) + math.log(0.75)) / 2, rel=1e-5)


def test_focal_cross_entropy_by_hand() -> None:
    # The same, weighted by (1 - 0.5)^2 and (1 - 0.75)^2.
    loss = float(focal_cross_entropy(column(1, 0), column(0.5, 0.25), 2.0))
    assert loss == pytest.approx(-(0.25 * math.log(0.5) + 0.0625 * math.log(0.75)) / 2, rel=1e-5)


def test_soft_dice_by_hand() -> None:
    # sum(t p) = 0.5, sum(t) + sum(p) = 2 + 1; smoothed by 1 above and below.
    loss = float(soft_dice_loss(column(1, 1, 0), column(0.5, 0, 0.5)))
    assert loss == pytest.approx(1 - (2 * 0.5 + 1) / (3 + 1))


def test_dice_of_a_perfect_and_of_an_empty_answer() -> None:
    truth, nothing = column(1, 1, 0, 0), column(0, 0, 0, 0)
    assert float(soft_dice_loss(truth, truth)) == pytest.approx(0)
    assert float(soft_dice_loss(truth, nothing)) == pytest.approx(1 - 1 / 3)
    assert float(soft_dice_loss(nothing, nothing)) == pytest.approx(0), "nothing to find, nothing found"


def test_a_batch_without_a_defect_costs_what_was_found_wrongly() -> None:
    assert float(soft_dice_loss(column(0, 0, 0), column(1, 0.5, 0.5))) == pytest.approx(1 - 1 / (1 + 2))


def test_dice_is_pooled_over_the_batch() -> None:
    # An image without a defect only adds to the denominator: no division by its own zero.
    truth = np.concatenate([column(1, 1), column(0, 0)])
    found = np.concatenate([column(1, 1), column(0, 1)])
    assert float(soft_dice_loss(truth, found)) == pytest.approx(1 - (2 * 2 + 1) / (2 + 3 + 1))


@settings(max_examples=40, deadline=None)
@given(truth=fractions, found=fractions, gamma=st.sampled_from([0.0, 0.5, 1.0, 2.0]))
def test_terms_agree_with_numpy_in_double_precision(
    truth: np.ndarray, found: np.ndarray, gamma: float
) -> None:
    t, p = truth.astype(np.float64), np.clip(found.astype(np.float64), 1e-6, 1 - 1e-6)
    focal = -np.mean(t * (1 - p) ** gamma * np.log(p) + (1 - t) * p**gamma * np.log(1 - p))
    assert float(focal_cross_entropy(truth, found, gamma)) == pytest.approx(focal, rel=0.02, abs=1e-5)
    f = found.astype(np.float64)
    dice = 1 - (2 * (t * f).sum() + 1) / (t.sum() + f.sum() + 1)
    assert float(soft_dice_loss(truth, found)) == pytest.approx(dice, abs=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0])
def test_gradients_flow_and_point_towards_the_truth(gamma: float) -> None:
    truth = column(1, 0, 1, 0)
    found = tf.Variable(column(0.3, 0.3, 0.7, 0.7))
    with tf.GradientTape() as tape:
        loss = SegmentationLoss(0.5, gamma)(truth, found)
    gradient = tape.gradient(loss, found).numpy().ravel()
    assert (np.sign(gradient) == [-1, 1, -1, 1]).all()


@pytest.mark.parametrize("wrong", [0.0, 1.0])
def test_a_sure_and_wrong_answer_has_a_finite_loss_and_gradient(wrong: float) -> None:
    found = tf.Variable(column(wrong, wrong))
    with tf.GradientTape() as tape:
        loss = SegmentationLoss(0.5, 1.0, 0.1)(column(1 - wrong, 1 - wrong), found)
    assert math.isfinite(float(loss))
    assert np.isfinite(tape.gradient(loss, found).numpy()).all()


@pytest.mark.parametrize("dice_weight", [0.0, 0.3, 1.0])
def test_the_loss_mixes_both_terms_by_their_weight(dice_weight: float) -> None:
    truth, found = column(1, 0, 0), column(0.6, 0.2, 0.1)
    dice, focal = float(soft_dice_loss(truth, found)), float(focal_cross_entropy(truth, found, 1.0))
    loss = float(SegmentationLoss(dice_weight, 1.0)(truth, found))
    assert loss == pytest.approx(dice_weight * dice + (1 - dice_weight) * 10 * focal, rel=1e-5)


def test_the_answer_of_an_image_is_that_of_its_deciding_pixel() -> None:
    good, alarm = np.zeros((1, 2, 2, 1), np.float32), np.array([0.1, 0.2, 0.7, 0.3], np.float32)
    defect = np.array([1, 0.2, 0, 0], np.float32)
    as_image = (1, 2, 2, 1)
    assert float(answer_loss(good, alarm.reshape(as_image))) == pytest.approx(-math.log(0.3), rel=1e-5)
    # Of a defect the best pixel within it counts, not the better one beside it.
    found = float(answer_loss(defect.reshape(as_image), alarm.reshape(as_image)))
    assert found == pytest.approx(-math.log(0.2), rel=1e-5)
    both = np.concatenate([good, defect.reshape(as_image)]), np.concatenate([alarm.reshape(as_image)] * 2)
    assert float(answer_loss(*both)) == pytest.approx(-math.log(0.3 * 0.2) / 2, rel=1e-5)
    weighed, plain = (float(SegmentationLoss(0.3, 1.0, weight)(*both)) for weight in (0.2, 0.0))
    assert weighed - plain == pytest.approx(0.2 * float(answer_loss(*both)), rel=1e-4)


def test_half_precision_is_summed_in_single_precision() -> None:
    # float16 ends at 65504; the sums over a batch go beyond.
    truth, found = np.ones((2, 256, 256, 1), np.float16), np.ones((2, 256, 256, 1), np.float16)
    assert float(SegmentationLoss(1.0, 1.0)(truth, ops.cast(found, "float16"))) == pytest.approx(0, abs=1e-4)


def test_the_loss_comes_back_from_its_config() -> None:
    loss = SegmentationLoss(0.3, 2.0, 0.1)
    again = SegmentationLoss.from_config(loss.get_config())
    assert isinstance(again, keras.losses.Loss)
    assert (again.dice_weight, again.focal_gamma, again.answer_weight) == (0.3, 2.0, 0.1)
