"""The port to an embedding model, and to the tokenizer that it cuts by."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt


class Tokenizer(Protocol):
    """Where the model's tokens begin and end in a text."""

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """(start, end) in characters of each token of `text`, in order, special tokens left out, never truncated."""
        ...


class Embedder(Protocol):
    """Text to unit vectors."""

    @property
    def model(self) -> str:
        """Name and version, part of every point's identity."""
        ...

    @property
    def dimensions(self) -> int:
        """Length of a vector."""
        ...

    @property
    def max_tokens(self) -> int:
        """Longest input in tokens, special tokens left out; what is longer would be cut off."""
        ...

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's own."""
        ...

    async def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Embed texts, shape (len(texts), dimensions), float32, each row of unit length.

        Calls that are waiting together may share one forward pass. Raises Retryable or Fatal.
        """
        ...

    async def close(self) -> None:
        """Let go of the model."""
        ...
