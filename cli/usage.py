"""`headrace usage`: what tenants have used, from the topics alone."""

import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime

import click
from pydantic import ValidationError

from cli.configuration import bootstrap_of, settings_for
from cli.dlq import Moment, terminal_columns
from cli.logs import configure_logs
from cli.text import at, columns, printable
from connectors.kafka.reader import TopicReader
from connectors.kafka.record import Record
from schemas.errors import Fatal
from schemas.event import utc_now
from schemas.topics import topic_of
from schemas.usage import UsageWindowed

SPANS = {"hour": 3600, "day": 86_400}


def latest(records: Iterable[Record]) -> list[UsageWindowed]:
    """The last version of each window, oldest first; what is no window of ours is left out."""
    windows: dict[str, UsageWindowed] = {}
    for record in records:
        try:
            window = UsageWindowed.model_validate_json(record.value or b"")
        except ValidationError:
            continue
        known = windows.get(window.key)
        if known is None or window.version >= known.version:
            windows[window.key] = window
    return sorted(windows.values(), key=lambda each: (each.window_start, each.tenant, each.model))


def table(windows: Sequence[UsageWindowed], *, width: int) -> Iterator[str]:
    """Windows as lines, with their sum."""
    rows: list[Sequence[str]] = [("WINDOW (UTC)", "TENANT", "CALLS", "PROMPT", "COMPLETION", "TOTAL", "STATE", "MODEL")]
    rows += [
        (
            *(at(each.window_start), each.tenant, f"{each.calls:,}", f"{each.prompt_tokens:,}"),
            *(f"{each.completion_tokens:,}", f"{_total(each):,}{'~' if each.estimated_calls else ''}"),
            *("closed" if each.closed else "open", printable(each.model)),
        )
        for each in windows
    ]
    yield from columns(rows, width=width, least_last=10)
    yield ""
    calls, tokens = sum(each.calls for each in windows), sum(map(_total, windows))
    estimated = sum(each.estimated_calls for each in windows)
    yield f"{calls:,} calls, {tokens:,} tokens" + (f"; ~ holds {estimated:,} estimated calls" if estimated else "")


def _total(window: UsageWindowed) -> int:
    return window.prompt_tokens + window.completion_tokens


@click.command()
@click.argument("tenant", required=False)
@click.option("--since", type=Moment(), help="Windows that end later: 2026-01-31T12:00:00Z, or 7d ago.")
@click.option("--window", "span", type=click.Choice(list(SPANS)), default="day", show_default=True)
@click.option("--bootstrap", metavar="HOST:PORT", help="Brokers; default: HEADRACE_KAFKA_BOOTSTRAP.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def usage(tenant: str | None, since: datetime | None, span: str, bootstrap: str | None, *, as_json: bool) -> None:
    """Show what TENANT, or every tenant, has used, window by window, as the `usage` flow has counted it."""
    settings = settings_for(kafka_bootstrap=bootstrap)
    configure_logs(settings.log_level)
    topic = topic_of(UsageWindowed).name
    with TopicReader(bootstrap_of(settings), settings.kafka_config()) as reader:
        if not reader.exists(topic):
            raise Fatal(f"topic {topic} is missing; create it: headrace topics create")
        found = latest(reader.records([topic]))
    seconds = SPANS[span]
    after = 0.0 if since is None else since.timestamp() - seconds
    windows = [
        each
        for each in found
        if each.window_s == seconds and tenant in {None, each.tenant} and each.window_start.timestamp() > after
    ]
    if as_json:
        totals = {"calls": sum(each.calls for each in windows), "tokens": sum(map(_total, windows))}
        shown = [each.model_dump(mode="json") for each in windows]
        click.echo(json.dumps({"at": utc_now().isoformat(), "window_s": seconds, "windows": shown, "totals": totals}))
        return
    if not windows:
        click.echo("no usage" + (f" of tenant {printable(tenant)}" if tenant else "") + " is known for that time")
        return
    for line in table(windows, width=terminal_columns()):
        click.echo(line)
