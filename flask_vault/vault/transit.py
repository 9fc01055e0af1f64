"""A key of Vault's transit engine: it wraps other keys and never leaves the server."""

from __future__ import annotations

import base64
import collections.abc as cabc
import typing as t
from urllib.parse import quote

from ..errors import BackupError
from ..errors import SecretNotFoundError
from ..errors import VaultError
from ..errors import VaultPermissionError
from ..errors import VaultResponseError
from .documents import mapping
from .transport import Transport

#: Most characters of a wrapped key. Symmetric keys make 90 to 110, asymmetric ones more
#: than 350.
MAX_WRAPPED: t.Final = 200


class TransitKey:
    """Makes keys of 32 bytes, and opens those that it made.

    :param key: the mount and the name (``VAULT_BACKUP_TRANSIT_KEY``); a name alone is
        one of the mount ``transit``.
    """

    def __init__(self, transport: Transport, key: str) -> None:
        self._transport = transport
        mount, _, self._key = key.rpartition("/")
        self._mount = mount or "transit"

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}>"

    @property
    def name(self) -> str:
        """The mount and the name of the key."""
        return f"{self._mount}/{self._key}"

    def new_key(self) -> tuple[bytes, str]:
        """Make 32 random bytes. Needs ``update`` on ``datakey/plaintext/``.

        :return: the bytes, and the same wrapped.
        :raises BackupError: when there is no such key, or it is not one that can.
        :raises VaultPermissionError: when the token may not.
        """
        try:
            data = self._ask("datakey/plaintext", {"bits": 256})
            key = _decoded(data.get("plaintext"))
            wrapped = data.get("ciphertext")
        except VaultResponseError as error:
            raise self._refused(error) from None

        if key is None or not isinstance(wrapped, str):
            raise VaultResponseError(
                f"The transit engine's answer for {self.name!r} holds no key of 32"
                " bytes: check VAULT_BACKUP_TRANSIT_KEY and that VAULT_ADDR is Vault's"
                " address."
            )

        if len(wrapped) > MAX_WRAPPED:
            raise BackupError(
                f"VAULT_BACKUP_TRANSIT_KEY, {self.name!r}, is an asymmetric key, with"
                " whose public half anybody could make a backup: name one of the type"
                " 'aes256-gcm96'."
            )

        return key, wrapped

    def unwrap(self, wrapped: str) -> bytes | None:
        """Give back the bytes. Needs ``update`` on ``decrypt/``.

        :return: ``None`` when this key did not wrap them, or not in a version that it
            still opens.
        :raises VaultPermissionError: when the token may not.
        """
        try:
            data = self._ask("decrypt", {"ciphertext": wrapped})
        except VaultResponseError as error:
            if error.status != 400:
                raise

            return None

        return _decoded(data.get("plaintext"))

    def _ask(
        self, route: str, body: cabc.Mapping[str, t.Any]
    ) -> cabc.Mapping[str, t.Any]:
        path = f"{self._mount}/{route}/{self._key}"

        try:
            answer = self._transport.call(
                lambda client: client.write_data(quote(path), data=dict(body))
            )
        except VaultPermissionError as error:
            said = " ".join("; ".join(error.errors).split())
            failure: VaultError = VaultPermissionError(
                "Vault denies the use of VAULT_BACKUP_TRANSIT_KEY"
                f" ({error.status}: {said}): the token's policy must grant 'update' on"
                f" {path!r}.",
                status=error.status,
                path=self.name,
                errors=error.errors,
            )
        except SecretNotFoundError as error:
            failure = BackupError(
                f"VAULT_BACKUP_TRANSIT_KEY is {self.name!r}, and the server has no"
                f" transit engine at {self._mount!r}: write the engine's mount before"
                " the name of the key, or enable the engine.",
                status=error.status,
                path=self.name,
                errors=error.errors,
            )
        else:
            return mapping(t.cast("dict[str, t.Any]", answer).get("data"))

        raise failure

    def _refused(self, error: VaultResponseError) -> VaultError:
        if error.status != 400:
            return error

        said = " ".join("; ".join(error.errors).split())
        return BackupError(
            f"VAULT_BACKUP_TRANSIT_KEY, {self.name!r}, makes no keys ({said}): name one"
            f" of the type 'aes256-gcm96', which 'bao write -f"
            f" {self._mount}/keys/{self._key}' makes.",
            status=error.status,
            path=self.name,
            errors=error.errors,
        )


def _decoded(text: object) -> bytes | None:
    try:
        key = base64.b64decode(text, validate=True) if isinstance(text, str) else b""
    except ValueError:
        return None

    return key if len(key) == 32 else None
