"""What every vector index promises."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from uuid import uuid4

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from connectors.vector_index.port import Point, VectorIndex
from schemas.errors import Fatal, Poison
from tests.connectors.vector_index.conftest import DIMENSIONS, MakePoint

NewIndex = Callable[[], VectorIndex]
Unit = Callable[[int], bytes]


@asynccontextmanager
async def opened(new_index: NewIndex, collection: str) -> AsyncIterator[VectorIndex]:
    index = new_index()
    try:
        await index.open(collection, DIMENSIONS)
        yield index
    finally:
        await index.close()


def assert_same(found: Sequence[Point], wanted: Sequence[Point]) -> None:
    """Equal in all but the last bits of the vectors, which a cosine engine makes unit length again."""
    assert [replace(p, vector=b"") for p in found] == [replace(p, vector=b"") for p in wanted]
    for f, w in zip(found, wanted, strict=True):
        assert len(f.vector) == 4 * DIMENSIONS
        assert np.abs(floats(f) - floats(w)).max() <= 1e-6


def floats(point: Point) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return np.frombuffer(point.vector, dtype="<f4")


def test_opening_again_keeps_the_points(new_index: NewIndex, collection: str, point: MakePoint) -> None:
    async def scenario() -> int:
        async with opened(new_index, collection) as index:
            await index.upsert(collection, [point(0)])
            await index.open(collection, DIMENSIONS)
            return await index.count(collection)

    assert asyncio.run(scenario()) == 1


def test_opening_with_another_vector_size_is_fatal(new_index: NewIndex, collection: str) -> None:
    async def scenario() -> None:
        async with opened(new_index, collection) as index:
            await index.open(collection, DIMENSIONS + 1)

    with pytest.raises(Fatal, match=f"{collection}.* {DIMENSIONS} dimensions, not {DIMENSIONS + 1}"):
        asyncio.run(scenario())


def test_vector_of_another_size_is_fatal_and_nothing_is_written(
    new_index: NewIndex, collection: str, point: MakePoint, unit: Unit
) -> None:
    async def scenario() -> None:
        async with opened(new_index, collection) as index:
            with pytest.raises(Fatal, match="dimensions"):
                await index.upsert(collection, [point(0), replace(point(1), vector=unit(1)[:-4])])
            assert await index.count(collection) == 0
            with pytest.raises(Fatal, match="dimensions"):
                await index.search(collection, unit(1)[:-4], tenant="acme", limit=1)

    asyncio.run(scenario())


@pytest.mark.parametrize("name", ["", "..", ".hidden", "a/b", "docs docs", "é", "x" * 101])
def test_name_that_no_collection_can_have_is_poison(
    new_index: NewIndex, collection: str, unit: Unit, name: str
) -> None:
    async def scenario() -> None:
        async with opened(new_index, collection) as index:
            assert await index.count(name) == 0
            assert await index.search(name, unit(0), tenant="acme", limit=1) == ()
            await index.open(name, DIMENSIONS)

    with pytest.raises(Poison, match="collection"):
        asyncio.run(scenario())


def test_upsert_repeated_changes_nothing(new_index: NewIndex, collection: str, point: MakePoint) -> None:
    async def scenario() -> tuple[int, tuple[Point, ...], tuple[Point, ...]]:
        points = [point(n) for n in range(5)]
        async with opened(new_index, collection) as index:
            await index.upsert(collection, points)
            once = await index.list_document(collection, tenant="acme", document_id="report")
            await index.upsert(collection, points)
            return (
                await index.count(collection),
                once,
                await index.list_document(collection, tenant="acme", document_id="report"),
            )

    count, once, twice = asyncio.run(scenario())
    assert count == 5
    assert_same(twice, once)


def test_upsert_of_the_same_id_replaces_the_point(
    new_index: NewIndex, collection: str, point: MakePoint, unit: Unit
) -> None:
    async def scenario() -> tuple[Point, ...]:
        async with opened(new_index, collection) as index:
            await index.upsert(collection, [point(1)])
            await index.upsert(collection, [replace(point(1), text="new", label=None, vector=unit(77))])
            return await index.list_document(collection, tenant="acme", document_id="report")

    (found,) = asyncio.run(scenario())
    assert (found.text, found.label) == ("new", None)
    assert np.allclose(floats(found), np.frombuffer(unit(77), dtype="<f4"), atol=1e-6)


def test_search_returns_the_nearest_first_with_their_cosines(
    new_index: NewIndex, collection: str, point: MakePoint, unit: Unit
) -> None:
    points = [point(n) for n in range(50)]

    async def scenario() -> list[tuple[str, float]]:
        async with opened(new_index, collection) as index:
            await index.upsert(collection, points)
            hits = await index.search(collection, unit(7), tenant="acme", limit=10)
            return [(hit.id, hit.score) for hit in hits]

    query = np.frombuffer(unit(7), dtype="<f4")
    cosines = {p.id: float(floats(p) @ query) for p in points}
    expected = sorted(cosines.items(), key=lambda item: -item[1])[:10]
    found = asyncio.run(scenario())
    assert [point_id for point_id, _ in found] == [point_id for point_id, _ in expected]
    assert [score for _, score in found] == pytest.approx([score for _, score in expected], abs=1e-5)


def test_hit_carries_all_that_a_citation_needs(
    new_index: NewIndex, collection: str, point: MakePoint, unit: Unit
) -> None:
    async def scenario() -> None:
        async with opened(new_index, collection) as index:
            await index.upsert(collection, [point(3)])
            (hit,) = await index.search(collection, unit(3), tenant="acme", limit=5)
            wanted = point(3)
            assert (hit.id, hit.document_id, hit.uri, hit.ordinal, hit.label, hit.text) == (
                wanted.id,
                wanted.document_id,
                wanted.uri,
                wanted.ordinal,
                wanted.label,
                wanted.text,
            )
            assert 0.9999 < hit.score <= 1.0

    asyncio.run(scenario())


def test_tenant_never_reads_anothers_points(new_index: NewIndex, collection: str, point: MakePoint, unit: Unit) -> None:
    async def scenario() -> None:
        async with opened(new_index, collection) as index:
            await index.upsert(collection, [point(n, tenant="acme", text="acme's") for n in range(5)])
            await index.upsert(collection, [point(n, tenant="zenith", text="zenith's") for n in range(5)])
            hits = await index.search(collection, unit(2), tenant="zenith", limit=10)
            assert {hit.text for hit in hits} == {"zenith's"}
            listed = await index.list_document(collection, tenant="zenith", document_id="report")
            assert {p.tenant for p in listed} == {"zenith"}
            assert await index.search(collection, unit(2), tenant="nobody", limit=10) == ()
            assert await index.list_document(collection, tenant="nobody", document_id="report") == ()

    asyncio.run(scenario())


def test_tenant_never_deletes_anothers_points(new_index: NewIndex, collection: str, point: MakePoint) -> None:
    async def scenario() -> list[str]:
        async with opened(new_index, collection) as index:
            await index.upsert(collection, [point(0, tenant="acme"), point(0, tenant="zenith")])
            await index.delete_document(collection, tenant="acme", document_id="report")
            assert await index.list_document(collection, tenant="acme", document_id="report") == ()
            left = await index.list_document(collection, tenant="zenith", document_id="report")
            return [p.tenant for p in left]

    assert asyncio.run(scenario()) == ["zenith"]


def test_hidden_points_are_found_by_nobody_until_they_are_shown(
    new_index: NewIndex, collection: str, point: MakePoint, unit: Unit
) -> None:
    async def scenario() -> None:
        async with opened(new_index, collection) as index:

            async def found() -> tuple[list[int], list[int], int]:
                hits = await index.search(collection, unit(0), tenant="acme", limit=10)
                listed = await index.list_document(collection, tenant="acme", document_id="report")
                return sorted(h.ordinal for h in hits), [p.ordinal for p in listed], await index.count(collection)

            await index.upsert(collection, [replace(point(n), revision=1) for n in (0, 1)])
            fresh = [replace(point(n), revision=2, version="v/2", visible=False) for n in (2, 3)]
            await index.upsert(collection, fresh)
            assert await found() == ([0, 1], [0, 1], 2)
            states = await index.states(collection, tenant="acme", document_id="report")
            assert {(state.revision, state.visible, state.version) for state in states} == {
                (1, True, None),
                (2, False, "v/2"),
            }
            await index.show(collection, [p.id for p in fresh] + [str(uuid4())], tenant="acme", revision=3)
            assert await found() == ([0, 1, 2, 3], [0, 1, 2, 3], 4)
            states = await index.states(collection, tenant="acme", document_id="report")
            assert sorted(state.revision for state in states) == [1, 1, 3, 3]
            assert all(state.visible for state in states)

    asyncio.run(scenario())


def test_a_switch_shows_one_version_and_deletes_the_others(
    new_index: NewIndex, collection: str, point: MakePoint
) -> None:
    async def scenario() -> None:
        async with opened(new_index, collection) as index:
            await index.upsert(collection, [point(n) for n in (0, 1)])
            await index.upsert(collection, [point(0, tenant="zenith")])
            await index.upsert(collection, [replace(point(n), visible=False) for n in (2, 3, 4)])
            shown, keep = [point(2).id, point(3).id], frozenset(point(n).id for n in (1, 2, 3))
            report = {"tenant": "acme", "document_id": "report"}
            await index.switch(collection, shown, **report, revision=3, keep=keep)
            found = await index.list_document(collection, **report)
            assert [(each.ordinal, each.revision) for each in found] == [(1, 0), (2, 3), (3, 3)]
            assert len(await index.states(collection, **report)) == 3
            assert await index.count(collection) == 4
            await index.switch(collection, [], **report, revision=4, keep=frozenset())
            assert await index.count(collection) == 1

    asyncio.run(scenario())


def test_states_of_a_large_document_come_whole_and_of_that_tenant_only(
    new_index: NewIndex, collection: str, point: MakePoint
) -> None:
    async def scenario() -> int:
        async with opened(new_index, collection) as index:
            await index.upsert(collection, [point(n) for n in range(1_500)])
            await index.upsert(collection, [point(n, tenant="zenith") for n in range(3)])
            return len(await index.states(collection, tenant="acme", document_id="report"))

    assert asyncio.run(scenario()) == 1_500


@pytest.mark.parametrize("limit", [1, 3, 100])
def test_search_returns_no_more_than_the_limit(
    new_index: NewIndex, collection: str, point: MakePoint, unit: Unit, limit: int
) -> None:
    async def scenario() -> int:
        async with opened(new_index, collection) as index:
            await index.upsert(collection, [point(n) for n in range(10)])
            return len(await index.search(collection, unit(0), tenant="acme", limit=limit))

    assert asyncio.run(scenario()) == min(limit, 10)


def test_delete_document_keeps_what_it_is_told_to_keep(new_index: NewIndex, collection: str, point: MakePoint) -> None:
    async def scenario() -> tuple[list[int], int]:
        async with opened(new_index, collection) as index:
            await index.upsert(collection, [point(n) for n in range(6)])
            await index.upsert(collection, [point(n, document_id="other") for n in range(4)])
            keep = frozenset(point(n).id for n in (1, 4)) | {str(uuid4())}
            await index.delete_document(collection, tenant="acme", document_id="report", keep=keep)
            left = await index.list_document(collection, tenant="acme", document_id="report")
            return [p.ordinal for p in left], await index.count(collection)

    assert asyncio.run(scenario()) == ([1, 4], 2 + 4)


def test_list_document_returns_what_was_written_by_ordinal(
    new_index: NewIndex, collection: str, point: MakePoint
) -> None:
    written = [point(n) for n in range(20)]

    async def scenario() -> tuple[Point, ...]:
        async with opened(new_index, collection) as index:
            await index.upsert(collection, list(reversed(written)))
            return await index.list_document(collection, tenant="acme", document_id="report")

    assert_same(asyncio.run(scenario()), written)


@pytest.mark.parametrize(
    "text",
    ["", "Grüße, Ελλάδα, 東京, नमस्ते 👩‍🚀", "line\nbreak\ttab\x00nul\u2028", '"quotes" \\ {json: []}'],
)
def test_any_unicode_text_comes_back_unchanged(
    new_index: NewIndex, collection: str, point: MakePoint, text: str
) -> None:
    async def scenario() -> Point:
        async with opened(new_index, collection) as index:
            await index.upsert(collection, [point(0, tenant="Łódź", document_id="報告 #1", text=text)])
            (found,) = await index.list_document(collection, tenant="Łódź", document_id="報告 #1")
            return found

    assert asyncio.run(scenario()).text == text


def test_two_thousand_points_in_one_call(new_index: NewIndex, collection: str, point: MakePoint) -> None:
    async def scenario() -> tuple[int, list[int]]:
        async with opened(new_index, collection) as index:
            await index.upsert(collection, [point(n) for n in range(2_000)])
            listed = await index.list_document(collection, tenant="acme", document_id="report")
            return await index.count(collection), [p.ordinal for p in listed]

    assert asyncio.run(scenario()) == (2_000, list(range(2_000)))


def test_concurrent_writers_lose_nothing(new_index: NewIndex, collection: str, point: MakePoint) -> None:
    async def scenario() -> int:
        async with opened(new_index, collection) as index:
            writes = [
                index.upsert(collection, [point(n, document_id=f"d{document}") for n in range(5)])
                for document in range(40)
            ]
            await asyncio.gather(*writes)
            return await index.count(collection)

    assert asyncio.run(scenario()) == 200


def test_one_bad_write_among_concurrent_ones_fails_alone(
    new_index: NewIndex, collection: str, point: MakePoint
) -> None:
    async def scenario() -> tuple[list[type], int]:
        async with opened(new_index, collection) as index:
            bad = index.upsert(collection, [replace(point(9), vector=b"\0" * 4)])
            good = [index.upsert(collection, [point(n)]) for n in range(3)]
            outcomes = await asyncio.gather(bad, *good, return_exceptions=True)
            return [type(outcome) for outcome in outcomes], await index.count(collection)

    assert asyncio.run(scenario()) == ([Fatal, type(None), type(None), type(None)], 3)


def test_missing_collection_reads_as_empty(new_index: NewIndex, collection: str, unit: Unit) -> None:
    async def scenario() -> None:
        async with opened(new_index, collection) as index:
            missing = f"{collection}-missing"
            assert await index.count(missing) == 0
            assert await index.search(missing, unit(0), tenant="acme", limit=3) == ()
            assert await index.list_document(missing, tenant="acme", document_id="report") == ()
            assert await index.states(missing, tenant="acme", document_id="report") == ()
            await index.delete_document(missing, tenant="acme", document_id="report")

    asyncio.run(scenario())


def test_write_to_a_missing_collection_is_fatal(new_index: NewIndex, collection: str, point: MakePoint) -> None:
    async def scenario() -> None:
        async with opened(new_index, collection) as index:
            with pytest.raises(Fatal, match="does not exist"):
                await index.upsert(f"{collection}-missing", [point(0)])

            with pytest.raises(Fatal, match="does not exist"):
                await index.show(f"{collection}-missing", [point(0).id], tenant="acme", revision=1)

    asyncio.run(scenario())


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(
            st.just("upsert"), st.sampled_from(["a", "b"]), st.lists(st.integers(0, 5), max_size=4), st.integers(0, 9)
        ),
        st.tuples(st.just("delete"), st.sampled_from(["a", "b"]), st.lists(st.integers(0, 5), max_size=3), st.just(0)),
    ),
    max_size=6,
)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(operations=OPERATIONS)
def test_any_sequence_of_writes_ends_as_a_dictionary_would(
    new_index: NewIndex, point: MakePoint, operations: list[tuple[str, str, list[int], int]]
) -> None:
    model: dict[str, Point] = {}
    collection = f"test-{uuid4()}"

    async def scenario() -> None:
        async with opened(new_index, collection) as index:
            for kind, document_id, ordinals, version in operations:
                points = [point(n, document_id=document_id, text=f"v{version}") for n in ordinals]
                if kind == "upsert":
                    await index.upsert(collection, points)
                    model.update({p.id: p for p in points})
                else:
                    keep = frozenset(p.id for p in points)
                    await index.delete_document(collection, tenant="acme", document_id=document_id, keep=keep)
                    for gone in [k for k, p in model.items() if p.document_id == document_id and k not in keep]:
                        del model[gone]
            assert await index.count(collection) == len(model)
            for document_id in ("a", "b"):
                listed = await index.list_document(collection, tenant="acme", document_id=document_id)
                assert {p.id: p.text for p in listed} == {
                    k: p.text for k, p in model.items() if p.document_id == document_id
                }

    asyncio.run(scenario())


def test_an_alias_leads_readers_and_writers_to_what_serves_it(
    new_index: NewIndex, collection: str, point: MakePoint, unit: Unit
) -> None:
    async def scenario() -> None:
        async with opened(new_index, f"{collection}--1") as index:
            await index.open(f"{collection}--2", DIMENSIONS)
            assert await index.serving(collection) is None
            await index.serve(collection, f"{collection}--1")
            await index.upsert(collection, [point(1)])
            await index.upsert(f"{collection}--2", [point(2)])
            assert await index.serving(collection) == f"{collection}--1"
            assert [hit.ordinal for hit in await index.search(collection, unit(1), tenant="acme", limit=9)] == [1]
            await index.serve(collection, f"{collection}--2")
            await index.serve(collection, f"{collection}--2")
            assert await index.serving(collection) == f"{collection}--2"
            assert [hit.ordinal for hit in await index.search(collection, unit(1), tenant="acme", limit=9)] == [2]
            assert await index.count(f"{collection}--1") == 1
            with pytest.raises(Fatal, match="does not exist"):
                await index.serve(collection, f"{collection}--3")

    asyncio.run(scenario())


def test_every_state_of_a_collection_is_listed_page_by_page(
    new_index: NewIndex, collection: str, point: MakePoint
) -> None:
    async def scenario() -> list[tuple[str, str, bool]]:
        async with opened(new_index, collection) as index:
            await index.upsert(collection, [point(n) for n in range(1_200)])
            await index.upsert(collection, [replace(point(n, tenant="zenith"), visible=False) for n in range(3)])
            return [
                (state.tenant, state.document_id, state.point.visible) async for state in index.every_state(collection)
            ]

    listed = asyncio.run(scenario())
    assert sorted(set(listed)) == [("acme", "report", True), ("zenith", "report", False)]
    assert len(listed) == 1_203
