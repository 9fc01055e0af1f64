"""``init_app`` fills ``app.config``: how often it asks, and what serves when."""

from __future__ import annotations

import collections.abc as cabc
import gc
import logging
import subprocess
import sys
import weakref

import pytest
from flask import Blueprint
from flask import Flask
from flask import session

from flask_vault import FlaskVault
from flask_vault import get_secret
from flask_vault import get_vault_client
from flask_vault import Secret
from flask_vault import SecretFieldError
from flask_vault import SecretNotFoundError
from flask_vault import SecretValueError
from flask_vault import VaultConfigError
from flask_vault import VaultConnectionError
from flask_vault import VaultLoginError
from flask_vault import VaultPermissionError
from flask_vault.testing import DevServer
from flask_vault.testing import FaultProxy
from flask_vault.testing.plugin import VaultMount
from tests.helpers import approle
from tests.helpers import may_read
from tests.helpers import new_app
from tests.helpers import refused
from tests.helpers import start_app


def sources(app: Flask) -> dict[str, str]:
    return {key: o.source for key, o in app.extensions["vault"].outcomes.items()}


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.message for r in caplog.records if r.levelno == logging.WARNING]


# How often Vault is asked.


@pytest.mark.parametrize("paths", [2, 5, 20])
@pytest.mark.parametrize(("kv_version", "questions"), [(2, 0), (None, 1)])
def test_p_paths_cost_p_requests_and_a_login(
    paths: int,
    kv_version: int | None,
    questions: int,
    vault_server: DevServer,
    vault_mount: VaultMount,
    vault_proxy: FaultProxy,
) -> None:
    """And one question per mount, when its KV version is not configured."""
    for i in range(paths):
        vault_mount.write(f"p{i}", {"a": f"a{i}", "b": f"b{i}"})

    # Two entries for each path: a document is read once.
    refs = {f"{x.upper()}_{i}": f"p{i}#{x}" for i in range(paths) for x in "ab"}
    app = start_app(
        vault_mount.config(VAULT_ADDR=vault_proxy.address, VAULT_TOKEN=None),
        VAULT_AUTH=approle(vault_server, may_read(vault_mount)),
        VAULT_KV_VERSION=kv_version,
        VAULT_SECRETS=refs,
    )

    assert vault_proxy.count == paths + 1 + questions
    assert vault_proxy.logins == 1
    assert vault_proxy.max_connections <= 8
    assert [app.config[f"B_{i}"] for i in range(paths)] == [
        f"b{i}" for i in range(paths)
    ]


def test_each_mount_is_asked_once_for_its_kv_version(
    vault_server: DevServer, vault_mount: VaultMount, vault_proxy: FaultProxy
) -> None:
    other = f"{vault_mount.name}-v1/nested"
    vault_server.enable_kv(other, version=1)
    client = vault_server.client()
    client.secrets.kv.v1.create_or_update_secret("x", {"k": "one"}, mount_point=other)
    vault_mount.write("x", {"k": "two"})
    vault_mount.write("y", {"k": "three"})

    app = start_app(
        vault_mount.config(VAULT_ADDR=vault_proxy.address),
        VAULT_SECRETS={"ONE": f"/{other}/x#k", "TWO": "x#k", "THREE": "y#k"},
    )
    vault_server.disable_mount(other)

    assert [app.config[key] for key in ("ONE", "TWO", "THREE")] == [
        "one",
        "two",
        "three",
    ]
    # A token costs no login.
    assert vault_proxy.count == 3 + 2


def test_version_2_is_assumed_when_the_question_is_denied(
    vault_server: DevServer, vault_mount: VaultMount, vault_proxy: FaultProxy
) -> None:
    vault_mount.write("x", {"k": "two"})
    vault_proxy.answer(403, match="/sys/internal/ui/mounts/")

    app = start_app(
        vault_mount.config(VAULT_ADDR=vault_proxy.address),
        VAULT_SECRETS={"TWO": "x#k"},
    )

    assert app.config["TWO"] == "two"


@pytest.mark.parametrize("kv_version", [1, None])
def test_kv_version_1(
    kv_version: int | None, vault_server: DevServer, vault_mount: VaultMount
) -> None:
    name = f"{vault_mount.name}-v1"
    vault_server.enable_kv(name, version=1)
    vault_server.client().secrets.kv.v1.create_or_update_secret(
        "team/x", {"k": "one"}, mount_point=name
    )

    app = start_app(
        vault_mount.config(VAULT_MOUNT=name, VAULT_PREFIX="team"),
        VAULT_KV_VERSION=kv_version,
        VAULT_SECRETS={"ONE": "x#k"},
    )
    vault_server.disable_mount(name)

    assert app.config["ONE"] == "one"
    assert app.extensions["vault"].outcomes["ONE"].version is None


def test_a_prefix_is_before_each_path_and_an_absolute_one_ignores_it(
    vault_mount: VaultMount,
) -> None:
    vault_mount.write("store/prod/flask", {"k": "below"})
    vault_mount.write("flask", {"k": "above"})

    app = start_app(
        vault_mount.config(),
        VAULT_PREFIX="store/{environment}",
        VAULT_ENVIRONMENT="prod",
        VAULT_SECRETS={"BELOW": "flask#k", "ABOVE": f"/{vault_mount.name}/flask#k"},
    )

    assert (app.config["BELOW"], app.config["ABOVE"]) == ("below", "above")


def test_paths_with_marks_are_read_as_they_are_written(
    vault_mount: VaultMount, vault_server: DevServer
) -> None:
    path = "te am/\u00fc%2F..?x=1&y"
    client = vault_server.client()
    client.secrets.kv.v2.create_or_update_secret(
        path, {"k y": "v"}, mount_point=vault_mount.name
    )

    app = start_app(
        vault_mount.config(),
        VAULT_SECRETS={
            "ABSOLUTE": f"/{vault_mount.name}/{path}#k y",
            "BELOW": f"{path}#k y",
        },
    )

    assert (app.config["ABSOLUTE"], app.config["BELOW"]) == ("v", "v")


# What is set.


def test_sessions_are_signed_with_the_key_from_vault(vault_mount: VaultMount) -> None:
    """Flask has ``SECRET_KEY`` in its config as ``None``."""
    vault_mount.write("flask", {"secret_key": "s3cret"})
    app = new_app(
        vault_mount.config(), VAULT_SECRETS={"SECRET_KEY": "flask#secret_key"}
    )
    assert app.config.get("SECRET_KEY", "unset") is None

    FlaskVault(app)

    @app.get("/")
    def index() -> str:
        session["user"] = "ada"
        return "hello"

    assert app.config["SECRET_KEY"] == "s3cret"
    assert "Set-Cookie" in app.test_client().get("/").headers


def test_old_session_keys_are_a_list(vault_mount: VaultMount) -> None:
    vault_mount.write("flask", {"old": ["k2", "k1"]})
    secrets = {"SECRET_KEY_FALLBACKS": {"ref": "flask#old", "cast": "json"}}
    app = start_app(vault_mount.config(), VAULT_SECRETS=secrets)

    assert app.config["SECRET_KEY_FALLBACKS"] == ["k2", "k1"]


@pytest.mark.parametrize("source", ["vault", "env", "without-vault"])
def test_a_text_is_no_list_of_old_session_keys(
    source: str, vault_mount: VaultMount, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flask takes it for a list of keys of one letter, which anybody guesses."""
    monkeypatch.setenv("OLD", "k1")
    raw: dict[str, object] = {"ref": "flask#old"}

    if source == "vault":
        vault_mount.write("flask", {"old": "k1"})
    else:
        raw["env"] = "OLD"

    app = new_app(
        vault_mount.config(),
        VAULT_ENABLED=source != "without-vault",
        VAULT_SECRETS={"SECRET_KEY_FALLBACKS": raw},
    )

    with refused(app, SecretValueError) as caught:
        FlaskVault(app)

    assert "SECRET_KEY_FALLBACKS" in str(caught.value)
    assert "list" in str(caught.value)


def test_templates_casts_and_pinned_versions(vault_mount: VaultMount) -> None:
    vault_mount.write("db", {"user": "app", "password": "old", "port": 5432})
    vault_mount.write("db", {"user": "app", "password": "p@s/s:w", "port": 5432})
    url = "postgresql://{user}:{password}@db:{port}/erp"

    app = start_app(
        vault_mount.config(),
        VAULT_SECRETS={
            "URL": Secret("db", template=url),
            "PORT": Secret("db#port", cast="int"),
            "OLD": Secret("db#password", version=1),
            "ALL": Secret("db", cast="json"),
        },
    )

    assert app.config["URL"] == "postgresql://app:p%40s%2Fs%3Aw@db:5432/erp"
    assert app.config["PORT"] == 5432
    assert app.config["OLD"] == "old"
    assert app.config["ALL"] == {"user": "app", "password": "p@s/s:w", "port": 5432}
    assert app.extensions["vault"].outcomes["OLD"].version == 1
    assert app.extensions["vault"].outcomes["PORT"].version == 2


def test_what_the_config_had_before_is_replaced(vault_mount: VaultMount) -> None:
    vault_mount.write("flask", {"k": "new"})

    app = start_app(vault_mount.config(), VAULT_SECRETS={"K": "flask#k"}, K="old")

    assert app.config["K"] == "new"


def test_what_the_app_does_to_a_value_stays_with_the_app(
    vault_mount: VaultMount,
) -> None:
    vault_mount.write("app", {"hosts": ["a"]})
    app = start_app(
        vault_mount.config(),
        VAULT_SECRETS={
            "HOSTS": {"ref": "app#hosts", "cast": "json"},
            "ALL": {"ref": "app", "cast": "json"},
        },
    )
    app.config["HOSTS"].append("b")
    app.config["ALL"]["hosts"].append("c")

    with app.app_context():
        assert get_secret("app", "hosts") == ["a"]

    assert app.config["HOSTS"] == ["a", "b"]


def test_two_apps_share_nothing(vault_mount: VaultMount) -> None:
    vault = FlaskVault()
    apps = [new_app(vault_mount.config(), VAULT_PREFIX=name) for name in ("a", "b")]
    vault_mount.write("a/x", {"k": "of a"})
    vault_mount.write("b/x", {"k": "of b"})

    for app in apps:
        app.config["VAULT_SECRETS"] = {"K": "x#k"}
        vault.init_app(app)

    with apps[0].app_context():
        assert vault.client is get_vault_client()
        assert get_secret("x", "k") == "of a"

        with apps[1].app_context():
            assert vault.client is get_vault_client()
            assert get_secret("x", "k") == "of b"
            # The client of one in the context of the other.
            assert apps[0].extensions["vault"].client.get_secret("x", "k") == "of a"
            assert get_secret("x", "k") == "of b"

        assert get_secret("x", "k") == "of a"

    assert [app.config["K"] for app in apps] == ["of a", "of b"]


# Mistakes with init_app.


def test_init_app_twice_says_what_to_use_instead(vault_mount: VaultMount) -> None:
    vault_mount.write("flask", {"k": "v"})
    app = start_app(vault_mount.config(), VAULT_SECRETS={"K": "flask#k"})

    with refused(app, VaultConfigError) as caught:
        FlaskVault(app)

    assert "already been initialized" in str(caught.value)
    assert "use that one" in str(caught.value)


def test_without_vault_secrets_a_sentence_and_no_error(
    vault_mount: VaultMount, vault_proxy: FaultProxy, caplog: pytest.LogCaptureFixture
) -> None:
    app = start_app(vault_mount.config(VAULT_ADDR=vault_proxy.address))

    assert any("VAULT_SECRETS is empty" in text for text in warnings(caplog))
    assert vault_proxy.count == 0
    # The client is there all the same.
    vault_mount.write("flask", {"k": "v"})

    with app.app_context():
        assert get_secret("flask", "k") == "v"


def test_outside_of_an_app_and_without_init_app_the_cause_is_told() -> None:
    with pytest.raises(RuntimeError, match="application context"):
        get_vault_client()

    with Flask("other").app_context():
        with pytest.raises(RuntimeError, match=r"call vault\.init_app\(app\)"):
            get_vault_client()


def test_the_start_can_be_tried_again_after_it_failed(vault_mount: VaultMount) -> None:
    app = new_app(vault_mount.config(), VAULT_SECRETS={"K": "flask#k"})
    vault = FlaskVault()

    with refused(app, SecretNotFoundError):
        vault.init_app(app)

    vault_mount.write("flask", {"k": "v"})
    vault.init_app(app)

    assert app.config["K"] == "v"


def test_one_bad_entry_sets_none_of_them(vault_mount: VaultMount) -> None:
    vault_mount.write("flask", {"good": "v"})
    app = new_app(
        vault_mount.config(),
        VAULT_SECRETS={"GOOD": "flask#good", "BAD": "flask#bad", "GONE": "gone#x"},
        GOOD="as it was",
    )

    with refused(app, SecretFieldError) as caught:
        FlaskVault(app)

    # One start tells of every mistake.
    assert "BAD: " in str(caught.value)
    assert "GONE: " in str(caught.value)
    assert "GOOD" not in str(caught.value)


def test_a_name_of_the_health_routes_that_is_taken_leaves_the_app_as_it_was(
    vault_mount: VaultMount,
) -> None:
    vault_mount.write("flask", {"k": "v"})
    app = new_app(vault_mount.config(), VAULT_SECRETS={"K": "flask#k"})
    app.register_blueprint(Blueprint("vault", __name__))

    with refused(app, VaultConfigError) as caught:
        FlaskVault(app)

    assert "VAULT_HEALTH_BLUEPRINT" in str(caught.value)


# What serves when Vault does not.


ENV_OR_DEFAULT = {
    "WITH_ENV": {"ref": "app#x", "env": "APP_X", "default": "default"},
    "WITH_DEFAULT": {"ref": "app#x", "env": "APP_UNSET", "default": "default"},
    "OPTIONAL": {"ref": "app#x", "required": False},
}


def unreachable(mount: VaultMount, proxy: FaultProxy) -> None:
    proxy.cut()


def silent(mount: VaultMount, proxy: FaultProxy) -> None:
    proxy.hang()


def rate_limited(mount: VaultMount, proxy: FaultProxy) -> None:
    proxy.answer(429)


def broken(mount: VaultMount, proxy: FaultProxy) -> None:
    proxy.answer(502, "<html>Bad gateway</html>")


def without_path(mount: VaultMount, proxy: FaultProxy) -> None:
    pass


def without_field(mount: VaultMount, proxy: FaultProxy) -> None:
    mount.write("app", {"y": "v"})


@pytest.mark.parametrize(
    "fault",
    [unreachable, silent, rate_limited, broken, without_path, without_field],
)
def test_env_then_default_serve_what_is_unreachable_or_missing(
    fault: cabc.Callable[[VaultMount, FaultProxy], None],
    vault_mount: VaultMount,
    vault_proxy: FaultProxy,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("APP_X", "from env")
    monkeypatch.setenv("APP_UNSET", "")
    fault(vault_mount, vault_proxy)

    app = start_app(
        vault_mount.config(VAULT_ADDR=vault_proxy.address),
        VAULT_READ_TIMEOUT=0.2,
        VAULT_SECRETS=ENV_OR_DEFAULT,
    )

    assert app.config["WITH_ENV"] == "from env"
    assert app.config["WITH_DEFAULT"] == "default"
    assert app.config["OPTIONAL"] is None
    assert sources(app) == {
        "WITH_ENV": "env",
        "WITH_DEFAULT": "default",
        "OPTIONAL": "unset",
    }
    told = warnings(caplog)
    assert [text.partition(" ")[0] for text in told] == list(ENV_OR_DEFAULT)
    assert "the environment's APP_X" in told[0]
    assert "from env" not in caplog.text


def test_env_is_cast_as_the_value_would_be(
    vault_mount: VaultMount, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PORT", "8080")
    monkeypatch.setenv("URL", "redis://finished")
    app = start_app(
        vault_mount.config(),
        VAULT_SECRETS={
            "PORT": {"ref": "app#port", "env": "PORT", "cast": "int"},
            "URL": {"ref": "app", "env": "URL", "template": "redis://{host}"},
        },
    )

    assert app.config["PORT"] == 8080
    assert app.config["URL"] == "redis://finished"


@pytest.mark.parametrize("enabled", [True, False])
def test_env_that_does_not_cast_is_an_error_that_does_not_show_it(
    enabled: bool, vault_mount: VaultMount, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PORT", "canary-9")
    app = new_app(
        vault_mount.config(),
        VAULT_ENABLED=enabled,
        VAULT_SECRETS={"KEY": {"ref": "app#port", "env": "PORT", "cast": "int"}},
    )

    with refused(app, SecretValueError) as caught:
        FlaskVault(app)

    assert "KEY: " in str(caught.value)
    assert "the environment's PORT" in str(caught.value)
    assert "canary-9" not in str(caught.value)
    # It is not there that it is to be corrected.
    assert "in Vault" not in str(caught.value)


def test_vault_goes_before_env(
    vault_mount: VaultMount, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APP_X", "from env")
    vault_mount.write("app", {"x": "from vault"})
    app = start_app(vault_mount.config(), VAULT_SECRETS=ENV_OR_DEFAULT)

    assert app.config["WITH_ENV"] == "from vault"
    assert set(sources(app).values()) == {"vault"}


def test_a_denial_is_never_replaced_in_silence(
    vault_server: DevServer,
    vault_mount: VaultMount,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("APP_X", "from env")
    vault_mount.write("app", {"x": "v"})
    app = new_app(
        vault_mount.config(VAULT_TOKEN=None),
        VAULT_AUTH=approle(vault_server, may_read(vault_mount, "other")),
        VAULT_SECRETS={
            "KEY": {"ref": "app#x", "env": "APP_X", "default": "default"},
        },
    )

    with refused(app, VaultPermissionError):
        FlaskVault(app)


def test_a_denial_of_what_is_not_required_is_told_and_env_does_not_serve(
    vault_server: DevServer,
    vault_mount: VaultMount,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("APP_X", "from env")
    vault_mount.write("app", {"x": "v"})
    app = start_app(
        vault_mount.config(VAULT_TOKEN=None),
        VAULT_AUTH=approle(vault_server, may_read(vault_mount, "other")),
        VAULT_SECRETS={
            "A": {"ref": "app#x", "env": "APP_X", "required": False},
            "B": {"ref": "app#x", "default": "default", "required": False},
        },
    )

    assert sources(app) == {"A": "unset", "B": "default"}
    assert (app.config["A"], app.config["B"]) == (None, "default")
    assert all("denies access" in text for text in warnings(caplog))


@pytest.mark.parametrize(
    "lenient",
    [{"env": "APP_X", "default": "d"}, {"default": "d", "required": False}],
    ids=["required", "not-required"],
)
def test_a_refused_login_is_never_replaced(
    lenient: dict[str, object],
    vault_mount: VaultMount,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("APP_X", "from env")
    app = new_app(
        vault_mount.config(VAULT_TOKEN="wrong"),
        VAULT_SECRETS={"A": {"ref": "app#x", **lenient}},
    )

    with refused(app, VaultLoginError):
        FlaskVault(app)


def test_the_gravest_of_several_reasons_gives_the_type(
    vault_server: DevServer, vault_mount: VaultMount
) -> None:
    vault_mount.write("denied", {"x": "v"})
    app = new_app(
        vault_mount.config(VAULT_TOKEN=None),
        VAULT_AUTH=approle(vault_server, may_read(vault_mount, "missing")),
        VAULT_SECRETS={"MISSING": "missing#x", "DENIED": "denied#x"},
    )

    with refused(app, VaultPermissionError) as caught:
        FlaskVault(app)

    assert "MISSING: There is no document" in str(caught.value)
    assert "DENIED: Vault denies access" in str(caught.value)


# Without Vault on purpose.


def test_vault_enabled_false_asks_nobody(
    vault_proxy: FaultProxy,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("APP_X", "from env")
    app = start_app(
        {"VAULT_ADDR": vault_proxy.address},
        VAULT_ENABLED=False,
        VAULT_SECRETS={**ENV_OR_DEFAULT, "REQUIRED": "app#x", "SET": "app#y"},
        SET="by the test",
    )

    assert vault_proxy.connections == 0
    assert app.config["WITH_ENV"] == "from env"
    assert app.config["WITH_DEFAULT"] == "default"
    assert app.config["SET"] == "by the test"
    assert app.config["REQUIRED"] is None
    assert sources(app) == {
        "WITH_ENV": "env",
        "WITH_DEFAULT": "default",
        "OPTIONAL": "unset",
        "REQUIRED": "unset",
        "SET": "default",
    }
    assert any("nothing serves for OPTIONAL, REQUIRED" in w for w in warnings(caplog))


def test_vault_enabled_false_needs_no_address_and_no_login() -> None:
    app = start_app({"VAULT_ENABLED": False, "VAULT_SECRETS": {"K": "a#b"}})

    with app.app_context():
        assert get_vault_client().health_check()["enabled"] is False

        with pytest.raises(VaultConfigError, match="VAULT_ENABLED is False"):
            get_secret("a", "b")

        with pytest.raises(VaultConfigError, match="VAULT_ENABLED is False"):
            get_vault_client().set_secret("a", {"b": "c"})


def test_vault_enabled_false_serves_the_fallback_of_a_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("APP_X", "from env")
    app = start_app({"VAULT_ENABLED": False})

    with app.app_context():
        assert get_secret("app", "x", fallback_env="APP_X") == "from env"


def test_nothing_heavy_is_imported_before_vault_is_asked() -> None:
    code = (
        "import sys; from flask import Flask; from flask_vault import FlaskVault;"
        " app = Flask('shop'); app.config['VAULT_ENABLED'] = False;"
        " FlaskVault(app);"
        " print([m for m in ('hvac', 'requests', 'cryptography') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )

    assert done.stdout == "[]\n"


def test_a_server_that_is_down_stops_the_start(
    vault_mount: VaultMount, vault_proxy: FaultProxy
) -> None:
    vault_proxy.cut()
    app = new_app(
        vault_mount.config(VAULT_ADDR=vault_proxy.address),
        VAULT_SECRETS={"A": "a#x", "B": "b#x"},
    )

    with refused(app, VaultConnectionError) as caught:
        FlaskVault(app)

    # One sentence for both, not one for each.
    assert str(caught.value).startswith("A, B: Vault at ")


def test_a_text_as_default_is_no_list_of_old_session_keys_either(
    vault_mount: VaultMount,
) -> None:
    raw = {"ref": "flask#old", "default": "k1"}
    app = new_app(vault_mount.config(), VAULT_SECRETS={"SECRET_KEY_FALLBACKS": raw})

    with refused(app, VaultConfigError):
        FlaskVault(app)


def test_an_app_that_is_gone_leaves_nothing_behind(vault_mount: VaultMount) -> None:
    vault_mount.write("flask", {"secret_key": "v1"})
    secrets = {"SECRET_KEY": "flask#secret_key"}
    app = start_app(vault_mount.config(), VAULT_SECRETS=secrets)
    client = weakref.ref(app.extensions["vault"].client)

    del app
    gc.collect()

    assert client() is None
