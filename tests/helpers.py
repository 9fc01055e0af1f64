"""What several test files share."""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import math
import secrets
import threading
import time
import typing as t

import pytest
from flask import Flask

from flask_vault import FlaskVault
from flask_vault.errors import VaultError
from flask_vault.testing.faults import RecordedRequest

if t.TYPE_CHECKING:
    from flask_vault.testing import DevServer
    from flask_vault.testing import FaultProxy
    from flask_vault.testing.plugin import VaultMount

#: Lines that the end of a run shows, for a table that tests have filled.
TABLE: t.Final = pytest.StashKey[list[str]]()

E = t.TypeVar("E", bound=VaultError)
T = t.TypeVar("T")

#: For ``VAULT_BACKUP_KEYS``.
BACKUP_KEY = "k" * 42 + "A="


class Clock:
    """Monotonic seconds that pass when a test says so."""

    def __init__(self) -> None:
        # It may take over from the real one.
        self.now = float(math.ceil(time.monotonic()))

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


def new_app(config: cabc.Mapping[str, object], **extra: object) -> Flask:
    app = Flask("shop")
    app.config.from_mapping(config, **extra)
    return app


def start_app(config: cabc.Mapping[str, object], **extra: object) -> Flask:
    app = new_app(config, **extra)
    FlaskVault(app)
    return app


def approle(
    server: DevServer, policy: str, **role_options: object
) -> dict[str, object]:
    """The ``VAULT_AUTH`` of a new role with this policy."""
    name = f"role-{secrets.token_hex(6)}"
    role_id, secret_id = server.create_approle(name, policy, **role_options)
    return {"method": "approle", "role_id": role_id, "secret_id": secret_id}


def may_read(mount: VaultMount, path: str = "*") -> str:
    return f'path "{mount.name}/data/{path}" {{ capabilities = ["read"] }}\n'


@contextlib.contextmanager
def refused(app: Flask, kind: type[E]) -> cabc.Iterator[pytest.ExceptionInfo[E]]:
    """Expect that an app does not start, and that nothing of it was changed."""
    config, extensions = dict(app.config), dict(app.extensions)
    routes = list(app.url_map.iter_rules())

    with pytest.raises(kind) as caught:
        yield caught

    assert type(caught.value) is kind
    assert dict(app.config) == config
    assert app.extensions == extensions
    assert list(app.url_map.iter_rules()) == routes


def at_once(number: int, work: cabc.Callable[[int], T]) -> list[T | Exception]:
    """Call a function from that many threads at the same time.

    :return: what each call returned or raised.
    """
    barrier = threading.Barrier(number)
    ends: dict[int, T | Exception] = {}

    def run(index: int) -> None:
        barrier.wait(10)

        try:
            ends[index] = work(index)
        except Exception as error:
            ends[index] = error

    threads = [threading.Thread(target=run, args=(i,)) for i in range(number)]

    for thread in threads:
        thread.start()

    for thread in threads:
        thread.join(30)

    return [ends[index] for index in range(number)]


def is_write(request: RecordedRequest) -> bool:
    return request.method in ("POST", "PUT") and "/auth/" not in request.path


def before_each_write(
    proxy: FaultProxy, do: cabc.Callable[[], object], times: int = 1
) -> None:
    """Do something just before a write reaches the server, as a second writer would."""
    left = [None] * times

    def hook(request: RecordedRequest) -> bool:
        if is_write(request) and left:
            left.pop()
            do()

        return False  # And let it pass.

    proxy.drop_reply(times=None, match=hook)


def show_at_the_end(config: pytest.Config, lines: list[str]) -> None:
    """Have lines printed when all tests have run, also those of other processes."""
    if (output := getattr(config, "workeroutput", None)) is not None:
        output.setdefault("table", []).extend(lines)
    else:
        config.stash.setdefault(TABLE, []).extend(lines)
