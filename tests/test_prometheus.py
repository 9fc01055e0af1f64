"""What a scrape shows of an app, and what it never does."""

from __future__ import annotations

import collections.abc as cabc
import math
import os
import pathlib
import signal
import time
import typing as t

import pytest
from flask import Flask

pytest.importorskip("prometheus_client")

from prometheus_client import CollectorRegistry
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from flask_vault import FlaskVault
from flask_vault import secret_rotated
from flask_vault.extension import state_of
from flask_vault.integrations import prometheus
from flask_vault.testing import DevServer
from flask_vault.testing import FaultProxy
from flask_vault.testing.plugin import VaultMount
from tests.helpers import approle
from tests.helpers import may_read
from tests.helpers import new_app
from tests.test_gunicorn import ask
from tests.test_gunicorn import gunicorn

CANARY = "canary-91d0-value"
RING = {"ref": "flask#key", "rotate": "token", "keyring": True}
MONITORING = pathlib.Path(__file__).parents[1] / "docs" / "monitoring.rst"


class Scrape:
    """The samples of an exposition."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.samples = [
            (sample.name.removeprefix("flask_vault_"), sample.labels, sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        ]

    def all(self, name: str, **labels: str) -> list[float]:
        return [
            value
            for sample, found, value in self.samples
            if sample == name and labels.items() <= found.items()
        ]

    def one(self, name: str, **labels: str) -> float:
        (value,) = self.all(name, **labels)
        return value

    def total(self, name: str, **labels: str) -> float:
        return sum(self.all(name, **labels))


class Measured:
    """An app with a registry of its own."""

    def __init__(self, config: cabc.Mapping[str, object], **extra: object) -> None:
        self.registry = CollectorRegistry()
        self.app = new_app(config, **extra)
        self.vault = FlaskVault()
        prometheus.init_app(self.app, self.registry)
        self.vault.init_app(self.app)

    def scrape(self) -> Scrape:
        return Scrape(generate_latest(self.registry).decode())


def test_the_start_is_counted_by_what_it_asked_for(
    vault_mount: VaultMount, vault_server: DevServer
) -> None:
    vault_mount.write("flask", {"key": CANARY})
    vault_mount.write("stripe", {"key": CANARY})
    policy = may_read(vault_mount) + (
        f'path "{vault_mount.name}/metadata/*" {{ capabilities = ["read"] }}'
    )
    measured = Measured(
        vault_mount.config(VAULT_TOKEN=None),
        VAULT_AUTH=approle(vault_server, policy),
        VAULT_SECRETS={"KEY": RING, "STRIPE": "stripe#key"},
    )
    scrape = measured.scrape()
    count = "request_duration_seconds_count"
    assert scrape.one(count, operation="login", outcome="ok") == 1
    assert scrape.one(count, operation="read", outcome="ok") == 2
    assert scrape.one(count, operation="metadata", outcome="ok") == 1
    assert scrape.total("request_duration_seconds_sum") > 0


def test_entries_are_counted_by_their_source(
    vault_mount: VaultMount, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("B", CANARY)
    vault_mount.write("a", {"a": CANARY})
    scrape = Measured(
        vault_mount.config(),
        VAULT_SECRETS={
            "A": "a#a",
            "B": {"ref": "gone#b", "env": "B"},
            "C": {"ref": "gone#c", "required": False},
        },
    ).scrape()
    assert {
        source: scrape.one("entries", source=source) for source in prometheus.SOURCES
    } == {"vault": 1, "env": 1, "unset": 1, "cache": 0, "default": 0}
    assert scrape.one("entry_version", key="A") == 1
    assert scrape.one("entry_created_timestamp_seconds", key="A") == pytest.approx(
        time.time(), abs=60
    )


def test_a_refresh_is_counted_by_its_outcome(
    vault_mount: VaultMount, vault_proxy: FaultProxy
) -> None:
    vault_mount.write("a", {"a": CANARY})
    vault_mount.write("b", {"b": CANARY})
    measured = Measured(
        vault_mount.config(VAULT_ADDR=vault_proxy.address, TESTING=True),
        VAULT_SECRETS={"A": "a#a", "B": "b#b"},
    )
    measured.vault.refresh(measured.app)
    before = measured.scrape()
    vault_proxy.answer(404, match="/data/a", times=None)
    measured.vault.refresh(measured.app)
    failing = measured.scrape()
    vault_proxy.heal()
    measured.vault.refresh(measured.app)
    after = measured.scrape()
    assert after.one("refreshes_total", outcome="ok") == 2
    assert after.one("refreshes_total", outcome="failed") == 1
    assert after.one("refresh_errors_total", error="SecretNotFoundError") == 1
    assert [s.one("refresh_failing") for s in (before, failing, after)] == [0, 1, 0]


@pytest.mark.parametrize(
    ("status", "outcome"),
    [(403, "denied"), (404, "missing"), (503, "unavailable"), (400, "error")],
)
def test_a_request_is_counted_by_how_it_ended(
    vault_mount: VaultMount, vault_proxy: FaultProxy, status: int, outcome: str
) -> None:
    vault_mount.write("a", {"a": CANARY})
    measured = Measured(
        vault_mount.config(VAULT_ADDR=vault_proxy.address, TESTING=True),
        VAULT_SECRETS={"A": "a#a"},
    )
    vault_proxy.answer(status, match="/data/a", times=None)
    measured.vault.refresh(measured.app)
    count = "request_duration_seconds_count"
    assert measured.scrape().total(count, operation="read", outcome=outcome) >= 1


def test_the_states_of_a_ring_are_counted(vault_mount: VaultMount) -> None:
    vault_mount.write("flask", {"key": CANARY})
    measured = Measured(vault_mount.config(TESTING=True), VAULT_SECRETS={"KEY": RING})
    assert measured.scrape().one("keyring_next_change_timestamp_seconds") == math.inf
    vault_mount.write("flask", {"key": f"{CANARY}-2"})
    measured.vault.refresh(measured.app)
    scrape = measured.scrape()
    assert {
        state: scrape.one("keyring_keys", key="KEY", state=state)
        for state in prometheus.STATES
    } == {"pending": 1, "signing": 1, "retired": 0}
    change = scrape.one("keyring_next_change_timestamp_seconds", key="KEY")
    window = scrape.one("propagation_window_seconds")
    assert change == pytest.approx(time.time() + window, abs=60)


def test_an_open_rotation_is_shown_for_the_entries_that_it_concerns(
    vault_mount: VaultMount,
) -> None:
    journal = {"v": 1, "password": {"op": "1", "kind": "database", "state": "APPLYING"}}
    document = {"user": "ada", "password": CANARY, "v": "1"}
    vault_mount.write("db", {**document, "_rotation": journal})
    measured = Measured(
        vault_mount.config(TESTING=True),
        VAULT_SECRETS={
            "URL": {"ref": "db", "template": "db://{user}:{password}@db"},
            "DB_USER": "db#user",
            "V": "db#v",
            "WHOLE": {"ref": "db", "cast": "json"},
        },
    )

    def open_ones() -> set[str]:
        scrape = measured.scrape()
        return {
            labels["key"]
            for name, labels, value in scrape.samples
            if name == "rotation_open" and value
        }

    assert open_ones() == {"URL", "WHOLE"}
    vault_mount.write("db", document)
    measured.vault.refresh(measured.app)
    assert open_ones() == set()


def test_receivers_that_raise_are_counted(vault_mount: VaultMount) -> None:
    vault_mount.write("flask", {"key": "old"})
    measured = Measured(
        vault_mount.config(TESTING=True), VAULT_SECRETS={"KEY": "flask#key"}
    )

    def fail(*args: object, **sent: object) -> None:
        raise RuntimeError(CANARY)

    measured.vault.on_rotate("KEY")(fail)
    vault_mount.write("flask", {"key": "new"})

    with secret_rotated.connected_to(fail, measured.app):
        measured.vault.refresh(measured.app)

    scrape = measured.scrape()
    errors = "receiver_errors_total"
    assert scrape.one(errors, receiver="vault-secret-rotated") == 1
    assert scrape.one(errors, receiver="on_rotate") == 1
    assert CANARY not in scrape.text


def test_the_end_of_the_token_is_shown(
    vault_mount: VaultMount, vault_server: DevServer
) -> None:
    vault_mount.write("a", {"a": CANARY})
    role = approle(vault_server, may_read(vault_mount), token_ttl="30m")
    scrape = Measured(
        vault_mount.config(VAULT_TOKEN=None),
        VAULT_AUTH=role,
        VAULT_SECRETS={"A": "a#a"},
    ).scrape()
    left = scrape.one("token_expires_timestamp_seconds") - time.time()
    assert left == pytest.approx(1800, abs=60)


def test_times_are_by_the_clock_of_vault(vault_mount: VaultMount) -> None:
    vault_mount.write("a", {"a": CANARY})
    measured = Measured(vault_mount.config(TESTING=True), VAULT_SECRETS={"A": "a#a"})
    wire = state_of(measured.app).client.transport._wire
    assert wire._clock is not None
    wire._clock = wire._clock[0] - 86_400, wire._clock[1]
    wire.take = lambda *args: None  # type: ignore[method-assign]
    measured.vault.refresh(measured.app)
    success = measured.scrape().one("refresh_last_success_timestamp_seconds")
    assert success == pytest.approx(time.time() - 86_400, abs=60)


@pytest.mark.parametrize("paths", [False, True])
def test_a_path_is_shown_only_where_the_config_says_so(
    vault_mount: VaultMount, paths: bool
) -> None:
    vault_mount.write("flask", {"key": CANARY})
    measured = Measured(
        vault_mount.config(TESTING=True),
        VAULT_SECRETS={"KEY": RING},
        VAULT_METRICS_PATHS=paths,
    )
    measured.vault.refresh(measured.app)
    scrape = measured.scrape()
    assert (vault_mount.name in scrape.text) is paths
    assert scrape.all("entry_info", path=f"{vault_mount.name}/flask", field="key") == (
        [1] if paths else []
    )
    assert CANARY not in scrape.text


def test_an_app_without_vault_has_its_entries() -> None:
    scrape = Measured(
        {"VAULT_ENABLED": False},
        VAULT_SECRETS={"A": {"ref": "a#a", "default": CANARY}},
    ).scrape()
    assert scrape.one("entries", source="default") == 1
    assert scrape.all("refresh_failing") == []
    assert CANARY not in scrape.text


def test_apps_that_share_a_registry_are_told_apart(vault_mount: VaultMount) -> None:
    vault_mount.write("a", {"a": CANARY})
    registry = CollectorRegistry()

    for name in ("shop", "admin"):
        app = Flask(name)
        app.config.from_mapping(vault_mount.config(), VAULT_SECRETS={"A": "a#a"})
        FlaskVault(app)
        prometheus.init_app(app, registry)

    scrape = Scrape(generate_latest(registry).decode())
    assert scrape.one("entries", app="shop", source="vault") == 1
    assert scrape.one("entries", app="admin", source="vault") == 1


def test_metrics_that_cannot_be_kept_fail_no_request(
    vault_mount: VaultMount,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    vault_mount.write("a", {"a": CANARY})
    measured = Measured(vault_mount.config(TESTING=True), VAULT_SECRETS={"A": "a#a"})

    def full(*args: object) -> t.NoReturn:
        raise OSError("no space left")

    monkeypatch.setattr("prometheus_client.Gauge.set", full)
    monkeypatch.setattr("os.getpid", lambda: -1)
    assert measured.app.test_client().get("/vault/health/live").status_code == 200
    assert "What observes Flask-Vault failed with OSError" in caplog.text


# --- several processes ---------------------------------------------------------------


@pytest.fixture
def workers(
    vault_mount: VaultMount, vault_server: DevServer, tmp_path: pathlib.Path
) -> cabc.Iterator[int]:
    """A preloaded app with four workers that share their metrics.

    :return: its port.
    """
    vault_mount.write("flask", {"key": CANARY})
    vault_mount.write("stripe", {"key": CANARY})
    policy = f'path "{vault_mount.name}/*" {{ capabilities = ["read"] }}'
    login = {
        f"FLASK_VAULT_AUTH__{name}": str(value)
        for name, value in approle(vault_server, policy).items()
    }

    with gunicorn(
        vault_mount,
        *("--config", "python:tests.apps.measured_gunicorn"),
        app="tests.apps.measured:create_app()",
        PROMETHEUS_MULTIPROC_DIR=str(tmp_path),
        # No round but those that a test asks for.
        FLASK_VAULT_REFRESH_MODE="off",
        **login,
    ) as port:
        yield port


def ask_all(port: int, path: str, number: int = 4) -> set[int]:
    """Ask until that many workers have answered."""
    pids: set[int] = set()
    deadline = time.monotonic() + 30

    while len(pids) < number:
        assert time.monotonic() < deadline, f"only {len(pids)} workers have answered"
        pids.add(int(ask(port, path)[1]))

    return pids


def scrape_of(port: int) -> Scrape:
    status, text = ask(port, "metrics")
    assert status == 200
    return Scrape(text)


def test_four_workers_are_shown_as_one_app(workers: int) -> None:
    ask_all(workers, "0")
    scrape = scrape_of(workers)
    count = "request_duration_seconds_count"
    # The parent's, which has logged in and read for all of them.
    assert scrape.one(count, operation="login") == 1
    assert scrape.one(count, operation="read") == 2
    # Not the sum of the workers'.
    assert scrape.one("entries", source="vault") == 2
    assert scrape.one("entry_version", key="STRIPE") == 1
    assert scrape.one("keyring_keys", key="KEY", state="signing") == 1
    assert scrape.one("token_expires_timestamp_seconds") > time.time()
    assert CANARY not in scrape.text


def test_the_worker_that_is_furthest_behind_is_shown(
    workers: int, vault_mount: VaultMount
) -> None:
    ask_all(workers, "0")
    vault_mount.write("stripe", {"key": f"{CANARY}-2"})
    ask(workers, "refresh")
    one = scrape_of(workers)
    assert one.one("refreshes_total", outcome="ok") == 1
    assert one.one("entry_version", key="STRIPE") == 1
    # The parent knows of version 1 alone, for ever.
    ask_all(workers, "refresh")
    all_of_them = scrape_of(workers)
    assert all_of_them.one("refreshes_total", outcome="ok") >= 4
    assert all_of_them.one("entry_version", key="STRIPE") == 2


def test_a_worker_that_is_gone_is_shown_no_more(
    workers: int, vault_mount: VaultMount
) -> None:
    pids = ask_all(workers, "0")
    vault_mount.write("stripe", {"key": f"{CANARY}-2"})
    left = int(ask(workers, "refresh")[1])

    for pid in pids - {left}:
        os.kill(pid, signal.SIGTERM)

    deadline = time.monotonic() + 30

    while scrape_of(workers).one("entry_version", key="STRIPE") == 1:
        assert time.monotonic() < deadline, "a dead worker is still shown"
        ask(workers, "refresh")


# --- the documentation ---------------------------------------------------------------


def names_of(registry: CollectorRegistry) -> set[str]:
    return {
        f"{metric.name}_total" if metric.type == "counter" else metric.name
        for metric in registry.collect()
    }


def test_the_page_has_every_metric_and_no_other() -> None:
    registry = CollectorRegistry()
    prometheus.Metrics(registry)
    page = MONITORING.read_text("utf-8")
    table: t.Any = page.split(".. _metrics:")[1].split(".. _dashboard:")[0]
    told = {w.strip("`") for w in table.split() if w.startswith("``flask_vault_")}
    assert told == names_of(registry)
