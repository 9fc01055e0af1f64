"""The sealed form of a backup: what a file holds, and who can open it.

A backup is one JSON file:

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
``HMAC-SHA256(k, "flask-vault-backup 1 key id")``. The associated data is everything
above ``nonce`` as JSON with sorted keys, no white space and ASCII only; the plain text
is ``{"before": {...}, "after": {...}}``.
"""

from __future__ import annotations

import base64
import collections.abc as cabc
import dataclasses
import datetime as dt
import hmac
import json
import secrets
import typing as t
import unicodedata

from ..errors import BackupError
from .keys import parse_keys

_FORMAT: t.Final = "flask-vault-backup"

_FORMAT_VERSION: t.Final = 1

_NONCE_SIZE: t.Final = 12


# One sentence for every cause, so that nobody can probe what a key opens.
UNTRUSTED = (
    "cannot be decrypted: it is damaged, was changed, or was made with a key that is"
    " not in VAULT_BACKUP_KEYS"
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

    key_id: str


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
class Envelope:
    header: BackupHeader
    nonce: bytes = dataclasses.field(repr=False)
    ciphertext: bytes = dataclasses.field(repr=False)


class Sealer:
    """Makes the content of a file and opens it, with the keys of one store."""

    def __init__(self, keys: cabc.Sequence[str]) -> None:
        # By key id, in the order of the keys.
        self._seals: dict[str, bytes] = {}

        for raw in parse_keys(keys):
            key_id = _derive(raw, "key id").hex()[:16]
            self._seals.setdefault(key_id, _derive(raw, "seal"))

    @property
    def key_id(self) -> str:
        """The id of the key that seals."""
        self.require_keys()
        return next(iter(self._seals))

    def knows(self, key_id: str) -> bool:
        return key_id in self._seals

    def require_keys(self) -> None:
        if not self._seals:
            raise BackupError(
                "VAULT_BACKUP_KEYS is not set, so backups cannot be encrypted or"
                " decrypted. 'flask vault backup-key' makes a key; keep it outside of"
                " Vault."
            )

    def seal(self, header: BackupHeader, payload: cabc.Mapping[str, t.Any]) -> bytes:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        try:
            plain = canonical(payload)
        except (TypeError, ValueError, RecursionError):
            plain = None

        # Raised out here so that the error has no context that could quote a value.
        if plain is None:
            raise BackupError(
                f"The document at {header.path!r} cannot be backed up: it holds"
                " something that JSON cannot express.",
                path=header.path,
            )

        nonce = secrets.token_bytes(_NONCE_SIZE)
        ciphertext = AESGCM(self._seals[header.key_id]).encrypt(
            nonce, plain, canonical(_clear(header))
        )
        return _encode(Envelope(header, nonce, ciphertext))

    def unseal(self, name: str, blob: bytes) -> Backup:
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        envelope = parse_envelope(blob)
        header = envelope.header

        if (seal := self._seals.get(header.key_id)) is None:
            raise Unusable(UNTRUSTED)

        try:
            plain = AESGCM(seal).decrypt(
                envelope.nonce, envelope.ciphertext, canonical(_clear(header))
            )
            payload = json.loads(plain)
        except (InvalidTag, RecursionError):
            raise Unusable(UNTRUSTED) from None

        return Backup(name, header, payload["before"], payload["after"])


def _derive(key: bytes, purpose: str) -> bytes:
    message = f"{_FORMAT} {_FORMAT_VERSION} {purpose}"
    return hmac.digest(key, message.encode("ascii"), "sha256")


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


def _clear(header: BackupHeader) -> dict[str, t.Any]:
    """Everything of a file that is in clear and authenticated."""
    return {
        "format": _FORMAT,
        "version": _FORMAT_VERSION,
        "key_id": header.key_id,
        "header": {
            "path": header.path,
            "namespace": header.namespace,
            "fields": list(header.fields),
            "from_version": header.from_version,
            "kv_version": header.kv_version,
            "operation": header.operation,
            "created_at": header.created_at.isoformat(timespec="microseconds"),
        },
    }


def _encode(envelope: Envelope) -> bytes:
    content = {
        **_clear(envelope.header),
        "nonce": base64.b64encode(envelope.nonce).decode("ascii"),
        "ciphertext": base64.b64encode(envelope.ciphertext).decode("ascii"),
    }
    return f"{json.dumps(content, indent=2)}\n".encode("ascii")


def parse_envelope(blob: bytes) -> Envelope:
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
                key_id=content["key_id"],
            ),
            nonce=base64.b64decode(content["nonce"], validate=True),
            ciphertext=base64.b64decode(content["ciphertext"], validate=True),
        )

        # A file has one form only: what says the same in other words (white space, a
        # key twice, stray bits in base64, another format or version) was not written
        # by us.
        if _encode(envelope) == blob and _is_sound(envelope):
            return envelope
    except (ValueError, TypeError, KeyError, RecursionError):
        pass

    raise Unusable(UNTRUSTED)


def _is_sound(envelope: Envelope) -> bool:
    """Whether the parts have the types that they promise.

    Nothing is authenticated yet, and a listing will print it.
    """
    header = envelope.header
    words = [header.path, header.operation, header.key_id, *header.fields]
    numbers = [header.kv_version]

    if header.namespace is not None:
        words.append(header.namespace)

    if header.from_version is not None:
        numbers.append(header.from_version)

    return (
        len(envelope.nonce) == _NONCE_SIZE
        and header.created_at.utcoffset() == dt.timedelta(0)
        and all(isinstance(word, str) and is_clean(word) for word in words)
        and all(type(number) is int for number in numbers)
    )


def is_clean(text: str) -> bool:
    """Whether a text is safe to print to a terminal."""
    return not any(
        unicodedata.category(c) in {"Cc", "Cf", "Cs", "Zl", "Zp"} for c in text
    )
