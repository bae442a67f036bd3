"""The cluster files are what Ray's own schema and KubeRay's published structure accept, and say what the docs say."""

import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml

ROOT = Path(__file__).parents[2]
RAY_FILES = ("cluster.yaml", "deploy/onprem.yaml")


def read(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text())


@pytest.mark.parametrize("name", RAY_FILES)
def test_ray_s_own_schema_accepts_the_cluster_file(name):
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(read(name)))


@pytest.mark.parametrize("name", RAY_FILES)
def test_ray_s_schema_would_refuse_a_misspelt_key(name):
    from ray.autoscaler._private.util import prepare_config, validate_config

    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepare_config({**read(name), "max_worker": 3}))


@pytest.mark.parametrize("name", RAY_FILES)
def test_a_cluster_asks_for_a_token_and_shows_its_dashboard_on_loopback_only(name):
    config = read(name)
    starts = [c for c in config["head_start_ray_commands"] + config["worker_start_ray_commands"] if "ray start" in c]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in command for command in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert "~/.ray/auth_token" in config["file_mounts"]


def test_the_cloud_head_has_no_gpu_and_workers_are_spot_and_scale_from_zero():
    config = read("cluster.yaml")
    head = config["available_node_types"][config["head_node_type"]]
    worker = config["available_node_types"]["gpu"]
    assert "GPU" not in head["resources"]
    assert worker["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
    assert worker["min_workers"] == 0
    assert worker["max_workers"] == config["max_workers"]


@pytest.mark.parametrize("name", [*RAY_FILES, "deploy/kuberay-rayjob.yaml"])
def test_no_file_holds_a_secret(name):
    text = (ROOT / name).read_text()
    assert not re.search(r"hf_[A-Za-z0-9]{8,}|AKIA[0-9A-Z]{12,}|ghp_\w{8,}", text)


# ---------------------------------------------------------------- KubeRay

NAME = {"type": "string", "pattern": r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"}
QUANTITY = {"type": "string", "pattern": r"^\d+(\.\d+)?(m|Ki|Mi|Gi|Ti)?$"}


def closed(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(required), "additionalProperties": False, "properties": properties}


POD_TEMPLATE = closed(
    ("spec",),
    metadata={"type": "object"},
    spec=closed(
        ("containers",),
        containers={
            "type": "array",
            "minItems": 1,
            "items": closed(
                ("name", "image"),
                name=NAME,
                image={"type": "string"},
                env={"type": "array", "items": closed(("name",), name={"type": "string"}, value={"type": "string"})},
                envFrom={"type": "array", "items": closed(secretRef=closed(("name",), name=NAME))},
                resources=closed(
                    requests={"type": "object", "additionalProperties": QUANTITY},
                    limits={"type": "object", "additionalProperties": QUANTITY},
                ),
                volumeMounts={
                    "type": "array",
                    "items": closed(
                        ("name", "mountPath"), name=NAME, mountPath={"type": "string"}, readOnly={"type": "boolean"}
                    ),
                },
            ),
        },
        tolerations={"type": "array"},
        nodeSelector={"type": "object"},
        volumes={
            "type": "array",
            "items": closed(
                ("name",),
                name=NAME,
                configMap=closed(("name",), name=NAME),
                emptyDir=closed(medium={"enum": ["Memory"]}, sizeLimit=QUANTITY),
            ),
        },
    ),
)
START = {"type": "object", "additionalProperties": {"type": "string"}}
COUNT = {"type": "integer", "minimum": 0}
RAY_JOB = closed(
    ("apiVersion", "kind", "metadata", "spec"),
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=closed(("name",), name=NAME, namespace=NAME, labels={"type": "object"}),
    spec=closed(
        ("entrypoint", "rayClusterSpec"),
        entrypoint={"type": "string"},
        submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
        backoffLimit=COUNT,
        activeDeadlineSeconds=COUNT,
        shutdownAfterJobFinishes={"type": "boolean"},
        ttlSecondsAfterFinished=COUNT,
        suspend={"type": "boolean"},
        runtimeEnvYAML={"type": "string"},
        rayClusterSpec=closed(
            ("headGroupSpec",),
            rayVersion={"const": ray.__version__},
            authOptions=closed(mode={"enum": ["disabled", "token"]}, secretName=NAME),
            enableInTreeAutoscaling={"type": "boolean"},
            autoscalerOptions=closed(idleTimeoutSeconds=COUNT, upscalingMode={"enum": ["Default", "Aggressive"]}),
            headGroupSpec=closed(
                ("template",),
                rayStartParams=START,
                serviceType={"type": "string"},
                labels={"type": "object"},
                template=POD_TEMPLATE,
            ),
            workerGroupSpecs={
                "type": "array",
                "items": closed(
                    ("groupName", "template"),
                    groupName=NAME,
                    replicas=COUNT,
                    minReplicas=COUNT,
                    maxReplicas=COUNT,
                    idleTimeoutSeconds=COUNT,
                    numOfHosts=COUNT,
                    rayStartParams=START,
                    labels={"type": "object"},
                    template=POD_TEMPLATE,
                ),
            },
        ),
    ),
)
"""The part of KubeRay's `ray.io/v1` RayJob (CRD reference, 1.5 and later) that the file uses, closed to other keys."""


def test_the_kubernetes_job_has_kuberay_s_published_structure():
    jsonschema.validate(read("deploy/kuberay-rayjob.yaml"), RAY_JOB)


def test_every_mounted_volume_of_the_kubernetes_job_exists():
    cluster = read("deploy/kuberay-rayjob.yaml")["spec"]["rayClusterSpec"]
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        pod = group["template"]["spec"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        assert {mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]} == volumes


def test_models_of_the_hub_go_to_the_volume_that_is_mounted_for_them():
    cluster = read("deploy/kuberay-rayjob.yaml")["spec"]["rayClusterSpec"]
    (worker,) = cluster["workerGroupSpecs"][0]["template"]["spec"]["containers"]
    places = {mount["name"]: mount["mountPath"] for mount in worker["volumeMounts"]}
    assert places["models"] == {entry["name"]: entry.get("value") for entry in worker["env"]}["HF_HOME"]


def test_the_kubernetes_job_runs_this_package_s_command_with_results_outside_the_pod():
    spec = read("deploy/kuberay-rayjob.yaml")["spec"]
    assert spec["entrypoint"].startswith("python -m orchestrator run ")
    assert "storage=s3://" in spec["entrypoint"]
    assert spec["rayClusterSpec"]["authOptions"]["mode"] == "token"
