"""The main job by one command, on real files, with a bad one among them."""

import json
from pathlib import Path

import pytest

from tests.headrace_process import headrace


def test_the_demo_indexes_the_samples_and_answers_with_citations() -> None:
    done = headrace("demo", "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["documents"]["submitted"] == summary["documents"]["indexed"] >= 12
    assert summary["chunks"] > summary["documents"]["indexed"]
    (answer,) = summary["answers"]
    assert "35 g" in answer["text"]
    assert answer["citations"][0]["uri"].endswith("turbine-maintenance.md")
    assert {"document_id", "uri", "text", "score"} <= answer["citations"][0].keys()


@pytest.mark.slow
def test_one_bad_file_is_dead_lettered_and_the_rest_go_through(tmp_path: Path) -> None:
    tmp_path = tmp_path / "a directory, with a comma"
    tmp_path.mkdir()
    (tmp_path / "good.txt").write_text("The ferryman is called Aldous Penn.")
    (tmp_path / "bad.pdf").write_bytes(b"%PDF-1.7\nnot really")
    left = tmp_path.parent / "left"
    left.mkdir()
    question = "What is the ferryman called?"
    done = headrace("demo", "--json", "--documents", str(tmp_path), "--question", question, TMPDIR=str(left))
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["documents"] == {"submitted": 2, "indexed": 1, "dead_lettered": 1}
    (letter,) = summary["dead_letters"]
    assert letter["document"] == "bad.pdf"
    assert "PDF" in letter["message"]
    assert "Aldous Penn" in summary["answers"][0]["text"]
    assert list(left.glob("headrace-*")) == []


@pytest.mark.slow
def test_for_people_the_demo_prints_answer_citations_and_summary() -> None:
    done = headrace("demo", "--question", "How many eels were caught in the best night?")
    assert "Q: How many eels were caught in the best night?\nA: " in done.stdout
    assert " indexed, 0 dead-lettered; " in done.stdout


def test_an_empty_directory_is_a_usage_error(tmp_path: Path) -> None:
    refused = headrace("demo", "--documents", str(tmp_path))
    assert refused.returncode == 2
    assert "holds no files" in refused.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_5000_small_files_go_through_the_embedded_broker(tmp_path: Path) -> None:
    """It forgets what is unconsumed beyond some megabytes, so submission has to wait for consumption."""
    for number in range(5_000):
        (tmp_path / f"{number}.txt").write_text(f"Entry {number}: the gauge read {number * 7 % 300} centimetres.")
    (tmp_path / "bad.pdf").write_bytes(b"%PDF-1.7\nnot really")
    done = headrace("demo", "--json", "--documents", str(tmp_path), "--question", "What did the gauge read?")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["documents"] == {"submitted": 5_001, "indexed": 5_000, "dead_lettered": 1}
