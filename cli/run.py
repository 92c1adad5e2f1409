"""`headrace run FLOW...`: run flows in this process until SIGTERM."""

import faulthandler
import os
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from importlib.metadata import version
from threading import Thread
from types import FrameType

import click
import structlog
from bytewax.dataflow import Dataflow
from bytewax.testing import cluster_main
from bytewax.visualize import to_mermaid
from prometheus_client import Gauge

from cli.configuration import bootstrap_of, settings_for
from cli.logs import configure_logs, shown
from cli.memory import settle_memory
from cli.metrics import Health, serve_metrics
from cli.processes import run_cluster
from cli.slicing import slice_of
from cli.tracing import tracer_for
from cli.wiring import FLOWS, Connectors, KafkaTopics, build, sketch
from connectors.cancellations import Cancellations
from connectors.cluster import MOST_PROCESSES, Cluster
from connectors.event_loop import EventLoop
from connectors.kafka.cancellations import CancellationReader
from connectors.kafka.epochs import epoch_interval
from connectors.kafka.lag import ConsumerLag
from connectors.kafka.pressure import Pressure
from connectors.kafka.producer import ReliableProducer
from connectors.kafka.recovery import RecoveryDirectory
from connectors.kafka.stop import Stop
from connectors.kafka.topics import ensure_reachable
from connectors.settings import Settings
from operators.runtime import Runtime
from operators.signals import signals
from schemas.errors import HeadraceError, Retryable

log = structlog.get_logger()

INDEXED = frozenset({"ingest", "index", "answer", "search"})  # flows that open the vector index
ALONE = frozenset({"webhooks"})  # flows whose steps share more than keyed state

_LOOK_S = 0.2
_SAY_EVERY_S = 30.0  # that the others of a cluster are not there

FLOW_INFO = Gauge(
    "headrace_flow_info", "1 for each flow of the process, and the release that runs it.", ["flow", "version"]
)


@click.command()
@click.argument("flows", metavar="FLOW...", nargs=-1, required=True, type=click.Choice(FLOWS))
@click.option("--bootstrap", metavar="HOST:PORT", help="Brokers; default: HEADRACE_KAFKA_BOOTSTRAP.")
@click.option(
    "--processes",
    type=click.IntRange(1, MOST_PROCESSES),
    metavar="N",
    help="Run one flow in N processes of this machine, as a cluster; restarted together when one is killed.",
)
@click.option("--graph", is_flag=True, help="Print the flows as Mermaid and exit.")
@click.option("--until-stdin-closes", is_flag=True, hidden=True, help="Stop when standard input ends.")  # cli.local
def run(
    flows: tuple[str, ...], bootstrap: str | None, processes: int | None, *, graph: bool, until_stdin_closes: bool
) -> None:
    """Run flows until SIGTERM or Ctrl-C, then drain, take a last snapshot and exit 0.

    FLOW is ingest, extract, embed, index, answer, search, usage, notifications or webhooks.

    Several flows run in one process, each with its own recovery state; the embedded vector index needs that.
    """
    settings = settings_for(kafka_bootstrap=bootstrap)
    names = tuple(dict.fromkeys(flows))
    if graph:
        for name in names:
            click.echo(to_mermaid(sketch(name)))
        return
    configure_logs(settings.log_level)
    cluster = _cluster(names, settings, processes)
    faulthandler.register(signal.SIGUSR1)  # where each thread is: of a flow that hangs; no values
    stop = Stop()
    if until_stdin_closes:
        Thread(target=_stop_at_end_of_input, args=(stop, settings.drain_s), daemon=True).start()
    if processes is not None and processes > 1:
        ensure_reachable(bootstrap_of(settings), settings.kafka_config())
        run_cluster(names[0], processes, settings, stop)
        return
    health = Health(names, stop, stall_s=settings.stall_s)
    serve_metrics(settings, health)
    ensure_reachable(bootstrap_of(settings), settings.kafka_config())
    try:
        run_flows(names, settings, stop, health=health)
    except HeadraceError as error:
        if cluster.is_alone:
            raise
        if isinstance(error, _NeverBegan):
            os._exit(0)
        # Bytewax's threads for the other processes may need the interpreter while that ends, which aborts it.
        click.echo(f"headrace: {error}", err=True)
        os._exit(1)


def _cluster(names: tuple[str, ...], settings: Settings, processes: int | None) -> Cluster:
    """The cluster that the settings name, or that is to be started. Raises UsageError for what cannot be one."""
    cluster = Cluster(settings.cluster, settings.cluster_process)
    size = processes or cluster.size
    if size == 1:
        return cluster
    if not cluster.is_alone and processes is not None:
        raise click.UsageError("--processes starts a cluster, and HEADRACE_CLUSTER says that this is part of one")
    if settings.slices > 1:
        raise click.UsageError("--processes: a slice (HEADRACE_SLICES) is one process")
    if len(names) > 1:
        raise click.UsageError(f"a cluster runs one flow, not {', '.join(names)}: run each by a command of its own")
    if names[0] in ALONE:
        raise click.UsageError(
            f"{names[0]} bounds what goes to one receiver within one process, and is no flow for a cluster; "
            "cut it into slices (HEADRACE_SLICES)"
        )
    if names[0] in INDEXED and settings.qdrant_url is None:
        raise click.UsageError(
            f"{names[0]} in {size} processes needs a Qdrant server (HEADRACE_QDRANT_URL): the embedded index belongs "
            "to one process"
        )
    return cluster


def _stop_at_end_of_input(stop: Stop, drain_s: float) -> None:
    while os.read(0, 4096):  # not sys.stdin: Python aborts at its end if a daemon thread holds that buffer's lock
        pass
    stop.request(drain_s=drain_s)


def run_flows(
    names: tuple[str, ...],
    settings: Settings,
    stop: Stop,
    connect: Callable[[Settings, EventLoop, str], Connectors] = Connectors,
    health: Health | None = None,
) -> None:
    """Run flows side by side until `stop` or until one fails, which stops the others.

    `connect` makes the connectors: one that wraps some of them lets a test kill the process at a chosen moment.
    `health` is told of epochs. Raises the failure of the first flow that failed.
    """

    def handle(signum: int, _frame: FrameType | None) -> None:
        log.info("stopping", signal=signal.Signals(signum).name, drain_s=settings.drain_s)
        stop.request(drain_s=settings.drain_s)
        signal.signal(signum, signal.SIG_DFL)  # a second one ends the process at once

    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, handle)
    health = health or Health(names, stop, stall_s=settings.stall_s)
    with ExitStack() as stack:
        cluster = Cluster(settings.cluster, settings.cluster_process)
        directories = {name: stack.enter_context(_recovery(name, settings, cluster)) for name in names}
        loop = stack.enter_context(EventLoop())
        owner = directories.get("answer", directories[names[0]]).identity  # of the flow that uses the ledger
        connectors = stack.enter_context(connect(settings, loop, owner))
        connectors.tracer = tracer_for("headrace")
        stack.callback(connectors.tracer.close)
        producer = ReliableProducer(bootstrap_of(settings), settings.kafka_config())
        cancellations = Cancellations()
        reader = CancellationReader(bootstrap_of(settings), settings.kafka_config(), cancellations)
        stack.enter_context(reader)
        stack.enter_context(ConsumerLag(bootstrap_of(settings), settings.kafka_config(), health.flows.values()))
        runs = []
        for name in names:
            pressure, progress = Pressure(), health.flows[name]
            topics = KafkaTopics(producer, settings, name, stop, pressure, progress)
            runtime = Runtime(
                topics,
                loop,
                stop,
                pressure,
                connectors.circuits,
                cancellations,
                cluster,
                slice_of(name, settings),
                progress,
                connectors.tracer,
                settings.log_content,
            )
            flow = build(name, runtime, connectors, settings)
            if not cluster.is_alone:
                signals("signals", flow, runtime, epoch_s=settings.epoch_s, drain_s=settings.drain_s)
            runs.append(_Run(name, flow, directories[name], settings, runtime))
        reader.wait()  # it has read while the models were loaded
        settle_memory()
        for each in runs:
            FLOW_INFO.labels(each.name, version("headrace")).set(1)
            each.thread.start()
        click.echo(f"running: {', '.join(names)}")  # cli.local waits for this line
        if not cluster.is_alone:
            _wait_for_others(runs[0], stop, cluster)
        for each in runs:
            each.thread.join()
            FLOW_INFO.remove(each.name, version("headrace"))
        loop.cancel_started()  # before their connections close: a call that is cut off would pass for a failed one
        for each in runs:
            if each.failure is not None:
                raise each.failure


class _NeverBegan(HeadraceError):
    """A process was to stop before the others of its cluster were there: it has done nothing."""


def _wait_for_others(run: "_Run", stop: Stop, cluster: Cluster) -> None:
    """Until all are connected, or the flow has ended.

    Bytewax connects without a timeout, and hears of no stop meanwhile. Raises _NeverBegan when the drain is over.
    """
    said_at = time.monotonic()
    while run.thread.is_alive() and not run.progress.together:
        if stop.deadline is not None and time.monotonic() > stop.deadline:
            log.info("flow ended before it began: others of its cluster were not there", flow=run.name)
            raise _NeverBegan(f"{run.name} has not begun")
        if time.monotonic() - said_at > _SAY_EVERY_S:
            said_at = time.monotonic()
            log.warning(
                "waiting for the other processes of the cluster",
                flow=run.name,
                process=cluster.process,
                cluster=list(cluster.addresses),
            )
        run.thread.join(_LOOK_S)


def _recovery(name: str, settings: Settings, cluster: Cluster) -> RecoveryDirectory:
    parent = settings.recovery_dir or settings.data_dir / "recovery"
    mine = slice_of(name, settings)
    of = "" if mine is None else str(mine)
    return RecoveryDirectory(parent / name, flow=name, process=cluster.process, of=of)


class _Run:
    """One flow in a thread of its own."""

    def __init__(
        self, name: str, flow: Dataflow, recovery: RecoveryDirectory, settings: Settings, runtime: Runtime
    ) -> None:
        self.name = name
        self.progress = runtime.progress
        self.failure: Exception | None = None
        self.thread = Thread(target=self._run, name=name, args=(name, flow, recovery, settings, runtime))

    def _run(
        self, name: str, flow: Dataflow, recovery: RecoveryDirectory, settings: Settings, runtime: Runtime
    ) -> None:
        log.info("flow started", flow=name)
        failure: Exception | None = None
        try:
            cluster_main(
                flow,
                list(runtime.cluster.addresses),
                runtime.cluster.process,
                epoch_interval=epoch_interval(settings.epoch_s),
                recovery_config=recovery.config(),
                worker_count_per_proc=settings.workers,
            )
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # noqa: BLE001  # kept, and raised by the main thread; a panic is no Exception
            failure = _root(error)
        finally:
            runtime.stop.request(drain_s=settings.drain_s)
        if runtime.raised and not isinstance(failure, HeadraceError):
            failure = runtime.raised[0]
        if failure is None:
            log.info("flow ended", flow=name)
            return
        self.failure = recovery.failure(failure) or _among_others(failure, runtime) or failure
        log.error("flow failed", flow=name, error=shown(self.failure), error_type=type(self.failure).__name__)


def _among_others(failure: Exception, runtime: Runtime) -> Retryable | None:
    """The failure in words, if it is that of a cluster: an address that cannot be had, or the end of another process.

    The latter is a panic of Bytewax's, over a connection.
    """
    cluster = runtime.cluster
    if cluster.is_alone or isinstance(failure, HeadraceError):
        return None
    _, no_address, reason = str(failure).partition("failed to initialize networking: ")
    if no_address:
        address = cluster.addresses[cluster.process]
        return Retryable(
            f"process {cluster.process} of the cluster cannot listen at {address}: {reason}; "
            "HEADRACE_CLUSTER has to name a free port of this machine there"
        )
    if "thread panic" not in str(failure):
        return None
    way_out = "start all again: they resume from the last snapshot"
    if runtime.progress.silent_s is None:
        way_out += (
            "; if it happens at each start, they differ: all need one release, and the same HEADRACE_CLUSTER and "
            "HEADRACE_WORKERS"
        )
    addresses = ", ".join(cluster.addresses)
    return Retryable(f"process {cluster.process} lost another one of its cluster ({addresses}); {way_out}")


def _root(error: BaseException) -> Exception:
    """The classed error below Bytewax's own, or the deepest one."""
    seen: list[BaseException] = [error]
    while (cause := seen[-1].__cause__ or seen[-1].__context__) is not None and cause not in seen:
        seen.append(cause)
    for each in seen:
        if isinstance(each, HeadraceError):
            return each
    return seen[-1] if isinstance(seen[-1], Exception) else RuntimeError(repr(seen[-1]))
