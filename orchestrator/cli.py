"""The command `unlocked`. Heavy imports stand inside the commands, so that `--help` is quick."""

from __future__ import annotations

import json
import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from actors.errors import RunError, UserError

if TYPE_CHECKING:
    from orchestrator.config import RunConfig
    from orchestrator.summary import Summary

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train neural networks without the locks of back-propagation, one actor per block.",
)
console = Console(highlight=False)


@app.command()
def train(
    config: Annotated[list[str], typer.Argument(help="YAML files, merged left to right, then key=value overrides")],
    fresh: Annotated[bool, typer.Option(help="start anew where the run directory holds a run")] = False,
) -> None:
    """Train a run; several seeds (seed=[1,2,3]) one after another."""
    from orchestrator.api import train as train_run
    from orchestrator.catalog import find_catalog
    from orchestrator.config import load_runs

    files, overrides = _split(config)
    runs = load_runs(files, overrides, find_catalog())
    summaries = []
    for run in runs:
        summaries.append(train_run(run, fresh=fresh))
        _print_result(summaries[-1])
    if len(runs) > 1:
        _print_seeds(runs, summaries)


@app.command()
def resume(run: Annotated[str, typer.Argument(help="run directory")]) -> None:
    """Go on with a run from its newest checkpoint that verifies; a finished one only shows its result."""
    from orchestrator.api import resume as resume_run

    _print_result(resume_run(run))


@app.command()
def verify(run: Annotated[str, typer.Argument(help="run directory")]) -> None:
    """Check every shard of every checkpoint, and say what a resumed run would do."""
    from orchestrator.api import verify as verify_run

    found = verify_run(run)
    for text in found.lines:
        typer.echo(text)
    if found.usable is None:
        raise UserError(found.outcome)
    typer.echo(found.outcome)


@app.command()
def evaluate(run: Annotated[str, typer.Argument(help="run directory")]) -> None:
    """Evaluate a run's newest checkpoint; prints JSON."""
    from orchestrator.api import evaluate as evaluate_run

    typer.echo(json.dumps(evaluate_run(run), indent=1))


@app.command()
def export(
    run: Annotated[str, typer.Argument(help="run directory")],
    file: Annotated[str, typer.Argument(help="the .safetensors file to write")],
) -> None:
    """Write a run's network as one plain PyTorch state."""
    from orchestrator.api import export as export_run

    facts = export_run(run, file)
    console.print(f"{facts['num_tensors']} tensors, {facts['num_parameters']} parameters in {facts['file']}")


@app.command()
def status(
    run: Annotated[str, typer.Argument(help="run directory")],
    as_json: Annotated[bool, typer.Option("--json", help="print status.json")] = False,
) -> None:
    """Show where a run is and what its blocks do."""
    from orchestrator.run_directory import RunDirectory

    facts = RunDirectory.open(run).read_status()
    if as_json:
        typer.echo(json.dumps(facts, indent=1))
        return
    tested = "" if facts["test_accuracy"] is None else f", test accuracy {facts['test_accuracy']:.2%}"
    reason = f": {facts['reason']}" if facts["reason"] else ""
    console.print(
        f"{facts['state']}{reason}, epoch {facts['epoch']}, batch {facts['batch']}/{facts['num_batches']}{tested}"
    )
    table = Table("block", "version", "loss", "pid", "node", "device")
    for block in facts["blocks"]:
        loss = "" if block["loss"] is None else f"{block['loss']:.4f}"
        table.add_row(
            block["name"], str(block["version"]), loss, str(block["pid"]), block["node"][:12], block["device"]
        )
    console.print(table)


@app.command()
def control(
    run: Annotated[str, typer.Argument(help="run directory of a running job")],
    words: Annotated[list[str], typer.Argument(help="key=value ..., or one of pause, resume, snapshot, stop")],
) -> None:
    """Change a running job: staleness, buffers, pause, resume, snapshot, stop."""
    from orchestrator.control import ask

    console.print(f"accepted: {ask(run, words)}")


@app.command()
def submit(
    config: Annotated[list[str], typer.Argument(help="YAML files in this folder, then key=value overrides")],
    address: Annotated[
        str, typer.Option(help="the cluster's job server", envvar="RAY_API_SERVER_ADDRESS")
    ] = "http://127.0.0.1:8265",
    fresh: Annotated[bool, typer.Option(help="start anew where the run directory holds a run")] = False,
    wait: Annotated[bool, typer.Option(help="follow the job's log to its end")] = True,
) -> None:
    """Train as a job of a Ray cluster: sends this folder, follows the log, ends with the job's exit code."""
    from orchestrator.submit import submit as submit_job

    files, overrides = _split(config, "submit")
    code = submit_job(
        files, overrides, address=address, directory=Path.cwd(), environment=os.environ, fresh=fresh, wait=wait
    )
    raise typer.Exit(code)


@app.command()
def plan(
    config: Annotated[list[str], typer.Argument(help="YAML files, merged left to right, then key=value overrides")],
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    devices: Annotated[int | None, typer.Option(help="simulate a cluster of so many devices")] = None,
    device_speed: Annotated[
        str | None, typer.Option(help="speed of each device, such as 1,1,0.5; this machine's core or GPU is 1")
    ] = None,
    link_mb_per_s: Annotated[
        float | None, typer.Option(help="bandwidth between simulated devices, 10^6 bytes/s")
    ] = None,
    latency_ms: Annotated[float, typer.Option(help="of a message between simulated devices")] = 0.0,
    jitter: Annotated[float, typer.Option(help="relative spread of simulated work: stragglers")] = 0.0,
    timeline: Annotated[Path | None, typer.Option(help="write a Chrome trace of the simulation here")] = None,
    seconds: Annotated[float, typer.Option(help="to measure blocks for")] = 4.0,
) -> None:
    """Measure a run's blocks for some seconds and predict its speed, memory and staleness; starts nothing.

    It predicts a process per block, whatever placement.blocks_per_actor says.
    """
    from orchestrator.plan_request import PlanRequest, answer

    files, overrides = _split(config, "plan")
    request = PlanRequest(devices, device_speed, link_mb_per_s, latency_ms, jitter, timeline, seconds)
    answer(files, overrides, request, console, as_json=as_json)


@app.command()
def methods(
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """List every rule and objective, with its paper and the locks it removes."""
    from orchestrator.catalog import find_catalog

    catalog = find_catalog()
    declared = {name: rule.declare({}) for name, rule in catalog.rules.items() if rule.declare}
    rows = [
        {
            "kind": kind, "name": plugin.name, "paper": plugin.paper, "summary": plugin.summary,
            "feedback": declared[plugin.name].feedback if kind == "rule" else "",
            "removes_locks": list(declared[plugin.name].removes_locks) if kind == "rule" else [],
        }
        for kind, plugins in (("rule", catalog.rules), ("objective", catalog.objectives))
        for plugin in plugins.values()
    ]  # fmt: skip
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
        return
    table = Table("", "name", "feedback", "locks removed", "paper", "what it does")
    table.caption = "feedback and locks are those of a rule's default settings; other settings may remove more or fewer"
    for row in rows:
        is_rule = row["kind"] == "rule"
        locks = (", ".join(row["removes_locks"]) or "none") if is_rule else ""
        table.add_row(row["kind"], row["name"], row["feedback"], locks, row["paper"], row["summary"])
    console.print(table)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; a mistake of the user ends with one sentence and exit code 2."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # factories of the user's are found where the command is given
    try:
        app(args=None if arguments is None else list(arguments), standalone_mode=True)
    except UserError as error:
        typer.echo(f"unlocked: {error}", err=True)
        raise SystemExit(2) from None
    except RunError as error:
        typer.echo(f"unlocked: {error}", err=True)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        typer.echo("unlocked: stopped", err=True)
        raise SystemExit(130) from None


def _split(arguments: Sequence[str], command: str = "train") -> tuple[list[str], list[str]]:
    """Tell files from overrides: an override holds `=` and is no file."""
    overrides = [a for a in arguments if "=" in a and not Path(a).exists()]
    files = [a for a in arguments if a not in overrides]
    if not files:
        raise UserError(f"{command}: got no config file, expected at least one; try configs/quickstart.yaml")
    return files, overrides


def _print_result(summary: Summary) -> None:
    tested = "no test accuracy" if summary.test_accuracy is None else f"test accuracy {summary.test_accuracy:.2%}"
    votes = summary.ensemble_accuracy
    together = "" if votes in (None, summary.test_accuracy) else f", all heads together {votes:.2%}"
    console.print(
        f"{summary.status}: {tested}{together}, {summary.samples_per_s:,.0f} samples/s, results in {summary.run_dir}",
        soft_wrap=True,
    )


def _print_seeds(runs: Sequence[RunConfig], summaries: Sequence[Summary]) -> None:
    from orchestrator.run_directory import write_json

    scores = [s.test_accuracy for s in summaries if s.test_accuracy is not None]
    table = Table("seed", "test accuracy", "samples/s", "run directory")
    for summary in summaries:
        tested = "" if summary.test_accuracy is None else f"{summary.test_accuracy:.2%}"
        table.add_row(str(summary.seed), tested, f"{summary.samples_per_s:,.0f}", summary.run_dir)
    console.print(table)
    facts: dict[str, Any] = {
        "seeds": [run.seed for run in runs],
        "test_accuracy": {
            "values": scores,
            "mean": statistics.mean(scores) if scores else None,
            "standard_deviation": statistics.stdev(scores) if len(scores) > 1 else None,
        },
        "runs": [summary.run_dir for summary in summaries],
    }
    if len(scores) > 1:
        mean, spread = facts["test_accuracy"]["mean"], facts["test_accuracy"]["standard_deviation"]
        console.print(f"test accuracy {mean:.2%}, standard deviation {spread:.2%} over {len(scores)} seeds")
    write_json(Path(summaries[0].run_dir).parent / "summary.json", facts)
