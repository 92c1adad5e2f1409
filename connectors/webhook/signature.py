"""Signatures of Standard Webhooks (https://www.standardwebhooks.com): HMAC-SHA256 over id, time and body."""

import binascii
from base64 import b64decode
from collections.abc import Mapping, Sequence
from datetime import datetime

from standardwebhooks import Webhook

SECRET_PREFIX = "whsec_"  # noqa: S105  # names secrets, is none
SECRET_BYTES = range(24, 65)  # as the specification wants them
EVERYBODY = "*"


def secrets_of(setting: str) -> tuple[bytes, ...]:
    """The secrets in a setting: one, or several, separated by spaces, while receivers change from one to the next.

    Raises ValueError, which does not show them.
    """
    secrets = tuple(map(_decoded, setting.split()))
    if not secrets:
        raise ValueError(f"is empty: write {SECRET_PREFIX}<base64>")
    return secrets


def _decoded(secret: str) -> bytes:
    if not secret.startswith(SECRET_PREFIX):
        raise ValueError(f"does not begin with {SECRET_PREFIX}")
    try:
        decoded = b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except binascii.Error as error:
        raise ValueError(f"is not base64 after {SECRET_PREFIX}") from error
    if len(decoded) not in SECRET_BYTES:
        least, most = SECRET_BYTES[0], SECRET_BYTES[-1]
        raise ValueError(f"has {len(decoded)} bytes after {SECRET_PREFIX}; {least} to {most} are needed")
    return decoded


class Signatures:
    """Signs for tenants. `secrets`: by tenant, `*` for all others (HEADRACE_WEBHOOK_SECRETS)."""

    def __init__(self, secrets: Mapping[str, str]) -> None:
        self._by_tenant: Mapping[str, Sequence[Webhook]] = {
            tenant: tuple(map(Webhook, secrets_of(setting))) for tenant, setting in secrets.items()
        }

    def headers(self, tenant: str, webhook_id: str, at: datetime, body: bytes) -> dict[str, str] | None:
        """The headers of one message; None if the tenant has no secret."""
        signing = self._by_tenant.get(tenant) or self._by_tenant.get(EVERYBODY)
        if signing is None:
            return None
        text = body.decode()
        return {
            "webhook-id": webhook_id,
            "webhook-timestamp": str(int(at.timestamp())),
            "webhook-signature": " ".join(each.sign(webhook_id, at, text) for each in signing),
        }
