"""The process that parses: `python -m connectors.parsers.worker MEMORY_BYTES LIMITS`, the limits as JSON.

It reads requests from standard input and writes replies to standard output until its input ends. What a document does
to it (crash, hang, eat memory) stays in here: its owner (`pool.py`) kills it and starts another.

    owner to worker   lengths of name and data (">IQ"), name (UTF-8), data
    worker to owner   TAKEN, as soon as a request's lengths are read: from here on a crash is the document's fault
                      length (">Q"), JSON: {"document": {...}} or {"poison": message},
                      the data of the document's attachments; JSON says how long each is: {"bytes": ...}

Only the standard library is imported before the first document: a fresh worker costs 13 MB and 0.03 s.
"""

import json
import os
import resource
import signal
import struct
import sys
import traceback
from dataclasses import asdict, replace
from pathlib import Path
from typing import BinaryIO

from connectors.parsers.lifeline import die_with_parent
from connectors.parsers.limits import Limits
from connectors.parsers.port import Attachment
from schemas.errors import Poison

TAKEN = b"T"
OUT_OF_MEMORY = 12  # exit code; the number of ENOMEM
REQUEST = struct.Struct(">IQ")
REPLY = struct.Struct(">Q")


def main() -> None:
    """Serve until the owner closes our input or dies."""
    memory_bytes, limits = int(sys.argv[1]), Limits(**json.loads(sys.argv[2]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the owner drains first
    die_with_parent()  # even while a parser hangs and our input is not read
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    requests, replies = _claim_standard_streams()
    try:
        _serve(requests, replies, limits)
    except MemoryError:
        os._exit(OUT_OF_MEMORY)  # at once: what is left of the heap is not worth tidying up


def _claim_standard_streams() -> tuple[BinaryIO, BinaryIO]:
    """Keep the pipes to ourselves: what a library prints goes to standard error, what it reads is empty."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return requests, replies


def _serve(requests: BinaryIO, replies: BinaryIO, limits: Limits) -> None:
    while True:
        lengths = requests.read(REQUEST.size)
        if len(lengths) < REQUEST.size:
            return
        _send(replies, TAKEN)
        name_bytes, data_bytes = REQUEST.unpack(lengths)
        name = requests.read(name_bytes).decode()
        data = requests.read(data_bytes)
        if len(data) < data_bytes:
            return
        reply, attachments = _reply(data, name, limits)
        body = json.dumps(reply, ensure_ascii=False).encode()
        _send(replies, REPLY.pack(len(body)) + body)
        for attachment in attachments:
            _send(replies, attachment.data)


def _reply(data: bytes, name: str, limits: Limits) -> tuple[dict[str, object], tuple[Attachment, ...]]:
    """What to say about a document, and the attachments to send after it."""
    from connectors.parsers.document import parse  # noqa: PLC0415 - see the module's docstring

    try:
        document = parse(data, name=name, limits=limits)
    except Poison as error:
        return {"poison": str(error)}, ()
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - a parser may raise anything on hostile input
        # Its message may quote the document; its place does not.
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(frame.filename).name}:{frame.lineno}"
        return {"poison": f"{name}: its parser failed with {type(error).__name__} at {place}"}, ()
    fields = asdict(replace(document, attachments=()))
    fields["attachments"] = [
        {"name": each.name, "media_type": each.media_type, "bytes": len(each.data)} for each in document.attachments
    ]
    return {"document": fields}, document.attachments


def _send(replies: BinaryIO, message: bytes) -> None:
    replies.write(message)
    replies.flush()


if __name__ == "__main__":
    main()
