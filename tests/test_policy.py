"""``flask vault policy``: what it grants is enough, and not a line of it too much."""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import json
import pathlib
import re
import secrets
import typing as t

import pytest
from click.testing import CliRunner
from click.testing import Result
from flask.cli import ScriptInfo

from flask_vault import FlaskVault
from flask_vault import VaultClient
from flask_vault import VaultConfigError
from flask_vault import VaultError
from flask_vault.cli import vault_group
from flask_vault.extension import state_of
from flask_vault.policy import app_policy
from flask_vault.policy import Role
from flask_vault.policy import ROLES
from flask_vault.policy import Rule
from flask_vault.policy import rules
from flask_vault.policy import to_hcl
from flask_vault.testing import DevServer
from flask_vault.testing.api import Api
from flask_vault.vault.documents import Location
from flask_vault.vault.documents import Mount
from tests.helpers import approle
from tests.helpers import BACKUP_KEY
from tests.helpers import new_app
from tests.helpers import start_app
from tests.postgres import Postgres

CANARY = "canary-5b0c"


@dataclasses.dataclass
class World:
    """A mount of KV version 2, one of version 1, and an app that uses both."""

    server: DevServer
    mount: str
    old_mount: str
    backups: pathlib.Path
    auth: dict[str, object] | None = None

    def config(self, **extra: object) -> dict[str, t.Any]:
        return {
            "VAULT_ADDR": self.server.address,
            "VAULT_TOKEN": None if self.auth else self.server.root_token,
            "VAULT_AUTH": self.auth,
            "VAULT_MOUNT": self.mount,
            "VAULT_PREFIX": "shop",
            "VAULT_STARTUP_TIMEOUT": 0,
            "VAULT_BACKUP_DIR": str(self.backups),
            "VAULT_BACKUP_KEYS": [BACKUP_KEY],
            "TESTING": True,
            "VAULT_SECRETS": {
                "SECRET_KEY": {
                    "ref": "flask#secret_key",
                    "rotate": "token",
                    "keyring": True,
                },
                "STRIPE_API_KEY": {"ref": "stripe#api_key", "default": "x"},
                "LEGACY_KEY": {"ref": f"/{self.old_mount}/legacy#key", "rotate": "hex"},
            },
            **extra,
        }

    def call(self, method: str, path: str, body: object = None) -> dict[str, t.Any]:
        api = Api(self.server.address)
        return api.call(method, path, body, token=self.server.root_token)

    def fill(self) -> None:
        for number in (1, 2):
            data = {"secret_key": f"{CANARY}-key-{number}"}
            self.call("POST", f"{self.mount}/data/shop/flask", {"data": data})

        data = {"api_key": f"{CANARY}-api"}
        self.call("POST", f"{self.mount}/data/shop/stripe", {"data": data})
        self.call("POST", f"{self.old_mount}/legacy", {"key": f"{CANARY}-old"})

    def rules(self, role: Role) -> list[Rule]:
        client = VaultClient.from_mapping(self.config(), {})
        return rules(role, client.catalog, client.kv.mount_of)

    def log_in(self, granted: cabc.Sequence[Rule]) -> None:
        policy = to_hcl("app", "shop", granted)
        self.auth = approle(self.server, policy)

    def path(self, template: str) -> str:
        return template.format(m=self.mount, one=self.old_mount)

    def flask_vault(self, *arguments: str, **extra: object) -> Result:
        config = self.config(**extra)
        result = CliRunner().invoke(
            vault_group,
            list(arguments),
            obj=ScriptInfo(create_app=lambda: start_app(config)),
        )

        if not isinstance(result.exception, SystemExit | None):
            raise result.exception

        assert CANARY not in result.output
        return result

    def backup(self) -> str:
        """Made by somebody who may do everything."""
        auth, self.auth = self.auth, None
        client = VaultClient.from_mapping(self.config(), {})
        self.auth = auth
        name = client.rotate_secret("flask", "secret_key").backup
        assert name is not None
        return name


@pytest.fixture
def world(vault_server: DevServer, tmp_path: pathlib.Path) -> cabc.Iterator[World]:
    names = [f"policy-{secrets.token_hex(4)}" for _ in range(2)]
    vault_server.enable_kv(names[0])
    vault_server.enable_kv(names[1], version=1)
    world = World(vault_server, names[0], names[1], tmp_path / "backups")
    world.fill()
    yield world

    for name in names:
        vault_server.disable_mount(name)


# --- what there is to do -----------------------------------------------------------


def start(world: World) -> None:
    app = start_app(world.config())
    assert app.config["LEGACY_KEY"] == f"{CANARY}-old"
    assert state_of(app).refresh().errors == {}


def revoke(world: World) -> None:
    """A key that is destroyed in Vault is accepted no more."""
    state = state_of(start_app(world.config()))
    assert {key.version for key in state.keyring("SECRET_KEY").accepted} >= {1}
    world.call("PUT", f"{world.mount}/destroy/shop/flask", {"versions": [1]})
    assert state.refresh().errors == {}
    assert 1 not in {key.version for key in state.keyring("SECRET_KEY").accepted}


def rotate(world: World) -> None:
    result = world.flask_vault("rotate", "--all")
    assert result.exit_code == 0
    # The receivers of the app are called, and the ring keeps its memory.
    assert result.stderr == ""


def compromised(world: World) -> None:
    """The requests of ``rotate --compromised``, beside the write."""
    client = VaultClient.from_mapping(world.config(), {})
    place = client.catalog.location_of(client.catalog.entries[0])
    client.versions.destroy(place, [s.number for s in client.versions.of(place).stamps])


def restore(world: World) -> None:
    """What a rotation replaced comes back, also where the whole document is gone."""
    name = world.backup()
    world.call("DELETE", f"{world.mount}/metadata/shop/flask")
    assert world.flask_vault("rotate", "--restore", name, "--yes").exit_code == 0


def restore_old(world: World) -> None:
    client = VaultClient.from_mapping({**world.config(), "VAULT_AUTH": None,
        "VAULT_TOKEN": world.server.root_token}, {})  # fmt: skip
    name = client.rotate_secret(f"/{world.old_mount}/legacy", "key").backup
    assert name is not None
    world.call("DELETE", f"{world.old_mount}/legacy")
    assert world.flask_vault("rotate", "--restore", name, "--yes").exit_code == 0


def init(world: World) -> None:
    """All that there is to make, from the mount up."""
    world.call("DELETE", f"sys/mounts/{world.mount}")
    world.call("DELETE", f"{world.old_mount}/legacy")
    result = world.flask_vault("init")
    assert result.exit_code == 0
    # The ring keeps its memory.
    assert "too few" not in result.stderr


def init_more(world: World) -> None:
    """A field that is missing in a document that is there."""
    body = {"data": {"other": CANARY}}
    world.call("POST", f"{world.mount}/data/shop/flask", body)
    world.call("POST", f"{world.old_mount}/legacy", {"other": CANARY})
    result = world.flask_vault("init")
    assert result.exit_code == 0
    # The ring keeps its memory.
    assert "too few" not in result.stderr


Operation = cabc.Callable[[World], None]

#: Each line of each policy, and an operation that fails without it.
NEEDED: list[tuple[Role, str, str, Operation]] = [
    ("app", "{m}/data/shop/flask", "read", start),
    ("app", "{m}/metadata/shop/flask", "read", revoke),
    ("app", "{m}/data/shop/stripe", "read", start),
    ("app", "{one}/legacy", "read", start),
    ("rotator", "{m}/data/shop/flask", "create", restore),
    ("rotator", "{m}/data/shop/flask", "read", rotate),
    ("rotator", "{m}/data/shop/flask", "update", rotate),
    ("rotator", "{m}/metadata/shop/flask", "read", compromised),
    ("rotator", "{m}/metadata/shop/flask", "update", rotate),
    ("rotator", "{m}/destroy/shop/flask", "update", compromised),
    ("rotator", "{m}/data/shop/stripe", "read", rotate),
    ("rotator", "{one}/legacy", "create", restore_old),
    ("rotator", "{one}/legacy", "read", rotate),
    ("rotator", "{one}/legacy", "update", rotate),
    ("init", "sys/mounts/{m}", "update", init),
    ("init", "{m}/config", "read", init),
    ("init", "{m}/data/shop/flask", "create", init),
    ("init", "{m}/data/shop/flask", "read", init),
    ("init", "{m}/data/shop/flask", "update", init_more),
    ("init", "{m}/metadata/shop/flask", "read", init),
    ("init", "{m}/metadata/shop/flask", "update", init),
    ("init", "{m}/data/shop/stripe", "read", init),
    ("init", "{one}/legacy", "create", init),
    ("init", "{one}/legacy", "read", init),
    ("init", "{one}/legacy", "update", init_more),
]

OPERATIONS = list(dict.fromkeys((role, needs) for role, _, _, needs in NEEDED))


def rules_of(world: World, role: Role) -> list[Rule]:
    """The policy; for ``init`` that of somebody whose mount is not there yet."""
    if role != "init":
        return world.rules(role)

    name, world.mount = world.mount, f"new-{world.mount}"
    found = world.rules(role)
    world.mount = name
    return [
        dataclasses.replace(rule, path=rule.path.replace(f"new-{name}", name))
        for rule in found
    ]


@pytest.mark.parametrize(("role", "operation"), OPERATIONS)
def test_a_policy_is_enough(world: World, role: Role, operation: Operation) -> None:
    world.log_in(rules_of(world, role))
    operation(world)


@pytest.mark.parametrize(
    ("role", "path", "capability", "operation"),
    NEEDED,
    ids=[f"{r}-{p.format(m='kv', one='kv1')}-{c}" for r, p, c, _ in NEEDED],
)
def test_without_any_one_line_of_a_policy_something_fails(
    world: World, role: Role, path: str, capability: str, operation: Operation
) -> None:
    where = world.path(path)
    kept = [
        dataclasses.replace(
            rule,
            capabilities=tuple(
                name
                for name in rule.capabilities
                if (rule.path, name) != (where, capability)
            ),
        )
        for rule in rules_of(world, role)
    ]
    world.log_in([rule for rule in kept if rule.capabilities])

    with pytest.raises((AssertionError, VaultError)):
        operation(world)


@pytest.mark.parametrize("role", ROLES)
def test_no_line_of_a_policy_goes_unproven(world: World, role: Role) -> None:
    lines = [(r.path, c) for r in rules_of(world, role) for c in r.capabilities]
    assert sorted(lines) == sorted(
        (world.path(path), c) for of, path, c, _ in NEEDED if of == role
    )


def test_no_right_to_mount_is_asked_for_where_there_is_a_mount(world: World) -> None:
    assert not any("sys/" in rule.path for rule in world.rules("init"))


# --- what else an entry may be -----------------------------------------------------


def rules_for(entry: object, role: Role, version: int = 2) -> list[str]:
    catalog = VaultClient.from_mapping(
        {"VAULT_ENABLED": False, "VAULT_SECRETS": {"KEY": entry}}, {}
    ).catalog

    def mount_of(location: Location) -> Mount:
        return Mount(location.path.partition("/")[0], version)

    found = rules(role, catalog, mount_of)
    return [f"{rule.path}: {' '.join(rule.capabilities)}" for rule in found]


STATIC_ROLE = {
    "ref": "/database/static-creds/app",
    "template": "postgresql://{username}:{password}@db/shop",
    "rotate": {"kind": "database-static", "field": "password"},
}


def test_a_static_role_of_vaults_database_engine() -> None:
    read, rotate = "database/static-creds/app: read", "database/rotate-role/app: update"
    assert rules_for(STATIC_ROLE, "app") == [read]
    assert rules_for(STATIC_ROLE, "rotator") == [read, rotate]


@pytest.fixture
def static_role(vault_server: DevServer, postgres: Postgres) -> cabc.Iterator[str]:
    """The mount of a database engine with the role ``app``."""
    mount = f"database-{secrets.token_hex(4)}"
    api, token = Api(vault_server.address), vault_server.root_token
    user = postgres.create_user("nobody-knows-this-one")
    url = "postgresql://{{username}}:{{password}}@" + f"127.0.0.1:{postgres.port}"
    api.call("POST", f"sys/mounts/{mount}", {"type": "database"}, token=token)
    shop = {
        "plugin_name": "postgresql-database-plugin",
        "allowed_roles": "*",
        "connection_url": f"{url}/postgres",
        "username": "postgres",
        "password": postgres.password,
    }
    api.call("POST", f"{mount}/config/shop", shop, token=token)
    role = {"db_name": "shop", "username": user, "rotation_period": 86_400}
    api.call("POST", f"{mount}/static-roles/app", role, token=token)
    yield mount
    vault_server.disable_mount(mount)


def test_the_rights_on_a_static_role_are_enough_and_needed(
    vault_server: DevServer, static_role: str
) -> None:
    entry = {**STATIC_ROLE, "ref": f"/{static_role}/static-creds/app"}
    catalog = VaultClient.from_mapping(
        {"VAULT_ENABLED": False, "VAULT_SECRETS": {"KEY": entry}}, {}
    ).catalog
    found = rules("rotator", catalog, lambda location: Mount("never-asked", 2))

    def statuses(granted: cabc.Sequence[Rule]) -> tuple[int, int]:
        auth = approle(vault_server, to_hcl("rotator", "shop", granted))
        api = Api(vault_server.address)
        login = api.call("POST", "auth/approle/login", auth)
        token = login["auth"]["client_token"]
        read, _ = api.ask("GET", f"{static_role}/static-creds/app", token=token)
        rotated, _ = api.ask("POST", f"{static_role}/rotate-role/app", {}, token=token)
        return read, rotated

    assert statuses(found) == (200, 204)
    assert statuses(found[1:]) == (403, 204)
    assert statuses(found[:1]) == (200, 403)


def test_what_a_person_makes_is_only_looked_at_by_init() -> None:
    assert rules_for("stripe#api_key", "init") == ["secret/data/stripe: read"]
    assert rules_for({"ref": "flask#key", "version": 3}, "init") == []


@pytest.mark.parametrize("path", ["team/*", "a/+/b", "a{{b}}", 'a"b', "a${b}", "a\\b"])
def test_a_path_that_would_grant_more_than_itself_is_refused(path: str) -> None:
    with pytest.raises(VaultConfigError, match="No policy can name the path"):
        rules_for(f"{path}#key", "app")


def test_the_policy_of_the_app_alone_for_the_development_server(world: World) -> None:
    client = VaultClient.from_mapping(world.config(), {})
    found = app_policy(client.catalog, client.kv.mount_of)
    assert re.findall(r'path "(.*)"', found) == [r.path for r in world.rules("app")]
    assert app_policy(VaultClient.from_mapping({"VAULT_ENABLED": False}, {}).catalog,
                      client.kv.mount_of) == ""  # fmt: skip


# --- the command -------------------------------------------------------------------


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("form", ["hcl", "json", "terraform"])
def test_each_form_says_the_same_to_the_server(
    world: World, role: Role, form: str
) -> None:
    result = world.flask_vault("policy", "--for", role, "--format", form)
    assert (result.exit_code, result.stderr) == (0, "")
    text = result.stdout

    if form == "terraform":
        name = f'resource "vault_policy" "shop_{role}" {{\n  name   = "shop-{role}"\n'
        assert text.startswith(name)
        text = text.partition("<<-EOT\n")[2].partition("  EOT\n")[0]

    world.auth = approle(world.server, text)
    has = capabilities(world, [rule.path for rule in world.rules(role)])
    assert has == {r.path: set(r.capabilities) for r in world.rules(role)}


def capabilities(world: World, paths: list[str]) -> dict[str, set[str]]:
    from flask_vault.vault.access import Access

    client = VaultClient.from_mapping(world.config(), {})
    found = Access(client.transport).capabilities(paths)
    return {path: set(names) for path, names in found.items()}


def test_the_comments_name_the_keys_and_what_is_granted_elsewhere(world: World) -> None:
    text = world.flask_vault("policy").stdout
    assert f'# SECRET_KEY\npath "{world.mount}/data/shop/flask" {{' in text
    assert "the\n# policy 'default'" in text


def test_json_tells_the_rules(world: World) -> None:
    report = json.loads(world.flask_vault("policy", "--json").stdout)
    assert report["for"] == "app"
    assert report["policy"] is report["approle"] is None
    assert report["rules"][-1] == {
        "path": f"{world.old_mount}/legacy",
        "capabilities": ["read"],
        "keys": ["LEGACY_KEY"],
    }


def test_before_there_is_a_way_to_log_in(world: World) -> None:
    """Somebody has to write the first policy."""
    world.auth = {"method": "approle", "role_id": "x", "secret_id_file": "/none"}
    result = world.flask_vault("policy")
    assert result.exit_code == 0
    assert f'path "{world.mount}/data/shop/flask"' in result.stdout
    assert "KV version 2 is assumed (VAULT_KV_VERSION)" in result.stderr


def test_without_a_server(world: World) -> None:
    nobody = {"VAULT_ADDR": "http://127.0.0.1:9"}
    result = world.flask_vault("policy", VAULT_KV_VERSION=1, **nobody)
    assert result.exit_code == 0
    assert result.stderr == ""
    assert f'path "{world.mount}/shop/flask"' in result.stdout
    result = world.flask_vault("policy", "--apply", "shop", "--yes", **nobody)
    assert result.exit_code == 4


def test_without_vault(world: World) -> None:
    result = world.flask_vault("policy", VAULT_ENABLED=False)
    assert result.exit_code == 0
    assert f'path "{world.mount}/metadata/shop/flask"' in result.stdout
    arguments = ("policy", "--apply", "shop", "--yes")
    assert world.flask_vault(*arguments, VAULT_ENABLED=False).exit_code == 2


def test_who_may_not_ask_about_a_mount_is_told_what_is_assumed(world: World) -> None:
    world.log_in([Rule("sys/policies/acl/shop", ("update",), ())])
    result = world.flask_vault("policy")
    assert result.exit_code == 0
    assert f"does not say what is mounted at {world.mount!r}" in result.stderr
    assert f"does not say what is mounted at {world.old_mount!r}" in result.stderr
    assert "and 'init' may make it" not in result.stderr
    result = world.flask_vault("policy", "--for", "init")
    assert "and 'init' may make it" in result.stderr


def test_apply_asks_and_writes(world: World) -> None:
    name = f"shop-{world.mount}"
    assert "Aborted" in world.flask_vault("policy", "--apply", name).stderr

    with pytest.raises(VaultError, match="404"):
        world.call("GET", f"sys/policies/acl/{name}")

    result = world.flask_vault("policy", "--apply", name, "--yes")
    assert result.stdout == f"The policy {name!r} is written.\n"
    answer = world.call("GET", f"sys/policies/acl/{name}")
    assert answer["data"]["policy"] == world.flask_vault("policy").stdout


def test_apply_says_that_there_is_another_policy_of_that_name(world: World) -> None:
    name = f"shop-{world.mount}"
    world.call("PUT", f"sys/policies/acl/{name}", {"policy": 'path "x" {}'})
    result = world.flask_vault("policy", "--apply", name)
    assert "Vault has another policy" in result.stdout
    answer = world.call("GET", f"sys/policies/acl/{name}")
    assert answer["data"]["policy"] == 'path "x" {}'


def test_who_may_not_write_policies_is_told_what_to_do(world: World) -> None:
    world.log_in(world.rules("app"))
    result = world.flask_vault("policy", "--apply", "shop", "--yes")
    assert result.exit_code == 7
    assert "hand the output of 'flask vault policy --for app'" in result.stderr


@pytest.mark.parametrize("name", ["root", "default", "Shop", "a/b", "-x", ""])
@pytest.mark.parametrize("option", ["--apply", "--approle"])
def test_a_name_that_is_another_one_for_vault(
    world: World, option: str, name: str
) -> None:
    result = world.flask_vault("policy", f"{option}={name}", "--yes")
    assert result.exit_code == 2
    assert "lower case letters" in result.stderr


# --- the role ----------------------------------------------------------------------


def new_role(world: World, role: Role) -> dict[str, t.Any]:
    name = f"{role}-{secrets.token_hex(4)}"
    result = world.flask_vault(
        "policy", "--for", role, "--approle", name, "--yes", "--json"
    )
    assert (result.exit_code, result.stderr) == (0, "")
    made: dict[str, t.Any] = json.loads(result.stdout)["approle"]
    return made


def test_the_whole_way_with_the_roles_that_the_command_makes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Start, refresh, rotate, restore: with its own role each, and nothing more."""
    app_role, rotator = new_role(world, "app"), new_role(world, "rotator")
    world.auth = app_role["auth"]
    monkeypatch.setenv("VAULT_WRAPPED_SECRET_ID", app_role["wrapping_token"])
    app = start_app(world.config())
    assert state_of(app).refresh().errors == {}

    world.auth = rotator["auth"]
    monkeypatch.setenv("VAULT_WRAPPED_SECRET_ID", rotator["wrapping_token"])
    result = world.flask_vault("rotate", "--secret", "LEGACY_KEY")
    assert (result.exit_code, result.stderr) == (0, "")
    backup = re.findall(r"backup (\S+\.json)", result.stdout)[0]

    # The wrapping token and the secret id are used up, as they are for a thief.
    assert world.flask_vault("rotate", "--secret", "LEGACY_KEY").exit_code == 7

    rotator = new_role_as_root(world, "rotator")
    world.auth = rotator["auth"]
    monkeypatch.setenv("VAULT_WRAPPED_SECRET_ID", rotator["wrapping_token"])
    result = world.flask_vault("rotate", "--restore", backup, "--yes")
    assert (result.exit_code, result.stderr) == (0, "")

    state = state_of(app)
    assert state.refresh().changed == ()
    assert app.config["LEGACY_KEY"] == f"{CANARY}-old"


def new_role_as_root(world: World, role: Role) -> dict[str, t.Any]:
    world.auth = None
    return new_role(world, role)


def test_a_secret_id_is_not_shown_and_logs_in_once(world: World) -> None:
    name = f"deploy-{secrets.token_hex(4)}"
    arguments = ("policy", "--for", "rotator", "--approle", name, "--yes")
    result = world.flask_vault(*arguments)
    assert (result.exit_code, result.stderr) == (0, "")
    assert "secret_id_accessor" not in result.stdout
    role = world.call("GET", f"auth/approle/role/{name}")["data"]
    assert role["token_policies"] == [name]
    assert role["token_ttl"] == 1800
    assert role["secret_id_ttl"] == 900
    assert role["secret_id_num_uses"] == 1
    (token,) = re.findall(r"^    (\S+)$", result.stdout, re.M)
    looked_up = world.call("POST", "sys/wrapping/lookup", {"token": token})["data"]
    assert looked_up["creation_path"] == f"auth/approle/role/{name}/secret-id"
    assert looked_up["creation_ttl"] == 300


def test_the_login_method_is_enabled_where_it_is_missing() -> None:
    with DevServer() as server:
        app = new_app(
            {"VAULT_ADDR": server.address, "VAULT_TOKEN": server.root_token},
            VAULT_SECRETS={"STRIPE_API_KEY": "stripe#api_key"},
        )
        result = CliRunner().invoke(
            vault_group,
            ["policy", "--approle", "shop", "--yes"],
            obj=ScriptInfo(create_app=lambda: (FlaskVault(app), app)[1]),
        )
        assert result.exit_code == 0, result.output
        assert "VAULT_AUTH = " in result.stdout
