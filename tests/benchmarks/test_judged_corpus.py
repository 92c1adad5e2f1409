"""A corpus is read as its format says; whatever is wrong with it is one line with file, line and value."""

from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.judged_corpus import CorpusError, read_corpus
from benchmarks.retrieval import SAMPLE, retrieval

FILES = {
    "documents.tsv": "document_id\ttitle\ttext\na\tGates\tThe north gate.\nb\t\tThe south gate.\n",
    "queries.tsv": "query_id\ttext\nq\tWhich gates?\n",
    "relevance.tsv": "query_id\tdocument_id\tgrade\nq\ta\t2\nq\tb\t0\n",
}


def write(directory: Path, **files: str | bytes) -> Path:
    """The corpus above, some files replaced; a name stands for `name.tsv`."""
    for name, content in (FILES | {f"{name}.tsv": content for name, content in files.items()}).items():
        (directory / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return directory


def test_titles_stand_above_texts(tmp_path: Path) -> None:
    corpus = read_corpus(write(tmp_path))
    assert corpus.documents == {"a": "Gates\n\nThe north gate.", "b": "The south gate."}
    assert corpus.queries == {"q": "Which gates?"}
    assert corpus.grades == {"q": {"a": 2, "b": 0}}


def test_escapes_and_line_ends_of_other_systems_are_understood(tmp_path: Path) -> None:
    lines = ["document_id\ttitle\ttext", r"a" + "\t\t" + r"one\ttwo\nC:\\new\\table", ""]
    corpus = read_corpus(write(tmp_path, documents="\r\n".join(lines), relevance=FILES["relevance.tsv"][:-6]))
    assert corpus.documents == {"a": "one\ttwo\nC:\\new\\table"}


@given(text=st.text(st.characters(codec="utf-8")).filter(lambda text: text.strip() != ""))
def test_every_text_can_be_written(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    escaped = text.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")
    directory = write(tmp_path_factory.mktemp("corpus"), queries=f"query_id\ttext\nq\t{escaped}\n")
    assert read_corpus(directory).queries == {"q": text}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("documents", "id\ttext\n", r"documents.tsv, line 1: the header is 'id text', not document_id title text"),
        ("documents", "document_id\ttitle\ttext\n", r"documents.tsv: nothing below the header"),
        ("documents", "", r"documents.tsv: nothing below the header"),
        ("documents", "document_id\ttitle\ttext\na\tb\n", r"documents.tsv, line 2: 2 fields instead of 3 .* in 'a b'"),
        ("documents", FILES["documents.tsv"] + "a\t\tz\n", r"documents.tsv, line 4: 'a' is there already"),
        ("documents", FILES["documents.tsv"] + "c\tT\t \n", r"documents.tsv, line 4: 'c' has no text"),
        ("documents", FILES["documents.tsv"] + "\tT\tz\n", r"documents.tsv, line 4: '' is no id"),
        ("documents", FILES["documents.tsv"] + "c\tT\ta\\z\n", r"documents.tsv, line 4: '\\\\z' is no escape"),
        (
            "documents",
            b"document_id\ttitle\ttext\nc\t\t\xff\n",
            r"documents.tsv, line 2: byte b'\\xff' at 3 is no UTF-8",
        ),
        ("queries", "query_id\ttext\nq\ta\n\n", r"queries.tsv, line 3: 1 fields instead of 2"),
        ("queries", f"query_id\ttext\nq\t{'a' * 100_001}\n", r"queries.tsv, line 2: the text has 100001 characters"),
        ("queries", FILES["queries.tsv"] + "r\tUnjudged?\n", r"no document has grade 1 or more for query 'r'"),
        ("relevance", FILES["relevance.tsv"] + "x\ta\t1\n", r"relevance.tsv, line 4: query 'x' is not in queries.tsv"),
        ("relevance", FILES["relevance.tsv"] + "q\tx\t1\n", r"relevance.tsv, line 4: document 'x' is not in documents"),
        ("relevance", FILES["relevance.tsv"] + "q\ta\t1\n", r"relevance.tsv, line 4: 'q' and 'a' have a grade already"),
        ("relevance", "query_id\tdocument_id\tgrade\nq\ta\t-1\n", r"relevance.tsv, line 2: grade '-1' is no integer"),
        ("relevance", "query_id\tdocument_id\tgrade\nq\ta\t31\n", r"relevance.tsv, line 2: grade '31' is no integer"),
        ("relevance", "query_id\tdocument_id\tgrade\nq\ta\t1.5\n", r"relevance.tsv, line 2: grade '1.5' is no integer"),
    ],
)
def test_a_fault_names_file_line_and_value(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    directory = write(tmp_path, **{name: content})
    with pytest.raises(CorpusError, match=message) as raised:
        read_corpus(directory)
    assert "\n" not in raised.value.message


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    (write(tmp_path) / "queries.tsv").unlink()
    with pytest.raises(CorpusError, match=r"queries.tsv: No such file or directory; a corpus holds"):
        read_corpus(tmp_path)


def test_the_command_ends_with_2_and_one_line(tmp_path: Path) -> None:
    done = CliRunner().invoke(retrieval, ["--corpus", str(tmp_path / "nowhere")])
    assert done.exit_code == 2
    assert done.output.startswith("Error: ")
    assert done.output.count("\n") == 1


def test_the_sample_is_whole() -> None:
    corpus = read_corpus(SAMPLE)
    assert 60 <= len(corpus.documents) <= 100
    assert 40 <= len(corpus.queries) <= 60
    assert {grade for grades in corpus.grades.values() for grade in grades.values()} == {0, 1, 2, 3}
