"""The port at which Prometheus asks a process."""

from prometheus_client import start_http_server

from connectors.settings import Settings
from schemas.errors import HeadraceError


def serve_metrics(settings: Settings) -> None:
    """Serve metrics, if a port is set for them. Raises HeadraceError if it cannot be had."""
    if settings.metrics_port is None:
        return
    try:
        start_http_server(settings.metrics_port)
    except OSError as error:
        raise HeadraceError(
            f"HEADRACE_METRICS_PORT={settings.metrics_port}: {error.strerror}; each process needs a port of its own"
        ) from error
