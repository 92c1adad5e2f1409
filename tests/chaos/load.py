"""What is sent during a run: requests and documents, some twice, late, malformed, cancelled or under a stolen id."""

import json
from dataclasses import dataclass
from random import Random

DUPLICATE_SHARE = 0.05
MALFORMED_SHARE = 0.01
CONFLICT_SHARE = 0.005
CANCEL_SHARE = 0.03
UPDATE_SHARE = 0.3
DELETE_SHARE = 0.1


@dataclass(frozen=True)
class Sent:
    """One message."""

    topic: str
    key: str
    value: bytes
    valid: bool = True  # it fits the schema: its job must end


@dataclass(frozen=True)
class Load:
    """Everything that a run sends, in order, and what must come of it."""

    messages: tuple[Sent, ...]
    requests: frozenset[str]  # job_ids
    uploads: frozenset[str]  # job_ids
    documents: dict[str, str | None]  # by document_id: the text that must be searchable at the end, None if deleted


def _request(job_id: str, number: int, prompt: str) -> Sent:
    payload = {"job_id": job_id, "tenant": f"t{number % 5}", "kind": "generate", "prompt": prompt}
    return Sent("requests.submitted", job_id, json.dumps(payload).encode())


def _text(draw: Random, document_id: str, version: int) -> str:
    sentences = [f"Document {document_id}, version {version}, line {n} is unique." for n in range(draw.randint(5, 80))]
    return " ".join(sentences)


def make_load(seed: int, jobs: int, documents: int) -> Load:
    """The same seed makes the same load."""
    draw = Random(seed)  # noqa: S311  # a load, not a secret
    ids = [f"s{seed}-{n}" for n in range(jobs)]
    requests = [_request(job_id, n, f"Question {n} of run {seed}?") for n, job_id in enumerate(ids)]
    placed: list[tuple[float, Sent]] = [(float(n), request) for n, request in enumerate(requests)]
    for n, request in enumerate(requests):
        if draw.random() < DUPLICATE_SHARE:
            placed.append((draw.uniform(n, jobs), request))
        if draw.random() < MALFORMED_SHARE:
            placed.append((draw.uniform(0, jobs), Sent("requests.submitted", f"bad-{n}", b'{"job_id": ', valid=False)))
        if draw.random() < CONFLICT_SHARE:
            placed.append((draw.uniform(n, jobs), _request(ids[n], n, f"Another question under the id of {n}?")))
        if draw.random() < CANCEL_SHARE:
            cancel = json.dumps({"job_id": ids[n], "tenant": f"t{n % 5}", "reason": "not needed"}).encode()
            placed.append((draw.uniform(n, n + 100), Sent("cancellations.requested", ids[n], cancel)))
    uploads: set[str] = set()
    final: dict[str, str | None] = {}
    for n in range(documents):
        document_id = f"s{seed}-d{n}"
        at = draw.uniform(0, jobs)
        for version in range(1 + (draw.random() < UPDATE_SHARE)):
            text = _text(draw, document_id, version)
            upload = {"job_id": f"{document_id}-v{version}", "document_id": document_id, "text": text}
            uploads.add(upload["job_id"])
            final[document_id] = text
            placed.append((at, Sent("documents.uploaded", document_id, json.dumps(upload).encode())))
            if draw.random() < DUPLICATE_SHARE:
                placed.append((at, Sent("documents.uploaded", document_id, json.dumps(upload).encode())))
            at = draw.uniform(at, jobs)
        if draw.random() < DELETE_SHARE:
            delete = {"job_id": f"{document_id}-x", "document_id": document_id, "op": "delete"}
            uploads.add(delete["job_id"])
            final[document_id] = None
            placed.append((at, Sent("documents.uploaded", document_id, json.dumps(delete).encode())))
    placed.sort(key=lambda item: item[0])
    return Load(tuple(sent for _, sent in placed), frozenset(ids), frozenset(uploads), final)
