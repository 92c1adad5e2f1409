"""How good retrieval is: the whole pipeline against exhaustive search with the same model, on a judged corpus.

Pipeline: the documents go through the ingest flow, with its parser, model and index as `headrace run` has them; each
query goes through what the answer flow's step `retrieve` calls. Exhaustive: the same chunks, embedded by the plain
model in float32, every cosine computed. A document's score is that of its best chunk in both. So what differs is what
we add to the model: batching, bfloat16 where the hardware has it, the index.

The corpus's format is that of `benchmarks/judged_corpus.py`.
"""

import asyncio
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

import click
import numpy as np
from bytewax.testing import cluster_main

from benchmarks.judged_corpus import CorpusError, JudgedCorpus, read_corpus
from benchmarks.ranking import ndcg, recall
from benchmarks.report import Aim, emit
from connectors.embedder.port import Embedder, Tokenizer
from connectors.event_loop import EventLoop
from connectors.kafka.stop import Stop
from connectors.object_store import ObjectStore, file_uri
from connectors.parsers.pool import ProcessParser
from connectors.spaces import IndexedSpaces, Spaces
from connectors.vector_index.edge import EdgeIndex
from connectors.vector_index.port import VectorIndex
from flows import ingest
from operators.chunk import ChunkPolicy, cut
from operators.extract import ExtractPolicy
from operators.retrieve import RETRIEVE, find_passages
from operators.runtime import Runtime
from schemas.documents import INLINE_TEXT_MAX_CHARS, DocumentUploaded
from schemas.requests import RequestSubmitted
from tests.memory_topics import MemoryTopics, record

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

DEPTH = 10
PASSAGES = 50  # the most that a request may ask for, since several may be of one document
DIFFERENCE_AIM = 0.01
SAMPLE = Path(__file__).parent.parent / "examples" / "retrieval"

_STEP_S = 3600.0  # a stop for what hangs, far above what any step takes


@dataclass(frozen=True)
class Ranked:
    """What one way of searching found."""

    rankings: Mapping[str, Sequence[str]]  # by query: documents, best first, DEPTH at most
    chunks: int


def measure(corpus: JudgedCorpus, embedder: Embedder, plain: "SentenceTransformer") -> dict[str, float]:
    """The figures, unrounded. `plain` is the embedder's model in float32.

    `queries_short` counts those for which PASSAGES passages were of fewer than DEPTH documents, though there are more.
    """
    policy = ChunkPolicy()
    with tempfile.TemporaryDirectory(prefix="headrace-retrieval-") as directory, EventLoop() as loop:
        pipeline = through_pipeline(corpus, embedder, policy, Path(directory), loop)
    exhaustive = exhaustively(corpus, embedder.tokenizer, policy, plain)
    if pipeline.chunks != exhaustive.chunks:
        raise click.ClickException(
            f"the ingest flow made {pipeline.chunks} chunks, plain cutting {exhaustive.chunks}: a document of more "
            f"than {INLINE_TEXT_MAX_CHARS} characters was not read as plain text; what does it begin with?"
        )
    enough = min(DEPTH, len(corpus.documents))
    return {
        "ndcg10_pipeline": _mean_ndcg(corpus, pipeline),
        "ndcg10_exhaustive": _mean_ndcg(corpus, exhaustive),
        "recall10_pipeline": _mean_recall(corpus, pipeline),
        "recall10_exhaustive": _mean_recall(corpus, exhaustive),
        "queries": len(corpus.queries),
        "documents": len(corpus.documents),
        "chunks": pipeline.chunks,
        "queries_short": sum(len(ranking) < enough for ranking in pipeline.rankings.values()),
    }


def through_pipeline(
    corpus: JudgedCorpus, embedder: Embedder, policy: ChunkPolicy, directory: Path, loop: EventLoop
) -> Ranked:
    """Index the documents with the ingest flow, and ask as `retrieve` does. `directory` holds index and files."""
    parser, vectors = ProcessParser(), EdgeIndex(directory / "vectors")
    try:
        uploaded = enumerate(uploads(corpus.documents, directory / "documents"))
        topics = MemoryTopics([record(upload, offset=offset) for offset, upload in uploaded], batch_size=64)
        store = ObjectStore(str(directory / "objects"), file_roots=(directory / "documents",))
        runtime = Runtime(topics, loop, Stop())
        spaces = IndexedSpaces(vectors, [lambda: embedder])
        flow = ingest.build(runtime, store, parser, spaces, vectors, ExtractPolicy(), policy)
        cluster_main(flow, [], 0, epoch_interval=timedelta(seconds=1))
        dead = topics.dead_letters()
        if dead:
            raise CorpusError(f"document {dead[0].document_id!r} cannot be indexed: {dead[0].message}")
        chunks = loop.run(vectors.count("documents"), timeout_s=_STEP_S)
        rankings = loop.run(_ask(corpus.queries, spaces, vectors), timeout_s=_STEP_S)
    finally:
        loop.run(parser.close(), timeout_s=_STEP_S)
        loop.run(vectors.close(), timeout_s=_STEP_S)
    return Ranked(rankings, chunks)


def uploads(documents: Mapping[str, str], directory: Path) -> Iterator[DocumentUploaded]:
    """Documents as producers send them: small ones inline, others as files in `directory`, which is made."""
    directory.mkdir()
    for number, (document_id, text) in enumerate(documents.items()):
        if len(text) <= INLINE_TEXT_MAX_CHARS:
            source = {"text": text}
        else:
            path = directory / f"{number}.txt"
            path.write_bytes(text.encode())
            source = {"uri": file_uri(path)}
        yield DocumentUploaded.model_validate({"document_id": document_id} | source)


async def _ask(queries: Mapping[str, str], spaces: Spaces, vectors: VectorIndex) -> dict[str, list[str]]:
    """As many at a time as the flow takes."""
    slots = asyncio.Semaphore(RETRIEVE.capacity)

    async def ranking(query_id: str, text: str) -> list[str]:
        request = RequestSubmitted(job_id=query_id, prompt=text, passages=PASSAGES)
        async with slots:
            found = await find_passages(request, spaces, vectors)
        return rank((hit.document_id, hit.score) for hit in found.hits)

    rankings = await asyncio.gather(*(ranking(query_id, text) for query_id, text in queries.items()))
    return dict(zip(queries, rankings, strict=True))


def exhaustively(
    corpus: JudgedCorpus, tokenizer: Tokenizer, policy: ChunkPolicy, plain: "SentenceTransformer"
) -> Ranked:
    """Compare every query with every chunk, without anything of ours but the cuts."""
    owners: list[str] = []
    texts: list[str] = []
    for document_id, text in corpus.documents.items():
        for chunk in cut(text, (), tokenizer.offsets(text), policy):
            owners.append(document_id)
            texts.append(chunk.text)
    cosines = _unit(plain, list(corpus.queries.values())) @ _unit(plain, texts).T
    rankings = {
        query_id: rank(zip(owners, map(float, scores), strict=True))
        for query_id, scores in zip(corpus.queries, cosines, strict=True)
    }
    return Ranked(rankings, len(texts))


def _unit(plain: "SentenceTransformer", texts: list[str]) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    rows = np.asarray(plain.encode(texts, show_progress_bar=False), dtype=np.float32)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)


def rank(scored: Iterable[tuple[str, float]]) -> list[str]:
    """The DEPTH best documents by the score of their best passage; equal ones by id, so that runs agree."""
    best: dict[str, float] = {}
    for document_id, score in scored:
        best[document_id] = max(score, best.get(document_id, score))
    return sorted(best, key=lambda document_id: (-best[document_id], document_id))[:DEPTH]


def _mean_ndcg(corpus: JudgedCorpus, found: Ranked) -> float:
    return fmean(ndcg(found.rankings[query_id], grades, DEPTH) for query_id, grades in corpus.grades.items())


def _mean_recall(corpus: JudgedCorpus, found: Ranked) -> float:
    return fmean(recall(found.rankings[query_id], grades, DEPTH) for query_id, grades in corpus.grades.items())


@click.command()
@click.option(
    "--corpus",
    "directory",
    default=SAMPLE,
    show_default="examples/retrieval",
    type=click.Path(path_type=Path),
    help="Directory with documents.tsv, queries.tsv and relevance.tsv.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def retrieval(directory: Path, *, as_json: bool) -> None:
    """Judge what is retrieved for the queries of a corpus: nDCG@10 and recall@10, beside exhaustive search."""
    corpus = read_corpus(directory)
    # Below the corpus's check, since they take 5 s to import.
    from connectors.embedder.sentence_transformer import (  # noqa: PLC0415
        DEFAULT_MODEL,
        SentenceTransformerEmbedder,
        load_transformer,
    )

    embedder = SentenceTransformerEmbedder()
    plain = load_transformer(DEFAULT_MODEL, None)
    try:
        measured = measure(corpus, embedder, plain)
    finally:
        asyncio.run(embedder.close())
    figures = {name: value if isinstance(value, int) else round(value, 4) for name, value in measured.items()}
    aims = [
        Aim(
            f"{name}_pipeline",
            f"within {DIFFERENCE_AIM} of {name}_exhaustive",
            met=abs(measured[f"{name}_pipeline"] - measured[f"{name}_exhaustive"]) <= DIFFERENCE_AIM,
        )
        for name in ("ndcg10", "recall10")
    ]
    emit("retrieval", figures, aims, as_json=as_json)
