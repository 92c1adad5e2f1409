"""Whose certificates are trusted by clients of services that the operator has named."""

import ssl
from pathlib import Path

from schemas.errors import Fatal


def trusting(ca: Path | None, variable: str) -> ssl.SSLContext:
    """Verifies certificates and hosts, by the authorities in a PEM file, or the system's (OpenSSL's SSL_CERT_FILE).

    Raises Fatal, naming the variable, if the file holds none.
    """
    try:
        return ssl.create_default_context(cafile=ca)
    except (ssl.SSLError, OSError) as error:
        raise Fatal(f"{variable}={ca}: it holds no certificate: {error.strerror or type(error).__name__}") from error
