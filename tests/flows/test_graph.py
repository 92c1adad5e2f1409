"""The flow files as diagrams: nothing that a step emits is forgotten, and step ids, which name state, stay put."""

from collections.abc import Iterator, Sequence

import pytest
from bytewax.dataflow import Dataflow
from bytewax.visualize import RenderedOperator, to_mermaid, to_rendered

from cli.wiring import FLOWS, sketch

STATEFUL_STEPS = {
    "ingest": ["unchanged.last", "unchanged", "extract", "chunk", "embed", "index"],
    "extract": ["extract", "check_in"],
    "embed": ["check_out", "chunk", "embed", "check_in"],
    "index": ["check_out", "index"],
    "answer": ["dedup.recent", "dedup.kept", "repeat", "resume", "guard", "retrieve", "budget", "infer"],
    "search": ["search"],
    "usage": ["once.dedup.recent", "once.dedup.kept", "windows"],
    "notifications": [],
    "webhooks": ["once.dedup.recent", "once.dedup.kept", "hold", "deliver"],
}
"""A renamed step would leave its pending work behind in the recovery state: change one only with a drained flow."""


@pytest.fixture(params=FLOWS)
def flow(request: pytest.FixtureRequest) -> Dataflow:
    return sketch(str(request.param))


def steps_of(steps: Sequence[RenderedOperator]) -> Iterator[RenderedOperator]:
    for each in steps:
        yield each
        yield from steps_of(each.substeps)


def test_every_output_port_of_every_operator_is_consumed(flow: Dataflow) -> None:
    rendered = to_rendered(flow)
    consumed = {
        source for step in steps_of(rendered.substeps) for port in step.inp_ports for source in port.from_port_ids
    }
    for step in rendered.substeps:
        for port in step.out_ports:
            assert port.port_id in consumed, f"nothing consumes {port.port_id}"


def test_the_steps_that_keep_state_keep_their_names(flow: Dataflow) -> None:
    rendered = to_rendered(flow)
    stateful = [step.step_id for step in steps_of(rendered.substeps) if step.op_type == "stateful_batch"]
    assert [step_id.removesuffix(".work").removesuffix(".work") for step_id in stateful] == [
        f"{flow.flow_id}.{name}" for name in STATEFUL_STEPS[flow.flow_id]
    ]


def test_the_graph_shows_the_operators_of_the_flow_file(flow: Dataflow) -> None:
    mermaid = to_mermaid(flow)
    assert mermaid.startswith("flowchart TD")
    for name in STATEFUL_STEPS[flow.flow_id]:
        assert f"{flow.flow_id}.{name.split('.')[0]}" in mermaid
