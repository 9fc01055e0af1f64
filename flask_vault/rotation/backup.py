"""The directory of encrypted backups, made before a rotation changes a document."""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import datetime as dt
import os
import re
import typing as t
from pathlib import Path

from ..errors import BackupError
from ..errors import VaultError
from . import files
from .envelope import Backup
from .envelope import BackupHeader
from .envelope import canonical
from .envelope import is_clean
from .envelope import parse_envelope
from .envelope import Unusable
from .files import MAX_SIZE
from .sealer import Sealer
from .sealer import Wrapper

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,249}\.json")


_OPERATION = re.compile(r"[0-9a-f]{32}")


_STAMP = re.compile(r"_([0-9]{8}T[0-9]{6}Z)_")


@dataclasses.dataclass(frozen=True)
class BackupInfo:
    """One line of :meth:`BackupStore.list`."""

    name: str
    header: BackupHeader | None = None
    """``None`` when it cannot be read. Not to be trusted unless ``verified``."""

    problem: str | None = None
    """Why the file cannot be restored."""

    verified: bool = False
    """Whether the file was decrypted, which proves the header too."""

    opened_by: tuple[str, ...] = ()
    """The keys that decrypted it: ``VAULT_BACKUP_KEYS[0]``, say, and the mount and name
    of ``VAULT_BACKUP_TRANSIT_KEY``."""

    failure: VaultError | None = None
    """Why the transit engine could not be asked, which says nothing of the file."""


def _now() -> dt.datetime:
    return dt.datetime.now(dt.timezone.utc)


class BackupStore:
    """The backups in one directory.

    :param directory: made with mode 0700 when it is missing (``VAULT_BACKUP_DIR``).
    :param keys: made by ``flask vault backup-key``; the first encrypts, all decrypt
        (``VAULT_BACKUP_KEYS``).
    :param wrapper: encrypts beside the first key, and decrypts
        (``VAULT_BACKUP_TRANSIT_KEY``). Without it and any key, backups can only be
        listed.
    :param clock: returns the present time, with a time zone.
    :raises VaultConfigError: when a key cannot be one.
    """

    def __init__(
        self,
        directory: Path,
        keys: cabc.Sequence[str],
        wrapper: Wrapper | None = None,
        *,
        clock: cabc.Callable[[], dt.datetime] = _now,
    ) -> None:
        self.directory = Path(directory).absolute()
        self.sealer = Sealer(keys, wrapper)
        self._clock = clock

    def __repr__(self) -> str:
        return f"<BackupStore {str(self.directory)!r}>"

    def check(self) -> None:
        """Prove that :meth:`write` would work, before anything depends on it.

        Makes the directory when it is missing, and writes, reads and removes a small
        encrypted file.

        :raises BackupError: when the directory is not safe or not writable, or there is
            no key.
        :raises VaultError: when the transit engine fails.
        """
        header = self._header("0" * 32, "check", None, (), None, 2)
        blob = self.sealer.seal(header, {"before": {}, "after": {}})

        with files.opened(self.directory, create=True) as directory:
            name = None

            try:
                name = files.write_temporary(directory, "check", blob)
                # By each key, so that all that a restore may need is tried.
                opened = self.sealer.open(
                    name, files.read(directory, name), every_key=True
                )

                if opened.failure is not None:
                    raise opened.failure
            except OSError as error:
                raise self.write_error(error) from error
            except Unusable as error:
                raise self._readback_error(error) from None
            finally:
                if name is not None:
                    files.remove(directory, name)

    def write(
        self,
        *,
        operation: str,
        path: str,
        label: str,
        namespace: str | None,
        fields: cabc.Sequence[str],
        from_version: int | None,
        before: cabc.Mapping[str, t.Any],
        after: cabc.Mapping[str, t.Any],
        kv_version: int,
    ) -> Backup:
        """Write a backup, and read it back.

        When this returns, the file is on the disk and was decrypted from there. When it
        raises, no file is left.

        :param operation: the id of the rotation, the hexadecimal form of a UUID.
        :param path: mount and path of the document.
        :param label: the short path, for the name of the file.
        :param namespace: Vault's namespace.
        :param fields: the names of the fields that are about to change.
        :param from_version: the version of ``before``.
        :param before: the document as it is.
        :param after: the document that is about to be written.
        :param kv_version: 1 or 2.
        :raises BackupError: when the file cannot be written, or not read back.
        :raises VaultError: when the transit engine fails.
        """
        header = self._header(
            operation, path, namespace, fields, from_version, kv_version
        )
        payload = {"before": before, "after": after}
        blob = self.sealer.seal(header, payload)

        if len(blob) > MAX_SIZE:
            raise BackupError(
                f"The document at {path!r} is too large to back up: it makes a file of"
                f" {len(blob)} bytes, and {MAX_SIZE} are allowed.",
                path=path,
            )

        stem = stem_of(label)
        tail = f"{header.created_at:%Y%m%dT%H%M%SZ}_{operation[:8]}.json"

        with files.opened(self.directory, create=True) as directory:
            name = None

            try:
                temporary = files.write_temporary(directory, stem, blob)

                try:
                    name = files.publish(directory, temporary, stem, tail)
                finally:
                    files.remove(directory, temporary)

                os.fsync(directory)
                backup = self.sealer.unseal(name, files.read(directory, name))

                if backup.header != header or canonical(
                    {"before": backup.before, "after": backup.after}
                ) != canonical(payload):
                    raise Unusable("holds something else than what was written")
            except BaseException as error:
                if name is not None:
                    files.remove(directory, name)

                if isinstance(error, OSError):
                    raise self.write_error(error) from error

                if isinstance(error, Unusable):
                    raise self._readback_error(error) from None

                raise

        return backup

    def list(
        self, *, verify: bool = False, every_key: bool = False
    ) -> list[BackupInfo]:
        """Describe the files, the newest first.

        A file that is no backup is described too, with its ``problem``. Temporary files
        are not listed.

        :param verify: decrypt each one. Without it the headers are shown as they stand,
            and might have been changed.
        :param every_key: try the transit engine also for what another key has opened.
        :raises BackupError: when the directory is not safe.
        """
        if not os.path.lexists(self.directory):
            return []

        with files.opened(self.directory, create=False) as directory:
            return [*self._infos(directory, verify, every_key)]

    def read(self, name: str) -> Backup:
        """Decrypt a backup.

        :param name: the file's name as :meth:`list` has it, without a directory.
        :raises BackupError: when it is not a name, not a plain file of ours, too large,
            or cannot be decrypted.
        :raises VaultError: when only the transit engine can decrypt it, and fails.
        """
        self.sealer.require_keys()

        if not _NAME.fullmatch(name):
            raise BackupError(
                f"{name!r} is not the name of a backup. Give the name of a file in"
                f" {str(self.directory)!r} without a directory, as 'flask vault rotate"
                " --list-backups' prints it."
            )

        with files.opened(self.directory, create=False) as directory:
            try:
                return self.sealer.unseal(name, files.read(directory, name))
            except FileNotFoundError:
                reason = (
                    f"is not in {str(self.directory)!r}. 'flask vault rotate"
                    " --list-backups' prints the names"
                )
            except OSError as error:
                reason = f"cannot be read: {files.name_error(error)}"
            except Unusable as error:
                reason = str(error)

        raise BackupError(f"The backup {name!r} {reason}.")

    # --- parts -----------------------------------------------------------------------

    def _infos(
        self, directory: int, verify: bool, every_key: bool
    ) -> cabc.Sequence[BackupInfo]:
        infos = []
        silence: VaultError | None = None

        for name in os.listdir(directory):
            if not _NAME.fullmatch(name):
                continue

            infos.append(self._describe(directory, name, verify, every_key, silence))
            # Each further file would wait for the same silence.
            silence = silence or infos[-1].failure

        return sorted(infos, key=_age, reverse=True)

    def _describe(
        self,
        directory: int,
        name: str,
        verify: bool,
        every_key: bool,
        silence: VaultError | None,
    ) -> BackupInfo:
        header = None

        try:
            blob = files.read(directory, name)
            envelope = parse_envelope(blob)
            header = envelope.header

            if verify:
                opened = self.sealer.open(
                    name, blob, every_key=every_key, silence=silence
                )
                return BackupInfo(
                    name,
                    header,
                    verified=True,
                    opened_by=opened.keys,
                    failure=opened.failure,
                )

            if not self.sealer.knows(envelope):
                raise Unusable(
                    "was made with a key that is not in VAULT_BACKUP_KEYS"
                    if envelope.transit is None
                    else f"was made with the transit key {envelope.transit.key!r},"
                    " which is not VAULT_BACKUP_TRANSIT_KEY"
                )
        except OSError as error:
            return BackupInfo(
                name, header, f"cannot be read: {files.name_error(error)}"
            )
        except Unusable as error:
            return BackupInfo(name, header, str(error))
        except VaultError as error:
            return BackupInfo(name, header, not_asked(error), failure=error)

        return BackupInfo(name, header)

    def _header(
        self,
        operation: str,
        path: str,
        namespace: str | None,
        fields: cabc.Sequence[str],
        from_version: int | None,
        kv_version: int,
    ) -> BackupHeader:
        self.sealer.require_keys()

        if not _OPERATION.fullmatch(operation):
            raise ValueError("'operation' must be the hexadecimal form of a UUID.")

        if not all(map(is_clean, (path, namespace or "", *fields))):
            raise BackupError(
                "The document cannot be backed up: its path, its namespace or the name"
                " of a field holds a control character.",
            )

        return BackupHeader(
            path=path,
            namespace=namespace,
            fields=tuple(fields),
            from_version=from_version,
            kv_version=kv_version,
            operation=operation,
            created_at=self._clock().astimezone(dt.timezone.utc),
        )

    def write_error(self, error: OSError) -> BackupError:
        """The exception for a file that could not be written."""
        return BackupError(
            f"The backup cannot be written to {str(self.directory)!r}:"
            f" {files.name_error(error)}. Make room or give the right to write there,"
            " or set VAULT_BACKUP_DIR to another directory."
        )

    def _readback_error(self, error: Unusable) -> BackupError:
        return BackupError(
            f"The backup was written to {str(self.directory)!r} and could not be read"
            f" back; it was removed. The file {error}."
        )


def stem_of(label: str) -> str:
    """The beginning of a file's name: no hidden file, no option, no separator."""
    stem = re.sub(r"[^A-Za-z0-9._-]", "_", label.replace("/", "-")).lstrip(".-")
    return stem[:100] or "secret"


def _age(info: BackupInfo) -> tuple[str, str]:
    if info.header is not None:
        return f"{info.header.created_at:%Y%m%dT%H%M%S.%f}", info.name

    stamp = _STAMP.search(info.name)
    return stamp[1] if stamp else "", info.name


def not_asked(error: VaultError) -> str:
    """Why a file was not opened, as the end of a sentence that begins with its name."""
    said = str(error).rstrip(".")
    return f"can be opened by the transit engine only, which failed: {said}"
