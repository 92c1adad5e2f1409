"""`headrace dlq`: look at dead letters, and produce their messages again."""

import json
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime, timedelta
from types import FrameType
from typing import Literal

import click

from cli.configuration import bootstrap_of, settings_for
from cli.logs import configure_logs
from cli.progress import progress
from cli.text import at, columns, cut, printable
from connectors.kafka.dead_letters import (
    PREFIX_CHARS,
    DeadLetters,
    FoundLetter,
    LetterFilter,
    LetterSummary,
    Listing,
    RedrivePlan,
)
from connectors.kafka.stop import Stop
from schemas.dead_letter import MAX_REDRIVES, DeadLetter
from schemas.event import utc_now

SHOWN_CHARS = 4096
_ID_CHARS = 8
_JOB_CHARS = 13
_NO_TERMINAL_COLUMNS = 240
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_INTERRUPTED = 130  # what shells report for SIGINT


class Moment(click.ParamType[datetime]):
    """A time, or how long ago it was."""

    name = "TIME"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """RFC 3339 with an offset, or a number and a unit: `30m`, `2h`, `7d`."""
        text = str(value)
        ago = re.fullmatch(r"(\d{1,6})([smhdw])", text)
        try:
            if ago is not None:
                return utc_now() - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
            moment = datetime.fromisoformat(text)
        except (ValueError, OverflowError):
            moment = None
        if moment is None or moment.tzinfo is None:
            self.fail(f"{text!r}: a time with an offset, 2026-01-31T12:00:00Z, or how long ago, 30m 2h 7d", param, ctx)
        return moment


class LetterId(click.ParamType[str]):
    """A dead letter's id, or its beginning."""

    name = "ID"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Lower-case; refused if it is too short or no id at all."""
        text = str(value).lower()
        if not re.fullmatch(r"[0-9a-f-]{1,36}", text) or len(text) < PREFIX_CHARS:
            self.fail(
                f"{text!r}: give a dead letter's id, or at least the first {PREFIX_CHARS} characters of one; "
                "see: headrace dlq list",
                param,
                ctx,
            )
        return text


def _options(command: Callable[..., None]) -> Callable[..., None]:
    """The filters that list and redrive share, and the broker."""
    options = (
        click.option("--bootstrap", metavar="HOST:PORT", help="Brokers; default: HEADRACE_KAFKA_BOOTSTRAP."),
        click.option("--topic", help="Original topic: requests.submitted."),
        click.option("--step", help="The step that gave up, answer.infer, or a whole flow, answer."),
        click.option("--error-class", type=click.Choice(["retryable", "poison"]), help="What kind of failure."),
        click.option("--tenant", help="Whose."),
        click.option("--since", type=Moment(), help="Failed then or later: 2026-01-31T12:00:00Z, or 2h ago."),
        click.option("--until", type=Moment(), help="Failed before then."),
        click.option("--job", help="Of this job."),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object."),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.group()
def dlq() -> None:
    """Dead letters: what could not be done, and doing it again."""


@dlq.command("list")
@_options
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1), help="Show the newest so many.")
@click.option("--all", "include_redriven", is_flag=True, help="Also those that were redriven.")
def list_(  # noqa: PLR0913  # one per option
    *,
    bootstrap: str | None,
    topic: str | None,
    step: str | None,
    error_class: Literal["retryable", "poison"] | None,
    tenant: str | None,
    since: datetime | None,
    until: datetime | None,
    job: str | None,
    as_json: bool,
    limit: int,
    include_redriven: bool,
) -> None:
    """List the open dead letters, newest last, and count them."""
    wanted = LetterFilter(_original(topic), step, error_class, tenant, job, since, until)
    found = _dead_letters(bootstrap).list(wanted, limit=limit, include_redriven=include_redriven)
    if as_json:
        letters = [asdict(letter) | {"state": "redriven" if letter.redriven_at else "open"} for letter in found.letters]
        click.echo(
            _dumped(
                {
                    "letters": letters,
                    "total": found.total,
                    "by_class": found.by_class,
                    "by_step": found.by_step,
                    "unreadable": found.unreadable,
                }
            )
        )
        return
    for line in _table(found, include_redriven=include_redriven):
        click.echo(line)


@dlq.command()
@click.argument("letter_id", metavar="ID", type=LetterId())
@click.option("--bootstrap", metavar="HOST:PORT", help="Brokers; default: HEADRACE_KAFKA_BOOTSTRAP.")
@click.option("--full", is_flag=True, help="Show the whole payload, however long.")
@click.option("--json", "as_json", is_flag=True, help="Print the event as JSON: key, value and headers in base64.")
def show(letter_id: str, bootstrap: str | None, *, full: bool, as_json: bool) -> None:
    """Show the dead letter whose id is, or begins with, ID: the error, and the original message."""
    found = _dead_letters(bootstrap).find(letter_id)
    if as_json:
        fields = found.letter.model_dump(mode="json")
        redriven_at = found.redriven_at.isoformat() if found.redriven_at else None
        extra = {"id": found.letter.event_id, "redrives": found.letter.redrives, "redriven_at": redriven_at}
        click.echo(_dumped(extra | fields))
        return
    for line in _shown(found, full=full):
        click.echo(line)


@dlq.command()
@click.argument("ids", metavar="[ID]...", nargs=-1, type=LetterId())
@_options
@click.option("--everything", is_flag=True, help="All open dead letters; needed where neither filter nor ID is given.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@click.option(
    "--rate", default=100.0, show_default=True, type=click.FloatRange(0.1, 10_000), help="Messages per second, at most."
)
@click.option(
    "--max-redrives",
    default=MAX_REDRIVES,
    show_default=True,
    type=click.IntRange(1, 1000),
    help="Leave out messages that were redriven so often: they fail for another reason.",
)
def redrive(  # noqa: PLR0913  # one per option
    ids: tuple[str, ...],
    *,
    bootstrap: str | None,
    topic: str | None,
    step: str | None,
    error_class: Literal["retryable", "poison"] | None,
    tenant: str | None,
    since: datetime | None,
    until: datetime | None,
    job: str | None,
    as_json: bool,
    everything: bool,
    dry_run: bool,
    rate: float,
    max_redrives: int,
) -> None:
    """Produce the original messages again, to the topics that they came from; each dead letter once.

    Poison is left out unless --error-class poison or an ID names it. Whatever the flows do to a job is done again, and
    a request that was answered before gets its stored answer. An upload that is redriven replaces what was uploaded
    under its document_id since; `headrace jobs show` warns of that. Ctrl-C ends the batch that has begun, then stops.
    """
    wanted = LetterFilter(_original(topic), step, error_class, tenant, job, since, until)
    ways = [bool(ids), wanted != LetterFilter(), everything]
    if sum(ways) != 1:
        raise click.UsageError("name dead letters by ID, or by filters, or say --everything: one of the three")
    stop = Stop()
    letters = _dead_letters(bootstrap, stop)
    with _first_signal_stops(stop):
        plan = letters.plan(wanted, ids, max_redrives=max_redrives)
        done = 0
        if not dry_run and not stop.requested:
            with progress(len(plan.ids), "redriven") as advance:

                def redriven(size: int) -> None:
                    for _ in range(size):
                        advance()

                done = letters.redrive(plan, rate_per_s=rate, redriven=redriven)
    interrupted = stop.requested
    if as_json:
        report: dict[str, object] = {
            "dry_run": dry_run,
            "interrupted": interrupted,
            "redriven": done,
            "skipped_by_cap": len(plan.capped),
            "skipped_not_retryable": plan.not_retryable,
            "skipped_without_message": len(plan.without_message),
            "already_redriven": plan.already_redriven,
            "would_redrive": sorted(plan.ids) if dry_run else [],
            "capped": list(plan.capped),
            "without_message": list(plan.without_message),
            "unreadable": plan.unreadable,
        }
        click.echo(_dumped(report))
    elif not interrupted:
        for line in _report(plan, done, dry_run=dry_run, max_redrives=max_redrives):
            click.echo(line)
    if interrupted:
        line = f"interrupted: {done} of {len(plan.ids)} redriven, and marked so; repeat it for the rest"
        click.echo(f"headrace: {line}", err=True)
        sys.exit(_INTERRUPTED)
    if not dry_run and done < len(plan.ids):
        click.echo(f"headrace: {len(plan.ids) - done} dead letters expired before their turn", err=True)
        sys.exit(1)


def _dead_letters(bootstrap: str | None, stop: Stop | None = None) -> DeadLetters:
    settings = settings_for(kafka_bootstrap=bootstrap)
    configure_logs(settings.log_level)
    return DeadLetters(bootstrap_of(settings), settings.kafka_config(), stop=stop)


def _original(topic: str | None) -> str | None:
    return None if topic is None else topic.removesuffix(".dlq")


@contextmanager
def _first_signal_stops(stop: Stop) -> Iterator[None]:
    """Turn the first SIGINT or SIGTERM into a wish to stop; the next one ends the process as usual."""

    def ask(signum: int, frame: FrameType | None) -> None:
        del frame
        stop.request()
        signal.signal(signum, signal.default_int_handler)

    before = {signum: signal.signal(signum, ask) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _dumped(fields: object) -> str:
    return json.dumps(fields, default=lambda moment: moment.isoformat())


def terminal_columns() -> int:
    """How wide lines may be; without a terminal, as wide as a wide one."""
    return shutil.get_terminal_size((_NO_TERMINAL_COLUMNS, 24)).columns


def _row(letter: LetterSummary, *, include_redriven: bool) -> tuple[str, ...]:
    state = ("redriven" if letter.redriven_at else "open",) if include_redriven else ()
    return (
        letter.id[:_ID_CHARS],
        at(letter.failed_at),
        printable(letter.topic),
        printable(letter.step),
        letter.error_class,
        str(letter.attempts),
        letter.tenant,
        cut(printable(letter.job_id), _JOB_CHARS),
        *state,
        printable(letter.message),
    )


def _table(found: Listing, *, include_redriven: bool) -> Iterator[str]:
    kind = "" if include_redriven else "open "
    if not found.letters:
        yield f"no {kind}dead letters match"
    else:
        state = ("STATE",) if include_redriven else ()
        rows = [("ID", "FAILED AT (UTC)", "TOPIC", "STEP", "CLASS", "TRIES", "TENANT", "JOB", *state, "MESSAGE")]
        rows += [_row(letter, include_redriven=include_redriven) for letter in found.letters]
        yield from columns(rows, width=terminal_columns())
        yield ""
        shown = "" if len(found.letters) == found.total else f"; these are the newest {len(found.letters)} (--limit)"
        yield f"{found.total} {kind}dead letter{'s' * (found.total != 1)}: {_counts(found.by_class)}{shown}"
        yield f"by step: {_counts(found.by_step)}"
    if found.unreadable:
        yield f"{found.unreadable} records on these topics are no dead letters, and were left out"


def _counts(counted: Mapping[str, int]) -> str:
    """The largest first."""
    return ", ".join(f"{count} {printable(name)}" for name, count in sorted(counted.items(), key=lambda each: -each[1]))


def _payload(value: bytes | None, *, full: bool) -> Iterator[str]:
    """A message's value as JSON if it is that, else as text with everything else escaped."""
    if value is None:
        yield "  (none)"
        return
    try:
        text = json.dumps(json.loads(value), indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):
        text = value.decode("utf-8", errors="backslashreplace")
    shown = text if full else text[:SHOWN_CHARS]
    for line in shown.split("\n"):
        yield f"  {printable(line)}"
    if len(shown) < len(text):
        yield f"  ... cut at {SHOWN_CHARS:,} of {len(text):,} characters; --full shows all"


def _bytes(value: bytes | None) -> str:
    return "(none)" if value is None else printable(value.decode("utf-8", errors="backslashreplace"))


def _shown(found: FoundLetter, *, full: bool) -> Iterator[str]:
    letter = found.letter
    state = "open" if found.redriven_at is None else f"redriven at {at(found.redriven_at)} UTC"
    yield f"Dead letter {letter.event_id}"
    yield ""
    yield from (f"  {name:<15} {text}" for name, text in _fields(letter, state))
    yield ""
    yield f"Headers ({len(letter.message_headers)})"
    yield from (f"  {printable(header.name)}: {_bytes(header.value)}" for header in letter.message_headers)
    yield ""
    if letter.left_out_bytes is None:
        yield f"Payload ({len(letter.message_value or b''):,} bytes)"
        yield from _payload(letter.message_value, full=full)
    else:
        yield f"Payload ({letter.left_out_bytes:,} bytes, left out: too large for a dead letter)"
        yield f"  sha256 {letter.left_out_sha256}; it is only at {printable(letter.place)}"


def _fields(letter: DeadLetter, state: str) -> Iterator[tuple[str, str]]:
    yield "state", state
    yield "error", f"{letter.error_class}: {printable(letter.message)} ({printable(letter.error_type)})"
    yield "step", printable(letter.step)
    yield "attempts", str(letter.attempts)
    yield "redrives", f"{letter.redrives} before this failure"
    yield "first failed at", f"{at(letter.first_failed_at)} UTC"
    yield "last failed at", f"{at(letter.failed_at)} UTC"
    if letter.left_out_bytes is not None:
        yield "retryable", "no: its message is not in it, so a redrive has nothing to produce"
    else:
        yield "retryable", "yes" if letter.retryable else "no: it can never work as it is"
    yield (
        "job",
        printable(letter.job_id) + ("" if letter.ends_job else " (which goes on; only this message was refused)"),
    )
    yield "tenant", letter.tenant
    if letter.document_id is not None:
        yield "document", printable(letter.document_id)
    yield "message", printable(letter.place)
    yield "key", _bytes(letter.message_key)


def _report(plan: RedrivePlan, done: int, *, dry_run: bool, max_redrives: int) -> Iterator[str]:
    yield f"{'would redrive' if dry_run else 'redriven'} {len(plan.ids) if dry_run else done}"
    for (topic, step), count in sorted(plan.by_step.items()):
        yield f"  {count:>6} to {printable(topic)} (given up by {printable(step)})"
    if plan.not_retryable:
        yield (
            f"left out {plan.not_retryable} that can never work as they are; "
            "--error-class poison, or their IDs, redrive them"
        )
    if plan.already_redriven:
        yield f"left out {plan.already_redriven} that were redriven before"
    if plan.capped:
        yield f"left out {len(plan.capped)} that were redriven {max_redrives} times or more (--max-redrives):"
        yield from (f"  {letter_id}" for letter_id in plan.capped)
    if plan.without_message:
        yield (
            f"left out {len(plan.without_message)} that cannot be redriven: their messages were too large for them, "
            "and are only where headrace dlq show says; send them anew:"
        )
        yield from (f"  {letter_id}" for letter_id in plan.without_message)
    if plan.unreadable:
        yield f"{plan.unreadable} records on these topics are no dead letters, and were left out"
