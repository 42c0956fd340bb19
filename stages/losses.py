"""Training loss in `keras.ops`: focal cross-entropy for every pixel, Dice for the defects as a whole."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

__all__ = ["SegmentationLoss", "answer_loss", "focal_cross_entropy", "soft_dice_loss"]

EPSILON = 1e-6


def focal_cross_entropy(truth: Any, probability: Any, gamma: float) -> Any:
    """Mean over pixels of -(1 - q)^gamma log q, q the probability of the true class.

    Lin et al., "Focal Loss for Dense Object Detection", 2017, without the class weight;
    gamma 0 is the binary cross-entropy. A truth between 0 and 1 mixes the two classes.

    Args:
        truth: (N, H, W, 1) float, 0-1.
        probability: (N, H, W, 1) float, 0-1.
        gamma: 0 or more; larger values look away from what is already right.
    """
    p = ops.clip(probability, EPSILON, 1.0 - EPSILON)
    positive = truth * ops.power(1.0 - p, gamma) * ops.log(p)
    negative = (1.0 - truth) * ops.power(p, gamma) * ops.log(1.0 - p)
    return -ops.mean(positive + negative)


def soft_dice_loss(truth: Any, probability: Any) -> Any:
    """1 - (2 sum(t p) + 1) / (sum(t) + sum(p) + 1), sums over all pixels of the batch.

    Milletari et al., "V-Net", 2016. Pooling over the batch keeps images without a defect
    meaningful: they only add to the denominator. A batch without any defect costs 1 - 1 / (1 + sum(p)).

    Args:
        truth: (N, H, W, 1) float, 0-1.
        probability: (N, H, W, 1) float, 0-1.
    """
    overlap = ops.sum(truth * probability)
    total = ops.sum(truth) + ops.sum(probability)
    return 1.0 - (2.0 * overlap + 1.0) / (total + 1.0)


def answer_loss(truth: Any, probability: Any) -> Any:
    """Mean over images of the cross-entropy of the one pixel that decides on the image.

    A tile is called defective where any pixel is: of a good image that is its most probable pixel, which
    should be none; of an image with a defect, the most probable one within the defect.

    Args:
        truth: (N, H, W, 1) float, 0-1.
        probability: (N, H, W, 1) float, 0-1.
    """
    p = ops.clip(probability, EPSILON, 1.0 - EPSILON)
    inside = ops.cast(truth > 0, p.dtype)
    defective = ops.max(inside, axis=(1, 2, 3))
    found, alarm = ops.max(p * inside, axis=(1, 2, 3)), ops.max(p, axis=(1, 2, 3))
    found = ops.maximum(found, EPSILON)
    return -ops.mean(defective * ops.log(found) + (1.0 - defective) * ops.log(1.0 - alarm))


class SegmentationLoss(keras.losses.Loss):  # type: ignore[misc]
    """Dice and focal cross-entropy of all pixels, and that of the pixels that decide.

    dice_weight * soft_dice_loss + (1 - dice_weight) * 10 * focal_cross_entropy + answer_weight * answer_loss.
    The factor 10 brings the focal term, a mean over mostly easy pixels, to the size of the Dice term.
    """

    def __init__(self, dice_weight: float, focal_gamma: float, answer_weight: float = 0.0) -> None:
        super().__init__(name="segmentation_loss")
        self.dice_weight = dice_weight
        self.focal_gamma = focal_gamma
        self.answer_weight = answer_weight

    def call(self, y_true: Any, y_pred: Any) -> Any:
        truth, probability = ops.cast(y_true, "float32"), ops.cast(y_pred, "float32")
        focal = 10.0 * focal_cross_entropy(truth, probability, self.focal_gamma)
        total = self.dice_weight * soft_dice_loss(truth, probability) + (1.0 - self.dice_weight) * focal
        if self.answer_weight:
            total += self.answer_weight * answer_loss(truth, probability)
        return ops.reshape(total, (1,))  # Keras divides by the number of devices, but not a scalar

    def get_config(self) -> dict[str, Any]:
        return {
            "dice_weight": self.dice_weight,
            "focal_gamma": self.focal_gamma,
            "answer_weight": self.answer_weight,
        }
