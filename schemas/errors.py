"""The classes of failure: whatever can fail raises one of them; only offload and attempt catch them.

Which exception or status is which is decided once, in the connector that meets it:

| from         | Unavailable (waits)      | Retryable (5 attempts)         | Poison (dead letter)      | Fatal (flow stops)      |
|--------------|--------------------------|--------------------------------|---------------------------|-------------------------|
| LLM          | refused, unknown host    | 408 409 425 429 5xx, timeout,  | 400 413 422, other 4xx    | 401 403 404             |
|              |                          | cut, malformed or empty stream |                           |                         |
| Qdrant       | refused, gRPC UNAVAILABLE| 404 408 409 429 5xx, timeout   | 400 413 422, INVALID_...  | 401 403, other 4xx,     |
|              |                          |                                |                           | not a Qdrant            |
| object store |                          | OSError, still being written   | missing, too large, not   | a URL that is none      |
|              |                          |                                | allowed, other sha256     |                         |
| parser       |                          | TookTooLong; no process could  | crash, out of memory,     |                         |
|              |                          | be started                     | unreadable, no text       |                         |
| embedder     |                          | a failed forward pass          |                           | unknown model           |
| ledger       | connection lost, silent  |                                | another request's job_id  | full, corrupt, refused  |
|              | for 5 s, locked          |                                | (Refused)                 | login, superseded       |
| Kafka        |                          | not acknowledged in time (the  | no event, too deep        | topic missing, too large|
|              |                          | flow stops, and is restarted)  |                           | offset gone             |
| job          |                          |                                | deadline passed           |                         |

While a circuit is open a Retryable counts as Unavailable. An exception of no class is a bug: Poison for its message.
"""


class HeadraceError(Exception):
    """Base of the classed errors. The message names the thing, the value and the way out; it holds no document text."""


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


class TookTooLong(Retryable):
    """This item was too much for the time that it got; that says nothing about the next one."""


class Poison(HeadraceError):
    """This item can never work, and says nothing about the next one: malformed, too large, encrypted, refused."""


class Refused(Poison):
    """This message, not its job: the job that it names is another one, and stays as it is."""


class GaveUp(HeadraceError):
    """No further attempt is made by itself, though one may succeed: a person may redrive it."""


class Fatal(HeadraceError):
    """No item can work until a person acts: wrong key, unknown model, bad configuration. Stops the flow."""
