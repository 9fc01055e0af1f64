"""The process between a test suite and its server.

A suite may be killed at any moment: by a debugger, by the kernel for want of memory,
by the time limit of a CI job. Then nobody runs its clean-up. So the server is a child
of this guard, and the guard reads a pipe whose other end only the suite holds: when
the suite is gone, however it went, the pipe ends, and the guard stops the server and
removes its folder.

It is run by its file's path with nothing but the standard library, reads and writes
one JSON object per line, and takes no secret from its arguments. Its first line names
the folder that it made. The orders:

.. code-block:: text

    {"number": 1, "do": "start",
     "argv": [...], "env": {...}, "log": "...", "console": "..."}
    {"number": 2, "do": "state"}
    {"number": 3, "do": "stop", "grace": 5.0}

Each is answered by ``{"number": 1, "pid": ..., "returncode": ...}``, where the pid is
null when no server runs, or by ``{"number": 1, "error": "..."}``. To stop is SIGTERM,
and SIGKILL after the grace; with a grace of 0, SIGKILL at once.
"""

from __future__ import annotations

import collections.abc as cabc
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import typing as t

#: How long a server may take to stop when its owner is gone, in seconds.
GRACE = 5.0


def die_with_guard() -> cabc.Callable[[], object] | None:
    """What a child calls to be killed when the guard itself is. Only Linux can."""
    if sys.platform != "linux":
        return None

    try:
        import ctypes

        prctl = ctypes.CDLL(None).prctl
    except (ImportError, OSError, AttributeError):
        return None

    pr_set_pdeathsig = 1
    return lambda: prctl(pr_set_pdeathsig, int(signal.SIGKILL), 0, 0, 0)


class Guard:
    """Owns one folder, and at most one server at a time."""

    def __init__(self) -> None:
        self.folder = tempfile.mkdtemp(prefix="flask-vault-")
        self.server: subprocess.Popen[bytes] | None = None

    def start(self, order: dict[str, t.Any]) -> None:
        """Start the server. Its log is continued, its console begins anew."""
        flags = os.O_WRONLY | os.O_CREAT
        log = os.open(order["log"], flags | os.O_APPEND, 0o600)
        console = os.open(order["console"], flags | os.O_TRUNC, 0o600)

        try:
            self.server = subprocess.Popen(
                order["argv"],
                env=order["env"],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=log,
                # A terminal's Ctrl-C is for the suite, which still needs the server
                # for its clean-up.
                start_new_session=True,
                preexec_fn=die_with_guard(),
            )
        finally:
            os.close(log)
            os.close(console)

    def stop(self, grace: float) -> None:
        """End the server: politely, and after ``grace`` seconds not."""
        if self.server is None or self.server.poll() is not None:
            return

        if grace > 0:
            self.server.send_signal(signal.SIGTERM)
            # One that a test has frozen would not hear it.
            self.server.send_signal(signal.SIGCONT)

            try:
                self.server.wait(grace)
            except subprocess.TimeoutExpired:
                pass
            else:
                return

        # Its session, so that plugins it runs as processes of their own go too.
        os.killpg(self.server.pid, signal.SIGKILL)
        self.server.wait()

    def reap(self, *args: object) -> None:
        """Bury a server that died by itself at once, so that its pid is gone too."""
        if self.server is not None:
            self.server.poll()

    def obey(self, order: dict[str, t.Any]) -> dict[str, t.Any]:
        """Carry out one order, and describe the server afterwards."""
        if order["do"] == "start":
            self.stop(GRACE)
            self.start(order)
        elif order["do"] == "stop":
            self.stop(order["grace"])

        if self.server is None:
            return {"pid": None, "returncode": None}

        returncode = self.server.poll()
        pid = self.server.pid if returncode is None else None
        return {"pid": pid, "returncode": returncode}


def leave(*args: object) -> t.NoReturn:
    raise SystemExit(0)


def stay(*args: object) -> None:
    """A handler and not ``SIG_IGN``, which the server would inherit."""


def main() -> None:
    signal.signal(signal.SIGINT, stay)
    signal.signal(signal.SIGHUP, stay)
    guard = Guard()

    def say(number: int, answer: dict[str, t.Any]) -> None:
        print(json.dumps({"number": number, **answer}), flush=True)

    try:
        signal.signal(signal.SIGTERM, leave)
        signal.signal(signal.SIGCHLD, guard.reap)
        say(0, {"folder": guard.folder})

        for line in sys.stdin:
            order = json.loads(line)

            try:
                answer = guard.obey(order)
            except (OSError, subprocess.SubprocessError) as error:
                answer = {"error": str(error)}

            say(order["number"], answer)
    except (BrokenPipeError, ValueError):
        # The suite went between an order and its answer, or amid an order. The
        # interpreter would complain when it flushes the stream at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    finally:
        signal.signal(signal.SIGTERM, stay)
        guard.stop(GRACE)
        shutil.rmtree(guard.folder, ignore_errors=True)


if __name__ == "__main__":
    main()
