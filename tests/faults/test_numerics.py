"""One tile, one answer, wherever it is asked for; tiles of all sizes; metrics against other libraries.

What "the same" is: probabilities within 1/255, masks within 0.1 % of the pixels, since the last bits of a sum
depend on the build of TensorFlow and on how many cores share it.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from skimage.measure import label, regionprops
from sklearn.metrics import f1_score, jaccard_score, precision_recall_curve

from scripts.load import IMAGE_FLAGS, LEVELS, PIXELS, tiles
from serving.client import TileClient
from serving.postprocessing import find_defects
from serving.preprocessing import letterbox, read_image
from serving.up import running_server
from stages.export import export_saved_model, latest_version
from stages.metrics import component_areas, count_components, count_levels, count_pixels, curve
from stages.model import build_unet
from stages.params import TrainParams
from tests.conftest import MODEL_NAME
from tests.serving.images import why_not
from tests.stages.conftest import SMALLEST

FILES = [*tiles(6, 90, 70), *tiles(3, 50, 200, seed=1)]
QUICK = settings(max_examples=60, deadline=None)
Answer = tuple[np.ndarray, np.ndarray, float, str]
"""Mask, probability levels, score, label."""


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported UNet with random weights, and the threshold that cuts through its answers."""
    import keras

    keras.utils.set_random_seed(3)
    params: TrainParams = SMALLEST.model_copy(update={"image_size": (64, 64)})
    base_path = tmp_path_factory.mktemp("numerics") / MODEL_NAME
    model = build_unet(params)
    images = np.stack([letterbox(read_image(data), params.image_size)[0] for data in FILES])
    threshold = float(np.median(model.predict(images, verbose=0)))
    export_saved_model(model, {"name": MODEL_NAME, "threshold": threshold}, base_path)
    return base_path


def decoded(prediction: dict[str, Any]) -> Answer:
    def plane(data: Any) -> np.ndarray:
        data = base64.b64decode(data["b64"]) if isinstance(data, dict) else data
        return np.asarray(Image.open(io.BytesIO(data)))

    names = ("mask_bytes", "probability_bytes", "score", "label")
    mask, levels, score, text = (prediction[name] for name in names)
    return plane(mask), plane(levels), float(score), text.decode() if isinstance(text, bytes) else text


def ask(url: str, order: list[int]) -> list[Answer]:
    """One request for some of the files, in this order."""
    instances = [{"b64": base64.b64encode(FILES[index]).decode()} for index in order]
    body = {"signature_name": "segment", "instances": instances}
    answer = requests.post(f"{url}/v1/models/{MODEL_NAME}:predict", json=body, timeout=60)
    return [decoded(one) for one in answer.json()["predictions"]]


@pytest.fixture(scope="module")
def in_process(network: Path) -> list[Answer]:
    """Answers of the SavedModel itself, each file alone."""
    segment = tf.saved_model.load(str(latest_version(network))).signatures["segment"]
    answers = [segment(image_bytes=tf.constant([data])) for data in FILES]
    return [decoded({name: value.numpy()[0] for name, value in one.items()}) for one in answers]


SERVERS = [
    pytest.param(("embedded", ()), id="embedded"),
    pytest.param(("embedded", IMAGE_FLAGS), id="batching"),
    pytest.param(
        ("binary", IMAGE_FLAGS),
        id="TensorFlow Serving",
        marks=pytest.mark.skipif(bool(why_not("binary")), reason=why_not("binary") or "it is there"),
    ),
]


@pytest.fixture(scope="module", params=SERVERS)
def url(request: pytest.FixtureRequest, network: Path) -> Iterator[str]:
    backend, flags = request.param
    with running_server(network, MODEL_NAME, backend=backend, flags=flags) as url:
        yield url


def assert_same(one: Answer, other: Answer) -> None:
    assert one[0].shape == other[0].shape == one[1].shape
    assert (one[0] != other[0]).mean() <= PIXELS
    assert np.abs(one[1].astype(int) - other[1]).max() <= LEVELS
    assert abs(one[2] - other[2]) <= LEVELS / 255 + 1e-6


# Wherever it is asked for


def test_the_answers_are_not_all_alike(in_process: list[Answer]) -> None:
    assert len({answer[1].tobytes() for answer in in_process}) == len(FILES)
    assert any(0.02 < (answer[0] > 0).mean() < 0.98 for answer in in_process)


def test_alone_in_a_batch_in_any_order_and_at_once_it_is_the_same(url: str, in_process: list[Answer]) -> None:
    rng = np.random.default_rng(0)
    orders = [[index] for index in range(len(FILES))]
    orders += [rng.permutation(len(FILES))[: rng.integers(2, 9)].tolist() for _ in range(6)]
    orders += [[0] * 8, [8, 8, 0]]
    one_by_one = [ask(url, order) for order in orders]
    with ThreadPoolExecutor(8) as executor:
        at_once = list(executor.map(lambda order: ask(url, order), orders * 2))
    for order, answers in zip(orders * 3, one_by_one + at_once, strict=True):
        for index, answer in zip(order, answers, strict=True):
            assert_same(answer, in_process[index])


def test_the_client_gets_it_with_either_signature(url: str, in_process: list[Answer]) -> None:
    for signature in ("segment", "serving_default"):
        with TileClient(url, MODEL_NAME, signature=signature) as client:
            for data, expected in zip(FILES[::4], in_process[::4], strict=True):
                got = client.predict(data)
                assert_same((got.mask, got.levels, got.score, got.label), expected)


# Of any size


def sizes() -> list[tuple[int, int]]:
    """Extremes from 1 x 1 to 4,000 x 4,000, and some between, evenly by their logarithm."""
    rng = np.random.default_rng(0)
    between = np.exp(rng.uniform(0, math.log(4000), (20, 2))).astype(int)
    extremes = [(1, 1), (1, 4000), (4000, 1), (2, 3999), (7, 7), (8, 8), (63, 64), (64, 65), (4000, 4000)]
    return extremes + [(int(height), int(width)) for height, width in between]


def test_masks_have_the_size_of_their_tile(server_url: str) -> None:
    for height, width in sizes():
        gray = np.full((height, width), 200, np.uint8)
        along = gray if height > width else gray.T  # a defect across the whole of the shorter side is left
        along[len(along) // 4 : len(along) // 4 * 3 + 1] = 20
        buffer = io.BytesIO()
        Image.fromarray(gray).save(buffer, "PNG", compress_level=1)
        body = {
            "signature_name": "segment",
            "instances": [{"b64": base64.b64encode(buffer.getvalue()).decode()}],
        }
        answer = requests.post(f"{server_url}/v1/models/{MODEL_NAME}:predict", json=body, timeout=120)
        (prediction,) = answer.json()["predictions"]
        mask, levels, score, text = decoded(prediction)
        assert mask.shape == levels.shape == (height, width)
        assert text == "defect"
        assert score > 0.99
        share = (gray == 20).mean()
        assert abs((mask > 0).mean() - share) <= 0.05, (height, width)


# Metrics


masks = arrays(
    np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.sampled_from([0, 255])
)


@st.composite
def pairs(draw: st.DrawFn, found: st.SearchStrategy[int]) -> tuple[np.ndarray, np.ndarray]:
    truth = draw(masks)
    return draw(arrays(np.uint8, truth.shape, elements=found)), truth


@QUICK
@given(pairs(st.sampled_from([0, 1, 255])))
def test_dice_and_iou_are_those_of_scikit_learn(pair: tuple[np.ndarray, np.ndarray]) -> None:
    found, truth = (one.ravel() > 0 for one in pair)
    counts = count_pixels(*pair)
    assert counts.dice == pytest.approx(f1_score(truth, found, zero_division=1.0))
    assert counts.iou == pytest.approx(jaccard_score(truth, found, zero_division=1.0))


@QUICK
@given(pairs(st.integers(0, 255)))
def test_curves_are_those_of_scikit_learn(pair: tuple[np.ndarray, np.ndarray]) -> None:
    levels, truth = pair
    if not truth.any():
        return  # recall is undefined, and scikit-learn says 1
    ours = curve(count_levels(levels, truth))
    precision, recall, cuts = precision_recall_curve(truth.ravel() > 0, levels.ravel())
    for index, cut in enumerate(cuts.astype(int)):
        if cut > 0:  # at 0 all is defect, which no threshold gives
            assert ours["precision"][cut - 1] == pytest.approx(precision[index])
            assert ours["recall"][cut - 1] == pytest.approx(recall[index])


@QUICK
@given(pairs(st.sampled_from([0, 255])), st.sampled_from([0.01, 0.25, 0.5, 1.0]))
def test_defects_found_missed_and_false_are_those_of_scikit_image(
    pair: tuple[np.ndarray, np.ndarray], overlap: float
) -> None:
    mask, truth = pair
    there, seen = (regionprops(label(one > 0, connectivity=2)) for one in (truth, mask))
    covered = [
        sum(mask[row, column] > 0 for row, column in one.coords) >= overlap * len(one.coords) for one in there
    ]
    false = [one.area for one in seen if not any(truth[row, column] for row, column in one.coords)]
    counts = count_components(mask, truth, overlap)
    assert (counts.found, counts.missed, counts.false) == (
        sum(covered),
        len(there) - sum(covered),
        len(false),
    )
    areas = component_areas(mask, truth, overlap)
    assert sorted(areas["found"] + areas["missed"]) == sorted(one.area for one in there)
    assert sorted(areas["false"]) == sorted(false)


@QUICK
@given(pairs(st.integers(0, 255)))
def test_a_list_of_defects_is_that_of_scikit_image(pair: tuple[np.ndarray, np.ndarray]) -> None:
    levels, mask = pair
    found = find_defects(mask, levels)
    expected = regionprops(label(mask > 0, connectivity=2), intensity_image=levels)
    assert sorted(
        (
            *(one.box[1], one.box[0], one.box[1] + one.box[3], one.box[0] + one.box[2], one.area),
            round(255 * one.peak_probability),
            *np.round(one.centroid, 6),
        )
        for one in found
    ) == sorted(
        (*one.bbox, one.area, one.intensity_max, *np.round(one.centroid[::-1], 6)) for one in expected
    )
    assert sum(one.area_percent for one in found) == pytest.approx(100 * (mask > 0).mean())
