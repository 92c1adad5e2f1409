"""A set of digests is a set, whatever its size."""

import tracemalloc
from collections.abc import Callable, Sized

from hypothesis import given
from hypothesis import strategies as st

from operators.digests import DIGEST_BYTES, Digests, digest_of

NUMBERS = st.lists(st.integers(0, 400), max_size=400)


@given(NUMBERS, st.integers(0, 400))
def test_it_holds_what_was_added_and_nothing_else_after_a_restart_too(numbers: list[int], restart_at: int) -> None:
    digests, expected = Digests(), set[bytes]()
    for place, number in enumerate(numbers):
        if place == restart_at:
            digests = Digests(digests.packed)
        digest = digest_of(str(number))
        assert (digest in digests) == (digest in expected)
        digests.add(digest)
        expected.add(digest)
        assert digest in digests
    assert set(digests) == expected
    assert len(digests) == len(expected)
    assert len(digests.packed) == DIGEST_BYTES * len(expected)


def test_a_digest_takes_a_third_of_what_it_takes_in_a_set() -> None:
    """What a flow remembers of the ids of a day decides how much memory it needs."""
    ids = [str(number) for number in range(20_000)]
    assert 3 * memory_of(lambda: Digests(b"".join(map(digest_of, ids)))) < memory_of(lambda: set(map(digest_of, ids)))


def memory_of(make: Callable[[], Sized]) -> int:
    """In bytes, of what stays."""
    tracemalloc.start()
    made = make()
    size_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(made) == 20_000
    return size_bytes
