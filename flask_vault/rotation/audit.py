"""Who did which step of which rotation, and when. Never a value, nor a hash of one."""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import datetime
import getpass
import json
import logging
import os
import pathlib
import socket
import stat
import typing as t

from ..errors import VaultConfigError

logger = logging.getLogger("flask_vault.audit")


class AuditLog:
    """Writes one JSON line for each step.

    :param file: ``VAULT_AUDIT_LOG``; ``None`` leaves it to the logger
        ``flask_vault.audit``.
    :param actor: asked once, when there is somebody to tell: the accessor and the
        display name of the token.
    :param clock: the present time, Vault's.
    """

    def __init__(
        self,
        file: pathlib.Path | None,
        *,
        actor: cabc.Callable[[], cabc.Mapping[str, object]],
        clock: cabc.Callable[[], datetime.datetime],
    ) -> None:
        self._file = file
        self._ask = actor
        self._clock = clock
        self._actor: dict[str, object] | None = None

    def check(self) -> None:
        """Prove that the file can be written to, before anything depends on it.

        :raises VaultConfigError: when it cannot, or others may write to it.
        """
        if self._file is not None:
            os.close(self._open(self._file))

    def record(
        self,
        *,
        operation: str | None,
        keys: cabc.Sequence[str],
        path: str,
        field: str,
        state: str,
        outcome: str,
        from_version: int | None = None,
        to_version: int | None = None,
        request_id: str | None = None,
    ) -> None:
        """Write a line.

        Does not raise when it cannot be written: a rotation that stops halfway for
        that is the worse thing.
        """
        if self._file is None and not logger.isEnabledFor(logging.INFO):
            return

        if self._actor is None:
            self._actor = {
                "user": _user(),
                "host": socket.gethostname(),
                "pid": os.getpid(),
                **self._ask(),
            }

        line = json.dumps(
            {
                "time": self._clock().isoformat(timespec="milliseconds"),
                "operation": operation,
                "keys": list(keys),
                "path": path,
                "field": field,
                "from_version": from_version,
                "to_version": to_version,
                "state": state,
                "outcome": outcome,
                "request_id": request_id,
                "actor": self._actor,
            }
        )
        logger.info("%s", line)

        if self._file is None:
            return

        try:
            self._append(self._file, line)
        except (OSError, VaultConfigError) as error:
            logger.error(
                "VAULT_AUDIT_LOG, %r, cannot be written (%s): this step is in it not.",
                str(self._file),
                type(error).__name__,
            )

    def _append(self, file: pathlib.Path, line: str) -> None:
        descriptor = self._open(file)

        try:
            # One write for a line: others append to the file as well.
            os.write(descriptor, f"{line}\n".encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _open(self, file: pathlib.Path) -> int:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        problem = ""

        try:
            # Not blocking: it may be a FIFO that nobody reads.
            descriptor = os.open(file, flags | os.O_NONBLOCK, 0o600)
        except OSError as error:
            problem = str(error.strerror)
        else:
            status = os.fstat(descriptor)

            if stat.S_ISREG(status.st_mode) and not status.st_mode & 0o022:
                return descriptor

            os.close(descriptor)
            problem = "it is no plain file, or others may write to it"

        raise VaultConfigError(
            f"VAULT_AUDIT_LOG, {str(file)!r}, cannot be used: {problem}. Name a file"
            " that only this user may write to."
        )


def read(
    file: pathlib.Path,
    *,
    match: cabc.Callable[[cabc.Mapping[str, t.Any]], bool] = lambda line: True,
    since: datetime.datetime | None = None,
) -> list[dict[str, t.Any]]:
    """The lines of a file, the oldest first. What is no line of ours is left out.

    :param match: which lines are wanted.
    :param since: the oldest that is wanted.
    """
    found: list[dict[str, t.Any]] = []

    with file.open(encoding="utf-8", errors="replace") as lines:
        for text in lines:
            with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError):
                line = json.loads(text)
                written = datetime.datetime.fromisoformat(line["time"])

                if (since is None or written >= since) and match(line):
                    found.append(line)

    return found


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # A container often runs under a number without a name.
        return str(os.getuid())
