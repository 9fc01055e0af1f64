"""Seals backups and opens them, with all the keys that an app has."""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import hmac
import json
import secrets
import typing as t

from ..errors import BackupError
from ..errors import VaultError
from .envelope import associated
from .envelope import Backup
from .envelope import BackupHeader
from .envelope import canonical
from .envelope import encode
from .envelope import Envelope
from .envelope import FORMAT
from .envelope import Local
from .envelope import NONCE_SIZE
from .envelope import parse_envelope
from .envelope import Transit
from .envelope import UNTRUSTED
from .envelope import Unusable
from .envelope import Wrapped
from .keys import parse_keys


class Wrapper(t.Protocol):
    """Wraps the keys of files, as Vault's transit engine does."""

    @property
    def name(self) -> str:
        """The mount and the name of the key that wraps."""

    def new_key(self) -> tuple[bytes, str]:
        """Make 32 random bytes.

        :return: the bytes, and the same wrapped.
        :raises VaultError: when it is not reached, refuses, or has no such key.
        """

    def unwrap(self, wrapped: str) -> bytes | None:
        """Give back the bytes; ``None`` when they were not wrapped by this key.

        :raises VaultError: when it is not reached, or refuses to everyone.
        """


@dataclasses.dataclass(frozen=True)
class Opened:
    """A backup that was opened, and by what."""

    backup: Backup
    keys: tuple[str, ...]
    """``VAULT_BACKUP_KEYS[0]``, say, and the transit key's mount and name."""

    failure: VaultError | None
    """Why the transit engine could not be asked."""


@dataclasses.dataclass(frozen=True)
class _Key:
    """A key of ``VAULT_BACKUP_KEYS``."""

    label: str
    #: What seals a file of version 1, and wraps the key of one of version 2.
    seal: bytes = dataclasses.field(repr=False)
    wrap: bytes = dataclasses.field(repr=False)


class Sealer:
    """Makes the content of a file and opens it.

    :param keys: of ``VAULT_BACKUP_KEYS``; the first seals, all open.
    :param wrapper: opens as well as the keys do, and seals beside the first.
    """

    def __init__(self, keys: cabc.Sequence[str], wrapper: Wrapper | None) -> None:
        # By key id, in the order of the keys.
        self._keys: dict[str, _Key] = {}
        self._wrapper = wrapper

        for index, raw in enumerate(parse_keys(keys)):
            key = _Key(
                f"VAULT_BACKUP_KEYS[{index}]",
                _derive(raw, "1 seal"),
                _derive(raw, "2 wrap"),
            )
            self._keys.setdefault(_derive(raw, "1 key id").hex()[:16], key)

    def knows(self, envelope: Envelope) -> bool:
        """Whether one of the keys should open it."""
        return envelope.key_id in self._keys or self._wraps(envelope.transit)

    def require_keys(self) -> None:
        if not self._keys and self._wrapper is None:
            raise BackupError(
                "VAULT_BACKUP_KEYS is not set, so backups cannot be encrypted or"
                " decrypted. 'flask vault backup-key' makes a key; keep it outside of"
                " Vault."
            )

    # --- sealing ---------------------------------------------------------------------

    def seal(self, header: BackupHeader, payload: cabc.Mapping[str, t.Any]) -> bytes:
        """Make a file, which the first key opens, and the wrapper if there is one.

        :raises BackupError: when the payload is no JSON.
        :raises VaultError: when the wrapper fails.
        """
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

        access, key = self._new_access(header)
        nonce = secrets.token_bytes(NONCE_SIZE)
        ciphertext = AESGCM(key).encrypt(nonce, plain, associated(header, access))
        return encode(Envelope(header, access, nonce, ciphertext))

    def newest_version(self) -> str | None:
        """What the wrapper calls the version of its key that it wraps with now.

        :raises VaultError: when the wrapper fails.
        """
        return None if self._wrapper is None else _version(self._wrapper.new_key()[1])

    def is_current(self, envelope: Envelope, newest: str | None) -> bool:
        """Whether a file is sealed as one would be that is made now.

        :param newest: of :meth:`newest_version`.
        """
        transit = envelope.transit

        if envelope.key_id != next(iter(self._keys), None):
            return False

        if self._wrapper is None or transit is None:
            return self._wrapper is None and transit is None

        return self._wraps(transit) and _version(transit.wrapped) == newest

    def _new_access(self, header: BackupHeader) -> tuple[str | Wrapped, bytes]:
        """How a new file will be opened, and the key to seal it with."""
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        self.require_keys()

        if self._wrapper is None:
            key_id, first = next(iter(self._keys.items()))
            return key_id, first.seal

        key, wrapped = self._wrapper.new_key()
        local = None

        for key_id, first in [*self._keys.items()][:1]:
            nonce = secrets.token_bytes(NONCE_SIZE)
            bound = associated(header, None)
            local = Local(key_id, nonce, AESGCM(first.wrap).encrypt(nonce, key, bound))

        return Wrapped(Transit(self._wrapper.name, wrapped), local), key

    # --- opening ---------------------------------------------------------------------

    def unseal(self, name: str, blob: bytes) -> Backup:
        """Open a file with whichever key can, our own before the wrapper's.

        :raises Unusable: when none can.
        :raises VaultError: when none can, and the wrapper could not be asked.
        """
        return self.open(name, blob).backup

    def open(
        self,
        name: str,
        blob: bytes,
        *,
        every_key: bool = False,
        silence: VaultError | None = None,
    ) -> Opened:
        """As :meth:`unseal`, and tell which key it was.

        :param every_key: try the wrapper when our own key has opened it, too.
        :param silence: why the wrapper is not to be asked.
        """
        envelope = parse_envelope(blob)
        keys: list[str] = []
        failure = None
        backup = self._with_our_key(name, envelope)

        if backup is not None and envelope.key_id is not None:
            keys.append(self._keys[envelope.key_id].label)

        if self._wraps(envelope.transit) and (backup is None or every_key):
            try:
                same = self._with_wrapper(name, envelope, silence)
            except VaultError as error:
                if backup is None:
                    raise

                failure = error
            else:
                if same is not None and envelope.transit is not None:
                    backup = same
                    keys.append(envelope.transit.key)

        if backup is None:
            raise Unusable(UNTRUSTED)

        return Opened(backup, tuple(keys), failure)

    def _wraps(self, transit: Transit | None) -> bool:
        """Whether the wrapper is the one that is named in a file.

        What a file says is not sent to any other.
        """
        return (
            self._wrapper is not None
            and transit is not None
            and transit.key == self._wrapper.name
        )

    def _with_our_key(self, name: str, envelope: Envelope) -> Backup | None:
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        known = self._keys.get(envelope.key_id or "")

        if known is None:
            return None

        if isinstance(envelope.access, str):
            return _opened(name, envelope, known.seal)

        if (local := envelope.access.local) is None:
            return None

        try:
            key = AESGCM(known.wrap).decrypt(
                local.nonce, local.wrapped, associated(envelope.header, None)
            )
        except InvalidTag:
            return None

        return _opened(name, envelope, key)

    def _with_wrapper(
        self, name: str, envelope: Envelope, silence: VaultError | None
    ) -> Backup | None:
        if silence is not None:
            raise silence

        if self._wrapper is None or envelope.transit is None:
            return None

        key = self._wrapper.unwrap(envelope.transit.wrapped)
        return None if key is None else _opened(name, envelope, key)


def _opened(name: str, envelope: Envelope, key: bytes) -> Backup | None:
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    header = envelope.header

    try:
        plain = AESGCM(key).decrypt(
            envelope.nonce, envelope.ciphertext, associated(header, envelope.access)
        )
        payload = json.loads(plain)
        backup = Backup(name, header, payload["before"], payload["after"])
    except (InvalidTag, ValueError, TypeError, KeyError, RecursionError):
        return None

    # Whoever may use the transit key can seal what is no backup.
    documents = isinstance(backup.before, dict) and isinstance(backup.after, dict)
    return backup if documents else None


def _derive(key: bytes, purpose: str) -> bytes:
    return hmac.digest(key, f"{FORMAT} {purpose}".encode("ascii"), "sha256")


def _version(wrapped: str) -> str:
    """``vault:v3`` of ``vault:v3:...``."""
    return wrapped.rpartition(":")[0]
