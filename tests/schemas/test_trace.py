"""W3C Trace Context: https://www.w3.org/TR/trace-context/."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.trace import STATE_MAX_CHARS, Trace, parse, root_of, trace_of

ZERO_ID, ZERO_SPAN = "0" * 32, "0" * 16
TRACE_ID, SPAN_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"

hexadecimal = st.text("0123456789abcdef", min_size=1)
trace_ids = st.text("0123456789abcdef", min_size=32, max_size=32).filter(lambda text: text != ZERO_ID)
span_ids = st.text("0123456789abcdef", min_size=16, max_size=16).filter(lambda text: text != ZERO_SPAN)
traces = st.builds(Trace, trace_ids, span_ids, st.integers(0, 3), st.none())
versions = st.integers(1, 254).map("{:02x}".format)


@given(traces)
def test_what_is_written_is_read_back(trace: Trace) -> None:
    assert parse(trace.traceparent) == trace


@given(trace_ids, span_ids, st.integers(0, 255))
def test_flags_that_nobody_knows_are_not_passed_on(trace_id: str, span_id: str, flags: int) -> None:
    read = parse(f"00-{trace_id}-{span_id}-{flags:02x}")
    assert read is not None
    assert read.sampled == bool(flags & 1)
    assert read.traceparent.endswith(f"-{flags & 3:02x}")


@given(versions, traces, st.text(string.printable, max_size=100))
def test_a_later_version_is_read_as_far_as_it_is_known_and_written_as_ours(
    version: str, trace: Trace, more: str
) -> None:
    known = f"{version}{trace.traceparent[2:]}"
    assert parse(known) == trace
    read = parse(f"{known}-{more}")
    assert read is None or read == trace  # a line break is in no header
    assert parse(f"{known}.{more}") is None


@given(st.text(max_size=300) | st.text("0123456789abcdef-", min_size=53, max_size=57))
def test_whatever_is_read_is_well_formed(text: str) -> None:
    trace = parse(text)
    if trace is not None:
        assert parse(trace.traceparent) == trace
        assert (text[3:35], text[36:52]) == (trace.trace_id, trace.span_id)


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        f"00-{ZERO_ID}-{SPAN_ID}-01",
        f"00-{TRACE_ID}-{ZERO_SPAN}-01",
        f"ff-{TRACE_ID}-{SPAN_ID}-01",
        f"00-{TRACE_ID}-{SPAN_ID}-01-more",
        f"00-{TRACE_ID}-{SPAN_ID}-01-",
        f"00-{TRACE_ID}-{SPAN_ID}-01\n",
        f"00-{TRACE_ID.upper()}-{SPAN_ID}-01",
        f"00-{TRACE_ID}-{SPAN_ID}",
        f"00-{TRACE_ID}-{SPAN_ID}-1",
        f"00-{TRACE_ID[1:]}-{SPAN_ID}-01",
        f" 00-{TRACE_ID}-{SPAN_ID}-01",
        f"01-{TRACE_ID}-{SPAN_ID}-01-{'x' * 1_000_000}",
        "00-" + "\N{FULLWIDTH DIGIT ONE}" * 32 + f"-{SPAN_ID}-01",
    ],
)
def test_what_is_no_traceparent_is_none(wrong: str) -> None:
    assert parse(wrong) is None


def test_a_small_state_goes_along_and_a_large_or_broken_one_does_not() -> None:
    parent = f"00-{TRACE_ID}-{SPAN_ID}-01"

    def passed_on(state: bytes) -> bytes | None:
        headers = (("tracestate", state), ("traceparent", parent.encode()))
        return dict(trace_of(headers, "j").headers).get("tracestate")

    assert passed_on(b"rojo=00f067aa0ba902b7,congo=t61rcWkgMzE") == b"rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"
    assert passed_on(b"a" * STATE_MAX_CHARS) == b"a" * STATE_MAX_CHARS
    assert passed_on(b"a" * (STATE_MAX_CHARS + 1)) is None
    assert passed_on(b"a=\xff") is None
    assert passed_on(b"a=1\r\nX-Injected: 1") is None


def test_the_last_header_counts() -> None:
    older, newer = Trace("a" * 32, "b" * 16), Trace("c" * 32, "d" * 16)
    assert trace_of((*older.headers, *newer.headers), "j") == newer


@given(st.text())
def test_a_message_without_a_trace_belongs_to_that_of_its_job(job_id: str) -> None:
    assert trace_of((), job_id) == trace_of((("traceparent", b"nonsense"),), job_id) == root_of(job_id)
    assert parse(root_of(job_id).traceparent) == root_of(job_id)
