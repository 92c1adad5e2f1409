"""Running flows expose every metric of the table that is theirs, and the values agree with what became of the jobs."""

import json
import re
import threading
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Self

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cli.metrics_table import metrics_table
from connectors.kafka.record import outgoing
from schemas.reviews import ReviewDecided
from tests.chaos.conftest import port_of_now, scene_on
from tests.chaos.parts import DEAD_LETTERS, PARTITIONS, REQUESTS, ModelServer, Scene
from tests.headrace_process import Payload, RunningFlows
from tests.kafka.apache_kafka import ApacheKafka
from tests.kafka.client import values, wait_for

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]

FLOWS = ("ingest", "answer", "usage")
ELSEWHERE = ("headrace_gateway_", "headrace_callbacks_")  # a gateway's; those of `webhooks`
NOT_PROVOKED = {  # a crash, a replay, a lie of the provider, a decision or an answer that nobody waits for
    "headrace_ambiguous_claims_total",
    "headrace_usage_unreserved_total",
    "headrace_usage_overrun_total",
    "headrace_over_budget_total",
    "headrace_tool_answers_ignored_total",
}


class Scrape:
    """What `/metrics` said, once."""

    def __init__(self, port: int) -> None:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as response:
            families = list(text_string_to_metric_families(response.read().decode()))
        self._samples = [sample for family in families for sample in family.samples]
        self.families = {f"{each.name}_total" if each.type == "counter" else each.name for each in families}
        self.with_samples = {
            f"{each.name}_total" if each.type == "counter" else each.name for each in families if each.samples
        }

    def all(self, name: str, **labels: str) -> list[float]:
        """Values of a series by some of its labels."""
        name = f"headrace_{name}"
        return [each.value for each in self._samples if each.name == name and labels.items() <= each.labels.items()]

    def sum(self, name: str, **labels: str) -> float:
        return sum(self.all(name, **labels))


class Probe:
    """Asks a process whether it is ready, from before it has a port until it says so."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.said: list[tuple[int, str]] = []
        self._thread = threading.Thread(target=self._ask, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join(60)

    def _ask(self) -> None:
        wait_for("ready", lambda: self._once() == 200, 120)

    def _once(self) -> int:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/readyz", timeout=10) as response:
                self.said.append((response.status, response.read().decode()))
        except urllib.error.HTTPError as error:
            with error:
                self.said.append((error.code, error.read().decode()))
        except OSError:
            return 0
        return self.said[-1][0]


@dataclass(frozen=True)
class Aftermath:
    """What flows said, and what became of the jobs that they were given."""

    metrics: Scrape  # once all was at rest
    readiness: list[tuple[int, str]]  # from the start until it was ready
    tenant: str
    calls: int  # that the model server was asked
    tokens: tuple[int, int]  # of the results: prompt, completion


@pytest.fixture(scope="module")
def aftermath(kafka: ApacheKafka, tmp_path_factory: pytest.TempPathFactory) -> Aftermath:
    """A document, and four requests: answered, answered at the second attempt, refused, approved by a person."""
    scene, port = scene_on(kafka, tmp_path_factory.mktemp("metrics")), port_of_now()
    variables = {
        "HEADRACE_KAFKA_BOOTSTRAP": scene.bootstrap,
        "HEADRACE_DATA_DIR": str(scene.directory / "data"),
        "HEADRACE_GROUP_PREFIX": scene.group_prefix(),
        "HEADRACE_LLM_MODEL": "test",
        "HEADRACE_METRICS_PORT": str(port),
        "HEADRACE_PRICES": '{"*": ["1000", "2000"]}',
        "HEADRACE_GUARD_DEPTH": "3",
        "HEADRACE_EPOCH_S": "0.3",
    }
    with (
        ModelServer(scene.directory / "calls") as llm,
        Probe(port) as probe,
        RunningFlows(*FLOWS, log=scene.directory / "log", HEADRACE_LLM_URL=llm.url, **variables) as flows,
    ):
        give_work(scene, llm, port)
        wait_for("no lag", lambda: at_rest(Scrape(port)))
        metrics = Scrape(port)
        assert flows.terminate() == 0, flows.log.read_text()
    used = [json.loads(each)["usage"] for answers in scene.results().values() for each in answers]
    read, written = (sum(each[name] for each in used) for name in ("prompt_tokens", "completion_tokens"))
    calls = sum(len(each) for each in llm.calls().values())
    return Aftermath(metrics, probe.said, scene.prefix, calls, (read, written))


def give_work(scene: Scene, llm: ModelServer, port: int) -> None:
    tenant = scene.prefix
    scene.client.send("documents.uploaded", {"document_id": "d", "job_id": f"{tenant}-d", "text": "The race."})
    ask(scene, "ok", "What is it?")
    wait_for("the first answer", scene.results)
    llm.put("plan", failures_before_success=1)
    ask(scene, "retried", "What else?")
    wait_for("the second answer", lambda: len(scene.results()) == 2)
    llm.put("plan", failures_before_success=0)
    ask(scene, "refused", "FAULT:400")
    ask(scene, "review", "Deeper?", depth=3, parent_job_id=f"{tenant}-parent", root_job_id=f"{tenant}-root")
    (asked,) = wait_for("the review", lambda: values(scene.bootstrap, "reviews.requested"))
    wait_for("the dead letter", lambda: values(scene.bootstrap, DEAD_LETTERS))
    wait_for("the open review", lambda: Scrape(port).sum("reviews_open") == 1)
    approve(scene, json.loads(asked))
    wait_for("the third answer", lambda: len(scene.results()) == 3)
    wait_for("the document", lambda: values(scene.bootstrap, "documents.indexed"))


def ask(scene: Scene, name: str, prompt: str, **fields: object) -> None:
    job_id = f"{scene.prefix}-{name}"
    request: Payload = {"job_id": job_id, "tenant": scene.prefix, "kind": "generate", "prompt": prompt}
    scene.client.send(REQUESTS, request | {"max_tokens": 50} | fields, key=job_id)


def approve(scene: Scene, review: Payload) -> None:
    named = {name: review[name] for name in ("job_id", "tenant", "review_id", "root_job_id")}
    decision = ReviewDecided.model_validate(named | {"decision": "approve"})
    record = outgoing(decision, step="test")
    scene.client.send(record.topic, record.value, key=record.key.decode())


def at_rest(found: Scrape) -> bool:
    """Everything was taken up, and nothing is on its way."""
    busy = found.sum("offload_in_flight") + found.sum("offload_waiting")
    told = len(found.all("consumer_lag_records", flow="answer", topic=REQUESTS))  # a busy broker's answer may be late
    return told == PARTITIONS and found.sum("consumer_lag_records") == busy == 0


def test_every_metric_of_the_table_that_is_a_flows_is_exposed(aftermath: Aftermath) -> None:
    table = set(re.findall(r"^\| `(headrace_\w+)`", metrics_table(), re.MULTILINE))
    named = {name for name in table if not name.startswith(ELSEWHERE)}
    assert named <= aftermath.metrics.families
    assert named - aftermath.metrics.with_samples <= NOT_PROVOKED


def test_the_process_was_not_ready_before_its_flows_had_closed_an_epoch(aftermath: Aftermath) -> None:
    codes = [status for status, _ in aftermath.readiness]
    assert codes == [503] * (len(codes) - 1) + [200]
    assert aftermath.readiness[0][1].startswith("ingest: no epoch is closed yet")


def test_attempts_calls_and_states_agree_with_the_model_servers_record(aftermath: Aftermath) -> None:
    found, step = aftermath.metrics, "answer.infer"
    assert aftermath.calls == 5
    ends = {end: found.sum("attempts_total", step=step, outcome=end) for end in ("ok", "retryable", "poison")}
    assert ends == {"ok": 3, "retryable": 1, "poison": 1}
    assert found.sum("call_seconds_count", step=step) == aftermath.calls
    assert found.sum("dispatched_to_stored_seconds_count", step=step) == 4
    assert found.sum("state_seconds_count", step=step, state="running") == aftermath.calls
    assert found.sum("state_seconds_count", step=step, state="retrying") == 1
    assert found.sum("state_seconds_count", step="answer.guard", state="held") == 1
    assert found.all("offload_capacity", step=step) == [256]


def test_tokens_and_cost_are_those_of_the_results(aftermath: Aftermath) -> None:
    found, (read, written) = aftermath.metrics, aftermath.tokens
    assert found.sum("tokens_total", tenant=aftermath.tenant, direction="in") == read
    assert found.sum("tokens_total", tenant=aftermath.tenant, direction="out") == written
    assert found.sum("cost_total", tenant=aftermath.tenant) == pytest.approx(read * 1e-3 + written * 2e-3)


def test_records_dead_letters_and_reviews_are_counted(aftermath: Aftermath) -> None:
    found = aftermath.metrics
    assert found.all("records_read_total", flow="answer", topic=REQUESTS) == [4]
    assert found.all("records_read_total", flow="ingest", topic="documents.uploaded") == [1]
    assert found.all("dead_letters_total", topic=REQUESTS, step="answer.infer", error_class="poison") == [1]
    assert found.all("guard_stopped_total", limit="depth") == [1]
    assert found.all("reviews_open") == [0]


def test_each_flow_tells_of_its_epochs_partitions_and_state(aftermath: Aftermath) -> None:
    found = aftermath.metrics
    for flow in FLOWS:
        assert found.all("flow_info", flow=flow) == [1]
        assert found.sum("epoch_seconds_count", flow=flow) > 1
        assert found.sum("snapshot_seconds_count", flow=flow) > 1
        assert found.sum("snapshot_bytes", flow=flow) > 1000
    assert found.all("consumer_lag_records", flow="answer", topic=REQUESTS) == [0] * PARTITIONS


def test_executors_tell_how_many_work_and_for_how_long(aftermath: Aftermath) -> None:
    found = aftermath.metrics
    assert found.all("executor_workers", executor="embedder") == [1]
    assert found.sum("executor_busy_seconds_total", executor="embedder") > 0
    assert found.sum("executor_workers", executor="parser") >= 1
    assert found.sum("executor_busy_seconds_total", executor="chunker") > 0
    assert found.sum("embed_batch_fill_ratio_count") >= 1
