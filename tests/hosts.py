"""Gunicorn instances, each as a host of its own has it."""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import dataclasses
import http.client
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
import typing as t
import urllib.parse

ROOT = pathlib.Path(__file__).parents[1]
WORKERS = 4


def wait_for(
    what: cabc.Callable[[], object], seconds: float = 20.0, *, pause: float = 0.01
) -> None:
    deadline = time.monotonic() + seconds

    while not what():
        if time.monotonic() > deadline:
            raise TimeoutError("It did not come about in time.")

        time.sleep(pause)


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a worker answered.

    :param cookie: the session cookie that it set.
    """

    status: int
    json: dict[str, t.Any]
    cookie: str | None = None


class Host:
    """A preloaded app. Entered, it starts; wait with :meth:`await_answer`.

    :param app: for gunicorn, as ``module:factory()``.
    :param config: of the app, handed over in the environment.
    """

    def __init__(
        self, app: str, config: cabc.Mapping[str, object], *, workers: int = WORKERS
    ) -> None:
        self.environ = environ_of(config)
        self._app = app
        self._workers = workers

        with socket.socket() as chosen:
            chosen.bind(("127.0.0.1", 0))
            self.port: int = chosen.getsockname()[1]

    def __enter__(self) -> Host:
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "gunicorn", "--preload"),
                *("--workers", str(self._workers), "--bind", f"127.0.0.1:{self.port}"),
                *("--log-level", "error", "--no-control-socket", self._app),
            ],
            cwd=ROOT,
            env=self.environ,
        )
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.send_signal(signal.SIGTERM)

        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def await_answer(self, path: str) -> None:
        """Wait until it is up."""

        def answers() -> bool:
            if self._process.poll() is not None:
                raise RuntimeError("Gunicorn has ended. Its last words are above.")

            with contextlib.suppress(OSError, http.client.HTTPException):
                return self.ask(path).status == 200

            return False

        wait_for(answers, 30)

    def ask(
        self,
        path: str,
        *,
        cookie: str | None = None,
        token: str | None = None,
        form: cabc.Mapping[str, str] | None = None,
    ) -> Answer:
        """Send a request on a connection of its own, so to any of the workers."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        headers = {}

        if cookie is not None:
            headers["Cookie"] = f"session={cookie}"

        if token is not None:
            headers["Authorization"] = f"Bearer {token}"

        if form is not None:
            headers["Content-Type"] = "application/x-www-form-urlencoded"

        try:
            connection.request(
                "GET" if form is None else "POST",
                path,
                None if form is None else urllib.parse.urlencode(form),
                headers,
            )
            response = connection.getresponse()
            body = response.read()
        finally:
            connection.close()

        is_json = response.headers.get_content_type() == "application/json"
        given = response.headers.get("Set-Cookie", "")
        return Answer(
            response.status,
            json.loads(body) if is_json else {},
            given.removeprefix("session=").partition(";")[0] or None,
        )


def environ_of(config: cabc.Mapping[str, object]) -> dict[str, str]:
    """The environment of a process whose app has this config."""
    given = {
        f"FLASK_{key}": value if isinstance(value, str) else json.dumps(value)
        for key, value in config.items()
    }
    return {**os.environ, **given}
