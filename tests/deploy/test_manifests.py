"""Every manifest: KubeRay's schema, the operator's own rules, and what deploy/README.md promises of them."""

import copy
import functools
import json
import os
import re
from pathlib import Path

import jsonschema
import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from deploy.dependencies import dependencies
from orchestrator.job_directory import RUNS
from orchestrator.submit import JOB_ENVIRONMENT
from tests.conftest import ROOT
from tests.deploy.manifests import (
    HAS_KUBECTL,
    KUBERAY,
    OVERLAYS,
    build,
    cluster_spec,
    groups,
    load,
    pod_specs,
    ray_manifests,
    runtime_env_of,
    training_cluster,
    training_job,
)  # fmt: skip
from tests.deploy.operator_rules import violations

SCHEMAS = os.environ.get("KUBERAY_SCHEMAS")
UNITS = {"Mi": 2**20, "Gi": 2**30, "": 1}
MANIFESTS = ray_manifests()
LAST_SNAPSHOT_S = 30
built = pytest.mark.skipif(not HAS_KUBECTL, reason="kubectl is not installed; the manifests are checked as written")
with_schemas = pytest.mark.skipif(
    not SCHEMAS, reason="KUBERAY_SCHEMAS is not set: no folder of KubeRay's JSON Schemas to validate against"
)


def size_bytes(text):
    number, unit = re.fullmatch(r"(\d+)(\w*)", str(text)).groups()
    return int(number) * UNITS[unit]


@functools.cache
def schema(kind):
    """KubeRay's schema of a kind, ready to use; its authors have checked that it is one."""
    text = json.loads((Path(SCHEMAS) / f"{kind.lower()}_v1.schema.json").read_text())
    return jsonschema.validators.validator_for(text)(text)


@built
def test_every_overlay_builds():
    kinds = {overlay: sorted(each["kind"] for each in build(overlay)) for overlay in OVERLAYS}
    assert kinds == {
        "cpu-cluster": ["NetworkPolicy", "RayCluster"],
        "cpu-job": ["NetworkPolicy", "RayJob"],
        "gpu-cluster": ["NetworkPolicy", "RayCluster"],
        "gpu-job": ["NetworkPolicy", "RayJob"],
        "storage": ["PersistentVolumeClaim", "Pod"],
        "storage-kind": ["PersistentVolumeClaim", "Pod"],
    }


@built
@pytest.mark.parametrize("size", ["cpu", "gpu"])
def test_a_job_makes_the_cluster_that_the_overlay_of_the_cluster_describes(size):
    [job] = [each for each in build(f"{size}-job") if each["kind"] == "RayJob"]
    [cluster] = [each for each in build(f"{size}-cluster") if each["kind"] == "RayCluster"]
    assert job["spec"]["rayClusterSpec"] == cluster["spec"]


@built
def test_the_gpu_overlays_ask_for_gpus_and_the_image_that_has_cuda():
    for overlay in ("gpu-cluster", "gpu-job"):
        for manifest in (each for each in build(overlay) if each["apiVersion"] == "ray.io/v1"):
            worker = groups(manifest)[1]["template"]["spec"]
            assert worker["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] > 0
            assert {each["image"] for pod in pod_specs(manifest) for each in pod["containers"]} == {"unlocked:cuda"}


@built
def test_one_node_s_storage_is_claimed_in_kind_and_shared_storage_elsewhere():
    claims = {
        overlay: next(each for each in build(overlay) if each["kind"] == "PersistentVolumeClaim")
        for overlay in ("storage", "storage-kind")
    }
    modes = {overlay: claim["spec"]["accessModes"] for overlay, claim in claims.items()}
    assert modes == {"storage": ["ReadWriteMany"], "storage-kind": ["ReadWriteOnce"]}
    used = {volume["persistentVolumeClaim"]["claimName"] for volume in volumes_of_all("persistentVolumeClaim")}
    assert used == {claim["metadata"]["name"] for claim in claims.values()}


def volumes_of_all(kind):
    pods = [pod for manifest in MANIFESTS.values() for pod in pod_specs(manifest)]
    return [volume for pod in pods for volume in pod["volumes"] if kind in volume]


@with_schemas
@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_is_what_kuberay_s_schema_describes(name):
    errors = schema(MANIFESTS[name]["kind"]).iter_errors(MANIFESTS[name])
    assert [f"{error.json_path}: {error.message}" for error in errors] == []


@with_schemas
def test_the_schema_refuses_a_misspelt_key_and_a_number_where_text_must_be():
    for path, value in (("rayVersoin", "2.60.0"), ("headGroupSpec", {"rayStartParams": {"num-cpus": 0}})):
        wrong = training_cluster()
        wrong["spec"][path] = value
        assert not schema("RayCluster").is_valid(wrong)


@pytest.mark.parametrize("name", MANIFESTS)
def test_the_operator_has_nothing_to_refuse(name):
    assert violations(MANIFESTS[name]) == []


def set_at(manifest, path, value):
    place = manifest
    *parents, last = path.split(".")
    for part in parents:
        place = place[int(part)] if part.isdigit() else place.setdefault(part, {})
    place[int(last) if last.isdigit() else last] = value


HEAD = "spec.rayClusterSpec.headGroupSpec"
WORKER = "spec.rayClusterSpec.workerGroupSpecs.0"
MISTAKES = [
    ({"metadata.name": "u" * 48}, "48 characters"),
    ({"metadata.name": "7unlocked"}, "DNS 1035"),
    ({"spec.shutdownAfterJobFinishes": False}, "ttlSecondsAfterFinished"),
    (
        {"spec.shutdownAfterJobFinishes": False, "spec.ttlSecondsAfterFinished": 0, "spec.suspend": True},
        "suspend: needs",
    ),
    ({"spec.clusterSelector": {"ray.io/cluster": "unlocked"}}, "exactly one"),
    ({"spec.submissionMode": "InteractiveMode"}, "backoffLimit"),
    ({"spec.submissionMode": "SidecarMode"}, "SidecarMode"),
    ({"spec.deletionStrategy": {"deletionRules": [{"policy": "DeleteSelf"}]}}, "deletionRules"),
    ({"spec.activeDeadlineSeconds": 0}, "activeDeadlineSeconds"),
    ({"spec.runtimeEnvYAML": "- a list"}, "runtimeEnvYAML"),
    ({"spec.rayClusterSpec.rayVersion": "2.51.0"}, "rayVersion 2.52"),
    ({"spec.rayClusterSpec.networkPolicy": {"mode": "DenyAll"}}, "networkPolicy"),
    ({"spec.rayClusterSpec.gcsFaultToleranceOptions": {"backend": "rocksdb"}}, "gcsFaultToleranceOptions"),
    ({f"{WORKER}.template.spec.restartPolicy": "Always"}, "blocks: restartPolicy"),
    ({f"{HEAD}.rayStartParams.labels": "a=b"}, "head: labels"),
    ({f"{HEAD}.resources": {"CPU": "1"}}, "head: resources in two places"),
    ({f"{HEAD}.template.spec.containers.0.env": [{"name": "REDIS_PASSWORD", "value": "x"}]}, "REDIS_PASSWORD"),
    ({f"{WORKER}.minReplicas": 5}, "minReplicas above"),
    ({f"{WORKER}.template.spec.containers": []}, "no container"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "fragment"), MISTAKES, ids=[row[1] for row in MISTAKES])
def test_each_of_the_operator_s_rules_finds_its_mistake(changes, fragment):
    manifest = copy.deepcopy(training_job())
    for path, value in changes.items():
        set_at(manifest, path, value)
    assert any(fragment in line for line in violations(manifest))


@pytest.mark.parametrize("name", MANIFESTS)
def test_ray_asks_everybody_for_the_token(name):
    assert cluster_spec(MANIFESTS[name])["authOptions"] == {"mode": "token"}
    for group in groups(MANIFESTS[name]):
        variables = {each["name"] for each in group["template"]["spec"]["containers"][0]["env"]}
        assert not variables & {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN"}, "the operator sets them"
        assert group.get("serviceType", "ClusterIP") == "ClusterIP"


[FILES] = load(KUBERAY / "storage" / "files.yaml")
PODS = {
    f"{name} {index}": pod for name, each in (MANIFESTS | {"storage/files.yaml": FILES}).items()
    for index, pod in enumerate(pod_specs(each))
}  # fmt: skip


@pytest.mark.parametrize("name", PODS)
def test_every_container_is_confined_and_limited(name):
    pod = PODS[name]
    assert pod["securityContext"]["runAsUser"] > 0
    for container in pod["containers"]:
        context = container["securityContext"]
        assert context["runAsNonRoot"] and context["readOnlyRootFilesystem"]
        assert context["allowPrivilegeEscalation"] is False and context["capabilities"] == {"drop": ["ALL"]}
        for bound in ("requests", "limits"):
            assert {"cpu", "memory"} <= container["resources"][bound].keys()
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}


@pytest.mark.parametrize("name", MANIFESTS)
def test_the_autoscaler_is_confined_like_every_other_container(name):
    options = cluster_spec(MANIFESTS[name])["autoscalerOptions"]
    head = groups(MANIFESTS[name])[0]["template"]["spec"]
    assert options["version"] == "v2"
    assert options["securityContext"] == head["containers"][0]["securityContext"]
    assert {mount["name"] for mount in options["volumeMounts"]} <= {volume["name"] for volume in head["volumes"]}
    assert "limits" in options["resources"]


@pytest.mark.parametrize("name", MANIFESTS)
def test_shared_memory_holds_the_object_store_and_leaves_room_for_the_processes(name):
    for group in groups(MANIFESTS[name]):
        pod = group["template"]["spec"]
        container = pod["containers"][0]
        [mount] = [each for each in container["volumeMounts"] if each["mountPath"] == "/dev/shm"]
        [shm] = [each["emptyDir"] for each in pod["volumes"] if each["name"] == mount["name"]]
        store, memory = int(group["rayStartParams"]["object-store-memory"]), container["resources"]["limits"]["memory"]
        assert shm["medium"] == "Memory"
        assert store <= size_bytes(shm["sizeLimit"]) <= size_bytes(memory) / 2


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_pod_is_given_the_time_to_drain_and_to_write_a_last_snapshot(name):
    for group in groups(MANIFESTS[name]):
        pod = group["template"]["spec"]
        variables = {each["name"]: each["value"] for each in pod["containers"][0]["env"]}
        drain_s = float(variables["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
        assert pod["terminationGracePeriodSeconds"] >= drain_s + LAST_SNAPSHOT_S
        assert {"readinessProbe", "livenessProbe"} <= pod["containers"][0].keys()


def test_the_network_policy_covers_every_pod_that_runs_ray_and_no_other():
    [policy] = load(KUBERAY / "base" / "network-policy.yaml")
    selected = policy["spec"]["podSelector"]["matchLabels"]
    assert policy["spec"]["policyTypes"] == ["Ingress"] and selected
    job = training_job()
    templates = [group["template"] for group in groups(job)] + [job["spec"]["submitterPodTemplate"]]
    for template in templates:
        assert selected.items() <= template["metadata"]["labels"].items()
    assert not selected.items() <= FILES["metadata"].get("labels", {}).items()
    inside, operator = policy["spec"]["ingress"]
    assert inside == {"from": [{"podSelector": {"matchLabels": selected}}]}
    assert operator["ports"] == [{"protocol": "TCP", "port": 8265}]


@pytest.mark.parametrize("name", [name for name, each in MANIFESTS.items() if each["kind"] == "RayJob"])
def test_a_job_resumes_from_the_shared_volume_in_a_new_cluster_and_may_end_with_a_snapshot(name):
    job = MANIFESTS[name]
    assert job["spec"]["backoffLimit"] > 0 and job["spec"]["shutdownAfterJobFinishes"]
    assert runtime_env_of(job)["env_vars"] == dict(JOB_ENVIRONMENT)
    [run_dir] = re.findall(r"run_dir=(\S+)", job["spec"]["entrypoint"])
    for group in groups(job):
        container = group["template"]["spec"]["containers"][0]
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert run_dir.startswith(mounts["shared"] + "/")
        assert runtime_env_of(job)["working_dir"].startswith(f"file://{mounts['shared']}/")
        assert {"name": RUNS, "value": f"{mounts['shared']}/runs"} in container["env"]


def test_ray_s_version_is_the_image_s_and_one_that_the_package_takes():
    [image] = re.findall(r"^ray==(\S+)$", (ROOT / "deploy" / "constraints.txt").read_text(), re.M)
    assert {cluster_spec(each)["rayVersion"] for each in MANIFESTS.values()} == {image}
    [ray] = [Requirement(line) for line in dependencies(ROOT / "pyproject.toml", only=["ray"])]
    assert Version(image) in ray.specifier
