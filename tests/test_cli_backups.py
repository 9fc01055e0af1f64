"""``flask vault backups``: list, verify, prune and rekey."""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import datetime as dt
import errno
import json
import os
import pathlib
import pty
import re
import secrets
import subprocess
import sys
import time
import typing as t

import pytest
from click.testing import CliRunner
from click.testing import Result
from flask import Flask
from flask.cli import ScriptInfo
from hypothesis import given
from hypothesis import strategies

from flask_vault import FlaskVault
from flask_vault.cli import vault_group
from flask_vault.rotation.backup import BackupInfo
from flask_vault.rotation.backup import BackupStore
from flask_vault.rotation.envelope import BackupHeader
from flask_vault.rotation.upkeep import Upkeep
from flask_vault.testing import DevServer
from flask_vault.testing import FaultProxy
from flask_vault.testing.api import Api
from tests.helpers import approle
from tests.helpers import at_once
from tests.helpers import BACKUP_KEY

OLD_KEY = "o" * 42 + "A="
CANARY = "canary-93bb"
#: A policy must not be empty.
NO_RIGHTS = 'path "no/such/path" { capabilities = ["deny"] }'

#: The app for the tests that run it as a program.
APP = """\
from flask import Flask
from flask_vault import FlaskVault

app = Flask(__name__)
app.config.from_prefixed_env()
FlaskVault(app)
"""


@dataclasses.dataclass
class Shop:
    """An app whose Vault is away, unless a test says otherwise, and its backups."""

    directory: pathlib.Path
    config: dict[str, object] = dataclasses.field(default_factory=dict)
    now: dt.datetime = dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc)

    def create_app(self) -> Flask:
        app = Flask("shop")
        app.config.from_mapping(
            {
                "VAULT_ADDR": "http://127.0.0.1:1",
                "VAULT_TOKEN": "not-a-token",
                "VAULT_SECRETS": {"SECRET_KEY": "flask#secret_key"},
                "VAULT_BACKUP_DIR": str(self.directory),
                "VAULT_BACKUP_KEYS": [BACKUP_KEY],
                **self.config,
            }
        )
        FlaskVault(app)
        return app

    def run(self, *arguments: str) -> Result:
        result = CliRunner().invoke(
            vault_group,
            ("backups", *arguments),
            obj=ScriptInfo(create_app=self.create_app),
        )

        if not isinstance(result.exception, SystemExit | None):
            raise result.exception

        assert CANARY not in result.output
        assert "Traceback" not in result.output
        return result

    def json(self, *arguments: str) -> t.Any:
        return json.loads(self.run(*arguments, "--json").stdout)

    def write(
        self,
        path: str = "flask",
        *fields: str,
        keys: cabc.Sequence[str] = (BACKUP_KEY,),
    ) -> str:
        """Make a backup, a minute after the one before."""
        self.now += dt.timedelta(minutes=1)
        store = BackupStore(self.directory, keys, clock=lambda: self.now)
        backup = store.write(
            operation=secrets.token_hex(16),
            path=f"secret/{path}",
            label=path,
            namespace=None,
            fields=fields or ["secret_key"],
            from_version=1,
            before={"secret_key": f"{CANARY}-{self.now.minute}"},
            after={},
            kv_version=2,
        )
        return backup.name

    def names(self) -> set[str]:
        return {file.name for file in self.directory.iterdir()}

    def values(self, *keys: str) -> dict[str, object]:
        """What the backups hold that these keys open."""
        store = BackupStore(self.directory, keys or [BACKUP_KEY])
        return {
            info.name: dict(store.read(info.name).before)
            for info in store.list(verify=True)
            if info.verified
        }

    def break_file(self, name: str) -> None:
        file = self.directory / name
        file.write_bytes(file.read_bytes()[:-9])


@pytest.fixture
def shop(tmp_path: pathlib.Path) -> Shop:
    return Shop(tmp_path / "vault-backups")


@pytest.mark.parametrize(
    "arguments", [("list",), ("verify",), ("prune", "--keep", "1", "--yes"), ("rekey",)]
)
def test_there_may_be_no_backups(shop: Shop, arguments: tuple[str, ...]) -> None:
    result = shop.run(*arguments)
    assert result.exit_code == 0
    assert result.stderr == ""
    assert result.stdout
    assert shop.run(*arguments, "--json").exit_code == 0
    assert not shop.directory.exists()


@pytest.mark.parametrize(
    "arguments", [("list",), ("verify",), ("prune", "--keep", "1", "--yes"), ("rekey",)]
)
def test_a_folder_that_is_not_safe_is_refused(
    shop: Shop, arguments: tuple[str, ...]
) -> None:
    shop.write()
    shop.directory.chmod(0o755)
    result = shop.run(*arguments)
    assert result.exit_code == 6
    assert "VAULT_BACKUP_DIR" in result.stderr


@pytest.mark.parametrize(
    "arguments", [("verify",), ("prune", "--keep", "1", "--yes"), ("rekey",)]
)
def test_without_a_key_nothing_can_be_opened(
    shop: Shop, arguments: tuple[str, ...]
) -> None:
    name = shop.write()
    shop.config["VAULT_BACKUP_KEYS"] = []
    result = shop.run(*arguments)
    assert result.exit_code == 6
    assert "VAULT_BACKUP_KEYS is not set" in result.stderr
    assert shop.names() == {name}


def test_list_is_what_rotate_lists(shop: Shop) -> None:
    first, second = shop.write(), shop.write("stripe", "api_key")
    shop.break_file(first)
    rows = shop.json("list")
    assert [row["file"] for row in rows] == [second, first]
    assert rows[0]["path"] == "secret/stripe"
    assert "cannot be decrypted" in rows[1]["problem"]
    assert shop.run("list").exit_code == 0


# verify


def test_verify_tells_which_key_opened_each(shop: Shop) -> None:
    old, new = shop.write(keys=[OLD_KEY]), shop.write()
    shop.config["VAULT_BACKUP_KEYS"] = [BACKUP_KEY, OLD_KEY]
    result = shop.run("verify")

    assert result.exit_code == 0
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert lines[1].split() == [new, "secret/flask", "VAULT_BACKUP_KEYS[0]"]
    assert lines[2].split() == [old, "secret/flask", "VAULT_BACKUP_KEYS[1]"]
    assert lines[3] == "2 of 2 backups are good."

    rows = shop.json("verify")
    assert [row["good"] for row in rows] == [True, True]
    assert rows[1] == {
        "file": old,
        "path": "secret/flask",
        "fields": ["secret_key"],
        "version": 1,
        "created": "2026-01-01T00:01:00+00:00",
        "good": True,
        "opened_by": ["VAULT_BACKUP_KEYS[1]"],
        "problem": None,
    }


def test_verify_ends_with_an_error_when_one_is_not_good(shop: Shop) -> None:
    good, broken, locked = shop.write(), shop.write(), shop.write(keys=[OLD_KEY])
    shop.break_file(broken)
    result = shop.run("verify")

    assert result.exit_code == 5
    assert f"{good}  secret/flask  VAULT_BACKUP_KEYS[0]" in result.stdout
    assert "1 of 3 backups are good." in result.stdout
    errors = result.stderr.splitlines()
    assert {line.split()[1] for line in errors} == {broken, locked}
    assert all("cannot be decrypted" in line for line in errors)

    rows = {row["file"]: row for row in shop.json("verify")}
    assert [rows[x]["good"] for x in (good, broken, locked)] == [True, False, False]


def test_verify_does_not_show_a_path_that_is_not_proven(shop: Shop) -> None:
    name = shop.write()
    file = shop.directory / name
    file.write_text(file.read_text().replace("secret/flask", "secret/other"))
    assert "secret/other" not in shop.run("verify").stdout


# prune


def test_prune_keeps_the_newest_of_each_path(shop: Shop) -> None:
    flask = [shop.write("flask") for _ in range(5)]
    stripe = [shop.write("stripe") for _ in range(2)]
    result = shop.run("prune", "--keep", "3", "--yes")

    assert result.exit_code == 0
    assert "Removed 2 of 7 backups." in result.stdout
    assert all(name in result.stdout for name in flask[:2])
    assert shop.names() == {*flask[2:], *stripe}
    assert shop.json("prune", "--keep", "3", "--yes")["removed"] == []


def test_prune_keeps_the_newest_of_each_field(shop: Shop) -> None:
    """A restore brings back the fields that the rotation changed, and no others."""
    yearly = [shop.write("flask", "jwt", "salt") for _ in range(2)]
    monthly = [shop.write("flask", "secret_key") for _ in range(4)]
    shop.run("prune", "--keep", "2", "--yes")
    assert shop.names() == {yearly[-1], *monthly[-2:]}


def test_prune_counts_and_removes_only_what_can_be_opened(shop: Shop) -> None:
    """The newest good one stays, however many bad ones are newer."""
    good = [shop.write() for _ in range(3)]
    broken = [shop.write() for _ in range(3)]
    locked = shop.write(keys=[OLD_KEY])

    for name in broken:
        shop.break_file(name)

    (shop.directory / "notes.txt").write_text("")
    result = shop.run("prune", "--keep", "1", "--yes")

    assert result.exit_code == 0
    assert shop.names() == {good[-1], *broken, locked, "notes.txt"}
    assert f"{locked} stays: it cannot be decrypted" in result.stderr


def test_prune_dry_run_removes_nothing(shop: Shop) -> None:
    names = [shop.write() for _ in range(3)]
    result = shop.run("prune", "--keep", "1", "--dry-run")
    assert result.exit_code == 0
    assert "Would remove 2 of 3 backups." in result.stdout
    assert shop.names() == set(names)
    assert shop.json("prune", "--keep", "1", "--dry-run") == {
        "would_remove": names[1::-1],
        "kept": names[2:],
    }
    assert shop.names() == set(names)


@pytest.mark.parametrize("arguments", [(), ("--keep", "0"), ("--keep", "-1")])
def test_prune_never_removes_all(shop: Shop, arguments: tuple[str, ...]) -> None:
    name = shop.write()
    assert shop.run("prune", "--yes", *arguments).exit_code == 2
    assert shop.names() == {name}


def test_prune_refuses_where_nobody_can_be_asked(shop: Shop) -> None:
    names = {shop.write() for _ in range(3)}
    result = shop.run("prune", "--keep", "1")
    assert result.exit_code == 2
    assert "--yes" in result.stderr
    assert shop.names() == names


@pytest.mark.parametrize("answer", ["y", "n"])
def test_prune_asks_a_person(shop: Shop, tmp_path: pathlib.Path, answer: str) -> None:
    names = [shop.write() for _ in range(3)]
    (tmp_path / "app.py").write_text(APP)
    ours, theirs = pty.openpty()
    os.write(ours, f"{answer}\n".encode())
    done = subprocess.run(
        [sys.executable, "-m", "flask", "vault", "backups", "prune", "--keep", "1"],
        cwd=tmp_path,
        env={
            **os.environ,
            "VAULT_ADDR": "http://127.0.0.1:1",
            "VAULT_TOKEN": "not-a-token",
            "FLASK_VAULT_BACKUP_DIR": str(shop.directory),
            "FLASK_VAULT_BACKUP_KEYS": BACKUP_KEY,
        },
        stdin=theirs,
        capture_output=True,
        timeout=30,
    )
    os.close(ours)
    os.close(theirs)

    assert b"Remove 2 of 3 backups?" in done.stderr
    assert done.returncode == (0 if answer == "y" else 1)
    assert shop.names() == (set(names[2:]) if answer == "y" else set(names))


def test_prune_clears_what_killed_runs_have_left(shop: Shop) -> None:
    name = shop.write()
    old, young = f"flask.{'0' * 16}.tmp", f"flask.{'1' * 16}.tmp"

    for leftover in (old, young, "mine.tmp"):
        (shop.directory / leftover).write_text("")
        os.utime(shop.directory / leftover, (time.time() - 3700,) * 2)

    os.utime(shop.directory / young)
    (shop.directory / f"link.{'2' * 16}.tmp").symlink_to(name)
    shop.run("prune", "--keep", "1", "--yes")
    assert shop.names() == {name, young, "mine.tmp", f"link.{'2' * 16}.tmp"}


def test_prunes_at_the_same_time_leave_the_newest(shop: Shop) -> None:
    names = [shop.write() for _ in range(30)]
    store = BackupStore(shop.directory, [BACKUP_KEY])

    def prune(index: int) -> None:
        upkeep = Upkeep(store)
        upkeep.prune(upkeep.plan(2))

    assert at_once(8, prune) == [None] * 8
    assert shop.names() == set(names[-2:])


def test_a_backup_that_is_made_while_a_person_thinks_costs_no_other(
    shop: Shop,
) -> None:
    names = [shop.write() for _ in range(3)]
    upkeep = Upkeep(BackupStore(shop.directory, [BACKUP_KEY]))
    plan = upkeep.plan(2)
    late = shop.write()
    upkeep.prune(plan)
    assert shop.names() == {*names[1:], late}


def test_what_cannot_be_removed_is_told(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        shop.write()

    def unlink(*args: object, **kwargs: object) -> t.NoReturn:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "unlink", unlink)
    result = shop.run("prune", "--keep", "1", "--yes")
    assert result.exit_code == 6
    assert "cannot be removed" in result.stderr
    assert "EROFS" in result.stderr


class Files:
    """A store with these files and nothing on the disk."""

    sealer = BackupStore(pathlib.Path("x"), [BACKUP_KEY]).sealer

    def __init__(self, infos: list[BackupInfo]) -> None:
        self.infos = infos

    def list(self, *, verify: bool) -> list[BackupInfo]:
        assert verify
        return self.infos


@given(
    strategies.integers(1, 4),
    strategies.lists(
        strategies.tuples(
            strategies.sampled_from(["a", "b"]),
            strategies.sets(strategies.sampled_from("xyz"), min_size=1),
            strategies.booleans(),
        ),
        max_size=12,
    ),
)
def test_retention_never_takes_the_newest_good_one(
    keep: int, made: list[tuple[str, set[str], bool]]
) -> None:
    infos = [
        BackupInfo(
            f"{number}.json",
            BackupHeader(path, None, tuple(sorted(fields)), 1, 2, "0" * 32, Shop.now),
            verified=verified,
            problem=None if verified else "is bad",
        )
        for number, (path, fields, verified) in enumerate(made)
    ]
    plan = Upkeep(t.cast("BackupStore", Files(infos))).plan(keep)
    removed = {info.name for info in plan.removed}
    assert {*plan.removed, *plan.kept} == set(infos)
    assert all(info.verified for info in plan.removed)

    for path in ("a", "b"):
        good = [x for x in infos if x.verified and x.header and x.header.path == path]
        assert removed.isdisjoint(info.name for info in good[:keep])
        # At most so many as are asked for, and one for each field.
        assert sum(info.name not in removed for info in good) <= keep + 3

        for field in "xyz":
            of_field = [x for x in good if x.header and field in x.header.fields]
            assert removed.isdisjoint(info.name for info in of_field[:1])


# rekey


def test_rekey_seals_with_the_first_key(shop: Shop) -> None:
    for _ in range(2):
        shop.write(keys=[OLD_KEY])

    new = shop.write()
    untouched = (shop.directory / new).read_bytes()
    before = shop.values(BACKUP_KEY, OLD_KEY)
    headers = [info.header for info in BackupStore(shop.directory, []).list()]
    shop.config["VAULT_BACKUP_KEYS"] = [BACKUP_KEY, OLD_KEY]
    result = shop.run("rekey")

    assert result.exit_code == 0
    assert result.stdout.count("sealed anew") == 2
    assert f"{new}: has the newest keys already." in result.stdout
    assert "No backup needs the other keys any more." in result.stdout
    assert shop.values() == before
    assert shop.values(OLD_KEY) == {}
    assert headers == [info.header for info in BackupStore(shop.directory, []).list()]
    assert (shop.directory / new).read_bytes() == untouched
    assert {file.stat().st_mode & 0o777 for file in shop.directory.iterdir()} == {0o600}
    assert {row["done"] for row in shop.json("rekey")} == {False}


def test_rekey_leaves_what_it_cannot_open(shop: Shop) -> None:
    old, broken = shop.write(keys=[OLD_KEY]), shop.write()
    shop.break_file(broken)
    before = {name: (shop.directory / name).read_bytes() for name in shop.names()}
    result = shop.run("rekey")

    assert result.exit_code == 5
    assert {line.split()[1] for line in result.stderr.splitlines()} == {old, broken}
    assert "No backup needs" not in result.stdout
    assert before == {n: (shop.directory / n).read_bytes() for n in shop.names()}


@pytest.mark.parametrize("call", ["write", "fsync", "rename", "unlink"])
def test_rekey_killed_anywhere_loses_nothing_and_goes_on(shop: Shop, call: str) -> None:
    for _ in range(3):
        shop.write(keys=[OLD_KEY])

    before = shop.values(OLD_KEY)
    code = f"""
import os, signal
from pathlib import Path
from flask_vault.rotation.backup import BackupStore
from flask_vault.rotation.upkeep import Upkeep

store = BackupStore(Path({str(shop.directory)!r}), [{BACKUP_KEY!r}, {OLD_KEY!r}])
files = Upkeep(store).rekey()
assert next(files).done
os.{call} = lambda *args, **kwargs: os.kill(os.getpid(), signal.SIGKILL)
list(files)
"""
    done = subprocess.run([sys.executable, "-c", code], timeout=30)
    # A file that is replaced needs no unlink.
    assert done.returncode == (0 if call == "unlink" else -9)
    assert shop.values(BACKUP_KEY, OLD_KEY) == before

    shop.config["VAULT_BACKUP_KEYS"] = [BACKUP_KEY, OLD_KEY]
    assert shop.run("rekey").exit_code == 0
    assert shop.values() == before


@pytest.mark.parametrize("call", ["write", "fsync", "rename"])
def test_rekey_on_a_full_disk_leaves_the_old_file(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    name = shop.write(keys=[OLD_KEY])
    before = shop.values(OLD_KEY)

    def full(*args: object, **kwargs: object) -> t.NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    shop.config["VAULT_BACKUP_KEYS"] = [BACKUP_KEY, OLD_KEY]

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        result = shop.run("rekey")

    assert result.exit_code == 6
    assert "ENOSPC" in result.stderr
    assert shop.values(OLD_KEY) == before
    assert shop.names() == {name}


def test_rekey_keeps_the_old_file_when_the_new_one_cannot_be_read_back(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = shop.write(keys=[OLD_KEY])
    before = shop.values(OLD_KEY)
    write = os.write

    def corrupting(file: int, data: memoryview) -> int:
        bad = bytearray(data)
        bad[-10] ^= 1
        return write(file, bad)

    shop.config["VAULT_BACKUP_KEYS"] = [BACKUP_KEY, OLD_KEY]

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", corrupting)
        result = shop.run("rekey")

    assert result.exit_code == 5
    assert shop.values(OLD_KEY) == before
    assert shop.names() == {name}


def test_rekey_puts_nothing_in_the_place_of_a_link(
    shop: Shop, tmp_path: pathlib.Path
) -> None:
    name = shop.write(keys=[OLD_KEY])
    (shop.directory / name).rename(tmp_path / "elsewhere")
    (shop.directory / name).symlink_to(tmp_path / "elsewhere")
    before = (tmp_path / "elsewhere").read_bytes()
    shop.config["VAULT_BACKUP_KEYS"] = [BACKUP_KEY, OLD_KEY]

    assert shop.run("rekey").exit_code == 5
    assert (shop.directory / name).is_symlink()
    assert (tmp_path / "elsewhere").read_bytes() == before


# With VAULT_BACKUP_TRANSIT_KEY


@pytest.fixture
def with_transit(
    shop: Shop, vault_server: DevServer, vault_proxy: FaultProxy
) -> cabc.Iterator[str]:
    """The name of the transit key, which the app reaches through the proxy."""
    mount = f"transit-{secrets.token_hex(6)}"
    api, token = Api(vault_server.address), vault_server.root_token
    api.call("POST", f"sys/mounts/{mount}", {"type": "transit"}, token=token)
    api.call("POST", f"{mount}/keys/backups", {}, token=token)
    shop.config |= {
        "VAULT_ADDR": vault_proxy.address,
        "VAULT_TOKEN": token,
        "VAULT_BACKUP_TRANSIT_KEY": f"{mount}/backups",
    }
    yield f"{mount}/backups"
    vault_server.disable_mount(mount)


def test_rekey_adds_the_transit_key_and_drops_it(shop: Shop, with_transit: str) -> None:
    name = shop.write()
    assert shop.json("verify")[0]["opened_by"] == ["VAULT_BACKUP_KEYS[0]"]

    assert shop.run("rekey").exit_code == 0
    (row,) = shop.json("verify")
    assert row["opened_by"] == ["VAULT_BACKUP_KEYS[0]", with_transit]
    assert "was sealed anew" not in shop.run("rekey").stdout

    shop.config["VAULT_BACKUP_KEYS"] = []
    assert shop.run("rekey").exit_code == 0
    (row,) = shop.json("verify")
    assert row["opened_by"] == [with_transit]

    shop.config["VAULT_BACKUP_KEYS"] = [BACKUP_KEY]
    assert shop.run("rekey").exit_code == 0
    del shop.config["VAULT_BACKUP_TRANSIT_KEY"]
    assert shop.run("rekey").exit_code == 0
    assert json.loads((shop.directory / name).read_text())["version"] == 1
    assert shop.values() == {name: {"secret_key": f"{CANARY}-1"}}


def test_while_vault_is_away_the_other_keys_verify(
    shop: Shop, with_transit: str, vault_proxy: FaultProxy
) -> None:
    for _ in range(3):
        shop.write()

    shop.run("rekey")
    vault_proxy.cut()
    result = shop.run("verify")
    assert result.exit_code == 4
    assert "3 of 3 backups are good." in result.stdout
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: Not every key could be tried: ")


def test_while_vault_is_away_nothing_is_removed_that_it_alone_opens(
    shop: Shop, with_transit: str, vault_proxy: FaultProxy
) -> None:
    names = {shop.write() for _ in range(3)}
    shop.run("rekey")
    shop.config["VAULT_BACKUP_KEYS"] = []
    vault_proxy.cut()

    for arguments in (("prune", "--keep", "1", "--yes"), ("verify",), ("rekey",)):
        assert shop.run(*arguments).exit_code == 4

    assert shop.names() == names


def test_rekey_that_loses_vault_names_the_command_that_goes_on(
    shop: Shop, with_transit: str, vault_proxy: FaultProxy
) -> None:
    for _ in range(3):
        shop.write()

    before = shop.values()
    asked = vault_proxy.count
    # One request for the version, one for the first file.
    vault_proxy.answer(
        503,
        {"errors": ["Vault is sealed"]},
        times=None,
        match=lambda request: vault_proxy.count >= asked + 2,
    )
    result = shop.run("rekey")
    assert result.exit_code == 4
    assert result.stdout.count("sealed anew") == 1
    assert "flask vault backups rekey" in result.stderr
    assert shop.values() == before

    vault_proxy.heal()
    assert shop.run("rekey").stdout.count("sealed anew") == 2
    assert shop.values() == before


def test_a_role_that_may_not_use_the_transit_key(
    shop: Shop, with_transit: str, vault_server: DevServer
) -> None:
    shop.write()
    shop.run("rekey")
    shop.config["VAULT_ROTATE_AUTH"] = approle(vault_server, NO_RIGHTS)
    shop.config["VAULT_TOKEN"] = None

    result = shop.run("verify")
    assert result.exit_code == 7
    assert re.search(
        r"must grant 'update' on 'transit-\w+/decrypt/backups'", result.stderr
    )
    assert "1 of 1 backups are good." in result.stdout
    assert shop.run("rekey").exit_code == 7
