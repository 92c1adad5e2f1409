"""What tenants have used, hour by hour and day by day, in event time.

Guarantee: the sum over the last versions of all windows of one length is the sum over all events, exactly, in whatever
order they come, across crashes, restarts and deploys, if each event comes once (`operators.dedup` in front sees to it).
A version grows with what its window holds, so that none from before a crash holds over a fuller one from after it.
A late event makes a new version of its window. The end of input closes nothing: a deploy is no end of an hour.

State, per tenant: the windows of the last 32 days, one more than events are kept. Dead letters: events that are older;
and, of `past`, those of the far future.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

import bytewax.operators as op
from bytewax.dataflow import operator
from bytewax.operators import KeyedStream, StatefulBatchLogic

from connectors.kafka.record import OutgoingRecord, outgoing
from operators.envelope import Envelope
from operators.outcome import bury, flow_step
from operators.runtime import Runtime
from operators.write import write
from schemas.dead_letter import DeadLetter
from schemas.errors import Fatal, Refused
from schemas.event import at_unix, utc_now
from schemas.usage import TokensUsed, UsageWindowed

WINDOWS_S = (3600, 86_400)
LATENESS_S = 60.0  # a window is called closed when the newest event, or the clock, is so far past its end
AHEAD_S = 3600.0  # how far another machine's clock may be ahead
KEPT_S = 32 * 86_400.0
SNAPSHOT_VERSION = 1


@dataclass
class Window:
    """One tenant, model and span of time."""

    window_s: int
    start: int  # Unix seconds
    model: str
    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    estimated_calls: int = 0
    closed: bool = False

    @property
    def version(self) -> int:
        """From the contents, which only grow: after a crash the same calls come in other batches, or in other order."""
        return 2 * self.calls + self.closed

    def add(self, used: TokensUsed) -> None:
        """Count one call."""
        self.calls += 1
        self.prompt_tokens += used.prompt_tokens
        self.completion_tokens += used.completion_tokens
        self.estimated_calls += used.estimated

    def published(self, tenant: str) -> UsageWindowed:
        """Its version of now."""
        start = datetime.fromtimestamp(self.start, UTC)
        named = {"tenant": tenant, "window_start": start, "version": self.version}
        return UsageWindowed.model_validate(asdict(self) | named)


def past(used: TokensUsed) -> TokensUsed:
    """A call that can be counted: one of the far future would make every other call too late. Raises Refused.

    Before `once`: what is refused has not been counted, so its redrive must not pass for a repetition.
    """
    if used.used_at.timestamp() > utc_now().timestamp() + AHEAD_S:
        raise Refused(f"used_at {used.used_at.isoformat()} is in the future; redrive it when that has passed")
    return used


_Snapshot = tuple[int, float, list[tuple[int, int, str, int, int, int, int, int, bool]]]


class TenantWindows:
    """One tenant's windows."""

    def __init__(self, tenant: str) -> None:
        self._tenant = tenant
        self._watermark = 0.0
        self._windows: dict[tuple[int, int, str], Window] = {}
        self._changed: dict[int, Window] = {}  # by identity, in order of the first change

    def add(self, used: TokensUsed) -> None:
        """Count a call in its windows. Raises Refused if they are no longer kept."""
        at = used.used_at.timestamp()
        if at < self._watermark - KEPT_S:
            raise Refused(f"used_at {used.used_at.isoformat()}: windows of that time are no longer kept")
        if used.model is None and not used.tokens:
            return
        for window_s in WINDOWS_S:
            key = (window_s, int(at // window_s) * window_s, used.model or "unknown")
            window = self._windows.get(key)
            if window is None:
                window = self._windows[key] = Window(*key)
            window.add(used)
            self._changed[id(window)] = window
        self._watermark = max(self._watermark, at)

    def due(self, now: float) -> list[UsageWindowed]:
        """New versions of what has changed, and of what has been closed since; forgets what is old."""
        passed = max(self._watermark, min(now, self._watermark + KEPT_S)) - LATENESS_S
        for window in self._windows.values():
            if not window.closed and window.start + window.window_s <= passed:
                window.closed = True
                self._changed[id(window)] = window
        published = [window.published(self._tenant) for window in self._changed.values()]
        self._changed = {}
        oldest = self._watermark - KEPT_S - max(WINDOWS_S)
        for key in [key for key, window in self._windows.items() if window.start < oldest]:
            del self._windows[key]
        return published

    def next_end(self) -> float | None:
        """When the next window can be closed by the clock."""
        ends = [window.start + window.window_s for window in self._windows.values() if not window.closed]
        return min(ends) + LATENESS_S if ends else None

    @property
    def snapshot(self) -> _Snapshot:
        """As the recovery state holds it."""
        rows = [
            (
                *(window.window_s, window.start, window.model, window.calls, window.prompt_tokens),
                *(window.completion_tokens, window.estimated_calls, window.version, window.closed),
            )
            for window in self._windows.values()
        ]
        return SNAPSHOT_VERSION, self._watermark, rows

    @classmethod
    def restored(cls, tenant: str, snapshot: _Snapshot) -> "TenantWindows":
        """From a snapshot. Raises Fatal if it is another release's."""
        version, watermark, rows = snapshot
        if version != SNAPSHOT_VERSION:
            raise Fatal(f"usage: snapshot version {version}, not {SNAPSHOT_VERSION}; run the release that wrote it")
        windows = cls(tenant)
        windows._watermark = watermark
        windows._windows = {(row[0], row[1], row[2]): Window(*row[:7], closed=row[8]) for row in rows}
        return windows


class _Tenant(StatefulBatchLogic[Envelope[TokensUsed], UsageWindowed | DeadLetter, tuple[str, _Snapshot] | None]):
    def __init__(self, step: str, clock: Callable[[], datetime], resume: tuple[str, _Snapshot] | None) -> None:
        self._step = step
        self._clock = clock
        self._tenant = "" if resume is None else resume[0]  # bytewax does not tell a logic its key
        self._windows = None if resume is None else TenantWindows.restored(*resume)

    def on_batch(self, values: list[Envelope[TokensUsed]]) -> tuple[list[UsageWindowed | DeadLetter], bool]:
        emitted: list[UsageWindowed | DeadLetter] = []
        for envelope in values:
            used = envelope.body
            if self._windows is None:
                self._tenant, self._windows = used.tenant, TenantWindows(used.tenant)
            try:
                self._windows.add(used)
            except Refused as error:
                emitted.append(
                    bury(envelope.job, envelope.record, error, step=self._step, received_at=envelope.received_at)
                )
        return [*emitted, *self._due()], False

    def on_notify(self) -> tuple[list[UsageWindowed | DeadLetter], bool]:
        return list(self._due()), False

    def _due(self) -> Iterator[UsageWindowed]:
        if self._windows is not None:
            yield from self._windows.due(self._clock().timestamp())

    def notify_at(self) -> datetime | None:
        end = None if self._windows is None else self._windows.next_end()
        return None if end is None else at_unix(end + 0.001)

    def snapshot(self) -> tuple[str, _Snapshot] | None:
        return None if self._windows is None else (self._tenant, self._windows.snapshot)


@operator
def usage_windows(
    step_id: str,
    up: KeyedStream[Envelope[TokensUsed]],
    runtime: Runtime,
    clock: Callable[[], datetime] = utc_now,
) -> KeyedStream[DeadLetter]:
    """Write every window's versions to usage.windows; what comes out are the dead letters."""
    step = flow_step(step_id)

    def window(item: UsageWindowed | DeadLetter) -> OutgoingRecord | None:
        return outgoing(item, step=step) if isinstance(item, UsageWindowed) else None

    def letter(item: UsageWindowed | DeadLetter) -> DeadLetter | None:
        return item if isinstance(item, DeadLetter) else None

    tenants = op.map("tenant", up, lambda keyed: (keyed[1].body.tenant, keyed[1]))
    counted = op.stateful_batch("work", tenants, lambda resume: _Tenant(step, clock, resume))
    write("windows", op.filter_map_value("window", counted, window), runtime)
    return op.filter_map_value("letter", counted, letter)
