"""`headrace schemas`: the committed contract and the code agree, or CI fails."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from cli.schemas import schemas
from schemas.errors import HeadraceError

UPLOADED = "headrace.document.uploaded.v1.json"


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    result = CliRunner().invoke(schemas, ["export", "--directory", str(tmp_path)])
    assert result.exit_code == 0, result.output
    return tmp_path


def check(directory: Path) -> str:
    """The error of `schemas check`, or nothing."""
    result = CliRunner().invoke(schemas, ["check", "--against", str(directory)])
    if result.exception is None:
        return ""
    assert isinstance(result.exception, HeadraceError), result.exception
    return f"{result.output}{result.exception}"


def edit(path: Path, field: str, value: object) -> None:
    document = json.loads(path.read_text())
    document["properties"][field] = value
    path.write_text(json.dumps(document))


def test_the_committed_copies_are_fresh() -> None:
    result = CliRunner().invoke(schemas, ["check"])
    assert result.exit_code == 0, result.output


def test_an_export_passes_the_check(exported: Path) -> None:
    assert check(exported) == ""


def test_a_new_field_asks_for_a_fresh_export(exported: Path) -> None:
    path = exported / UPLOADED
    document = json.loads(path.read_text())
    del document["properties"]["sha256"]
    path.write_text(json.dumps(document))
    assert "run `headrace schemas export`" in check(exported)


def test_a_removed_field_is_a_breaking_change(exported: Path) -> None:
    edit(exported / UPLOADED, "colour", {"type": "string"})
    assert "headrace.document.uploaded.v1: message.colour: the field is gone" in check(exported)


def test_an_event_that_vanished_is_a_breaking_change(exported: Path) -> None:
    (exported / "headrace.gone.v1.json").write_text("{}")
    assert "headrace.gone.v1: the event is gone" in check(exported)


def test_an_event_without_a_committed_copy_asks_for_an_export(exported: Path) -> None:
    (exported / UPLOADED).unlink()
    assert UPLOADED in check(exported)


@pytest.mark.parametrize("content", [b"<<<<<<< ours", b"[]", b"\xff"])
def test_a_damaged_copy_is_named(exported: Path, content: bytes) -> None:
    (exported / UPLOADED).write_bytes(content)
    said = check(exported)
    assert str(exported / UPLOADED) in said
    assert "restore it from version control" in said


def test_a_renamed_topic_is_a_breaking_change(exported: Path) -> None:
    path = exported / UPLOADED
    path.write_text(path.read_text().replace('"documents.uploaded"', '"documents.arrived"'))
    assert "x-kafka-topic was documents.arrived, is documents.uploaded" in check(exported)


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = CliRunner().invoke(schemas, ["export", "--directory", str(tmp_path / "file" / "below")])
    assert isinstance(result.exception, HeadraceError)
    assert "--directory" in str(result.exception)


def test_json_output_is_one_object() -> None:
    result = CliRunner().invoke(schemas, ["export", "--json"])
    assert "asyncapi.json" in json.loads(result.output)
