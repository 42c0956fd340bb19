"""What configures TensorFlow Serving, its image and its monitoring, read as its readers read it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format, wrappers_pb2
from ruamel.yaml import YAML
from tensorflow_serving.config import model_server_config_pb2

from serving.client import TileClient
from stages.params import load_params

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "serving/config"
MONITORING = ROOT / "serving/monitoring"
DOCKERFILE = (ROOT / "Dockerfile.serving").read_text()

# What TensorFlow Serving exports, and the labels of each: servables/tensorflow/util.cc,
# batching/batching_session.cc, and cc/saved_model/loader.cc of TensorFlow.
METRICS = {
    ":tensorflow:serving:request_count": {"model_name", "status"},
    ":tensorflow:serving:request_latency": {"model_name", "API", "entrypoint"},
    ":tensorflow:serving:runtime_latency": {"model_name", "API", "runtime"},
    ":tensorflow:serving:batching_session:queuing_latency": {"thread_pool_name"},
    ":tensorflow:serving:batching_session:input_batch_size": set[str](),
    ":tensorflow:serving:batching_session:processed_batch_size": set[str](),
    ":tensorflow:serving:batching_session:padding_size": {"execution_batch_size"},
    ":tensorflow:cc:saved_model:load_attempt_count": {"model_path", "status"},
}
HISTOGRAMS = {name for name in METRICS if name.endswith(("latency", "size"))}


def message(name: str, **types: Any) -> Any:
    """A message type that tensorflow-serving-api leaves out, from its .proto: field types by name."""
    file = descriptor_pb2.FileDescriptorProto(name=f"{name}.proto", syntax="proto3")
    descriptor = file.message_type.add(name=name)
    for number, (field, kind) in enumerate(types.items(), 1):
        added = descriptor.field.add(name=field, number=number, label=1)
        if isinstance(kind, str):
            added.type = descriptor_pb2.FieldDescriptorProto.Type.Value(f"TYPE_{kind.upper()}")
        elif isinstance(kind, list):
            added.label, added.type = 3, descriptor_pb2.FieldDescriptorProto.TYPE_INT64
        else:
            added.type, added.type_name = 11, f".{kind.DESCRIPTOR.full_name}"
            file.dependency.append(kind.DESCRIPTOR.file.name)
    file.dependency[:] = sorted(set(file.dependency))
    pool = descriptor_pool.Default()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(name))


# servables/tensorflow/session_bundle_config.proto
BatchingParameters = message(
    "BatchingParameters",
    max_batch_size=wrappers_pb2.Int64Value,
    batch_timeout_micros=wrappers_pb2.Int64Value,
    max_enqueued_batches=wrappers_pb2.Int64Value,
    num_batch_threads=wrappers_pb2.Int64Value,
    thread_pool_name=wrappers_pb2.StringValue,
    allowed_batch_sizes=[int],
    pad_variable_length_inputs="bool",
)
# config/monitoring_config.proto
PrometheusConfig = message("PrometheusConfig", enable="bool", path="string")
MonitoringConfig = message("MonitoringConfig", prometheus_config=PrometheusConfig)


def parsed(name: str, kind: Any) -> Any:
    return text_format.Parse((CONFIG / name).read_text(), kind())


def read_yaml(path: Path) -> Any:
    return YAML(typ="safe").load(path)


def run(*command: str) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def beside_python(program: str) -> str:
    return str(Path(sys.executable).with_name(program))


def test_every_version_of_the_exported_model_is_served_and_none_is_labelled_yet() -> None:
    (model,) = parsed("models.config", model_server_config_pb2.ModelServerConfig).model_config_list.config
    assert model.name == load_params().export.name == TileClient().model
    assert model.base_path == f"/models/{model.name}"
    assert model.model_platform == "tensorflow"
    assert model.model_version_policy.WhichOneof("policy_choice") == "all"
    assert not model.version_labels


def test_batches_are_warmed_up_bounded_and_never_waited_for() -> None:
    parameters = parsed("batching_parameters.txt", BatchingParameters)
    assert parameters.max_batch_size.value == max(load_params().export.warmup_batches)
    assert parameters.HasField("batch_timeout_micros")
    assert parameters.batch_timeout_micros.value == 0
    assert parameters.num_batch_threads.value >= 2
    assert parameters.max_enqueued_batches.value > 0
    assert not parameters.allowed_batch_sizes
    # Each request that waits holds a thread of the REST API; with fewer the queue never fills.
    (threads,) = re.findall(r'"--rest_api_num_threads=(\d+)"', DOCKERFILE)
    batches = parameters.max_enqueued_batches.value + parameters.num_batch_threads.value
    assert int(threads) > batches * parameters.max_batch_size.value


def test_every_batching_parameter_is_explained() -> None:
    text = (CONFIG / "batching_parameters.txt").read_text()
    for block in re.split(r"\n\n", text):
        setting = [line for line in block.splitlines() if not line.startswith("#")]
        assert not setting or block.startswith("#"), block


def test_prometheus_scrapes_where_the_server_exports() -> None:
    exported = parsed("monitoring.config", MonitoringConfig).prometheus_config
    assert exported.enable
    prometheus = read_yaml(MONITORING / "prometheus/prometheus.yml")
    (job,) = prometheus["scrape_configs"]
    assert job["metrics_path"] == exported.path
    services = read_yaml(ROOT / "compose.yaml")["services"]
    (target,) = job["static_configs"][0]["targets"]
    service, port = target.split(":")
    assert service in services
    assert f"--rest_api_port={port}" in DOCKERFILE
    for file in prometheus["rule_files"]:
        assert (MONITORING / "prometheus" / file).is_file()


def queries() -> dict[str, str]:
    """All PromQL of dashboard and alerts, by where it stands."""
    dashboard = json.loads((MONITORING / "grafana/dashboards/magnetic-tiles.json").read_text())
    found = {
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in dashboard["panels"]
        for target in panel["targets"]
    }
    for group in read_yaml(MONITORING / "prometheus/alerts.yml")["groups"]:
        found |= {rule["alert"]: rule["expr"] for rule in group["rules"]}
    return found


@pytest.mark.parametrize("where", queries())
def test_queries_name_metrics_and_labels_that_exist(where: str) -> None:
    query = queries()[where]
    if "up{" in query:
        assert 'up{job="serving"}' in query
        return
    used = re.findall(r"(:[a-z_:]+)(?:\{([^}]*)\})?", query)
    assert used
    labels = set(re.findall(r"by \(([^)]*)\)", query))
    for name, selector in used:
        base = re.sub(r"_(bucket|sum|count)$", "", name) if name not in METRICS else name
        assert base in METRICS, name
        assert (base in HISTOGRAMS) == (name != base), f"{name} is a histogram's part or no histogram"
        there = METRICS[base] | {"le"}
        assert set(re.findall(r'(\w+)!?=~?"', selector)) <= there
        if base == ":tensorflow:serving:request_latency":
            assert 'API=~"[Pp]redict"' in selector, "REST and gRPC spell it each in its own way"
        for group in labels:
            assert {label.strip() for label in group.split(",")} <= there


def test_panels_do_not_overlap_and_have_ids_of_their_own() -> None:
    dashboard = json.loads((MONITORING / "grafana/dashboards/magnetic-tiles.json").read_text())
    cells = [
        (x, y)
        for panel in dashboard["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    source = read_yaml(MONITORING / "grafana/provisioning/datasources/prometheus.yml")["datasources"][0]
    assert {panel["datasource"]["uid"] for panel in dashboard["panels"]} == {source["uid"]}


@pytest.mark.skipif(not shutil.which("promtool"), reason="no promtool on the PATH (Debian: prometheus)")
def test_prometheus_accepts_its_configuration_and_all_queries(tmp_path: Path) -> None:
    run("promtool", "check", "config", str(MONITORING / "prometheus/prometheus.yml"))
    rules = [
        {"record": f"query:{number}", "expr": query.replace("$__rate_interval", "1m")}
        for number, query in enumerate(queries().values())
    ]
    path = tmp_path / "rules.yml"
    path.write_text(json.dumps({"groups": [{"name": "queries", "rules": rules}]}))  # JSON is YAML
    run("promtool", "check", "rules", str(path))


def fires(alert: str, at: str, **labels: str) -> dict[str, object]:
    """What promtool is to expect: an alert with these labels at a time."""
    (rule,) = [
        rule
        for group in read_yaml(MONITORING / "prometheus/alerts.yml")["groups"]
        for rule in group["rules"]
        if rule["alert"] == alert
    ]
    texts = {
        key: re.sub(r"{{ \$labels\.(\w+) }}", lambda name: labels[name[1]], text)
        for key, text in rule["annotations"].items()
    }
    return {
        "alertname": alert,
        "eval_time": at,
        "exp_alerts": [{"exp_labels": {**rule["labels"], **labels}, "exp_annotations": texts}],
    }


def silent(alert: str, at: str) -> dict[str, object]:
    return {"alertname": alert, "eval_time": at, "exp_alerts": []}


@pytest.mark.skipif(not shutil.which("promtool"), reason="no promtool on the PATH (Debian: prometheus)")
@pytest.mark.parametrize("api", ["predict", "Predict"])  # of REST and of gRPC
def test_alerts_fire_when_they_should_and_not_before(api: str, tmp_path: Path) -> None:
    count, latency = ":tensorflow:serving:request_count", ":tensorflow:serving:request_latency_bucket"
    loads = ":tensorflow:cc:saved_model:load_attempt_count"
    target = {"job": "serving", "instance": "serving:8501"}
    series = {
        'up{job="serving",instance="serving:8501"}': "1x10 0x20",
        f'{count}{{model_name="m",status="OK"}}': "0+60x30",
        f'{count}{{model_name="m",status="UNAVAILABLE"}}': "0x10 3+3x20",  # from then on 3 of 63
        f'{latency}{{API="{api}",le="500000"}}': "0+60x10 600x20",
        f'{latency}{{API="{api}",le="2000000"}}': "0+60x30",
        f'{latency}{{API="{api}",le="+Inf"}}': "0+60x30",
        f'{loads}{{model_path="/models/m/2",status="fail"}}': "_x10 1x20",
    }
    test = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "alert_rule_test": [
            *(silent(alert, "10m") for alert in ("ServingDown", "ServingErrors", "ServingSlow")),
            fires("ServingDown", "13m", **target),
            fires("ServingErrors", "25m"),
            fires("ServingSlow", "25m"),
            silent("ModelLoadFailed", "9m"),
            fires("ModelLoadFailed", "12m", model_path="/models/m/2", status="fail"),
            silent("ModelLoadFailed", "30m"),
        ],
    }
    rules = [str(MONITORING / "prometheus/alerts.yml")]
    path = tmp_path / "test.yml"
    path.write_text(json.dumps({"rule_files": rules, "tests": [test]}))
    run("promtool", "test", "rules", str(path))


def test_the_compose_file_is_valid_and_mounts_what_is_there() -> None:
    run(beside_python("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", "compose.yaml")
    compose = read_yaml(ROOT / "compose.yaml")
    for name, service in compose["services"].items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert (name == "serving") == ("profiles" not in service)
        binds = [volume for volume in service["volumes"] if isinstance(volume, dict)]
        for bind in binds:
            source = ROOT / re.sub(r"^\$\{\w+:-(.*)\}$", r"\1", bind["source"])
            assert source.is_dir() or source == ROOT / "models/magnetic-tiles", source
            assert bind["read_only"]
        named = {volume.split(":")[0] for volume in service["volumes"] if isinstance(volume, str)}
        assert named <= set(compose["volumes"])
    home = compose["services"]["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (MONITORING / "grafana/dashboards" / Path(home).name).is_file()


def test_all_name_the_same_base_image() -> None:
    (version,) = re.findall(r"^ARG TF_SERVING_VERSION=(\S+)$", DOCKERFILE, re.MULTILINE)
    build = read_yaml(ROOT / "compose.yaml")["services"]["serving"]["build"]
    assert build["args"]["BASE_IMAGE"] == f"${{BASE_IMAGE:-tensorflow/serving:{version}}}"


def test_the_server_is_told_of_every_configuration_file() -> None:
    (entrypoint,) = re.findall(r"^ENTRYPOINT (\[.*?\])$", DOCKERFILE.replace("\\\n", ""), re.MULTILINE)
    program, *flags = json.loads(entrypoint)
    assert program == "/usr/bin/tensorflow_model_server"
    files = dict(flag.split("=") for flag in flags if "=/config/" in flag)
    assert set(files) == {"--model_config_file", "--batching_parameters_file", "--monitoring_config_file"}
    assert {Path(file).name for file in files.values()} == {path.name for path in CONFIG.iterdir()}
    assert "--enable_batching=true" in flags  # without it the server refuses the file
    assert "--allow_version_labels_for_unavailable_models=true" in flags  # else labels stop the start


def test_the_dockerfile_passes_its_linter() -> None:
    run(beside_python("hadolint"), "Dockerfile.serving")


def test_the_dockerfile_copies_files_that_the_context_has() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    let_in = {line[1:] for line in ignored if line.startswith("!")}
    assert "*" in ignored
    assert set(re.findall(r"^COPY (\S+) ", DOCKERFILE, re.MULTILINE)) == let_in


@pytest.mark.parametrize("name", ["serving.yml", "audit.yml"])
def test_workflows_are_valid_pinned_and_least_privileged(name: str) -> None:
    workflow = ROOT / ".github/workflows" / name
    run(beside_python("check-jsonschema"), "--builtin-schema", "vendor.github-workflows", str(workflow))
    document = read_yaml(workflow)
    assert document["permissions"] == {"contents": "read"}
    assert not [job for job in document["jobs"].values() if "permissions" in job]


def test_the_pinned_base_image_needs_a_digest() -> None:
    def pin(image: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PINNED": image}
        return subprocess.run(
            [ROOT / "scripts/pin_base_image"], env=environment, capture_output=True, text=True
        )

    pinned = f"tensorflow/serving:2.21.0@sha256:{'0' * 64}"
    assert pin(pinned).stdout == f"BASE_IMAGE={pinned}\n"
    refused = pin("tensorflow/serving:2.21.0")
    assert refused.returncode == 1
    assert "has no digest" in refused.stderr


def test_the_base_image_is_looked_up_by_its_tag(tmp_path: Path) -> None:
    docker = tmp_path / "docker"
    docker.write_text(f'#!/bin/bash\necho "$@" > {tmp_path}/asked\necho sha256:{"1" * 64}\n')
    docker.chmod(0o755)
    environment = {**os.environ, "PINNED": "", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run([ROOT / "scripts/pin_base_image"], env=environment, capture_output=True, text=True)
    (version,) = re.findall(r"^ARG TF_SERVING_VERSION=(\S+)$", DOCKERFILE, re.MULTILINE)
    assert done.stdout == f"BASE_IMAGE=tensorflow/serving:{version}@sha256:{'1' * 64}\n", done.stderr
    assert f"tensorflow/serving:{version} " in (tmp_path / "asked").read_text()
