"""The projection on real brokers: killed, replaced, out of reach."""

import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient

from connectors.kafka.embedded import EmbeddedKafka
from connectors.kafka.producer import ReliableProducer
from connectors.kafka.record import outgoing
from connectors.kafka.topics import TopicSpec, create_topics
from gateway.hub import Hub
from gateway.projection import Projection
from gateway.read_model import JobRow, ReadModel
from schemas.event import Event
from schemas.jobs import JobState
from tests.gateway.records import result, status
from tests.kafka.apache_kafka import ApacheKafka
from tests.kafka.client import wait_for, write
from tests.kafka.conftest import kafka  # noqa: F401  # the fixture

STATES = (JobState.RUNNING, JobState.RETRYING, JobState.RUNNING, JobState.COMPLETED)


def publish(bootstrap: str, events: Iterable[Event]) -> None:
    """Return when all are acknowledged."""
    outbox = ReliableProducer(bootstrap, {}, delivery_timeout_s=30.0).outbox()
    for event in events:
        outbox.send(outgoing(event, step="test"))
    outbox.flush()


def story(job_id: str) -> list[Event]:
    """All that a job says."""
    return [*(status(job_id, state, step=f"answer.{number}") for number, state in enumerate(STATES)), result(job_id)]


@contextmanager
def projected(bootstrap: str, path: Path) -> Iterator[tuple[ReadModel, Projection]]:
    """A read model that is kept up to date."""
    with closing(ReadModel(path)) as read_model, closing(Projection(bootstrap, {}, read_model, Hub())) as projection:
        projection.start()
        yield read_model, projection


def everything(read_model: ReadModel) -> tuple[list[JobRow], list[object]]:
    """What can be asked about all jobs."""
    rows = read_model.jobs(limit=10_000).jobs
    return list(rows), [read_model.evidence(row.job_id) for row in rows]


def completed(read_model: ReadModel) -> int:
    return sum(row.state == "completed" and read_model.ended(row.job_id) for row in read_model.jobs(limit=10_000).jobs)


@pytest.fixture
def broker() -> Iterator[EmbeddedKafka]:
    with EmbeddedKafka() as embedded:
        yield embedded


def test_a_killed_gateway_goes_on_where_it_was(broker: EmbeddedKafka, tmp_path: Path) -> None:
    killed, fresh = tmp_path / "killed.sqlite", tmp_path / "fresh.sqlite"
    for wave in range(4):
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.gateway.projecting", broker.bootstrap, str(killed)], stdout=subprocess.PIPE
        )
        with process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"started\n"
            publish(broker.bootstrap, [event for number in range(200) for event in story(f"{wave}-{number}")])
            process.kill()
    with projected(broker.bootstrap, killed) as (resumed, _), projected(broker.bootstrap, fresh) as (rebuilt, _):
        wait_for("the killed one", lambda: completed(resumed) == 800)
        wait_for("the fresh one", lambda: completed(rebuilt) == 800)
        assert everything(resumed) == everything(rebuilt)
        assert resumed.positions() == rebuilt.positions()


def test_a_lost_file_is_made_anew(broker: EmbeddedKafka, tmp_path: Path) -> None:
    publish(broker.bootstrap, story("a"))
    with projected(broker.bootstrap, tmp_path / "x.sqlite") as (read_model, _):
        wait_for("the job", lambda: completed(read_model) == 1)
        before = everything(read_model)
    for file in tmp_path.iterdir():
        file.unlink()
    with projected(broker.bootstrap, tmp_path / "x.sqlite") as (read_model, projection):
        wait_for("the end of the topics", lambda: projection.caught_up and completed(read_model) == 1)
        assert everything(read_model) == before


def test_another_broker_is_read_from_its_beginning(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    with EmbeddedKafka() as first:
        publish(first.bootstrap, [*story("a"), *story("b")])
        with projected(first.bootstrap, path) as (read_model, _):
            wait_for("both jobs", lambda: completed(read_model) == 2)
    with EmbeddedKafka() as second:
        publish(second.bootstrap, story("c"))
        with projected(second.bootstrap, path) as (read_model, projection):
            wait_for("the new job", lambda: completed(read_model) == 1 and read_model.job("c") is not None)
            assert [row.job_id for row in read_model.jobs().jobs] == ["c"]
            assert projection.healthy


def test_it_starts_before_the_broker_knows_any_topic(broker: EmbeddedKafka, tmp_path: Path) -> None:
    with projected(broker.bootstrap, tmp_path / "x.sqlite") as (read_model, projection):
        wait_for("the end of nothing", lambda: projection.caught_up)
        publish(broker.bootstrap, story("a"))
        wait_for("the job", lambda: completed(read_model) == 1)


def test_it_starts_while_no_broker_answers(tmp_path: Path) -> None:
    with EmbeddedKafka() as gone:
        bootstrap = gone.bootstrap
    with projected(bootstrap, tmp_path / "x.sqlite") as (read_model, projection):
        assert not projection.caught_up
        assert projection.healthy
        assert read_model.jobs().jobs == ()


def test_what_is_no_event_is_counted_and_passed_over(broker: EmbeddedKafka, tmp_path: Path) -> None:
    write(broker.bootstrap, "jobs.status", [b"not JSON", b"{}", b'{"job_id": "x"}'], key=b"a")
    publish(broker.bootstrap, story("a"))
    with projected(broker.bootstrap, tmp_path / "x.sqlite") as (read_model, _):
        wait_for("the job", lambda: completed(read_model) == 1)
        assert read_model.skipped == 3


@pytest.fixture
def recreate(kafka: ApacheKafka) -> Callable[[str], None]:  # noqa: F811  # the fixture
    """Delete a topic and make it again, empty."""

    def delete_and_create(topic: str) -> None:
        admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
        admin.delete_topics([topic])[topic].result(30)
        wait_for("the deletion", lambda: topic not in admin.list_topics(timeout=10).topics)
        create_topics(kafka.bootstrap, [TopicSpec(topic, 2)])

    return delete_and_create


@pytest.mark.kafka
@pytest.mark.slow
def test_a_topic_that_was_made_again_is_read_anew(
    kafka: ApacheKafka,  # noqa: F811  # the fixture
    recreate: Callable[[str], None],
    tmp_path: Path,
) -> None:
    create_topics(kafka.bootstrap, [TopicSpec("jobs.status", 2), TopicSpec("results.completed", 2)])
    publish(kafka.bootstrap, [*story("a"), *story("b")])
    with projected(kafka.bootstrap, tmp_path / "x.sqlite") as (read_model, _):
        wait_for("both jobs", lambda: completed(read_model) == 2)
        recreate("jobs.status")
        publish(kafka.bootstrap, [event for number in range(20) for event in story(f"c{number}")])

        def only_the_result_is_left() -> bool:
            evidence = read_model.evidence("a")
            return evidence is not None and evidence.result is not None and not evidence.statuses

        wait_for("the old statuses to be forgotten", only_the_result_is_left)
        wait_for("the new jobs", lambda: completed(read_model) == 22)


@pytest.mark.kafka
@pytest.mark.slow
def test_an_outage_is_waited_out(kafka: ApacheKafka, tmp_path: Path) -> None:  # noqa: F811  # the fixture
    create_topics(kafka.bootstrap, [TopicSpec("jobs.status", 2), TopicSpec("results.completed", 2)])
    with projected(kafka.bootstrap, tmp_path / "x.sqlite") as (read_model, projection):
        publish(kafka.bootstrap, story("before"))
        wait_for("the first job", lambda: read_model.job("before") is not None)
        kafka.stop()
        assert read_model.job("before") is not None
        kafka.start()
        publish(kafka.bootstrap, story("after"))
        wait_for("the second job", lambda: read_model.job("after") is not None)
        assert projection.healthy
