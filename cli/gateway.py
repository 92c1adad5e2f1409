"""`headrace gateway`: the HTTP API and its page, until SIGTERM."""

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pkgutil import iter_modules
from threading import Thread

import click
import structlog
import uvicorn
import uvloop

import flows
from cli.configuration import bootstrap_of, settings_for
from cli.logs import configure_logs
from cli.memory import settle_memory
from cli.metrics import serve_metrics
from cli.objects import object_store
from cli.slicing import groups_of
from cli.tracing import tracer_for
from connectors.kafka.dead_letters import DeadLetters
from connectors.kafka.positions import GroupPositions
from connectors.kafka.topics import ensure_reachable
from connectors.settings import Settings
from gateway.access import is_loopback
from gateway.app import create_app
from gateway.bounded_http import BoundedHttp
from gateway.hub import Hub
from gateway.keys import Keys, configured
from gateway.lag import Lag
from gateway.parts import Limits, Parts
from gateway.projection import Projection
from gateway.publisher import Publisher
from gateway.read_model import ReadModel
from schemas.errors import HeadraceError, Retryable

log = structlog.get_logger()

GRACE_S = 5
"""What requests get to come to their end after SIGTERM; streams end at once, with their position."""

_REFUSAL_S = 2.5  # a broker that is there refuses within a second
_BACKLOG = 2048
_KEEP_ALIVE_S = 30
_PING_S = 15.0
_MESSAGE_MAX_BYTES = 65_536  # of what a WebSocket's client sends, which is nothing


@click.command()
@click.option("--host", help="Address to listen at; default: HEADRACE_GATEWAY_HOST.")
@click.option("--port", type=click.IntRange(0, 65_535), help="Port; 0: any; default: HEADRACE_GATEWAY_PORT.")
@click.option("--bootstrap", metavar="HOST:PORT", help="Brokers; default: HEADRACE_KAFKA_BOOTSTRAP.")
@click.option("--until-stdin-closes", is_flag=True, hidden=True, help="Stop when standard input ends.")  # cli.local
def gateway(host: str | None, port: int | None, bootstrap: str | None, *, until_stdin_closes: bool) -> None:
    """Serve the HTTP API and its page until SIGTERM or Ctrl-C.

    Without API keys it listens on loopback alone, and whoever reaches it sees all. It starts without Kafka too, and
    follows it as soon as it is there.
    """
    settings = settings_for(kafka_bootstrap=bootstrap, gateway_host=host, gateway_port=port)
    configure_logs(settings.log_level)
    try:
        keys = configured(settings.api_keys, settings.api_keys_file)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if not keys and not is_loopback(settings.gateway_host):
        raise click.UsageError(
            f"HEADRACE_GATEWAY_HOST={settings.gateway_host}: without API keys the gateway serves loopback alone; make "
            "one with `headrace keys create TENANT`, and set HEADRACE_API_KEYS"
        )
    if not keys and "*" in settings.cors_origins:
        raise click.UsageError(
            "HEADRACE_CORS_ORIGINS=*: without API keys any page in this machine's browser could read everything; "
            "name the origins"
        )
    with suppress(Retryable):  # it starts without Kafka, but not with a password that Kafka refuses
        ensure_reachable(bootstrap_of(settings), settings.kafka_config(), timeout_s=_REFUSAL_S)
    listening = _listen(settings.gateway_host, settings.gateway_port)
    serve_metrics(settings)
    uvloop.run(
        _serve(
            settings,
            Keys(keys, per_s=settings.rate_per_s, burst=settings.rate_burst),
            listening,
            until_stdin_closes=until_stdin_closes,
        )
    )


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises HeadraceError if the address cannot be had."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise HeadraceError(
            f"the gateway cannot listen at {host}:{port}: {error.strerror}; see to HEADRACE_GATEWAY_HOST and "
            "HEADRACE_GATEWAY_PORT (0: any free port)"
        ) from error
    listening.setblocking(False)
    return listening


async def _serve(settings: Settings, keys: Keys, listening: socket.socket, *, until_stdin_closes: bool) -> None:
    async with _parts(settings, keys) as parts:
        server = _Server(
            uvicorn.Config(
                create_app(parts),
                loop="none",
                http=BoundedHttp,
                ws="websockets-sansio",
                ws_max_size=_MESSAGE_MAX_BYTES,
                ws_ping_interval=_PING_S,
                lifespan="off",
                log_config=None,
                log_level="error",  # below that it tells of clients' mistakes
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=_KEEP_ALIVE_S,
                timeout_graceful_shutdown=GRACE_S,
            )
        )

        def stop() -> None:
            parts.hub.close()
            server.should_exit = True

        _stop_on_signals(stop)
        if until_stdin_closes:
            _stop_at_end_of_input(stop)
        settle_memory()  # a burst makes enough objects for a full collection, which halts all streams
        await server.serve(sockets=[listening])


class _Server(uvicorn.Server):
    """Says where it listens, and leaves signals to us: its own handling ends the process by the signal."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Say so once it serves."""
        await super().startup(sockets)
        for each in sockets or []:
            host, port = each.getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            click.echo(f"gateway: http://{shown}:{port}/")  # cli.local waits for this line

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Nothing."""
        yield


def _stop_on_signals(stop: Callable[[], None]) -> None:
    """A second signal ends the process at once."""
    loop = asyncio.get_running_loop()

    def handle(signum: signal.Signals) -> None:
        log.info("stopping", signal=signum.name, grace_s=GRACE_S)
        loop.remove_signal_handler(signum)
        signal.signal(signum, signal.SIG_DFL)
        stop()

    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, handle, signum)


def _stop_at_end_of_input(stop: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()

    def wait() -> None:
        while os.read(0, 4096):  # not sys.stdin: Python aborts at its end if a daemon thread holds that buffer's lock
            pass
        loop.call_soon_threadsafe(stop)

    Thread(target=wait, daemon=True).start()


@asynccontextmanager
async def _parts(settings: Settings, keys: Keys) -> AsyncIterator[Parts]:
    """Everything, started; closed in the reverse order."""
    bootstrap, options = bootstrap_of(settings), settings.kafka_config()
    names = [module.name for module in iter_modules(flows.__path__)]  # importing them would load the engine
    groups = {flow: groups_of(flow, settings) for flow in names}
    read_model = ReadModel(settings.read_model or settings.data_dir / "read_model.sqlite")
    hub = Hub()
    projection = Projection(bootstrap, options, read_model, hub)
    lag = Lag(GroupPositions(bootstrap, options), groups)
    tracer = tracer_for("headrace-gateway")
    try:
        async with Publisher(bootstrap, options) as publisher:
            projection.start()
            lag.start()
            yield Parts(
                publisher=publisher,
                read_model=read_model,
                hub=hub,
                progress=projection,
                store=object_store(settings),
                keys=keys,
                letters=DeadLetters(bootstrap, options),
                lag=lag,
                bootstrap=bootstrap,
                kafka_options=options,
                limits=_limits(settings),
                tracer=tracer,
            )
    finally:
        lag.close()
        projection.close()
        read_model.close()
        await asyncio.to_thread(tracer.close)


def _limits(settings: Settings) -> Limits:
    return Limits(
        max_document_bytes=settings.max_document_bytes,
        cors_origins=settings.cors_origins,
        webhook_tenants=frozenset(settings.webhook_secrets),
        prices=settings.prices,
        budget=settings.budget,
    )
