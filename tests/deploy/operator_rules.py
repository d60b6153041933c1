"""What KubeRay 1.7's operator refuses and its schema does not say (ray-operator/controllers/ray/utils/validation.go).

Feature gates stand at their defaults.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml
from packaging.version import Version

from tests.deploy.manifests import Manifest, cluster_spec, groups

_DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_MAX_NAME = {"RayJob": 47, "RayCluster": 53}
_GATED = ("networkPolicy", "tlsOptions", "historyServerOptions")
_RESOURCE_PARAMETERS = {"num-cpus", "num-gpus", "memory", "resources"}
_REDIS = {"RAY_REDIS_ADDRESS", "REDIS_PASSWORD", "REDIS_USERNAME"}


def violations(manifest: Manifest) -> list[str]:
    """Return one line per rule that a RayJob or RayCluster breaks."""
    found = [*_names(manifest)]
    if manifest["kind"] == "RayJob":
        found += _job(manifest["spec"])
    if manifest["kind"] == "RayCluster" or "rayClusterSpec" in manifest["spec"]:
        found += [*_cluster(cluster_spec(manifest)), *_groups(manifest)]
    return found


def _names(manifest: Manifest) -> Iterator[str]:
    name = manifest["metadata"]["name"]
    if len(name) > _MAX_NAME[manifest["kind"]]:
        yield f"name: {len(name)} characters"
    if not _DNS_1035.fullmatch(name):
        yield "name: no DNS 1035 label"


def _job(spec: dict[str, Any]) -> Iterator[str]:
    shuts_down, mode = spec.get("shutdownAfterJobFinishes", False), spec.get("submissionMode", "K8sJobMode")
    selects = bool(spec.get("clusterSelector"))
    if spec.get("suspend") and not shuts_down:
        yield "suspend: needs shutdownAfterJobFinishes"
    if spec.get("ttlSecondsAfterFinished", 0) > 0 and not shuts_down:
        yield "ttlSecondsAfterFinished: needs shutdownAfterJobFinishes"
    if ("rayClusterSpec" in spec) == selects:
        yield "rayClusterSpec, clusterSelector: exactly one"
    if spec.get("backoffLimit", 0) > 0 and (selects or mode == "InteractiveMode"):
        yield "backoffLimit: not with clusterSelector or InteractiveMode"
    if mode == "SidecarMode" and ("submitterPodTemplate" in spec or "submitterConfig" in spec):
        yield "SidecarMode: no submitterPodTemplate and no submitterConfig"
    if spec.get("deletionStrategy", {}).get("deletionRules") and shuts_down:
        yield "deletionRules: not with shutdownAfterJobFinishes"
    for key in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
        if spec.get(key, 1) <= 0:
            yield f"{key}: positive"
    if not isinstance(yaml.safe_load(spec.get("runtimeEnvYAML", "{}")), dict):
        yield "runtimeEnvYAML: no mapping"


def _cluster(spec: dict[str, Any]) -> Iterator[str]:
    for key in _GATED:
        if key in spec:
            yield f"{key}: its feature gate is off"
    if spec.get("authOptions", {}).get("mode") == "token" and Version(spec.get("rayVersion") or "0") < Version("2.52"):
        yield "authOptions: token needs rayVersion 2.52"
    options = spec.get("autoscalerOptions", {})
    if any(each["name"] == "KUBERAY_GEN_AUTOSCALER_START_CMD" for each in options.get("env", [])):
        yield "autoscalerOptions.env: KUBERAY_GEN_AUTOSCALER_START_CMD is the operator's"
    if "backend" in spec.get("gcsFaultToleranceOptions", {}):
        yield "gcsFaultToleranceOptions.backend: its feature gate is off"


def _groups(manifest: Manifest) -> Iterator[str]:
    spec = cluster_spec(manifest)
    scales = spec.get("enableInTreeAutoscaling", False)
    is_v2 = scales and spec.get("autoscalerOptions", {}).get("version") == "v2"
    sidecar = manifest["spec"].get("submissionMode") == "SidecarMode"
    for group in groups(manifest):
        head, name = "groupName" not in group, group.get("groupName", "head")
        pod, parameters = group["template"]["spec"], group.get("rayStartParams", {})
        if not pod["containers"]:
            yield f"{name}: no container"
            continue
        variables = {each["name"] for each in pod["containers"][0].get("env", [])}
        if "labels" in parameters:
            yield f"{name}: labels in rayStartParams"
        if _RESOURCE_PARAMETERS & parameters.keys() and group.get("resources"):
            yield f"{name}: resources in two places"
        if (is_v2 or (sidecar and head)) and pod.get("restartPolicy", "Never") != "Never":
            yield f"{name}: restartPolicy must be Never or unset"
        if head and _REDIS & variables:
            yield f"{name}: {', '.join(sorted(_REDIS & variables))} in the environment"
        if head and "RAY_enable_autoscaler_v2" in variables:
            yield f"{name}: RAY_enable_autoscaler_v2 in the environment beside autoscalerOptions.version"
        if not head:
            yield from _replicas(group, scales)


def _replicas(group: dict[str, Any], scales: bool) -> Iterator[str]:
    low, high = group.get("minReplicas"), group.get("maxReplicas")
    if not scales and (low is None or high is None):
        yield f"{group['groupName']}: minReplicas and maxReplicas without autoscaling"
    if low is not None and high is not None and not 0 <= low <= high:
        yield f"{group['groupName']}: minReplicas above maxReplicas"
    if scales and group.get("suspend"):
        yield f"{group['groupName']}: suspend with autoscaling"
