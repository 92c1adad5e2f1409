"""Chunks cover the text, fit the model and break where a reader would."""

import re
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from connectors.embedder.port import Embedder, Tokenizer
from operators import chunk as chunking
from operators.chunk import ChunkPolicy, cut, cut_to_fit
from schemas.documents import SectionMark
from schemas.errors import Poison
from tests.chaos.victim import HashEmbedder

SMALL = ChunkPolicy(size_tokens=8, overlap_tokens=2)


def words(text: str) -> list[tuple[int, int]]:
    """Offsets as a tokenizer gives them; long words are several tokens."""
    return [match.span() for match in re.finditer(r"\w{1,4}|[^\w\s]", text)]


texts = st.lists(
    st.sampled_from(["mill", "wheel", "headrace", "a", ".", "!", "\n", "\n\n", " ", "ü", "字"]), max_size=200
).map("".join)
policies = st.integers(1, 40).flatmap(
    lambda size: st.builds(ChunkPolicy, size_tokens=st.just(size), overlap_tokens=st.integers(0, size // 2))
)


@given(text=texts, policy=policies, marks=st.lists(st.integers(0, 300), max_size=5))
def test_every_token_is_in_a_chunk_and_none_is_too_large(text: str, policy: ChunkPolicy, marks: list[int]) -> None:
    offsets = words(text)
    sections = [SectionMark(start=start, label=str(start)) for start in sorted(marks)]
    if not offsets:
        with pytest.raises(Poison, match="no tokens"):
            cut(text, sections, offsets, policy)
        return
    chunks = cut(text, sections, offsets, policy)
    inside = [[at for at in offsets if chunk.start <= at[0] and at[1] <= chunk.end] for chunk in chunks]
    assert {at for tokens in inside for at in tokens} == set(offsets)
    assert all(len(tokens) <= policy.size_tokens for tokens in inside)
    assert all(chunk.text == text[chunk.start : chunk.end] == chunk.text.strip() for chunk in chunks)
    assert [chunk.ordinal for chunk in chunks] == list(range(len(chunks)))
    assert all(one.start < two.start and one.end < two.end for one, two in pairwise(chunks))


@pytest.mark.parametrize(
    "text", ["x" * 50_000, "start " + " " * 50_000 + "end", "字" * 50_000, "a " + "y" * 9_999 + " b"]
)
def test_no_chunk_is_longer_than_a_message_can_carry_whatever_the_text_is_made_of(text: str) -> None:
    policy = ChunkPolicy()
    chunks = cut(text, [], [match.span() for match in re.finditer(r"\S+", text)], policy)
    assert all(chunk.end - chunk.start <= policy.size_chars for chunk in chunks)
    covered = {at for chunk in chunks for at in range(chunk.start, chunk.end)}
    assert covered >= {at for at, character in enumerate(text) if character != " "}


def test_a_short_text_is_one_chunk() -> None:
    (chunk,) = cut("  One line.\n", [], words("  One line.\n"), SMALL)
    assert chunk.text == "One line."


def test_a_chunk_ends_at_a_sentence_rather_than_inside_one() -> None:
    text = "One two thr fou fiv. Six sev eig nin ten."
    assert cut(text, [], words(text), SMALL)[0].text == "One two thr fou fiv."


def test_a_new_section_begins_a_new_chunk_without_overlap() -> None:
    text = "aa bb cc dd ee\nSec ff gg hh ii jj"
    chunks = cut(text, [SectionMark(start=15, label="Sec")], words(text), SMALL)
    assert [(chunk.text, chunk.label) for chunk in chunks] == [("aa bb cc dd ee", None), ("Sec ff gg hh ii jj", "Sec")]


def test_neighbours_share_the_end_of_the_first_where_nothing_better_divides_them() -> None:
    text = "aa bb cc dd ee ff gg hh ii jj"
    first, second = cut(text, [], words(text), SMALL)
    assert (first.text, second.text) == ("aa bb cc dd ee ff gg hh", "gg hh ii jj")


@pytest.mark.parametrize(("size_tokens", "labels"), [(3, ["page 1", "page 2"]), (6, ["page 1 to page 2"])])
def test_the_label_names_the_sections_that_the_chunk_lies_in(size_tokens: int, labels: list[str]) -> None:
    text = "aa bb cc\n\ndd ee ff"
    sections = [SectionMark(start=0, label="page 1"), SectionMark(start=10, label="page 2")]
    policy = ChunkPolicy(size_tokens=size_tokens, overlap_tokens=0)
    assert [chunk.label for chunk in cut(text, sections, words(text), policy)] == labels


class Narrow(HashEmbedder):
    """Reads little, and tokenises as the real model does."""

    def __init__(self, tokenizer: Tokenizer, max_tokens: int) -> None:
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens


unbroken = st.text(st.sampled_from("nvpwcsmrtbu今日はआईन"), min_size=20, max_size=200)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=unbroken, size=st.integers(8, 16))
def test_the_model_reads_every_chunk_whole_whatever_the_words_are_cut_into(
    embedder: Embedder, text: str, size: int
) -> None:
    narrow = Narrow(embedder.tokenizer, max_tokens=size)
    if not embedder.tokenizer.offsets(text):
        return
    for chunk in cut_to_fit(text, (), narrow, ChunkPolicy(size, size // 4)):
        assert len(embedder.tokenizer.offsets(chunk.text)) <= size


def test_a_word_of_thousands_of_letters_is_cut_into_what_the_model_reads(embedder: Embedder) -> None:
    text = "wheel " + "qz" * 1_001  # one unknown token as a whole; its last piece has dozens
    chunks = cut_to_fit(text, (), Narrow(embedder.tokenizer, 30), ChunkPolicy(30, 5, size_chars=90))
    assert max(len(embedder.tokenizer.offsets(chunk.text)) for chunk in chunks) <= 30
    assert chunks[-1].end == len(text)


class Measured(Tokenizer):
    """Remembers the longest text that it was given."""

    def __init__(self, inner: Tokenizer) -> None:
        self._inner = inner
        self.longest = 0

    def offsets(self, text: str) -> list[tuple[int, int]]:
        self.longest = max(self.longest, len(text))
        return self._inner.offsets(text)


@pytest.mark.parametrize("sentence", ["水車は川の力で回る。", "The wheel turns.\n\n", "x"])
def test_a_text_of_millions_of_characters_is_tokenised_in_slices(embedder: Embedder, sentence: str) -> None:
    text = sentence * (300_000 // len(sentence))
    tokenizer = Measured(embedder.tokenizer)
    chunks = cut_to_fit(text, (), Narrow(tokenizer, 254), ChunkPolicy())
    assert tokenizer.longest <= 100_000  # 10,000,000 at once took 6 GB
    covered = 0
    for chunk in chunks:
        assert not text[covered : chunk.start].strip()
        covered = max(covered, chunk.end)
    assert not text[covered:].strip()


spaced = st.text(st.sampled_from("wheel mill\n. \t東京é"), max_size=200)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=spaced, size=st.integers(40, 60))
def test_slices_make_no_difference_to_the_chunks_of_a_text_with_blanks(
    embedder: Embedder, text: str, size: int
) -> None:
    text = " ".join(text[at : at + 20] for at in range(0, len(text), 20))
    narrow, policy = Narrow(embedder.tokenizer, 16), ChunkPolicy(12, 3)
    offsets = embedder.tokenizer.offsets(text)
    if not offsets:
        return
    whole = cut_to_fit(text, (), narrow, policy)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunking, "SLICE_CHARS", size)
        assert cut_to_fit(text, (), narrow, policy) == whole
