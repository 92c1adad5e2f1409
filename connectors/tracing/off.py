"""Records nothing."""

from connectors.tracing.port import Span


class NoTracing:
    """What a process without a collector has."""

    on = False

    def record(self, span: Span) -> None:
        """Forget it."""

    def close(self) -> None:
        """Nothing to do."""
