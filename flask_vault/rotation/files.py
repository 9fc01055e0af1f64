"""Files that no other user can read, replace, or put something else in the place of.

Everything works relative to the descriptor of a directory that was found to be safe, so
that nobody can put another directory in its place between the checks and the use.
"""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import errno
import os
import re
import secrets
import stat
import time
import typing as t
from pathlib import Path

from ..errors import BackupError
from .envelope import Unusable

MAX_SIZE: t.Final = 1024 * 1024
"""The size in bytes of the largest file that is written or read."""

_TEMPORARY = re.compile(r".+\.[0-9a-f]{16}\.tmp")

# Errors of link() where the file system or a sandbox has no hard links.
_NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


@contextlib.contextmanager
def opened(path: Path, *, create: bool) -> cabc.Iterator[int]:
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
        directory = _open_directory(path, create)
    except (OSError, RuntimeError) as error:
        # RuntimeError: pathlib's word for symbolic links in a loop.
        raise BackupError(
            f"VAULT_BACKUP_DIR, {str(path)!r}, cannot be opened: {name_error(error)}."
        ) from error

    try:
        yield directory
    finally:
        os.close(directory)


def _open_directory(path: Path, create: bool) -> int:
    where = f"VAULT_BACKUP_DIR, {str(path)!r},"

    # Both what the path says and what it means: a link can be replaced where it
    # stands, a directory where it is.
    real = path.parent.resolve()

    for parent in sorted({*path.parents, real, *real.parents}):
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
        for parent in reversed(path.parents):
            make_directory(parent, 0o755)

        make_directory(path, 0o700)

    if path.is_symlink():
        raise BackupError(
            f"{where} is a symbolic link. Name the directory that it leads to."
        )

    directory = os.open(
        path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
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


def name_error(error: Exception) -> str:
    if not isinstance(error, OSError) or error.errno is None:
        return type(error).__name__

    code = errno.errorcode.get(error.errno, str(error.errno))
    return f"{error.strerror} ({code})"


def make_directory(path: Path, mode: int) -> None:
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


def write_temporary(directory: int, stem: str, blob: bytes) -> str:
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
        remove(directory, name)
        raise

    return name


def publish(directory: int, temporary: str, stem: str, tail: str) -> str:
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
        remove(directory, name)
        raise


def remove(directory: int, name: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(name, dir_fd=directory)


def remove_leftovers(directory: int) -> None:
    """Remove the temporary files of runs that were killed.

    Those that are younger than an hour may be in use.
    """
    for name in os.listdir(directory):
        if not _TEMPORARY.fullmatch(name):
            continue

        with contextlib.suppress(OSError):
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)

            if stat.S_ISREG(status.st_mode) and time.time() - status.st_mtime > 3600:
                os.unlink(name, dir_fd=directory)


def read(directory: int, name: str) -> bytes:
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
