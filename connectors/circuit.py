"""A circuit breaker per dependency: an outage becomes waiting, not failures.

Closed: calls pass. Open: nothing is called; who wants to waits. Half-open, after a cool-down: one call passes as a
probe, and its result closes the circuit or opens it for longer. (Michael Nygard, "Release It!", 2nd edition.)

It opens when nobody can be at fault but the dependency: a call that could not even begin (Unavailable), or failures of
several different items with no success between them. One item that fails again and again never opens it.
"""

import asyncio
import random
from collections import deque
from dataclasses import dataclass
from enum import IntEnum
from time import monotonic
from types import TracebackType
from typing import Self

import structlog
from prometheus_client import Gauge

from schemas.errors import Retryable, Unavailable

log = structlog.get_logger()

DOUBLINGS = 30  # of the cool-down: more mean nothing, and a thousand of them, in an outage of hours, are no float

STATE = Gauge(
    "headrace_circuit_state",
    "Of a dependency: 0 closed (it works), 1 half-open (probing), 2 open (out)",
    ["dependency"],
)


class CircuitState(IntEnum):
    """As the metric shows it."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


@dataclass(frozen=True)
class CircuitPolicy:
    """When to take a dependency for out, and for how long."""

    items: int = 5  # different items that failed in a row
    cooldown_s: float = 1.0  # before the first probe; doubled by each probe that fails
    cooldown_cap_s: float = 30.0  # how much later than the dependency the flow is back, at most
    retry_after_cap_s: float = 300.0  # a dependency that asks for more is asked again after this


class Permit:
    """Leave to make one call; tell what became of it, or nothing if no call was made."""

    def __init__(self, circuit: "Circuit", item: str) -> None:
        self._circuit = circuit
        self._item = item
        self._probe = False
        self._told = False

    async def wait(self) -> Self:
        """Wait until the call may be made; whoever did must `end` it."""
        self._probe = await self._circuit._enter()  # noqa: SLF001  # a part of the circuit
        return self

    def end(self) -> None:
        """No call will be made under this permit any more; may be repeated."""
        if self._probe and not self._told:
            self._told = True
            self._circuit._probe_unused()  # noqa: SLF001  # a part of the circuit

    async def __aenter__(self) -> Self:
        return await self.wait()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.end()

    def succeeded(self) -> None:
        """The dependency answered, if only to refuse this item."""
        self._told = True
        self._circuit._succeeded(probe=self._probe)  # noqa: SLF001  # a part of the circuit

    def failed(self, error: Retryable) -> bool:
        """The call failed; tells whether that counts against the item: not in an outage."""
        self._told = True
        return self._circuit._failed(self._item, error, probe=self._probe)  # noqa: SLF001  # a part of the circuit


class Circuit:
    """The breaker of one dependency. Use it from one event loop."""

    def __init__(self, dependency: str, policy: CircuitPolicy | None = None) -> None:
        self._dependency = dependency
        self._policy = policy or CircuitPolicy()
        self._state = CircuitState.CLOSED
        self._failing: set[str] = set()  # items that failed since the last success
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._probing = False
        self._failed_probes = 0
        self._opened_at = 0.0
        STATE.labels(dependency).set(self._state)

    @property
    def state(self) -> CircuitState:
        """Where it stands."""
        return self._state

    def permit(self, item: str) -> Permit:
        """Wait, on entering, until `item` may be tried."""
        return Permit(self, item)

    async def _enter(self) -> bool:
        """Wait for a turn; tells whether it is a probe."""
        while self._state is not CircuitState.CLOSED:
            if self._state is CircuitState.HALF_OPEN and not self._probing:
                self._probing = True
                return True
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._wake()  # it was this one's turn: pass it on
                raise
        return False

    def _wake(self) -> None:
        """Let those go on who may: all when closed, one as a probe."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                if self._state is not CircuitState.CLOSED:
                    return

    def _to(self, state: CircuitState) -> None:
        self._state = state
        STATE.labels(self._dependency).set(state)

    def _succeeded(self, *, probe: bool) -> None:
        self._failing.clear()
        if not probe:
            return
        self._probing = False
        self._failed_probes = 0
        self._to(CircuitState.CLOSED)
        log.info("circuit closed", dependency=self._dependency, open_s=round(monotonic() - self._opened_at, 1))
        self._wake()

    def _failed(self, item: str, error: Retryable, *, probe: bool) -> bool:
        if probe:
            self._probing = False
            self._failed_probes += 1
            self._open(error)
            return False
        if self._state is not CircuitState.CLOSED:
            return False
        self._failing.add(item)
        if isinstance(error, Unavailable) or len(self._failing) >= self._policy.items:
            self._opened_at = monotonic()
            self._open(error)
            return False
        return True

    def _open(self, error: Retryable) -> None:
        ceiling = min(self._policy.cooldown_s * 2 ** min(self._failed_probes, DOUBLINGS), self._policy.cooldown_cap_s)
        jittered = ceiling * random.uniform(0.5, 1.0)  # noqa: S311  # spreads load, protects no secret
        wait_s = max(jittered, min(error.retry_after_s or 0.0, self._policy.retry_after_cap_s))
        if self._failed_probes == 0:
            log.warning("circuit opened", dependency=self._dependency, error=str(error), probe_in_s=round(wait_s, 1))
        self._to(CircuitState.OPEN)
        asyncio.get_running_loop().call_later(wait_s, self._half_open)

    def _half_open(self) -> None:
        self._to(CircuitState.HALF_OPEN)
        self._wake()

    def _probe_unused(self) -> None:
        self._probing = False
        self._wake()


class Circuits:
    """The circuits of a process, one per dependency, made when they are first asked for."""

    def __init__(self, policy: CircuitPolicy | None = None) -> None:
        self._policy = policy
        self._circuits: dict[str, Circuit] = {}

    def of(self, dependency: str) -> Circuit:
        """The circuit of that name."""
        if dependency not in self._circuits:
            self._circuits[dependency] = Circuit(dependency, self._policy)
        return self._circuits[dependency]
