"""``flask vault rotate``: new values, backups of the old, and the way back."""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import datetime as dt
import itertools
import json
import os
import pathlib
import pty
import re
import shlex
import signal
import subprocess
import sys
import typing as t

import pytest
from click.testing import CliRunner
from click.testing import Result
from flask import current_app
from flask import Flask
from flask.cli import ScriptInfo

from flask_vault import FlaskVault
from flask_vault import secret_rotated
from flask_vault.cli import vault_group
from flask_vault.rotation.backup import BackupStore
from flask_vault.testing import DevServer
from flask_vault.testing import FaultProxy
from flask_vault.testing.api import Api
from flask_vault.testing.plugin import VaultMount
from tests.helpers import approle
from tests.helpers import at_once
from tests.helpers import BACKUP_KEY
from tests.helpers import before_each_write
from tests.helpers import is_write
from tests.helpers import may_read

CANARY = "canary-77d0"

FIRST = {
    "flask": {"secret_key": f"{CANARY}-key", "jwt": f"{CANARY}-jwt", "salt": CANARY},
    "stripe": {"api_key": f"{CANARY}-api"},
}

#: Two keys in one document, one in another, one that nobody rotates.
SECRETS: dict[str, object] = {
    "SECRET_KEY": {"ref": "flask#secret_key", "rotate": "token", "name": "session-key"},
    "JWT_SECRET_KEY": {"ref": "flask#jwt", "rotate": {"generator": "hex", "bytes": 64}},
    "SALT": "flask#salt",
    "STRIPE_API_KEY": {"ref": "stripe#api_key", "rotate": "password"},
}

DATABASE = {
    "ref": "database",
    "template": "postgresql+psycopg://{username}:{password}@{host}/shop",
    "rotate": {"kind": "database", "field": "password"},
}

POLLING = "Other processes learn of it by polling"

#: The app for the tests that run it as a program.
APP = """\
from flask import Flask
from flask_vault import FlaskVault

def create_app():
    app = Flask(__name__)
    app.config.from_prefixed_env()
    app.config["VAULT_SECRETS"] = {
        "SECRET_KEY": {"ref": "flask#secret_key", "rotate": "token"}
    }
    FlaskVault(app)
    return app
"""


@dataclasses.dataclass
class Shop:
    """An app with secrets to rotate, and where they are."""

    mount: VaultMount
    folder: pathlib.Path
    #: More config keys, or other values.
    more: dict[str, object] = dataclasses.field(default_factory=dict)
    #: What the factory does with the app when Vault was read.
    after: cabc.Callable[[Flask], object] = lambda app: None

    def create_app(self) -> Flask:
        app = Flask("shop", instance_path=str(self.folder / "instance"))
        app.config.from_mapping(
            {
                **self.mount.config(),
                "VAULT_SECRETS": SECRETS,
                "VAULT_BACKUP_KEYS": [BACKUP_KEY],
                **self.more,
            }
        )
        FlaskVault(app)
        self.after(app)
        return app

    def run(self, *arguments: str, stdin: str | None = None) -> Result:
        """Run a ``flask vault`` command. No value ever is in what it prints."""
        result = CliRunner().invoke(
            vault_group,
            arguments,
            input=stdin,
            obj=ScriptInfo(create_app=self.create_app),
        )

        if not isinstance(result.exception, SystemExit | None):
            raise result.exception

        assert "Traceback" not in result.output
        assert CANARY not in result.output

        for value in itertools.chain.from_iterable(
            fields.values() for fields in self.read().values()
        ):
            assert value not in result.output

        return result

    def environ(self) -> dict[str, str]:
        """For :data:`APP`, run as a program."""
        return {
            **os.environ,
            "VAULT_ADDR": self.mount.address,
            "VAULT_TOKEN": self.mount.token,
            "FLASK_VAULT_MOUNT": self.mount.name,
            "FLASK_VAULT_BACKUP_KEYS": BACKUP_KEY,
        }

    def rotate(self, *arguments: str) -> Result:
        return self.run("rotate", *arguments)

    def read(self) -> dict[str, dict[str, t.Any]]:
        return {path: self.mount.read(path) for path in FIRST}

    def changed(self) -> set[str]:
        """The fields that are not as they were in the beginning."""
        return {
            f"{path}#{name}"
            for path, fields in self.read().items()
            for name, value in fields.items()
            if value != FIRST[path].get(name)
        }

    @property
    def backup_dir(self) -> pathlib.Path:
        return self.folder / "instance" / "vault-backups"

    def backups(self) -> list[str]:
        """The names of the files, the oldest first."""
        store = BackupStore(self.backup_dir, [BACKUP_KEY])
        return [info.name for info in reversed(store.list())]


@pytest.fixture
def shop(vault_mount: VaultMount, tmp_path: pathlib.Path) -> Shop:
    for path, fields in FIRST.items():
        vault_mount.write(path, fields)

    return Shop(vault_mount, tmp_path)


@pytest.fixture
def proxied(shop: Shop, vault_proxy: FaultProxy) -> Shop:
    """The same app, which has the proxy before the server. The test itself has not."""
    shop.more["VAULT_ADDR"] = vault_proxy.address
    return shop


# What is rotated.


def test_all_replaces_every_value_with_rotate_and_no_other(shop: Shop) -> None:
    result = shop.rotate("--all")

    assert result.exit_code == 0
    assert result.stderr == ""
    assert shop.changed() == {"flask#secret_key", "flask#jwt", "stripe#api_key"}
    new = shop.read()
    assert re.fullmatch(r"[A-Za-z0-9_-]{43}", new["flask"]["secret_key"])
    assert re.fullmatch(r"[0-9a-f]{128}", new["flask"]["jwt"])
    assert len(new["stripe"]["api_key"]) == 32


def test_the_fields_of_a_document_are_rotated_in_one_version(shop: Shop) -> None:
    """So that nobody sees one of them new and the other old."""
    result = shop.rotate("--all")
    assert "flask: secret_key, jwt rotated, version 2" in result.stdout
    assert shop.mount.read("flask", version=2) == shop.read()["flask"]


def test_each_rotation_names_its_backup_its_operation_and_its_end(shop: Shop) -> None:
    result = shop.rotate("--all")
    lines = result.stdout.splitlines()

    for line, file in zip(lines, shop.backups(), strict=False):
        assert re.search(rf", backup {file}, operation [0-9a-f]{{32}}, done\.$", line)

    assert len(lines) == 3
    assert lines[-1].startswith(POLLING)
    assert "VAULT_REFRESH_INTERVAL" in lines[-1]


@pytest.mark.parametrize(
    ("names", "changed"),
    [
        (["SECRET_KEY"], {"flask#secret_key"}),
        (["session-key"], {"flask#secret_key"}),
        (["flask"], {"flask#secret_key", "flask#jwt"}),
        (["/flask/"], {"flask#secret_key", "flask#jwt"}),
        (["SECRET_KEY", "STRIPE_API_KEY"], {"flask#secret_key", "stripe#api_key"}),
        (["SECRET_KEY", "JWT_SECRET_KEY"], {"flask#secret_key", "flask#jwt"}),
    ],
)
def test_secret_takes_a_config_key_a_name_or_a_path(
    names: list[str], changed: set[str], shop: Shop
) -> None:
    result = shop.rotate(*itertools.chain(*(("--secret", name) for name in names)))
    assert result.exit_code == 0
    assert shop.changed() == changed
    assert POLLING in result.stdout
    # One version for each document, however many of its fields were named.
    assert result.stdout.count("version 2") == len(shop.backups())
    assert "version 3" not in result.stdout


def test_a_document_that_is_named_several_times_is_rotated_once(shop: Shop) -> None:
    result = shop.rotate(
        *("--secret", "SECRET_KEY", "--secret", "flask", "--secret", "session-key")
    )
    assert result.exit_code == 0
    assert "version 2" in result.stdout
    assert "version 3" not in result.stdout
    assert len(shop.backups()) == 1


@pytest.mark.parametrize("name", ["SECRET_KYE", "SALT", "flask#secret_key", ""])
def test_a_name_of_nothing_rotates_nothing_and_says_what_there_is(
    name: str, shop: Shop
) -> None:
    result = shop.rotate("--secret", "STRIPE_API_KEY", "--secret", name)
    assert result.exit_code == 2
    assert f"{name!r} names nothing that can be rotated" in result.stderr
    assert "SECRET_KEY, JWT_SECRET_KEY, STRIPE_API_KEY" in result.stderr
    assert shop.changed() == set()


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--dry-run",),
        ("--all", "--secret", "flask"),
        ("--all", "--restore", "x.json"),
        ("--all", "--list-backups"),
        ("--restore", ""),
    ],
)
def test_what_to_do_is_said_exactly_once(
    arguments: tuple[str, ...], shop: Shop
) -> None:
    result = shop.rotate(*arguments)
    assert result.exit_code == 2
    assert "Give one of --all, --secret NAME" in result.stderr
    assert shop.changed() == set()


def test_there_may_be_nothing_to_rotate(shop: Shop) -> None:
    shop.more = {"VAULT_SECRETS": {"SALT": "flask#salt"}}
    result = shop.rotate("--all")
    assert result.exit_code == 0
    assert "there is nothing to do" in result.stdout
    assert POLLING not in result.output


def test_dry_run_shows_what_would_be_done_and_changes_nothing(shop: Shop) -> None:
    for arguments in (("--all",), ("--secret", "SECRET_KEY", "--secret", "stripe")):
        result = shop.rotate(*arguments, "--dry-run")
        assert result.exit_code == 0
        assert re.search(
            r"^flask +secret_key.* signing +asked for +back up, write",
            result.stdout,
            re.M,
        )
        assert re.search(r"^stripe +api_key", result.stdout, re.M)
        assert POLLING not in result.output
        assert result.stderr == "", "the token may do all of it"

    assert shop.changed() == set()
    assert not shop.backup_dir.exists()


def test_dry_run_says_what_the_token_may_not_do(
    shop: Shop, vault_server: DevServer
) -> None:
    auth = approle(vault_server, may_read(shop.mount))
    shop.more = {"VAULT_TOKEN": None, "VAULT_AUTH": auth}
    result = shop.rotate("--secret", "stripe", "--dry-run", "--compromised")
    mount = shop.mount.name
    assert f"missing 'update' on '{mount}/data/stripe'" in result.stderr
    assert f"missing 'read' on '{mount}/metadata/stripe'" in result.stderr
    assert f"missing 'update' on '{mount}/destroy/stripe'" in result.stderr


def test_dry_run_works_without_vault(proxied: Shop, vault_proxy: FaultProxy) -> None:
    vault_proxy.cut()
    result = proxied.rotate("--all", "--dry-run")
    assert result.exit_code == 0
    assert re.search(r"^flask +secret_key", result.stdout, re.M)
    assert "missing an answer of Vault's" in result.stderr


def test_without_versions_too(shop: Shop, vault_server: DevServer) -> None:
    api = Api(vault_server.address)
    old = f"{shop.mount.name}-1"
    vault_server.enable_kv(old, version=1)
    api.call("POST", f"{old}/flask", FIRST["flask"], token=shop.mount.token)
    shop.more = {
        "VAULT_SECRETS": {"KEY": {"ref": f"/{old}/flask#secret_key", "rotate": "hex"}}
    }
    result = shop.rotate("--all")
    assert result.exit_code == 0
    assert "secret_key rotated, backup" in result.stdout
    data = api.call("GET", f"{old}/flask", token=shop.mount.token)["data"]
    assert data["secret_key"] != FIRST["flask"]["secret_key"]
    assert data["salt"] == FIRST["flask"]["salt"]

    assert shop.rotate("--restore", shop.backups()[0]).exit_code == 0
    data = api.call("GET", f"{old}/flask", token=shop.mount.token)["data"]
    assert data == FIRST["flask"]


def test_a_database_that_is_away_does_not_stop_the_others(shop: Shop) -> None:
    before = {"username": "u", "password": "p", "host": "127.0.0.1:1"}
    shop.mount.write("database", before)
    shop.more = {"VAULT_SECRETS": {"DATABASE_URL": DATABASE, **SECRETS}}
    result = shop.rotate("--all")

    assert result.exit_code == 4
    assert "127.0.0.1:1 does not answer" in result.stderr
    assert "safe: flask vault rotate --secret database" in result.stderr
    assert shop.mount.read("database") == before
    assert shop.changed() == {"flask#secret_key", "flask#jwt", "stripe#api_key"}

    for name in ("DATABASE_URL", "database"):
        result = shop.rotate("--secret", name)
        assert result.exit_code == 4
        assert POLLING not in result.output

    result = shop.rotate("--all", "--dry-run")
    assert result.exit_code == 0
    assert re.search(r"^database +password +database", result.stdout, re.M)


# Backups.


def test_without_a_backup_key_nothing_is_rotated_and_the_cure_is_named(
    shop: Shop,
) -> None:
    shop.more = {"VAULT_BACKUP_KEYS": None}

    for arguments in (("--all",), ("--secret", "SECRET_KEY")):
        result = shop.rotate(*arguments)
        assert result.exit_code == 6
        assert "VAULT_BACKUP_KEYS" in result.stderr
        assert "flask vault backup-key" in result.stderr
        assert POLLING not in result.output

    assert shop.changed() == set()
    assert shop.rotate("--restore", "x.json").exit_code == 6


def test_that_there_is_no_backup_key_is_known_without_vault(
    proxied: Shop, vault_proxy: FaultProxy
) -> None:
    """A retry, which is the cure of code 4, would not mend it."""
    vault_proxy.cut()
    proxied.more["VAULT_BACKUP_KEYS"] = None
    assert proxied.rotate("--secret", "SECRET_KEY").exit_code == 6


def test_the_key_that_backup_key_makes_is_a_good_one(shop: Shop) -> None:
    result = shop.run("backup-key")
    assert result.exit_code == 0
    assert result.stdout != shop.run("backup-key").stdout

    shop.more = {"VAULT_BACKUP_KEYS": result.stdout}
    assert shop.rotate("--all").exit_code == 0
    assert len(list(shop.backup_dir.iterdir())) == 2


def test_no_backup_makes_none(shop: Shop) -> None:
    shop.more = {"VAULT_BACKUP_KEYS": None}
    result = shop.rotate("--all", "--no-backup")
    assert result.exit_code == 0
    assert "no backup" in result.stdout
    assert shop.changed() == {"flask#secret_key", "flask#jwt", "stripe#api_key"}
    assert not shop.backup_dir.exists()


@pytest.mark.parametrize("fault", ["open to others", "not a directory"])
def test_a_backup_that_cannot_be_written_stops_the_rotation(
    fault: str, shop: Shop
) -> None:
    shop.backup_dir.parent.mkdir()

    if fault == "open to others":
        shop.backup_dir.mkdir()
        shop.backup_dir.chmod(0o755)
    else:
        shop.backup_dir.write_text("")

    result = shop.rotate("--all")
    assert result.exit_code == 6
    assert "VAULT_BACKUP_DIR" in result.stderr
    assert "flask vault rotate --secret flask" in result.stderr, "the next command"
    assert shop.changed() == set()


def test_list_backups_shows_names_and_no_values(
    shop: Shop, vault_proxy: FaultProxy
) -> None:
    assert (
        f"There are no backups in {shop.backup_dir}"
        in shop.rotate("--list-backups").stdout
    )

    shop.rotate("--secret", "SECRET_KEY")
    shop.rotate("--secret", "stripe")
    vault_proxy.cut()
    # What is gone must not be needed: that is when backups are looked at.
    shop.more = {"VAULT_ADDR": vault_proxy.address, "VAULT_SECRETS": {}}
    result = shop.rotate("--list-backups")

    assert result.exit_code == 0
    _, *lines = result.stdout.splitlines()
    stripe, flask = (re.split(r" {2,}", line) for line in lines)
    assert flask[1:4] == [f"{shop.mount.name}/flask", "secret_key", "1"]
    assert stripe[1:4] == [f"{shop.mount.name}/stripe", "api_key", "1"]
    assert [flask[0], stripe[0]] == shop.backups()


def test_list_backups_as_json(shop: Shop) -> None:
    assert json.loads(shop.rotate("--list-backups", "--json").stdout) == []
    shop.rotate("--secret", "flask")
    (found,) = json.loads(shop.rotate("--list-backups", "--json").stdout)
    created = dt.datetime.fromisoformat(found.pop("created"))
    assert abs(dt.datetime.now(dt.timezone.utc) - created) < dt.timedelta(minutes=1)
    assert found == {
        "file": shop.backups()[0],
        "path": f"{shop.mount.name}/flask",
        "fields": ["secret_key", "jwt"],
        "version": 1,
        "problem": None,
    }


def test_a_file_that_is_no_backup_hides_no_others(shop: Shop) -> None:
    shop.rotate("--secret", "flask")
    (shop.backup_dir / "broken.json").write_text("{")
    (shop.backup_dir / "broken.json").chmod(0o600)
    result = shop.rotate("--list-backups")
    assert result.exit_code == 0
    assert shop.backups()[-1] in result.stdout
    assert re.search(r"^broken\.json +- ", result.stdout, re.M)

    result = shop.rotate("--restore", "broken.json")
    assert result.exit_code == 6
    assert "'broken.json'" in result.stderr


# And back.


def test_restore_brings_back_what_the_rotation_replaced(shop: Shop) -> None:
    shop.rotate("--secret", "flask")
    (file,) = shop.backups()
    rotated = shop.read()["flask"]
    shop.mount.write("flask", {**rotated, "later": "kept"})
    result = shop.rotate("--restore", file)

    assert result.exit_code == 0
    assert shop.read()["flask"] == {**FIRST["flask"], "later": "kept"}
    assert "now version 4" in result.stdout
    assert POLLING in result.stdout
    assert re.search(r"operation [0-9a-f]{32}, done\.", result.stdout)

    # Which is a rotation, so it has a backup of its own, and a way back.
    _, second = shop.backups()
    assert second in result.stdout
    assert shop.rotate("--restore", second).exit_code == 0
    assert shop.read()["flask"] == {**rotated, "later": "kept"}


def test_restore_dry_run_changes_nothing(shop: Shop) -> None:
    shop.rotate("--secret", "flask")
    (file,) = shop.backups()
    rotated = shop.read()
    result = shop.rotate("--restore", file, "--dry-run")
    assert result.exit_code == 0
    assert "Would bring back" in result.stdout
    assert f"{shop.mount.name}/flask: secret_key, jwt as of version 1" in result.stdout
    assert shop.read() == rotated
    assert shop.backups() == [file]


def test_restore_of_what_is_there_already(shop: Shop) -> None:
    shop.rotate("--secret", "flask")
    (file,) = shop.backups()
    assert shop.rotate("--restore", file).exit_code == 0
    result = shop.rotate("--restore", file)
    assert result.exit_code == 3
    assert "nothing was changed" in result.stderr
    assert POLLING not in result.output


@pytest.mark.parametrize("name", ["missing.json", "../x.json", "/etc/passwd", "x"])
def test_restore_of_a_name_that_is_none(name: str, shop: Shop) -> None:
    shop.rotate("--secret", "flask")
    before = shop.read()
    result = shop.rotate("--restore", name)
    assert result.exit_code == 6
    assert f"{name!r}" in result.stderr
    assert "--list-backups" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert shop.read() == before


def test_restore_of_another_apps_backup(shop: Shop) -> None:
    shop.rotate("--secret", "flask")
    (file,) = shop.backups()
    shop.more = {"VAULT_SECRETS": {"STRIPE_API_KEY": "stripe#api_key"}}
    result = shop.rotate("--restore", file)
    assert result.exit_code == 5
    assert "it is not restored" in result.stderr


def test_restore_with_a_key_that_did_not_make_it(shop: Shop) -> None:
    shop.rotate("--secret", "flask")
    (file,) = shop.backups()
    shop.more = {"VAULT_BACKUP_KEYS": shop.run("backup-key").stdout}
    result = shop.rotate("--restore", file)
    assert result.exit_code == 6
    assert "VAULT_BACKUP_KEYS" in result.stderr
    result = shop.rotate("--list-backups")
    assert result.exit_code == 0
    assert "VAULT_BACKUP_KEYS" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "answer", "restored"),
    [((), "n\n", False), ((), "y\n", True), (("--yes",), "", True)],
)
def test_restore_asks_a_person_before(
    arguments: tuple[str, ...], answer: str, restored: bool, shop: Shop
) -> None:
    shop.rotate("--secret", "SECRET_KEY")
    (file,) = shop.backups()
    (shop.folder / "app.py").write_text(APP)
    ours, theirs = pty.openpty()
    os.write(ours, answer.encode())
    done = subprocess.run(
        [
            *(sys.executable, "-m", "flask", "vault", "rotate"),
            *("--restore", file, *arguments),
        ],
        cwd=shop.folder,
        env=shop.environ(),
        stdin=theirs,
        capture_output=True,
        timeout=30,
    )
    os.close(ours)
    os.close(theirs)

    asked = f"Bring back {shop.mount.name}/flask: secret_key".encode() in done.stdout
    assert asked is (arguments == ())
    assert done.returncode == (0 if restored else 1)
    assert shop.changed() == (set() if restored else {"flask#secret_key"})


# What goes wrong, and what a script makes of it.


def test_unreachable_is_temporary_and_names_the_next_command(
    proxied: Shop, vault_proxy: FaultProxy
) -> None:
    vault_proxy.cut()
    result = proxied.rotate("--secret", "SECRET_KEY")
    assert result.exit_code == 4
    assert "VAULT_ADDR" in result.stderr
    (following,) = re.findall(r"flask (vault rotate .*)", result.stderr)

    vault_proxy.heal()
    assert proxied.run(*shlex.split(following)[1:]).exit_code == 0
    assert "flask#secret_key" in proxied.changed()


def test_a_server_that_is_sealed_meanwhile_is_temporary(
    proxied: Shop, vault_proxy: FaultProxy
) -> None:
    vault_proxy.answer(503, {"errors": ["Vault is sealed"]}, match=is_write)
    result = proxied.rotate("--all")
    assert result.exit_code == 4
    assert "sealed" in result.stderr
    assert "Running it again is safe" in result.stderr
    assert POLLING not in result.output
    assert proxied.changed() == set()


def test_an_answer_that_is_lost_is_looked_for(
    proxied: Shop, vault_proxy: FaultProxy
) -> None:
    """The write was done, and a second one would make another value."""
    vault_proxy.drop_reply(match=is_write)
    result = proxied.rotate("--secret", "SECRET_KEY")
    assert result.exit_code == 0
    assert "version 2" in result.stdout
    assert len(list(filter(is_write, vault_proxy.requests))) == 1


def test_where_the_token_may_not_write(shop: Shop, vault_server: DevServer) -> None:
    auth = approle(vault_server, may_read(shop.mount))
    shop.more = {"VAULT_TOKEN": None, "VAULT_AUTH": auth}
    result = shop.rotate("--secret", "SECRET_KEY")
    assert result.exit_code == 7
    assert f"'create, update' on '{shop.mount.name}/data/flask'" in result.stderr
    assert "flask vault rotate --secret SECRET_KEY" in result.stderr
    assert POLLING not in result.output
    assert shop.changed() == set()


def test_a_login_that_is_refused(shop: Shop) -> None:
    shop.more = {"VAULT_TOKEN": f"{CANARY}-token"}
    result = shop.rotate("--secret", "SECRET_KEY")
    assert result.exit_code == 7
    assert "VAULT_TOKEN" in result.stderr


def test_somebody_else_was_first(proxied: Shop, vault_proxy: FaultProxy) -> None:
    theirs = {**FIRST["flask"], "secret_key": "theirs"}
    before_each_write(vault_proxy, lambda: proxied.mount.write("flask", theirs))
    result = proxied.rotate("--secret", "SECRET_KEY")
    assert result.exit_code == 3
    assert "rotated by somebody else meanwhile" in result.stderr
    assert proxied.read()["flask"] == theirs
    assert POLLING not in result.output


def test_the_next_command_for_an_absolute_reference_can_be_pasted(
    proxied: Shop, vault_proxy: FaultProxy
) -> None:
    ref = f"/{proxied.mount.name}/flask#secret_key"
    proxied.more["VAULT_SECRETS"] = {"SECRET_KEY": {"ref": ref, "rotate": "token"}}
    proxied.more["VAULT_PREFIX"] = "shop"
    theirs = {**FIRST["flask"], "secret_key": "theirs"}
    before_each_write(vault_proxy, lambda: proxied.mount.write("flask", theirs))
    result = proxied.rotate("--all")
    assert result.exit_code == 3
    (following,) = re.findall(r"flask (vault get .*)", result.stderr)
    assert proxied.run(*shlex.split(following)[1:]).exit_code == 0

    vault_proxy.answer(503, match=is_write, times=2)
    result = proxied.rotate("--all")
    assert result.exit_code == 4
    (following,) = re.findall(r"flask (vault rotate .*)", result.stderr)
    assert proxied.run(*shlex.split(following)[1:]).exit_code == 0


def test_a_restore_that_was_cut_off_names_the_next_command(
    proxied: Shop, vault_proxy: FaultProxy
) -> None:
    proxied.rotate("--secret", "SECRET_KEY")
    (file,) = proxied.backups()
    vault_proxy.answer(503, match=is_write, times=2)
    result = proxied.rotate("--restore", file)
    assert result.exit_code == 4
    (following,) = re.findall(r"flask (vault rotate .*)", result.stderr)
    assert proxied.run(*shlex.split(following)[1:]).exit_code == 0
    assert proxied.changed() == set()


def test_another_field_that_is_written_meanwhile_stays(
    proxied: Shop, vault_proxy: FaultProxy
) -> None:
    theirs = {**FIRST["flask"], "salt": "theirs"}
    before_each_write(vault_proxy, lambda: proxied.mount.write("flask", theirs))
    result = proxied.rotate("--secret", "SECRET_KEY")
    assert result.exit_code == 0
    assert proxied.changed() == {"flask#secret_key", "flask#salt"}


def test_two_at_once_make_one_value_or_one_after_the_other(shop: Shop) -> None:
    """Never two new values at the same time of which one is lost unseen."""

    def rotate(index: int) -> int:
        folder = shop.folder / str(index)
        folder.mkdir()
        mine = dataclasses.replace(shop, folder=folder)
        return (
            mine.create_app()
            .extensions["vault"]
            .client.rotate_secret("flask", "secret_key")
            .version
            or 0
        )

    versions = [end for end in at_once(4, rotate) if isinstance(end, int)]
    assert versions
    assert len(set(versions)) == len(versions)
    assert max(versions) == len(versions) + 1


def test_one_failure_does_not_stop_the_others(
    shop: Shop, vault_server: DevServer
) -> None:
    writes = f'path "{shop.mount.name}/data/stripe" {{ capabilities = ["update"] }}\n'
    auth = approle(
        vault_server, may_read(shop.mount) + writes.replace('"up', '"read", "up')
    )
    shop.more = {"VAULT_TOKEN": None, "VAULT_AUTH": auth}
    result = shop.rotate("--all")

    assert result.exit_code == 7
    assert "flask: Vault denies access" in result.stderr
    assert "stripe: api_key rotated, version 2" in result.stdout
    assert shop.changed() == {"stripe#api_key"}
    assert POLLING in result.stdout, "something was written"


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("conflict", 3),
        ("unreachable", 4),
        ("missing", 5),
        ("no backup", 6),
        ("denied", 7),
    ],
)
@pytest.mark.parametrize("with_database", [False, True])
def test_the_worst_exit_code_wins(
    fault: str,
    code: int,
    with_database: bool,
    proxied: Shop,
    vault_proxy: FaultProxy,
) -> None:
    """Worst is what needs a person; a retry alone mends the least bad of them."""
    secrets = {**SECRETS, **({"DATABASE_URL": DATABASE} if with_database else {})}
    # That the password is missing needs a person.
    proxied.mount.write("database", {"username": "u", "host": "127.0.0.1:1"})
    proxied.more["VAULT_SECRETS"] = secrets

    if fault == "conflict":
        theirs = {**FIRST["flask"], "secret_key": "theirs"}
        before_each_write(vault_proxy, lambda: proxied.mount.write("flask", theirs))
    elif fault == "unreachable":
        vault_proxy.answer(503, match=is_write, times=2)
    elif fault == "missing":
        proxied.mount.write("flask", {"jwt": FIRST["flask"]["jwt"]})
    elif fault == "no backup":
        proxied.backup_dir.parent.mkdir()
        proxied.backup_dir.write_text("")
    else:
        vault_proxy.answer(
            403, {"errors": ["permission denied"]}, match=is_write, times=1
        )

    result = proxied.rotate("--all")
    assert result.exit_code == (5 if with_database else code)

    if fault != "no backup":
        assert "stripe: api_key rotated" in result.stdout


def test_what_is_not_there_yet_is_not_rotated_but_made(shop: Shop) -> None:
    shop.mount.write("flask", {"jwt": "x" * 20})
    result = shop.rotate("--secret", "flask")
    assert result.exit_code == 5
    assert "no field 'secret_key' to rotate" in result.stderr
    assert "flask vault init" in result.stderr
    assert shop.read()["flask"] == {"jwt": "x" * 20}


# The app that is told.


def test_receivers_that_the_factory_connects_are_called(shop: Shop) -> None:
    """They are connected after ``init_app``, so the factory has to run to its end."""
    heard: list[dict[str, object]] = []

    def connect(app: Flask) -> None:
        @secret_rotated.connect_via(app)
        def hear(sender: Flask, **said: object) -> None:
            assert sender is app is current_app._get_current_object()  # type: ignore[attr-defined]
            new = shop.read()
            assert app.config["SECRET_KEY"] == new["flask"]["secret_key"]
            assert app.config["JWT_SECRET_KEY"] == new["flask"]["jwt"]
            heard.append(said)

    shop.after = connect
    assert shop.rotate("--secret", "flask").exit_code == 0
    common = {
        "path": f"{shop.mount.name}/flask",
        "version": 2,
        "previous_version": 1,
        "origin": "local",
    }
    assert heard == [
        {"key": "SECRET_KEY", "field": "secret_key", **common},
        {"key": "JWT_SECRET_KEY", "field": "jwt", **common},
    ]

    heard.clear()
    assert shop.rotate("--restore", shop.backups()[0]).exit_code == 0
    assert [said["key"] for said in heard] == ["SECRET_KEY", "JWT_SECRET_KEY"]
    assert {said["version"] for said in heard} == {3}


def test_a_receiver_that_raises_does_not_make_the_rotation_a_failure(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[str] = []

    def connect(app: Flask) -> None:
        @secret_rotated.connect_via(app)
        def fail(sender: Flask, *, key: str, **extra: object) -> None:
            heard.append(key)
            raise ValueError(sender.config[key])

    shop.after = connect
    assert shop.rotate("--all").exit_code == 0
    assert heard == ["SECRET_KEY", "JWT_SECRET_KEY", "STRIPE_API_KEY"]
    assert caplog.text.count("ValueError") == 3

    for fields in shop.read().values():
        assert not any(value in caplog.text for value in fields.values())


def test_an_app_that_cannot_start_can_still_be_rotated(shop: Shop) -> None:
    """A rotation may be what mends it. But nobody of it is called, and that is said."""
    called: list[Flask] = []
    shop.after = called.append
    shop.more = {"VAULT_SECRETS": {**SECRETS, "LATER": "later#x"}}
    result = shop.rotate("--secret", "SECRET_KEY")
    assert result.exit_code == 0
    assert "receivers of secret_rotated are not called" in result.stderr
    assert "LATER" in result.stderr
    assert shop.changed() == {"flask#secret_key"}
    assert called == []


def test_an_app_that_fails_after_vault_was_read_can_still_be_rotated(
    shop: Shop,
) -> None:
    """Its database is down, say. Its text may hold what it was made of."""

    def fail(app: Flask) -> t.NoReturn:
        raise RuntimeError(app.config["SECRET_KEY"])

    shop.after = fail
    result = shop.rotate("--secret", "SECRET_KEY")
    assert result.exit_code == 0
    assert "receivers of secret_rotated are not called" in result.stderr
    assert "RuntimeError" in result.stderr
    assert shop.changed() == {"flask#secret_key"}


def test_killed_between_the_backup_and_the_write_nothing_is_lost(
    proxied: Shop, vault_proxy: FaultProxy
) -> None:
    (proxied.folder / "app.py").write_text(APP)
    environ = {**proxied.environ(), "VAULT_ADDR": vault_proxy.address}
    command = [sys.executable, "-m", "flask", "vault", "rotate", "--all"]
    vault_proxy.hang(match=is_write, times=1)

    with subprocess.Popen(
        command,
        cwd=proxied.folder,
        env=environ,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        # The mount, the read before, and the write.
        vault_proxy.wait_for(3)
        process.send_signal(signal.SIGKILL)

    vault_proxy.heal()
    assert list(filter(is_write, vault_proxy.requests))
    assert proxied.changed() == set()
    (file,) = proxied.backups()
    backup = BackupStore(proxied.backup_dir, [BACKUP_KEY]).read(file)
    assert backup.before == FIRST["flask"]

    done = subprocess.run(
        command, cwd=proxied.folder, env=environ, capture_output=True, timeout=30
    )
    assert done.returncode == 0
    assert proxied.changed() == {"flask#secret_key"}
    assert len(proxied.backups()) == 2
