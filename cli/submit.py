"""`headrace submit`: hand documents and requests to a running Headrace, and wait for what becomes of them."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from uuid import uuid4

import click
from pydantic import ValidationError

from cli.configuration import bootstrap_of, settings_for
from cli.follow import Follower
from cli.progress import progress
from schemas.dead_letter import DeadLetter
from schemas.documents import DocumentIndexed, DocumentUploaded
from schemas.errors import HeadraceError
from schemas.jobs import StatusChanged
from schemas.requests import RequestSubmitted
from schemas.results import ResultCompleted

READ_BYTES = 1 << 20


def files_under(paths: Iterable[Path]) -> list[Path]:
    """The files named, and all files below the directories named, hidden ones left out; sorted, each once."""
    found: set[Path] = set()
    for path in paths:
        if path.is_dir():
            found.update(
                file
                for file in path.rglob("*")
                if file.is_file() and not any(part.startswith(".") for part in file.relative_to(path).parts)
            )
        else:
            found.add(path)
    return sorted(found)


def upload_of(path: Path, *, tenant: str, collection: str) -> DocumentUploaded:
    """The upload of a local file, by reference. Raises HeadraceError if it cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while part := file.read(READ_BYTES):
                digest.update(part)
    except OSError as error:
        raise HeadraceError(f"{path}: {error.strerror}") from error
    uri = path.resolve().as_uri()
    fields = {"uri": uri, "sha256": digest.hexdigest(), "tenant": tenant, "collection": collection}
    return DocumentUploaded.model_validate(fields)


def report(ended: object) -> dict[str, object]:
    """One line of `--json` about a job's end."""
    match ended:
        case DocumentIndexed():
            return {"job_id": ended.job_id, "state": "completed", "uri": ended.uri, "chunks": ended.chunks}
        case ResultCompleted():
            cited = [citation.model_dump(mode="json") for citation in ended.citations]
            return {"job_id": ended.job_id, "state": "completed", "text": ended.text, "citations": cited}
        case DeadLetter():
            return {
                "job_id": ended.job_id,
                "state": "dead_lettered",
                "document_id": ended.document_id,
                "step": ended.step,
                "error_class": ended.error_class,
                "message": ended.message,
            }
        case StatusChanged():
            return {"job_id": ended.job_id, "state": ended.state, "step": ended.step, "message": ended.detail}
        case _:
            raise TypeError(f"{type(ended).__name__} ends no job")


@click.group()
def submit() -> None:
    """Submit documents and requests, and wait for them."""


@submit.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--bootstrap", metavar="HOST:PORT", help="Brokers; default: HEADRACE_KAFKA_BOOTSTRAP.")
@click.option("--tenant", default="default", show_default=True, help="Who owns the documents.")
@click.option("--collection", default="documents", show_default=True, help="Where to index them.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per document.")
def documents(paths: tuple[Path, ...], bootstrap: str | None, tenant: str, collection: str, *, as_json: bool) -> None:
    """Submit the files at PATHS by reference, and wait until each is indexed or dead-lettered.

    The flows read the files themselves: their HEADRACE_FILE_ROOTS must contain them. Exit code 1 if any failed.
    """
    settings = settings_for(kafka_bootstrap=bootstrap)
    files = files_under(paths)
    names: dict[str, Path] = {}

    def uploads() -> Iterator[DocumentUploaded]:
        for path in files:
            upload = upload_of(path, tenant=tenant, collection=collection)
            names[upload.job_id] = path
            yield upload

    failed = 0
    with Follower(bootstrap_of(settings), settings.kafka_config()) as follower, progress(len(files)) as advance:
        for ended in follower.follow(uploads()):
            advance()
            failed += isinstance(ended, DeadLetter | StatusChanged)
            if as_json:
                click.echo(json.dumps({"path": str(names[ended.job_id])} | report(ended)))
            elif isinstance(ended, DeadLetter):
                click.echo(f"dead letter  {names[ended.job_id]}: {ended.message}")
            elif isinstance(ended, StatusChanged):
                click.echo(f"cancelled    {names[ended.job_id]}: {ended.detail}")
            elif isinstance(ended, DocumentIndexed):
                click.echo(f"indexed      {names[ended.job_id]} ({ended.chunks} chunks)")
    if failed:
        raise HeadraceError(f"{failed} of {len(files)} documents were dead-lettered or cancelled")


@submit.command()
@click.argument("prompt")
@click.option("--bootstrap", metavar="HOST:PORT", help="Brokers; default: HEADRACE_KAFKA_BOOTSTRAP.")
@click.option("--tenant", default="default", show_default=True, help="Who asks.")
@click.option("--collection", default="documents", show_default=True, help="Where to look.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def request(prompt: str, bootstrap: str | None, tenant: str, collection: str, *, as_json: bool) -> None:
    """Ask PROMPT and wait for the answer."""
    settings = settings_for(kafka_bootstrap=bootstrap)
    asked = question(prompt, tenant=tenant, collection=collection)
    with Follower(bootstrap_of(settings), settings.kafka_config()) as follower:
        for ended in follower.follow([asked]):
            if as_json:
                click.echo(json.dumps(report(ended)))
            elif isinstance(ended, ResultCompleted):
                click.echo(rendered(ended))
            if isinstance(ended, DeadLetter):
                raise HeadraceError(f"{ended.step}: {ended.message}")
            if isinstance(ended, StatusChanged):
                raise HeadraceError(f"{ended.step}: the request was cancelled: {ended.detail}")


def question(prompt: str, *, tenant: str = "default", collection: str = "documents") -> RequestSubmitted:
    """A request that is a job of its own, even if the same was asked before."""
    job_id = str(uuid4())
    try:
        return RequestSubmitted(job_id=job_id, prompt=prompt, tenant=tenant, collection=collection)
    except ValidationError as error:
        fault = error.errors(include_input=False, include_url=False)[0]
        raise click.UsageError(f"not a valid request: {fault['msg']}") from error


def rendered(result: ResultCompleted) -> str:
    """An answer with its citations, for people."""
    lines = [result.text, ""]
    for citation in result.citations:
        place = f", {citation.label}" if citation.label else ""
        source = (citation.uri or citation.document_id).rsplit("/", 1)[-1]
        lines.append(f"  [{citation.number}] {source}{place} (chunk {citation.chunk_id}, score {citation.score:.2f})")
    return "\n".join(lines)
