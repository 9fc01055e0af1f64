"""``flask vault init``: what an app needs and Vault does not have yet is created.

What is there stays, whoever made it, and running it again changes nothing.
"""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import pathlib
import re
import secrets
import subprocess
import sys
import typing as t

import pytest
from click.testing import CliRunner
from click.testing import Result
from flask import Flask
from flask.cli import ScriptInfo

from flask_vault import FlaskVault
from flask_vault import VaultClient
from flask_vault.cli import vault_group
from flask_vault.policy import app_policy
from flask_vault.provisioning import provision
from flask_vault.testing import DevServer
from flask_vault.testing import FaultProxy
from flask_vault.testing.api import Api
from flask_vault.testing.plugin import VaultMount
from tests.helpers import approle
from tests.helpers import at_once
from tests.helpers import before_each_write
from tests.helpers import is_write
from tests.helpers import may_read
from tests.helpers import start_app

CANARY = "canary-c3e8"

GENERATED: dict[str, object] = {
    "SECRET_KEY": {"ref": "flask#secret_key", "rotate": "token"},
    "JWT_SECRET_KEY": {"ref": "flask#jwt", "rotate": {"generator": "hex", "bytes": 20}},
}

DATABASE = {
    "ref": "database",
    "template": "postgresql://{username}:{password}@{host}/shop",
    "rotate": {"kind": "database", "field": "password"},
}

POLLING = "Other processes learn of it by polling"


def init(config: cabc.Mapping[str, object], **extra: object) -> Result:
    """Run ``flask vault init``. It never ends with a traceback, nor shows a value."""

    def create_app() -> Flask:
        app = Flask("shop")
        app.config.from_mapping(config, **extra)
        FlaskVault(app)
        raise RuntimeError("The factory must not be needed.")

    result = CliRunner().invoke(
        vault_group, ["init"], obj=ScriptInfo(create_app=create_app)
    )

    if not isinstance(result.exception, SystemExit | None):
        raise result.exception

    assert "Traceback" not in result.output
    assert CANARY not in result.output
    return result


def rows(result: Result) -> list[list[str]]:
    """The cells of the printed table, below its headers."""
    return [
        re.split(r" {2,}", line)
        for line in result.stdout.splitlines()[1:]
        if not line.startswith(POLLING)
    ]


def of(mount: VaultMount, entries: cabc.Mapping[str, object], **extra: object) -> t.Any:
    return mount.config(VAULT_SECRETS=entries, **extra)


# What is made.


def test_generated_values_are_made_for_entries_with_rotate(
    vault_mount: VaultMount,
) -> None:
    result = init(of(vault_mount, GENERATED))

    assert rows(result) == [
        ["flask#secret_key", "created", "SECRET_KEY"],
        ["flask#jwt", "created", "JWT_SECRET_KEY"],
    ]
    assert result.exit_code == 0
    made = vault_mount.read("flask")
    assert re.fullmatch(r"[A-Za-z0-9_-]{43}", made["secret_key"])
    assert re.fullmatch(r"[0-9a-f]{40}", made["jwt"])
    assert made["secret_key"] not in result.output
    # In one write, so that nobody finds half of a document.
    assert vault_mount.read("flask", version=1) == made


def test_the_app_starts_with_what_was_made(vault_mount: VaultMount) -> None:
    config = of(vault_mount, GENERATED)
    assert init(config).exit_code == 0
    app = start_app(config)
    assert app.config["SECRET_KEY"] == vault_mount.read("flask")["secret_key"]


def test_others_are_told_that_they_learn_of_it_by_polling(
    vault_mount: VaultMount,
) -> None:
    assert POLLING in init(of(vault_mount, GENERATED)).stdout
    # Nothing was written this time.
    assert POLLING not in init(of(vault_mount, GENERATED)).stdout


def test_again_it_changes_nothing(
    vault_mount: VaultMount, vault_proxy: FaultProxy
) -> None:
    config = of(vault_mount, GENERATED, VAULT_ADDR=vault_proxy.address)
    init(config)
    made = vault_mount.read("flask")
    vault_proxy.reset()
    result = init(config)

    assert [row[1] for row in rows(result)] == ["exists", "exists"]
    assert result.exit_code == 0
    assert vault_mount.read("flask") == made
    assert not list(filter(is_write, vault_proxy.requests))


@pytest.mark.parametrize("present", [CANARY, "", None, 0, False, {"a": 1}])
def test_what_is_there_stays_whatever_it_is(
    present: object, vault_mount: VaultMount
) -> None:
    vault_mount.write("flask", {"secret_key": present, "other": CANARY})
    result = init(of(vault_mount, GENERATED))

    assert [row[1] for row in rows(result)] == ["exists", "created"]
    found = vault_mount.read("flask")
    assert found.pop("jwt")
    assert found == {"secret_key": present, "other": CANARY}


def test_what_only_a_person_knows_is_said_to_be_missing(
    vault_mount: VaultMount,
) -> None:
    entries = {"STRIPE_API_KEY": "stripe#api_key", **GENERATED}
    result = init(of(vault_mount, entries))

    assert rows(result)[0] == ["stripe#api_key", "missing", "STRIPE_API_KEY"]
    assert "run 'flask vault set stripe#api_key'" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert result.exit_code == 5
    # The others are made all the same.
    assert set(vault_mount.read("flask")) == {"secret_key", "jwt"}


def test_the_fields_of_a_template_and_a_database_password_are_a_persons(
    vault_mount: VaultMount,
) -> None:
    """A password that the database does not have opens nothing."""
    result = init(of(vault_mount, {"DATABASE_URL": DATABASE}))
    assert rows(result) == [
        [f"database#{field}", "missing", "DATABASE_URL"]
        for field in ("username", "password", "host")
    ]
    assert result.exit_code == 5

    vault_mount.write("database", {"username": "u", "password": "p", "host": "h"})
    assert init(of(vault_mount, {"DATABASE_URL": DATABASE})).exit_code == 0


@pytest.mark.parametrize(
    "more", [{"required": False}, {"default": "d"}, {"default": None}]
)
def test_what_the_app_starts_without_is_no_failure(
    more: dict[str, object], vault_mount: VaultMount
) -> None:
    """Else no deployment could run it before each start."""
    config = of(vault_mount, {"SENTRY_DSN": {"ref": "sentry#dsn", **more}})
    assert start_app(config).config["SENTRY_DSN"] == more.get("default")
    result = init(config)
    assert rows(result) == [["sentry#dsn", "missing", "SENTRY_DSN"]]
    assert result.exit_code == 0


def test_what_one_entry_needs_is_needed(vault_mount: VaultMount) -> None:
    entries = {
        "OPTIONAL": {"ref": "sentry#dsn", "required": False},
        "SENTRY_DSN": "sentry#dsn",
    }
    result = init(of(vault_mount, entries))
    assert rows(result) == [["sentry#dsn", "missing", "OPTIONAL, SENTRY_DSN"]]
    assert result.exit_code == 5


def test_two_entries_of_one_field_get_one_value(vault_mount: VaultMount) -> None:
    entries = {"SECRET_KEY": "flask#key", "KEY": {"ref": "flask#key", "rotate": "hex"}}
    result = init(of(vault_mount, entries))
    assert rows(result) == [["flask#key", "created", "SECRET_KEY, KEY"]]
    assert re.fullmatch(r"[0-9a-f]{64}", vault_mount.read("flask")["key"])


def test_a_whole_document_is_a_persons(vault_mount: VaultMount) -> None:
    """An entry with ``cast = json`` names no field; there is nothing to generate."""
    config = of(vault_mount, {"WHOLE": {"ref": "whole", "cast": "json"}, **GENERATED})
    result = init(config)
    assert result.exit_code == 5
    assert "whole" in result.stderr
    assert "flask vault set whole" in result.stderr
    assert set(vault_mount.read("flask")) == {"secret_key", "jwt"}

    vault_mount.write("whole", {"a": 1})
    result = init(config)
    assert rows(result)[0] == ["whole", "exists", "WHOLE"]
    assert result.exit_code == 0


def test_the_cure_for_an_absolute_reference_can_be_pasted(
    vault_mount: VaultMount,
) -> None:
    ref = f"/{vault_mount.name}/stripe#api_key"
    config = of(vault_mount, {"STRIPE_API_KEY": ref}, VAULT_PREFIX="shop")
    result = init(config)
    assert result.exit_code == 5
    assert f"run 'flask vault set {ref}'" in result.stderr


def test_a_version_that_is_pinned_cannot_be_made(vault_mount: VaultMount) -> None:
    entry = {"ref": "flask#secret_key", "version": 3}
    result = init(of(vault_mount, {"SECRET_KEY": entry}))
    assert result.exit_code == 0
    assert "nothing to create" in result.stdout


def test_an_app_that_declares_nothing(vault_mount: VaultMount) -> None:
    result = init(vault_mount.config())
    assert "VAULT_SECRETS is empty" in result.stdout
    assert result.exit_code == 0


def test_a_document_that_was_deleted_is_made_again(
    vault_server: DevServer, vault_mount: VaultMount
) -> None:
    vault_mount.write("flask", {"secret_key": CANARY, "jwt": CANARY})
    Api(vault_server.address).call(
        "DELETE", f"{vault_mount.name}/data/flask", token=vault_server.root_token
    )
    assert [row[1] for row in rows(init(of(vault_mount, GENERATED)))] == ["created"] * 2
    assert vault_mount.read("flask", version=2)["secret_key"] != CANARY


# The mount.


@pytest.fixture
def new_mount(vault_server: DevServer) -> cabc.Iterator[str]:
    """The name of one that is not there yet."""
    name = f"new-{secrets.token_hex(6)}"
    yield name
    vault_server.disable_mount(name)


@pytest.mark.parametrize("kv_version", [None, 1, 2])
def test_a_mount_that_is_missing_is_made(
    kv_version: int | None,
    new_mount: str,
    vault_server: DevServer,
    vault_mount: VaultMount,
) -> None:
    """In the version that the config asks for, or the app would not find it."""
    config = {
        **of(vault_mount, GENERATED),
        "VAULT_MOUNT": new_mount,
        "VAULT_KV_VERSION": kv_version,
    }
    result = init(config)
    assert [row[1] for row in rows(result)] == ["created", "created"]
    assert result.exit_code == 0
    assert start_app(config).config["SECRET_KEY"]
    said = Api(vault_server.address).call(
        "GET", f"sys/mounts/{new_mount}", token=vault_server.root_token
    )
    assert said["data"]["type"] == "kv"
    assert said["data"]["options"]["version"] == str(kv_version or 2)


def test_the_mount_of_an_absolute_reference_is_made(
    new_mount: str, vault_mount: VaultMount
) -> None:
    entry = {"ref": f"/{new_mount}/team/flask#key", "rotate": "token"}
    config = of(vault_mount, {"SECRET_KEY": entry})
    assert init(config).exit_code == 0
    assert len(start_app(config).config["SECRET_KEY"]) == 43


def test_a_mount_without_versions_that_is_there_is_used(
    new_mount: str, vault_server: DevServer, vault_mount: VaultMount
) -> None:
    vault_server.enable_kv(new_mount, version=1)
    config = {**of(vault_mount, GENERATED), "VAULT_MOUNT": new_mount}
    assert [row[1] for row in rows(init(config))] == ["created", "created"]
    assert [row[1] for row in rows(init(config))] == ["exists", "exists"]


def test_a_mount_that_somebody_else_makes_meanwhile_is_used(
    vault_mount: VaultMount, vault_proxy: FaultProxy
) -> None:
    """As the first start of two hosts does. To make it twice is an error of Vault's."""
    path = f"{vault_mount.name}/data/flask"
    vault_proxy.answer(
        404, {"errors": [f'no handler for route "{path}"']}, times=1, match=path
    )
    config = of(vault_mount, GENERATED, VAULT_ADDR=vault_proxy.address)
    result = init(config)
    assert result.exit_code == 0, result.stderr
    assert [row[1] for row in rows(result)] == ["created", "created"]


@pytest.mark.parametrize("name", ["sys", "identity"])
def test_a_mount_of_another_kind_is_left_alone(
    name: str, vault_mount: VaultMount
) -> None:
    result = init({**of(vault_mount, GENERATED), "VAULT_MOUNT": name})
    assert result.exit_code == 2
    assert "VAULT_MOUNT" in result.stderr
    assert f"The mount {name!r} is no key-value engine" in result.stderr


# Two at once.


def test_the_loser_of_two_at_once_keeps_what_the_winner_made(
    vault_mount: VaultMount, vault_proxy: FaultProxy
) -> None:
    theirs = {"secret_key": CANARY, "jwt": CANARY}
    before_each_write(vault_proxy, lambda: vault_mount.write("flask", theirs))
    result = init(of(vault_mount, GENERATED, VAULT_ADDR=vault_proxy.address))
    assert [row[1] for row in rows(result)] == ["exists", "exists"]
    assert result.exit_code == 0
    assert vault_mount.read("flask") == theirs


def test_another_field_that_comes_meanwhile_stays(
    vault_mount: VaultMount, vault_proxy: FaultProxy
) -> None:
    before_each_write(vault_proxy, lambda: vault_mount.write("flask", {"salt": CANARY}))
    result = init(of(vault_mount, GENERATED, VAULT_ADDR=vault_proxy.address))
    assert [row[1] for row in rows(result)] == ["created", "created"]
    assert set(vault_mount.read("flask")) == {"secret_key", "jwt", "salt"}


def test_many_at_once_make_one_value(
    vault_mount: VaultMount, vault_proxy: FaultProxy
) -> None:
    """Each has read that there is none before the first one writes."""
    vault_proxy.delay = 0.03
    config = of(vault_mount, GENERATED, VAULT_ADDR=vault_proxy.address)

    def run(index: int) -> list[str]:
        client = VaultClient.from_mapping(config)
        return [done.action for done in provision(client.kv, client.catalog)]

    ends = at_once(4, run)
    assert sorted(map(str, ends)) == [
        "['created', 'created']",
        *["['exists', 'exists']"] * 3,
    ]
    assert vault_mount.read("flask", version=1) == vault_mount.read("flask")


# What the token may not do, and what is not there.


def test_a_token_that_may_only_read_finds_that_nothing_is_missing(
    vault_server: DevServer, vault_mount: VaultMount
) -> None:
    auth = approle(vault_server, may_read(vault_mount))
    config = of(vault_mount, GENERATED)
    config.update(VAULT_TOKEN=None, VAULT_AUTH=auth)
    result = init(config)
    assert result.exit_code == 7
    assert f"'create, update' on '{vault_mount.name}/data/flask'" in result.stderr

    vault_mount.write("flask", {"secret_key": CANARY, "jwt": CANARY})
    assert init(config).exit_code == 0


def test_a_mount_that_the_token_may_not_make(
    vault_server: DevServer, vault_mount: VaultMount
) -> None:
    mount = dataclasses.replace(vault_mount, name=f"new-{secrets.token_hex(6)}")
    config = of(mount, GENERATED)
    config.update(VAULT_TOKEN=None, VAULT_AUTH=approle(vault_server, may_read(mount)))
    result = init(config)
    assert result.exit_code == 7
    assert f"'sys/mounts/{mount.name}'" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_what_was_made_before_a_denial_is_told(
    vault_server: DevServer, vault_mount: VaultMount
) -> None:
    """One document that is denied does not hide the others, nor stop them."""
    name = vault_mount.name
    policy = "".join(
        f'path "{name}/data/{path}" {{ capabilities = ["read", "create", "update"] }}\n'
        for path in ("a", "c")
    )
    entries = {
        key: {"ref": f"{key.lower()}#key", "rotate": "token"} for key in ("A", "B", "C")
    }
    config = of(vault_mount, entries)
    config.update(VAULT_TOKEN=None, VAULT_AUTH=approle(vault_server, policy))
    result = init(config)

    assert result.exit_code == 7
    assert f"'{name}/b'" in result.stderr
    assert ["a#key", "created", "A"] in rows(result)
    assert ["c#key", "created", "C"] in rows(result)
    assert POLLING in result.stdout


def test_a_server_that_is_down(
    vault_mount: VaultMount, vault_proxy: FaultProxy
) -> None:
    vault_proxy.cut()
    result = init(of(vault_mount, GENERATED, VAULT_ADDR=vault_proxy.address))
    assert result.exit_code == 4
    assert "VAULT_ADDR" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""


# As a function.


def test_seeds_serve_for_what_is_not_generated(vault_mount: VaultMount) -> None:
    entries = {"STRIPE_API_KEY": "stripe#api_key", "SENTRY": "sentry#dsn", **GENERATED}
    client = VaultClient.from_mapping(of(vault_mount, entries))
    asked: list[str] = []

    def seed(field: str, entry: t.Any) -> str | None:
        asked.append(entry.key)
        return "seeded" if field == "api_key" else None

    done = provision(client.kv, client.catalog, seed)
    assert {made.reference: made.action for made in done} == {
        "stripe#api_key": "created",
        "sentry#dsn": "missing",
        "flask#secret_key": "created",
        "flask#jwt": "created",
    }
    assert vault_mount.read("stripe") == {"api_key": "seeded"}
    assert asked == ["STRIPE_API_KEY", "SENTRY"]


# The policy that goes with it.


def test_the_policy_is_enough_for_the_app_and_no_more(
    vault_server: DevServer, vault_mount: VaultMount, new_mount: str
) -> None:
    vault_server.enable_kv(new_mount, version=1)
    entries = {
        "DATABASE_URL": {"ref": "database", "template": "db://{user}@host/x"},
        "OLD": {"ref": "flask#secret_key", "version": 1},
        "V1": {"ref": f"/{new_mount}/team/v1#key", "rotate": "token"},
        **GENERATED,
    }
    vault_mount.write("shop/database", {"user": "u"})
    config = of(vault_mount, entries, VAULT_PREFIX="shop")
    assert init(config).exit_code == 0

    client = VaultClient.from_mapping(config)
    policy = app_policy(client.catalog, client.kv.mount_of)
    assert re.findall(r'path "(.*)"', policy) == [
        f"{vault_mount.name}/data/shop/database",
        f"{vault_mount.name}/data/shop/flask",
        f"{new_mount}/team/v1",
    ]
    assert set(re.findall(r"capabilities = (.*)", policy)) == {'["read"]'}

    config.update(VAULT_TOKEN=None, VAULT_AUTH=approle(vault_server, policy))
    app = start_app(config)
    assert app.config["OLD"] == app.config["SECRET_KEY"]
    assert app.config["DATABASE_URL"] == "db://u@host/x"


def test_as_a_program_before_the_app_can_start(
    vault_mount: VaultMount, tmp_path: pathlib.Path
) -> None:
    """The app reads its config while it is imported; until ``init`` it cannot be."""
    (tmp_path / "app.py").write_text(
        "from flask import Flask\n"
        "from flask_vault import FlaskVault\n"
        "app = Flask(__name__)\n"
        "app.config.from_prefixed_env()\n"
        f"app.config['VAULT_SECRETS'] = {GENERATED!r}\n"
        "FlaskVault(app)\n"
        "KEY = app.config['SECRET_KEY'].encode()\n"
        "app.cli.command('show')(lambda: print(len(KEY)))\n"
    )
    environ = {
        "PATH": "",
        "VAULT_ADDR": vault_mount.address,
        "VAULT_TOKEN": vault_mount.token,
        "FLASK_VAULT_MOUNT": vault_mount.name,
    }

    def flask(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "flask", *arguments],
            cwd=tmp_path,
            env=environ,
            capture_output=True,
            text=True,
            timeout=30,
        )

    assert flask("show").returncode == 5
    done = flask("vault", "init")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert flask("show").stdout == "43\n"
