"""`headrace demo`: everything local, the sample documents in, a question answered with citations."""

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

import click

from cli.configuration import settings_for
from cli.follow import Follower
from cli.local import LocalStack
from cli.progress import progress
from cli.submit import files_under, question, rendered, upload_of
from schemas.dead_letter import DeadLetter
from schemas.documents import DocumentIndexed, DocumentUploaded
from schemas.errors import HeadraceError
from schemas.results import ResultCompleted

SAMPLES = Path(__file__).parent.parent / "examples" / "documents"
QUESTION = "How much grease do the main bearings of turbine T1 need?"


@dataclass
class Ingested:
    """What became of the documents."""

    submitted: int
    indexed: int = 0
    chunks: int = 0
    seconds: float = 0.0  # from the first submission to the last end
    dead: dict[str, DeadLetter] = field(default_factory=dict)  # by file name


@click.command()
@click.option(
    "--documents",
    "directory",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=SAMPLES,
    show_default="the samples in examples/documents",
    help="Directory of documents to ingest.",
)
@click.option("--question", "questions", multiple=True, metavar="TEXT", help="What to ask; may be repeated.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
def demo(directory: Path, questions: tuple[str, ...], *, as_json: bool) -> None:
    """Start everything local, ingest documents, ask, and print the answer with its citations.

    Needs no network, no Kafka and no GPU; leaves nothing behind.
    """
    settings_for()  # a bad variable is better said now than by the flows
    files = files_under([directory])
    if not files:
        raise click.UsageError(f"{directory} holds no files")
    asked = questions or (QUESTION,)
    with tempfile.TemporaryDirectory(prefix="headrace-demo-") as home:
        click.echo("Starting an embedded Kafka and the flows (ingest, answer) ...", err=True)
        started = monotonic()
        stack = LocalStack(Path(home), file_roots=(directory,), drain_s=5.0)
        with stack, Follower(stack.bootstrap, {}) as follower:
            click.echo(f"... running after {monotonic() - started:.1f} s; submitting {len(files)} documents", err=True)
            ingested = _ingest(files, follower, stack)
            results = _ask(asked, follower, stack)
    if as_json:
        click.echo(json.dumps(_summary(ingested, asked, results)))
        return
    for name, letter in ingested.dead.items():
        click.echo(f"dead letter: {name}: {letter.message}")
    for prompt, result in zip(asked, results, strict=True):
        click.echo(f"\nQ: {prompt}\nA: {rendered(result)}")
    rate = ingested.chunks / ingested.seconds
    click.echo(
        f"\n{ingested.submitted} documents: {ingested.indexed} indexed, {len(ingested.dead)} dead-lettered; "
        f"{ingested.chunks} chunks in {ingested.seconds:.1f} s ({rate:.1f} chunks/s)\n"
        f"To keep it running, with a console in the browser: {_command()} up"
    )


def _command() -> str:
    """How this command was called: by a path if it is not installed for everybody."""
    called = Path(sys.argv[0])
    if called.name != "headrace":  # python -m
        return "headrace"
    return "headrace" if shutil.which("headrace") else os.path.relpath(called)


def _ingest(files: list[Path], follower: Follower, stack: LocalStack) -> Ingested:
    names: dict[str, str] = {}

    def uploads() -> Iterator[DocumentUploaded]:
        for path in files:
            upload = upload_of(path, tenant="default", collection="documents")
            names[upload.job_id] = path.name
            yield upload

    ingested = Ingested(submitted=len(files))
    began = monotonic()
    with progress(len(files)) as advance:
        for ended in follower.follow(uploads(), check=stack.check):
            advance()
            if isinstance(ended, DeadLetter):
                ingested.dead[names[ended.job_id]] = ended
            elif isinstance(ended, DocumentIndexed):
                ingested.indexed += 1
                ingested.chunks += ended.chunks
    ingested.seconds = monotonic() - began
    return ingested


def _ask(asked: tuple[str, ...], follower: Follower, stack: LocalStack) -> list[ResultCompleted]:
    requests = [question(prompt) for prompt in asked]
    results: dict[str, ResultCompleted] = {}
    for ended in follower.follow(requests, check=stack.check):
        if isinstance(ended, DeadLetter):
            raise HeadraceError(f"{ended.step}: {ended.message}")
        if isinstance(ended, ResultCompleted):
            results[ended.job_id] = ended
    return [results[request.job_id] for request in requests]


def _summary(ingested: Ingested, asked: tuple[str, ...], results: list[ResultCompleted]) -> dict[str, object]:
    return {
        "documents": {
            "submitted": ingested.submitted,
            "indexed": ingested.indexed,
            "dead_lettered": len(ingested.dead),
        },
        "dead_letters": [
            {"document": name, "step": letter.step, "message": letter.message, "retryable": letter.retryable}
            for name, letter in ingested.dead.items()
        ],
        "chunks": ingested.chunks,
        "seconds": round(ingested.seconds, 3),
        "answers": [
            {
                "question": prompt,
                "text": result.text,
                "citations": [
                    citation.model_dump(mode="json", exclude_none=True, exclude={"chunk_id"})
                    | {"chunk": citation.chunk_id}
                    for citation in result.citations
                ],
                "job_id": result.job_id,
            }
            for prompt, result in zip(asked, results, strict=True)
        ],
    }
