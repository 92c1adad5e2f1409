"""`headrace reviews`: what guards have stopped, and a person's decision; by events alone."""

import getpass
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime

import click

from cli.configuration import bootstrap_of, settings_for
from cli.dlq import terminal_columns
from cli.logs import configure_logs
from cli.text import ShortText, at, columns, printable
from connectors.kafka.dead_letters import PREFIX_CHARS
from connectors.kafka.producer import ReliableProducer
from connectors.kafka.record import outgoing
from connectors.kafka.reviews import Decision, Review, decision_of, read_prompt, read_reviews
from connectors.settings import Settings
from schemas.errors import Fatal, HeadraceError
from schemas.event import utc_now
from schemas.reviews import NOTE_MAX_CHARS, REVIEWER_MAX_CHARS

SHORT = 8
"""Characters of an id that lists show; any prefix that names one review will do."""


DONE = {"approve": "approved", "reject": "rejected"}


class ReviewId(click.ParamType[str]):
    """A review's id, or its beginning."""

    name = "ID"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Refused if it is so short that it may name a review by chance."""
        text = str(value)
        if len(text) < PREFIX_CHARS:
            self.fail(
                f"{text!r}: give a review's id, or at least the first {PREFIX_CHARS} characters of one; "
                "see: headrace reviews list",
                param,
                ctx,
            )
        return text


@click.group()
def reviews() -> None:
    """See what guards have stopped, and decide what becomes of it."""


def _bootstrap(command: Callable[..., None]) -> Callable[..., None]:
    return click.option("--bootstrap", metavar="HOST:PORT", help="Brokers; default: HEADRACE_KAFKA_BOOTSTRAP.")(command)


def _configured(bootstrap: str | None) -> Settings:
    settings = settings_for(kafka_bootstrap=bootstrap)
    configure_logs(settings.log_level)
    return settings


def _all(settings: Settings) -> list[Review]:
    return read_reviews(bootstrap_of(settings), settings.kafka_config())


def find(known: Sequence[Review], prefix: str) -> Review:
    """The review whose id begins so. Raises Fatal if there is none, or more than one."""
    found = [each for each in known if each.requested.review_id.startswith(prefix)]
    if not found:
        raise Fatal(f"no review {printable(prefix)!r}; headrace reviews list --all shows all")
    if len(found) > 1:
        raise Fatal(f"{printable(prefix)!r} begins the ids of {len(found)} reviews; give more of it")
    return found[0]


@reviews.command("list")
@click.option("--tenant", help="Of this tenant only.")
@click.option("--all", "everything", is_flag=True, help="Those that are decided, expired or cancelled as well.")
@_bootstrap
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per review.")
def list_(tenant: str | None, bootstrap: str | None, *, everything: bool, as_json: bool) -> None:
    """Show the open reviews, the oldest first."""
    now = utc_now()
    known = [each for each in _all(_configured(bootstrap)) if tenant in {None, each.requested.tenant}]
    shown = [each for each in known if everything or each.standing(now) == "open"]
    if as_json:
        for each in shown:
            click.echo(json.dumps(_fields(each, now)))
        return
    if not shown:
        click.echo("nothing waits for a review")
        return
    for line in table(shown, now, width=terminal_columns()):
        click.echo(line)


def table(shown: Sequence[Review], now: datetime, *, width: int) -> Iterator[str]:
    """Reviews as lines, and how many are open."""
    rows: list[Sequence[str]] = [("ID", "STOPPED AT (UTC)", "STATE", "TENANT", "JOB", "LIMIT", "DEPTH", "REASON")]
    for each in shown:
        stopped = each.requested
        rows.append(
            (
                *(stopped.review_id[:SHORT], at(stopped.requested_at), each.standing(now), stopped.tenant),
                *(printable(stopped.job_id), f"{stopped.limit} {stopped.value}/{stopped.allowed}"),
                *(str(stopped.depth), printable(stopped.reason)),
            )
        )
    yield from columns(rows, width=width)
    yield ""
    count = sum(each.standing(now) == "open" for each in shown)
    yield f"{count} open; headrace reviews show ID, approve ID, reject ID --note WHY"


@reviews.command()
@click.argument("review_id", metavar="ID", type=ReviewId())
@click.option("--prompt", "with_prompt", is_flag=True, help="Show the conversation as well.")
@_bootstrap
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def show(review_id: str, bootstrap: str | None, *, with_prompt: bool, as_json: bool) -> None:
    """Show one review: the reason, the jobs above, and how to decide."""
    settings = _configured(bootstrap)
    review, now = find(_all(settings), review_id), utc_now()
    prompt = (
        read_prompt(bootstrap_of(settings), settings.kafka_config(), review.requested) or "its message is gone"
        if with_prompt
        else None
    )
    if as_json:
        click.echo(json.dumps(_fields(review, now) | ({"prompt": prompt} if with_prompt else {})))
        return
    for line in told(review, now):
        click.echo(line)
    if prompt is not None:
        click.echo("\n".join(printable(line) for line in ["", *prompt.splitlines()]))


def told(review: Review, now: datetime) -> Iterator[str]:
    """Everything but the prompt."""
    stopped = review.requested
    yield f"Job {printable(stopped.job_id)} of tenant {stopped.tenant} was stopped at {at(stopped.requested_at)} UTC:"
    yield f"  {printable(stopped.reason)}"
    yield ""
    for each in stopped.ancestors:
        yield f"  depth {each.depth}  {printable(each.job_id)}"
    yield f"  depth {stopped.depth}  {printable(stopped.job_id)}  <- stopped, {stopped.prompt_chars:,} characters"
    yield ""
    yield f"Its message is {printable(stopped.origin)}"
    decided = review.decided
    if decided is not None:
        by = f" by {printable(decided.reviewer)}" if decided.reviewer else ""
        note = f": {printable(decided.note)}" if decided.note else ""
        yield f"{review.standing(now)} at {at(decided.decided_at)} UTC{by}{note}"
    elif review.standing(now) == "expired":
        yield "Nobody has decided in time: the job was given up"
    elif review.standing(now) == "cancelled":
        yield "The job was cancelled"
    else:
        until = "" if stopped.expires_at is None else f", until {at(stopped.expires_at)} UTC"
        yield f"Decide{until}:"
        short = stopped.review_id[:SHORT]
        yield f"  headrace reviews approve {short}    (the limit {stopped.limit} becomes {stopped.value} at least)"
        yield f"  headrace reviews reject {short} --note WHY"


@reviews.command()
@click.argument("review_ids", metavar="ID...", type=ReviewId(), nargs=-1, required=True)
@click.option("--allowed", type=click.IntRange(0), help="The limit from now on; default: what the job needs.")
@click.option("--note", type=ShortText(NOTE_MAX_CHARS), help="Why; becomes part of the job's story.")
@click.option("--reviewer", type=ShortText(REVIEWER_MAX_CHARS), help="Who decides; default: the login name.")
@_bootstrap
def approve(
    review_ids: tuple[str, ...], allowed: int | None, note: str | None, reviewer: str | None, bootstrap: str | None
) -> None:
    """Let jobs go on, once each."""
    _decide(review_ids, "approve", allowed, note, reviewer, bootstrap)


@reviews.command()
@click.argument("review_ids", metavar="ID...", type=ReviewId(), nargs=-1, required=True)
@click.option("--note", type=ShortText(NOTE_MAX_CHARS), required=True, help="Why; becomes part of the job's story.")
@click.option("--reviewer", type=ShortText(REVIEWER_MAX_CHARS), help="Who decides; default: the login name.")
@_bootstrap
def reject(review_ids: tuple[str, ...], note: str, reviewer: str | None, bootstrap: str | None) -> None:
    """End jobs."""
    _decide(review_ids, "reject", None, note, reviewer, bootstrap)


def _decide(  # the options of a command
    review_ids: Sequence[str],
    decision: Decision,
    allowed: int | None,
    note: str | None,
    reviewer: str | None,
    bootstrap: str | None,
) -> None:
    settings = _configured(bootstrap)
    known, now = _all(settings), utc_now()
    failed = False
    outbox = ReliableProducer(bootstrap_of(settings), settings.kafka_config()).outbox()
    for review_id in review_ids:
        try:
            review = find(known, review_id)
            event = decision_of(review, decision, now, allowed=allowed, note=note, reviewer=reviewer or _login())
        except HeadraceError as error:
            click.echo(f"headrace: {error}", err=True)
            failed = True
            continue
        outbox.send(outgoing(event, step="reviews"))
        outbox.flush()
        click.echo(f"{review.requested.review_id[:SHORT]} {DONE[decision]}: job {printable(event.job_id)}")
    if failed:
        sys.exit(1)


def _login() -> str | None:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # no name for this user id, as in many containers
        return None


def _fields(review: Review, now: datetime) -> dict[str, object]:
    decided = None if review.decided is None else review.decided.model_dump(mode="json", exclude_none=True)
    requested = review.requested.model_dump(mode="json", exclude_none=True)
    return requested | {"standing": review.standing(now), "decided": decided}
