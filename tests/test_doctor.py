"""``flask vault doctor``: each fault is found and named with its cure, no other."""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import datetime
import importlib.metadata
import json
import os
import pathlib
import re
import secrets
import subprocess
import sys
import typing as t

import pytest
from click.testing import CliRunner
from flask import Flask
from flask.cli import ScriptInfo
from flask_jwt_extended import JWTManager
from flask_sqlalchemy import SQLAlchemy

from flask_vault import FlaskVault
from flask_vault import VaultClient
from flask_vault.cli import vault_group
from flask_vault.doctor import checks
from flask_vault.doctor import rights
from flask_vault.doctor.case import case_of
from flask_vault.doctor.case import utc_now
from flask_vault.doctor.findings import Finding
from flask_vault.doctor.findings import of_error
from flask_vault.errors import VaultPermissionError
from flask_vault.policy import app_policy
from flask_vault.policy import Role
from flask_vault.policy import rules
from flask_vault.policy import to_hcl
from flask_vault.rotation.keys import new_key
from flask_vault.testing import DevServer
from flask_vault.testing import FaultProxy
from flask_vault.testing.api import Api
from flask_vault.testing.plugin import VaultMount
from tests.helpers import approle
from tests.helpers import BACKUP_KEY
from tests.helpers import new_app
from tests.postgres import Postgres

CANARY = "canary-9e41-with-more-than-32-bytes"

SECRETS: dict[str, t.Any] = {
    "SECRET_KEY": {"ref": "flask#secret_key", "rotate": "token", "keyring": True},
    "STRIPE_API_KEY": "stripe#api_key",
}

Config = dict[str, t.Any]


@dataclasses.dataclass(frozen=True)
class Report:
    exit_code: int
    findings: list[Finding]

    @property
    def alarms(self) -> list[Finding]:
        return [f for f in self.findings if f.status in ("warn", "fail")]

    def of(self, check: str) -> list[Finding]:
        return [finding for finding in self.findings if finding.check == check]


def examine(create_app: cabc.Callable[[], Flask]) -> Report:
    """Run the command. It never ends with a traceback, nor shows a value."""
    result = CliRunner().invoke(
        vault_group, ["doctor", "--json"], obj=ScriptInfo(create_app=create_app)
    )

    if not isinstance(result.exception, SystemExit | None):
        raise result.exception

    assert "canary" not in result.output
    assert result.stderr == ""
    answer = json.loads(result.stdout)
    found = [Finding(**check) for check in answer["checks"]]
    assert result.exit_code == {"pass": 0, "warn": 1, "fail": 2}[answer["status"]]
    return Report(result.exit_code, found)


def doctor(config: cabc.Mapping[str, object], **extra: object) -> Report:
    def create_app() -> Flask:
        app = new_app(config, **extra)
        FlaskVault(app)
        raise RuntimeError("The factory must not be needed.")

    return examine(create_app)


def assert_finds(
    report: Report, check: str, status: str, found: str, cure: str
) -> None:
    """That one alarm is raised, and says this."""
    (alarm,) = report.alarms
    assert (alarm.check, alarm.status) == (check, status)
    assert re.search(found, alarm.found)
    assert re.search(cure, alarm.cure or "")
    assert report.exit_code == {"warn": 1, "fail": 2}[status]


@pytest.fixture
def good(
    vault_server: DevServer, vault_mount: VaultMount, tmp_path: pathlib.Path
) -> Config:
    """An app with nothing wrong. The tests put one fault into it each."""
    vault_mount.write("flask", {"secret_key": CANARY})
    vault_mount.write("stripe", {"api_key": f"{CANARY}-api"})
    keep_versions(vault_mount, "flask", 50)
    config: Config = vault_mount.config(
        VAULT_SECRETS=SECRETS,
        VAULT_BACKUP_DIR=str(tmp_path / "backups"),
        VAULT_BACKUP_KEYS=[BACKUP_KEY],
    )
    auth = approle(vault_server, policy_of(config))
    config.update(VAULT_TOKEN=None, VAULT_AUTH=auth)
    return config


def keep_versions(mount: VaultMount, path: str, number: int) -> None:
    call(mount, "POST", f"{mount.name}/metadata/{path}", {"max_versions": number})


def call(mount: VaultMount, method: str, path: str, body: object = None) -> t.Any:
    return Api(mount.address).call(method, path, body, token=mount.token)


def policy_of(config: Config) -> str:
    client = VaultClient.from_mapping(config, {})
    return app_policy(client.catalog, client.kv.mount_of)


def renewed(config: Config, server: DevServer, **changes: object) -> Config:
    """The config with other keys, and a role that may read what it names then."""
    changed = {**config, **changes}
    root = {**changed, "VAULT_AUTH": None, "VAULT_TOKEN": server.root_token}
    return {**changed, "VAULT_AUTH": approle(server, policy_of(root))}


# --- nothing is wrong --------------------------------------------------------------


def test_an_app_with_nothing_wrong(good: Config) -> None:
    report = doctor(good)
    assert report.alarms == []
    assert report.exit_code == 0
    assert {finding.check for finding in report.findings if finding.cure} == set()
    assert {finding.check for finding in report.findings} == set(checks.CHECKS) - {
        "gunicorn",  # Not used here.
        "tls",
        "database",
    }


def test_the_example_app_on_a_development_server(
    postgres: Postgres, tmp_path: pathlib.Path
) -> None:
    user = postgres.create_user("first")
    seed = tmp_path / "seed.json"
    seed.write_text(json.dumps({"database": postgres.document(user, "first")}))
    program = [sys.executable, "-m", "flask", "--app", "example_app", "vault"]
    done = subprocess.run(
        [*program, "dev", "--seed", seed, "--", *program, "doctor"],
        cwd=pathlib.Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONWARNINGS": "error"},
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = r"^entries +pass  SECRET_KEY: flask#secret_key, version 1$"
    assert re.search(found, done.stdout, re.M)
    assert not re.search(r"^\w+ +(warn|fail) ", done.stdout, re.M)


def test_people_get_lines_with_the_cure_below(good: Config) -> None:
    app = new_app(good, VAULT_BACKUP_KEYS=None)
    result = CliRunner().invoke(
        vault_group,
        ["doctor"],
        obj=ScriptInfo(create_app=lambda: (FlaskVault(app), app)[1]),
    )
    assert result.exit_code == 1
    assert "flask    pass  Flask 3" in result.stdout
    assert (
        "backups  warn  there is no VAULT_BACKUP_KEYS, and 'rotate' changes nothing"
        " without a backup.\n"
        "               Make one with 'flask vault backup-key', and keep it outside of"
        " Vault.\n"
    ) in result.stdout


def test_nothing_is_changed(good: Config, vault_proxy: FaultProxy) -> None:
    doctor(good, VAULT_ADDR=vault_proxy.address)
    asked = {
        request.path.removeprefix("/v1/")
        for request in vault_proxy.requests
        if request.method in ("POST", "PUT", "DELETE")
    }
    # The token that was made to look with is revoked.
    assert asked == {
        "auth/approle/login",
        "auth/token/revoke-self",
        "sys/capabilities-self",
    }
    assert not os.path.exists(good["VAULT_BACKUP_DIR"])


# --- the config --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "status", "found", "cure"),
    [
        ({"VAULT_ADDR": None}, "fail", "VAULT_ADDR is unset", "such as 'https:"),
        ({"VAULT_ADDR": "vault"}, "fail", "no address of a server", "Write it as"),
        ({"VAULT_KV_VERSION": 3}, "fail", "VAULT_KV_VERSION is 1 or 2", "Correct it"),
        ({"VAULT_MUONT": "x"}, "fail", "VAULT_MUONT is no key", "Did you mean|Correct"),
        ({"VAULT_CACERT": "/no"}, "fail", "no file '/no'", "Set it to the file"),
        ({"VAULT_PREFIX": "{environment}"}, "fail", "VAULT_ENV", "such as 'production"),
        ({"VAULT_SECRETS": ["x"]}, "fail", "is a mapping", "."),
        ({"VAULT_SECRETS": {}}, "warn", "VAULT_SECRETS is empty", "Declare what"),
        ({"VAULT_ENABLED": False}, "warn", "VAULT_ENABLED is false", "true"),
        ({"VAULT_SECRETS": {"KEY": "flask"}}, "fail", r"\['KEY'\]", "Write 'flask#f"),
        (
            {"VAULT_SECRETS": {"KEY": {"ref": "flask#key", "rotate": "tokken"}}},
            "fail",
            "'tokken'",
            ".",
        ),
    ],
)
def test_a_fault_in_the_config(
    good: Config, changes: Config, status: str, found: str, cure: str
) -> None:
    assert_finds(doctor(good, **changes), "config", status, found, cure)


def test_all_faults_of_the_config_are_told_at_once(good: Config) -> None:
    entries = {**SECRETS, "BAD": "flask", "WORSE": {"path": "x#y"}}
    report = doctor(
        good, VAULT_KV_VERSION=3, VAULT_READ_TIMEOUT="soon", VAULT_SECRETS=entries
    )
    assert [a.check for a in report.alarms] == ["config"] * 4
    # The good entries are looked at all the same.
    assert "SECRET_KEY: flask#secret_key, version 1" in report.of("entries")[0].found


def test_an_app_that_breaks_before_vault(
    good: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VAULT_ADDR", good["VAULT_ADDR"])

    def create_app() -> Flask:
        raise LookupError(CANARY)

    report = examine(create_app)
    assert_finds(report, "app", "fail", "LookupError at .*test_doctor", "flask routes")
    # What the environment tells is looked at all the same.
    assert [f.status for f in report.of("address")] == ["pass"]


def test_an_app_without_flask_vault() -> None:
    report = examine(lambda: Flask("shop"))
    assert_finds(report, "app", "fail", "no FlaskVault", r"Call vault\.init_app")


def test_a_flask_that_signs_with_the_oldest_key(
    good: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "3.1.0")
    assert_finds(doctor(good), "flask", "fail", "Flask 3.1.0 signs", "Flask 3.1.1")


@pytest.mark.parametrize(
    ("name", "title", "key"),
    [
        ("sqlalchemy", "Flask-SQLAlchemy", "SQLALCHEMY_DATABASE_URI"),
        ("limiter", "Flask-Limiter", "RATELIMIT_STORAGE_URI"),
        ("cache", "Flask-Caching", "CACHE_REDIS_URL"),
        ("mail", "Flask-Mail", "MAIL_PASSWORD"),
    ],
)
def test_an_extension_that_read_its_config_before(
    good: Config, vault_mount: VaultMount, name: str, title: str, key: str
) -> None:
    entries = {**SECRETS, key: "stripe#api_key"}

    def create_app() -> Flask:
        app = new_app(good, VAULT_SECRETS=entries)
        app.extensions[name] = object()
        FlaskVault(app)
        return app

    report = examine(create_app)
    cure = r"Call vault\.init_app\(app\) before it"
    assert_finds(report, "order", "fail", f"{title} was.*{key}", cure)


def test_an_extension_that_breaks_without_its_secret(good: Config) -> None:
    def create_app() -> Flask:
        app = new_app(good)
        SQLAlchemy().init_app(app)
        FlaskVault(app)
        return app

    report = examine(create_app)
    cure = r"call vault\.init_app\(app\) before it"
    assert_finds(report, "order", "fail", "flask_sqlalchemy is init.*RuntimeE", cure)


def test_an_extension_that_reads_its_config_late_may_come_first(good: Config) -> None:
    def create_app() -> Flask:
        app = new_app(good, VAULT_SECRETS={**SECRETS, "JWT_SECRET_KEY": "stripe#jwt"})
        JWTManager().init_app(app)
        FlaskVault(app)
        return app

    assert examine(create_app).of("order")[0].status == "pass"


def test_an_extension_that_needs_no_secret_may_come_first(good: Config) -> None:
    def create_app() -> Flask:
        app = new_app(good)
        app.extensions["cache"] = app.extensions["sqlalchemy"] = object()
        FlaskVault(app)
        return app

    assert examine(create_app).alarms == []


@pytest.mark.parametrize(
    ("changes", "status", "found", "cure"),
    [
        ({"VAULT_PROPAGATION_WINDOW": 30}, "fail", "signs 30 s", "to 120 or more"),
        ({"VAULT_PROPAGATION_WINDOW": 60}, "warn", "signs 60 s", "to 120 or more"),
        ({"VAULT_REFRESH_MODE": "off"}, "warn", "do not learn", "'thread'"),
    ],
)
def test_a_key_that_signs_before_all_know_of_it(
    good: Config, changes: Config, status: str, found: str, cure: str
) -> None:
    assert_finds(doctor(good, **changes), "window", status, found, cure)


@pytest.mark.parametrize(
    ("text", "found", "cure"),
    [
        ("workers = 4\n", "works for the first alone", "preload_app = True"),
        ("preload_app = True\nworker_class = 'gevent'\n", "gevent", "monkey.patch_all"),
    ],
)
def test_how_gunicorn_starts_the_app(
    good: Config,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    found: str,
    cure: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gunicorn.conf.py").write_text(text)
    auth = {"method": "approle", "role_id": "x", "wrapped_secret_id_env": "NO"}
    report = doctor(good, VAULT_AUTH=auth)
    assert_finds(report, "gunicorn", "warn", found, cure)
    # The wrapping token is the app's, and works once.
    assert "left for the app" in report.of("login")[0].found


# --- the server --------------------------------------------------------------------


def test_a_server_that_is_not_there(good: Config) -> None:
    report = doctor(good, VAULT_ADDR="http://127.0.0.1:9")
    assert_finds(report, "address", "fail", "refused", "Check VAULT_ADDR")


def test_a_name_that_leads_nowhere(good: Config) -> None:
    report = doctor(good, VAULT_ADDR="http://vault.invalid:8200")
    assert_finds(report, "address", "fail", "vault.invalid", "Check VAULT_ADDR")


def test_an_address_of_something_else(good: Config, vault_proxy: FaultProxy) -> None:
    vault_proxy.answer(200, "<html>Welcome to nginx</html>")
    report = doctor(good, VAULT_ADDR=vault_proxy.address)
    assert_finds(report, "address", "fail", "an HTML page", "Check VAULT_ADDR")


def test_one_of_several_servers_is_away(good: Config) -> None:
    addresses = ["http://127.0.0.1:9", good["VAULT_ADDR"]]
    report = doctor(good, VAULT_ADDR=addresses)
    assert_finds(report, "address", "warn", "refused", "Check VAULT_ADDR")
    assert "pass" in {finding.status for finding in report.of("entries")}


@pytest.fixture(scope="module")
def tls_server() -> cabc.Iterator[DevServer]:
    with DevServer(tls=True) as server:
        yield server


def of_tls(server: DevServer, **extra: object) -> Config:
    return {"VAULT_ADDR": server.address, "VAULT_TOKEN": "none", **extra}


def test_a_certificate_of_an_unknown_authority(tls_server: DevServer) -> None:
    report = doctor(of_tls(tls_server, VAULT_SECRETS={"KEY": "flask#key"}))
    assert_finds(report, "tls", "fail", "not trusted", "Set VAULT_CACERT")


def test_a_certificate_for_another_name(tls_server: DevServer) -> None:
    config = of_tls(tls_server, VAULT_CACERT=tls_server.ca_file)
    names = {"VAULT_TLS_SERVER_NAME": "other", "VAULT_SECRETS": {"KEY": "flask#key"}}
    cure = "VAULT_TLS_SERVER_NAME"
    assert_finds(doctor(config, **names), "tls", "fail", "another name", cure)


def look(config: Config, days: float, *names: str) -> Report:
    """Make some of the checks, on a host whose clock shows another day."""
    case = case_of(new_app(config))
    case.clock = lambda: utc_now() + datetime.timedelta(days=days)
    return Report(0, checks.run(case, names))


def test_a_certificate_that_ends_soon(tls_server: DevServer) -> None:
    config = of_tls(tls_server, VAULT_CACERT=tls_server.ca_file)
    (good,) = look(config, 0, "address", "tls").of("tls")
    left = int(re.findall(r"chain and name good, (\d+) days left", good.found)[0])

    (soon,) = look(config, left - 5, "address", "tls").of("tls")
    assert (soon.status, soon.cure) == ("warn", "Renew it on the server.")
    assert re.search(r"ends in [45] days", soon.found)

    (over,) = look(config, left + 5, "address", "tls").of("tls")
    assert (over.status, over.cure) == ("fail", "Renew it on the server.")


def test_our_own_certificate_that_is_none_or_ends(
    tls_server: DevServer, tmp_path: pathlib.Path
) -> None:
    assert tls_server.ca_file is not None
    none = tmp_path / "none.pem"
    none.write_text("not PEM")
    config = of_tls(tls_server, VAULT_CLIENT_CERT=str(none))
    (finding,) = look(config, 0, "tls").of("tls")
    assert finding.found == "VAULT_CLIENT_CERT is no certificate in PEM."

    config = of_tls(tls_server, VAULT_CLIENT_CERT=tls_server.ca_file)
    (finding,) = look(config, 36_500, "tls").of("tls")
    assert finding.status == "fail"
    assert "into VAULT_CLIENT_CERT" in (finding.cure or "")


def test_a_certificate_that_nobody_checks(tls_server: DevServer) -> None:
    config = of_tls(tls_server, VAULT_SKIP_VERIFY=True)
    finding, end = look(config, 0, "address", "tls").of("tls")
    assert (finding.status, end.status) == ("warn", "pass")
    assert "pose as Vault" in finding.found
    assert "VAULT_CACERT" in (finding.cure or "")


def test_a_server_that_is_reached_without_tls_over_the_network(good: Config) -> None:
    case = case_of(new_app(good))
    case.settings = dataclasses.replace(
        case.settings, addresses=("http://vault.example.com",), proxy=good["VAULT_ADDR"]
    )
    # The server answers for any name that it is asked for as a proxy.
    (finding,) = checks.run(case, ["address"])
    assert (finding.status, finding.check) == ("warn", "address")
    assert "without TLS" in finding.found


def test_a_server_that_is_sealed(good: Config) -> None:
    with DevServer() as server:
        server.seal()
        report = doctor(good, VAULT_ADDR=server.address)

    assert_finds(report, "seal", "fail", "is sealed", "operator unseal")
    assert "no server is unsealed" in report.of("login")[0].found


def test_a_server_that_was_never_initialized(good: Config) -> None:
    with DevServer(storage="file", initialize=False) as server:
        report = doctor(good, VAULT_ADDR=server.address)

    assert_finds(report, "seal", "fail", "not initialized", "operator init")


def test_what_kind_of_server_it_is(good: Config, vault_proxy: FaultProxy) -> None:
    said = {"initialized": True, "sealed": False, "version": "1.20.0", "standby": True}

    def is_health(request: t.Any) -> bool:
        return "sys/health" in request.path

    (finding,) = doctor(good).of("seal")
    assert re.search(r"unsealed, OpenBao 2\.[\d.]+, active", finding.found)
    vault_proxy.answer(200, {**said, "enterprise": False}, match=is_health)
    (finding,) = doctor(good, VAULT_ADDR=vault_proxy.address).of("seal")
    assert finding.found.endswith("unsealed, Vault 1.20.0, standby")


@pytest.mark.parametrize(("seconds", "way"), [(90, "ahead of"), (-90, "behind")])
def test_clocks_that_differ(good: Config, seconds: int, way: str) -> None:
    report = look(good, seconds / 86_400, "address", "clock")
    (finding,) = report.alarms
    assert (finding.check, finding.status) == ("clock", "warn")
    assert re.search(rf"(89|90|91) s {way}", finding.found)
    assert "NTP" in (finding.cure or "")


# --- who we are --------------------------------------------------------------------


def test_a_login_that_is_refused(good: Config) -> None:
    auth = {**good["VAULT_AUTH"], "secret_id": "canary-wrong"}
    report = doctor(good, VAULT_AUTH=auth)
    assert_finds(report, "login", "fail", "refuses the login", "secret id in VAULT_AU")


def test_credentials_that_are_not_there(good: Config) -> None:
    auth = {"method": "approle", "role_id": "x", "secret_id_file": "/no/file"}
    report = doctor(good, VAULT_AUTH=auth)
    assert_finds(report, "login", "fail", "/no/file", ".")


def test_no_way_to_log_in(good: Config) -> None:
    report = doctor(good, VAULT_AUTH=None)
    assert_finds(report, "login", "fail", "No way to log in", "Set VAULT_AUTH")


def test_a_token_that_is_dead(good: Config) -> None:
    report = doctor(good, VAULT_AUTH=None, VAULT_TOKEN="canary-dead")
    assert_finds(report, "token", "fail", "does not accept the token", "VAULT_TOKEN")


def test_a_root_token(good: Config, vault_server: DevServer) -> None:
    report = doctor(good, VAULT_AUTH=None, VAULT_TOKEN=vault_server.root_token)
    assert_finds(report, "token", "warn", "root token", "policy --approle")


def test_a_token_that_ends(good: Config, vault_mount: VaultMount) -> None:
    made = call(
        vault_mount,
        "POST",
        "auth/token/create",
        {"policies": [vault_mount.name], "renewable": False, "ttl": "1h"},
    )
    policy = {"policy": policy_of({**good, "VAULT_TOKEN": vault_mount.token,
              "VAULT_AUTH": None})}  # fmt: skip
    call(vault_mount, "PUT", f"sys/policies/acl/{vault_mount.name}", policy)
    token = made["auth"]["client_token"]
    report = doctor(good, VAULT_AUTH=None, VAULT_TOKEN=token)
    assert_finds(report, "token", "warn", "cannot be renewed", "login method")


@pytest.mark.parametrize(
    ("options", "found", "cure"),
    [
        ({"token_ttl": "20s"}, "logs in all the time", "token_ttl"),
        ({"token_no_default_policy": True}, "not look itself up", "policy 'default'"),
    ],
)
def test_a_role_whose_tokens_are_of_little_use(
    good: Config, vault_server: DevServer, options: Config, found: str, cure: str
) -> None:
    root = {**good, "VAULT_AUTH": None, "VAULT_TOKEN": vault_server.root_token}
    auth = approle(vault_server, policy_of(root), **options)
    report = doctor(good, VAULT_AUTH=auth)
    assert_finds(report, "token", "warn", found, cure)


# --- what we may -------------------------------------------------------------------


def test_a_document_or_a_field_that_is_missing(
    good: Config, vault_server: DevServer
) -> None:
    entries = {**SECRETS, "A": "nothing#x", "B": "stripe#nothing"}
    report = doctor(renewed(good, vault_server, VAULT_SECRETS=entries))
    first, second = report.alarms
    assert (first.check, first.status) == (second.check, second.status)
    assert (first.check, first.status) == ("entries", "fail")
    assert first.found.startswith("A: There is no document at")
    assert "flask vault init" in (first.cure or "")
    assert second.found.startswith("B: ")
    assert second.cure


def test_a_document_that_may_not_be_read(good: Config) -> None:
    report = doctor(good, VAULT_SECRETS={**SECRETS, "OTHER": "other#key"})
    assert_finds(report, "entries", "fail", "OTHER: Vault denies", "grant 'read' on")


def test_what_serves_instead_of_vault_is_told(
    good: Config, vault_server: DevServer
) -> None:
    entries = {**SECRETS, "A": {"ref": "nothing#x", "default": "canary"}}
    report = doctor(renewed(good, vault_server, VAULT_SECRETS=entries))
    assert_finds(report, "entries", "warn", r"A \(default serves\)", "init")


def test_a_key_ring_that_does_not_see_its_versions(
    good: Config, vault_server: DevServer, vault_mount: VaultMount
) -> None:
    policy = f'path "{vault_mount.name}/data/*" {{ capabilities = ["read"] }}'
    report = doctor(good, VAULT_AUTH=approle(vault_server, policy))
    cure = rf"Grant 'read' on '{vault_mount.name}/metadata/flask'"
    assert_finds(report, "history", "warn", "ring of SECRET_KEY does not see", cure)


def test_a_key_ring_that_forgets(good: Config, vault_mount: VaultMount) -> None:
    keep_versions(vault_mount, "flask", 5)
    report = doctor(good)
    assert_finds(report, "history", "warn", "keeps 5 versions", "flask vault init")


@pytest.fixture
def old_mount(vault_server: DevServer) -> cabc.Iterator[str]:
    name = f"old-{secrets.token_hex(4)}"
    vault_server.enable_kv(name, version=1)
    Api(vault_server.address).call(
        "POST", f"{name}/flask", {"key": CANARY}, token=vault_server.root_token
    )
    yield name
    vault_server.disable_mount(name)


def test_a_rotation_without_check_and_set(
    good: Config, vault_server: DevServer, old_mount: str
) -> None:
    entries = {"KEY": {"ref": f"/{old_mount}/flask#key", "rotate": "token"}}
    report = doctor(renewed(good, vault_server, VAULT_SECRETS=entries))
    assert_finds(report, "cas", "warn", "KV version 1", "mount of KV version 2")


def test_a_key_ring_on_an_engine_without_versions(
    good: Config, vault_server: DevServer, old_mount: str
) -> None:
    entries = {"KEY": {"ref": f"/{old_mount}/flask#key", "keyring": True}}
    report = doctor(renewed(good, vault_server, VAULT_SECRETS=entries))
    assert_finds(report, "history", "fail", "keeps no versions", "Remove 'keyring'")


def test_whether_the_server_demands_check_and_set_is_told(
    good: Config, vault_mount: VaultMount
) -> None:
    call(vault_mount, "POST", f"{vault_mount.name}/config", {"cas_required": True})
    report = doctor(good, VAULT_AUTH=None, VAULT_TOKEN=vault_mount.token)
    assert report.of("cas")[0].found.endswith("cas_required is on")


def rotator(config: Config, server: DevServer, role: Role) -> dict[str, object]:
    root = {**config, "VAULT_AUTH": None, "VAULT_TOKEN": server.root_token}
    client = VaultClient.from_mapping(root, {})
    found = rules(role, client.catalog, client.kv.mount_of)
    return approle(server, to_hcl(role, "shop", found))


def test_who_rotates_may_not(good: Config, vault_server: DevServer) -> None:
    assert doctor(
        good, VAULT_ROTATE_AUTH=rotator(good, vault_server, "rotator")
    ).alarms == []  # fmt: skip
    report = doctor(good, VAULT_ROTATE_AUTH=rotator(good, vault_server, "app"))
    data, metadata, destroy = report.alarms
    assert {alarm.status for alarm in report.alarms} == {"fail"}
    assert re.search("lacks 'create, update' on .*/data/flask'", data.found)
    assert re.search("lacks 'update' on .*/metadata/flask'", metadata.found)
    assert re.search("lacks 'update' on .*/destroy/flask'", destroy.found)
    assert "policy --for rotator" in (data.cure or "")


def test_who_rotates_cannot_log_in(good: Config) -> None:
    auth = {**good["VAULT_AUTH"], "secret_id": "canary-wrong"}
    report = doctor(good, VAULT_ROTATE_AUTH=auth)
    found = "VAULT_ROTATE_AUTH: Vault refuses the login"
    assert_finds(report, "write", "fail", found, "in VAULT_ROTATE_AUTH")


def test_a_person_rotates_with_the_token_of_the_environment(
    good: Config, vault_server: DevServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VAULT_TOKEN", vault_server.root_token)
    report = doctor(good)
    assert report.alarms == []
    (finding,) = report.of("write")
    assert finding.found == "VAULT_TOKEN may do all that 'rotate' needs"
    # It is the app whose login is looked at.
    assert "root" not in report.of("token")[0].found


# --- the values --------------------------------------------------------------------


@pytest.mark.parametrize("value", ["dev", "changeme", "Secret", " password "])
def test_a_value_that_everybody_knows(
    good: Config, vault_mount: VaultMount, value: str
) -> None:
    vault_mount.write("flask", {"secret_key": value})
    report = doctor(good)
    cure = "rotate --secret SECRET_KEY"
    assert_finds(report, "secrets", "fail", "SECRET_KEY .* everybody knows", cure)
    text = "SECRET_KEY has a value that everybody knows from examples."
    assert report.alarms[0].found == text


def test_a_key_that_is_short(good: Config, vault_mount: VaultMount) -> None:
    vault_mount.write("flask", {"secret_key": "canary-9e41"})
    report = doctor(good)
    cure = "rotate --secret SECRET_KEY"
    assert_finds(report, "secrets", "warn", "less than 32 bytes", cure)


def test_a_value_that_is_used_twice(good: Config, vault_mount: VaultMount) -> None:
    vault_mount.write("stripe", {"api_key": CANARY})
    report = doctor(good)
    found = "SECRET_KEY and STRIPE_API_KEY have the same value"
    assert_finds(report, "secrets", "warn", found, "rotate --secret STRIPE_API_KEY")


def test_a_key_of_the_config_that_everybody_knows(good: Config) -> None:
    entries = {"STRIPE_API_KEY": "stripe#api_key"}
    report = doctor(good, VAULT_SECRETS=entries, SECRET_KEY="dev")
    found = "SECRET_KEY is set in the config"
    assert_finds(report, "secrets", "fail", found, "Declare it in VAULT_SECRETS")


# --- backups -----------------------------------------------------------------------


def test_no_key_for_backups(good: Config) -> None:
    report = doctor(good, VAULT_BACKUP_KEYS=None)
    assert_finds(report, "backups", "warn", "no VAULT_BACKUP_KEYS", "backup-key")


def test_a_key_for_backups_that_is_none(good: Config) -> None:
    report = doctor(good, VAULT_BACKUP_KEYS=["canary"])
    assert_finds(report, "backups", "fail", "is not a key", "32 bytes as URL-safe")


def test_a_directory_for_backups_that_others_may_write_to(good: Config) -> None:
    directory = pathlib.Path(good["VAULT_BACKUP_DIR"])
    directory.mkdir()
    directory.chmod(0o777)
    assert_finds(doctor(good), "backups", "fail", "open to other users", "chmod 700")


def test_a_directory_for_backups_that_cannot_be_made(
    good: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Root may write everywhere.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    report = doctor(good)
    assert_finds(report, "backups", "fail", "cannot be written to", "VAULT_BACKUP_DIR")


def test_backups_that_no_key_opens(good: Config, vault_mount: VaultMount) -> None:
    root = {**good, "VAULT_AUTH": None, "VAULT_TOKEN": vault_mount.token}
    client = VaultClient.from_mapping(root, {})
    assert client.rotate_secret("flask", "secret_key").backup
    assert doctor(good).alarms == []
    report = doctor(good, VAULT_BACKUP_KEYS=[new_key()])
    found = "1 of the files .* cannot be restored"
    assert_finds(report, "backups", "warn", found, "--list-backups")


# --- the database ------------------------------------------------------------------


def with_database(
    good: Config, server: DevServer, mount: VaultMount, url: str
) -> Report:
    mount.write("database", {"url": url})
    entries = {**SECRETS, "SQLALCHEMY_DATABASE_URI": "database#url"}
    return doctor(renewed(good, server, VAULT_SECRETS=entries))


@pytest.mark.parametrize(
    ("url", "status", "found", "cure"),
    [
        ("postgresql+psycopg://u:canary@127.0.0.1:9/x", "fail", "not answer", "port"),
        ("postgresql+nothing://u:canary@127.0.0.1/x", "warn", "driver", "template"),
    ],
)
def test_a_database_that_cannot_be_asked(
    good: Config,
    vault_server: DevServer,
    vault_mount: VaultMount,
    url: str,
    status: str,
    found: str,
    cure: str,
) -> None:
    report = with_database(good, vault_server, vault_mount, url)
    assert_finds(report, "database", status, found, cure)


def test_a_database_takes_its_password_and_no_other(
    good: Config, vault_server: DevServer, vault_mount: VaultMount, postgres: Postgres
) -> None:
    url = postgres.url("postgres", postgres.password)
    assert with_database(good, vault_server, vault_mount, url).alarms == []
    report = with_database(
        good, vault_server, vault_mount, postgres.url("postgres", "canary")
    )
    assert_finds(report, "database", "fail", "not take user and password", "--restore")


def test_a_database_that_takes_any_password(
    good: Config, vault_server: DevServer, vault_mount: VaultMount
) -> None:
    with Postgres() as postgres:
        hba = postgres._data / "pg_hba.conf"
        hba.write_text(hba.read_text().replace("scram-sha-256", "trust"))
        postgres.stop()
        postgres.start()
        url = postgres.url("postgres", "canary")
        report = with_database(good, vault_server, vault_mount, url)

    assert_finds(report, "database", "fail", "takes any password", "scram-sha-256")


def test_without_sqlalchemy_no_database_is_asked(
    good: Config,
    vault_server: DevServer,
    vault_mount: VaultMount,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "sqlalchemy", None)
    report = with_database(good, vault_server, vault_mount, "postgresql://u:p@db/x")
    assert report.alarms == []
    assert "SQLAlchemy is not installed" in report.of("database")[0].found


# --- the report --------------------------------------------------------------------


def test_a_check_that_breaks_stops_no_other(
    good: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*_: object) -> t.NoReturn:
        raise LookupError(CANARY)

    monkeypatch.setattr(rights, "_of_outcome", breaks)
    report = doctor(good)
    found = "the check broke: LookupError at .*test_doctor.py"
    assert_finds(report, "entries", "fail", found, "Report it")
    assert report.of("backups")


@pytest.mark.parametrize(
    ("sentence", "found", "cure"),
    [
        ("It is so: mend it.", "It is so.", "Mend it."),
        ("Denied (403: no: way): grant it.", "Denied (403: no: way).", "Grant it."),
        ("KEY: bad: set {'a': b}, or c.", "KEY: bad.", "Set {'a': b}, or c."),
        ("It is so. 'mend' mends it.", "It is so.", "'mend' mends it."),
        ("It is so, and that is all.", "It is so, and that is all.", None),
    ],
)
def test_the_cure_stands_after_the_last_colon(
    sentence: str, found: str, cure: str | None
) -> None:
    finding = of_error("x", VaultPermissionError(sentence))
    assert (finding.found, finding.cure) == (found, cure)
