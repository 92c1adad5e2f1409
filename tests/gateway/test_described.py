"""The gateway does what its OpenAPI description says, whatever is sent to it."""

import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from connectors.kafka.embedded import EmbeddedKafka
from gateway.keys import digest_of, new_key
from tests.gateway.running import RunningGateway, answer_to, create_all_topics, until

ROOT = new_key()
EXAMPLES = 5
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    with EmbeddedKafka() as kafka:
        create_all_topics(kafka)
        variables = {
            "HEADRACE_API_KEYS": json.dumps({digest_of(ROOT): "*"}),
            "HEADRACE_RATE_PER_S": "10000",
            "HEADRACE_RATE_BURST": "10000",
        }
        with RunningGateway(kafka.bootstrap, tmp_path_factory.mktemp("gateway"), key=ROOT, **variables) as gateway:
            gateway.ready().ask(job_id="known")
            answer_to(kafka.bootstrap, "known", tenant="default")
            until(lambda: bool(gateway.client.get("/v1/jobs/known").json()["ended"]))
            yield gateway


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_every_answer_is_as_described(gateway: RunningGateway, mode: GenerationMode) -> None:
    described = schemathesis.openapi.from_url(f"{gateway.url}/openapi.json", wait_for_schema=10)
    operations = [each.ok() for each in described.get_all_operations() if isinstance(each, Ok)]
    assert len(operations) >= 15
    for operation in operations:

        @given(case=operation.as_strategy(generation_mode=mode))
        @settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck), phases=(Phase.generate,))
        def conforms(case: schemathesis.Case[Any]) -> None:
            if "job_id" in case.path_parameters and len(str(case.path_parameters["job_id"])) % 4:
                case.path_parameters["job_id"] = "known"
            case.headers.pop("Prefer", None)  # nobody ends these jobs
            case.call_and_validate(headers={"Authorization": f"Bearer {ROOT}"}, checks=CHECKS, timeout=20)

        with suppress(Unsatisfiable):  # an operation without parameters cannot be used wrongly
            conforms()


def test_the_gateway_is_well_after_all_that(gateway: RunningGateway) -> None:
    assert gateway.client.get("/readyz").status_code == 200
    assert not [line for line in gateway.lines() if line["level"] == "error"]
    assert "Traceback" not in gateway.log.read_text()


def test_every_operation_says_what_it_is_and_what_it_answers(gateway: RunningGateway) -> None:
    described = gateway.client.get("/openapi.json").json()
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            assert operation["summary"], (method, path)
            assert operation["description"], (method, path)
            if path.startswith("/v1/"):
                assert {"401", "429"} <= set(operation["responses"]), (method, path)
