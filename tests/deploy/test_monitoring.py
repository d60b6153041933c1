"""The dashboard and what feeds it: every measure that it shows is one that a run exports, with the labels it uses."""

import json
import re
import time
import urllib.request

import pytest
import yaml

from orchestrator.measures import DESCRIPTIONS, Measures
from tests.conftest import ROOT
from tests.deploy.manifests import cluster_spec, load, training_cluster
from tests.runs import run

MONITORING = ROOT / "deploy" / "monitoring"
SCRAPE_DEADLINE_S = 60.0
METRIC = re.compile(r"\bray_unlocked_\w+")
LINE = re.compile(r"(?P<name>ray_unlocked_\w+)\{(?P<labels>[^}]*)\} (?P<value>\S+)")


def dashboard():
    return json.loads((MONITORING / "dashboard.json").read_text())


def queries():
    """Every query of the dashboard, with what its legend says."""
    found = [(t["expr"], t["legendFormat"]) for panel in dashboard()["panels"] for t in panel["targets"]]
    asked = [v["query"]["query"] for v in dashboard()["templating"]["list"] if v["type"] == "query"]
    return found + [(query, f"{{{{{query.rsplit(',', 1)[1].strip(' )')}}}}}") for query in asked]


def served(port):
    """What the node's agent serves of ours: measure -> one set of labels per series, with the value."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as got:
        lines = LINE.finditer(got.read().decode())
    found = {}
    for line in lines:
        labels = dict(re.findall(r'(\w+)="([^"]*)"', line["labels"]))
        found.setdefault(line["name"], []).append((labels, float(line["value"])))
    return found


@pytest.fixture(scope="module")
def exported(ray_cluster, ray_session, tmp_path_factory):
    """A run's summary, and what the agent of this node serves after its reports."""
    folder = tmp_path_factory.mktemp("watched") / "watched-run"
    summary = run(folder, cluster=ray_cluster, training={"epochs": 60}, evaluation={"every_epochs": 0},
                  faults={"pad": 2})  # fmt: skip
    port, until = ray_session.nodes()[0]["MetricsExportPort"], time.monotonic() + SCRAPE_DEADLINE_S
    wanted = {f"ray_{name}" for name in DESCRIPTIONS}
    last = {block["name"]: block["version"] for block in summary.blocks}
    while not wanted <= (found := of_run(served(port))).keys() or versions(found) != last:
        assert time.monotonic() < until, f"not exported: {wanted - found.keys()}, {last} of {versions(found)}"
        time.sleep(0.5)
    return summary, found


def versions(found):
    """The version of every block."""
    return {labels["block"]: value for labels, value in found.get("ray_unlocked_block_version", ())}


def of_run(found):
    """The series of that run, without those of other runs of this process."""
    ours = {name: [each for each in series if each[0].get("run") == "watched-run"] for name, series in found.items()}
    return {name: series for name, series in ours.items() if series}


def test_a_live_run_exports_every_measure_that_the_dashboard_shows_and_the_labels_it_uses(exported):
    _, found = exported
    for expression, legend in queries():
        names = METRIC.findall(expression)
        assert names, expression
        used = set(re.findall(r"{{(\w+)}}", legend)) | set(re.findall(r"(\w+)=~?\"", expression))
        for name in names:
            assert name in found, expression
            assert used <= found[name][0][0].keys(), f"{name} has {found[name][0][0].keys()}, {used} is used"


def test_the_dashboard_shows_every_measure():
    shown = {name for expression, _ in queries() for name in METRIC.findall(expression)}
    assert shown == {f"ray_{name}" for name in DESCRIPTIONS}


def test_what_is_exported_is_what_the_run_did(exported):
    summary, found = exported
    assert versions(found) == {block["name"]: block["version"] for block in summary.blocks}
    shares = {}
    for labels, value in found["ray_unlocked_block_time_share"]:
        shares[labels["block"]] = shares.get(labels["block"], 0.0) + value
    assert all(total == pytest.approx(1.0, abs=0.01) for total in shares.values()) and len(shares) == 3
    edges = {labels["edge"] for labels, _ in found["ray_unlocked_edge_buffered"]}
    assert edges == {edge["name"] for edge in summary.edges}


def test_the_port_that_is_scraped_is_the_one_of_the_head():
    monitor, policy = load(MONITORING / "kubernetes.yaml")
    head = cluster_spec(training_cluster())["headGroupSpec"]["template"]
    ports = {port["name"]: port["containerPort"] for port in head["spec"]["containers"][0]["ports"]}
    [endpoint] = monitor["spec"]["podMetricsEndpoints"]
    [admitted] = policy["spec"]["ingress"][0]["ports"]
    assert ports[endpoint["port"]] == admitted["port"]
    own = {**head["metadata"]["labels"], "ray.io/node-type": "head"}
    assert monitor["spec"]["selector"]["matchLabels"] == own == policy["spec"]["podSelector"]["matchLabels"]


def test_prometheus_keeps_our_measures_only():
    kept = [
        yaml.safe_load((MONITORING / "prometheus.yml").read_text())["scrape_configs"][0]["metric_relabel_configs"][0],
        load(MONITORING / "kubernetes.yaml")[0]["spec"]["podMetricsEndpoints"][0]["metricRelabelings"][0],
    ]
    for rule in kept:
        assert rule["action"] == "keep" and all(re.fullmatch(rule["regex"], f"ray_{name}") for name in DESCRIPTIONS)


def test_rates_and_staleness_are_of_the_time_since_the_report_before():
    now = [10.0]
    measures = Measures("a", 32, lambda: now[0])

    def of(at, version, life, staleness):
        now[0] = at
        block = {"version": version, "incarnation": life, "loss": None, "time_fraction": {}, "receives": {}}
        sender = {**block, "sends": {"block0->block1": {"unreceived": 4}}}
        got = {"arrived": 1, "held": 2, "dropped": {"old": 3}, "staleness": staleness}
        reports = {"block0": sender, "block1": {**block, "receives": {"block0->block1": got}}}
        return {
            measure.name.removeprefix("unlocked_"): measure.value
            for measure in measures.of(reports, {"block1": 1})
            if measure.tags.get("block") != "block0"
        }

    first = of(10.0, 10, 0, {0: 10})
    assert first["edge_staleness"] == 0 and "block_samples_per_s" not in first and first["block_restarts"] == 1
    second = of(12.0, 15, 0, {0: 10, 2: 1, 4: 1})
    assert second["block_samples_per_s"] == 5 * 32 / 2 and second["edge_staleness"] == 3
    assert second["edge_buffered"] == 7 and second["edge_dropped"] == 3
    third = of(13.0, 2, 1, {0: 10, 2: 1, 4: 1})
    assert "block_samples_per_s" not in third and "edge_staleness" not in third, "another life, nothing new"
