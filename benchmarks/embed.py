"""Embedding at the limit of the hardware: the whole ingest flow against the model's own encode loop.

Three ways to embed the same chunks of real prose (Python's own documentation strings, cut as the flow cuts them), in
turns, `--rounds` times: (a) `SentenceTransformer.encode` with its defaults; (b) the best such loop that we could tune
by hand here: same precision as ours, texts sorted by length, the best batch size of several; (c) `headrace run ingest`
in processes of its own: files in, through an embedded Kafka, parsers, chunking, embedding and the vector index, until
the last document is reported as indexed. Figures are medians. The cache of vectors is off.
"""
# ruff: noqa: PLC0415 -- torch and sentence_transformers take 5 s to import

import ast
import html
import os
import pydoc_data.topics
import shutil
import subprocess
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from statistics import median
from typing import TYPE_CHECKING

import click

from benchmarks.report import Aim, emit, hardware
from cli.follow import Follower
from cli.local import LocalStack
from cli.submit import upload_of
from connectors.parsers.document import parse
from connectors.parsers.limits import Limits
from operators.chunk import ChunkPolicy, cut
from schemas.dead_letter import DeadLetter
from schemas.documents import DocumentIndexed, SectionMark

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from connectors.embedder.port import Tokenizer

TO_TUNED_AIM = 0.95
TO_DEFAULT_AIM = 3.0  # where the CPU has AMX
BUSY_AIM = 0.9  # of the time, where there is a GPU
WARM_UP = 3  # documents

_LEAST_CHARS = 400  # of a document
_SAMPLE = 256  # chunks to tune by


def prose() -> Iterator[str]:
    """Texts that ship with every CPython: the reference manual's topics, then the standard library's docstrings."""
    yield from pydoc_data.topics.topics.values()
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8", errors="replace"))
        nodes = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        found = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, nodes)]
        yield "\n\n".join(each for each in found if each)


def write_corpus(directory: Path, tokenizer: "Tokenizer", least_chunks: int) -> tuple[list[Path], list[str]]:
    """Write documents, every second one as HTML, until they have that many chunks; their paths, and the chunks."""
    paths: list[Path] = []
    chunks: list[str] = []
    for text in prose():
        if len(text) < _LEAST_CHARS:
            continue
        path = directory / f"{len(paths):04d}{'.html' if len(paths) % 2 else '.md'}"
        page = "".join(f"<p>{html.escape(part)}</p>\n" for part in text.split("\n\n"))
        path.write_text(f"<!doctype html><body>{page}" if path.suffix == ".html" else text, encoding="utf-8")
        chunks += chunks_of(path, tokenizer)
        paths.append(path)
        if len(chunks) >= least_chunks:
            return paths, chunks
    raise click.UsageError(f"--chunks {least_chunks}: this Python's documentation has {len(chunks)} chunks only")


def chunks_of(path: Path, tokenizer: "Tokenizer") -> list[str]:
    """What the flow makes of a file."""
    parsed = parse(path.read_bytes(), name=path.name, limits=Limits())
    marks = tuple(SectionMark(start=section.start, label=section.label) for section in parsed.sections)
    return [chunk.text for chunk in cut(parsed.text, marks, tokenizer.offsets(parsed.text), ChunkPolicy())]


class Loop:
    """`SentenceTransformer.encode` in this process."""

    def __init__(self, transformer: "SentenceTransformer", precision: str) -> None:
        import torch

        self._transformer = transformer
        self._dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)

    def default(self, chunks: Sequence[str]) -> None:
        """As it comes."""
        self._transformer.encode(list(chunks), show_progress_bar=False)

    def tuned(self, chunks: Sequence[str], batch_size: int) -> None:
        """Same precision as ours, a batch size of its own; encode itself sorts by length."""
        import torch

        with torch.autocast(self._transformer.device.type, self._dtype, enabled=self._dtype is not None):
            self._transformer.encode(list(chunks), batch_size=batch_size, show_progress_bar=False)

    def best_batch_size(self, chunks: Sequence[str]) -> int:
        """The fastest for a sample of the chunks, each size tried three times."""
        on_cpu = self._transformer.device.type == "cpu"
        sizes = (4, 8, 16, 32, 64) if on_cpu else (64, 128, 256, 512, 1024)
        sample = Random(0).sample(list(chunks), min(len(chunks), _SAMPLE if on_cpu else 16 * _SAMPLE))  # noqa: S311  # no secret
        self.tuned(sample[:32], sizes[0])  # the first pass of a process is slow
        took_s = {size: min(seconds(lambda size=size: self.tuned(sample, size)) for _ in range(3)) for size in sizes}  # type: ignore[misc]  # a lambda's default
        return min(took_s, key=lambda size: took_s[size])


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def ingest_s(paths: Sequence[Path], chunks: int, busy: list[float]) -> float:
    """Seconds from the first upload to the last indexed document; `busy` gets the GPU's share in them."""
    with tempfile.TemporaryDirectory(prefix="headrace-embed-") as home:
        stack = LocalStack(Path(home), file_roots=(paths[0].parent,), drain_s=1.0, flows=("ingest",))
        with stack, Follower(stack.bootstrap, {}) as follower:

            def indexed(some: Sequence[Path], collection: str) -> int:
                uploads = (upload_of(path, tenant="default", collection=collection) for path in some)
                total = 0
                for ended in follower.follow(uploads, check=stack.check):
                    if isinstance(ended, DeadLetter):
                        raise RuntimeError(f"{ended.step}: {ended.message}")  # noqa: TRY004  # it is no type error
                    total += ended.chunks if isinstance(ended, DocumentIndexed) else 0
                return total

            indexed(paths[:WARM_UP], "warm-up")
            with gpu_busy(busy):
                began = time.perf_counter()
                found = indexed(paths, "measured")
                took_s = time.perf_counter() - began
    if found != chunks:
        raise RuntimeError(f"{found} chunks were indexed of {chunks}")
    return took_s


@contextmanager
def gpu_busy(busy: list[float]) -> Iterator[None]:
    """Add what nvidia-smi says of the first GPU, some times a second, as shares of 1; nothing without a GPU."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        yield
        return
    command = [tool, "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "--id=0", "--loop-ms=200"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603  # found on the PATH

        def read() -> None:
            busy.extend(int(line) / 100 for line in process.stdout or () if line.strip().isdigit())

        reader = threading.Thread(target=read)
        reader.start()
        try:
            yield
        finally:
            process.terminate()
            reader.join()


@click.command()
@click.option("--chunks", "least_chunks", default=2_000, show_default=True, type=click.IntRange(1))
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def embed(least_chunks: int, rounds: int, *, as_json: bool) -> None:
    """Embed CHUNKS chunks of real prose by encode's defaults, by a tuned loop, and by the whole ingest flow."""
    from connectors.embedder.sentence_transformer import DEFAULT_MODEL, SentenceTransformerEmbedder, load_transformer

    os.environ["HEADRACE_EMBED_CACHE_BYTES"] = "0"  # for the flow's process: the same chunks come again
    embedder = SentenceTransformerEmbedder()
    with tempfile.TemporaryDirectory(prefix="headrace-corpus-") as directory:
        paths, chunks = write_corpus(Path(directory), embedder.tokenizer, least_chunks)
        loop = Loop(load_transformer(DEFAULT_MODEL), embedder.precision)
        batch_size = loop.best_batch_size(chunks)
        took: dict[str, list[float]] = {"default": [], "tuned": [], "pipeline": []}
        busy: list[float] = []
        for _ in range(rounds):
            took["default"].append(seconds(lambda: loop.default(chunks)))
            took["tuned"].append(seconds(lambda: loop.tuned(chunks, batch_size)))
            took["pipeline"].append(ingest_s(paths, len(chunks), busy))
    rate = {name: len(chunks) / median(each) for name, each in took.items()}
    ratios = {
        name: median(other / ours for other, ours in zip(took[name], took["pipeline"], strict=True))
        for name in ("default", "tuned")
    }
    figures: dict[str, object] = {
        "chunks": len(chunks),
        "documents": len(paths),
        "rounds": rounds,
        "precision": embedder.precision,
        "tuned_batch_size": batch_size,
        "default_chunks_s": round(rate["default"], 1),
        "tuned_chunks_s": round(rate["tuned"], 1),
        "pipeline_chunks_s": round(rate["pipeline"], 1),
        "ratio_to_default": round(ratios["default"], 3),
        "ratio_to_tuned": round(ratios["tuned"], 3),
        "gpu_busy": round(sum(busy) / len(busy), 3) if busy else None,
    }
    aims = [Aim("ratio_to_tuned", f"{TO_TUNED_AIM} at least", met=ratios["tuned"] >= TO_TUNED_AIM)]
    if hardware()["amx"] and not busy:
        aims.append(Aim("ratio_to_default", f"{TO_DEFAULT_AIM} at least", met=ratios["default"] >= TO_DEFAULT_AIM))
    if busy:
        aims.append(Aim("gpu_busy", f"{BUSY_AIM} at least", met=sum(busy) / len(busy) >= BUSY_AIM))
    emit("embed", figures, aims, as_json=as_json)
