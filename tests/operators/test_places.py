"""A bound on what goes to one receiver at once."""

from hypothesis import given
from hypothesis import strategies as st

from operators.places import Places, PlacesPolicy


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_host_gets_no_more_than_its_share_and_another_host_has_its_own() -> None:
    places = Places(PlacesPolicy(per_host=2, per_tenant=10))
    assert [places.take(f"a{n}", tenant="t", host="a") for n in range(3)] == [True, True, False]
    assert places.take("b", tenant="t", host="b")
    assert places.take("c", tenant="another", host="a")
    places.give("a0")
    assert places.take("a2", tenant="t", host="a")


def test_a_tenant_with_many_hosts_gets_no_more_than_its_share() -> None:
    places = Places(PlacesPolicy(per_host=2, per_tenant=3))
    assert [places.take(str(n), tenant="t", host=str(n)) for n in range(4)] == [True, True, True, False]
    assert places.take("another", tenant="another", host="0")


def test_what_is_under_way_is_not_sent_a_second_time_meanwhile() -> None:
    places = Places()
    assert places.take("a", tenant="t", host="h")
    assert not places.take("a", tenant="t", host="h")


def test_a_place_that_is_never_given_back_is_free_in_the_end() -> None:
    clock = Clock()
    places = Places(PlacesPolicy(per_host=1, forgotten_s=60.0), clock)
    assert places.take("a", tenant="t", host="h")
    clock.now = 59.0
    assert not places.take("b", tenant="t", host="h")
    clock.now = 60.0
    assert places.take("b", tenant="t", host="h")
    places.give("a")  # too late: it is no longer its own
    assert not places.take("c", tenant="t", host="h")


@given(st.lists(st.tuples(st.booleans(), st.sampled_from("abcdef"), st.sampled_from("tu"), st.sampled_from("hi"))))
def test_whatever_comes_and_goes_the_bounds_hold_and_everything_is_free_again(
    steps: list[tuple[bool, str, str, str]],
) -> None:
    places = Places(PlacesPolicy(per_host=2, per_tenant=3))
    taken: dict[str, tuple[str, str]] = {}
    for takes, name, tenant, host in steps:
        if not takes:
            places.give(name)
            taken.pop(name, None)
        elif places.take(name, tenant=tenant, host=host):
            taken[name] = (tenant, host)
        assert all(list(taken.values()).count(place) <= 2 for place in taken.values())
        assert all([place[0] for place in taken.values()].count(tenant) <= 3 for tenant in "tu")
    for name in list(taken):
        places.give(name)
    assert [places.take(name, tenant="t", host=host) for name, host in (("1", "h"), ("2", "h"), ("3", "i"))] == [
        True
    ] * 3
