"""The read model's file, and what it answers."""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from connectors.kafka.dead_letters import LetterFilter
from connectors.kafka.job_history import MOST
from connectors.kafka.record import Record
from gateway import read_model as module
from gateway.read_model import BODY_SHA256_HEADER, ReadModel
from gateway.told import Position
from schemas.budgets import BudgetChanged
from schemas.cancellations import CancelRequested
from schemas.dead_letter import DeadLetter, DeadLetterRedriven
from schemas.deltas import TextDelta
from schemas.documents import DocumentIndexed, DocumentUploaded
from schemas.errors import Fatal
from schemas.event import utc_now
from schemas.explanation import Standing, explain
from schemas.jobs import JobState
from schemas.requests import RequestSubmitted
from schemas.reviews import ReviewDecided, ReviewRequested
from schemas.usage import UsageWindowed
from tests.gateway.records import delta, record, records, result, status

START = datetime(2026, 1, 31, 12, tzinfo=UTC)


def t(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def asked(job_id: str, seconds: float = 0, *, tenant: str = "acme") -> RequestSubmitted:
    return RequestSubmitted(job_id=job_id, tenant=tenant, prompt="How many?", submitted_at=t(seconds))


def letter(job_id: str, offset: int, *, step: str = "answer.infer", seconds: float = 0) -> DeadLetter:
    return DeadLetter(
        job_id=job_id,
        tenant="acme",
        topic="requests.submitted",
        partition=0,
        offset=offset,
        message_value=b"a secret prompt",
        step=step,
        error_class="retryable" if offset % 2 else "poison",
        error_type="Retryable",
        message="the model answered 500",
        attempts=3,
        retryable=True,
        first_failed_at=t(seconds),
        failed_at=t(seconds),
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "read_model.sqlite"


@pytest.fixture
def read_model(path: Path) -> Iterator[ReadModel]:
    with closing(ReadModel(path)) as opened:
        yield opened


def test_jobs_are_listed_newest_first_page_by_page(read_model: ReadModel) -> None:
    read_model.apply(records(*[asked(f"j{number}", number // 2) for number in range(7)]))
    seen: list[str] = []
    page = read_model.jobs(limit=3)
    while page.next is not None:
        seen += [row.job_id for row in page.jobs]
        page = read_model.jobs(limit=3, before=page.next)
    assert [*seen, *[row.job_id for row in page.jobs]] == ["j6", "j5", "j4", "j3", "j2", "j1", "j0"]


def test_jobs_are_found_by_tenant_state_and_kind(read_model: ReadModel) -> None:
    upload = DocumentUploaded(job_id="d", tenant="acme", document_id="doc", text="text", uploaded_at=t(5))
    other = asked("o", tenant="other")
    read_model.apply(records(asked("a"), asked("b", 1), other, upload, status("b", JobState.COMPLETED), result("b")))
    assert [row.job_id for row in read_model.jobs(tenant="acme").jobs] == ["d", "b", "a"]
    assert [row.job_id for row in read_model.jobs(state=Standing.COMPLETED).jobs] == ["b"]
    assert [row.job_id for row in read_model.jobs(tenant="acme", state=Standing.ACCEPTED).jobs] == ["d", "a"]
    (document,) = read_model.jobs(kind="document").jobs
    assert (document.job_id, document.document_id, document.submitted_at) == ("d", "doc", t(5))


@pytest.mark.parametrize("cursor", ["", "x", "W10=", "WzEsMl0=", "é", "W1sxXSwgImEiXQ=="])
def test_what_is_no_cursor_is_refused(read_model: ReadModel, cursor: str) -> None:
    with pytest.raises(ValueError, match="is no cursor"):
        read_model.jobs(before=cursor)


def test_a_job_is_known_from_the_moment_it_was_published(read_model: ReadModel) -> None:
    read_model.note(asked("j"), body_sha256="abc")
    row, evidence = read_model.job("j"), read_model.evidence("j")
    assert row is not None
    assert evidence is not None
    assert (row.state, row.tenant, row.kind) == ("accepted", "acme", "request")
    assert evidence.submitted is not None
    assert read_model.body_sha256("j") == "abc"
    read_model.apply([record(asked("j"), 0, headers=((BODY_SHA256_HEADER, b"def"),))])
    assert read_model.job("j") == row
    assert read_model.body_sha256("j") == "def"


def test_a_job_belongs_to_whoever_sent_its_id_first(read_model: ReadModel) -> None:
    thief = asked("j", -1000, tenant="thief")
    stolen = status("j", tenant="thief")
    read_model.apply([record(asked("j"), 0, at=t(0)), record(thief, 1, at=t(1)), record(stolen, 0)])
    row = read_model.job("j")
    assert row is not None
    assert row.tenant == "acme"


def test_what_is_said_to_another_tenant_under_its_id_is_no_part_of_a_job(read_model: ReadModel) -> None:
    """Two gateways may have accepted one id at the same moment; whoever's the job is not reads nothing of it."""
    foreign = TextDelta(job_id="j", tenant="thief", call_id="t", number=0, text="stolen")
    failed = letter("j", 1, seconds=10**9).model_copy(update={"tenant": "thief"})
    read_model.apply([record(asked("j"), 0, at=t(0)), record(asked("j", tenant="thief"), 1, at=t(1))])
    read_model.apply([record(status("j"), 0), record(delta("j", "c", 0), 0)])
    said = read_model.apply([record(status("j", tenant="thief"), 1), record(foreign, 1), record(failed, 0)])
    assert not [told for change in said for told in change.told]
    (change,) = read_model.apply([record(delta("j", "c", 1), 2)])
    assert [told.offset for told in change.told] == [2]
    row, evidence, watched = read_model.job("j"), read_model.evidence("j"), read_model.watched("j", Position())
    assert row is not None
    assert evidence is not None
    assert watched is not None
    assert (row.tenant, row.state) == ("acme", Standing.RUNNING)
    assert [(told.lane, told.offset) for told in watched.told] == [("status", 0), ("delta", 0), ("delta", 2)]
    explained = explain(evidence, now=t(9))
    assert explained.standing is Standing.RUNNING
    assert [moment.what for moment in explained.timeline] == ["submitted", "running"]


def test_an_answered_job_does_not_become_another_tenants(read_model: ReadModel) -> None:
    read_model.apply(records(asked("j"), result("j")))
    read_model.apply([record(result("j", text="Stolen.", tenant="thief"), 1)])
    row, evidence = read_model.job("j"), read_model.evidence("j")
    assert row is not None
    assert evidence is not None
    assert evidence.result is not None
    assert (row.tenant, evidence.result.text) == ("acme", "Forty.")


def test_a_cancel_counts_for_its_own_tenants_job_alone(read_model: ReadModel) -> None:
    read_model.apply(records(asked("a"), asked("b"), CancelRequested(job_id="a", tenant="acme")))
    read_model.apply([record(CancelRequested(job_id="b", tenant="other"), 1)])
    wanted = {row.job_id: row.cancel_requested for row in read_model.jobs().jobs}
    assert wanted == {"a": True, "b": False}
    read_model.apply([record(CancelRequested(job_id="nobody", tenant="acme"), 2)])
    assert read_model.job("nobody") is None


def test_a_batch_counts_once_however_often_it_comes(read_model: ReadModel, path: Path) -> None:
    batch = records(asked("j"), status("j"), delta("j", "c", 0), status("j", JobState.COMPLETED), result("j"))
    read_model.apply(batch)
    before, positions = read_model.evidence("j"), read_model.positions()
    read_model.apply(batch)
    assert (read_model.evidence("j"), read_model.positions()) == (before, positions)
    read_model.close()
    with closing(ReadModel(path)) as again:
        assert (again.evidence("j"), again.positions()) == (before, positions)


def test_a_batch_that_fails_leaves_nothing(read_model: ReadModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise sqlite3.OperationalError("disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(ReadModel, "_store_positions", fail)
        with pytest.raises(sqlite3.OperationalError):
            read_model.apply(records(asked("j")))
    assert read_model.job("j") is None
    read_model.apply(records(asked("j")))
    assert read_model.job("j") is not None


def test_statuses_of_a_job_are_bounded(read_model: ReadModel) -> None:
    read_model.apply([record(status("j", step=f"s{number}"), number) for number in range(MOST + 5)])
    evidence = read_model.evidence("j")
    assert evidence is not None
    assert [status.step for status in evidence.statuses] == [f"s{number}" for number in range(5, MOST + 5)]


def test_a_job_that_is_sent_again_and_again_costs_little_and_changes_no_hands(read_model: ReadModel) -> None:
    read_model.apply(records(status("j")))
    many = [record(status("j", tenant="thief", step=f"s{number}"), number) for number in range(1, 3000)]
    for start in range(0, len(many), 10):
        read_model.apply(many[start : start + 10])
    read_model.apply([record(letter("j", number), number) for number in range(2000)])
    row = read_model.job("j")
    assert row is not None
    assert (row.tenant, row.state) == ("acme", "dead_lettered")
    evidence = read_model.evidence("j")
    assert evidence is not None
    assert {status.tenant for status in evidence.statuses} <= {"acme"}
    assert len(evidence.buried) == MOST
    assert read_model.letters(LetterFilter(job_id="j")).total == 2000


def test_what_is_no_event_is_counted(read_model: ReadModel) -> None:
    foreign = record(status("j"), 3)
    broken = [
        Record("jobs.status", 0, 0, b"j", b"{", (), utc_now()),
        Record("jobs.status", 0, 1, b"j", None, (), utc_now()),
        record(delta("j", "c", 0), 0),
        record(delta("j", "c", 2**70), 1),
        Record("jobs.status", 0, 3, b"another", foreign.value, (), utc_now()),
    ]
    (change,) = read_model.apply([*broken, record(status("j"), 4)])
    assert read_model.skipped == 4
    assert [told.offset for told in change.told] == [0, 4]
    assert read_model.positions()["jobs.status", 0] == 5
    assert len(read_model.jobs().jobs) == 1


def test_of_the_calls_of_a_model_only_the_last_one_is_told(read_model: ReadModel) -> None:
    stalled = [delta("j", "one", 1), delta("j", "two", 1), delta("j", "one", 2), delta("j", "one", 0)]
    read_model.apply(records(asked("j"), delta("j", "one", 0), delta("j", "two", 0), *stalled))
    unbegun = record(delta("j", "three", 4), 6)
    assert read_model.apply([unbegun]) == []
    change = read_model.watched("j", Position())
    assert change is not None
    assert [(told.lane, told.offset) for told in change.told] == [("delta", 1), ("delta", 3)]


def test_an_end_is_settled_when_all_that_led_to_it_is_there(read_model: ReadModel) -> None:
    parts = [
        status("j", JobState.COMPLETED),
        result("j", "c"),
        delta("j", "c", 0),
        delta("j", "c", 1, last=True),
    ]
    read_model.apply(records(asked("j")))
    settled, ended = [], []
    for part in records(*parts):
        (change,) = read_model.apply([part])
        settled.append(change.settled)
        ended.append(change.ended)
    assert ended == [False, True, True, True]
    assert settled == [False, False, False, True]
    assert read_model.ended("j")


def test_dead_letters_are_found_as_the_command_finds_them(read_model: ReadModel) -> None:
    letters = [letter("a", 0), letter("a", 1, seconds=1), letter("b", 2, step="answer", seconds=2)]
    marker = DeadLetterRedriven(
        job_id="a", tenant="acme", dead_letter_id=letters[0].event_id, topic="requests.submitted", redrives=1
    )
    read_model.apply(records(*letters, marker))
    filters = [
        LetterFilter(),
        LetterFilter(job_id="a"),
        LetterFilter(step="answer"),
        LetterFilter(step="answer.infer"),
        LetterFilter(step="answer.inf"),
        LetterFilter(error_class="poison"),
        LetterFilter(tenant="nobody"),
        LetterFilter(topic="requests.submitted"),
        LetterFilter(topic="documents.uploaded"),
        LetterFilter(since=t(1), until=t(2)),
    ]
    for wanted in filters:
        for include_redriven in (True, False):
            matching = [
                each.event_id
                for each in reversed(letters)
                if wanted.matches(each) and (include_redriven or each is not letters[0])
            ]
            page = read_model.letters(wanted, include_redriven=include_redriven)
            assert ([each.id for each in page.letters], page.total) == (matching, len(matching)), wanted
    assert read_model.letters(LetterFilter(), limit=1).total == 2
    found = read_model.letter(letters[1].event_id)
    assert found is not None
    buried, place = found
    assert (buried.letter.job_id, place.topic, place.offset) == ("a", "requests.submitted.dlq", 1)


def test_no_prompt_is_in_the_file(read_model: ReadModel, path: Path) -> None:
    upload = DocumentUploaded(job_id="d", document_id="doc", text="a secret text")
    question = RequestSubmitted(job_id="j", prompt="a secret prompt")
    read_model.apply(records(letter("j", 0), question, upload))
    read_model.close()
    written = b"".join(file.read_bytes() for file in path.parent.iterdir())
    assert b"the model answered 500" in written
    assert b"secret" not in written


def test_reviews_stand_as_their_first_decision_says(read_model: ReadModel) -> None:
    def review(name: str, seconds: float, expires_at: datetime | None = None) -> ReviewRequested:
        return ReviewRequested(
            job_id=name,
            tenant="acme",
            review_id=name,
            root_job_id=name,
            limit="depth",
            value=9,
            allowed=8,
            reason="too deep",
            depth=9,
            prompt_chars=1,
            origin="requests.submitted/0/0",
            expires_at=expires_at,
            requested_at=t(seconds),
        )

    def decided(name: str, decision: str, seconds: float, *, root: str | None = None) -> ReviewDecided:
        fields = {"job_id": name, "tenant": "acme", "review_id": name, "root_job_id": root or name}
        return ReviewDecided.model_validate(fields | {"decision": decision, "decided_at": t(seconds)})

    read_model.apply(
        records(
            review("approved", 1),
            review("open", 2),
            review("expired", 3, expires_at=t(4)),
            decided("approved", "reject", 9),
            decided("approved", "approve", 5),
            decided("open", "reject", 5, root="another job's"),
        )
    )
    standings = {each.requested.review_id: each.standing(utc_now()) for each in read_model.reviews()}
    assert standings == {"expired": "expired", "open": "open", "approved": "approved"}
    for standing in standings:
        assert [each.requested.review_id for each in read_model.reviews(state=standing)] == [standing]
    assert read_model.reviews(tenant="other") == []
    assert [each.requested.review_id for each in read_model.reviews(job_id="open")] == ["open"]
    assert read_model.review("nobody") is None


def test_a_window_of_usage_is_its_latest_version(read_model: ReadModel) -> None:
    def window(calls: int, version: int, seconds: float = 0) -> UsageWindowed:
        return UsageWindowed(
            tenant="acme",
            model="m",
            window_start=t(seconds),
            window_s=60,
            calls=calls,
            prompt_tokens=1,
            completion_tokens=1,
            version=version,
            closed=False,
        )

    read_model.apply(records(window(2, 2), window(1, 1), window(3, 2), window(9, 1, seconds=-60)))
    found = read_model.usage(tenant="acme", since=t(30), window_s=60)
    assert [each.calls for each in found] == [3]
    assert read_model.usage(since=t(30), window_s=3600) == []
    assert len(read_model.usage(since=t(-30), window_s=60)) == 2


def test_the_budget_that_was_decided_last_holds(read_model: ReadModel) -> None:
    late = BudgetChanged(job_id="l", tenant="acme", policy="defer", windows=(), changed_at=t(2))
    early = BudgetChanged(job_id="e", tenant="acme", policy="alert", windows=(), changed_at=t(1))
    read_model.apply(records(late, early))
    assert read_model.budget("acme") == late
    assert read_model.budget("other") is None
    read_model.apply([Record("budgets.config", 0, 2, b"acme", None, (), utc_now())])
    budget = read_model.budget("acme")
    assert budget is not None
    assert budget.budget is None


def test_rows_go_with_their_topics_retention(read_model: ReadModel) -> None:
    now = utc_now()
    old, recent = now - timedelta(days=31), now - timedelta(minutes=5)
    long_ago = now - timedelta(hours=2)
    read_model.apply(
        [
            record(status("old"), 0, at=old),
            record(status("kept"), 1, at=recent),
            record(delta("kept", "c", 0), 0, at=long_ago),
            record(delta("kept", "c", 1), 1, at=recent),
            record(letter("buried", 0), 0, at=old),
        ]
    )
    read_model.prune(now)
    assert {row.job_id for row in read_model.jobs().jobs} == {"kept", "buried"}
    change = read_model.watched("kept", Position())
    assert change is not None
    assert [(told.lane, told.offset) for told in change.told] == [("status", 1), ("delta", 1)]


def test_deltas_are_bounded_in_all(read_model: ReadModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_DELTAS", 3)
    read_model.apply(records(status("j"), *[delta("j", "c", number) for number in range(10)]))
    read_model.prune(utc_now())
    change = read_model.watched("j", Position(status=1))
    assert change is not None
    assert [told.offset for told in change.told] == [6, 7, 8, 9]


@pytest.mark.parametrize("spoil", ["version", "content"])
def test_a_file_that_is_not_ours_is_made_anew(path: Path, spoil: str) -> None:
    with closing(ReadModel(path)) as read_model:
        read_model.apply(records(asked("j")))
    if spoil == "version":
        with closing(sqlite3.connect(path)) as db:
            db.execute("PRAGMA user_version = 999")
    else:
        path.write_bytes(b"not a database" * 1000)
    with closing(ReadModel(path)) as read_model:
        assert read_model.jobs().jobs == ()
        assert read_model.positions() == {}
        read_model.apply(records(asked("j")))
        assert read_model.job("j") is not None


@pytest.mark.parametrize("content", ["a ledger", "a text"])
def test_a_file_that_is_no_read_model_is_refused_and_left_as_it_is(path: Path, content: str) -> None:
    if content == "a ledger":
        with closing(sqlite3.connect(path)) as db:
            db.execute("CREATE TABLE jobs (job_id TEXT)")
    else:
        path.write_text("kept for years")
    before = path.read_bytes()
    with pytest.raises(Fatal, match="is no read model"):
        ReadModel(path)
    assert path.read_bytes() == before


def test_a_file_is_one_gateways_alone(path: Path) -> None:
    with closing(ReadModel(path)), pytest.raises(Fatal, match="another gateway's"):
        ReadModel(path)
    with closing(ReadModel(path)):
        pass


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Fatal, match="HEADRACE_READ_MODEL"):
        ReadModel(tmp_path / "file" / "read_model.sqlite")


def test_clearing_forgets_everything(read_model: ReadModel) -> None:
    indexed = DocumentIndexed(job_id="d", document_id="doc", chunks=1, model="m")
    read_model.apply(records(asked("j"), status("j"), result("j"), letter("j", 0), delta("j", "c", 0), indexed))
    read_model.belongs_to("", "first")
    read_model.clear()
    assert read_model.jobs().jobs == ()
    assert read_model.positions() == {}
    assert read_model.letters(LetterFilter()).total == 0
    assert read_model.belongs_to("", "second")
    assert not read_model.belongs_to("", "first")


def test_a_job_that_was_noted_is_known_at_every_moment_while_its_record_is_being_applied(
    read_model: ReadModel,
) -> None:
    """Else another tenant's request under its id could pass in between."""
    unknown: list[str] = []
    applied = threading.Event()

    def look(job_id: str) -> None:
        while not applied.is_set():
            if read_model.job(job_id) is None:
                unknown.append(job_id)

    for n in range(200):
        applied.clear()
        read_model.note(asked(f"j{n}"))
        looking = threading.Thread(target=look, args=(f"j{n}",))
        looking.start()
        read_model.apply([record(asked(f"j{n}"), n)])
        applied.set()
        looking.join()
    assert unknown == []
