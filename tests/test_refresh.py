"""A change in Vault reaches the config of a running app, and only a good one does."""

from __future__ import annotations

import collections.abc as cabc
import gc
import threading
import time
import typing as t
import weakref

import blinker
import pytest
from click.testing import CliRunner
from flask import Flask
from flask.cli import ScriptInfo

from flask_vault import FlaskVault
from flask_vault import get_secret
from flask_vault import keyring_advanced
from flask_vault import refresh_failed
from flask_vault import refresh_recovered
from flask_vault import secret_rotated
from flask_vault import VaultConfigError
from flask_vault.cli import vault_group
from flask_vault.extension import state_of
from flask_vault.testing import DevServer
from flask_vault.testing import FaultProxy
from flask_vault.testing.api import Api
from flask_vault.testing.plugin import VaultMount
from tests.helpers import approle
from tests.helpers import at_once
from tests.helpers import may_read
from tests.helpers import start_app

KEY = {"ref": "flask#key", "keyring": True, "rotate": "token"}


def admin(
    mount: VaultMount, method: str, what: str, path: str, body: object = None
) -> None:
    Api(mount.address).call(
        method, f"{mount.name}/{what}/{path}", body, token=mount.token
    )


def destroy(mount: VaultMount, path: str, *versions: int) -> None:
    admin(mount, "POST", "destroy", path, {"versions": versions})


def refresh(app: Flask) -> tuple[tuple[str, ...], dict[str, str]]:
    """What changed, and the kinds of errors by the last segment of their paths."""
    report = state_of(app).refresh()
    errors = {p.rpartition("/")[2]: type(e).__name__ for p, e in report.errors.items()}
    return report.changed, errors


def wait_for(what: cabc.Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds

    while not what():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)


class Heard:
    """What was sent to an app's receivers."""

    def __init__(self, app: Flask, *signals: blinker.NamedSignal) -> None:
        self.sent: list[tuple[str, dict[str, t.Any]]] = []

        for signal in signals:
            signal.connect_via(app)(self._receiver(signal.name))

    def _receiver(self, name: str) -> cabc.Callable[..., None]:
        def receive(sender: Flask, **arguments: t.Any) -> None:
            self.sent.append((name, arguments))

        return receive


@pytest.fixture
def app(vault_mount: VaultMount) -> Flask:
    """An app with a ring of one value, a plain entry, and no thread."""
    vault_mount.write("flask", {"key": "first key"})
    vault_mount.write("stripe", {"api_key": "sk-first"})
    return start_app(
        vault_mount.config(),
        TESTING=True,
        VAULT_SECRETS={"SECRET_KEY": KEY, "STRIPE_KEY": "stripe#api_key"},
    )


# What a change does.


def test_a_plain_value_is_taken_over(app: Flask, vault_mount: VaultMount) -> None:
    heard = Heard(app, secret_rotated)
    vault_mount.write("stripe", {"api_key": "sk-second", "other": "x"})

    assert refresh(app) == (("STRIPE_KEY",), {})
    assert app.config["STRIPE_KEY"] == "sk-second"
    assert refresh(app) == ((), {})
    assert [arguments for _, arguments in heard.sent] == [
        {
            "key": "STRIPE_KEY",
            "path": f"{vault_mount.name}/stripe",
            "field": "api_key",
            "version": 2,
            "previous_version": 1,
            "origin": "refresh",
        }
    ]


def test_a_key_is_accepted_before_it_signs(app: Flask, vault_mount: VaultMount) -> None:
    vault_mount.write("flask", {"key": "second key"})

    assert refresh(app) == (("SECRET_KEY",), {})
    assert app.config["SECRET_KEY"] == "first key"
    assert app.config["SECRET_KEY_FALLBACKS"] == ["first key", "second key"]
    ring = state_of(app).keyring("SECRET_KEY")
    assert [(key.version, key.state) for key in ring.accepted] == [
        (2, "pending"),
        (1, "signing"),
    ]


def test_when_its_time_has_come_it_signs_with_no_request_sent(
    vault_mount: VaultMount, vault_proxy: FaultProxy
) -> None:
    vault_mount.write("flask", {"key": "first key"})
    app = start_app(
        vault_mount.config(VAULT_ADDR=vault_proxy.address),
        VAULT_REFRESH_INTERVAL=3600,
        VAULT_PROPAGATION_WINDOW=1,
        VAULT_SECRETS={"SECRET_KEY": KEY | {"retire_after": 1}},
    )
    heard = Heard(app, keyring_advanced)
    vault_mount.write("flask", {"key": "second key"})
    state_of(app).refresh()
    asked = vault_proxy.count
    state_of(app).start()

    wait_for(lambda: app.config["SECRET_KEY"] == "second key")
    wait_for(lambda: app.config["SECRET_KEY_FALLBACKS"] == ["second key"])
    wait_for(lambda: len(heard.sent) == 2)
    # The thread looks after the token when it starts.
    assert vault_proxy.count - asked <= 1
    assert [arguments for _, arguments in heard.sent] == [
        {"key": "SECRET_KEY", "version": 2, "accepted": (2, 1)},
        {"key": "SECRET_KEY", "version": 2, "accepted": (2,)},
    ]


def test_a_refresh_of_unchanged_paths_is_one_request_for_each(
    vault_mount: VaultMount, vault_proxy: FaultProxy
) -> None:
    secrets: dict[str, object] = {}

    for i in range(5):
        vault_mount.write(f"p{i}", {"a": "1", "b": "2"})
        secrets |= {f"A{i}": f"p{i}#a", f"B{i}": f"p{i}#b"}

    secrets["C0"] = {"ref": "p0#a", "keyring": True}
    app = start_app(
        vault_mount.config(VAULT_ADDR=vault_proxy.address), VAULT_SECRETS=secrets
    )
    asked = vault_proxy.count
    refresh(app)
    assert vault_proxy.count - asked == 5


def test_a_worker_that_starts_later_accepts_the_old_keys_too(
    vault_mount: VaultMount,
) -> None:
    for version in range(1, 4):
        vault_mount.write("flask", {"key": f"key {version}"})

    app = start_app(
        vault_mount.config(),
        VAULT_PROPAGATION_WINDOW=0,
        VAULT_SECRETS={"SECRET_KEY": KEY},
    )
    assert app.config["SECRET_KEY"] == "key 3"
    assert app.config["SECRET_KEY_FALLBACKS"] == ["key 1", "key 2", "key 3"]


def test_a_context_keeps_the_ring_that_it_has_seen(
    app: Flask, vault_mount: VaultMount
) -> None:
    vault = FlaskVault()

    with app.app_context():
        before = vault.keyring("SECRET_KEY")
        vault_mount.write("flask", {"key": "second key"})
        vault.refresh()
        assert vault.keyring("SECRET_KEY") is before

    with app.app_context():
        assert len(vault.keyring("SECRET_KEY").accepted) == 2


# What is no good changes nothing but the health.


def delete(mount: VaultMount, path: str) -> None:
    admin(mount, "DELETE", "data", path)


def delete_metadata(mount: VaultMount, path: str) -> None:
    admin(mount, "DELETE", "metadata", path)


BAD: dict[str, cabc.Callable[[VaultMount, str], object]] = {
    "deleted": delete,
    "metadata deleted": delete_metadata,
    "field removed": lambda mount, path: mount.write(path, {"other": "x"}),
    "value emptied": lambda mount, path: mount.write(path, {"key": " "}),
    "null": lambda mount, path: mount.write(path, {"key": None}),
    "nested": lambda mount, path: mount.write(path, {"key": {"a": 1}}),
    "destroyed": lambda mount, path: destroy(mount, path, 1),
}


@pytest.mark.parametrize("entry", ["flask#key", KEY], ids=["plain", "ring"])
@pytest.mark.parametrize("spoil", BAD.values(), ids=BAD.keys())
def test_the_last_good_value_is_kept(
    spoil: cabc.Callable[[VaultMount, str], object],
    entry: object,
    vault_mount: VaultMount,
) -> None:
    vault_mount.write("flask", {"key": "good"})
    app = start_app(vault_mount.config(), VAULT_SECRETS={"SECRET_KEY": entry})
    heard = Heard(app, refresh_failed, refresh_recovered)
    spoil(vault_mount, "flask")

    for _ in range(3):
        assert list(refresh(app)[1]) == ["flask"]

    assert app.config["SECRET_KEY"] == "good"
    assert app.test_client().get("/vault/health").json == {"status": "warn"}

    with app.app_context():
        assert get_secret("flask", "key") == "good"

    vault_mount.write("flask", {"key": "good again"})
    assert refresh(app) == (("SECRET_KEY",), {})
    assert app.test_client().get("/vault/health").json == {"status": "pass"}
    assert [name for name, _ in heard.sent] == [
        "vault-refresh-failed",
        "vault-refresh-recovered",
    ]


def test_one_bad_field_keeps_the_whole_document(vault_mount: VaultMount) -> None:
    vault_mount.write("db", {"user": "u1", "port": "1"})
    app = start_app(
        vault_mount.config(),
        VAULT_SECRETS={
            "DB_USER": "db#user",
            "DB_PORT": {"ref": "db#port", "cast": "int"},
        },
    )
    vault_mount.write("db", {"user": "u2", "port": "no number"})
    assert refresh(app) == ((), {"db": "SecretValueError"})
    assert (app.config["DB_USER"], app.config["DB_PORT"]) == ("u1", 1)


def test_an_undeleted_version_is_good_again(
    app: Flask, vault_mount: VaultMount
) -> None:
    delete(vault_mount, "flask")
    assert refresh(app)[1] == {"flask": "SecretVersionError"}
    admin(vault_mount, "POST", "undelete", "flask", {"versions": [1]})
    assert refresh(app) == ((), {})
    assert app.config["SECRET_KEY_FALLBACKS"] == ["first key"]


def test_a_destroyed_key_is_not_accepted_even_when_it_is_the_newest(
    app: Flask, vault_mount: VaultMount
) -> None:
    vault_mount.write("flask", {"key": "leaked key"})
    refresh(app)
    destroy(vault_mount, "flask", 2)

    assert refresh(app)[1] == {"flask": "SecretVersionError"}
    assert app.config["SECRET_KEY_FALLBACKS"] == ["first key"]


def test_a_deleted_older_key_is_not_accepted(
    app: Flask, vault_mount: VaultMount
) -> None:
    vault_mount.write("flask", {"key": "second key"})
    admin(vault_mount, "POST", "delete", "flask", {"versions": [1]})

    assert refresh(app) == (("SECRET_KEY",), {})
    assert app.config["SECRET_KEY_FALLBACKS"] == ["second key"]
    assert app.config["SECRET_KEY"] == "second key"


def test_a_document_that_was_made_anew_begins_a_new_ring(
    app: Flask, vault_mount: VaultMount
) -> None:
    vault_mount.write("flask", {"key": "second key"})
    refresh(app)
    delete_metadata(vault_mount, "flask")
    vault_mount.write("flask", {"key": "anew"})

    assert refresh(app) == (("SECRET_KEY",), {})
    assert app.config["SECRET_KEY"] == "anew"
    assert app.config["SECRET_KEY_FALLBACKS"] == ["anew"]


def test_a_removed_mount_and_a_lost_policy_change_nothing(
    vault_server: DevServer, vault_mount: VaultMount
) -> None:
    vault_mount.write("flask", {"key": "good"})
    app = start_app(
        vault_mount.config(VAULT_AUTH=approle(vault_server, may_read(vault_mount))),
        VAULT_TOKEN=None,
        VAULT_SECRETS={"SECRET_KEY": "flask#key"},
    )
    vault_server.disable_mount(vault_mount.name)
    assert refresh(app)[1]
    assert app.config["SECRET_KEY"] == "good"


def test_without_the_right_to_metadata_the_ring_goes_by_the_data(
    vault_server: DevServer, vault_mount: VaultMount, caplog: pytest.LogCaptureFixture
) -> None:
    for version in range(1, 4):
        vault_mount.write("flask", {"key": f"key {version}"})

    destroy(vault_mount, "flask", 2)
    app = start_app(
        vault_mount.config(VAULT_AUTH=approle(vault_server, may_read(vault_mount))),
        VAULT_TOKEN=None,
        VAULT_PROPAGATION_WINDOW=0,
        VAULT_SECRETS={"SECRET_KEY": KEY},
    )
    assert app.config["SECRET_KEY_FALLBACKS"] == ["key 1", "key 3"]
    assert "deleted or destroyed stays accepted" in caplog.text
    assert f"{vault_mount.name}/metadata/flask" in caplog.text

    vault_mount.write("flask", {"key": "key 4"})
    assert refresh(app) == (("SECRET_KEY",), {})
    assert app.config["SECRET_KEY_FALLBACKS"] == ["key 1", "key 3", "key 4"]
    assert caplog.text.count("stays accepted") == 1


def test_an_answer_that_is_older_is_not_taken(
    app: Flask, vault_mount: VaultMount, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As from a round-robin of nodes whose standbys lag."""
    state = state_of(app)
    old = dict(state.live.applied)
    vault_mount.write("flask", {"key": "second key"})
    vault_mount.write("stripe", {"api_key": "sk-second"})
    refresh(app)
    kv, versions = state.client.kv, state.client.versions
    place = {p.path.rpartition("/")[2]: p for p in old}
    lagging = versions.of(place["flask"])
    lagging = type(lagging)(lagging.stamps[:1], None)
    monkeypatch.setattr(kv, "read", lambda *_, **__: old[place["stripe"]].document)
    monkeypatch.setattr(versions, "of", lambda *_, **__: lagging)

    assert refresh(app) == ((), {})
    assert app.config["STRIPE_KEY"] == "sk-second"
    assert len(app.config["SECRET_KEY_FALLBACKS"]) == 2


# Wrong settings.


def test_a_ring_on_kv_version_1_is_an_error_at_start(
    vault_server: DevServer, vault_mount: VaultMount
) -> None:
    mount = f"{vault_mount.name}-v1"
    vault_server.enable_kv(mount, 1)

    try:
        Api(vault_server.address).call(
            "POST", f"{mount}/flask", {"key": "x"}, token=vault_server.root_token
        )

        with pytest.raises(
            VaultConfigError, match="SECRET_KEY: .*KV version 1.*keyring"
        ):
            start_app(
                vault_mount.config(VAULT_MOUNT=mount), VAULT_SECRETS={"SECRET_KEY": KEY}
            )
    finally:
        vault_server.disable_mount(mount)


def test_fallbacks_of_the_apps_own_must_be_a_list(vault_mount: VaultMount) -> None:
    vault_mount.write("flask", {"key": "good"})

    with pytest.raises(VaultConfigError, match="SECRET_KEY_FALLBACKS is str"):
        start_app(
            vault_mount.config(),
            SECRET_KEY_FALLBACKS="old key",
            VAULT_SECRETS={"SECRET_KEY": KEY},
        )


def test_fallbacks_of_the_apps_own_stay_accepted(vault_mount: VaultMount) -> None:
    vault_mount.write("flask", {"key": "good"})
    app = start_app(
        vault_mount.config(),
        SECRET_KEY_FALLBACKS=["from before Vault"],
        VAULT_SECRETS={"SECRET_KEY": KEY},
    )
    assert app.config["SECRET_KEY_FALLBACKS"] == ["from before Vault", "good"]


def test_other_accepted_values_go_where_the_entry_says(
    vault_mount: VaultMount,
) -> None:
    vault_mount.write("flask", {"key": "good"})
    app = start_app(
        vault_mount.config(),
        VAULT_SECRETS={"SIGNING": KEY | {"fallbacks_key": "SIGNING_ACCEPTED"}},
    )
    assert app.config["SIGNING_ACCEPTED"] == ["good"]


def test_a_ring_without_vault_is_the_one_value(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SECRET_KEY", "from the environment")
    app = start_app(
        {"VAULT_ENABLED": False},
        VAULT_SECRETS={"SECRET_KEY": KEY | {"env": "SECRET_KEY"}},
    )
    assert app.config["SECRET_KEY"] == "from the environment"
    assert state_of(app).keyring("SECRET_KEY").signing.value == "from the environment"
    assert state_of(app).refresh().changed == ()


def test_too_few_versions_for_the_ring_are_told_once(
    app: Flask, vault_mount: VaultMount, caplog: pytest.LogCaptureFixture
) -> None:
    admin(vault_mount, "POST", "metadata", "flask", {"max_versions": 3})

    for number in range(4):
        vault_mount.write("flask", {"key": f"key {number}"})
        refresh(app)

    assert caplog.text.count("keeps 3 versions") == 1


@pytest.mark.parametrize("command", ["init", "rotate --all --no-backup"])
def test_commands_have_enough_versions_kept(
    command: str, vault_mount: VaultMount
) -> None:
    vault_mount.write("flask", {"key": "first key"})
    vault_mount.write("stripe", {"api_key": "sk-first"})

    def create_app() -> Flask:
        return start_app(
            vault_mount.config(),
            VAULT_SECRETS={"SECRET_KEY": KEY, "STRIPE_KEY": "stripe#api_key"},
        )

    obj = ScriptInfo(create_app=create_app)
    result = CliRunner().invoke(vault_group, command.split(), obj=obj)
    assert result.exit_code == 0, result.output
    state = state_of(create_app())
    limits = [state.client.versions.limit_of(place) for place in state.live.places]
    assert limits == [50, 10]


# Signals and hooks.


def test_a_rotation_of_this_process_is_learned_at_once(
    app: Flask, vault_mount: VaultMount
) -> None:
    heard = Heard(app, secret_rotated)
    state_of(app).client.rotate_secret("flask", "key", backup=False)
    assert len(app.config["SECRET_KEY_FALLBACKS"]) == 2
    assert refresh(app) == ((), {})
    assert [a["origin"] for _, a in heard.sent] == ["local"]


def test_hooks_run_when_the_config_has_another_value(vault_mount: VaultMount) -> None:
    """Of a ring when the new key signs, not when it is learned."""
    vault_mount.write("flask", {"key": "first", "url": "redis://first"})
    vault, app, seen = FlaskVault(), Flask("shop"), []
    app.config.from_mapping(
        vault_mount.config(),
        TESTING=True,
        VAULT_SECRETS={"SECRET_KEY": KEY, "CACHE_URL": "flask#url"},
    )

    @vault.on_rotate("CACHE_URL", "SECRET_KEY")
    def broken(key: str, version: int | None) -> None:
        raise RuntimeError("a bug of the user's")

    vault.init_app(app)

    @vault.on_rotate("CACHE_URL", "SECRET_KEY")
    def note(key: str, version: int | None) -> None:
        seen.append((key, version, app.config[key]))

    vault_mount.write("flask", {"key": "second", "url": "redis://second"})
    vault.refresh(app)
    assert seen == [("CACHE_URL", 2, "redis://second")]


def test_a_report_has_what_its_own_refresh_has_brought(
    app: Flask, vault_mount: VaultMount
) -> None:
    vault_mount.write("stripe", {"api_key": "sk-second"})

    # What the refresh thread learns meanwhile is none of it.
    with state_of(app).teller.collecting() as mine:
        at_once(1, lambda _: state_of(app).refresher.now())

    assert app.config["STRIPE_KEY"] == "sk-second"
    assert mine == []


def test_a_slow_receiver_does_not_hold_up_the_polls(vault_mount: VaultMount) -> None:
    vault_mount.write("flask", {"key": "1"})
    app = start_app(
        vault_mount.config(),
        VAULT_REFRESH_INTERVAL=0.05,
        VAULT_SECRETS={"KEY": "flask#key"},
    )
    release, heard = threading.Event(), []

    @secret_rotated.connect_via(app)
    def slow(sender: Flask, version: int, **extra: object) -> None:
        heard.append(version)
        release.wait(30)

    state_of(app).start()

    for version in ("2", "3", "4"):
        vault_mount.write("flask", {"key": version})
        wait_for(lambda expected=version: app.config["KEY"] == expected)  # type: ignore[misc]

    assert heard == [2]
    release.set()
    wait_for(lambda: heard == [2, 3, 4])
    state_of(app).refresher.stop()


# The thread.


def threads() -> list[threading.Thread]:
    return [x for x in threading.enumerate() if x.name == "flask-vault-refresh"]


def test_the_first_request_starts_the_thread_and_init_app_does_not(
    vault_mount: VaultMount,
) -> None:
    vault_mount.write("flask", {"key": "1"})
    before = len(threads())
    app = start_app(
        vault_mount.config(),
        VAULT_REFRESH_INTERVAL=0.05,
        VAULT_SECRETS={"KEY": "flask#key"},
    )
    assert len(threads()) == before
    app.test_client().get("/vault/health")
    app.test_client().get("/vault/health")
    assert len(threads()) == before + 1
    vault_mount.write("flask", {"key": "2"})
    wait_for(lambda: app.config["KEY"] == "2")
    state_of(app).refresher.stop()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dead_thread_is_started_anew_and_told(
    vault_mount: VaultMount,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vault_mount.write("flask", {"key": "1"})
    app = start_app(
        vault_mount.config(VAULT_HEALTH_DETAILS="always"),
        VAULT_REFRESH_INTERVAL=0.05,
        VAULT_SECRETS={"KEY": "flask#key"},
    )
    refresher = state_of(app).refresher

    def die(here: object) -> float:
        raise SystemExit

    with monkeypatch.context() as patch:
        # The way to end a thread that no "except Exception" stops.
        patch.setattr(refresher, "step", die)
        app.test_client().get("/vault/health")
        wait_for(refresher.is_dead)

    details = app.test_client().get("/vault/health").json
    assert details is not None
    assert details["refresh"]["restarts"] == 1
    assert "found dead" in caplog.text
    vault_mount.write("flask", {"key": "2"})
    wait_for(lambda: app.config["KEY"] == "2")
    refresher.stop()


def test_in_request_mode_a_request_does_the_round(vault_mount: VaultMount) -> None:
    vault_mount.write("flask", {"key": "1"})
    app = start_app(
        vault_mount.config(),
        VAULT_REFRESH_MODE="request",
        VAULT_REFRESH_INTERVAL=0.05,
        VAULT_SECRETS={"KEY": "flask#key"},
    )
    vault_mount.write("flask", {"key": "2"})
    before = len(threads())

    def ask() -> bool:
        app.test_client().get("/vault/health")
        return bool(app.config["KEY"] == "2")

    wait_for(ask)
    assert len(threads()) == before


def test_apps_that_are_gone_leave_no_thread(vault_mount: VaultMount) -> None:
    """A hundred of them, each with a request, as a test suite makes."""
    vault_mount.write("flask", {"key": "1"})
    before = len(threads())
    gone = []

    for _ in range(100):
        app = start_app(
            vault_mount.config(VAULT_KV_VERSION=2), VAULT_SECRETS={"KEY": KEY}
        )
        app.test_client().get("/vault/health")
        gone.append(weakref.ref(app))

    del app
    gc.collect()
    wait_for(lambda: len(threads()) <= before)
    assert [ref for ref in gone if ref() is not None] == []


# Asked for by something unknown.


def test_many_that_ask_share_one_refresh_and_then_there_is_a_pause(
    vault_mount: VaultMount, vault_proxy: FaultProxy
) -> None:
    vault_mount.write("flask", {"key": "1"})
    app = start_app(
        vault_mount.config(VAULT_ADDR=vault_proxy.address),
        TESTING=True,
        VAULT_SECRETS={"KEY": "flask#key"},
    )
    vault_mount.write("flask", {"key": "2"})
    asked = vault_proxy.count

    # Slow enough for all of them to come in time.
    vault_proxy.delay = 0.3
    assert True in at_once(8, lambda _: state_of(app).ask())
    assert app.config["KEY"] == "2"
    assert state_of(app).ask() is False
    assert vault_proxy.count - asked == 1


# Time.


def test_a_hosts_clock_that_is_a_day_off_moves_no_key(
    app: Flask, vault_mount: VaultMount, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault_mount.write("flask", {"key": "second key"})
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 86_400)
    refresh(app)
    state_of(app).advance()
    assert app.config["SECRET_KEY"] == "first key"


def test_freshness_is_in_the_health_details(
    vault_server: DevServer, vault_mount: VaultMount
) -> None:
    vault_mount.write("flask", {"key": "1"})
    app = start_app(
        vault_mount.config(VAULT_HEALTH_DETAILS="always"),
        TESTING=True,
        VAULT_SECRETS={"SECRET_KEY": KEY},
    )
    state_of(app).prove_fresh()
    details = app.test_client().get("/vault/health").json
    assert details is not None
    refreshed = details["refresh"]
    assert refreshed["last_success_seconds"] == refreshed["last_fresh_seconds"] == 0
    assert refreshed["stale"] is False
    assert refreshed["mode"] == "off"
    assert details["secrets"]["SECRET_KEY"]["keys"] == [
        {"version": 1, "state": "signing"}
    ]
