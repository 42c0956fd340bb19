"""The REST API of the embedded server, compared with what TensorFlow Serving answers."""

from __future__ import annotations

import base64
import gzip
import io
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from PIL import Image

from serving.local.encode import encode_tensors
from serving.local.status import RequestError
from serving.up import running_server
from tests.serving.saved_models import save_half

NAME = "half"


@pytest.fixture(scope="module")
def base_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rest") / NAME
    save_half(path / "123")
    return path


@pytest.fixture(scope="module")
def url(base_path: Path) -> Iterator[str]:
    with running_server(base_path, NAME) as url:
        yield f"{url}/v1/models/{NAME}"


def post(url: str, body: object, path: str = ":predict") -> requests.Response:
    data = body if isinstance(body, (bytes, str)) else json.dumps(body)
    return requests.post(url + path, data=data, timeout=30)


def error_of(answer: requests.Response, code: int = 400) -> str:
    assert answer.status_code == code, answer.text
    assert answer.headers["content-type"] == "application/json"
    document = answer.json()
    assert list(document) == ["error"]
    return str(document["error"])


MANY_ROW = {"ints": [1, 2], "text": "a", "flag": True}


def test_row_format_with_one_input_and_output_needs_no_names(url: str) -> None:
    answer = post(url, {"instances": [1.0, 2.0, 5.0]})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.text == '{\n    "predictions": [2.5, 3.0, 4.5\n    ]\n}'


def test_row_format_takes_the_name_of_the_only_input(url: str) -> None:
    assert post(url, {"instances": [{"x": 1}, {"x": 2}]}).json() == {"predictions": [2.5, 3.0]}


def test_column_format_with_one_input_and_output_needs_no_names(url: str) -> None:
    answer = post(url, {"signature_name": "serving_default", "inputs": [3.0, 4.0]})
    assert answer.text == '{\n    "outputs": [\n        3.5,\n        4.0\n    ]\n}'
    assert post(url, {"inputs": {"x": [3.0, 4.0]}}).json() == {"outputs": [3.5, 4.0]}


def test_a_version_can_be_named(url: str) -> None:
    assert post(url, {"instances": [1]}, "/versions/123:predict").json() == {"predictions": [2.5]}


def test_paths_ignore_case_but_not_in_names(url: str) -> None:
    server = url.removesuffix(f"/v1/models/{NAME}")
    assert requests.get(f"{server}/V1/Models/{NAME}", timeout=30).status_code == 200
    assert requests.get(f"{server}/v1/models/{NAME.upper()}", timeout=30).status_code == 404


def test_names_are_unquoted(url: str) -> None:
    quoted = url.replace(NAME, f"%{ord(NAME[0]):02x}{NAME[1:]}")
    assert requests.get(quoted, timeout=30).status_code == 200


def test_row_format_with_many_types(url: str) -> None:
    rows = [MANY_ROW, {"ints": [3, 4], "text": {"b64": "YsO8"}, "flag": False}]
    answer = post(url, {"signature_name": "many", "instances": rows})
    assert answer.json() == {
        "predictions": [
            {"doubled": [2.0, 4.0], "inverse": False, "raw_bytes": {"b64": "YQ=="}, "sums": 3, "text": "a!"},
            {"doubled": [6.0, 8.0], "inverse": True, "raw_bytes": {"b64": "YsO8"}, "sums": 7, "text": "bü!"},
        ]
    }
    assert answer.text.startswith(
        '{\n    "predictions": [\n        {\n            "doubled": [2.0, 4.0],\n'
        '            "inverse": false,\n            "raw_bytes": {\n'
        '                "b64": "YQ=="\n            },'
    )


def test_column_format_with_many_types(url: str) -> None:
    inputs = {"ints": [[1, 2], [3, 4]], "text": ["a", "b"], "flag": [True, False]}
    answer = post(url, {"signature_name": "many", "inputs": inputs})
    assert answer.json() == {
        "outputs": {
            "doubled": [[2.0, 4.0], [6.0, 8.0]],
            "inverse": [False, True],
            "raw_bytes": [{"b64": "YQ=="}, {"b64": "Yg=="}],
            "sums": [3, 7],
            "text": ["a!", "b!"],
        }
    }


def test_escapes_are_whole_characters(url: str) -> None:
    head = '{"signature_name": "many", "instances": '
    body = head + r'[{"ints": [1, 2], "text": "\uD83d\udE00\\ud800", "flag": true}]}'
    assert post(url, body).json()["predictions"][0]["text"] == "😀\\ud800!"


def test_bytes_come_through_unchanged(url: str) -> None:
    buffer = io.BytesIO()
    image = np.arange(12, dtype=np.uint8).reshape(3, 4)
    Image.fromarray(image).save(buffer, "PNG")
    body = {"signature_name": "decode", "instances": [{"b64": base64.b64encode(buffer.getvalue()).decode()}]}
    (answer,) = post(url, body).json()["predictions"]
    decoded = np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["b64"]))))
    np.testing.assert_array_equal(decoded, image)


@pytest.mark.parametrize("text", ["_-8", "/+8=", "_-8="])
def test_base64_takes_both_alphabets_and_no_padding(url: str, text: str) -> None:
    inputs = {"ints": [[1, 2]], "text": [{"b64": text}], "flag": [True]}
    answer = post(url, {"signature_name": "many", "inputs": inputs})
    assert answer.json()["outputs"]["raw_bytes"] == [{"b64": base64.b64encode(b"\xff\xef").decode()}]


def test_numbers_that_are_not_finite(url: str) -> None:
    answer = post(url, '{"instances": [NaN, Infinity, -Infinity]}')
    assert answer.text == '{\n    "predictions": [NaN, Infinity, -Infinity\n    ]\n}'
    first, second, third = answer.json()["predictions"]
    assert math.isnan(first)
    assert (second, third) == (math.inf, -math.inf)


def test_floats_have_six_digits_or_all_that_are_needed() -> None:
    numbers = [9000000, 999999, 0.5, 0.0003, 0.00003, 555557.5, 0.1, 1 / 3, -0.0]
    singles = encode_tensors({"y": np.array(numbers, np.float32)}, rows=True).decode()
    assert "[9e+06, 999999.0, 0.5, 0.0003, 3e-05, 555557.5, 0.1, 0.333333343, -0.0\n" in singles
    doubles = encode_tensors({"y": np.array(numbers, np.float64)}, rows=True).decode()
    assert "555557.5, 0.1, 0.33333333333333331, -0.0\n" in doubles


def test_batches_of_different_sizes_do_not_go_in_rows() -> None:
    outputs = {"a": np.zeros((2, 1)), "b": np.zeros((3, 1))}
    with pytest.raises(RequestError, match="b has inconsistent batch size: 3 expecting: 2"):
        encode_tensors(outputs, rows=True)


def test_an_empty_batch_has_no_rows() -> None:
    assert json.loads(encode_tensors({"a": np.zeros((0, 2))}, rows=True)) == {"predictions": []}


def test_types_that_json_lacks_are_refused() -> None:
    with pytest.raises(RequestError, match="tensor type: complex64"):
        encode_tensors({"a": np.zeros(1, np.complex64)}, rows=True)


def test_integers_keep_all_digits(url: str) -> None:
    body = {"signature_name": "same_int64", "instances": [2**63 - 1, -(2**63), 2**53 + 1]}
    assert post(url, body).json() == {"predictions": [2**63 - 1, -(2**63), 2**53 + 1]}


def test_small_integers_wrap_as_in_cpp(url: str) -> None:
    body = {"signature_name": "same_uint8", "instances": [0, 255, 256, -1]}
    assert post(url, body).json() == {"predictions": [0, 255, 0, 255]}


def test_an_output_without_batch_goes_in_columns_only(url: str) -> None:
    body = {"signature_name": "no_batch"}
    assert post(url, body | {"inputs": [1, 2]}).json() == {"outputs": 3.0}
    error = error_of(post(url, body | {"instances": [1, 2]}))
    assert error == "Tensor name: total has no shape information "


def test_an_empty_batch_has_empty_answers(url: str) -> None:
    assert post(url, {"inputs": []}).json() == {"outputs": []}


def test_gzipped_requests_are_unpacked(url: str) -> None:
    headers = {"Content-Encoding": "gzip"}
    good = gzip.compress(b'{"instances": [1]}')
    assert requests.post(f"{url}:predict", data=good, headers=headers, timeout=30).json() == {
        "predictions": [2.5]
    }
    answer = requests.post(f"{url}:predict", data=good[:-5], headers=headers, timeout=30)
    assert "gzip" in error_of(answer)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"  ", "JSON Parse error: The document is empty. at offset: 2"),
        ("instances = [1, 2]", "JSON Parse error: Invalid value. at offset: 0"),
        (
            '{"instances": [1] "x": 1}',
            "JSON Parse error: Missing a comma or } after an object member. at offset: 18",
        ),
        (
            '{"instances": [1 2]}',
            "JSON Parse error: Missing a comma or ] after an array element. at offset: 17",
        ),
        ('{"ü": 1, 2}', "JSON Parse error: Missing a name for object member. at offset: 10"),
        ('{"instances": [1]} x', "JSON Parse error: The document root must not be followed by other values."),
        ("[1]", "JSON Value: [\n    1\n] Is not object"),
        ("[" * 100_000, "JSON Parse error"),
        (r'{"ü": "\ud800"}', "JSON Parse error: The surrogate pair in string is invalid. at offset: 8"),
        (
            r'{"x": "\\\uD83D\n\uDE00"}',
            "JSON Parse error: The surrogate pair in string is invalid. at offset: 9",
        ),
        (r'{"x": "\uDE00"}', "JSON Parse error: The surrogate pair in string is invalid. at offset: 7"),
        ('{"signature_name": 5, "instances": [1]}', "'signature_name' key must be a string value."),
        (
            '{"instances": [1], "inputs": [1]}',
            "Not formatted correctly expecting only one of 'inputs' or 'instances'",
        ),
        ("{}", "Missing 'inputs' or 'instances' key"),
        ('{"instances": 5}', "Excepting 'instances' to be an list/array"),
        ('{"instances": []}', "No values in 'instances' array"),
        (
            '{"instances": [1.5, "a"]}',
            "Failed to process element: 1 of 'instances' list. Error: INVALID_ARGUMENT: "
            'JSON Value: "a" Type: String is not of expected type: float',
        ),
        ('{"instances": [true]}', "JSON Value: true Type: True is not of expected type: float"),
        ('{"instances": [null]}', "JSON Value: null Type: Null is not of expected type: float"),
        ('{"inputs": [{"b64": "YQ=="}]}', "Type: Object is not of expected type: float"),
        ('{"instances": [[1, 2], [3]]}', "Error: INVALID_ARGUMENT: Expecting tensor size: 2 but got: 1"),
        ('{"instances": [[1, 2], [[3, 4]]]}', "Error: INVALID_ARGUMENT: Expecting shape [2] but got: [1,2]"),
        ('{"instances": [1, [1]]}', "Error: INVALID_ARGUMENT: Expecting shape [] but got: [1]"),
        ('{"inputs": [[1, 2], [3]]}', "Encountered list at unexpected size: 1 at level: 1 expected size: 2"),
        ('{"inputs": [1, [1]]}', "Encountered list at unexpected level: 1 expected < 1"),
        (
            '{"inputs": [[1], 1]}',
            "JSON Value: 1 found at incorrect level: 2 in the JSON DOM. Expected at level: 2",
        ),
        (
            '{"instances": [16777217]}',
            "Cannot convert JSON value: 16777217 to float without loss of precision.",
        ),
        ('{"instances": [1e39]}', "to float without loss of precision."),
        ('{"instances": [{"z": 1}]}', "JSON object: does not have named input: z"),
        ('{"instances": [1, {"x": 1}]}', "Expecting value/list but got object at item 1 of input list"),
        ('{"instances": [{"x": 1}, 1]}', "Expecting object but got list at item 1 of input list"),
        ('{"inputs": {"z": [1]}}', "Missing named input: x in 'inputs' object."),
        ('{"signature_name": "z", "inputs": [1]}', 'Serving signature name: "z" not found in signature def'),
        (
            '{"signature_name": "many", "instances": [1]}',
            "instances is a plain list, but expecting list of objects",
        ),
        (
            '{"signature_name": "many", "inputs": [1]}',
            "inputs is a plain value/list, but expecting an object",
        ),
        (
            '{"signature_name": "many", "instances": [{"text": "a"}]}',
            'JSON object: {\n    "text": "a"\n} keys must be equal to: flag,ints,text',
        ),
        (
            '{"signature_name": "same_int64", "instances": [1.0]}',
            "Type: Number is not of expected type: int64",
        ),
        (
            '{"signature_name": "same_int64", "instances": [9223372036854775808]}',
            "not of expected type: int64",
        ),
        ('{"signature_name": "same_uint8", "instances": [4294967296]}', "not of expected type: uint8"),
        (
            '{"signature_name": "decode", "instances": [1]}',
            "JSON Value: 1 Type: Number is not of expected type: string",
        ),
        ('{"signature_name": "decode", "inputs": [{"b64": 1}]}', "not formatted correctly for base64 data"),
        ('{"signature_name": "decode", "inputs": [{"b64": "!"}]}', "Unable to base64 decode"),
    ],
)
def test_wrong_bodies_get_tensorflow_servings_errors(url: str, body: str | bytes, message: str) -> None:
    assert message in error_of(post(url, body))


@pytest.mark.parametrize("key", ["inputs", "instances"])
def test_values_that_are_nested_deeper_than_arrays_are_refused(url: str, key: str) -> None:
    body = f'{{"{key}": {"[" * 80}1{"]" * 80}}}'
    assert re.search(r"values are nested (79|80) levels deep", error_of(post(url, body)))


def test_errors_of_the_graph_are_the_clients(url: str) -> None:
    error = error_of(post(url, {"signature_name": "decode", "instances": ["no image"]}))
    assert "node" in error
    assert "Graph execution error" not in error
    assert "stack trace" not in error


def test_a_shape_that_the_signature_does_not_have_is_refused(url: str) -> None:
    inputs = {"ints": [[1, 2, 3]], "text": ["a"], "flag": [True]}
    assert "(1, 3)" in error_of(post(url, {"signature_name": "many", "inputs": inputs}))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/v1/models/foo:predict", "Servable not found for request: Latest(foo)"),
        ("/v1/models/foo/versions/50:predict", "Servable not found for request: Specific(foo, 50)"),
        (f"/v1/models/{NAME}/versions/99:predict", f"Servable not found for request: Specific({NAME}, 99)"),
    ],
)
def test_predicting_with_what_is_not_there(url: str, path: str, message: str) -> None:
    server = url.removesuffix(f"/v1/models/{NAME}")
    assert error_of(post(server, {"instances": [1]}, path), 404) == message


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/v1/models/foo", "Could not find any versions of model foo"),
        ("/v1/models/foo/versions/1", "Could not find version 1 of model foo"),
        (f"/v1/models/{NAME}/versions/9", f"Could not find version 9 of model {NAME}"),
        ("/v1/models/foo/metadata", "Servable not found for request: Latest(foo)"),
        (f"/v1/models/{NAME}/versions/9/metadata", f"Servable not found for request: Specific({NAME}, 9)"),
    ],
)
def test_asking_for_what_is_not_there(url: str, path: str, message: str) -> None:
    server = url.removesuffix(f"/v1/models/{NAME}")
    assert error_of(requests.get(server + path, timeout=30), 404) == message


@pytest.mark.parametrize(
    ("method", "path", "message"),
    [
        ("GET", "/v1/foo", "Malformed request: GET /v1/foo"),
        ("GET", f"/v1/models/{NAME}/labels/a/metadata", "Unrecognized servable version label: a"),
        ("GET", "/v1/models/foo/labels/a/metadata", "Unrecognized servable version label: a"),
        ("POST", "/v1/foo", "Malformed request: POST /v1/foo"),
        ("GET", "/v1/models", "Missing model name in request."),
        ("GET", "/v1/models/debug/model_name", "Malformed request: GET /v1/models/debug/model_name"),
        ("POST", "/v1/models", "Malformed request: POST /v1/models"),
        ("GET", "/v1/models/foo:predict", "Malformed request: GET /v1/models/foo:predict"),
        ("PUT", "/v1/models/foo:predict", "Malformed request: PUT /v1/models/foo:predict"),
        ("POST", "/v1/models/foo/version/50:predict", "Malformed request: POST"),
        ("POST", "/v1/models/foo/versions/HELLO:predict", "Malformed request: POST"),
        ("POST", "/v1/models/foo:PREDICT", "Malformed request: POST /v1/models/foo:PREDICT"),
        ("POST", "/v1/models/foo/metadata", "Malformed request: POST /v1/models/foo/metadata"),
        ("POST", "/v1/models/foo/versions/5/labels/a:predict", "Malformed request: POST"),
        ("POST", f"/v1/models/{NAME}/labels/canary:predict", "Unrecognized servable version label: canary"),
    ],
)
def test_wrong_paths_and_methods(url: str, method: str, path: str, message: str) -> None:
    server = url.removesuffix(f"/v1/models/{NAME}")
    assert message in error_of(requests.request(method, server + path, data=b"{}", timeout=30))


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/v1/models/a%0Ab"), ("POST", "/v1/models/a%0A:predict")]
)
def test_a_line_break_in_a_path_is_refused_in_json_too(url: str, method: str, path: str) -> None:
    server = url.removesuffix(f"/v1/models/{NAME}")
    answer = requests.request(method, server + path, data=b"{}", timeout=30)
    assert error_of(answer, 404) == f"Malformed request: {method} {path}"


def test_a_version_too_large_for_64_bits_is_refused_without_a_word(url: str) -> None:
    # TensorFlow Serving makes a text for this error and does not send it.
    answer = post(url, {"instances": [1]}, f"/versions/{2**64 - 1}:predict")
    assert (answer.status_code, answer.content) == (400, b"")


def test_an_empty_body_is_no_document(url: str) -> None:
    assert error_of(post(url, b"")) == "JSON Parse error: The document is empty"


def test_paths_outside_of_the_api_are_not_found(url: str) -> None:
    server = url.removesuffix(f"/v1/models/{NAME}")
    assert requests.get(f"{server}/statuspage", timeout=30).status_code == 404


@pytest.mark.parametrize("path", ["", "/versions/123", "/labels/whatever"])
def test_status_is_that_of_tensorflow_serving(url: str, path: str) -> None:
    answer = requests.get(url + path, timeout=30)
    assert answer.status_code == 200
    assert answer.json() == {
        "model_version_status": [
            {"version": "123", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
        ]
    }


def test_metadata_is_that_of_tensorflow_serving(url: str) -> None:
    document: dict[str, Any] = requests.get(f"{url}/metadata", timeout=30).json()
    assert document["model_spec"] == {"name": NAME, "signature_name": "", "version": "123"}
    signatures = document["metadata"]["signature_def"]["signature_def"]
    default = signatures["serving_default"]
    assert default["inputs"] == {
        "x": {
            "dtype": "DT_FLOAT",
            "tensor_shape": {"dim": [{"size": "-1", "name": ""}], "unknown_rank": False},
            "name": "serving_default_x:0",
        }
    }
    assert default["method_name"] == "tensorflow/serving/predict"
    assert default["outputs"]["y"]["dtype"] == "DT_FLOAT"
    assert signatures["many"]["inputs"]["ints"]["tensor_shape"]["dim"][1] == {"size": "2", "name": ""}
    assert requests.get(f"{url}/versions/123/metadata", timeout=30).json() == document


def test_other_origins_are_not_let_in_unless_asked_for(url: str) -> None:
    answer = requests.get(url, headers={"Origin": "http://example.org"}, timeout=30)
    assert "access-control-allow-origin" not in answer.headers
