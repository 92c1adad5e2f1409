"""Texts to chunks that fit the embedding model.

Guarantee: every token is in at least one chunk, no chunk has more than `size_tokens` or `size_chars`, and the same text
gives the same chunks. State: offload's pending documents. Dead letters: a text without any token.
"""

from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

from bytewax.dataflow import operator
from bytewax.operators import KeyedStream

from connectors.embedder.port import Embedder, Tokenizer
from connectors.executors import ThreadExecutor
from connectors.spaces import Spaces
from operators.envelope import Envelope
from operators.offload import OffloadPolicy, offload
from operators.outcome import Outcome
from operators.runtime import Runtime
from schemas.documents import DocumentExtracted, SectionMark
from schemas.errors import Fatal, Poison

CHUNK = OffloadPolicy(
    capacity=4,  # tokenising is CPU work on threads: more at once only waits
    backlog=12,  # each may hold a text of millions of characters
    timeout_s=120.0,
    keep_key_order=True,
)
SLICE_CHARS = 100_000  # a tokenizer takes some 600 bytes per character, and a text may have 10,000,000


@dataclass(frozen=True)
class ChunkPolicy:
    """How a text is cut."""

    size_tokens: int = 200  # below MiniLM's 254, which leaves room for a word that is tokenised differently when cut
    overlap_tokens: int = 30  # about a sentence, so that one that is cut in two is whole in one of the chunks
    size_chars: int = 4_000  # one unbroken "word" of megabytes is a single token; 50 such passages fit a Kafka message


@dataclass(frozen=True)
class Chunk:
    """A piece of a text: `text[start:end]`, without blanks at its ends."""

    ordinal: int  # from 0
    start: int  # in characters
    end: int  # in characters, exclusive
    label: str | None  # the section that it lies in, or the first and the last: "page 1 to page 2"
    text: str


@dataclass(frozen=True)
class ChunkedDocument:
    """A document, its text replaced by its chunks."""

    document: DocumentExtracted
    chunks: tuple[Chunk, ...]


class _Boundary(IntEnum):
    """How good a place to cut is: the best one in the second half of a chunk wins, the last among equals."""

    NONE = 0  # inside a word
    WORD = 1
    SENTENCE = 2
    PARAGRAPH = 3
    SECTION = 4


def cut(
    text: str, sections: Sequence[SectionMark], offsets: Iterable[tuple[int, int]], policy: ChunkPolicy
) -> tuple[Chunk, ...]:
    """Cut a text at token boundaries, where possible at the end of a section, paragraph, sentence or word.

    `offsets` are (start, end) in characters of each token, in order. Raises Poison if there are none.
    """
    starts, ends = _compact(piece for span in offsets for piece in _pieces(span, policy.size_chars))
    if not starts:
        raise Poison("the text has no tokens: nothing in it can be searched for")
    section_starts = [section.start for section in sections]

    def boundary(token: int) -> _Boundary:
        """What lies between the token before and this one."""
        before, after = ends[token - 1], starts[token]
        if bisect_right(section_starts, after) > bisect_right(section_starts, starts[token - 1]):
            return _Boundary.SECTION
        gap = text[before:after]
        if gap.count("\n") > 1:
            return _Boundary.PARAGRAPH
        if gap and text[before - 1] in ".!?…。！？":  # noqa: RUF001  # full-width marks end sentences too
            return _Boundary.SENTENCE
        return _Boundary.WORD if gap else _Boundary.NONE

    chunks: list[Chunk] = []
    first = 0
    while True:
        within = bisect_right(ends, starts[first] + policy.size_chars)
        last = _last_token(first, min(first + policy.size_tokens, within), len(starts), boundary)
        start, end = starts[first], ends[last - 1]
        inside = sections[max(bisect_right(section_starts, start) - 1, 0) : bisect_right(section_starts, end - 1)]
        chunks.append(Chunk(len(chunks), start, end, _label(inside), text[start:end]))
        if last == len(starts):
            return tuple(chunks)
        first = _next_token(first, last, policy, boundary)


def _compact(spans: Iterable[tuple[int, int]]) -> tuple[Sequence[int], Sequence[int]]:
    """Starts and ends in 4 bytes each; as tuples in a list they take some 120."""
    starts, ends = array("i"), array("i")
    for start, end in spans:
        starts.append(start)
        ends.append(end)
    return starts, ends


def _label(sections: Sequence[SectionMark]) -> str | None:
    if not sections:
        return None
    first, last = sections[0].label, sections[-1].label
    return first if first == last else f"{first} to {last}"


def _pieces(span: tuple[int, int], size_chars: int) -> list[tuple[int, int]]:
    """A token's span, cut where it alone is too long for a chunk."""
    start, end = span
    return [(at, min(at + size_chars, end)) for at in range(start, end, size_chars)] or [span]


def _last_token(first: int, limit: int, count: int, boundary: Callable[[int], _Boundary]) -> int:
    """Where a chunk that begins at `first` and may reach to `limit` ends, exclusive."""
    if limit >= count:
        return count
    middle = first + max((limit - first) // 2, 1)
    return max(range(middle, limit + 1), key=lambda token: (boundary(token), token))


def _next_token(first: int, last: int, policy: ChunkPolicy, boundary: Callable[[int], _Boundary]) -> int:
    """Where the next chunk begins: some tokens back, at a good place; right at the end of a section."""
    if boundary(last) is _Boundary.SECTION:
        return last
    earliest = max(last - policy.overlap_tokens, first + 1)
    return max(range(earliest, last + 1), key=lambda token: (min(boundary(token), _Boundary.SENTENCE), -token))


def chunk_document(document: DocumentExtracted, embedder: Embedder, policy: ChunkPolicy) -> ChunkedDocument:
    """Tokenise and cut a document; a delete has no chunks. Raises Fatal if the policy does not fit the model."""
    if policy.size_tokens > embedder.max_tokens:
        raise Fatal(
            f"HEADRACE_CHUNK_TOKENS={policy.size_tokens}: {embedder.model} reads at most {embedder.max_tokens} tokens"
        )
    if document.op == "delete" or document.text is None:
        return ChunkedDocument(document, ())
    return ChunkedDocument(
        document.model_copy(update={"text": None, "sections": ()}),
        cut_to_fit(document.text, document.sections, embedder, policy),
    )


def cut_to_fit(
    text: str, sections: Sequence[SectionMark], embedder: Embedder, policy: ChunkPolicy
) -> tuple[Chunk, ...]:
    """Cut a text so that the model reads each chunk whole.

    Half a word may have more tokens than it had a share of the whole one, so chunks that begin or end inside of one are
    counted again; where that is too many, all are cut smaller.
    """
    starts, ends = _compact(_offsets(text, embedder.tokenizer))
    while True:
        chunks = cut(text, sections, zip(starts, ends, strict=True), policy)
        longest = max(
            (len(embedder.tokenizer.offsets(chunk.text)) for chunk in chunks if _inside_a_word(text, chunk)), default=0
        )
        if longest <= embedder.max_tokens:
            return chunks
        if policy.size_chars == 1:
            raise Poison(
                f"one character of the text has {longest} tokens; {embedder.model} reads {embedder.max_tokens}"
            )
        size_tokens = max(1, policy.size_tokens * 3 // 4)
        policy = ChunkPolicy(size_tokens, min(policy.overlap_tokens, size_tokens // 2), policy.size_chars * 3 // 4 or 1)


def _offsets(text: str, tokenizer: Tokenizer) -> Iterator[tuple[int, int]]:
    """Those of the whole text, tokenised in slices: each ends before a blank, or anywhere if it has none."""
    start = 0
    while start < len(text):
        piece = text[start : start + SLICE_CHARS]
        if start + SLICE_CHARS < len(text) and len(words := piece.rsplit(None, 1)) > 1:
            piece = words[0]
        yield from ((start + first, start + end) for first, end in tokenizer.offsets(piece))
        start += len(piece)


def _inside_a_word(text: str, chunk: Chunk) -> bool:
    return any(
        not text[at - 1].isspace() and not text[at].isspace() for at in (chunk.start, chunk.end) if 0 < at < len(text)
    )


@operator
def chunk(
    step_id: str,
    up: KeyedStream[Envelope[DocumentExtracted]],
    spaces: Spaces,
    policy: ChunkPolicy,
    runtime: Runtime,
) -> Outcome[ChunkedDocument]:
    """Cut each document, in order per document."""
    threads = ThreadExecutor(CHUNK.capacity, name="chunker")

    async def work(envelope: Envelope[DocumentExtracted]) -> ChunkedDocument:
        space = await spaces.of(envelope.body.collection)
        return await threads.run(chunk_document, envelope.body, space.embedder, policy)

    return offload("work", up, work, body=DocumentExtracted, policy=CHUNK, runtime=runtime)
