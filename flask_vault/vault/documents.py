"""What a key-value engine holds, and where."""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import datetime
import re
import typing as t


@dataclasses.dataclass(frozen=True)
class Location:
    """Where a document is.

    :param path: mount and path in one, ``secret/store-erp/prod/flask``.
    :param version: a KV v2 version; ``None`` is the newest.
    :param mount: the mount, where it is known. Else the server is asked.
    """

    path: str
    version: int | None = None
    mount: str | None = dataclasses.field(default=None, compare=False)

    def newest(self) -> Location:
        """The same place without a pinned version."""
        return dataclasses.replace(self, version=None)


@dataclasses.dataclass(frozen=True)
class Document:
    """The fields stored at one path."""

    path: str
    data: cabc.Mapping[str, t.Any] = dataclasses.field(repr=False)
    #: KV v2's version, ``None`` on KV v1.
    version: int | None = None
    #: When this version was made, by the server's clock; ``None`` on KV v1.
    created: datetime.datetime | None = None
    #: ``cache`` when it comes from the file of an earlier start.
    origin: t.Literal["vault", "cache"] = "vault"


@dataclasses.dataclass(frozen=True)
class Mount:
    """A mounted engine that documents are read from."""

    name: str
    #: Of the key-value engine.
    version: int
    #: The server did not say; version 2 is an assumption.
    assumed: bool = False
    #: ``database`` has static roles, whose credentials read like a document.
    engine: t.Literal["kv", "database"] = "kv"


_FRACTION = re.compile(r"\.(\d+)")


def parse_time(
    metadata: cabc.Mapping[str, t.Any], key: str = "created_time"
) -> datetime.datetime | None:
    """Read a time of Vault's: RFC 3339, UTC, with nanoseconds."""
    text = metadata.get(key)

    if not isinstance(text, str) or not text:
        return None

    text = _FRACTION.sub(lambda m: f".{m[1][:6]:0<6}", text).replace("Z", "+00:00")

    try:
        return datetime.datetime.fromisoformat(text)
    except ValueError:
        return None


def mapping(value: object) -> dict[str, t.Any]:
    """A part of an answer that should be an object; an empty one when it is none."""
    return value if isinstance(value, dict) else {}
