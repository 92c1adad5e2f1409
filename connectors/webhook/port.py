"""The port through which callbacks reach their receivers."""

from typing import Protocol


class Webhooks(Protocol):
    """Posts signed messages to URLs that strangers have chosen."""

    async def post(self, url: str, *, tenant: str, webhook_id: str, body: bytes) -> None:
        """Return when the receiver has said that it has the message.

        Errors show of the URL its host alone.

        Raises:
            Retryable: it could not be reached, was too slow, or did not take it; another attempt may work.
            Poison: it wants no such message any more, or may not be sent any.
            GaveUp: there is nothing to sign with.
        """
        ...
