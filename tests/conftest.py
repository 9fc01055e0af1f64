from __future__ import annotations

import collections.abc as cabc
import os
import typing as t

import pytest
from flask import current_app
from flask import has_app_context
from flask import has_request_context
from flask.globals import app_ctx
from flask.globals import request_ctx

from tests import canaries
from tests.helpers import TABLE
from tests.mariadb import mariadb as mariadb
from tests.postgres import postgres as postgres


@pytest.fixture(autouse=True)
def _reset_os_environ(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing that the developer's shell says reach a test."""
    for name in list(os.environ):
        if name == "FLASK_VAULT_SERVER_BINARY":
            continue

        if name.startswith(("VAULT_", "BAO_", "FLASK_", "_FLASK_VAULT")):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def _leak_detector() -> cabc.Iterator[None]:
    """Fail a test that leaves a context pushed, before it misleads the next one."""
    yield
    leaks = []

    while has_app_context():
        leaks.append(current_app.name)
        (request_ctx if has_request_context() else app_ctx).pop()

    assert leaks == [], "the test left the contexts of these apps pushed"


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: t.Any) -> None:
    """Take what a worker of pytest-xdist has to show."""
    lines = getattr(node, "workeroutput", {}).get("table", ())
    node.config.stash.setdefault(TABLE, []).extend(lines)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    for line in config.stash.get(TABLE, []):
        terminalreporter.write_line(line)


def pytest_configure(config: pytest.Config) -> None:
    canaries.watch(config)
