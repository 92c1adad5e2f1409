"""Several `headrace run` processes of one flow, a cluster that shares state or slices that share nothing, under load.

Used by tests and by `headrace bench scale`, which both judge the same: nothing lost, nothing paid twice, no budget
overspent.
"""

import json
import signal
import socket
import threading
import time
from collections.abc import Container, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from typing import Self
from uuid import uuid4

from connectors.kafka.record import outgoing
from connectors.slices import Slice
from schemas.budgets import BudgetChanged, WindowLimit
from tests.chaos.oracle import Kill
from tests.chaos.parts import Flows, ModelServer, Scene
from tests.headrace_process import Payload
from tests.kafka.client import values

NO_INDEX = "http://127.0.0.1:9"  # requests of kind `generate` ask no index, and a cluster may not open the embedded one
WINDOW_S, LIMIT = 2, 6000  # tokens: some six of the calls below
TENANTS = 4


def free_addresses(count: int) -> list[str]:
    """Of this machine; free a moment ago."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [f"127.0.0.1:{probe.getsockname()[1]}" for probe in probes]


def shared(scene: Scene, llm: ModelServer) -> dict[str, str]:
    """What all processes of a flow have in common: state, ledger, consumer groups."""
    return {
        "HEADRACE_KAFKA_BOOTSTRAP": scene.bootstrap,
        "HEADRACE_DATA_DIR": str(scene.directory / "data"),
        "HEADRACE_LEDGER": str(scene.directory / "data" / "ledger.sqlite"),
        "HEADRACE_GROUP_PREFIX": scene.group_prefix(),
        "HEADRACE_LLM_URL": llm.url,
        "HEADRACE_LLM_MODEL": "test",
        "HEADRACE_INFER_CAPACITY": "8",
        "HEADRACE_QDRANT_URL": NO_INDEX,
    }


def volume(variables: dict[str, str], number: int) -> dict[str, str]:
    """A recovery directory of one's own, as each pod has one."""
    return {"HEADRACE_RECOVERY_DIR": f"{variables['HEADRACE_DATA_DIR']}/volume-{number}"}


@contextmanager
def cluster(size: int, variables: dict[str, str], *, own_volumes: bool = False) -> Iterator[Sequence[Flows]]:
    """`size` processes that run `answer` together, once all are built; one alone needs no addresses.

    own_volumes: each has a recovery directory of its own; else they share one.
    """
    addresses = free_addresses(size)
    with ExitStack() as stack:
        members = []
        for process in range(size):
            of_cluster = {"HEADRACE_CLUSTER": ",".join(addresses), "HEADRACE_CLUSTER_PROCESS": str(process)}
            own = volume(variables, process) if own_volumes else {}
            members.append(stack.enter_context(Flows("answer", **variables, **own, **(of_cluster if size > 1 else {}))))
        for each in members:
            each.running()
        yield members


def slice_of(number: int, count: int, variables: dict[str, str]) -> Flows:
    """One slice of `answer`, to be entered."""
    own = {"HEADRACE_SLICES": str(count), "HEADRACE_SLICE": str(number)}
    return Flows("answer", **variables, **volume(variables, number), **own)


def kill(victim: Flows, members: Sequence[Flows]) -> Kill:
    """Kill one process, by SIGKILL, and wait until all that end with it have ended: their calls are cut off."""
    at = time.time()
    victim.send(signal.SIGKILL)
    for each in members:
        each.ended()
    return Kill(f"one of {len(members)}", at, time.time())


def _tenants() -> list[str]:
    """New ones, half of them in either slice of two."""
    found: list[str] = []
    while len(found) < TENANTS:
        tenant = f"t-{uuid4().hex[:6]}"
        if Slice(len(found) % 2, 2, "tenant").owns_tenant(tenant):
            found.append(tenant)
    return found


class Load:
    """Requests of several tenants with budgets, one after the other, while entered or until it is told to end."""

    def __init__(self, scene: Scene) -> None:
        self.jobs: list[str] = []
        self.tenants = _tenants()
        self._scene = scene
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._submit)
        window = WindowLimit(seconds=WINDOW_S, tokens=LIMIT)
        for tenant in self.tenants:
            budget = {"tenant": tenant, "windows": (window,), "policy": "defer"}
            record = outgoing(BudgetChanged.model_validate(budget), step="test")
            scene.client.send(record.topic, record.value, key=record.key.decode())

    def _submit(self) -> None:
        while not self._end.wait(0.05):
            job_id = f"{self._scene.prefix}-{len(self.jobs)}"
            tenant = self.tenants[len(self.jobs) % TENANTS]
            request: Payload = {"job_id": job_id, "tenant": tenant, "kind": "generate", "prompt": "What?"}
            self._scene.client.send("requests.submitted", request | {"max_tokens": 900}, key=job_id)
            self.jobs.append(job_id)

    def end(self) -> None:
        """Submit no more."""
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()

    def tenants_of_slices(self, count: int) -> list[set[str]]:
        """Whose are whose, of so many slices of `answer`."""
        slices = [Slice(index, count, "tenant") for index in range(count)]
        return [{tenant for tenant in self.tenants if each.owns_tenant(tenant)} for each in slices]

    def jobs_of(self, tenants: set[str]) -> list[str]:
        """Those submitted so far for these tenants."""
        return [job_id for n, job_id in enumerate(list(self.jobs)) if self.tenants[n % TENANTS] in tenants]

    def jobs_left(self, answered: Container[str]) -> int:
        """Of those submitted so far, how many are not answered."""
        return sum(job_id not in answered for job_id in list(self.jobs))

    def most_spent(self) -> int:
        """Tokens that a tenant has used in one window, at most; each call is counted once."""
        spent: dict[tuple[str, int], dict[str, int]] = {}
        for value in values(self._scene.bootstrap, "usage.tokens"):
            used = json.loads(value)
            window = int(datetime.fromisoformat(used["used_at"]).timestamp()) // WINDOW_S
            tokens = used["prompt_tokens"] + used["completion_tokens"]
            spent.setdefault((used["tenant"], window), {})[used["admission_id"]] = tokens
        return max((sum(calls.values()) for (tenant, _), calls in spent.items() if tenant in self.tenants), default=0)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


def called_again(llm: ModelServer, kills: Sequence[Kill]) -> set[str]:
    """Jobs that were called for once more though no kill came into the call before."""
    spent = {job_id: [call for call in calls if call.spent] for job_id, calls in llm.calls().items()}
    return {job_id for job_id, calls in spent.items() if not all(call.open_at(kills) for call in calls[:-1])}
