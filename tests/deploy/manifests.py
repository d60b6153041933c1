"""The manifests of deploy/kuberay/, as written and as kustomize builds them."""

from __future__ import annotations

import functools
import shutil
import subprocess
from pathlib import Path
from typing import Any

import yaml

from tests.conftest import ROOT

KUBERAY = ROOT / "deploy" / "kuberay"
OVERLAYS = sorted(path.name for path in (KUBERAY / "overlays").iterdir())
KUSTOMIZATIONS = sorted(KUBERAY.rglob("kustomization.yaml"))
HAS_KUBECTL = shutil.which("kubectl") is not None

Manifest = dict[str, Any]


def load(path: Path) -> list[Manifest]:
    """The documents of one file."""
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


@functools.cache
def _build(overlay: str) -> str:
    command = ["kubectl", "kustomize", str(KUBERAY / "overlays" / overlay)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def build(overlay: str) -> list[Manifest]:
    """What `kubectl apply -k` of an overlay sends."""
    return [document for document in yaml.safe_load_all(_build(overlay)) if document]


def training_cluster() -> Manifest:
    """The RayCluster, as written."""
    [cluster] = load(KUBERAY / "base" / "cluster.yaml")
    return cluster


def training_job() -> Manifest:
    """The RayJob, as written, with the cluster's spec where kustomize puts it."""
    [job] = load(KUBERAY / "components" / "job" / "job.yaml")
    job["spec"]["rayClusterSpec"] = training_cluster()["spec"]
    return job


def runtime_env_of(job: Manifest) -> dict[str, Any]:
    """A RayJob's runtime environment."""
    return yaml.safe_load(job["spec"]["runtimeEnvYAML"])


def ray_manifests() -> dict[str, Manifest]:
    """Every RayCluster and RayJob by a name for the reader: as written, and as built if kubectl is there."""
    found = {"base/cluster.yaml": training_cluster(), "components/job/job.yaml": training_job()}
    if HAS_KUBECTL:
        for overlay in OVERLAYS:
            found |= {
                f"{overlay}: {each['kind']}": each for each in build(overlay) if each["apiVersion"] == "ray.io/v1"
            }
    return found


def cluster_spec(manifest: Manifest) -> dict[str, Any]:
    """The spec of a RayCluster, or of the one that a RayJob makes."""
    return manifest["spec"]["rayClusterSpec"] if manifest["kind"] == "RayJob" else manifest["spec"]


def groups(manifest: Manifest) -> list[dict[str, Any]]:
    """The head's group and the workers'."""
    spec = cluster_spec(manifest)
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


def pod_specs(manifest: Manifest) -> list[dict[str, Any]]:
    """The spec of every pod that a manifest describes."""
    if manifest["kind"] == "Pod":
        return [manifest["spec"]]
    templates = [group["template"] for group in groups(manifest)]
    if manifest["kind"] == "RayJob":
        templates.append(manifest["spec"]["submitterPodTemplate"])
    return [template["spec"] for template in templates]
