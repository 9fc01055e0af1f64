"""The directory of encrypted backups, made before a rotation changes a document."""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import dataclasses
import datetime as dt
import errno
import os
import re
import secrets
import stat
import typing as t
from pathlib import Path

from ..errors import BackupError
from .envelope import Backup
from .envelope import BackupHeader
from .envelope import canonical
from .envelope import is_clean
from .envelope import parse_envelope
from .envelope import Sealer
from .envelope import Unusable

MAX_SIZE: t.Final = 1024 * 1024


"""The size in bytes of the largest file that is written or read."""


_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,249}\.json")


_OPERATION = re.compile(r"[0-9a-f]{32}")


_STAMP = re.compile(r"_([0-9]{8}T[0-9]{6}Z)_")


# Errors of link() where the file system or a sandbox has no hard links.
_NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


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


def _now() -> dt.datetime:
    return dt.datetime.now(dt.timezone.utc)


class BackupStore:
    """The backups in one directory.

    :param directory: made with mode 0700 when it is missing (``VAULT_BACKUP_DIR``).
    :param keys: made by ``flask vault backup-key``; the first encrypts, all decrypt
        (``VAULT_BACKUP_KEYS``). Without any, backups can only be listed.
    :param clock: returns the present time, with a time zone.
    :raises VaultConfigError: when a key cannot be one.
    """

    def __init__(
        self,
        directory: Path,
        keys: cabc.Sequence[str],
        *,
        clock: cabc.Callable[[], dt.datetime] = _now,
    ) -> None:
        self.directory = Path(directory).absolute()
        self._sealer = Sealer(keys)
        self._clock = clock

    def __repr__(self) -> str:
        return f"<BackupStore {str(self.directory)!r}>"

    def check(self) -> None:
        """Prove that :meth:`write` would work, before anything depends on it.

        Makes the directory when it is missing, and writes, reads and removes a small
        encrypted file.

        :raises BackupError: when the directory is not safe or not writable, or there is
            no key.
        """
        header = self._header("0" * 32, "check", None, (), None, 2)
        blob = self._sealer.seal(header, {"before": {}, "after": {}})

        with self._opened(create=True) as directory:
            name = None

            try:
                name = _write_temporary(directory, "check", blob)
                self._sealer.unseal(name, _read(directory, name))
            except OSError as error:
                raise self._write_error(error) from error
            except Unusable as error:
                raise self._readback_error(error) from None
            finally:
                if name is not None:
                    _remove(directory, name)

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
        """
        header = self._header(
            operation, path, namespace, fields, from_version, kv_version
        )
        payload = {"before": before, "after": after}
        blob = self._sealer.seal(header, payload)

        if len(blob) > MAX_SIZE:
            raise BackupError(
                f"The document at {path!r} is too large to back up: it makes a file of"
                f" {len(blob)} bytes, and {MAX_SIZE} are allowed.",
                path=path,
            )

        stem = _stem(label)
        tail = f"{header.created_at:%Y%m%dT%H%M%SZ}_{operation[:8]}.json"

        with self._opened(create=True) as directory:
            name = None

            try:
                temporary = _write_temporary(directory, stem, blob)

                try:
                    name = _publish(directory, temporary, stem, tail)
                finally:
                    _remove(directory, temporary)

                os.fsync(directory)
                backup = self._sealer.unseal(name, _read(directory, name))

                if backup.header != header or canonical(
                    {"before": backup.before, "after": backup.after}
                ) != canonical(payload):
                    raise Unusable("holds something else than what was written")
            except BaseException as error:
                if name is not None:
                    _remove(directory, name)

                if isinstance(error, OSError):
                    raise self._write_error(error) from error

                if isinstance(error, Unusable):
                    raise self._readback_error(error) from None

                raise

        return backup

    def list(self, *, verify: bool = False) -> list[BackupInfo]:
        """Describe the files, the newest first.

        A file that is no backup is described too, with its ``problem``. Temporary files
        are not listed.

        :param verify: decrypt each one. Without it the headers are shown as they stand,
            and might have been changed.
        :raises BackupError: when the directory is not safe.
        """
        if not os.path.lexists(self.directory):
            return []

        with self._opened(create=False) as directory:
            infos = [
                self._describe(directory, name, verify)
                for name in os.listdir(directory)
                if _NAME.fullmatch(name)
            ]

        return sorted(infos, key=_age, reverse=True)

    def read(self, name: str) -> Backup:
        """Decrypt a backup.

        :param name: the file's name as :meth:`list` has it, without a directory.
        :raises BackupError: when it is not a name, not a plain file of ours, too large,
            or cannot be decrypted.
        """
        self._sealer.require_keys()

        if not _NAME.fullmatch(name):
            raise BackupError(
                f"{name!r} is not the name of a backup. Give the name of a file in"
                f" {str(self.directory)!r} without a directory, as 'flask vault rotate"
                " --list-backups' prints it."
            )

        with self._opened(create=False) as directory:
            try:
                return self._sealer.unseal(name, _read(directory, name))
            except FileNotFoundError:
                reason = (
                    f"is not in {str(self.directory)!r}. 'flask vault rotate"
                    " --list-backups' prints the names"
                )
            except OSError as error:
                reason = f"cannot be read: {_name_error(error)}"
            except Unusable as error:
                reason = str(error)

        raise BackupError(f"The backup {name!r} {reason}.")

    def _describe(self, directory: int, name: str, verify: bool) -> BackupInfo:
        header = None

        try:
            blob = _read(directory, name)
            header = parse_envelope(blob).header

            if verify:
                self._sealer.unseal(name, blob)
            elif not self._sealer.knows(header.key_id):
                raise Unusable("was made with a key that is not in VAULT_BACKUP_KEYS")
        except OSError as error:
            return BackupInfo(name, header, f"cannot be read: {_name_error(error)}")
        except Unusable as error:
            return BackupInfo(name, header, str(error))

        return BackupInfo(name, header, verified=verify)

    def _header(
        self,
        operation: str,
        path: str,
        namespace: str | None,
        fields: cabc.Sequence[str],
        from_version: int | None,
        kv_version: int,
    ) -> BackupHeader:
        key_id = self._sealer.key_id

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
            key_id=key_id,
        )

    @contextlib.contextmanager
    def _opened(self, *, create: bool) -> cabc.Iterator[int]:
        """Open the directory, and refuse it when others could read or change it.

        Everything below works relative to the descriptor, so that nobody can put
        another directory in its place between the checks and the use.
        """
        if os.name != "posix":
            raise BackupError(
                "Backups need a POSIX file system: here a file cannot be kept from"
                " other users."
            )

        try:
            directory = self._open_directory(create)
        except (OSError, RuntimeError) as error:
            # RuntimeError: pathlib's word for symbolic links in a loop.
            raise BackupError(
                f"VAULT_BACKUP_DIR, {str(self.directory)!r}, cannot be opened:"
                f" {_name_error(error)}."
            ) from error

        try:
            yield directory
        finally:
            os.close(directory)

    def _open_directory(self, create: bool) -> int:
        where = f"VAULT_BACKUP_DIR, {str(self.directory)!r},"

        # Both what the path says and what it means: a link can be replaced where it
        # stands, a directory where it is.
        real = self.directory.parent.resolve()

        for parent in sorted({*self.directory.parents, real, *real.parents}):
            try:
                mode = parent.stat().st_mode
            except FileNotFoundError:
                continue

            if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
                raise BackupError(
                    f"{where} is not safe: everyone may write to {str(parent)!r} above"
                    " it, and so replace it. Choose another directory, or take that"
                    " right away."
                )

        if create:
            for parent in reversed(self.directory.parents):
                _make_directory(parent, 0o755)

            _make_directory(self.directory, 0o700)

        if self.directory.is_symlink():
            raise BackupError(
                f"{where} is a symbolic link. Name the directory that it leads to."
            )

        directory = os.open(
            self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        )

        try:
            status = os.fstat(directory)

            if status.st_uid != os.geteuid():
                raise BackupError(
                    f"{where} does not belong to the user who runs this. Choose another"
                    " directory, or run the command as its owner."
                )

            if status.st_mode & 0o077:
                raise BackupError(
                    f"{where} is open to other users. 'chmod 700' closes it; think of"
                    " what they may have read or left there."
                )
        except BaseException:
            os.close(directory)
            raise

        return directory

    def _write_error(self, error: OSError) -> BackupError:
        return BackupError(
            f"The backup cannot be written to {str(self.directory)!r}:"
            f" {_name_error(error)}. Make room or give the right to write there, or set"
            " VAULT_BACKUP_DIR to another directory."
        )

    def _readback_error(self, error: Unusable) -> BackupError:
        return BackupError(
            f"The backup was written to {str(self.directory)!r} and could not be read"
            f" back; it was removed. The file {error}."
        )


def _stem(label: str) -> str:
    """The beginning of a file's name: no hidden file, no option, no separator."""
    stem = re.sub(r"[^A-Za-z0-9._-]", "_", label.replace("/", "-")).lstrip(".-")
    return stem[:100] or "secret"


def _age(info: BackupInfo) -> tuple[str, str]:
    if info.header is not None:
        return f"{info.header.created_at:%Y%m%dT%H%M%S.%f}", info.name

    stamp = _STAMP.search(info.name)
    return stamp[1] if stamp else "", info.name


def _name_error(error: Exception) -> str:
    if not isinstance(error, OSError) or error.errno is None:
        return type(error).__name__

    code = errno.errorcode.get(error.errno, str(error.errno))
    return f"{error.strerror} ({code})"


def _make_directory(path: Path, mode: int) -> None:
    if os.path.lexists(path):
        return

    path.mkdir(mode, exist_ok=True)

    # A file outlives a power cut only if the directories above it do. We may have no
    # right to open them, though.
    with contextlib.suppress(OSError):
        parent = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

        try:
            os.fsync(parent)
        finally:
            os.close(parent)


def _write_temporary(directory: int, stem: str, blob: bytes) -> str:
    name = f"{stem}.{secrets.token_hex(8)}.tmp"
    file = os.open(
        name,
        os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC,
        0o600,
        dir_fd=directory,
    )

    try:
        try:
            rest = memoryview(blob)

            while rest:
                rest = rest[os.write(file, rest) :]

            os.fsync(file)
        finally:
            # May be the first to say that the disk is full, so it is not suppressed.
            os.close(file)
    except BaseException:
        _remove(directory, name)
        raise

    return name


def _publish(directory: int, temporary: str, stem: str, tail: str) -> str:
    """Give a temporary file its name, one that no other backup has.

    Two paths may share a stem (``a/b`` and ``a-b``), and one rotation may write both in
    the same second.
    """
    number = 1

    while True:
        name = f"{stem}_{tail}" if number == 1 else f"{stem}-{number}_{tail}"

        try:
            _link(directory, temporary, name)
        except FileExistsError:
            if number == 100:
                raise

            number += 1
        else:
            return name


def _link(directory: int, temporary: str, name: str) -> None:
    """Name a file without replacing another one, which ``rename`` would do."""
    try:
        os.link(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
        return
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise

    # Replace a file that is ours for certain, since we made it.
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    os.close(os.open(name, flags, 0o600, dir_fd=directory))

    try:
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        _remove(directory, name)
        raise


def _remove(directory: int, name: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(name, dir_fd=directory)


def _read(directory: int, name: str) -> bytes:
    # NONBLOCK: a FIFO must not make us wait for its other end.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC

    try:
        file = os.open(name, flags, dir_fd=directory)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK):  # EMLINK: FreeBSD
            raise Unusable("is a symbolic link, and not a file") from None

        raise

    try:
        status = os.fstat(file)

        if not stat.S_ISREG(status.st_mode):
            raise Unusable("is not a regular file")

        if status.st_uid != os.geteuid():
            raise Unusable("does not belong to the user who runs this")

        if status.st_mode & 0o077:
            raise Unusable("is open to other users; 'chmod 600' closes it")

        if status.st_size > MAX_SIZE:
            raise Unusable(f"is larger than {MAX_SIZE} bytes")

        with open(file, "rb", closefd=False) as stream:
            return stream.read(MAX_SIZE)
    finally:
        os.close(file)
