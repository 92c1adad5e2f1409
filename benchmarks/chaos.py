"""Nothing lost, nothing paid twice: flows under load, killed again and again; judged by the model server's record."""

import shutil
import tempfile
from collections import Counter
from pathlib import Path

import click

from benchmarks.report import Aim, emit
from schemas.errors import HeadraceError
from tests.chaos.harness import Plan, Report, run_chaos
from tests.kafka.apache_kafka import missing_tools


@click.command()
@click.option("--kills", default=8, show_default=True, type=click.IntRange(1), help="Kills per seed.")
@click.option("--jobs", default=400, show_default=True, type=click.IntRange(1), help="Requests per seed.")
@click.option("--documents", default=None, type=click.IntRange(0), help="Documents per seed; default: 5 per kill.")
@click.option("--seed", default=0, show_default=True, help="The same seed makes the same load and schedule.")
@click.option("--seeds", default=1, show_default=True, type=click.IntRange(1), help="Runs, of seeds that follow.")
@click.option("--outage", default=5.0, show_default=True, help="Seconds of model outage in each run.")
@click.option("--postgres", is_flag=True, help="Keep the ledger in a PostgreSQL of the run's own, instead of SQLite.")
@click.option("--no-ledger", is_flag=True, help="Run without the ledger: must report violations.")
@click.option("--stock-sink", is_flag=True, help="Run with Bytewax's Kafka sink: must report violations.")
@click.option("--real-embedder", is_flag=True, help="Load the default model at each start, as a deployment would.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def chaos(  # noqa: PLR0913  # options of a command
    kills: int,
    jobs: int,
    documents: int | None,
    seed: int,
    seeds: int,
    outage: float,
    *,
    postgres: bool,
    no_ledger: bool,
    stock_sink: bool,
    real_embedder: bool,
    as_json: bool,
) -> None:
    """Kill the flows KILLS times under load and count what was lost or paid twice (needs Java 17 and Maven)."""
    missing = missing_tools()
    if missing is not None:
        raise HeadraceError(missing)
    reports: list[Report] = []
    for each in range(seed, seed + seeds):
        plan = Plan(
            jobs=jobs,
            documents=5 * kills if documents is None else documents,
            kills=kills,
            seed=each,
            outage_s=outage,
            ledger=not no_ledger,
            postgres=postgres,
            stock_sink=stock_sink,
            real_embedder=real_embedder,
        )
        directory = Path(tempfile.mkdtemp(prefix="headrace-chaos-"))
        report = run_chaos(plan, directory, lambda line: click.echo(line, err=True))
        reports.append(report)
        violations = report.verdict.violations
        click.echo(f"seed {each}: {violations or 'no violations'} {report.figures()}", err=True)
        if violations:
            click.echo("\n".join([*report.verdict.examples, f"evidence: {directory}"]), err=True)
        else:
            shutil.rmtree(directory, ignore_errors=True)
    violated = Counter[str]()
    for report in reports:
        violated.update(report.verdict.violations)
    figures = _summed(reports) | {"seeds": list(range(seed, seed + seeds)), "violations": dict(violated)}
    recovery_s = max((max(report.recovery_s, default=0.0) for report in reports), default=0.0)
    aims = [
        Aim("lost", "0", met=not violated["lost"]),
        Aim("duplicate_results", "0", met=not violated["duplicate_results"]),
        Aim("duplicate_calls_outside_window", "0", met=not violated["duplicate_calls_outside_window"]),
        Aim("violations", "none", met=not violated),
        Aim("recovery_s_max", "10 s at most", met=recovery_s <= 10.0),  # noqa: PLR2004  # the aim
    ]
    emit("chaos", figures, aims, as_json=as_json)


def _summed(reports: list[Report]) -> dict[str, object]:
    """Counts added up over the runs; recovery times taken together."""
    summed: Counter[str] = Counter()
    points: Counter[str] = Counter()
    for report in reports:
        points.update(report.kills_by_point)
        summed.update({name: value for name, value in report.figures().items() if isinstance(value, int)})
    recoveries = sorted(second for report in reports for second in report.recovery_s)
    return {
        **summed,
        "kills_by_point": dict(points),
        "recovery_s_max": round(max(recoveries, default=0.0), 2),
        "recovery_s_median": round(recoveries[len(recoveries) // 2], 2) if recoveries else 0.0,
        "took_s": round(sum(report.took_s for report in reports), 1),
    }
