"""What is written for Kubernetes fits together, and what it has the fleet be can be read."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import yaml

from sapwood.cli import _parser
from sapwood.fleet.plan import Plan, checked

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "kuberay"


def documents(name: str) -> dict[str, dict[str, Any]]:
    return {one["kind"]: one for one in yaml.safe_load_all((FOLDER / name).read_text())}


def pinned() -> str:
    """The minor version of Ray that the extra takes."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    found = re.match(r"ray\[serve\]>=(\d+\.\d+),<", extras["ray"][0])
    assert found is not None
    return found[1]


def plan() -> Plan:
    raw = documents("cluster.yaml")["ConfigMap"]["data"]["fleet.toml"]
    return checked(tomllib.loads(raw), "cluster.yaml")


def pod(group: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
    """A group's container, and the volumes of its pod."""
    spec = group["template"]["spec"]
    (container,) = spec["containers"]
    return container, {volume["name"] for volume in spec["volumes"]}


def test_the_cluster_has_room_for_the_fleet() -> None:
    cluster = documents("cluster.yaml")["RayCluster"]["spec"]
    assert cluster["rayVersion"].startswith(f"{pinned()}.")
    (workers,) = cluster["workerGroupSpecs"]
    assert workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]
    for group in (cluster["headGroupSpec"], workers):
        container, volumes = pod(group)
        assert container["image"].endswith(f":{cluster['rayVersion']}")
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes
        assert container["resources"]["requests"] == container["resources"]["limits"]
    limits = pod(workers)[0]["resources"]["limits"]
    for engine in plan().engine.values():
        assert engine.num_gpus <= limits["nvidia.com/gpu"] and engine.cpus <= float(limits["cpu"])
    most = sum(engine.bounds[1] * engine.num_gpus for engine in plan().engine.values())
    assert most <= workers["maxReplicas"] * limits["nvidia.com/gpu"]
    head = cluster["headGroupSpec"]
    assert (
        plan().ingress.cpus
        <= float(head["rayStartParams"]["num-cpus"])
        <= float(pod(head)[0]["resources"]["limits"]["cpu"])
    )


def test_the_address_is_the_routers() -> None:
    found = documents("cluster.yaml")
    (port,) = found["Service"]["spec"]["ports"]
    ports = {one["containerPort"] for one in pod(found["RayCluster"]["spec"]["headGroupSpec"])[0]["ports"]}
    assert (
        plan().ingress.port == port["targetPort"] and port["targetPort"] in ports and plan().ingress.host == "0.0.0.0"
    )
    selected = found["Service"]["spec"]["selector"]
    assert selected == {"ray.io/cluster": found["RayCluster"]["metadata"]["name"], "ray.io/node-type": "head"}


def test_the_job_runs_a_command_that_there_is() -> None:
    job, found = documents("fleet.yaml")["RayJob"]["spec"], documents("cluster.yaml")
    program, *words = shlex.split(job["entrypoint"])
    args = _parser(words[:1]).parse_args(words)
    assert program == "sapwood" and (args.command, args.action) == ("fleet", "up")
    mounts = {
        one["mountPath"]: one["name"] for one in pod(found["RayCluster"]["spec"]["headGroupSpec"])[0]["volumeMounts"]
    }
    assert mounts[str(args.file.parent)] == "fleet" and args.file.name in found["ConfigMap"]["data"]
    key = plan().ingress.api_key_file
    assert key is not None and mounts[str(Path(key).parent)] == "keys"
    assert job["clusterSelector"] == {"ray.io/cluster": found["RayCluster"]["metadata"]["name"]}


def test_the_charts_values_are_the_same_cluster() -> None:
    values, cluster = yaml.safe_load((FOLDER / "values.yaml").read_text()), documents("cluster.yaml")["RayCluster"]
    spec = cluster["spec"]
    assert values["fullnameOverride"] == cluster["metadata"]["name"]
    (workers,) = spec["workerGroupSpecs"]
    for name, group in (("head", spec["headGroupSpec"]), ("worker", workers)):
        container, _ = pod(group)
        assert f"{values['image']['repository']}:{values['image']['tag']}" == container["image"]
        for field in ("resources", "volumeMounts"):
            assert values[name][field] == container[field]
        assert values[name]["volumes"] == group["template"]["spec"]["volumes"]
        assert values[name]["rayStartParams"] == group["rayStartParams"]
    assert values["worker"]["containerEnv"] == pod(workers)[0]["env"]
    for field in ("groupName", "replicas", "minReplicas", "maxReplicas"):
        assert values["worker"][field] == workers[field]
    for field in ("rayVersion", "enableInTreeAutoscaling", "autoscalerOptions"):
        assert values["head"][field] == spec[field]
