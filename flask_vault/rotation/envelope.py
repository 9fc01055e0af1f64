"""The sealed form of a backup: what a file holds.

A backup is one JSON file. One that keys of ``VAULT_BACKUP_KEYS`` alone open:

.. code-block:: text

    {
      "format": "flask-vault-backup", "version": 1,
      "key_id": "...",              which of VAULT_BACKUP_KEYS sealed it
      "header": {...},              where the document lives, in clear; no values
      "nonce": "...",               12 bytes, base64
      "ciphertext": "..."           AES-256-GCM, base64
    }

With the 32 bytes ``k`` of a key, the file is sealed by ``HMAC-SHA256(k,
"flask-vault-backup 1 seal")``, and ``key_id`` is the first 16 hexadecimal digits of
``HMAC-SHA256(k, "flask-vault-backup 1 key id")``.

One that Vault's transit engine opens, and a key of ``VAULT_BACKUP_KEYS`` too when there
was any:

.. code-block:: text

    {
      "format": "flask-vault-backup", "version": 2,
      "header": {...},
      "transit": {"key": "transit/backups", "wrapped": "vault:v1:..."},
      "local": {"key_id": "...", "nonce": "...", "wrapped": "..."} or null,
      "nonce": "...",
      "ciphertext": "..."
    }

It is sealed by 32 random bytes of its own. ``transit`` holds them as the engine has
wrapped them; ``local`` as AES-256-GCM has under ``HMAC-SHA256(k, "flask-vault-backup 2
wrap")``, with ``format``, ``version`` and ``header`` as the associated data.

The associated data of ``ciphertext`` is everything above the file's last ``nonce`` as
JSON with sorted keys, no white space and ASCII only; the plain text is ``{"before":
{...}, "after": {...}}``.
"""

from __future__ import annotations

import base64
import collections.abc as cabc
import dataclasses
import datetime as dt
import json
import typing as t
import unicodedata

from ..vault.transit import MAX_WRAPPED

FORMAT: t.Final = "flask-vault-backup"

NONCE_SIZE: t.Final = 12

# 32 bytes and the 16 of AES-GCM's tag.
_WRAPPED_SIZE: t.Final = 48


# One sentence for every cause, so that nobody can probe what a key opens.
UNTRUSTED = (
    "cannot be decrypted: it is damaged, was changed, or was made with a key that is"
    " neither in VAULT_BACKUP_KEYS nor VAULT_BACKUP_TRANSIT_KEY"
)


@dataclasses.dataclass(frozen=True)
class BackupHeader:
    """What a backup says of itself in clear."""

    path: str
    """Mount and path of the document."""

    namespace: str | None
    fields: tuple[str, ...]
    """The fields that were about to change."""

    from_version: int | None
    """The version that ``before`` was, ``None`` where there are no versions."""

    kv_version: int
    operation: str
    """The id of the rotation, the hexadecimal form of a UUID."""

    created_at: dt.datetime
    """By the clock of the host that wrote it, in UTC."""


@dataclasses.dataclass(frozen=True)
class Backup:
    """A backup that was decrypted. Its ``repr`` shows no values."""

    name: str
    header: BackupHeader
    before: cabc.Mapping[str, t.Any] = dataclasses.field(repr=False)
    """The document as it was."""

    after: cabc.Mapping[str, t.Any] = dataclasses.field(repr=False)
    """The document that was about to be written."""


class Unusable(Exception):
    """Why a file is no backup, as the end of a sentence that begins with its name."""


@dataclasses.dataclass(frozen=True)
class Transit:
    """A file's key, wrapped by Vault's transit engine."""

    key: str
    """The mount and the name of the engine's key."""

    wrapped: str = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True)
class Local:
    """A file's key, wrapped by a key of ``VAULT_BACKUP_KEYS``."""

    key_id: str
    nonce: bytes = dataclasses.field(repr=False)
    wrapped: bytes = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True)
class Wrapped:
    """A key that is in the file itself (version 2)."""

    transit: Transit
    local: Local | None


@dataclasses.dataclass(frozen=True)
class Envelope:
    header: BackupHeader
    access: str | Wrapped
    """The id of the key that sealed it (version 1), or that key itself, wrapped."""

    nonce: bytes = dataclasses.field(repr=False)
    ciphertext: bytes = dataclasses.field(repr=False)

    @property
    def key_id(self) -> str | None:
        """The key of ``VAULT_BACKUP_KEYS`` that opens it."""
        if isinstance(self.access, str):
            return self.access

        return None if self.access.local is None else self.access.local.key_id

    @property
    def transit(self) -> Transit | None:
        """The key of the transit engine that opens it."""
        return None if isinstance(self.access, str) else self.access.transit


def canonical(value: object) -> bytes:
    """Write JSON in the one form that can be compared and authenticated."""
    return json.dumps(
        value,
        sort_keys=True,
        separators=(",", ":"),
        allow_nan=False,
        default=_plain,
    ).encode("ascii")


def _plain(value: object) -> object:
    if isinstance(value, cabc.Mapping):
        return dict(value)

    raise TypeError(f"{type(value).__name__} is not JSON.")


def associated(header: BackupHeader, access: str | Wrapped | None) -> bytes:
    """What is authenticated with the content; with a wrapped key when ``access`` is
    ``None``."""
    return canonical(_clear(header, access))


def _clear(header: BackupHeader, access: str | Wrapped | None) -> dict[str, t.Any]:
    """Everything of a file that is in clear and authenticated."""
    content: dict[str, t.Any] = {
        "format": FORMAT,
        "version": 1 if isinstance(access, str) else 2,
    }

    if isinstance(access, str):
        content["key_id"] = access

    content["header"] = {
        "path": header.path,
        "namespace": header.namespace,
        "fields": list(header.fields),
        "from_version": header.from_version,
        "kv_version": header.kv_version,
        "operation": header.operation,
        "created_at": header.created_at.isoformat(timespec="microseconds"),
    }

    if isinstance(access, Wrapped):
        transit, local = access.transit, access.local
        content["transit"] = {"key": transit.key, "wrapped": transit.wrapped}
        content["local"] = local and {
            "key_id": local.key_id,
            "nonce": _text(local.nonce),
            "wrapped": _text(local.wrapped),
        }

    return content


def encode(envelope: Envelope) -> bytes:
    content = {
        **_clear(envelope.header, envelope.access),
        "nonce": _text(envelope.nonce),
        "ciphertext": _text(envelope.ciphertext),
    }
    return f"{json.dumps(content, indent=2)}\n".encode("ascii")


def _text(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii")


def _bytes(value: str) -> bytes:
    return base64.b64decode(value, validate=True)


def parse_envelope(blob: bytes) -> Envelope:
    """Read a file. Nothing of it is authenticated by that.

    :raises Unusable: when it was not written by us.
    """
    try:
        content = json.loads(blob.decode("ascii"))
        header = content["header"]
        envelope = Envelope(
            header=BackupHeader(
                path=header["path"],
                namespace=header["namespace"],
                fields=tuple(header["fields"]),
                from_version=header["from_version"],
                kv_version=header["kv_version"],
                operation=header["operation"],
                created_at=dt.datetime.fromisoformat(header["created_at"]),
            ),
            access=_access(content),
            nonce=_bytes(content["nonce"]),
            ciphertext=_bytes(content["ciphertext"]),
        )

        # A file has one form only: what says the same in other words (white space, a
        # key twice, stray bits in base64, another format or version) was not written
        # by us.
        if encode(envelope) == blob and _is_sound(envelope):
            return envelope
    except (ValueError, TypeError, KeyError, RecursionError):
        pass

    raise Unusable(UNTRUSTED)


def _access(content: cabc.Mapping[str, t.Any]) -> str | Wrapped:
    if "key_id" in content:
        return str(content["key_id"])

    transit, local = content["transit"], content["local"]
    return Wrapped(
        Transit(transit["key"], transit["wrapped"]),
        None
        if local is None
        else Local(local["key_id"], _bytes(local["nonce"]), _bytes(local["wrapped"])),
    )


def _is_sound(envelope: Envelope) -> bool:
    """Whether the parts have the types that they promise.

    Nothing is authenticated yet, and a listing will print it.
    """
    header, access = envelope.header, envelope.access
    words = [header.path, header.operation, *header.fields]
    numbers = [header.kv_version]

    if header.namespace is not None:
        words.append(header.namespace)

    if header.from_version is not None:
        numbers.append(header.from_version)

    if isinstance(access, str):
        words.append(access)
    else:
        words += [access.transit.key, access.transit.wrapped]

        if len(access.transit.wrapped) > MAX_WRAPPED:
            return False

        if (local := access.local) is not None:
            words.append(local.key_id)

            if (len(local.nonce), len(local.wrapped)) != (NONCE_SIZE, _WRAPPED_SIZE):
                return False

    return (
        len(envelope.nonce) == NONCE_SIZE
        and header.created_at.utcoffset() == dt.timedelta(0)
        and all(isinstance(word, str) and is_clean(word) for word in words)
        and all(type(number) is int for number in numbers)
    )


def is_clean(text: str) -> bool:
    """Whether a text is safe to print to a terminal."""
    return not any(
        unicodedata.category(c) in {"Cc", "Cf", "Cs", "Zl", "Zp"} for c in text
    )
