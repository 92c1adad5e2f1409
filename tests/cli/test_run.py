"""How a process of flows ends when one of them fails."""

import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from bytewax.dataflow import Dataflow
from bytewax.errors import BytewaxRuntimeError
from bytewax.testing import run_main

from cli import run
from connectors.kafka.embedded import EmbeddedKafka
from connectors.kafka.stop import Stop
from connectors.settings import Settings
from operators.dead_letter import dead_letter
from operators.decode import consume
from operators.envelope import Envelope
from operators.offload import OffloadPolicy, offload
from operators.produce import produce
from operators.runtime import Runtime
from schemas.documents import DocumentIndexed, DocumentUploaded
from schemas.errors import Fatal
from tests.chaos.parts import ModelServer
from tests.gateway.running import create_all_topics
from tests.headrace_process import PlainClient, RunningFlows, headrace
from tests.memory_topics import MemoryTopics, record


class PanicException(BaseException):
    """As pyo3's own, which cannot be imported."""


def panics() -> None:
    raise PanicException("unable to receive panic error from channel: Empty")


def says_nothing() -> None:
    pass


async def no_model(_envelope: Envelope[DocumentUploaded]) -> DocumentIndexed:
    raise Fatal("the collection is served by another model")


def flow_on(runtime: Runtime) -> Dataflow:
    flow = Dataflow("ingest")
    uploaded = consume("uploaded", flow, DocumentUploaded, runtime)
    worked = offload("work", uploaded.oks, no_model, body=DocumentUploaded, policy=OffloadPolicy(), runtime=runtime)
    produce("indexed", worked.oks, DocumentIndexed, runtime)
    dead_letter("dlq", uploaded.errs, worked.errs, runtime=runtime)
    return flow


@pytest.fixture
def fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Callable[[], None], int], Exception]:
    """What run_flows raises after so many uploads, if Bytewax does as told with what the flow has raised."""

    def failure(what_bytewax_does: Callable[[], None], uploads: int) -> Exception:
        def cluster_main(flow: Dataflow, *_arguments: object, **_settings: object) -> None:
            try:
                run_main(flow)
            except BytewaxRuntimeError:
                assert uploads
            what_bytewax_does()

        topics = MemoryTopics([record(DocumentUploaded(job_id="j", document_id="d", uri="file:///x"))] * uploads)
        monkeypatch.setattr(run, "cluster_main", cluster_main)
        monkeypatch.setattr(run, "build", lambda _name, runtime, *_: flow_on(replace(runtime, topics=topics)))
        monkeypatch.setattr(run, "settle_memory", lambda: None)
        monkeypatch.setattr(signal, "signal", lambda *_: None)  # pytest's own stay
        with EmbeddedKafka() as broker:
            broker.create_topics(["cancellations.requested"])
            settings = Settings(kafka_bootstrap=broker.bootstrap, data_dir=tmp_path)
            with pytest.raises(Exception) as raised:  # noqa: PT011  # the tests look at it
                run.run_flows(("ingest",), settings, Stop())
        return raised.value

    return failure


@pytest.mark.parametrize("what_bytewax_does", [panics, says_nothing])
def test_what_stopped_a_flow_is_said_whatever_bytewax_makes_of_it(
    fails: Callable[[Callable[[], None], int], Exception], what_bytewax_does: Callable[[], None]
) -> None:
    failure = fails(what_bytewax_does, 1)
    assert isinstance(failure, Fatal)
    assert "another model" in str(failure)


def test_a_panic_of_bytewax_itself_is_a_failure(fails: Callable[[Callable[[], None], int], Exception]) -> None:
    assert "unable to receive panic error" in str(fails(panics, 0))


def test_answer_loads_its_embedding_model_when_something_is_to_be_retrieved(tmp_path: Path) -> None:
    with EmbeddedKafka() as broker, ModelServer(tmp_path / "calls") as llm:
        create_all_topics(broker)
        client = PlainClient(broker.bootstrap)

        def ask(job_id: str, kind: str) -> None:
            client.send("requests.submitted", {"job_id": job_id, "kind": kind, "prompt": "How often?"})
            client.read_until("results.completed", lambda found: any(each["job_id"] == job_id for each in found))

        variables = {
            "HEADRACE_KAFKA_BOOTSTRAP": broker.bootstrap,
            "HEADRACE_DATA_DIR": str(tmp_path / "data"),
            "HEADRACE_LLM_URL": llm.url,
            "HEADRACE_LLM_MODEL": "test",
        }
        with RunningFlows("answer", log=tmp_path / "log", **variables) as flows:
            mapped = Path(f"/proc/{flows.process.pid}/maps")
            ask("generated", "generate")
            assert "libtorch" not in mapped.read_text()
            ask("answered", "answer")
            assert "libtorch" in mapped.read_text()
            assert flows.terminate() == 0


def test_an_embedding_model_that_is_not_there_ends_answer_at_its_start(tmp_path: Path) -> None:
    with EmbeddedKafka() as broker:
        variables = {
            "HEADRACE_KAFKA_BOOTSTRAP": broker.bootstrap,
            "HEADRACE_DATA_DIR": str(tmp_path),
            "HEADRACE_LLM_URL": "http://127.0.0.1:9/v1",
            "HEADRACE_LLM_MODEL": "test",
            "HEADRACE_EMBED_MODEL": "/no/such/model",
        }
        ended = headrace("run", "answer", **variables)
    assert ended.returncode == 1
    (line,) = (each for each in ended.stderr.splitlines() if each.startswith("headrace:"))
    assert "HEADRACE_EMBED_MODEL=/no/such/model" in line
