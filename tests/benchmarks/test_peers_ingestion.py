from pathlib import Path

import pytest

from benchmarks.peers.ingestion import corpus
from connectors.parsers.document import parse
from connectors.parsers.limits import Limits
from schemas.errors import Poison

COUNT = 40


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return corpus.write(tmp_path_factory.mktemp("corpus") / "documents", COUNT)


def test_documents_are_of_all_formats_and_each_can_be_read(documents: list[Path]) -> None:
    assert len(documents) == COUNT
    assert {path.suffix for path in documents} == {".md", ".html", ".txt", ".pdf"}
    for path in documents:
        assert len(parse(path.read_bytes(), name=path.name, limits=Limits()).text) > 500


def test_same_count_is_the_same_documents(documents: list[Path], tmp_path: Path) -> None:
    again = corpus.write(tmp_path / "again", COUNT)
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in documents]


def test_corrupt_files_are_poison(tmp_path: Path) -> None:
    paths = corpus.write_corrupt(tmp_path, 5)
    assert len({path.name for path in paths}) == 5
    for path in paths:
        with pytest.raises(Poison):
            parse(path.read_bytes(), name=path.name, limits=Limits())
