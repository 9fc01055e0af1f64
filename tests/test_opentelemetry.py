"""What a trace tells of an app's work with Vault."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import typing as t

import pytest

pytest.importorskip("opentelemetry.sdk")

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from flask_vault import FlaskVault
from flask_vault.integrations import opentelemetry
from flask_vault.observing import observers_of
from flask_vault.observing import StepTimer
from flask_vault.testing import DevServer
from flask_vault.testing import FaultProxy
from flask_vault.testing.plugin import VaultMount
from tests.helpers import approle
from tests.helpers import BACKUP_KEY
from tests.helpers import may_read
from tests.helpers import new_app

CANARY = "canary-77b1-value"


class Traced:
    """An app with a provider of its own."""

    def __init__(self, config: dict[str, object], **extra: object) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.app = new_app(config, TESTING=True, **extra)
        self.vault = FlaskVault()
        opentelemetry.init_app(self.app, self.provider)

    @property
    def spans(self) -> dict[str, ReadableSpan]:
        """The last of each name; all of what it tells is checked."""
        spans = {span.name: span for span in self._exporter.get_finished_spans()}

        for span in spans.values():
            assert CANARY not in span.to_json()

        return spans


def facts_of(span: ReadableSpan) -> dict[str, t.Any]:
    return dict(span.attributes or {})


def test_the_start_is_traced_with_the_login_in_it(
    vault_mount: VaultMount, vault_server: DevServer
) -> None:
    vault_mount.write("a", {"a": CANARY})
    traced = Traced(
        vault_mount.config(VAULT_TOKEN=None),
        VAULT_AUTH=approle(vault_server, may_read(vault_mount)),
        VAULT_SECRETS={"A": "a#a", "B": "a#a"},
    )
    traced.vault.init_app(traced.app)
    load, login = traced.spans["flask_vault.load"], traced.spans["flask_vault.login"]
    assert facts_of(load) == {
        "flask_vault.app": "shop",
        "flask_vault.entries": 2,
        "flask_vault.paths": 1,
    }
    assert facts_of(login) == {
        "flask_vault.app": "shop",
        "flask_vault.method": "approle",
    }
    assert login.parent == load.context
    assert load.status.is_unset


def test_a_start_that_fails_tells_the_type_of_its_error(
    vault_mount: VaultMount,
) -> None:
    traced = Traced(vault_mount.config(), VAULT_SECRETS={"A": "gone#a"})

    with pytest.raises(Exception, match="gone"):
        traced.vault.init_app(traced.app)

    load = traced.spans["flask_vault.load"]
    assert load.status.status_code is trace.StatusCode.ERROR
    assert facts_of(load)["error.type"] == "SecretNotFoundError"
    assert vault_mount.name not in load.to_json()
    assert trace.get_current_span() is trace.INVALID_SPAN


def test_a_refresh_that_fails_tells_of_it_without_a_path(
    vault_mount: VaultMount, vault_proxy: FaultProxy
) -> None:
    vault_mount.write("a", {"a": CANARY})
    traced = Traced(
        vault_mount.config(VAULT_ADDR=vault_proxy.address),
        VAULT_SECRETS={"A": "a#a"},
    )
    traced.vault.init_app(traced.app)
    traced.vault.refresh(traced.app)
    assert facts_of(traced.spans["flask_vault.refresh"])["flask_vault.errors"] == 0
    vault_proxy.answer(404, match="/data/a", times=None)
    traced.vault.refresh(traced.app)
    span = traced.spans["flask_vault.refresh"]
    assert span.status.description == "SecretNotFoundError"
    assert facts_of(span)["flask_vault.errors"] == 1
    assert vault_mount.name not in span.to_json()


def test_a_refresh_is_part_of_what_asked_for_it(vault_mount: VaultMount) -> None:
    vault_mount.write("a", {"a": CANARY})
    traced = Traced(vault_mount.config(), VAULT_SECRETS={"A": "a#a"})
    traced.vault.init_app(traced.app)

    with traced.provider.get_tracer("users").start_as_current_span("job") as job:
        traced.vault.refresh(traced.app)

    assert traced.spans["flask_vault.refresh"].parent == job.get_span_context()


def test_a_rotation_is_traced(vault_mount: VaultMount, tmp_path: pathlib.Path) -> None:
    vault_mount.write("a", {"a": "old"})
    traced = Traced(
        vault_mount.config(),
        VAULT_SECRETS={"A": {"ref": "a#a", "rotate": "token"}},
        VAULT_BACKUP_DIR=tmp_path / "backups",
        VAULT_BACKUP_KEYS=[BACKUP_KEY],
    )
    traced.vault.init_app(traced.app)
    traced.app.extensions["vault"].client.rotate_secret("a", "a", CANARY)
    assert facts_of(traced.spans["flask_vault.rotate"])["flask_vault.fields"] == 1


def test_the_steps_of_a_rotation_are_spans_with_the_waits_between_them() -> None:
    traced = Traced({})
    timer = StepTimer(observers_of(traced.app.extensions))

    for step, waits in (
        ("prepared", False),
        ("waiting", True),
        ("waiting", True),
        ("before commit", False),
    ):
        timer.report("db", step, kind="database", operation="1f2e", waits=waits)

    spans = traced.spans
    assert list(spans) == [
        "flask_vault.rotation.prepared",
        "flask_vault.rotation.waiting",
        "flask_vault.rotation.before_commit",
    ]
    ends = [span.end_time or 0 for span in spans.values()]
    begins = [span.start_time or 0 for span in spans.values()]
    assert ends == sorted(ends)
    assert all(begin <= end for begin, end in zip(begins, ends, strict=True))
    assert facts_of(spans["flask_vault.rotation.prepared"]) == {
        "flask_vault.app": "shop",
        "flask_vault.kind": "database",
        "flask_vault.operation": "1f2e",
    }


def test_without_the_package_nothing_is_traced_and_nothing_fails() -> None:
    code = """
import sys
sys.modules["opentelemetry"] = None
from flask import Flask
from flask_vault.integrations import opentelemetry
from flask_vault.observing import observers_of
app = Flask("shop")
opentelemetry.init_app(app)
assert not list(observers_of(app.extensions))
"""
    subprocess.run([sys.executable, "-c", code], check=True, env=dict(os.environ))
