"""A real server with documents in it, and a proxy that delays and counts."""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import types
import typing as t

from flask import Flask

from flask_vault.testing import DevServer

MOUNT = "secret"
PREFIX = "benchmarks"
FIELD = "value"

_POLICY = "\n".join(
    f'path "{MOUNT}/{kind}/{PREFIX}/*" {{ capabilities = ["read"] }}'
    for kind in ("data", "metadata")
)


class BenchServer:
    """A server with as many documents as the largest benchmark reads, and an AppRole
    that may read them and nothing else."""

    def __init__(self, documents: int = 20) -> None:
        self.names = tuple(f"service{number}" for number in range(documents))
        self._server = DevServer()
        self._role = ("", "")

    def __enter__(self) -> BenchServer:
        self._server.start()

        try:
            self._role = self._server.create_approle("benchmarks", _POLICY)

            for name in self.names:
                self.write(name, {FIELD: f"{name}-9f86d081884c7d65", "user": name})
        except BaseException:
            self._server.close()
            raise

        return self

    def __exit__(self, *exc_info: object) -> None:
        self._server.close()

    @contextlib.contextmanager
    def frozen(self) -> cabc.Iterator[None]:
        """Have it take connections, and say nothing."""
        os.kill(self._server.pid, signal.SIGSTOP)

        try:
            yield
        finally:
            os.kill(self._server.pid, signal.SIGCONT)

    @property
    def address(self) -> str:
        return self._server.address

    @property
    def role(self) -> tuple[str, str]:
        """The role id and the secret id."""
        return self._role

    def entries(self, paths: int) -> dict[str, str]:
        """``VAULT_SECRETS`` with one entry for each path."""
        return {name.upper(): f"{name}#{FIELD}" for name in self.names[:paths]}

    def write(self, name: str, data: dict[str, str]) -> int:
        """Write a document.

        :return: its version.
        """
        answer = self._server.client().secrets.kv.v2.create_or_update_secret(
            f"{PREFIX}/{name}", data, mount_point=MOUNT
        )
        return int(answer["data"]["version"])

    def keep_versions(self, name: str, number: int) -> None:
        """Have more than ten versions of a document kept."""
        self._server.client().secrets.kv.v2.update_metadata(
            f"{PREFIX}/{name}", max_versions=number, mount_point=MOUNT
        )

    def app(self, paths: int, **config: object) -> Flask:
        """An app that is configured to read so many paths, and has not yet.

        :param config: more keys, or other values for these.
        """
        app = Flask("benchmark")
        app.config.from_mapping(
            {**self.config(), "VAULT_SECRETS": self.entries(paths), **config}
        )
        return app

    def config(self) -> dict[str, object]:
        """Where the documents are, and how to log in."""
        role_id, secret_id = self._role
        return {
            "VAULT_ADDR": self.address,
            "VAULT_AUTH": {
                "method": "approle",
                "role_id": role_id,
                "secret_id": secret_id,
            },
            "VAULT_MOUNT": MOUNT,
            "VAULT_PREFIX": PREFIX,
        }


class ProxyProcess:
    """:mod:`flask_vault.testing.proxy` in a process of its own. In ours its threads
    would wait for the same lock as those that are measured.

    :param delay: how long each request waits, in seconds.
    """

    def __init__(self, upstream: str, delay: float) -> None:
        self._command = [
            *(sys.executable, "-m", "flask_vault.testing.proxy"),
            *("--upstream", upstream, "--delay", str(delay)),
        ]
        self.address = ""

    def __enter__(self) -> ProxyProcess:
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.address = self._read_line()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        with self._process:
            t.cast("t.TextIO", self._process.stdin).close()

            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()

    def stats(self) -> dict[str, int]:
        """What it has counted since :meth:`settle`."""
        return self._order("stats")

    def settle(self) -> None:
        """Wait until clients have closed all connections, and count anew."""
        deadline = time.monotonic() + 10

        while self._order("reset")["max_connections"] > 0:
            if time.monotonic() > deadline:
                raise TimeoutError("A client that is gone keeps its connections open.")

            time.sleep(0.001)

    def _order(self, line: str) -> dict[str, int]:
        orders = t.cast("t.TextIO", self._process.stdin)
        orders.write(f"{line}\n")
        orders.flush()
        return t.cast("dict[str, int]", json.loads(self._read_line()))

    def _read_line(self) -> str:
        line = t.cast("t.TextIO", self._process.stdout).readline().strip()

        if not line:
            raise RuntimeError("The proxy has ended. Its last words are above.")

        return line
