"""The manifests of serving/deploy against the schemas of Kubernetes, KServe and KubeRay, and each other."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
from referencing import Registry, Resource
from ruamel.yaml import YAML

from serving.batch.cli import batch_parser
from stages.params import load_params

ROOT = Path(__file__).parents[2]
SERVING = ROOT / "serving"
DOCKERFILE = (ROOT / "Dockerfile.serving").read_text()
OLDEST = "1.30"  # with the `sleep` of preStop
VERSIONS = [OLDEST, kubernetes_validate.latest_version()]
NAME = load_params().export.name


def documents(folder: str) -> dict[str, Any]:
    paths = sorted((SERVING / "deploy" / folder).glob("*.yaml"))
    assert paths
    return {path.name: YAML(typ="safe").load(path) for path in paths}


KUBERNETES = documents("kubernetes")
[KSERVE] = documents("kserve").values()
[RAYJOB] = documents("ray").values()
DEPLOYMENT = KUBERNETES["deployment.yaml"]["spec"]
POD = DEPLOYMENT["template"]
[CONTAINER] = POD["spec"]["containers"]


def is_valid(document: Any, version: str = VERSIONS[-1]) -> bool:
    try:
        if schema := {"InferenceService": "kserve", "RayJob": "kuberay"}.get(document["kind"]):
            validator(schema).validate(document)
        else:
            kubernetes_validate.validate(document, version, strict=True)
    except jsonschema.ValidationError:
        return False
    return True


@cache
def validator(name: str) -> Any:
    schemas = files("kubernetes_validate") / "kubernetes-json-schema"
    definitions = json.loads((schemas / f"v{VERSIONS[-1]}-local-strict/_definitions.json").read_text())
    schema = json.loads(Path(__file__).with_name(f"{name}_schema.json").read_text())
    registry: Any = Resource.from_contents(definitions) @ Registry()
    return jsonschema.Draft202012Validator(schema, registry=registry)


def misspelt(node: Any) -> Iterator[tuple[str, Any]]:
    """For each field, its name and the document with that name misspelt; not for names of our own."""
    if isinstance(node, list):
        for index, child in enumerate(node):
            for name, changed in misspelt(child):
                yield name, [*node[:index], changed, *node[index + 1 :]]
    elif isinstance(node, dict):
        for key, child in node.items():
            if "/" in key or key in ("cpu", "memory", "num-cpus"):  # labels, resources, flags
                continue
            yield key, {f"{one}s" if one == key else one: value for one, value in node.items()}
            for name, changed in misspelt(child):
                yield f"{key}.{name}", {**node, key: changed}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", KUBERNETES)
def test_kubernetes_takes_the_manifests(name: str, version: str) -> None:
    assert version.startswith(kubernetes_validate.validate(KUBERNETES[name], version, strict=True))


def test_kserve_and_kuberay_take_their_manifests() -> None:
    validator("kserve").validate(KSERVE)
    validator("kuberay").validate(RAYJOB)


@pytest.mark.parametrize(
    "document", [KSERVE, RAYJOB, *KUBERNETES.values()], ids=["kserve", "kuberay", *KUBERNETES]
)
def test_every_misspelt_field_is_found(document: Any) -> None:
    known = {key: document[key] for key in ("apiVersion", "kind")}
    body = {key: value for key, value in document.items() if key not in known}
    found = {name: is_valid({**known, **changed}) for name, changed in misspelt(body)}
    assert len(found) > 5
    assert [name for name, passes in found.items() if passes] == []


def test_kustomize_gets_every_manifest_and_every_file_of_the_configuration() -> None:
    kustomization = YAML(typ="safe").load(SERVING / "kustomization.yaml")
    assert sorted(kustomization["resources"]) == [f"deploy/kubernetes/{name}" for name in KUBERNETES]
    [config] = kustomization["configMapGenerator"]
    assert set(config["files"]) == {f"config/{path.name}" for path in (SERVING / "config").iterdir()}
    [volume] = POD["spec"]["volumes"]
    assert volume["configMap"]["name"] == config["name"]
    [image] = kustomization["images"]
    assert image["name"] == CONTAINER["image"]
    assert re.fullmatch("sha256:[0-9a-f]{64}", image["digest"])


@pytest.mark.skipif(not shutil.which("kubectl"), reason="no kubectl on the PATH")
def test_what_kustomize_makes_is_valid() -> None:
    done = subprocess.run(["kubectl", "kustomize", str(SERVING)], capture_output=True, text=True, check=True)
    made = {document["kind"]: document for document in YAML(typ="safe").load_all(done.stdout)}
    assert {*made} == {"ConfigMap", *(document["kind"] for document in KUBERNETES.values())}
    assert all(is_valid(document) for document in made.values())
    pod = made["Deployment"]["spec"]["template"]["spec"]
    assert pod["volumes"][0]["configMap"]["name"] == made["ConfigMap"]["metadata"]["name"]
    assert "@sha256:" in pod["containers"][0]["image"]
    for name, text in made["ConfigMap"]["data"].items():
        assert text == (SERVING / "config" / name).read_text()


def test_all_that_selects_pods_selects_these() -> None:
    labels = POD["metadata"]["labels"]
    selectors = [
        DEPLOYMENT["selector"]["matchLabels"],
        POD["spec"]["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"],
        KUBERNETES["service.yaml"]["spec"]["selector"],
        KUBERNETES["disruption.yaml"]["spec"]["selector"]["matchLabels"],
        KUBERNETES["network.yaml"]["spec"]["podSelector"]["matchLabels"],
    ]
    assert selectors == [labels] * len(selectors)
    deployment = KUBERNETES["deployment.yaml"]
    target = KUBERNETES["autoscaler.yaml"]["spec"]["scaleTargetRef"]
    assert target == {
        "apiVersion": deployment["apiVersion"],
        "kind": deployment["kind"],
        "name": deployment["metadata"]["name"],
    }
    assert "replicas" not in DEPLOYMENT  # else each `apply` takes back what the autoscaler did


def test_ports_and_probes_are_those_of_the_image() -> None:
    ports = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}
    assert f"--port={ports['grpc']}" in DOCKERFILE
    assert f"--rest_api_port={ports['rest']}" in DOCKERFILE
    assert {port["targetPort"] for port in KUBERNETES["service.yaml"]["spec"]["ports"]} == set(ports)
    [ingress] = KUBERNETES["network.yaml"]["spec"]["ingress"]
    assert {port["port"] for port in ingress["ports"]} == set(ports)
    for probe in ("startupProbe", "readinessProbe"):
        assert CONTAINER[probe]["httpGet"] == {"path": f"/v1/models/{NAME}", "port": "rest"}
    annotations = POD["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(ports["rest"])
    assert f'"{annotations["prometheus.io/path"]}"' in (SERVING / "config/monitoring.config").read_text()
    [mount] = CONTAINER["volumeMounts"]
    assert f"={mount['mountPath']}/models.config" in DOCKERFILE


def test_pods_have_no_rights_they_dont_need() -> None:
    pod, server = POD["spec"], KSERVE["spec"]["predictor"]["model"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["automountServiceAccountToken"] is False
    for context in (CONTAINER["securityContext"], server["securityContext"]):
        assert context["readOnlyRootFilesystem"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
    assert server["securityContext"]["runAsNonRoot"]
    assert "cors" not in " ".join(CONTAINER["args"])


@pytest.mark.parametrize(
    "container", [CONTAINER, KSERVE["spec"]["predictor"]["model"]], ids=["plain", "kserve"]
)
def test_tensorflow_is_told_the_cores_of_the_pod(container: Any) -> None:
    cores = container["resources"]["requests"]["cpu"]
    for kind in ("intra", "inter"):
        assert f"--tensorflow_{kind}_op_parallelism={cores}" in container["args"]


def test_kuberay_runs_the_batch_scoring_of_this_project_with_its_ray() -> None:
    words = RAYJOB["spec"]["entrypoint"].split()
    assert words[:3] == ["python", "-m", "serving.batch"]
    options = batch_parser().parse_args(words[3:])
    cluster = RAYJOB["spec"]["rayClusterSpec"]
    [group] = cluster["workerGroupSpecs"]
    containers = [one["template"]["spec"]["containers"][0] for one in (cluster["headGroupSpec"], group)]
    assert options.workers == group["maxReplicas"] * int(containers[1]["resources"]["requests"]["cpu"])
    version = cluster["rayVersion"]
    assert f"ray=={version}\n" in (ROOT / "requirements.lock").read_text()
    dockerfile = SERVING / "deploy/ray/Dockerfile"
    assert f"rayproject/ray:{version}-" in dockerfile.read_text()
    assert {one["image"] for one in containers} == {re.search(r"-t (\S+)", dockerfile.read_text())[1]}  # type: ignore[index]
    subprocess.run([Path(sys.executable).with_name("hadolint"), dockerfile], check=True)


def test_kserve_serves_the_same_model_with_the_same_server() -> None:
    assert KSERVE["metadata"]["name"] == NAME  # by which KServe calls the model
    assert KSERVE["metadata"]["annotations"]["serving.kserve.io/deploymentMode"] == "Knative"
    model = KSERVE["spec"]["predictor"]["model"]
    assert f"ARG TF_SERVING_VERSION={model['runtimeVersion']}\n" in DOCKERFILE
    bucket = re.fullmatch(r"(s3://[\w-]+/\w+)/\d{14}", model["storageUri"])
    assert bucket, "the folder that holds the folder of one version"
    assert f"{bucket[1]}/$V/$V " in (ROOT / "docs/scaling.md").read_text()
    assert model["env"] == [{"name": "TF_ENABLE_ONEDNN_OPTS", "value": "1"}]
