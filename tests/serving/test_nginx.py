"""The reverse proxy of serving/deploy/nginx before a real server: who gets in, with what, and how far."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests

from serving.client import AsyncTileClient, Prediction, TileClient
from serving.client.cli import main
from serving.errors import RequestRefused, ServerError, ServerUnavailable
from tests.conftest import MODEL_NAME
from tests.serving.nginx import PROGRAM, Nginx, nginx_before
from tests.serving.tiles import encoded, tile

if not PROGRAM:
    pytest.skip("no nginx on the PATH (Debian: nginx; make tools)", allow_module_level=True)

KEY, OTHER_KEY = "0123456789abcdef" * 4, "fedcba9876543210" * 4
MODEL = f"/v1/models/{MODEL_NAME}"


@pytest.fixture(scope="module")
def nginx(server_url: str, servable_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    from tests.serving.grpc_server import grpc_server

    [folder] = servable_path.iterdir()
    keys = {"camera-1": KEY, "camera-2": OTHER_KEY}
    with (
        grpc_server(MODEL_NAME, folder) as (grpc_url, _),
        nginx_before(server_url, grpc_url, keys, tmp_path_factory.mktemp("nginx")) as nginx,
    ):
        yield nginx


def ask(nginx: Nginx, method: str, path: str, key: str | None = KEY, **options: Any) -> requests.Response:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    headers |= options.pop("headers", {})
    return requests.request(
        method, nginx.url + path, headers=headers, verify=nginx.ca_file, timeout=60, **options
    )


def predict(kind: str, nginx: Nginx, **settings: Any) -> Prediction:
    """Asks for a tile over REST, with asyncio or over gRPC."""
    settings = {"retries": 0, "api_key": KEY, "ca_file": nginx.ca_file} | settings
    if kind == "async":

        async def ask() -> Prediction:
            async with AsyncTileClient(nginx.url, **settings) as client:
                return await client.predict(tile())

        return asyncio.run(ask())
    url = nginx.url if kind == "rest" else nginx.url.replace("https", "grpcs")
    with TileClient(url, **settings) as client:
        return client.predict(tile())


@pytest.mark.parametrize("kind", ["rest", "async", "grpc"])
def test_with_a_key_the_client_gets_the_masks_of_the_server(server_url: str, nginx: Nginx, kind: str) -> None:
    direct, through = TileClient(server_url).predict(tile()), predict(kind, nginx)
    assert np.array_equal(through.mask, direct.mask)
    assert through.defects == direct.defects


@pytest.mark.parametrize("kind", ["rest", "async", "grpc"])
@pytest.mark.parametrize("key", [None, "no-such-key"])
def test_without_a_valid_key_nobody_gets_in_and_is_told_what_to_do(
    nginx: Nginx, kind: str, key: str | None
) -> None:
    with pytest.raises(
        ServerError, match=r"without its API key.*401|without its API key.*UNAUTHENT"
    ) as caught:
        predict(kind, nginx, api_key=key)
    assert not isinstance(caught.value, RequestRefused)  # which a folder of tiles would get one by one
    assert "MAGNETIC_TILES_API_KEY" in str(caught.value)


@pytest.mark.parametrize("kind", ["rest", "async", "grpc"])
def test_a_certificate_of_an_unknown_ca_is_refused(nginx: Nginx, kind: str) -> None:
    with pytest.raises(ServerUnavailable, match=r"is not trusted .*--ca-file"):
        predict(kind, nginx, ca_file=None)


def test_refusals_are_json_with_a_code_and_a_reason(nginx: Nginx) -> None:
    for key in (None, "no-such-key", KEY + "0"):
        answer = ask(nginx, "GET", MODEL, key)
        assert (answer.status_code, answer.json()) == (401, {"error": "missing or unknown API key"})
        assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert ask(nginx, "GET", MODEL, headers={"Authorization": KEY}).status_code == 401
    assert ask(nginx, "GET", MODEL).status_code == 200


def test_a_huge_body_gets_413_and_none_is_read_without_a_key(nginx: Nginx) -> None:
    path, body = f"{MODEL}:predict", b" " * (17 * 2**20)
    answer = ask(nginx, "POST", path, data=body)
    assert (answer.status_code, answer.json()["error"]) == (413, "request is larger than 16 MB")
    assert ask(nginx, "POST", path, None, data=body).status_code == 401
    noise = np.random.default_rng(0).integers(0, 256, (4000, 4000), np.uint8)
    with (
        TileClient(nginx.url, api_key=KEY, ca_file=nginx.ca_file) as client,
        pytest.raises(RequestRefused, match="413: request is larger than 16 MB"),
    ):
        client.predict(noise)


def test_a_large_tile_gets_through(nginx: Nginx) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (2000, 2000), np.uint8)
    with TileClient(nginx.url, api_key=KEY, ca_file=nginx.ca_file) as client:
        assert client.predict(noise).mask.shape == (2000, 2000)


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("GET", MODEL, 200),
        ("GET", f"{MODEL}/metadata", 200),
        ("GET", f"{MODEL}/versions/7", 404),  # of the server, which has no such version
        ("GET", f"{MODEL}/labels/stable/metadata", 400),  # of the server, which has no such label
        ("POST", MODEL, 405),
        ("GET", f"{MODEL}:predict", 405),
        ("POST", f"{MODEL}:classify", 404),
        ("GET", "/", 404),
        ("GET", "/v1/models/other", 404),
        ("GET", "/monitoring/prometheus/metrics", 404),
        ("GET", f"{MODEL}/../../../monitoring/prometheus/metrics", 404),
        ("POST", "/tensorflow.serving.ModelService/HandleReloadConfigRequest", 404),
    ],
)
def test_only_what_clients_need_is_passed_on(nginx: Nginx, method: str, path: str, code: int) -> None:
    request = requests.Request(method, nginx.url, headers={"Authorization": f"Bearer {KEY}"}).prepare()
    request.url = nginx.url + path  # as it is: requests would take the dots out
    with requests.Session() as session:
        assert session.send(request, verify=nginx.ca_file, timeout=30).status_code == code


def test_compressed_requests_are_refused(nginx: Nginx) -> None:
    answer = ask(nginx, "POST", f"{MODEL}:predict", data=b"", headers={"Content-Encoding": "gzip"})
    assert answer.status_code == 415


def test_models_cant_be_loaded_over_grpc(nginx: Nginx) -> None:
    import grpc
    from tensorflow_serving.apis import model_management_pb2, model_service_pb2_grpc

    credentials = grpc.ssl_channel_credentials(nginx.ca_file.read_bytes())
    with grpc.secure_channel(f"127.0.0.1:{nginx.port}", credentials) as channel:
        stub = model_service_pb2_grpc.ModelServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.HandleReloadConfigRequest(
                model_management_pb2.ReloadConfigRequest(),
                metadata=[("authorization", f"Bearer {KEY}")],
                timeout=30,
            )
    assert "404" in caught.value.details()


def test_a_caller_who_asks_too_often_is_told_to_wait_and_the_others_are_not(
    server_url: str, tmp_path: Path
) -> None:
    keys = {"camera-1": KEY, "camera-2": OTHER_KEY}
    with nginx_before(server_url, "grpc://127.0.0.1:1", keys, tmp_path, rate="1r/m") as nginx:
        answers = [ask(nginx, "GET", MODEL) for _ in range(105)]
        assert [answer.status_code for answer in answers] == [200] * 101 + [503] * 4
        assert answers[-1].json() == {"error": "too many requests"}
        with pytest.raises(ServerUnavailable, match="503: too many requests"):
            predict("rest", nginx)
        assert predict("rest", nginx, api_key=OTHER_KEY).label == "defect"


def test_the_command_takes_the_key_from_the_environment_and_shows_and_stores_it_nowhere(
    nginx: Nginx,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "a.png").write_bytes(encoded(tile()))
    command = [
        "predict",
        str(tmp_path / "a.png"),
        "--url",
        nginx.url,
        "--out",
        str(tmp_path / "out"),
        "--json",
    ]
    monkeypatch.setenv("MAGNETIC_TILES_CA_FILE", str(nginx.ca_file))
    assert main(command) == 1
    assert "MAGNETIC_TILES_API_KEY" in capfd.readouterr().err
    monkeypatch.setenv("MAGNETIC_TILES_API_KEY", KEY)
    with caplog.at_level(logging.DEBUG):
        assert main(command) == 3
        assert main(["doctor", "--url", nginx.url]) == 0
    output = capfd.readouterr()
    assert json.loads(output.out.splitlines()[0])["label"] == "defect"
    assert KEY not in output.out + output.err + caplog.text + nginx.access_log
    assert '"camera-1" "POST /v1/models/magnetic-tiles' in nginx.access_log
    for path in (tmp_path / "out").rglob("*"):
        assert KEY.encode() not in path.read_bytes()
