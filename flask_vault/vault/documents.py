"""What a key-value engine holds, and where."""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import datetime
import re
import typing as t

_RESOLUTION: t.Final = datetime.timedelta(seconds=1)


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

    def is_older_than(self, other: Document) -> bool:
        """Whether it is a step back. A key that was made anew begins at 1 again."""
        if self.version is None or other.version is None:
            return False

        if self.version >= other.version:
            return False

        if self.created is None or other.created is None:
            return True

        return self.created <= other.created

    def is_same_as(self, other: Document) -> bool:
        """Whether it is the same version. KV v1 has none, so its fields tell."""
        if self.version is None or self.created is None or other.created is None:
            return self.version == other.version and self.data == other.data

        return (self.version, self.created) == (other.version, other.created)


@dataclasses.dataclass(frozen=True)
class Stamp:
    """What is known of one version of a document, but its fields."""

    number: int
    created: datetime.datetime
    #: From when on it is deleted, which may lie ahead.
    deleted: datetime.datetime | None = None
    destroyed: bool = False

    def is_gone(self, now: datetime.datetime) -> bool:
        """Whether its fields are not to be had (any more).

        :param now: the server's time as its ``Date`` header tells it, which is cut to a
            second.
        """
        if self.destroyed or self.deleted is None:
            return self.destroyed

        return self.deleted <= now + _RESOLUTION


@dataclasses.dataclass(frozen=True)
class Metadata:
    """What KV v2 tells of a document's versions.

    :param stamps: oldest first.
    :param max_versions: how many it keeps; ``None`` leaves that to the mount.
    """

    stamps: tuple[Stamp, ...]
    max_versions: int | None


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
