"""``flask vault rotate`` of what is in use elsewhere, too."""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import datetime
import json
import pathlib
import re
import shlex
import typing as t

import pytest
from click.testing import CliRunner
from click.testing import Result
from flask import Flask
from flask.cli import ScriptInfo

from flask_vault import FlaskVault
from flask_vault import secret_rotated
from flask_vault import VaultClient
from flask_vault.cli import vault_group
from flask_vault.errors import VaultError
from flask_vault.rotation.journal import record_of
from flask_vault.rotation.steps import seam
from flask_vault.rotation.tasks import Rules
from flask_vault.rotations import Rotations
from flask_vault.testing import DevServer
from flask_vault.testing import FaultProxy
from flask_vault.testing.plugin import VaultMount
from tests.apps import provider
from tests.helpers import approle
from tests.helpers import BACKUP_KEY
from tests.helpers import is_write
from tests.postgres import Postgres

FIRST = "first-password-77d0"

DATABASE: dict[str, t.Any] = {
    "ref": "database",
    "template": "postgresql+psycopg://{username}:{password}@{host}/postgres",
    "rotate": {"kind": "database", "field": "password"},
}

KEY: dict[str, t.Any] = {"ref": "provider#api_key", "rotate": provider.ROTATE}

SIGNING: dict[str, t.Any] = {"ref": "flask#secret_key", "rotate": "token"}


@dataclasses.dataclass
class Shop:
    """An app with one value of each kind."""

    mount: VaultMount
    postgres: Postgres
    folder: pathlib.Path
    secrets: dict[str, t.Any]
    more: dict[str, object] = dataclasses.field(default_factory=dict)
    heard: list[str] = dataclasses.field(default_factory=list)

    def create_app(self) -> Flask:
        app = Flask("shop")
        app.config.from_mapping(
            {
                **self.mount.config(),
                "VAULT_SECRETS": self.secrets,
                "VAULT_BACKUP_DIR": str(self.folder / "backups"),
                "VAULT_BACKUP_KEYS": [BACKUP_KEY],
                "VAULT_PROPAGATION_WINDOW": 0,
                "VAULT_AUDIT_LOG": str(self.folder / "audit.log"),
                **self.more,
            }
        )
        FlaskVault(app)

        @secret_rotated.connect_via(app, weak=False)
        def hear(sender: Flask, *, key: str, **extra: object) -> None:
            self.heard.append(key)

        return app

    def run(self, *arguments: str) -> Result:
        result = CliRunner().invoke(
            vault_group, arguments, obj=ScriptInfo(create_app=self.create_app)
        )

        if not isinstance(result.exception, SystemExit | None):
            raise result.exception

        for value in self.values():
            assert value not in result.output

        return result

    def rotate(self, *arguments: str) -> Result:
        return self.run("rotate", *arguments)

    def follow(self, result: Result) -> Result:
        """Run the command that a result names at its end."""
        following = re.findall(r"flask (vault rotate [^\n]*)", result.output)[-1]
        return self.run(*shlex.split(following)[1:])

    def values(self) -> set[str]:
        return {
            self.mount.read("database")["password"],
            self.mount.read("provider")["api_key"],
            self.mount.read("flask")["secret_key"],
        }

    def state(self, path: str = "database", field: str = "password") -> str | None:
        record = record_of(self.mount.read(path), field)
        return None if record is None else record.state

    def live_logs_in(self) -> bool:
        live = self.mount.read("database")
        return self.postgres.logs_in(live["username"], live["password"])

    def audited(self) -> list[dict[str, t.Any]]:
        text = (self.folder / "audit.log").read_text()
        return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def shop(
    vault_mount: VaultMount,
    postgres: Postgres,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Shop:
    monkeypatch.setenv(provider.FOLDER, str(tmp_path))
    vault_mount.write(
        "database",
        {
            "username": postgres.create_user(FIRST),
            "password": FIRST,
            "host": f"127.0.0.1:{postgres.port}",
        },
    )
    vault_mount.write("provider", {"api_key": provider.make()})
    vault_mount.write("flask", {"secret_key": "first-secret-key", "salt": "x"})
    secrets = {"DATABASE_URL": DATABASE, "API_KEY": KEY, "SECRET_KEY": SIGNING}
    return Shop(vault_mount, postgres, tmp_path, secrets)


def test_all_rotates_every_kind(shop: Shop) -> None:
    before = shop.values()
    result = shop.rotate("--all")
    assert result.exit_code == 0, result.output
    assert not before & shop.values()
    assert shop.live_logs_in()
    assert list(provider.keys()) == [shop.mount.read("provider")["api_key"]]
    assert result.stdout.count(" done.") == 3
    assert sorted(shop.heard) == ["API_KEY", "DATABASE_URL", "SECRET_KEY"]


def test_no_wait_ends_where_a_wait_begins_and_the_next_run_goes_on(shop: Shop) -> None:
    """The form for cron: nobody sits and waits."""
    shop.more["VAULT_PROPAGATION_WINDOW"] = 0.3
    result = shop.rotate("--secret", "DATABASE_URL", "--no-wait")
    assert result.exit_code == 0
    assert shop.state() == "PREPARED"
    last = result.stdout.splitlines()[-1]
    assert re.search(r"operation [0-9a-f]{32}, state PREPARED\. To go on: ", last)
    assert "flask vault rotate --secret DATABASE_URL --resume" in last
    assert shop.mount.read("database")["password"] == FIRST
    operation = re.findall("operation ([0-9a-f]{32})", last)[0]

    result = shop.follow(result)
    assert result.exit_code == 0
    assert operation in result.stdout
    assert shop.state() is None
    assert shop.live_logs_in()


def test_all_wait_together(shop: Shop) -> None:
    shop.more["VAULT_PROPAGATION_WINDOW"] = 0.5
    other = {**DATABASE, "ref": "database-2"}
    user = shop.postgres.create_user(FIRST)
    shop.mount.write("database-2", {**shop.mount.read("database"), "username": user})
    shop.secrets["DATABASE_2_URL"] = other
    steps: list[str] = []

    with seam(steps.append):
        assert (
            shop.rotate("--secret", "database", "--secret", "database-2").exit_code == 0
        )

    for last, first in (("prepared", "applying"), ("promoted", "revoked")):
        ends = [i for i, step in enumerate(steps) if step == last]
        assert len(ends) == 2
        assert max(ends) < steps.index(first)


def test_one_that_fails_does_not_stop_the_others(shop: Shop) -> None:
    shop.mount.write("database", {**shop.mount.read("database"), "password": "drifted"})
    result = shop.rotate("--all")
    assert result.exit_code == 5
    assert "nothing was changed: correct it first" in result.stderr
    assert result.stdout.count(" done.") == 2
    assert len(provider.made()) == 2


def test_resume_begins_nothing(shop: Shop) -> None:
    before = shop.values()
    result = shop.rotate("--resume")
    assert result.exit_code == 0
    assert "no rotation of password is open" in result.stdout
    assert shop.values() == before


def stop_at(step: str) -> cabc.Callable[[str], None]:
    def at(reached: str) -> None:
        if reached == step:
            raise KeyboardInterrupt

    return at


def interrupted(shop: Shop, name: str, step: str) -> None:
    with seam(stop_at(step)):
        result = CliRunner().invoke(
            vault_group,
            ["rotate", "--secret", name],
            obj=ScriptInfo(create_app=shop.create_app),
        )

    assert result.exit_code == 1
    assert "To go on: flask vault rotate --resume" in result.stderr


@pytest.mark.parametrize("step", ["prepared", "applying", "fenced"])
def test_abort_before_the_target_was_changed(step: str, shop: Shop) -> None:
    interrupted(shop, "DATABASE_URL", step)
    result = shop.rotate("--abort", "--secret", "DATABASE_URL")
    assert result.exit_code == 0
    assert "given up, the old value stays" in result.stdout
    assert shop.mount.read("database")["password"] == FIRST
    assert shop.state() is None
    assert shop.live_logs_in()


@pytest.mark.parametrize("step", ["committed", "verified", "promoted"])
def test_no_abort_after_it_was_changed(step: str, shop: Shop) -> None:
    interrupted(shop, "DATABASE_URL", step)
    before = shop.state()
    result = shop.rotate("--abort", "--secret", "DATABASE_URL")
    assert result.exit_code == 5
    assert shop.state() == before
    assert shop.follow(result).exit_code == 0
    assert shop.live_logs_in()


def test_abort_takes_back_what_a_provider_made(shop: Shop) -> None:
    (first,) = provider.keys()

    for step in ("intended", "created", "prepared"):
        interrupted(shop, "API_KEY", step)
        assert shop.rotate("--abort").exit_code == 0
        assert list(provider.keys()) == [first]
        assert shop.state("provider", "api_key") is None


def test_a_provider_that_cannot_be_asked_needs_a_person(shop: Shop) -> None:
    """There may be a key that nobody knows, so no second one is made."""
    blind = {k: v for k, v in provider.ROTATE.items() if k not in ("find", "discard")}
    shop.secrets["API_KEY"] = {**KEY, "rotate": blind}
    interrupted(shop, "API_KEY", "created")
    result = shop.rotate("--secret", "API_KEY")
    assert result.exit_code == 5
    assert "cannot find out whether there is one" in result.stderr
    assert len(provider.made()) == 2
    assert shop.rotate("--abort").exit_code == 5
    assert shop.rotate("--abort", "--yes").exit_code == 0
    assert shop.state("provider", "api_key") is None


def test_the_command_names_what_is_left_when_vault_goes_away(
    shop: Shop, vault_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    impatient = Rules(window=0, outlast=0.5, verify_for=0.5)
    monkeypatch.setattr(Rotations, "rules", impatient)
    shop.more["VAULT_ADDR"] = vault_proxy.address

    def cut(step: str) -> None:
        if step == "committed":
            vault_proxy.cut()

    with seam(cut):
        result = shop.rotate("--secret", "DATABASE_URL")

    assert result.exit_code == 4
    last = result.stderr.splitlines()[-1]
    assert re.search(r"operation [0-9a-f]{32}, state APPLYING\. To go on: ", last)
    vault_proxy.heal()
    assert shop.follow(result).exit_code == 0
    assert shop.live_logs_in()


def test_compromised_waits_for_nobody(shop: Shop) -> None:
    shop.more["VAULT_PROPAGATION_WINDOW"] = 3600
    result = shop.rotate("--all", "--compromised")
    assert result.exit_code == 0
    assert shop.live_logs_in()
    assert "the older versions are destroyed" in result.stdout

    with pytest.raises(VaultError, match="404"):
        shop.mount.read("flask", version=1)

    assert shop.mount.read("flask")["salt"] == "x"


def test_due_is_what_is_older_than_its_max_age(shop: Shop) -> None:
    shop.secrets["SECRET_KEY"] = {**SIGNING, "max_age": 0}
    shop.secrets["DATABASE_URL"] = {**DATABASE, "max_age": "30d"}
    before = shop.mount.read("database")
    result = shop.rotate("--due")
    assert result.exit_code == 0
    assert "flask: secret_key rotated" in result.stdout
    assert shop.mount.read("database") == before
    assert len(provider.made()) == 1, "without max_age it is never due"

    shop.secrets["SECRET_KEY"] = {**SIGNING, "max_age": "1h"}
    assert "older than the 'max_age'" in shop.rotate("--due").stdout


def test_due_is_counted_for_each_field(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A document that was written lately may hold a value that was not."""
    shop.mount.write("flask", {"secret_key": "first-secret-key", "salt": "y"})
    client = VaultClient.from_mapping(shop.create_app().config, {})
    (target,) = client.catalog.plan("SECRET_KEY").targets
    first, second = (s.created for s in client.versions.of(target.location).stamps)
    now = second + datetime.timedelta(hours=1)
    monkeypatch.setattr(client.kv, "now", lambda: now)
    since_between = (now - first).total_seconds() - (second - first).total_seconds() / 2

    def is_older(field: str, seconds: float, unknown: bool = False) -> bool:
        return client.rotations.is_older(
            target.location, field, seconds, unknown=unknown
        )

    assert is_older("secret_key", since_between)
    assert not is_older("salt", since_between)
    assert is_older("salt", 3599)
    assert not is_older("secret_key", 7200, unknown=True), "there was no older version"


def test_a_history_that_is_cut_short_makes_nothing_due_that_was_just_rotated(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each rotation writes five versions, and a mount keeps ten."""
    monkeypatch.setattr(VaultClient, "keep_history", lambda self, place: False)
    shop.secrets["DATABASE_URL"] = {**DATABASE, "max_age": "30d"}

    for _ in range(3):
        assert shop.rotate("--secret", "DATABASE_URL").exit_code == 0

    assert "nothing to do" in shop.rotate("--due").stdout

    # Of this one nobody knows how old it is.
    for number in range(11):
        shop.mount.write("database", {**shop.mount.read("database"), "note": number})

    assert "password rotated" in shop.rotate("--due").stdout
    assert "nothing to do" in shop.rotate("--due").stdout


def test_a_rotation_has_more_versions_kept(shop: Shop) -> None:
    for _ in range(3):
        assert shop.rotate("--secret", "DATABASE_URL").exit_code == 0

    assert shop.mount.read("database", version=1)["password"] == FIRST


def test_what_is_open_is_due(shop: Shop) -> None:
    shop.secrets["DATABASE_URL"] = {**DATABASE, "max_age": "30d"}
    interrupted(shop, "DATABASE_URL", "applying")
    assert shop.rotate("--due").exit_code == 0
    assert shop.state() is None


def test_min_age_leaves_alone_what_was_just_rotated(shop: Shop) -> None:
    before = shop.values()
    result = shop.rotate("--all", "--min-age", "5m")
    assert result.exit_code == 0
    assert "changed lately: there is nothing to do" in result.stdout
    assert shop.values() == before
    assert shop.rotate("--all", "--min-age", "0").exit_code == 0
    assert not shop.values() & before


def test_json_has_everything_and_no_value(shop: Shop) -> None:
    shop.more["VAULT_PROPAGATION_WINDOW"] = 0.3
    result = shop.rotate("--all", "--json", "--no-wait")
    ends = {end["path"]: end for end in json.loads(result.stdout)}
    assert result.stderr == ""
    assert ends["flask"]["state"] == "done"
    assert ends["flask"]["next"] is None
    assert ends["database"]["state"] == "PREPARED"
    following = "flask vault rotate --secret database --resume"
    assert ends["database"]["next"] == following
    assert {end["code"] for end in ends.values()} == {0}


def test_dry_run_tells_steps_and_what_is_open(shop: Shop) -> None:
    interrupted(shop, "DATABASE_URL", "applying")
    stuck = shop.mount.read("database")
    result = shop.rotate("--all", "--dry-run")
    assert result.exit_code == 0
    assert re.search(
        r"^database +password +database +APPLYING, operation [0-9a-f]{32} +prepare,"
        r" back up, apply, verify, promote, revoke$",
        result.stdout,
        re.M,
    )
    assert shop.mount.read("database") == stuck


def test_abort_and_resume_are_two_things(shop: Shop) -> None:
    assert shop.rotate("--abort", "--resume").exit_code == 2
    assert shop.rotate("--all", "--min-age", "soon").exit_code == 2


# How many requests it takes.


def test_twenty_signing_keys_in_four_documents(
    vault_server: DevServer, shop: Shop, vault_proxy: FaultProxy
) -> None:
    """At most three requests for each document, and a login."""
    shop.secrets = {
        f"KEY_{i}": {"ref": f"keys-{i % 4}#key_{i}", "rotate": "token"}
        for i in range(20)
    }
    for number in range(4):
        fields = {f"key_{i}": f"first-{i}" for i in range(20) if i % 4 == number}
        shop.mount.write(f"keys-{number}", fields)

    policy = (
        f'path "{shop.mount.name}/*" {{ capabilities = ["read", "create", "update"] }}'
    )
    shop.more = {
        "VAULT_ADDR": vault_proxy.address,
        "VAULT_TOKEN": None,
        "VAULT_AUTH": approle(vault_server, policy),
        "VAULT_AUDIT_LOG": None,
    }
    result = shop.rotate("--all")
    assert result.exit_code == 0, result.output
    assert vault_proxy.logins == 1
    assert len(list(filter(is_write, vault_proxy.requests))) == 4
    assert vault_proxy.count <= 3 * 4 + 1


# Who did what.


def test_each_step_is_a_line_in_the_audit_log(shop: Shop) -> None:
    assert shop.rotate("--all").exit_code == 0
    lines = [line for line in shop.audited() if line["keys"] == ["DATABASE_URL"]]
    assert [line["outcome"] for line in lines] == [
        "prepared",
        "backed up",
        "applying",
        "applied",
        "verified",
        "promoted",
        "revoked",
        "done",
    ]
    assert len({line["operation"] for line in lines}) == 1
    done = lines[-1]
    assert done["path"] == f"{shop.mount.name}/database"
    assert done["state"] == "IDLE"
    assert done["actor"]["display_name"] == "token"
    assert done["actor"]["accessor"]
    assert done["request_id"]
    assert (shop.folder / "audit.log").stat().st_mode & 0o777 == 0o600

    text = (shop.folder / "audit.log").read_text()
    assert not any(value in text for value in {*shop.values(), FIRST, shop.mount.token})


def test_a_failure_is_a_line_too(shop: Shop) -> None:
    shop.mount.write("database", {**shop.mount.read("database"), "password": "drifted"})
    shop.rotate("--secret", "DATABASE_URL")
    assert shop.audited()[-1]["outcome"] == "RotationError"


def test_audit_shows_the_log(shop: Shop) -> None:
    assert "There is nothing" in shop.run("audit").stdout
    shop.rotate("--all")
    result = shop.run("audit", "--secret", "SECRET_KEY", "--since", "7d")
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == 2
    assert f"{shop.mount.name}/flask" in result.stdout
    assert len(json.loads(shop.run("audit", "--json").stdout)) == len(shop.audited())
    assert shop.run("audit", "--since", "0").stdout.startswith("There is nothing")

    shop.more["VAULT_AUDIT_LOG"] = None
    result = shop.run("audit")
    assert result.exit_code == 2
    assert "VAULT_AUDIT_LOG is unset" in result.stderr


@pytest.mark.parametrize("fault", ["no folder", "others may write", "symlink"])
def test_a_log_that_cannot_be_kept_stops_the_rotation_before_it_begins(
    fault: str, shop: Shop
) -> None:
    file = shop.folder / "audit.log"

    if fault == "no folder":
        shop.more["VAULT_AUDIT_LOG"] = str(shop.folder / "missing" / "audit.log")
    elif fault == "symlink":
        file.symlink_to(shop.folder / "elsewhere")
    else:
        file.write_text("")
        file.chmod(0o666)

    before = shop.values()
    result = shop.rotate("--all")
    assert result.exit_code == 2
    assert "VAULT_AUDIT_LOG" in result.stderr
    assert shop.values() == before
