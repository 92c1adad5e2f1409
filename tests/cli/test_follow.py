"""Following jobs from outside."""

import pytest

from cli import follow
from cli.follow import Follower
from connectors.kafka.embedded import EmbeddedKafka
from schemas.errors import HeadraceError
from schemas.requests import RequestSubmitted
from schemas.topics import CATALOGUE, dead_letter_topics


def test_a_broker_that_is_gone_ends_the_wait_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(follow, "LOOK_EVERY_S", 0.5)
    monkeypatch.setattr(follow, "ANSWER_S", 0.5)
    with EmbeddedKafka() as kafka:
        kafka.create_topics([topic.name for topic in (*CATALOGUE, *dead_letter_topics())])
        follower = Follower(kafka.bootstrap, {})
        kafka.__exit__(None, None, None)
        request = RequestSubmitted(job_id="j", prompt="Is anybody there?")
        monkeypatch.setattr(follower, "flush", lambda: None)  # it would wait for the broker first
        with pytest.raises(HeadraceError, match=r"broker at .* is out of reach; what became of 1 jobs"):
            list(follower.follow([request]))
    assert "rdkafka" not in capfd.readouterr().err
