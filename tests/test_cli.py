"""``flask vault status``, ``get``, ``set`` and ``list``, on apps as people write them.

Whatever is wrong is one sentence with its cure, an exit code that a script can use, and
no traceback.
"""

from __future__ import annotations

import collections.abc as cabc
import json
import os
import pathlib
import pty
import re
import subprocess
import sys
import typing as t

import click
import pytest
from click.testing import CliRunner
from click.testing import Result
from flask import Flask
from flask.cli import ScriptInfo

from flask_vault import FlaskVault
from flask_vault.cli import vault_group
from flask_vault.testing import DevServer
from flask_vault.testing import FaultProxy
from flask_vault.testing.api import Api
from flask_vault.testing.plugin import VaultMount
from tests.helpers import approle
from tests.helpers import is_write
from tests.helpers import may_read

CANARY = "canary-5f1c"

#: What a value may be that no locale and no line end may change.
PEM = "-----BEGIN-----\r\nZürich\r\n-----END-----\n"

Factory = cabc.Callable[[], Flask]
Do = cabc.Callable[[Flask], object]


def factory(
    config: cabc.Mapping[str, object],
    *,
    after: Do = lambda app: None,
    **extra: object,
) -> Factory:
    """A factory as apps have it.

    :param after: what it does with the app when Vault was read.
    """

    def create_app() -> Flask:
        app = Flask("shop")
        app.config.from_mapping(config, **extra)
        FlaskVault(app)
        after(app)
        return app

    return create_app


def run(create_app: Factory, *arguments: str, stdin: str | None = None) -> Result:
    """Run a ``flask vault`` command. It never ends with a traceback."""
    result = CliRunner().invoke(
        vault_group, arguments, input=stdin, obj=ScriptInfo(create_app=create_app)
    )

    if not isinstance(result.exception, SystemExit | None):
        raise result.exception

    assert "Traceback" not in result.output
    return result


def flask(folder: pathlib.Path, *arguments: str, **options: t.Any) -> tuple[int, str]:
    """Run the ``flask`` program in a folder.

    :return: its exit code, and what it printed, to either stream.
    """
    environ = {**os.environ, **options.pop("environ", {})}
    done = subprocess.run(
        [sys.executable, "-m", "flask", *arguments],
        cwd=folder,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=30,
        **{"stdin": subprocess.DEVNULL, **options},
    )
    return done.returncode, done.stdout.decode()


def rows(table: str) -> list[list[str]]:
    """The cells of a printed table, below its headers."""
    return [re.split(r" {2,}", line) for line in table.splitlines()[1:]]


def environ_of(mount: VaultMount) -> dict[str, str]:
    return {
        "VAULT_ADDR": mount.address,
        "VAULT_TOKEN": mount.token,
        "FLASK_VAULT_MOUNT": mount.name,
    }


@pytest.fixture
def shop(vault_mount: VaultMount) -> Factory:
    """An app with an entry of each kind, and its documents."""
    vault_mount.write("flask", {"secret_key": CANARY, "jwt": CANARY})
    vault_mount.write("stripe", {"api_key": CANARY, "retries": 3, "live": True})
    return factory(
        vault_mount.config(
            VAULT_SECRETS={
                "SECRET_KEY": {"ref": "flask#secret_key", "name": "session-key"},
                "STRIPE_API_KEY": "stripe#api_key",
                "STRIPE": {"ref": "stripe", "cast": "json"},
            }
        )
    )


# status


def test_status_shows_where_each_key_comes_from(
    vault_mount: VaultMount, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault_mount.write("flask", {"secret_key": "first"})
    vault_mount.write("flask", {"secret_key": CANARY})
    monkeypatch.setenv("MAIL_PASSWORD", CANARY)
    result = run(
        factory(
            vault_mount.config(
                VAULT_SECRETS={
                    "SECRET_KEY": "flask#secret_key",
                    "OLD_KEY": {"ref": "flask#secret_key", "version": 1},
                    "MAIL": {"ref": "mail#password", "env": "MAIL_PASSWORD"},
                    "SENTRY": {"ref": "sentry#dsn", "default": CANARY},
                    "OPTIONAL": {"ref": "optional#x", "required": False},
                }
            )
        ),
        "status",
    )

    assert result.stdout.splitlines()[0].split() == [
        "key",
        "reference",
        "source",
        "version",
        "age",
    ]
    found = rows(result.stdout)
    assert [row[:-1] for row in found] == [
        ["SECRET_KEY", "flask#secret_key", "vault", "2"],
        ["OLD_KEY", "flask#secret_key", "vault", "1"],
        ["MAIL", "mail#password", "env", "-"],
        ["SENTRY", "sentry#dsn", "default", "-"],
        ["OPTIONAL", "optional#x", "unset", "-"],
    ]
    assert [re.fullmatch(r"\d+ s|-", row[-1]) for row in found].count(None) == 0
    assert CANARY not in result.output
    assert result.exit_code == 0


def test_status_says_why_a_key_is_not_vaults_and_names_it_once(
    vault_mount: VaultMount, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "app.py").write_text(
        "from flask import Flask\n"
        "from flask_vault import FlaskVault\n"
        "app = Flask(__name__)\n"
        "app.config.from_prefixed_env()\n"
        "app.config['VAULT_SECRETS'] = {\n"
        "    'OPTIONAL': {'ref': 'optional#x', 'required': False},\n"
        "    'SENTRY': {'ref': 'sentry#dsn', 'default': 'x'},\n"
        "}\n"
        "FlaskVault(app)\n"
    )
    code, printed = flask(tmp_path, "vault", "status", environ=environ_of(vault_mount))

    said = [line for line in printed.splitlines() if "There is no document" in line]
    assert code == 0
    assert len(said) == 2
    assert "OPTIONAL" in said[0]
    assert "SENTRY" in said[1]


def test_status_as_json_is_nothing_but_json_on_standard_output(shop: Factory) -> None:
    result = run(shop, "status", "--json")
    found = json.loads(result.stdout)

    assert [row["key"] for row in found] == ["SECRET_KEY", "STRIPE_API_KEY", "STRIPE"]
    assert found[0]["reference"] == "flask#secret_key"
    assert found[0]["source"] == "vault"
    assert found[0]["version"] == 1
    assert 0 <= found[0]["age_seconds"] < 60
    assert found[0]["error"] is None
    assert CANARY not in result.output
    assert result.exit_code == 0


@pytest.mark.parametrize("as_json", [False, True])
def test_status_shows_all_keys_though_one_fails(
    as_json: bool, vault_mount: VaultMount
) -> None:
    vault_mount.write("flask", {"secret_key": CANARY})
    create_app = factory(
        vault_mount.config(
            VAULT_SECRETS={"SECRET_KEY": "flask#secret_key", "BAD": "missing#x"}
        )
    )
    result = run(create_app, "status", *["--json"] * as_json)

    assert result.exit_code == 5

    if as_json:
        good, bad = json.loads(result.stdout)
        assert (good["source"], good["error"]) == ("vault", None)
        assert bad["source"] == "unset"
        assert f"'{vault_mount.name}/missing'" in bad["error"]
    else:
        assert [row[2] for row in rows(result.stdout)] == ["vault", "unset"]
        assert f"'{vault_mount.name}/missing'" in result.stderr
        assert "flask vault init" in result.stderr
        assert "BAD" in result.stderr, "the sentence names the config key"


def test_status_tells_denied_refused_and_unreachable_apart(
    vault_server: DevServer, vault_mount: VaultMount, vault_proxy: FaultProxy
) -> None:
    vault_mount.write("flask", {"secret_key": CANARY})
    secrets = {"SECRET_KEY": "flask#secret_key"}
    config = vault_mount.config(VAULT_SECRETS=secrets, VAULT_TOKEN=None)

    nothing = approle(vault_server, may_read(vault_mount, "another"))
    result = run(factory(config, VAULT_AUTH=nothing), "status")
    assert result.exit_code == 7
    assert f"'read' on '{vault_mount.name}/data/flask'" in result.stderr

    result = run(factory(config, VAULT_AUTH={**nothing, "secret_id": "x"}), "status")
    assert result.exit_code == 7
    assert "VAULT_AUTH" in result.stderr

    vault_proxy.cut()
    result = run(
        factory(config, VAULT_TOKEN=CANARY, VAULT_ADDR=vault_proxy.address), "status"
    )
    assert result.exit_code == 4
    assert "VAULT_ADDR" in result.stderr
    assert [row[2] for row in rows(result.stdout)] == ["unset"]
    assert CANARY not in result.output


def test_a_sealed_server_is_temporary() -> None:
    with DevServer() as server:
        Api(server.address).call("PUT", "sys/seal", token=server.root_token)
        create_app = factory(
            server.environ(), VAULT_SECRETS={"SECRET_KEY": "flask#secret_key"}
        )

        for arguments in (("status",), ("get", "SECRET_KEY"), ("init",), ("list",)):
            result = run(create_app, *arguments)
            assert result.exit_code == 4
            assert "sealed" in result.stderr
            assert "unseal" in result.stderr


def test_status_of_an_app_that_declares_nothing_says_so(
    vault_mount: VaultMount,
) -> None:
    result = run(factory(vault_mount.config()), "status")
    assert "VAULT_SECRETS is empty" in result.stdout
    assert result.exit_code == 0
    assert (
        json.loads(run(factory(vault_mount.config()), "status", "--json").stdout) == []
    )


def test_status_without_versions_and_without_vault(
    vault_server: DevServer,
    vault_mount: VaultMount,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    old = f"{vault_mount.name}-1"
    vault_server.enable_kv(old, version=1)
    Api(vault_server.address).call(
        "POST", f"{old}/flask", {"key": CANARY}, token=vault_server.root_token
    )
    secrets = {"KEY": {"ref": "flask#key", "env": "THE_KEY"}}
    config = vault_mount.config(VAULT_MOUNT=old, VAULT_SECRETS=secrets)
    assert rows(run(factory(config), "status").stdout) == [
        ["KEY", "flask#key", "vault", "-", "-"]
    ]

    monkeypatch.setenv("THE_KEY", CANARY)
    result = run(factory(secrets, VAULT_ENABLED=False, VAULT_SECRETS=secrets), "status")
    assert rows(result.stdout) == [["KEY", "flask#key", "env", "-", "-"]]
    assert result.exit_code == 0


# get


@pytest.mark.parametrize("ref", ["SECRET_KEY", "session-key", "flask#secret_key"])
def test_get_masks_the_value_until_it_is_asked_to_reveal_it(
    ref: str, shop: Factory
) -> None:
    result = run(shop, "get", ref)
    assert rows(result.stdout) == [["secret_key", "1", "********"]]
    assert result.exit_code == 0

    result = run(shop, "get", ref, "--reveal")
    assert result.stdout == f"{CANARY}\n"
    assert result.stderr == ""


def test_get_an_absolute_reference(shop: Factory, vault_mount: VaultMount) -> None:
    ref = f"/{vault_mount.name}/stripe#api_key"
    assert run(shop, "get", ref, "--reveal").stdout == f"{CANARY}\n"


def test_get_a_whole_document(shop: Factory, vault_mount: VaultMount) -> None:
    # Of a rotation in progress; no business of anybody else's.
    vault_mount.write("flask", {"secret_key": CANARY, "_rotation": CANARY})
    result = run(shop, "get", "flask")
    assert rows(result.stdout) == [["secret_key", "2", "********"]]
    assert json.loads(run(shop, "get", "flask", "--reveal").stdout) == {
        "secret_key": CANARY
    }
    assert run(shop, "get", "flask#_rotation", "--reveal").exit_code == 5


def test_get_reveals_what_is_no_text_as_json(shop: Factory) -> None:
    assert run(shop, "get", "stripe#retries", "--reveal").stdout == "3\n"
    assert run(shop, "get", "stripe#live", "--reveal").stdout == "true\n"
    assert json.loads(run(shop, "get", "STRIPE", "--reveal").stdout) == {
        "api_key": CANARY,
        "retries": 3,
        "live": True,
    }


def test_get_a_config_key_gives_the_version_that_the_app_has(
    vault_mount: VaultMount,
) -> None:
    vault_mount.write("flask", {"key": "old"})
    vault_mount.write("flask", {"key": "new"})
    create_app = factory(
        vault_mount.config(VAULT_SECRETS={"KEY": {"ref": "flask#key", "version": 1}})
    )

    assert run(create_app, "get", "flask#key", "--reveal").stdout == "new\n"
    assert run(create_app, "get", "KEY", "--reveal").stdout == "old\n"
    assert rows(run(create_app, "get", "KEY").stdout) == [["key", "1", "********"]]


@pytest.mark.parametrize(
    ("ref", "code", "says"),
    [
        ("flask#missing", 5, "it has jwt, secret_key"),
        ("missing#x", 5, "There is no document at"),
        ("SECRET_KYE", 2, "is no key of VAULT_SECRETS; there are: SECRET_KEY"),
        ("flask#", 2, "names no field after '#'"),
        ("#x", 2, "names no path"),
        ("a//b#x", 2, "has an empty segment"),
        ("../sys#x", 2, "holds '..'"),
        ("a#b#c", 2, "more than one '#'"),
        ("a\x1b#b", 2, "control character"),
        ("/flask", 2, "needs a mount and a path"),
    ],
)
def test_what_get_cannot_find(ref: str, code: int, says: str, shop: Factory) -> None:
    result = run(shop, "get", ref, "--reveal")
    assert result.stderr.startswith("Error: ")
    assert says in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""
    assert result.exit_code == code


# set


@pytest.mark.parametrize(
    "ref",
    ["SECRET_KEY", "session-key", "flask#secret_key", "/{mount}/flask#secret_key"],
)
def test_set_writes_one_field_and_keeps_the_others(
    ref: str, shop: Factory, vault_mount: VaultMount
) -> None:
    ref = ref.format(mount=vault_mount.name)
    result = run(shop, "set", ref, stdin=f"new {CANARY}\n")

    assert vault_mount.read("flask") == {"secret_key": f"new {CANARY}", "jwt": CANARY}
    assert result.exit_code == 0
    assert "version 2" in result.stdout
    assert CANARY not in result.output


def test_set_says_that_others_learn_of_it_by_polling(shop: Factory) -> None:
    result = run(shop, "set", "SECRET_KEY", stdin="new")
    assert "Other processes learn of it by polling" in result.stdout
    assert "VAULT_REFRESH_INTERVAL" in result.stdout


def test_set_makes_a_document_that_is_not_there(
    shop: Factory, vault_mount: VaultMount
) -> None:
    assert run(shop, "set", "new/one#field", stdin="value\n").exit_code == 0
    assert vault_mount.read("new/one") == {"field": "value"}


def test_set_a_document_from_json(shop: Factory, vault_mount: VaultMount) -> None:
    result = run(shop, "set", "flask", stdin='{"salt": "s", "rounds": 3}')
    assert result.exit_code == 0
    assert vault_mount.read("flask") == {
        "secret_key": CANARY,
        "jwt": CANARY,
        "salt": "s",
        "rounds": 3,
    }


@pytest.mark.parametrize(
    ("ref", "stdin", "says"),
    [
        ("SECRET_KEY", "", "The value is empty"),
        ("SECRET_KEY", "\n", "The value is empty"),
        ("flask", CANARY, "is a JSON object"),
        ("flask", f'["{CANARY}"]', "is a JSON object"),
        ("flask", f'{{"_rotation": "{CANARY}"}}', "reserved for Flask-Vault"),
        ("flask", f'{{"": "{CANARY}"}}', "empty"),
        ("a//b#x", CANARY, "empty segment"),
        ("flask#", CANARY, "names no field after '#'"),
    ],
)
def test_what_set_cannot_write(
    ref: str, stdin: str, says: str, shop: Factory, vault_mount: VaultMount
) -> None:
    result = run(shop, "set", ref, stdin=stdin)
    assert says in result.stderr
    assert result.exit_code == 2
    assert CANARY not in result.output
    assert vault_mount.read("flask") == {"secret_key": CANARY, "jwt": CANARY}


def test_set_with_a_version_that_is_not_there_changes_nothing(
    shop: Factory, vault_mount: VaultMount
) -> None:
    for cas in ("0", "7"):
        result = run(shop, "set", "SECRET_KEY", "--cas", cas, stdin="new")
        assert result.exit_code == 3
        assert f"is not at version {cas} any more" in result.stderr
        assert "polling" not in result.output

    assert vault_mount.read("flask")["secret_key"] == CANARY
    assert run(shop, "set", "SECRET_KEY", "--cas", "1", stdin="new").exit_code == 0
    assert run(shop, "set", "SECRET_KEY", "--cas", "-1", stdin="new").exit_code == 2


def test_set_where_the_token_may_not_write(
    vault_server: DevServer, vault_mount: VaultMount
) -> None:
    auth = approle(vault_server, may_read(vault_mount))
    create_app = factory(vault_mount.config(VAULT_TOKEN=None, VAULT_AUTH=auth))
    result = run(create_app, "set", "flask#key", stdin=CANARY)
    assert result.exit_code == 7
    assert f"'create, update' on '{vault_mount.name}/data/flask'" in result.stderr
    assert CANARY not in result.output


def test_a_value_on_the_command_line_is_refused_and_not_repeated(
    shop: Factory, vault_mount: VaultMount
) -> None:
    """It is in the shell's history by then, but need not go into a build's log."""
    result = run(shop, "set", "SECRET_KEY", CANARY, stdin="another")
    assert result.exit_code == 2
    assert CANARY not in result.output
    assert vault_mount.read("flask")["secret_key"] == CANARY


@pytest.mark.parametrize("locale", ["C", "C.UTF-8", "POSIX"])
def test_set_takes_standard_input_as_it_is(
    locale: str, vault_mount: VaultMount, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "app.py").write_text(APP)
    environ = {**environ_of(vault_mount), "LC_ALL": locale}
    code, _ = flask(
        tmp_path,
        *("vault", "set", "tls#key"),
        environ=environ,
        input=f"{PEM}\n".encode(),
        stdin=None,
    )
    assert code == 0
    assert vault_mount.read("tls") == {"key": PEM}


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_set_refuses_what_is_no_text(
    locale: str, vault_mount: VaultMount, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "app.py").write_text(APP)
    environ = {
        **environ_of(vault_mount),
        "LC_ALL": locale,
        "PYTHONIOENCODING": "utf-8" if locale == "C.UTF-8" else "",
    }
    code, printed = flask(
        tmp_path,
        *("vault", "set", "tls#key"),
        environ=environ,
        input=b"\xff\xfe\x00",
        stdin=None,
    )
    assert code == 2
    assert "Traceback" not in printed
    assert "UTF-8" in printed


def test_set_asks_a_person_twice_and_shows_nothing(
    vault_mount: VaultMount, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "app.py").write_text(APP)
    ours, theirs = pty.openpty()

    with subprocess.Popen(
        [sys.executable, "-m", "flask", "vault", "set", "stripe#api_key"],
        cwd=tmp_path,
        env={**os.environ, **environ_of(vault_mount)},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    ) as process:
        os.close(theirs)
        seen = ""

        try:
            for prompt in ("Value of stripe#api_key", "Repeat for confirmation"):
                while not re.search(rf"{prompt}: *$", seen):
                    assert (chunk := _read(ours)), seen
                    seen += chunk

                # The echo is off by now, or the value would be seen.
                os.write(ours, f"{CANARY}\n".encode())

            while chunk := _read(ours):
                seen += chunk
        finally:
            os.close(ours)

    assert process.returncode == 0
    assert "stripe#api_key is written, version 1" in seen
    assert CANARY not in seen
    assert vault_mount.read("stripe") == {"api_key": CANARY}


def _read(terminal: int) -> str:
    try:
        return os.read(terminal, 1024).decode()
    except OSError:  # Linux's way to say that nobody is on the other side any more.
        return ""


# list


def test_list_shows_names_and_folders(shop: Factory, vault_mount: VaultMount) -> None:
    vault_mount.write("team/a/b", {"x": CANARY})
    assert run(shop, "list").stdout.split() == ["flask", "stripe", "team/"]
    assert run(shop, "list", "team").stdout.split() == ["a/"]
    assert run(shop, "list", "team/a/").stdout.split() == ["b"]
    assert run(shop, "list", f"/{vault_mount.name}/team").stdout.split() == ["a/"]


def test_list_begins_at_the_prefix(vault_mount: VaultMount) -> None:
    vault_mount.write("shop/prod/flask", {"x": CANARY})
    create_app = factory(
        vault_mount.config(VAULT_PREFIX="shop/{environment}", VAULT_ENVIRONMENT="prod")
    )
    assert run(create_app, "list").stdout == "flask\n"


def test_list_where_nothing_is(shop: Factory, vault_mount: VaultMount) -> None:
    result = run(shop, "list", "nothing/here")
    assert f"There is nothing below '{vault_mount.name}/nothing/here'" in result.stderr
    assert result.exit_code == 5


# What the operator brings, and what the app needs.


def test_the_operators_token_goes_before_the_apps_own_login(
    vault_server: DevServer, vault_mount: VaultMount, monkeypatch: pytest.MonkeyPatch
) -> None:
    auth = approle(vault_server, may_read(vault_mount))
    create_app = factory(vault_mount.config(VAULT_TOKEN=None, VAULT_AUTH=auth))
    assert run(create_app, "set", "a#b", stdin="c").exit_code == 7

    for name in ("VAULT_TOKEN", "BAO_TOKEN"):
        monkeypatch.setenv(name, vault_server.root_token)
        assert run(create_app, "set", "a#b", stdin="c").exit_code == 0
        monkeypatch.delenv(name)


@pytest.mark.parametrize("vault", ["there", "down"])
def test_an_extension_that_needs_its_config_at_once_is_in_nobodys_way(
    vault: str, vault_mount: VaultMount, vault_proxy: FaultProxy
) -> None:
    """Flask-SQLAlchemy is one: it raises when the database's address is not there."""

    def init_db(app: Flask) -> None:
        if not app.config.get("SQLALCHEMY_DATABASE_URI"):
            raise RuntimeError("'SQLALCHEMY_DATABASE_URI' must be set.")

    create_app = factory(
        vault_mount.config(
            VAULT_ADDR=vault_proxy.address,
            VAULT_SECRETS={"SQLALCHEMY_DATABASE_URI": "database#uri"},
        ),
        after=init_db,
    )
    up = vault == "there"

    if not up:
        vault_proxy.cut()

    assert run(create_app, "status").exit_code == (5 if up else 4)
    assert run(create_app, "get", "database#uri").exit_code == (5 if up else 4)
    assert run(create_app, "rotate", "--list-backups").exit_code == 0

    if up:
        value = "postgresql://db.example.com/shop"
        assert run(create_app, "set", "database#uri", stdin=value).exit_code == 0
        assert run(create_app, "status").exit_code == 0


def test_what_needs_the_config_alone_stops_the_factory_there(
    shop: Factory, vault_mount: VaultMount
) -> None:
    """So it works before the app can start, and starts no thread of the app's."""
    config = vault_mount.config(VAULT_SECRETS={"SECRET_KEY": "flask#secret_key"})
    called: list[Flask] = []
    create_app = factory(config, after=called.append)

    for arguments in (
        *(("get", "SECRET_KEY"), ("set", "SECRET_KEY"), ("list",), ("init",)),
        *(("rotate", "--list-backups"), ("rotate", "--all", "--dry-run")),
    ):
        result = run(create_app, *arguments, stdin="new")
        assert result.exit_code == 0
        assert called == []

    assert run(create_app, "status").exit_code == 0
    assert called


def test_a_factory_that_takes_failures_for_its_own_is_still_asked(
    shop: Factory, vault_mount: VaultMount
) -> None:
    """``except Exception`` around ``init_app`` does not catch the command's way out."""

    def create_app() -> Flask:
        app = Flask("shop")
        app.config.from_mapping(
            vault_mount.config(VAULT_SECRETS={"KEY": "flask#missing"})
        )

        try:
            FlaskVault(app)
        except Exception:
            app.config["KEY"] = "fallback"

        return app

    assert run(create_app, "get", "flask").exit_code == 0
    result = run(create_app, "status")
    assert rows(result.stdout) == [["KEY", "flask#missing", "unset", "-", "-"]]
    assert result.exit_code == 5


def test_an_app_without_flask_vault_is_told_what_to_do() -> None:
    for arguments in (("status",), ("get", "a#b"), ("init",), ("rotate", "--all")):
        result = run(lambda: Flask("shop"), *arguments)
        assert "The app 'shop' has no FlaskVault" in result.stderr
        assert "vault.init_app(app)" in result.stderr
        assert result.exit_code == 2, "2 is usage and configuration; 1 is nobody's"


def fail_with_the_key(app: Flask) -> t.NoReturn:
    raise ValueError(f"bad key {app.config['SECRET_KEY']}")


def test_status_of_an_app_that_fails_after_vault_was_read(
    vault_mount: VaultMount,
) -> None:
    """What Vault gave is known by then; what failed is named by type and place only,
    since nobody knows what its text holds."""
    vault_mount.write("flask", {"secret_key": CANARY})
    config = vault_mount.config(VAULT_SECRETS={"SECRET_KEY": "flask#secret_key"})
    result = run(factory(config, after=fail_with_the_key), "status")

    assert [row[:3] for row in rows(result.stdout)] == [
        ["SECRET_KEY", "flask#secret_key", "vault"]
    ]
    assert "ValueError" in result.stderr
    assert pathlib.Path(__file__).name in result.stderr
    assert CANARY not in result.output


@pytest.mark.parametrize("arguments", [("status",), ("get", "a#b"), ("init",)])
def test_an_app_that_fails_before_vault_is_asked(arguments: tuple[str, ...]) -> None:
    def create_app() -> Flask:
        raise ValueError(CANARY)

    result = run(create_app, *arguments)
    assert "ValueError" in result.stderr
    assert pathlib.Path(__file__).name in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert result.exit_code == 2


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({}, "VAULT_ADDR is unset"),
        ({"VAULT_ADDR": "vault:8200"}, "VAULT_ADDR is no address"),
        ({"VAULT_ADRR": "http://127.0.0.1:1"}, "did you mean VAULT_ADDR?"),
        ({"VAULT_ADDR": "http://127.0.0.1:1"}, "VAULT_TOKEN"),
        (
            {"VAULT_ADDR": "http://127.0.0.1:1", "VAULT_PREFIX": "x/{environment}"},
            "VAULT_ENVIRONMENT is unset",
        ),
        (
            {"VAULT_ADDR": "http://127.0.0.1:1", "VAULT_SECRETS": {"K": "flask#"}},
            "VAULT_SECRETS['K']",
        ),
        (
            {
                "VAULT_ADDR": "http://127.0.0.1:1",
                "VAULT_SECRETS": {"K": {"ref": "a#b", "rotat": "token"}},
            },
            "did you mean 'rotate'?",
        ),
        (
            {
                "VAULT_ADDR": "http://127.0.0.1:1",
                "VAULT_TOKEN": f"{CANARY}\nX",
                "VAULT_SECRETS": {"K": "a#b"},
            },
            "VAULT_TOKEN",
        ),
    ],
)
@pytest.mark.parametrize("arguments", [("status",), ("get", "x#y"), ("init",)])
def test_a_wrong_config_is_one_sentence_with_its_key(
    arguments: tuple[str, ...], config: dict[str, object], says: str
) -> None:
    result = run(factory(config), *arguments)
    assert result.stderr.startswith("Error: ")
    assert says in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""
    assert result.exit_code == 2
    assert CANARY not in result.output


def test_without_vault_the_commands_that_need_it_say_that_it_is_off() -> None:
    config = {"VAULT_ENABLED": False, "VAULT_SECRETS": {"KEY": "flask#key"}}

    for arguments in (("get", "KEY"), ("init",), ("list",), ("set", "KEY")):
        result = run(factory(config), *arguments, stdin="value")
        assert result.exit_code == 2
        assert "VAULT_ENABLED is False" in result.stderr
        assert "'Vault'" not in result.stderr
        assert "''" not in result.stderr
        assert "fallback_env" not in result.stderr, "which is for code, not for here"


def test_nothing_is_retried_that_was_refused(
    vault_server: DevServer, vault_mount: VaultMount, vault_proxy: FaultProxy
) -> None:
    auth = {**approle(vault_server, may_read(vault_mount)), "secret_id": "wrong"}
    config = vault_mount.config(
        VAULT_TOKEN=None,
        VAULT_AUTH=auth,
        VAULT_ADDR=vault_proxy.address,
        VAULT_SECRETS={f"KEY_{i}": f"p{i}#x" for i in range(5)},
    )

    for arguments in (("status",), ("get", "p0"), ("init",)):
        vault_proxy.reset()
        assert run(factory(config), *arguments).exit_code == 7
        assert vault_proxy.logins == 1


def test_reading_commands_write_nothing(
    shop: Factory, vault_mount: VaultMount, vault_proxy: FaultProxy
) -> None:
    create_app = factory(
        vault_mount.config(
            VAULT_ADDR=vault_proxy.address, VAULT_SECRETS={"KEY": "flask#jwt"}
        )
    )

    for arguments in (("status",), ("get", "KEY"), ("list",)):
        assert run(create_app, *arguments).exit_code == 0

    assert vault_proxy.count > 0
    assert not [request for request in vault_proxy.requests if is_write(request)]


# As programs.

#: An app at module level. It reads Vault when it is imported.
APP = """\
from flask import Flask
from flask.cli import AppGroup
from flask_vault import FlaskVault

app = Flask(__name__)
app.config.from_prefixed_env()
app.config["VAULT_SECRETS"] = {"SECRET_KEY": "flask#secret_key"}
FlaskVault(app)
assert app.config["SECRET_KEY"]
own = AppGroup("vault")
own.command("mine")(lambda: print("mine"))
app.cli.add_command(own)
"""


def test_an_app_at_module_level_and_its_own_group_of_this_name(
    vault_mount: VaultMount, tmp_path: pathlib.Path
) -> None:
    """Flask prefers an installed group to the app's own. Ours stays whole."""
    (tmp_path / "app.py").write_text(APP)
    environ = environ_of(vault_mount)
    code, printed = flask(tmp_path, "vault", "status", environ=environ)
    assert code == 5
    assert "Traceback" not in printed

    vault_mount.write("flask", {"secret_key": CANARY})
    code, printed = flask(tmp_path, "vault", "status", environ=environ)
    assert code == 0
    assert re.search(r"^SECRET_KEY +flask#secret_key +vault +1", printed, re.M)

    code, printed = flask(tmp_path, "vault", "mine", environ=environ)
    assert code == 2
    assert "No such command 'mine'" in printed


def test_where_there_is_no_app_at_all(tmp_path: pathlib.Path) -> None:
    code, printed = flask(tmp_path, "vault", "status")
    assert code == 2
    assert "--app" in printed
    assert "Traceback" not in printed

    code, printed = flask(tmp_path, "vault", "backup-key")
    assert code == 0
    assert re.fullmatch(r"[A-Za-z0-9_-]{43}=\n", printed)


def test_every_command_has_help() -> None:
    runner = CliRunner()
    assert set(vault_group.commands) >= {
        *("status", "get", "set", "list", "init", "rotate", "dev", "backup-key"),
    }

    for name, command in vault_group.commands.items():
        shown = runner.invoke(vault_group, [name, "--help"]).stdout
        assert isinstance(command, click.Command)
        assert command.help
        assert f"Usage: vault {name}" in shown
