"""The pipeline finds what exhaustive search with the same model finds."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.retrieval import DEPTH, SAMPLE, rank, retrieval, uploads
from schemas.documents import INLINE_TEXT_MAX_CHARS

DOCUMENTS = 14


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """The first documents of the sample, and the last one, which is long; with the queries that they answer."""
    lines = (SAMPLE / "documents.tsv").read_text(encoding="utf-8").splitlines(keepends=True)
    documents = [*lines[:DOCUMENTS], lines[-1]]
    held = {line.split("\t")[0] for line in documents}
    relevance = (SAMPLE / "relevance.tsv").read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in relevance if line.split("\t")[1] in held]
    asked = {line.split("\t")[0] for line in kept if not line.endswith("\t0\n")}
    queries = (SAMPLE / "queries.tsv").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "documents.tsv").write_text("".join(documents), encoding="utf-8")
    (tmp_path / "relevance.tsv").write_text("".join(line for line in kept if line.split("\t")[0] in asked))
    (tmp_path / "queries.tsv").write_text("".join(line for line in queries if line.split("\t")[0] in asked))
    return tmp_path


def test_pipeline_and_exhaustive_search_agree(few: Path) -> None:
    done = CliRunner().invoke(retrieval, ["--corpus", str(few), "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    figures = report["figures"]
    assert figures["documents"] == DOCUMENTS
    assert figures["chunks"] > DOCUMENTS
    assert figures["queries_short"] == 0
    assert 0.5 < figures["ndcg10_pipeline"] <= 1.0
    assert 0.5 < figures["recall10_pipeline"] <= 1.0
    assert {aim["figure"]: aim["met"] for aim in report["aims"]} == {"ndcg10_pipeline": True, "recall10_pipeline": True}


def test_a_document_is_as_good_as_its_best_passage() -> None:
    assert rank([("a", 0.1), ("b", 0.5), ("a", 0.7), ("b", 0.2), ("c", 0.5)]) == ["a", "b", "c"]
    assert len(rank((f"{number}", 0.0) for number in range(2 * DEPTH))) == DEPTH


def test_a_long_document_goes_as_a_file(tmp_path: Path) -> None:
    long = "The north gate. \n" * (INLINE_TEXT_MAX_CHARS // 17 + 1)
    short, filed = uploads({"s": "The south gate.", "l": long}, tmp_path / "documents")
    assert (short.text, short.uri) == ("The south gate.", None)
    assert filed.text is None
    assert filed.uri is not None
    assert Path(filed.uri.removeprefix("file://")).read_text(encoding="utf-8") == long
