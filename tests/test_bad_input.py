"""Each mistake at the start is one sentence: the config key, what is wrong, the cure.

The app is left as it was, and neither a token nor a value is in the sentence.
"""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import pathlib
import typing as t

import pytest

from flask_vault import FlaskVault
from flask_vault import SecretFieldError
from flask_vault import SecretNotFoundError
from flask_vault import SecretValueError
from flask_vault import SecretVersionError
from flask_vault import VaultClient
from flask_vault import VaultConfigError
from flask_vault import VaultConnectionError
from flask_vault import VaultError
from flask_vault import VaultLoginError
from flask_vault import VaultNotInitializedError
from flask_vault import VaultPermissionError
from flask_vault import VaultResponseError
from flask_vault import VaultSealedError
from flask_vault import VaultTLSError
from flask_vault import VaultUnavailableError
from flask_vault.testing import DevServer
from flask_vault.testing import FaultProxy
from flask_vault.testing.plugin import VaultMount
from flask_vault.testing.tls import write_certificates
from tests.helpers import approle
from tests.helpers import may_read
from tests.helpers import new_app
from tests.helpers import refused
from tests.helpers import start_app

CANARY = "canary-b9e2"
HTML = "<!DOCTYPE html><title>Welcome to nginx</title>"

#: The twenty entries of an app, for which one sentence is enough.
TWENTY = {f"KEY_{i}": f"p{i}#x" for i in range(20)}


@dataclasses.dataclass
class World:
    """What a mistake is made in."""

    mount: VaultMount
    server: DevServer
    proxy: FaultProxy
    folder: pathlib.Path


@pytest.fixture
def world(
    vault_mount: VaultMount,
    vault_server: DevServer,
    vault_proxy: FaultProxy,
    tmp_path: pathlib.Path,
) -> World:
    vault_mount.write("app", {"good": CANARY})
    return World(vault_mount, vault_server, vault_proxy, tmp_path)


Mistake = cabc.Callable[[World], dict[str, t.Any]]


def entry(raw: object, **more: t.Any) -> Mistake:
    """A mistake in one entry, beside a good one."""
    return lambda world: {"VAULT_SECRETS": {"GOOD": "app#good", "BAD": raw}, **more}


def shared_name(world: World) -> dict[str, t.Any]:
    one = {"ref": "app#good", "name": "same"}
    return {"VAULT_SECRETS": {"GOOD": one, "BAD": one}}


def server_down(world: World) -> dict[str, t.Any]:
    world.proxy.cut()
    return entry("app#good")(world)


def answers_html(world: World) -> dict[str, t.Any]:
    world.proxy.answer(200, HTML)
    return entry("app#good")(world)


def answers_other_json(world: World) -> dict[str, t.Any]:
    world.proxy.answer(200, {"hello": CANARY}, match="/data/")
    return entry("app#good")(world)


def redirects(world: World) -> dict[str, t.Any]:
    world.proxy.answer(307, headers={"Location": "http://evil.example/"})
    return entry("app#good")(world)


def speaks_no_tls(world: World) -> dict[str, t.Any]:
    address = world.server.address.replace("http:", "https:")
    return {**entry("app#good")(world), "VAULT_ADDR": address}


def ca_file_that_is_none(world: World) -> dict[str, t.Any]:
    file = world.folder / "ca.pem"
    file.write_text("not a certificate")
    address = world.server.address.replace("http:", "https:")
    return {
        **entry("app#good")(world),
        "VAULT_ADDR": address,
        "VAULT_CACERT": str(file),
    }


def bad_token(world: World) -> dict[str, t.Any]:
    return {**entry("app#good")(world), "VAULT_TOKEN": CANARY}


def token_with_newline(world: World) -> dict[str, t.Any]:
    return {**entry("app#good")(world), "VAULT_TOKEN": f"{CANARY}\n{CANARY}"}


def no_token(world: World) -> dict[str, t.Any]:
    return {**entry("app#good")(world), "VAULT_TOKEN": None}


def token_file(content: bytes | None) -> Mistake:
    def mistake(world: World) -> dict[str, t.Any]:
        file = world.folder / "token"

        if content is not None:
            file.write_bytes(content)

        auth = {"method": "token", "token_file": str(file)}
        return {**entry("app#good")(world), "VAULT_AUTH": auth}

    return mistake


def token_folder(world: World) -> dict[str, t.Any]:
    auth = {"method": "token", "token_file": str(world.folder)}
    return {**entry("app#good")(world), "VAULT_AUTH": auth}


def auth(raw: object) -> Mistake:
    return lambda world: {**entry("app#good")(world), "VAULT_AUTH": raw}


def bad_secret_id(world: World) -> dict[str, t.Any]:
    role = approle(world.server, may_read(world.mount))
    return auth({**role, "secret_id": CANARY})(world)


def denied_on_one_path(world: World) -> dict[str, t.Any]:
    world.mount.write("denied", {"x": CANARY})
    role = approle(world.server, may_read(world.mount, "app"))
    return {**entry("denied#x")(world), "VAULT_AUTH": role}


def stored(value: object, **more: object) -> Mistake:
    def mistake(world: World) -> dict[str, t.Any]:
        world.mount.write("bad", {"x": value})
        return entry({"ref": "bad#x", **more})(world)

    return mistake


def template_field(world: World) -> dict[str, t.Any]:
    world.mount.write("db", {"user": CANARY})
    return entry({"ref": "db", "template": "x://{user}:{pasword}@db"})(world)


def template_host(world: World) -> dict[str, t.Any]:
    world.mount.write("db", {"host": f"{CANARY}/x"})
    return entry({"ref": "db", "template": "x://{host}"})(world)


def version_on_kv_1(world: World) -> dict[str, t.Any]:
    raw = {"ref": "app#good", "version": 1}
    return {"VAULT_SECRETS": {"BAD": raw}, "VAULT_KV_VERSION": 1}


def version_gone(how: str) -> Mistake:
    def mistake(world: World) -> dict[str, t.Any]:
        world.mount.write("old", {"x": CANARY})
        world.mount.write("old", {"x": CANARY})
        kv = world.server.client().secrets.kv.v2

        if how == "destroyed":
            kv.destroy_secret_versions("old", [1], mount_point=world.mount.name)
        elif how == "deleted":
            kv.delete_secret_versions("old", [1], mount_point=world.mount.name)

        number = 9 if how == "never" else 1
        return entry({"ref": "old#x", "version": number})(world)

    return mistake


def latest_deleted(world: World) -> dict[str, t.Any]:
    world.mount.write("old", {"x": CANARY})
    kv = world.server.client().secrets.kv.v2
    kv.delete_latest_version_of_secret("old", mount_point=world.mount.name)
    return entry("old#x")(world)


def no_mount(world: World) -> dict[str, t.Any]:
    return {**entry("app#good")(world), "VAULT_MOUNT": "no-such-mount"}


def no_kv_mount(world: World) -> dict[str, t.Any]:
    return entry("/cubbyhole/x#y")(world)


def unset_environment(world: World) -> dict[str, t.Any]:
    return {**entry("app#good")(world), "VAULT_PREFIX": "a/{environment}"}


TABLE: list[tuple[str, Mistake, type[VaultError], tuple[str, ...]]] = [
    # Name, mistake, type, what the sentence says: the key first, then the cure.
    (
        "unknown key",
        entry({"ref": "app#good", "defalt": CANARY}),
        VaultConfigError,
        ("VAULT_SECRETS['BAD']", "did you mean 'default'?"),
    ),
    (
        "no field",
        entry("flask#"),
        VaultConfigError,
        ("VAULT_SECRETS['BAD']", "write 'flask#field'"),
    ),
    (
        "no path",
        entry("#x"),
        VaultConfigError,
        ("VAULT_SECRETS['BAD']", "write 'path#field'"),
    ),
    (
        "two slashes",
        entry("a//b#x"),
        VaultConfigError,
        ("VAULT_SECRETS['BAD']", "write single slashes"),
    ),
    (
        "dots",
        entry("../x#y"),
        VaultConfigError,
        ("VAULT_SECRETS['BAD']", "write the path out"),
    ),
    (
        "control character",
        entry("a\nb#y"),
        VaultConfigError,
        ("VAULT_SECRETS['BAD']", "in printable characters"),
    ),
    (
        "shared name",
        shared_name,
        VaultConfigError,
        ("VAULT_SECRETS['GOOD']", "VAULT_SECRETS['BAD']", "another 'name'"),
    ),
    (
        "environment unset",
        unset_environment,
        VaultConfigError,
        ("VAULT_PREFIX", "VAULT_ENVIRONMENT is unset: set it"),
    ),
    (
        "server down",
        server_down,
        VaultConnectionError,
        ("GOOD, BAD: ", "connection refused", "check VAULT_ADDR"),
    ),
    (
        "HTML",
        answers_html,
        VaultResponseError,
        ("GOOD, BAD: ", "an HTML page", "check VAULT_ADDR"),
    ),
    (
        "other JSON",
        answers_other_json,
        VaultResponseError,
        ("GOOD, BAD: ", "not the shape of a document"),
    ),
    (
        "redirect",
        redirects,
        VaultUnavailableError,
        ("GOOD, BAD: ", "not followed", "Add the addresses of all servers"),
    ),
    (
        "no TLS there",
        speaks_no_tls,
        VaultTLSError,
        ("GOOD, BAD: ", "is the address meant to be http?", "correct VAULT_ADDR"),
    ),
    (
        "CA file is none",
        ca_file_that_is_none,
        VaultTLSError,
        ("GOOD, BAD: ", "is not trusted: set VAULT_CACERT"),
    ),
    (
        "bad token",
        bad_token,
        VaultLoginError,
        ("GOOD, BAD: ", "does not accept the token", "Check VAULT_TOKEN"),
    ),
    (
        "token with newline",
        token_with_newline,
        VaultConfigError,
        ("VAULT_TOKEN", "one line of printable characters"),
    ),
    ("no token", no_token, VaultConfigError, ("set VAULT_AUTH", "VAULT_TOKEN")),
    (
        "token file missing",
        token_file(None),
        VaultConfigError,
        ("VAULT_AUTH['token_file']", "check the path"),
    ),
    (
        "token file is a folder",
        token_folder,
        VaultConfigError,
        ("VAULT_AUTH['token_file']", "cannot be read"),
    ),
    (
        "token file is no text",
        token_file(b"\xff" + CANARY.encode()),
        VaultConfigError,
        ("VAULT_AUTH['token_file']", "it is not text"),
    ),
    (
        "token file is empty",
        token_file(b"\n"),
        VaultConfigError,
        ("the file ", "is empty: put the credential there"),
    ),
    (
        "token file has two lines",
        token_file(f"{CANARY}\n{CANARY}\n".encode()),
        VaultConfigError,
        ("the file ", "check that it is one line"),
    ),
    (
        "unknown login method",
        auth({"method": "aprole"}),
        VaultConfigError,
        ("VAULT_AUTH", "the methods are approle,"),
    ),
    (
        "unknown login option",
        auth({"method": "approle", "roleid": CANARY}),
        VaultConfigError,
        ("VAULT_AUTH", "did you mean 'role_id'?"),
    ),
    (
        "no secret id",
        auth({"method": "approle", "role_id": "x"}),
        VaultConfigError,
        ("VAULT_AUTH", "'secret_id_file'", "VAULT_SECRET_ID"),
    ),
    (
        "login of the wrong shape",
        auth(["approle"]),
        VaultConfigError,
        ("VAULT_AUTH is a mapping", "not list"),
    ),
    (
        "bad secret id",
        bad_secret_id,
        VaultLoginError,
        (
            "GOOD, BAD: ",
            "invalid role or secret ID",
            "check the role id and the secret",
        ),
    ),
    (
        "denied",
        denied_on_one_path,
        VaultPermissionError,
        ("BAD: ", "policy must grant 'read' on 'test-"),
    ),
    (
        "path missing",
        entry("gone#x"),
        SecretNotFoundError,
        ("BAD: ", "no document at 'test-", "flask vault init"),
    ),
    (
        "path with data/",
        entry("data/app#good"),
        SecretNotFoundError,
        ("BAD: ", "Leave out 'data/'"),
    ),
    (
        "mount missing",
        no_mount,
        SecretNotFoundError,
        ("GOOD, BAD: ", "VAULT_MOUNT ('no-such-mount')"),
    ),
    (
        "mount of another kind",
        no_kv_mount,
        VaultConfigError,
        ("BAD: ", "no key-value engine but 'cubbyhole'"),
    ),
    (
        "field missing",
        entry("app#bad"),
        SecretFieldError,
        ("BAD: ", "no field 'bad'; it has good"),
    ),
    (
        "null",
        stored(None),
        SecretValueError,
        ("BAD: ", "is null: write one to Vault"),
    ),
    (
        "nested",
        stored({"a": CANARY}),
        SecretValueError,
        ("BAD: ", "add 'cast': 'json'"),
    ),
    (
        "does not cast",
        stored(CANARY, cast="int"),
        SecretValueError,
        ("BAD: ", "is no int: correct it in Vault, or the 'cast'"),
    ),
    (
        "template",
        template_field,
        SecretFieldError,
        ("BAD: ", "no field 'pasword'; it has user"),
    ),
    (
        "template's host",
        template_host,
        SecretValueError,
        ("BAD: ", "field 'host'", "correct it in Vault"),
    ),
    (
        "version on KV 1",
        version_on_kv_1,
        VaultConfigError,
        ("BAD: ", "remove 'version'"),
    ),
    (
        "version destroyed",
        version_gone("destroyed"),
        SecretVersionError,
        ("BAD: ", "Version 1", "was destroyed: pin another version"),
    ),
    (
        "version deleted",
        version_gone("deleted"),
        SecretVersionError,
        ("BAD: ", "Version 1", "was deleted: pin another version"),
    ),
    (
        "version never there",
        version_gone("never"),
        SecretVersionError,
        ("BAD: ", "no version 9", "pin another"),
    ),
    (
        "deleted",
        latest_deleted,
        SecretVersionError,
        ("BAD: ", "was deleted: write a new one, or undelete it"),
    ),
]


@pytest.mark.parametrize(
    ("mistake", "kind", "said"),
    [row[1:] for row in TABLE],
    ids=[row[0].replace(" ", "-") for row in TABLE],
)
def test_a_mistake_gets_one_sentence(
    mistake: Mistake,
    kind: type[VaultError],
    said: tuple[str, ...],
    world: World,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = world.mount.config(VAULT_ADDR=world.proxy.address)
    changes = mistake(world)

    if "VAULT_AUTH" in changes:
        config["VAULT_TOKEN"] = None

    app = new_app({**config, **changes})

    with refused(app, kind) as caught:
        FlaskVault(app)

    message = str(caught.value)

    for words in said:
        assert words in message

    # Of the good entry nothing is told when it is not concerned.
    assert ("GOOD" in message) == any("GOOD" in words for words in said)
    # One line; no token and no value of either the good or the bad entry.
    assert message.isprintable()
    assert CANARY not in message
    assert str(world.mount.token) not in message + caplog.text
    assert CANARY not in caplog.text


def test_denied_missing_and_unreachable_are_told_apart() -> None:
    kinds = [
        VaultPermissionError,
        VaultLoginError,
        SecretNotFoundError,
        VaultUnavailableError,
        VaultTLSError,
    ]

    for kind in kinds:
        assert issubclass(kind, VaultError)
        assert not any(issubclass(kind, other) for other in kinds if other != kind)


# Logins.


def test_a_bad_secret_id_is_sent_once(
    vault_server: DevServer, vault_mount: VaultMount, vault_proxy: FaultProxy
) -> None:
    """Five refused logins lock the role for everybody."""
    role = approle(vault_server, may_read(vault_mount))
    app = new_app(
        vault_mount.config(VAULT_ADDR=vault_proxy.address, VAULT_TOKEN=None),
        VAULT_AUTH={**role, "secret_id": "wrong"},
        VAULT_SECRETS=TWENTY,
    )

    with refused(app, VaultLoginError):
        FlaskVault(app)

    assert vault_proxy.logins == vault_proxy.count == 1


def test_a_refused_login_is_not_tried_again_by_later_reads(
    vault_server: DevServer, vault_mount: VaultMount, vault_proxy: FaultProxy
) -> None:
    role = approle(vault_server, may_read(vault_mount))
    client = VaultClient.from_mapping(
        vault_mount.config(
            VAULT_ADDR=vault_proxy.address,
            VAULT_AUTH={**role, "secret_id": "wrong"},
        )
    )

    for i in range(20):
        with pytest.raises(VaultLoginError):
            client.get_secret(f"p{i}", "x")

    assert client.health_check()["authenticated"] is False
    assert vault_proxy.logins == 1


def test_another_secret_id_is_tried_at_once(
    vault_server: DevServer,
    vault_mount: VaultMount,
    vault_proxy: FaultProxy,
    tmp_path: pathlib.Path,
) -> None:
    vault_mount.write("app", {"x": "v"})
    role = approle(vault_server, may_read(vault_mount))
    file = tmp_path / "secret-id"
    file.write_text("wrong")
    client = VaultClient.from_mapping(
        vault_mount.config(
            VAULT_ADDR=vault_proxy.address,
            VAULT_AUTH={
                "method": "approle",
                "role_id": role["role_id"],
                "secret_id_file": str(file),
            },
        )
    )

    for _ in range(2):
        with pytest.raises(VaultLoginError):
            client.get_secret("app", "x")

    file.write_text(f"{role['secret_id']}\n")

    assert client.get_secret("app", "x") == "v"
    assert vault_proxy.logins == 2


def test_a_stranger_at_the_address_gets_the_secret_id_once(
    vault_mount: VaultMount, vault_proxy: FaultProxy
) -> None:
    vault_proxy.answer(200, HTML)
    app = new_app(
        vault_mount.config(VAULT_ADDR=vault_proxy.address, VAULT_TOKEN=None),
        VAULT_AUTH={"method": "approle", "role_id": "r", "secret_id": CANARY},
        VAULT_SECRETS=TWENTY,
    )

    with refused(app, VaultResponseError) as caught:
        FlaskVault(app)

    assert "an HTML page" in str(caught.value)
    assert vault_proxy.count == 1


# Servers in a bad state.


@pytest.fixture(scope="module")
def sealed_server() -> cabc.Iterator[DevServer]:
    with DevServer() as server:
        server.seal()
        yield server


@pytest.fixture(scope="module")
def new_server() -> cabc.Iterator[DevServer]:
    with DevServer(storage="raft", initialize=False) as server:
        yield server


@pytest.fixture(scope="module")
def tls_server() -> cabc.Iterator[DevServer]:
    with DevServer(storage="raft", tls=True) as server:
        server.client().secrets.kv.v2.create_or_update_secret(
            "app", {"x": "v"}, mount_point="secret"
        )
        yield server


@pytest.mark.parametrize(
    "auth",
    [None, {"method": "approle", "role_id": "r", "secret_id": CANARY}],
    ids=["token", "approle"],
)
def test_a_sealed_server(auth: object, sealed_server: DevServer) -> None:
    app = new_app(
        sealed_server.environ(), VAULT_AUTH=auth, VAULT_SECRETS={"KEY": "app#x"}
    )

    with refused(app, VaultSealedError) as caught:
        FlaskVault(app)

    assert str(caught.value).startswith("KEY: ")
    assert "is sealed (503: Vault is sealed): unseal it with" in str(caught.value)


@pytest.mark.parametrize(
    "auth",
    [None, {"method": "approle", "role_id": "r", "secret_id": CANARY}],
    ids=["token", "approle"],
)
def test_a_server_that_is_not_initialized(auth: object, new_server: DevServer) -> None:
    app = new_app(
        {"VAULT_ADDR": new_server.address, "VAULT_TOKEN": CANARY},
        VAULT_AUTH=auth,
        VAULT_SECRETS={"KEY": "app#x"},
    )

    with refused(app, VaultNotInitializedError) as caught:
        FlaskVault(app)

    assert str(caught.value).startswith("KEY: ")
    assert "operator init" in str(caught.value)


def test_a_certificate_of_a_stranger(
    tls_server: DevServer, tmp_path: pathlib.Path
) -> None:
    wrong_ca, _, _ = write_certificates(tmp_path)

    for ca in (None, wrong_ca):
        app = new_app(
            tls_server.environ(), VAULT_CACERT=ca, VAULT_SECRETS={"KEY": "app#x"}
        )

        with refused(app, VaultTLSError) as caught:
            FlaskVault(app)

        assert "set VAULT_CACERT to the file of the authority" in str(caught.value)


def test_the_right_authority_from_the_environment(
    tls_server: DevServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in tls_server.environ().items():
        monkeypatch.setenv(name, value)

    assert start_app({}, VAULT_SECRETS={"KEY": "app#x"}).config["KEY"] == "v"


def test_http_to_a_server_that_speaks_tls(tls_server: DevServer) -> None:
    address = tls_server.address.replace("https:", "http:")
    app = new_app(
        tls_server.environ(), VAULT_ADDR=address, VAULT_SECRETS={"KEY": "app#x"}
    )

    with refused(app, VaultResponseError) as caught:
        FlaskVault(app)

    assert "the server speaks https, the address says http" in str(caught.value)


# Of urllib3, at each request.
@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
def test_skip_verify_works_and_warns_outside_debug(
    tls_server: DevServer, caplog: pytest.LogCaptureFixture
) -> None:
    def start(debug: bool) -> str:
        caplog.clear()
        app = new_app(
            tls_server.environ(),
            VAULT_CACERT=None,
            VAULT_SKIP_VERIFY=True,
            VAULT_SECRETS={"KEY": "app#x"},
        )
        app.debug = debug

        FlaskVault(app)
        assert app.config["KEY"] == "v"
        return caplog.text

    assert "VAULT_SKIP_VERIFY is on" in start(debug=False)
    assert "VAULT_SKIP_VERIFY is on" not in start(debug=True)
