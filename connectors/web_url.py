"""URLs that strangers have chosen: read strictly, and shown without what may be secret."""

import re
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address

from yarl import URL

from schemas.errors import Poison

SCHEMES = frozenset({"http", "https"})

Address = IPv4Address | IPv6Address

_PROPER = re.compile(r"(?:[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*")  # RFC 3986
_BREAKING = re.compile(r"[\x00-\x20\x7f\\]")


def parse(uri: str, *, base: URL | None = None) -> URL:
    """The URL, sent byte for byte as it came if it is a proper one: a signature is about these bytes."""
    if not _BREAKING.search(uri):  # where a line or a host ends is a matter of opinion then
        with suppress(ValueError):
            parsed = URL(uri, encoded=_PROPER.fullmatch(uri) is not None)
            url = parsed if base is None else base.join(parsed)
            if url.scheme in SCHEMES and url.raw_host and url.port is not None:
                return url.with_fragment(None)
    raise Poison(f"{without_secrets(uri)!r:.300} is no http(s) URL with a host")


def host_of(url: URL) -> str:
    """The host in the one form in which it is compared."""
    return usual((url.raw_host or "").rstrip(".").lower())


def usual(host: str) -> str:
    """An address in its one usual form, as it is compared; a name as it is."""
    address = literal(host)
    return host if address is None else str(address)


def literal(host: str) -> Address | None:
    """The address that a host is, if it is one and no name."""
    try:
        return ip_address(host)
    except ValueError:
        return None


def shown(url: URL) -> str:
    """The URL for messages: without credentials, query or fragment, any of which may be secret."""
    port = "" if url.explicit_port is None else f":{url.explicit_port}"
    host = f"[{url.raw_host}]" if ":" in (url.raw_host or "") else url.raw_host
    return f"{url.scheme}://{host}{port}{url.raw_path}"


def without_secrets(uri: str) -> str:
    """The same of what may be no URL at all: rather too little than too much."""
    return re.sub(r"(?s)//.*@", "//", re.split(r"[?#]", uri, maxsplit=1)[0])
