"""Epochs of the sources of one flow end together, without which they wait for each other and read nothing meanwhile."""

from datetime import UTC, datetime, timedelta

from hypothesis import example, given, settings
from hypothesis import strategies as st

from connectors.kafka.epochs import LATE, QUIET_LOOK, Epochs, Schedule, epoch_interval

EPOCH_S = 1.0
EPOCH = timedelta(seconds=EPOCH_S)
LOOK = timedelta(milliseconds=20)
START = datetime(2026, 1, 1, 12, 0, 0, 3000, tzinfo=UTC)


class Partition:
    """Looked at as Bytewax does: its epoch ends at the first look after the interval, and a look makes the next."""

    def __init__(self, began: datetime, *, busy: bool, schedule: Schedule | None = None) -> None:
        self._epochs = Epochs(EPOCH_S, began, schedule or Schedule())
        self._busy = busy
        self.began = self.look_at = began

    def look(self, late: timedelta) -> bool:
        """Whether the epoch ended. `late`: by how much the worker is."""
        now = self.look_at + late
        ended = now - self.began >= epoch_interval(EPOCH_S)
        moment = now + (timedelta(milliseconds=4) if self._busy else LOOK - (now - START) % LOOK)
        self.look_at = max(self._epochs.no_earlier(moment), now + timedelta(microseconds=100))
        if ended:
            self.began = now
            self._epochs.began(now)
        return ended

    def end_epoch(self, late: timedelta = timedelta(0)) -> None:
        while not self.look(late):
            late = timedelta(microseconds=300)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 490), st.sampled_from([(False, False), (False, True), (True, False), (True, True)]))
def test_a_source_that_was_late_ends_its_epochs_with_the_others_again(late_ms: int, busy: tuple[bool, bool]) -> None:
    punctual, late = (Partition(START, busy=each) for each in busy)
    late.end_epoch(timedelta(milliseconds=late_ms))
    punctual.end_epoch()
    for _ in range(60):
        punctual.end_epoch()
        late.end_epoch()
    assert abs(punctual.began - late.began) % EPOCH < timedelta(milliseconds=5)


@settings(max_examples=100, deadline=None)
@example(480_000, [0, 40_000])
@given(st.integers(0, 1_000_000), st.lists(st.integers(0, 60_000), min_size=2, max_size=6))
def test_sources_that_begin_within_a_moment_are_never_a_whole_epoch_apart(phase_us: int, after_us: list[int]) -> None:
    """Those that were ahead waited for the others, without a pause, as long as the flow ran."""
    schedule = Schedule()
    start = START + timedelta(microseconds=phase_us)
    began = sorted(start + timedelta(microseconds=each) for each in after_us)
    partitions = [Partition(at, busy=False, schedule=schedule) for at in began]
    for _ in range(5):
        for each in partitions:
            each.end_epoch()
        ends = [each.began for each in partitions]
        assert max(ends) - min(ends) < EPOCH / 8


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1_000_000))
def test_an_epoch_lasts_as_long_as_was_asked_for(offset_us: int) -> None:
    partition = Partition(START + timedelta(microseconds=offset_us), busy=False)
    for _ in range(60):
        partition.end_epoch()
    began = partition.began
    for _ in range(10):
        partition.end_epoch()
    assert abs(partition.began - began - 10 * EPOCH) < timedelta(milliseconds=5)


def test_a_look_is_put_off_by_no_more_than_what_an_epoch_may_end_too_early() -> None:
    epochs = Epochs(EPOCH_S, START, Schedule())
    for ms in range(1200):
        moment = START + timedelta(milliseconds=ms)
        assert timedelta(0) <= epochs.no_earlier(moment) - moment <= EPOCH - epoch_interval(EPOCH_S) + LATE


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 990))
def test_a_quiet_source_that_was_late_ends_its_epochs_with_the_others_again(late_ms: int) -> None:
    """Whoever looks seldom would find its epoch a little too short each time, and be a whole look late for ever."""
    now = began = START + timedelta(milliseconds=late_ms)
    epochs = Epochs(EPOCH_S, now, Schedule())
    for _ in range(60 * 20):
        if now - began >= epoch_interval(EPOCH_S):
            began = now
            epochs.began(now)
        now = epochs.next_look(now, QUIET_LOOK) + timedelta(microseconds=300)
    assert timedelta(microseconds=began.microsecond) < timedelta(milliseconds=5)
