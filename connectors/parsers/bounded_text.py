"""Text that grows up to a limit: beyond it, the document is refused before it takes the memory."""

from connectors.parsers.limits import Limits
from schemas.errors import Poison


class BoundedText:
    """Blocks of text with white space between them."""

    def __init__(self, limits: Limits) -> None:
        self._limit = limits.max_characters
        self._parts: list[str] = []
        self._length = 0

    def add(self, block: str, *, apart: str = "\n\n") -> int:
        """Append a block, `apart` from what is before; returns where it begins, in characters.

        Raises:
            Poison: more characters than the limit.
        """
        if self._parts:
            self._parts.append(apart)
            self._length += len(apart)
        start = self._length
        self._parts.append(block)
        self._length += len(block)
        if self._length > self._limit:
            raise Poison(f"more than {self._limit} characters of text; split the document")
        return start

    def __str__(self) -> str:
        return "".join(self._parts)
