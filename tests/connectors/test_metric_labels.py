"""A producer that makes up tenants makes no metrics without end."""

from connectors.metric_labels import Bounded


def test_the_first_names_keep_theirs_and_the_rest_are_other() -> None:
    tenants = Bounded(2)
    assert [tenants.label(name) for name in ("a", "b", "c", "a", "d", "b")] == ["a", "b", "other", "a", "other", "b"]
