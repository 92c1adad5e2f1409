"""Mails with attachments: each is a document of its own, and goes where its mail goes."""

from email.message import EmailMessage
from hashlib import sha256
from pathlib import Path

from connectors.kafka.record import Record
from schemas.documents import DocumentUploaded
from tests.flows.mill import Mill
from tests.flows.test_versions import NOON
from tests.memory_topics import MemoryTopics, record


def mail(subject: str, *attachments: str | EmailMessage) -> EmailMessage:
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = "edna@mill.example", "office@mill.example", subject
    message.set_content(f"About {subject}.")
    for number, attachment in enumerate(attachments):
        if isinstance(attachment, str):
            message.add_attachment(attachment, filename=f"Note {number}.txt")
        else:
            message.add_attachment(attachment)
    return message


def deliver(
    mill: Mill, path: Path, message: EmailMessage | None, minute: int, *, announced: bool = False
) -> list[MemoryTopics]:
    """Upload a mail, with its digest if announced, or its delete; let the flow run until nothing comes back to it."""
    fields = {"op": "delete"} if message is None else {"uri": path.as_uri()}
    if message is not None:
        path.write_bytes(message.as_bytes())
    if announced:
        fields["sha256"] = sha256(path.read_bytes()).hexdigest()
    at = NOON.replace(minute=minute)
    upload = {"document_id": "mail", "job_id": f"job-{minute}", "uploaded_at": at} | fields
    runs = [mill.run(*records(mill, [DocumentUploaded.model_validate(upload)]))]
    while back := [DocumentUploaded.model_validate(each) for each in runs[-1].on("documents.uploaded")]:
        runs.append(mill.run(*records(mill, back)))
    return runs


def records(mill: Mill, uploads: list[DocumentUploaded]) -> list[Record]:
    return [record(upload, offset=mill.uploaded + number) for number, upload in enumerate(uploads)]


def found(mill: Mill) -> list[str]:
    """All texts that readers find, in order."""
    hits = mill.vectors.search("documents", mill.anything(), tenant="default", limit=100)
    return sorted(hit.text for hit in mill.loop.run(hits, timeout_s=30))


def test_each_attachment_is_a_document_of_its_own_that_says_where_it_came_from(mill: Mill, tmp_path: Path) -> None:
    runs = deliver(mill, tmp_path / "a.eml", mail("the race", "Leaves are cleared.", "The gate is open."), 1)
    texts = found(mill)
    assert [text for text in texts if "From" not in text] == ["Leaves are cleared.", "The gate is open."]
    uploaded = runs[0].on("documents.uploaded")
    assert [(each["parent_id"], each["depth"]) for each in uploaded] == [("mail", 1), ("mail", 1)]
    assert [str(each["uri"]).rpartition("/")[2] for each in uploaded] == ["Note-0.txt", "Note-1.txt"]
    assert {str(each["job_id"]) for each in runs[1].on("documents.indexed")} == {
        str(each["job_id"]) for each in uploaded
    }


def test_a_mail_in_a_mail_brings_what_is_attached_to_it(mill: Mill, tmp_path: Path) -> None:
    deliver(mill, tmp_path / "a.eml", mail("outer", mail("inner", "Found at last.")), 1)
    assert "Found at last." in found(mill)


def test_attachments_vanish_with_their_mail_or_from_it(mill: Mill, tmp_path: Path) -> None:
    path = tmp_path / "a.eml"
    deliver(mill, path, mail("first", "One.", "Two."), 1)
    deliver(mill, path, mail("second", "One."), 2)
    assert [text for text in found(mill) if "From" not in text] == ["One."]
    deliver(mill, path, None, 3)
    assert found(mill) == []


def test_a_late_mail_does_not_bring_its_attachments_back(mill: Mill, tmp_path: Path) -> None:
    path = tmp_path / "a.eml"
    deliver(mill, path, mail("second", "New."), 2)
    deliver(mill, path, mail("first", "Old.", "Older."), 1)
    assert [text for text in found(mill) if "From" not in text] == ["New."]


def test_attachments_of_a_mail_that_cannot_be_indexed_are_not_found_before_it_is(mill: Mill, tmp_path: Path) -> None:
    runs = deliver(mill, tmp_path / "a.eml", mail("Unembeddable", "Secret."), 1)
    assert [letter.step for run in runs for letter in run.dead_letters()] == ["ingest.embed"]
    assert found(mill) == []


def test_a_new_version_that_cannot_be_indexed_leaves_the_attachments_of_the_old_one(mill: Mill, tmp_path: Path) -> None:
    deliver(mill, tmp_path / "a.eml", mail("first", "One."), 1)
    deliver(mill, tmp_path / "b.eml", mail("Unembeddable", "Two.", "Extra."), 2)
    assert [text for text in found(mill) if "From" not in text] == ["One."]
    deliver(mill, tmp_path / "b.eml", None, 3)
    assert found(mill) == []


def test_a_late_mail_does_not_replace_the_attachments_of_one_that_was_uploaded_again(
    mill: Mill, tmp_path: Path
) -> None:
    new, old = mail("the new price list", "20 EUR."), mail("the old price list", "10 EUR.")
    deliver(mill, tmp_path / "new.eml", new, 1, announced=True)
    deliver(mill, tmp_path / "new.eml", new, 3, announced=True)
    deliver(mill, tmp_path / "old.eml", old, 2, announced=True)
    assert [text for text in found(mill) if "From" not in text] == ["20 EUR."]


def test_one_bad_attachment_is_one_dead_letter_and_the_rest_is_found(mill: Mill, tmp_path: Path) -> None:
    message = mail("the race", "Readable.")
    message.add_attachment(b"%PDF-1.7 cut off", maintype="application", subtype="pdf", filename="a.pdf")
    runs = deliver(mill, tmp_path / "a.eml", message, 1)
    assert "Readable." in found(mill)
    assert len(runs[0].dead_letters()) == 0
    (letter,) = runs[1].dead_letters()
    assert (letter.step, letter.error_class) == ("ingest.extract", "poison")


def test_mails_nested_without_end_stop_at_the_limit(mill: Mill, tmp_path: Path) -> None:
    message = mail("innermost")
    for level in range(8):
        message = mail(f"level {level}", message)
    runs = deliver(mill, tmp_path / "a.eml", message, 1)
    (letter,) = (letter for run in runs for letter in run.dead_letters())
    assert "inside of 6 documents; the limit is 5" in letter.message
    assert len(found(mill)) == 6
