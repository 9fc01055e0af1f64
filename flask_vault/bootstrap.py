"""The last good documents on disk, for a start while the server is away."""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import datetime
import hashlib
import hmac
import json
import logging
import os
import pathlib
import secrets
import stat
import typing as t

from .errors import BackupError
from .rotation.keys import parse_keys
from .vault.documents import Document
from .vault.documents import Location

_FORMAT: t.Final = "flask-vault-bootstrap-1"
_NONCE: t.Final = 12
_MOST: t.Final = 16 * 1024 * 1024

_log = logging.getLogger("flask_vault")


class BootstrapCache:
    """A sealed file with the documents of the last good load.

    :param path: the file (``VAULT_BOOTSTRAP_CACHE``).
    :param keys: of ``VAULT_BACKUP_KEYS``; the first seals, all open.
    :param identity: what the documents belong to: a file of another app, environment or
        namespace does not open.
    :param max_age: seconds after which it is not used any more.
    :param now: the host's clock. There is no other while the server is away.
    """

    def __init__(
        self,
        path: pathlib.Path,
        keys: cabc.Sequence[str],
        identity: cabc.Sequence[str | None],
        max_age: float,
        now: cabc.Callable[[], datetime.datetime] = lambda: datetime.datetime.now(
            datetime.timezone.utc
        ),
    ) -> None:
        self.path = path
        self._keys = [_derive(key) for key in parse_keys(keys)]
        self._identity = json.dumps([_FORMAT, *identity]).encode()
        self._max_age = max_age
        self._now = now

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {str(self.path)!r}>"

    def save(self, documents: cabc.Mapping[Location, Document]) -> None:
        """Replace the file, at once or not at all.

        A failure is logged and no more: the app has its secrets.
        """
        payload = {
            "saved": self._now().isoformat(),
            "documents": [_packed(place, doc) for place, doc in documents.items()],
        }

        try:
            self._replace(self._seal(json.dumps(payload).encode()))
        except (OSError, TypeError, ValueError) as error:
            reason = getattr(error, "strerror", None) or type(error).__name__
            _log.warning(
                "VAULT_BOOTSTRAP_CACHE: the file %r cannot be written (%s), so the next"
                " start depends on Vault.",
                str(self.path),
                reason,
            )

    def load(self) -> tuple[dict[Location, Document], float]:
        """The documents, and their age in seconds.

        :raises BackupError: when there is no file, or it is too old, damaged, sealed
            with another key, of another app, or open to other users.
        """
        payload = json.loads(self._open(self._read()))
        saved = datetime.datetime.fromisoformat(payload["saved"])
        age = (self._now() - saved).total_seconds()

        # Below zero the host's clock was set back. The start takes what there is.
        if age > self._max_age:
            raise BackupError(
                f"VAULT_BOOTSTRAP_CACHE: the file {str(self.path)!r} is {age:.0f} s"
                f" old, and VAULT_BOOTSTRAP_MAX_AGE allows {self._max_age:.0f} s: it is"
                " not used."
            )

        return dict(_unpacked(item) for item in payload["documents"]), max(0.0, age)

    # --- the file --------------------------------------------------------------------

    def _replace(self, blob: bytes) -> None:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = self.path.with_name(f".{self.path.name}.{secrets.token_hex(8)}")
        descriptor = os.open(
            temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600
        )

        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(blob)
                file.flush()
                os.fsync(file.fileno())

            os.replace(temporary, self.path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)

            raise

    def _read(self) -> bytes:
        reason = ""

        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)

            with os.fdopen(descriptor, "rb") as file:
                status = os.fstat(file.fileno())

                if not stat.S_ISREG(status.st_mode):
                    reason = "it is no regular file"
                elif status.st_uid != os.geteuid():
                    reason = "it belongs to another user"
                elif status.st_mode & 0o077:
                    reason = "it is open to other users"
                elif status.st_size > _MOST:
                    reason = "it is too large"
                else:
                    return file.read()
        except OSError as error:
            reason = error.strerror or type(error).__name__

        raise BackupError(
            f"VAULT_BOOTSTRAP_CACHE: the file {str(self.path)!r} is not used, since"
            f" {reason}."
        )

    def _seal(self, plain: bytes) -> bytes:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        nonce = secrets.token_bytes(_NONCE)
        return nonce + AESGCM(self._keys[0]).encrypt(nonce, plain, self._identity)

    def _open(self, blob: bytes) -> bytes:
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        for key in self._keys:
            with contextlib.suppress(InvalidTag, ValueError):
                return AESGCM(key).decrypt(blob[:_NONCE], blob[_NONCE:], self._identity)

        raise BackupError(
            f"VAULT_BOOTSTRAP_CACHE: the file {str(self.path)!r} does not open: it is"
            " damaged or was changed, or is of another app, environment or key. It is"
            " not used."
        )


def _derive(key: bytes) -> bytes:
    """A key of its own, so that a backup and this file never share one."""
    return hmac.digest(key, _FORMAT.encode(), hashlib.sha256)


def _packed(location: Location, document: Document) -> dict[str, t.Any]:
    return {
        "path": location.path,
        "pinned": location.version,
        "mount": location.mount,
        "data": dict(document.data),
        "version": document.version,
        "created": document.created.isoformat() if document.created else None,
    }


def _unpacked(item: dict[str, t.Any]) -> tuple[Location, Document]:
    created = item["created"]
    return (
        Location(item["path"], item["pinned"], item["mount"]),
        Document(
            item["path"],
            item["data"],
            item["version"],
            datetime.datetime.fromisoformat(created) if created else None,
            origin="cache",
        ),
    )
