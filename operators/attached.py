"""Documents inside of other ones, as the attachments of a mail: each is an upload of its own, named by its place.

Guarantee: an attachment is of the revision of what it is attached to, and uploaded once that can be found. So it
vanishes with that, or from it, and what comes late stays late. A plain module of ids and events; `extract` stores
them, `index` says which there are and which are no more.
"""

import re
from hashlib import sha256

from connectors.object_store import ObjectStore
from connectors.parsers.port import Attachment
from schemas.documents import DocumentEvent, DocumentUploaded
from schemas.event import derive_id

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_MAX_NAME_CHARS = 100


def child_id(parent: DocumentEvent, place: int) -> str:
    """The document_id of what is attached to `parent` at that place, from 0."""
    return derive_id("attachment", parent.tenant, parent.collection, parent.document_id, str(place))


async def upload_of_attachment(
    parent: DocumentUploaded, revision: int, place: int, attachment: Attachment, store: ObjectStore
) -> DocumentUploaded:
    """Store an attachment; its upload is for `index` to produce. Raises what the store raises."""
    digest = sha256(attachment.data).hexdigest()
    name = _UNSAFE.sub("-", attachment.name)[-_MAX_NAME_CHARS:].lstrip(".-") or "attachment"
    return _of_family(
        parent,
        revision,
        place,
        op="upsert",
        uri=await store.write(f"attachments/{digest}/{name}", attachment.data),
        sha256=digest,
        depth=parent.depth + 1,
    )


def delete_of_attachment(parent: DocumentEvent, revision: int, place: int) -> DocumentUploaded:
    """Say that what was attached at that place is no more."""
    return _of_family(parent, revision, place, op="delete")


def _of_family(parent: DocumentEvent, revision: int, place: int, **fields: object) -> DocumentUploaded:
    document_id = child_id(parent, place)
    identity = {
        "job_id": derive_id("job", document_id, str(fields["op"]), str(revision), str(fields.get("sha256"))),
        "tenant": parent.tenant,
        "collection": parent.collection,
        "document_id": document_id,
        "parent_id": parent.document_id,
        "revision": revision,
    }
    return DocumentUploaded.model_validate(identity | fields)
