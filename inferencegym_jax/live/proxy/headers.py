"""Which headers the proxy passes on, and what request target: nothing of one connection reaches another.

``client's headers -> forwarded -> upstream``; ``upstream's headers -> answered -> client``. The proxy reads a request's
body whole and frames it anew, so lengths and transfer codings are never copied from one side to the other where they
could disagree.
"""

from __future__ import annotations

import base64
import functools
from collections.abc import Iterable
from urllib.parse import unquote, urlsplit

from inferencegym_jax.live.server.streaming import hide_user

HOP_BY_HOP = frozenset(  # RFC 9110, 7.6.1: for one connection only, never forwarded
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection "
    b"te trailer transfer-encoding upgrade".split()
)
# the host is the upstream's; the body is whole by now, so its length is known and nobody waits to be told to go on
OWN = frozenset({b"host", b"content-length", b"expect"})
NO_BODY = (204, 304)
LOCATIONS = (b"location", b"content-location")
PORTS = {"http": 80, "https": 443}

Headers = list[tuple[bytes, bytes]]


class BadTarget(ValueError):
    """A request target that names no path of the upstream."""


class BadAnswer(ValueError):
    """An answer of the upstream that must not be passed on."""


def named_in_connection(headers: Iterable[tuple[bytes, bytes]]) -> frozenset[bytes]:
    """Names, in lower case, of the headers that ``Connection`` says are for this connection only."""
    values = [value for name, value in headers if name.lower() == b"connection"]
    return frozenset(word.strip().lower() for value in values for word in value.split(b","))


def forwarded(headers: Headers, authorization: bytes | None = None) -> Headers:
    """The headers of a client's request that go on to the upstream.

    Args:
        headers: as the client sent them.
        authorization: of the upstream's own URL, for a client that sends none.
    """
    dropped = HOP_BY_HOP | OWN | named_in_connection(headers)
    kept = [(name, value) for name, value in headers if name.lower() not in dropped]
    if authorization is not None and not any(name.lower() == b"authorization" for name, _ in headers):
        kept.append((b"authorization", authorization))
    return kept


def answered(headers: Iterable[tuple[bytes, bytes]], status: int, root: str) -> Headers:
    """The headers of an upstream's answer that go on to the client.

    A length is passed on where it frames the body: not beside a transfer coding, and not where there is no body. A
    Location that points to the upstream becomes the path by which the client reaches it here.

    Args:
        headers: as the upstream sent them.
        status: of the answer.
        root: the upstream's URL.

    Raises:
        BadAnswer: a status that HTTP does not have, or two lengths that differ.
    """
    if not 200 <= status <= 599:
        raise BadAnswer(f"answered with status {status}")
    lowered = [(name.lower(), value) for name, value in headers]
    dropped = HOP_BY_HOP | named_in_connection(lowered)
    lengths = {value.strip() for name, value in lowered if name == b"content-length"}
    if len(lengths) > 1:
        raise BadAnswer("answered with two lengths that differ")
    coded = any(name == b"transfer-encoding" for name, _ in lowered)
    kept: Headers = []
    for name, value in lowered:
        if name in dropped or name == b"content-length":
            continue
        kept.append((name, relocated(value, root) if name in LOCATIONS else value))
    if lengths and not coded and status not in NO_BODY:
        kept.append((b"content-length", lengths.pop()))
    return kept


def relocated(value: bytes, root: str) -> bytes:
    """A Location as a path of the proxy, where it points to the upstream; else as it is."""
    own = urlsplit(root)
    try:
        place = urlsplit(value.decode("latin-1"))
        elsewhere = bool(place.netloc) and (place.hostname, _port(place, own.scheme)) != (own.hostname, _port(own))
    except ValueError:  # no URL: whatever it is, it does not point here
        return value
    if elsewhere or not (place.netloc or place.path.startswith("/")):
        return value
    prefix = own.path.rstrip("/")
    path = place.path.removeprefix(prefix) if f"{place.path}/".startswith(f"{prefix}/") else place.path
    # two slashes at the start would be a host
    location = place._replace(scheme="", netloc="", path="/" + path.lstrip("/")).geturl()
    return location.encode("latin-1")


def _port(url: object, scheme: str = "") -> int | None:
    port, own = getattr(url, "port", None), getattr(url, "scheme", "") or scheme
    return PORTS.get(own) if port is None else port


def target(raw_path: bytes, query: bytes) -> str:
    """Path and query as they came, in ASCII; other bytes percent-encoded.

    Raises:
        BadTarget: no path from the root.
    """
    if not raw_path.startswith(b"/"):
        raise BadTarget("the request target must be a path that begins with /")
    whole = raw_path + (b"?" + query if query else b"")
    return "".join(chr(byte) if 0x21 <= byte <= 0x7E and byte != 0x23 else f"%{byte:02X}" for byte in whole)


@functools.lru_cache(maxsize=8)
def credentials(root: str) -> tuple[str, bytes | None]:
    """An upstream's URL without user and password, and the ``Authorization`` that they stand for."""
    parts = urlsplit(root)
    if "@" not in parts.netloc:
        return root, None
    pair = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}".encode()
    return hide_user(root), b"Basic " + base64.b64encode(pair)
