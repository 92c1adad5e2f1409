"""The classes of failure: whatever can fail raises one of them; only offload and attempt catch them.

Which exception or status is which is decided once, in the connector that meets it; the README's table "What a failure
becomes" lists them all. While a circuit is open, a Retryable counts as Unavailable. An exception of no class is a bug:
Poison for its message, and an ERROR in the log.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Bill:
    """What calls cost whose complete answers were refused."""

    model: str
    prompt_tokens: int
    completion_tokens: int
    estimated: bool = False

    def plus(self, former: "Bill | None") -> "Bill":
        """Both together."""
        if former is None:
            return self
        return Bill(
            self.model,
            self.prompt_tokens + former.prompt_tokens,
            self.completion_tokens + former.completion_tokens,
            self.estimated or former.estimated,
        )


class HeadraceError(Exception):
    """Base of the classed errors. The message names the thing, the value and the way out; it holds no document text."""

    bill: Bill | None = None  # of the call that failed, if it is known


class Retryable(HeadraceError):
    """The same call may work later: 429, 5xx, timeout, refused connection.

    `retry_after_s`: seconds that the other side asked to wait, if it did.
    """

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Unavailable(Retryable):
    """Nothing was attempted: whoever would do the work is out of reach, for this item as for any other.

    It does not count as one of the item's attempts: an outage is lag.
    """


class Isolated(Retryable):
    """What failed belongs to this item, as the web server that it names does: that says nothing about the next one."""


class TookTooLong(Isolated):
    """This item was too much for the time that it got."""


class Poison(HeadraceError):
    """This item can never work, and says nothing about the next one: malformed, too large, encrypted, refused."""


class Refused(Poison):
    """This message, not its job: the job that it names is another one, and stays as it is."""


class GaveUp(HeadraceError):
    """No further attempt is made by itself, though one may succeed: a person may redrive it."""


class Fatal(HeadraceError):
    """No item can work until a person acts: wrong key, unknown model, bad configuration. Stops the flow."""
