"""Which server, and how to reach it."""

from __future__ import annotations

import dataclasses
import threading
import urllib.parse


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """The addresses of one cluster, and what holds for each of them.

    :param addresses: tried in order; the one that answered is kept.
    :param verify: check the certificate against certifi's authorities (``True``) or
        those in a file or folder; ``False`` checks nothing.
    :param client_cert: files of a certificate and its key, shown to the server.
    :param server_name: the name in the server's certificate, when it is not the one in
        the address.
    :param proxy: an HTTP proxy. None is taken from the environment.
    :param connect_timeout: seconds.
    :param read_timeout: seconds of silence from the server.
    """

    addresses: tuple[str, ...]
    namespace: str | None = None
    verify: bool | str = True
    client_cert: tuple[str, str] | None = None
    server_name: str | None = None
    proxy: str | None = None
    connect_timeout: float = 2.0
    read_timeout: float = 5.0

    @property
    def shown(self) -> str:
        """The addresses as one text, for messages."""
        return " or ".join(self.addresses)


class Route:
    """The addresses in the order in which to try them: the last good one first."""

    def __init__(self, addresses: tuple[str, ...]) -> None:
        self._addresses = addresses
        self._lock = threading.Lock()
        self._first = 0

    def in_order(self) -> list[str]:
        """Every address, once."""
        first = self._first
        return [*self._addresses[first:], *self._addresses[:first]]

    def keep(self, address: str) -> None:
        """Begin with this one from now on."""
        with self._lock:
            self._first = self._addresses.index(address)

    def find(self, url: str) -> str | None:
        """The configured address that a URL leads to, if any."""
        wanted = _origin(url)

        for address in self._addresses:
            if _origin(address) == wanted:
                return address

        return None


def _origin(url: str) -> tuple[str, str | None, int | None]:
    try:
        parts = urllib.parse.urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        return "", None, None

    return parts.scheme, parts.hostname, port
