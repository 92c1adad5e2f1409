"""`headrace jobs`: one job's story, told from the topics alone; and its end, if nobody wants it any more."""

import json
from collections.abc import Iterator
from datetime import UTC

import click

from cli.configuration import bootstrap_of, settings_for
from cli.logs import configure_logs
from cli.text import ShortText, cut, printable
from connectors.kafka.job_history import read_history
from connectors.kafka.producer import ReliableProducer
from connectors.kafka.record import outgoing
from connectors.settings import Settings
from schemas.cancellations import REASON_MAX_CHARS, CancelRequested
from schemas.errors import Fatal
from schemas.event import utc_now
from schemas.explanation import Evidence, Explanation, explain
from schemas.results import ResultCompleted

ANSWER_CHARS = 300


@click.group()
def jobs() -> None:
    """What became of a job; and the end of one."""


@jobs.command()
@click.argument("job_id", metavar="ID")
@click.option("--bootstrap", metavar="HOST:PORT", help="Brokers; default: HEADRACE_KAFKA_BOOTSTRAP.")
@click.option("--full", is_flag=True, help="Show the whole answer.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object; the answer's text only with --full.")
def show(job_id: str, bootstrap: str | None, *, full: bool, as_json: bool) -> None:
    """Tell the story of job ID: where it is, what succeeded, what can be retried, and who has to know.

    Reads the topics as they are now; prompts and documents are not shown.
    """
    settings = settings_for(kafka_bootstrap=bootstrap)
    configure_logs(settings.log_level)
    evidence = _known(settings, job_id)
    explanation = explain(evidence, now=utc_now())
    if as_json:
        click.echo(json.dumps(_fields(explanation, evidence, full=full)))
        return
    for line in _told(explanation, evidence, full=full):
        click.echo(line)


@jobs.command()
@click.argument("job_id", metavar="ID")
@click.option("--reason", type=ShortText(REASON_MAX_CHARS), help="Why; becomes part of the job's story.")
@click.option("--bootstrap", metavar="HOST:PORT", help="Brokers; default: HEADRACE_KAFKA_BOOTSTRAP.")
def cancel(job_id: str, reason: str | None, bootstrap: str | None) -> None:
    """End job ID without a result, wherever it is. What is submitted again under its id ends as well."""
    settings = settings_for(kafka_bootstrap=bootstrap)
    configure_logs(settings.log_level)
    explanation = explain(_known(settings, job_id), now=utc_now())
    if explanation.standing.ended:
        raise Fatal(f"job {printable(job_id)} has ended already: it is {explanation.standing}")
    outbox = ReliableProducer(bootstrap_of(settings), settings.kafka_config()).outbox()
    outbox.send(outgoing(CancelRequested(job_id=job_id, tenant=explanation.tenant, reason=reason), step="jobs"))
    outbox.flush()
    click.echo(f"job {printable(job_id)} is to be cancelled")


def _known(settings: Settings, job_id: str) -> Evidence:
    """Everything about a job. Raises Fatal if there is nothing."""
    brokers = bootstrap_of(settings)
    evidence = read_history(brokers, settings.kafka_config(), job_id)
    if not evidence.known:
        raise Fatal(f"no topic at {brokers} knows a job {printable(job_id)!r}; statuses are kept for 30 days")
    return evidence


def _told(explanation: Explanation, evidence: Evidence, *, full: bool) -> Iterator[str]:
    yield f"Job {printable(explanation.job_id)}, a {explanation.kind} of tenant {explanation.tenant}"
    yield ""
    least = max(len(each.what) for each in explanation.timeline)
    places = max(len(each.where) for each in explanation.timeline)
    for each in explanation.timeline:
        when = f"{each.at.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}"[:-3]
        line = f"  {when}  {each.what:<{least}}  {printable(each.where):<{places}}  {printable(each.detail)}"
        yield line.rstrip()
    yield ""
    yield from _answers("Where is it?", [explanation.where])
    yield from _answers("What has succeeded?", explanation.succeeded)
    yield from _answers("What can be retried safely?", [f"{each.command}  ({each.why})" for each in explanation.retry])
    yield from _answers("What needs escalation?", explanation.escalate)
    yield from _answers("What should the user see?", [explanation.user_sees])
    if evidence.result is not None:
        text = printable(evidence.result.text)
        yield "Answer"
        yield f"  {text if full else cut(text, ANSWER_CHARS)}"


def _answers(question: str, lines: tuple[str, ...] | list[str]) -> Iterator[str]:
    yield question
    yield from (f"  {printable(line)}" for line in lines or ["nothing"])
    yield ""


def _fields(explanation: Explanation, evidence: Evidence, *, full: bool) -> dict[str, object]:
    return {
        "job_id": explanation.job_id,
        "tenant": explanation.tenant,
        "kind": explanation.kind,
        "standing": explanation.standing,
        "where": explanation.where,
        "succeeded": explanation.succeeded,
        "retry": [
            {"dead_letter_id": each.dead_letter_id, "command": each.command, "why": each.why}
            for each in explanation.retry
        ],
        "escalate": explanation.escalate,
        "user_sees": explanation.user_sees,
        "timeline": [
            {"at": each.at.isoformat(), "what": each.what, "where": each.where, "detail": each.detail}
            for each in explanation.timeline
        ],
        "result": None if evidence.result is None else _result(evidence.result, full=full),
    }


def _result(result: ResultCompleted, *, full: bool) -> dict[str, object]:
    fields: dict[str, object] = {
        "model": result.model,
        "finish_reason": result.finish_reason,
        "usage": result.usage.model_dump(mode="json"),
        "timings": result.timings.model_dump(mode="json"),
        "citations": len(result.citations),
    }
    return fields | {"text": result.text} if full else fields
