"""Slices: everything is somebody's, and nobody else's."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connectors.slices import Slice

counts = st.integers(1, 50)


@given(counts, st.text(max_size=50))
def test_each_tenant_belongs_to_exactly_one_slice(count: int, tenant: str) -> None:
    assert sum(Slice(index, count, "tenant").owns_tenant(tenant) for index in range(count)) == 1


@given(counts, st.integers(0, 10_000))
def test_each_partition_belongs_to_exactly_one_slice(count: int, partition: int) -> None:
    assert sum(Slice(index, count, "partition").owns_partition(partition) for index in range(count)) == 1


def test_tenants_stay_where_they_are_in_every_release() -> None:
    """What a slice remembers of its tenants is nowhere else."""
    owners = {tenant: next(n for n in range(4) if Slice(n, 4, "tenant").owns_tenant(tenant)) for tenant in "abcd"}
    assert owners == {"a": 3, "b": 1, "c": 3, "d": 0}


@pytest.mark.parametrize("index", [-1, 3])
def test_a_slice_that_owns_nothing_is_refused(index: int) -> None:
    with pytest.raises(ValueError, match=f"slice {index} of 3"):
        Slice(index, 3, "partition")
