"""What operators ask and do while Kafka is out, and what OpenAPI says about it."""

import time
from pathlib import Path

from gateway.letters import LetterList
from gateway.operations import FlowList
from gateway.reviews import ReviewList, ReviewShown, ReviewWithPrompt
from gateway.usage import Usage
from tests.gateway.operated import ALL, gateway_on
from tests.gateway.test_letters import buried
from tests.gateway.test_reviews import stopped


def test_while_kafka_is_out_nothing_is_accepted_and_all_is_still_shown(tmp_path: Path) -> None:
    with gateway_on(tmp_path) as gateway:
        review, letter = stopped(gateway), buried(gateway)
        review_path, letter_path = f"/reviews/{review.review_id}", f"/dead-letters/{letter.event_id}"
        gateway.stop_kafka()
        gateway.eventually("it to be noticed", lambda: not gateway.publisher.reachable)

        began = time.monotonic()
        refused = [
            gateway.ask("POST", f"{review_path}/approve"),
            gateway.ask("POST", f"{letter_path}/redrive"),
            gateway.ask("GET", review_path, ALL, prompt=True),
            gateway.ask("GET", letter_path, ALL, message=True),
        ]
        shown = [gateway.ask("GET", path)[0] for path in ("/reviews", review_path, "/dead-letters", letter_path)]
        shown += [gateway.ask("GET", path)[0] for path in ("/usage", "/flows")]

        assert time.monotonic() - began < 20.0  # none of them waits until a broker answers, or does not
        assert {(status, problem["type"]) for status, problem in refused} == {(503, "/problems/unavailable")}
        assert set(shown) == {200}
        assert gateway.get(review_path)["standing"] == "open"


def test_the_examples_are_what_the_routes_answer() -> None:
    for model in (ReviewList, ReviewShown, ReviewWithPrompt, LetterList, Usage, FlowList):
        (example,) = model.model_json_schema()["examples"]
        shown = model.model_validate(example).model_dump(mode="json", exclude_unset=True)
        assert shown == example
