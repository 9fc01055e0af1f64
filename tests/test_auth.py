"""How a client comes to a token, and what it does when that one dies."""

from __future__ import annotations

import pathlib
import socket
import typing as t

import hvac.exceptions
import pytest

from flask_vault import VaultClient
from flask_vault import VaultConfigError
from flask_vault import VaultLoginError
from flask_vault import VaultPermissionError
from flask_vault.testing import DevServer
from flask_vault.testing import FaultProxy
from flask_vault.testing.plugin import VaultMount
from flask_vault.vault.auth import parse_auth
from tests.helpers import approle
from tests.helpers import at_once
from tests.helpers import may_read


@pytest.fixture(autouse=True)
def _document(vault_mount: VaultMount) -> None:
    vault_mount.write("app", {"x": "v"})


def new_client(
    mount: VaultMount, proxy: FaultProxy, auth: object, **config: object
) -> VaultClient:
    """Without a token from the mount, unless one is given."""
    return VaultClient.from_mapping(
        mount.config(
            **{
                "VAULT_ADDR": proxy.address,
                "VAULT_TOKEN": None,
                "VAULT_AUTH": auth,
                "VAULT_KV_VERSION": 2,
                **config,
            }
        )
    )


def revoke(server: DevServer, client: VaultClient) -> None:
    token = client._transport.token
    assert token is not None
    server.client().auth.token.revoke(token.value)


def role_of(server: DevServer, mount: VaultMount, **options: object) -> dict[str, str]:
    return t.cast("dict[str, str]", approle(server, may_read(mount), **options))


# Where the credential is.


@pytest.mark.parametrize("where", ["config", "files", "environment", "named"])
def test_approle_takes_its_ids_from(
    where: str,
    vault_server: DevServer,
    vault_mount: VaultMount,
    vault_proxy: FaultProxy,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    role = role_of(vault_server, vault_mount)
    auth: dict[str, str] = {"method": "approle"}

    for name in ("role_id", "secret_id"):
        if where == "config":
            auth[name] = role[name]
        elif where == "files":
            # Editors and `echo` end a file with a line break.
            (tmp_path / name).write_text(f"{role[name]}\n")
            auth[f"{name}_file"] = str(tmp_path / name)
        elif where == "environment":
            monkeypatch.setenv(f"VAULT_{name.upper()}", role[name])
        else:
            monkeypatch.setenv(f"MY_{name.upper()}", role[name])
            auth[f"{name}_env"] = f"MY_{name.upper()}"

    client = new_client(vault_mount, vault_proxy, auth)

    assert client.get_secret("app", "x") == "v"
    assert vault_proxy.logins == 1


def test_a_method_without_options_is_its_name(
    vault_server: DevServer,
    vault_mount: VaultMount,
    vault_proxy: FaultProxy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    role = role_of(vault_server, vault_mount)
    monkeypatch.setenv("VAULT_ROLE_ID", role["role_id"])
    monkeypatch.setenv("VAULT_SECRET_ID", role["secret_id"])

    client = new_client(vault_mount, vault_proxy, "approle")

    assert client.get_secret("app", "x") == "v"


def test_approle_at_another_mount(
    vault_server: DevServer, vault_mount: VaultMount, vault_proxy: FaultProxy
) -> None:
    role = role_of(vault_server, vault_mount)
    client = new_client(vault_mount, vault_proxy, {**role, "mount": "team/roles"})

    with pytest.raises(VaultLoginError, match="'auth/team/roles'"):
        client.get_secret("app", "x")

    assert vault_proxy.requests[0].path == "/v1/auth/team/roles/login"


def test_a_token_costs_no_login(
    vault_mount: VaultMount, vault_proxy: FaultProxy
) -> None:
    client = new_client(vault_mount, vault_proxy, None, VAULT_TOKEN=vault_mount.token)

    assert client.get_secret("app", "x") == "v"
    assert vault_proxy.count == 1


@pytest.mark.parametrize("where", ["file", "environment"])
def test_a_token_from(
    where: str,
    vault_mount: VaultMount,
    vault_proxy: FaultProxy,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "token").write_text(f"{vault_mount.token}\n")
    monkeypatch.setenv("MY_TOKEN", vault_mount.token)
    source = {
        "file": {"token_file": str(tmp_path / "token")},
        "environment": {"token_env": "MY_TOKEN"},
    }[where]
    auth = {"method": "token", **source}

    # It is named on purpose, so it goes before VAULT_TOKEN.
    client = new_client(vault_mount, vault_proxy, auth, VAULT_TOKEN="wrong")

    assert client.get_secret("app", "x") == "v"


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (None, "set VAULT_AUTH"),
        ({"method": "kerberos"}, "the methods are approle,"),
        ({"role_id": "x"}, "VAULT_AUTH has no 'method'"),
        ({"method": "token", "tokn_file": "x"}, "did you mean 'token_file'?"),
        (5, "VAULT_AUTH is a mapping"),
    ],
)
def test_a_login_that_is_not_configured_well(raw: object, said: str) -> None:
    with pytest.raises(VaultConfigError) as caught:
        parse_auth(raw, None, environ={})

    assert said in str(caught.value)


def test_the_names_of_options_may_be_upper_case_as_from_the_environment(
    vault_server: DevServer, vault_mount: VaultMount, vault_proxy: FaultProxy
) -> None:
    role = role_of(vault_server, vault_mount)
    auth = {name.upper(): value for name, value in role.items()}

    assert new_client(vault_mount, vault_proxy, auth).get_secret("app", "x") == "v"


# When the token dies.


def test_fifty_threads_with_a_dead_token_log_in_once(
    vault_server: DevServer, vault_mount: VaultMount, vault_proxy: FaultProxy
) -> None:
    client = new_client(vault_mount, vault_proxy, role_of(vault_server, vault_mount))
    client.get_secret("app", "x")
    revoke(vault_server, client)
    vault_proxy.reset()

    values = at_once(50, lambda i: client.get_secret("app", "x", use_cache=False))

    assert values == ["v"] * 50
    assert vault_proxy.logins == 1


def test_who_comes_just_too_late_for_a_login_takes_its_token(
    vault_server: DevServer,
    vault_mount: VaultMount,
    vault_proxy: FaultProxy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = new_client(vault_mount, vault_proxy, role_of(vault_server, vault_mount))
    client.get_secret("app", "x")
    revoke(vault_server, client)
    vault_proxy.reset()
    flights = client._transport._session._state.get().flights
    do = flights.do

    def just_too_late(key: str, work: t.Any) -> object:
        if key == "login":
            monkeypatch.setattr(flights, "do", do)
            # By another, between our look and our take-off.
            client.get_secret("app", "x", use_cache=False)

        return do(key, work)

    monkeypatch.setattr(flights, "do", just_too_late)

    assert client.get_secret("app", "x", use_cache=False) == "v"
    assert vault_proxy.logins == 1


def test_a_token_file_is_followed_when_its_token_dies(
    vault_server: DevServer,
    vault_mount: VaultMount,
    vault_proxy: FaultProxy,
    tmp_path: pathlib.Path,
) -> None:
    tokens = vault_server.client().auth.token
    first, second = (
        tokens.create(policies=["root"])["auth"]["client_token"] for _ in range(2)
    )
    file = tmp_path / "token"
    file.write_text(first)
    auth = {"method": "token", "token_file": str(file)}
    client = new_client(vault_mount, vault_proxy, auth)
    client.get_secret("app", "x")

    tokens.revoke(first)
    file.write_text(second)

    assert client.get_secret("app", "x", use_cache=False) == "v"


def test_a_dead_token_that_nobody_replaces_is_a_refused_login(
    vault_server: DevServer, vault_mount: VaultMount, vault_proxy: FaultProxy
) -> None:
    token = vault_server.client().auth.token.create(policies=["root"])
    value = token["auth"]["client_token"]
    client = new_client(vault_mount, vault_proxy, None, VAULT_TOKEN=value)
    client.get_secret("app", "x")
    revoke(vault_server, client)

    for _ in range(3):
        with pytest.raises(VaultLoginError, match="expired, was revoked"):
            client.get_secret("app", "x", use_cache=False)


# When the token lives, and may not.


@pytest.mark.parametrize("no_default_policy", [False, True])
def test_a_denial_is_no_reason_to_log_in_again_and_again(
    no_default_policy: bool,
    vault_server: DevServer,
    vault_mount: VaultMount,
    vault_proxy: FaultProxy,
) -> None:
    """Also of a token that may not look itself up."""
    vault_mount.write("denied", {"x": "v"})
    role = approle(
        vault_server,
        may_read(vault_mount, "app"),
        token_no_default_policy=no_default_policy,
    )
    client = new_client(vault_mount, vault_proxy, role)
    client.get_secret("app", "x")

    for _ in range(10):
        with pytest.raises(VaultPermissionError):
            client.get_secret("denied", "x")

    assert vault_proxy.logins <= 2


@pytest.mark.parametrize("no_default_policy", [False, True])
def test_a_token_that_serves_is_not_called_refused(
    no_default_policy: bool,
    vault_server: DevServer,
    vault_mount: VaultMount,
    vault_proxy: FaultProxy,
) -> None:
    role = approle(
        vault_server,
        may_read(vault_mount),
        token_no_default_policy=no_default_policy,
    )
    client = new_client(vault_mount, vault_proxy, role)
    client.get_secret("app", "x")
    health = client.health_check()

    # None says that it is unknown.
    assert health["authenticated"] is (None if no_default_policy else True)
    assert client.get_secret("app", "x", use_cache=False) == "v"


# What else a client might take from its surroundings.


def test_nothing_but_what_is_configured_decides_where_a_token_goes(
    vault_server: DevServer,
    vault_mount: VaultMount,
    vault_proxy: FaultProxy,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    role = role_of(vault_server, vault_mount)
    (tmp_path / ".vault-token").write_text("from-home")
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password netrc")

    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{closed.getsockname()[1]}")
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/no/such/file")
        monkeypatch.setenv("VAULT_TOKEN", "from-environment")
        monkeypatch.setenv("HOME", str(tmp_path))
        client = new_client(vault_mount, vault_proxy, role)

        assert client.get_secret("app", "x") == "v"

    login, read = vault_proxy.requests
    assert "x-vault-token" not in login.headers
    assert "authorization" not in login.headers + read.headers
    assert login.headers.count("x-vault-request") == 1


def test_what_needs_no_token_goes_without_one(
    vault_server: DevServer, vault_mount: VaultMount, vault_proxy: FaultProxy
) -> None:
    client = new_client(vault_mount, vault_proxy, role_of(vault_server, vault_mount))
    client.get_secret("app", "x")
    client.health_check()

    (health,) = [r for r in vault_proxy.requests if r.path == "/v1/sys/health"]
    assert "x-vault-token" not in health.headers


def test_a_namespace_is_where_everything_is(
    vault_server: DevServer, vault_mount: VaultMount, vault_proxy: FaultProxy
) -> None:
    root = vault_server.client()
    name = f"team-{vault_mount.name}"

    try:
        root.write_data(f"sys/namespaces/{name}", data={})
    except hvac.exceptions.InvalidPath:
        pytest.skip("This server has no namespaces.")

    root.adapter.namespace = name
    root.sys.enable_secrets_engine("kv", vault_mount.name, options={"version": "1"})
    root.secrets.kv.v1.create_or_update_secret(
        "app", {"x": "in team"}, mount_point=vault_mount.name
    )
    client = new_client(
        vault_mount,
        vault_proxy,
        None,
        VAULT_TOKEN=vault_mount.token,
        VAULT_NAMESPACE=name,
        VAULT_KV_VERSION=None,
    )

    assert client.get_secret("app", "x") == "in team"
    assert all("x-vault-namespace" in r.headers for r in vault_proxy.requests)
