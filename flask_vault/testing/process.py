"""This side of :mod:`flask_vault.testing.guard`."""

from __future__ import annotations

import itertools
import json
import os
import pathlib
import shutil
import subprocess
import sys
import threading
import typing as t
import weakref

from ..errors import VaultConfigError
from ..errors import VaultUnavailableError

#: How long a server may take to stop when asked, in seconds.
GRACE = 5.0

_HERE = pathlib.Path(__file__).resolve().parent
_open_guards: weakref.WeakSet[GuardedProcess] = weakref.WeakSet()


def _forget_in_child() -> None:
    """Who forks without exec copies our end of the pipe. Kept open there, it would
    keep the server alive for as long as the child lives."""
    for guard in list(_open_guards):
        guard.disown()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)


class GuardedProcess:
    """A folder, and a process that may run in it, both gone when this process is.

    :raise VaultUnavailableError: here and in all methods, when the guard is gone.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owner = os.getpid()
        self._numbers = itertools.count(1)
        self._guard = subprocess.Popen(
            # Neither site-packages nor PYTHON* variables: it needs none of them, and
            # an interpreter without them starts in a third of the time.
            [sys.executable, "-I", "-S", os.fspath(_HERE / "guard.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            # Unbuffered, so that a forked child can close its copies without
            # writing what a thread of the parent had begun to.
            bufsize=0,
            cwd="/",
            start_new_session=True,
        )
        self._orders = t.cast("t.BinaryIO", self._guard.stdin)
        self._answers = t.cast("t.BinaryIO", self._guard.stdout)
        _open_guards.add(self)
        #: The folder that it made, readable by this user only.
        self.folder = pathlib.Path(self._read(0)["folder"])

    def order(self, do: str, **arguments: object) -> dict[str, t.Any]:
        """Give the guard one order.

        :return: the process id and the return code, each may be ``None``.
        :raise VaultConfigError: when the program cannot be run.
        """
        with self._lock:
            if self._orders.closed:
                raise VaultUnavailableError(
                    "This 'DevServer' belongs to the process that forked this one."
                    " Start another one here."
                )

            number = next(self._numbers)
            message = json.dumps({"number": number, "do": do, **arguments}) + "\n"

            try:
                self._write(message.encode())
            except OSError:
                pass  # Reading finds out why.

            answer = self._read(number)

        if "error" in answer:
            raise VaultConfigError(f"The server cannot be run: {answer['error']}.")

        return answer

    def close(self) -> None:
        """Kill the process and remove the folder. May be repeated."""
        if os.getpid() != self._owner:
            return

        with self._lock:
            self._orders.close()
            self._answers.close()

            try:
                self._guard.wait(2 * GRACE)
            except subprocess.TimeoutExpired:
                self._guard.kill()
                self._guard.wait()

            if self._guard.returncode != 0 and hasattr(self, "folder"):
                # It was killed before it could.
                shutil.rmtree(self.folder, ignore_errors=True)

    def disown(self) -> None:
        """Let go of the guard in a forked child: the parent still needs it."""
        self._orders.close()
        self._answers.close()
        # Or its finalizer warns of a child that runs and is not ours.
        self._guard.returncode = 0
        # A thread of the parent may have held it.
        self._lock = threading.Lock()

    def _write(self, message: bytes) -> None:
        while message:
            message = message[self._orders.write(message) :]

    def _read(self, number: int) -> dict[str, t.Any]:
        """The answer to the order with this number. A Ctrl-C while an earlier one was
        awaited has left that one's answer, or the rest of it, before this one."""
        for line in iter(self._answers.readline, b""):
            try:
                answer: dict[str, t.Any] = json.loads(line)
            except ValueError:
                continue

            if answer["number"] == number:
                return answer

        raise VaultUnavailableError(
            "The process that guards the test server is gone, and the server with it."
            " Start a new 'DevServer'."
        )
