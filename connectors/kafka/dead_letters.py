"""Dead letters seen from outside a flow: find them, and produce their messages again.

Guarantee of a redrive: the original key, value and headers are produced byte for byte to the original topic, and only
the counter `headrace_redrives` grows. The marker on `dead_letters.redriven` is written after the message is durable. A
letter with a marker is never redriven again, and one whose message was too large for it never at all. A crash between
the two repeats the message with the same counter, so that the ledger drops the repeat. The same holds for two redrives
that run at once.

Memory: an id per letter that was redriven in the last 90 days and per letter that matches; messages are streamed.
"""

import heapq
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from pydantic import ValidationError

from connectors.kafka.producer import Outbox, ReliableProducer
from connectors.kafka.reader import TopicReader
from connectors.kafka.record import OutgoingRecord, Record, RepeatedRecord
from connectors.kafka.stop import Stop
from schemas.dead_letter import (
    MAX_REDRIVES,
    PRODUCED_HEADER,
    REDRIVE_HEADER,
    DeadLetter,
    DeadLetterRedriven,
    id_of_place,
)
from schemas.errors import Fatal, HeadraceError
from schemas.event import utc_now
from schemas.topics import dead_letter_topic, dead_letter_topics, topic_of
from schemas.trace import trace_of

BATCH = 100
"""Messages between two flushes, and so the most that a crash leaves without their markers."""
PREFIX_CHARS = 6
"""Least length of a shortened id: 16 million values."""
SUMMARY_CHARS = 500
"""Of an error's message in a list. A list of 50 is then at most 25 kB."""
_DELIVERY_TIMEOUT_S = 30.0  # a person waits
_ID_CHARS = 36
_MARKERS = topic_of(DeadLetterRedriven).name

ErrorClass = Literal["retryable", "poison"]
Offsets = Mapping[tuple[str, int], int]
"""By topic and partition."""


@dataclass(frozen=True)
class LetterPlace:
    """Where a dead letter's own record is."""

    topic: str  # `requests.submitted.dlq`
    partition: int
    offset: int


@dataclass(frozen=True)
class LetterFilter:
    """Which dead letters are meant; an absent field means any."""

    topic: str | None = None  # the original topic
    step: str | None = None  # `answer.infer`, or all of a flow: `answer`
    error_class: ErrorClass | None = None
    tenant: str | None = None
    job_id: str | None = None
    since: datetime | None = None  # of `failed_at`, inclusive
    until: datetime | None = None  # exclusive

    def matches(self, letter: DeadLetter) -> bool:
        """Whether this letter is meant."""
        return (
            self.topic in {None, letter.topic}
            and (self.step is None or f"{letter.step}.".startswith(f"{self.step}."))
            and self.error_class in {None, letter.error_class}
            and self.tenant in {None, letter.tenant}
            and self.job_id in {None, letter.job_id}
            and (self.since is None or letter.failed_at >= self.since)
            and (self.until is None or letter.failed_at < self.until)
        )


@dataclass(frozen=True)
class LetterSummary:
    """A dead letter without its message."""

    id: str
    failed_at: datetime
    topic: str
    step: str
    error_class: ErrorClass
    error_type: str
    message: str
    attempts: int
    retryable: bool
    tenant: str
    job_id: str
    document_id: str | None
    redrives: int
    redriven_at: datetime | None  # None: open


@dataclass(frozen=True)
class Listing:
    """The newest of the letters that match, oldest first, and how many match."""

    letters: tuple[LetterSummary, ...]
    total: int
    by_class: Mapping[str, int]
    by_step: Mapping[str, int]
    unreadable: int  # records on dead-letter topics that are no dead letters


@dataclass(frozen=True)
class FoundLetter:
    """A dead letter, and when it was redriven, if it was."""

    letter: DeadLetter
    redriven_at: datetime | None


@dataclass(frozen=True)
class RedrivePlan:
    """What a redrive will do; holds ids, not messages."""

    topics: tuple[str, ...]  # dead-letter topics that hold the letters
    ids: frozenset[str]
    by_step: Mapping[tuple[str, str], int]  # (original topic, step)
    already_redriven: int
    not_retryable: int
    capped: tuple[str, ...]  # redriven too often already
    without_message: tuple[str, ...]  # too large for their letters: nothing is there to be produced
    unreadable: int
    at: LetterPlace | None = None  # nothing else need be read


@dataclass
class _Tally:
    """What plan() counts while it reads."""

    ids: set[str] = field(default_factory=set)
    by_step: Counter[tuple[str, str]] = field(default_factory=Counter)
    already_redriven: int = 0
    not_retryable: int = 0
    capped: list[str] = field(default_factory=list)
    without_message: list[str] = field(default_factory=list)


@dataclass
class _Reading:
    """One reading of dead-letter topics."""

    unreadable: int = 0


class UnknownLetter(Fatal):
    """There is no dead letter with this id, or not any more."""


class Pace:
    """Lets one pass at a time, `rate_per_s` at most, and never makes up for time that was lost: so no bursts."""

    def __init__(self, rate_per_s: float, stop: Stop) -> None:
        self._gap_s = 1.0 / rate_per_s
        self._stop = stop
        self._next_at = time.monotonic()

    def wait(self) -> bool:
        """Return when the next may pass: True; False if the end has been asked for."""
        wait_s = self._next_at - time.monotonic()
        if self._stop.wait(wait_s) if wait_s > 0 else self._stop.requested:
            return False
        self._next_at = max(self._next_at, time.monotonic()) + self._gap_s
        return True


class DeadLetters:
    """The dead letters on one broker. Each call reads the topics anew and leaves nothing open; blocking.

    Every call raises Retryable if no broker answers within 10 s.
    """

    def __init__(self, bootstrap: str, config: Mapping[str, str] | None = None, *, stop: Stop | None = None) -> None:
        self._bootstrap = bootstrap
        self._config = dict(config or {})
        self._stop = stop or Stop()

    def list(self, wanted: LetterFilter, *, limit: int = 50, include_redriven: bool = False) -> Listing:
        """The newest `limit` letters that match. A letter that was written twice, after a crash, counts once."""
        newest: list[tuple[datetime, str, LetterSummary]] = []
        classes: Counter[str] = Counter()
        steps: Counter[str] = Counter()
        reading = _Reading()
        with self._reader() as reader:
            redriven = _markers(reader)
            for letter, letter_id in self._letters(reader, self._topics(reader, wanted.topic), reading, wanted.job_id):
                if not wanted.matches(letter) or (letter_id in redriven and not include_redriven):
                    continue
                classes[letter.error_class] += 1
                steps[letter.step] += 1
                heapq.heappush(newest, (letter.failed_at, letter_id, summary(letter, redriven.get(letter_id))))
                if len(newest) > limit:
                    heapq.heappop(newest)
        shown = tuple(letter for _, _, letter in sorted(newest, key=lambda each: each[:2]))
        return Listing(shown, classes.total(), dict(classes), dict(steps), reading.unreadable)

    def find(
        self, letter_id: str, *, at: LetterPlace | None = None, unmarked_before: Offsets | None = None
    ) -> FoundLetter:
        """The letter with this id, or the one whose id begins so. Raises Fatal if there is none, or more than one.

        at, unmarked_before: where it is, and how far the markers of redrives hold none of it, for whoever knows: then
        nothing is searched, which takes a second per 10,000 letters and markers.
        """
        found: dict[str, DeadLetter] = {}
        with self._reader() as reader:
            topics = self._topics(reader, None)
            for letter, its_id in self._letters(reader, topics, _Reading(), at=at):
                if its_id.startswith(letter_id):
                    found[its_id] = letter
                    _refuse_ambiguous(letter_id, found)
                    if len(letter_id) == _ID_CHARS:
                        break
            if not found:
                raise _unknown(letter_id, self._bootstrap)
            ((its_id, letter),) = found.items()
            return FoundLetter(letter, _markers(reader, unmarked_before).get(its_id))

    def plan(
        self,
        wanted: LetterFilter,
        ids: Sequence[str] = (),
        *,
        max_redrives: int = MAX_REDRIVES,
        at: LetterPlace | None = None,
        unmarked_before: Offsets | None = None,
    ) -> RedrivePlan:
        """Decide what to redrive, writing nothing: letters with these ids or beginnings of ids, else those that match.

        Left out are: letters redriven before; letters without their message, which was too large for them; letters that
        say they are not retryable, unless `ids` or the filter's `error_class` name them; messages that were redriven
        `max_redrives` times. Raises Fatal if an id is unknown or ambiguous, and if a topic that is needed is missing.

        at, unmarked_before: as for find(), of the one letter of `ids`; redrive() searches nothing either.
        """
        tally, reading = _Tally(), _Reading()
        found: dict[str, set[str]] = {prefix: set() for prefix in ids}
        insisted = bool(ids) or wanted.error_class == "poison"
        originals: set[str] = set()
        with self._reader() as reader:
            if not reader.exists(_MARKERS):
                raise Fatal(f"topic {_MARKERS} is missing at {self._bootstrap}; create it: headrace topics create")
            redriven = _markers(reader, unmarked_before)
            topics = self._topics(reader, wanted.topic)
            for letter, letter_id in self._letters(reader, topics, reading, wanted.job_id, at=at):
                named = [prefix for prefix in found if letter_id.startswith(prefix)]
                for prefix in named:
                    found[prefix].add(letter_id)
                    _refuse_ambiguous(prefix, found[prefix])
                if not (named if ids else wanted.matches(letter)):
                    continue
                _decide(letter, letter_id, tally, redriven, insisted=insisted, max_redrives=max_redrives)
                if letter_id in tally.ids:
                    originals.add(letter.topic)
            for prefix, its_ids in found.items():
                if not its_ids:
                    raise _unknown(prefix, self._bootstrap)
            for topic in sorted(originals):
                if not reader.exists(topic):
                    raise Fatal(
                        f"topic {topic}, where dead letters came from, is missing at {self._bootstrap}; nothing was "
                        "redriven: create it, or leave its dead letters out"
                    )
        return RedrivePlan(
            topics,
            frozenset(tally.ids),
            dict(tally.by_step),
            tally.already_redriven,
            tally.not_retryable,
            tuple(tally.capped),
            tuple(tally.without_message),
            reading.unreadable,
            at,
        )

    def redrive(
        self, plan: RedrivePlan, *, rate_per_s: float = 100.0, redriven: Callable[[int], None] = lambda _: None
    ) -> int:
        """Do what was planned, in order per key, and return how many letters were redriven and marked.

        Messages are produced at `rate_per_s` at most, and marked after each second's worth, or each BATCH. `redriven`
        is called with the size of each part that is marked. A requested stop ends the part that has begun, and returns.
        Raises HeadraceError if the broker refuses or stops answering; what is marked by then stays so.
        """
        done = 0
        if not plan.ids:
            return done
        size = max(1, min(BATCH, int(rate_per_s)))
        left = set(plan.ids)
        outbox = ReliableProducer(self._bootstrap, self._config, delivery_timeout_s=_DELIVERY_TIMEOUT_S).outbox()
        pace = Pace(rate_per_s, self._stop)
        part: list[DeadLetterRedriven] = []

        def mark() -> None:
            nonlocal done, part
            if not part:
                return
            _mark(outbox, part)
            done += len(part)
            redriven(len(part))
            part = []

        try:
            with self._reader() as reader:
                try:
                    for letter, letter_id in self._letters(reader, plan.topics, _Reading(), at=plan.at):
                        if letter_id not in left:
                            continue
                        if not pace.wait():
                            break
                        left.remove(letter_id)
                        record, marker = repeated(letter), marker_of(letter)
                        outbox.send(record)
                        part.append(marker)
                        if len(part) == size:
                            mark()
                        if not left:
                            break
                finally:  # also after a failed reading: what was sent must not be sent again
                    mark()
        except HeadraceError as error:
            raise HeadraceError(
                f"the redrive ended after {done} of {len(plan.ids)} dead letters, which are marked; repeat it, and it "
                f"goes on with the rest: {error}"
            ) from error
        return done

    def _reader(self) -> TopicReader:
        return TopicReader(self._bootstrap, self._config, self._stop)

    def _topics(self, reader: TopicReader, original: str | None) -> tuple[str, ...]:
        """The dead-letter topics to read: that of `original`, else all of the catalogue that this broker has."""
        if original is not None:
            return (dead_letter_topic(original),)
        known = tuple(topic.name for topic in dead_letter_topics() if reader.exists(topic.name))
        if not known:
            raise Fatal(f"there are no dead-letter topics at {self._bootstrap}; create them: headrace topics create")
        return known

    @staticmethod
    def _letters(
        reader: TopicReader,
        topics: Sequence[str],
        reading: _Reading,
        job_id: str | None = None,
        *,
        at: LetterPlace | None = None,
    ) -> Iterator[tuple[DeadLetter, str]]:
        """Each letter once, with its id. `job_id` spares the decoding of letters of other jobs, `at` all reading."""
        seen: set[str] = set()
        needle = needle_of(job_id)
        for record in reader.records(topics) if at is None else _record_at(reader, at):
            if needle not in (record.value or b""):
                continue
            try:
                letter = DeadLetter.model_validate_json(record.value or b"")
            except ValidationError:
                reading.unreadable += 1
                continue
            letter_id = letter.event_id
            if letter_id not in seen:
                seen.add(letter_id)
                yield letter, letter_id


def _record_at(reader: TopicReader, place: LetterPlace) -> Iterator[Record]:
    record = reader.record_at(place.topic, place.partition, place.offset)
    if record is not None:
        yield record


def needle_of(job_id: str | None) -> bytes:
    """Bytes that are in the JSON of every event of a job, if that is certain; else none, which are in any."""
    if job_id is None or not job_id.isascii() or '"' in job_id or "\\" in job_id:
        return b""
    return job_id.encode()


def redriven_by(reader: TopicReader, starts: Offsets | None = None) -> Iterator[DeadLetterRedriven]:
    """All markers, or those from `starts` on; none if there is no such topic."""
    if not reader.exists(_MARKERS):
        return
    for record in reader.records([_MARKERS], starts):
        try:
            yield DeadLetterRedriven.model_validate_json(record.value or b"")
        except ValidationError:
            continue  # a tombstone, or nothing of ours


def _markers(reader: TopicReader, starts: Offsets | None = None) -> dict[str, datetime]:
    return {marker.dead_letter_id: marker.redriven_at for marker in redriven_by(reader, starts)}


def summary(letter: DeadLetter, redriven_at: datetime | None) -> LetterSummary:
    """A letter without its message, and with a bounded reason."""
    return LetterSummary(
        id=letter.event_id,
        failed_at=letter.failed_at,
        topic=letter.topic,
        step=letter.step,
        error_class=letter.error_class,
        error_type=letter.error_type,
        message=letter.message[:SUMMARY_CHARS],
        attempts=letter.attempts,
        retryable=letter.retryable,
        tenant=letter.tenant,
        job_id=letter.job_id,
        document_id=letter.document_id,
        redrives=letter.redrives,
        redriven_at=redriven_at,
    )


def repeated(letter: DeadLetter) -> RepeatedRecord:
    """The original message with its counter one higher; our headers stand last, the other ones as they stood."""
    ours = [(REDRIVE_HEADER, str(letter.redrives + 1).encode())]
    if letter.produced_at is not None:
        ours.append((PRODUCED_HEADER, letter.produced_at.isoformat().encode()))
    headers = tuple((header.name, header.value) for header in letter.message_headers)
    if letter.job_id == id_of_place(letter.topic, letter.partition, letter.offset):  # it will have another place
        ours += trace_of(headers, letter.job_id).headers
    names = {name for name, _ in ours}
    others = tuple((name, value) for name, value in headers if name not in names)
    return RepeatedRecord(letter.topic, letter.message_key, letter.message_value, (*others, *ours))


def marker_of(letter: DeadLetter) -> DeadLetterRedriven:
    """What says that a letter was redriven. Its time is taken before the message can be at work again."""
    return DeadLetterRedriven(
        job_id=letter.job_id,
        tenant=letter.tenant,
        dead_letter_id=letter.event_id,
        topic=letter.topic,
        redrives=letter.redrives + 1,
        redriven_at=utc_now(),
    )


def _mark(outbox: Outbox, markers: Sequence[DeadLetterRedriven]) -> None:
    """Write the markers of what was sent, once it is durable."""
    outbox.flush()
    for marker in markers:
        outbox.send(OutgoingRecord(_MARKERS, marker.key_bytes, marker.encode(), marker.headers(source="headrace/dlq")))
    outbox.flush()


def _decide(
    letter: DeadLetter,
    letter_id: str,
    tally: _Tally,
    redriven: Mapping[str, datetime],
    *,
    insisted: bool,
    max_redrives: int,
) -> None:
    if letter_id in redriven:
        tally.already_redriven += 1
    elif letter.left_out_bytes is not None:
        tally.without_message.append(letter_id)
    elif not letter.retryable and not insisted:
        tally.not_retryable += 1
    elif letter.redrives >= max_redrives:
        tally.capped.append(letter_id)
    else:
        tally.ids.add(letter_id)
        tally.by_step[letter.topic, letter.step] += 1


def _refuse_ambiguous(prefix: str, found: Mapping[str, object] | set[str]) -> None:
    if len(found) > 1:
        first, second = sorted(found)[:2]
        raise Fatal(f"{prefix} begins the ids of several dead letters, such as {first} and {second}; give more of it")


def _unknown(letter_id: str, bootstrap: str) -> UnknownLetter:
    return UnknownLetter(
        f"no dead letter at {bootstrap} has the id {letter_id}, or one that begins so; see: headrace dlq list"
    )
