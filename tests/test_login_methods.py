"""How an app comes to a token: each login method, on a server where it has one."""

from __future__ import annotations

import base64
import collections.abc as cabc
import datetime
import http.server
import json
import pathlib
import re
import secrets
import sys
import threading
import time
import types
import typing as t

import hvac
import pytest
from click.testing import CliRunner
from click.testing import Result
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.oid import NameOID
from flask import Flask
from flask.cli import ScriptInfo

from flask_vault import VaultClient
from flask_vault import VaultConfigError
from flask_vault import VaultLoginError
from flask_vault.cli import vault_group
from flask_vault.testing import DevServer
from flask_vault.testing import FaultProxy
from flask_vault.testing.api import Api
from flask_vault.testing.plugin import VaultMount
from flask_vault.vault.auth import Credential
from flask_vault.vault.auth import parse_auth
from flask_vault.vault.credentials import Options
from flask_vault.vault.tokens import Token
from flask_vault.vault.tokens import token_from_login
from tests.helpers import approle
from tests.helpers import may_read
from tests.helpers import start_app

SERVICE_ACCOUNT = "system:serviceaccount:shop:web"


class Heard(t.NamedTuple):
    method: str
    path: str
    headers: dict[str, str]
    body: dict[str, t.Any]


class Listener:
    """What stands where a server is expected, and can tell what it was sent.

    :param answer: gives the status and the body for a request.
    """

    def __init__(
        self, answer: cabc.Callable[[Heard], tuple[int, dict[str, t.Any]]]
    ) -> None:
        self.heard: list[Heard] = []
        heard = self.heard

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                size = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(size) or b"{}")
                headers = {k.lower(): v for k, v in self.headers.items()}
                request = Heard(self.command, self.path, headers, body)
                heard.append(request)
                status, said = answer(request)
                content = json.dumps(said).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_POST = do_PUT = do_GET

            def log_message(self, *args: object) -> None: ...

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Listener:
        threading.Thread(target=self._server.serve_forever, args=(0.01,)).start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def logins_only(heard: Heard) -> tuple[int, dict[str, t.Any]]:
    """A server that takes every credential, and has one document."""
    if "/auth/" in heard.path:
        return 200, {"auth": {"client_token": "made-up", "lease_duration": 60}}

    meta = {"version": 1, "created_time": "2026-01-01T00:00:00Z"}
    return 200, {"data": {"data": {"x": "v"}, "metadata": meta}}


@pytest.fixture
def listener() -> cabc.Iterator[Listener]:
    with Listener(logins_only) as listener:
        yield listener


@pytest.fixture(autouse=True)
def _document(vault_mount: VaultMount) -> None:
    vault_mount.write("app", {"x": "v"})


@pytest.fixture
def api(vault_server: DevServer) -> cabc.Callable[..., dict[str, t.Any]]:
    """Calls the server as its operator."""

    def call(method: str, path: str, body: object = None) -> dict[str, t.Any]:
        found = Api(vault_server.address)
        return found.call(method, path, body, token=vault_server.root_token)

    return call


Call = cabc.Callable[..., dict[str, t.Any]]


def new_client(
    mount: VaultMount, address: str, auth: object, **config: object
) -> VaultClient:
    """Without the token of the mount, unless one is given."""
    given = {"VAULT_ADDR": address, "VAULT_TOKEN": None, "VAULT_AUTH": auth}
    return VaultClient.from_mapping(
        mount.config(**{**given, "VAULT_KV_VERSION": 2, **config})
    )


def read(client: VaultClient) -> object:
    return client.get_secret("app", "x", use_cache=False)


def token_of(client: VaultClient) -> str:
    token = client._transport.token
    assert token is not None
    return token.value


def kill_token(server: DevServer, client: VaultClient) -> None:
    server.client().auth.token.revoke(token_of(client))


def role_of(server: DevServer, mount: VaultMount, **options: object) -> dict[str, str]:
    return t.cast("dict[str, str]", approle(server, may_read(mount), **options))


def root_tokens(server: DevServer) -> list[str]:
    """Two tokens that may do everything."""
    create = server.client().auth.token.create
    return [create(policies=["root"])["auth"]["client_token"] for _ in range(2)]


def count(proxy: FaultProxy, path: str) -> int:
    return sum(r.path.endswith(path) for r in proxy.requests)


def sourced(
    name: str,
    value: str,
    where: str,
    folder: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> dict[str, str]:
    """An option that comes from the config, a file or the environment."""
    if where == "config":
        return {name: value}

    if where == "file":
        # Editors and `echo` end a file with a line break.
        (folder / name).write_text(f"{value}\n")
        return {f"{name}_file": str(folder / name)}

    monkeypatch.setenv(f"MY_{name}", value)
    return {f"{name}_env": f"MY_{name}"}


SOURCES = pytest.mark.parametrize("where", ["config", "file", "environment"])


# A token.


@SOURCES
def test_a_token_is_used_as_it_is(
    where: str,
    vault_mount: VaultMount,
    vault_proxy: FaultProxy,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = sourced("token", vault_mount.token, where, tmp_path, monkeypatch)
    auth = {"method": "token", **found}

    # Named on purpose, so it goes before VAULT_TOKEN.
    client = new_client(vault_mount, vault_proxy.address, auth, VAULT_TOKEN="wrong")

    assert read(client) == "v"
    assert vault_proxy.count == 1


def test_a_token_file_is_followed_while_the_old_token_is_still_good(
    vault_server: DevServer,
    vault_mount: VaultMount,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("flask_vault.vault.session._FOLLOW_EVERY", 0.0)
    create = vault_server.client().auth.token.create
    first, second = (
        create(policies=["root"])["auth"]["client_token"] for _ in range(2)
    )
    file = tmp_path / "sink"
    auth = {"method": "token", "token_file": str(file)}
    client = new_client(vault_mount, vault_mount.address, auth)

    # An agent writes its sink by a rename, and some others truncate it first.
    for text, used in [(first, first), ("", first), (f"{second}\n", second)]:
        file.write_text(text)
        assert read(client) == "v"
        assert token_of(client) == used

    file.unlink()
    assert read(client) == "v"


def test_a_token_file_is_read_again_when_its_token_dies(
    vault_server: DevServer, vault_mount: VaultMount, tmp_path: pathlib.Path
) -> None:
    first, second = root_tokens(vault_server)
    file = tmp_path / "sink"
    file.write_text(first)
    auth = {"method": "token", "token_file": str(file)}
    client = new_client(vault_mount, vault_mount.address, auth)
    read(client)

    vault_server.client().auth.token.revoke(first)
    file.write_text(second)

    assert read(client) == "v"


# AppRole.


@SOURCES
def test_approle_takes_its_ids_from(
    where: str,
    vault_server: DevServer,
    vault_mount: VaultMount,
    vault_proxy: FaultProxy,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    role = role_of(vault_server, vault_mount)
    auth = {"method": "approle"}

    for name in ("role_id", "secret_id"):
        auth |= sourced(name, role[name], where, tmp_path, monkeypatch)

    client = new_client(vault_mount, vault_proxy.address, auth)

    assert read(client) == read(client) == "v"
    assert vault_proxy.logins == 1


def test_the_secret_id_is_read_anew_at_each_login(
    vault_server: DevServer,
    vault_mount: VaultMount,
    vault_proxy: FaultProxy,
    tmp_path: pathlib.Path,
) -> None:
    name = f"role-{secrets.token_hex(6)}"
    policy = may_read(vault_mount)
    role_id, first = vault_server.create_approle(name, policy, secret_id_num_uses=1)
    file = tmp_path / "secret-id"
    auth = {"method": "approle", "role_id": role_id, "secret_id_file": str(file)}
    client = new_client(vault_mount, vault_proxy.address, auth)
    file.write_text(first)
    assert read(client) == "v"

    kill_token(vault_server, client)
    made = vault_server.client().auth.approle.generate_secret_id(name)
    file.write_text(made["data"]["secret_id"])

    assert read(client) == "v"
    assert vault_proxy.logins == 2


def test_a_secret_id_that_is_used_up_is_a_refused_login(
    vault_server: DevServer, vault_mount: VaultMount, vault_proxy: FaultProxy
) -> None:
    role = role_of(vault_server, vault_mount, secret_id_num_uses=1)
    client = new_client(vault_mount, vault_proxy.address, role)
    read(client)
    kill_token(vault_server, client)

    for _ in range(3):
        with pytest.raises(VaultLoginError, match="check the role id") as caught:
            read(client)

    assert vault_proxy.logins == 2
    assert role["secret_id"] not in str(caught.value)


def test_approle_at_another_mount(
    api: Call, vault_mount: VaultMount, vault_proxy: FaultProxy
) -> None:
    place = f"auth/team/{vault_mount.name}"
    api("POST", f"sys/{place}", {"type": "approle"})
    policy = {"policy": may_read(vault_mount)}
    api("PUT", f"sys/policies/acl/{vault_mount.name}", policy)
    api("POST", f"{place}/role/web", {"token_policies": [vault_mount.name]})
    auth = {
        "method": "approle",
        "mount": place.removeprefix("auth/"),
        "role_id": api("GET", f"{place}/role/web/role-id")["data"]["role_id"],
        "secret_id": api("POST", f"{place}/role/web/secret-id")["data"]["secret_id"],
    }

    assert read(new_client(vault_mount, vault_proxy.address, auth)) == "v"


# AppRole with a wrapped secret id.


class Wrapped(t.NamedTuple):
    """A role whose secret ids come wrapped."""

    auth: dict[str, str]
    file: pathlib.Path
    wrap: cabc.Callable[..., str]


@pytest.fixture
def wrapped(
    vault_server: DevServer, vault_mount: VaultMount, tmp_path: pathlib.Path
) -> Wrapped:
    name = f"role-{secrets.token_hex(6)}"
    role_id, _ = vault_server.create_approle(name, may_read(vault_mount))
    file = tmp_path / "wrapped"

    def wrap(ttl: str = "60s") -> str:
        generate = vault_server.client().auth.approle.generate_secret_id
        token = str(generate(name, wrap_ttl=ttl)["wrap_info"]["token"])
        file.write_text(token)
        return token

    auth = {
        "method": "approle",
        "role_id": role_id,
        "wrapped_secret_id_file": str(file),
        "role_name": name,
    }
    return Wrapped(auth, file, wrap)


def unwrap(mount: VaultMount, token: str) -> bool:
    """Open a wrapping as somebody else would."""
    answer = Api(mount.address).ask("POST", "sys/wrapping/unwrap", token=token)
    return answer[0] == 200


def test_a_wrapped_secret_id_is_unwrapped_once_for_all_logins(
    wrapped: Wrapped,
    vault_server: DevServer,
    vault_mount: VaultMount,
    vault_proxy: FaultProxy,
) -> None:
    client = new_client(vault_mount, vault_proxy.address, wrapped.auth)

    for wrappings in (1, 2):
        wrapped.wrap()

        # The second login has the secret id still, the third finds a new wrapping.
        for _ in range(2):
            assert read(client) == "v"
            kill_token(vault_server, client)

        assert count(vault_proxy, "/wrapping/unwrap") == wrappings

    assert vault_proxy.logins == 4


def test_a_wrapping_that_somebody_has_opened_before_is_an_alarm(
    wrapped: Wrapped, vault_mount: VaultMount, vault_proxy: FaultProxy
) -> None:
    token = wrapped.wrap()
    assert unwrap(vault_mount, token)
    client = new_client(vault_mount, vault_proxy.address, wrapped.auth)

    for _ in range(2):
        with pytest.raises(VaultLoginError, match="somebody has unwrapped it") as no:
            read(client)

    assert token not in str(no.value)
    assert vault_proxy.count == 1, "asked again, or logged in all the same"


def test_a_wrapping_that_expired(
    wrapped: Wrapped, vault_server: DevServer, vault_mount: VaultMount
) -> None:
    token = wrapped.wrap("1s")
    ask = {"token": token}
    deadline = time.monotonic() + 10

    while Api(vault_mount.address).ask("POST", "sys/wrapping/lookup", ask)[0] == 200:
        assert time.monotonic() < deadline
        time.sleep(0.05)

    with pytest.raises(VaultLoginError, match="it expired, or somebody"):
        read(new_client(vault_mount, vault_mount.address, wrapped.auth))


@pytest.mark.parametrize("made_by", ["anybody", "another role"])
def test_a_wrapping_from_elsewhere_is_left_closed(
    made_by: str,
    wrapped: Wrapped,
    vault_server: DevServer,
    vault_mount: VaultMount,
    vault_proxy: FaultProxy,
) -> None:
    root = vault_server.client()

    if made_by == "anybody":
        made = root.sys.wrap({"secret_id": "of-somebody-else"}, ttl=60)
    else:
        name = f"role-{secrets.token_hex(6)}"
        vault_server.create_approle(name, may_read(vault_mount))
        made = root.auth.approle.generate_secret_id(name, wrap_ttl="60s")

    token = made["wrap_info"]["token"]
    wrapped.file.write_text(token)

    with pytest.raises(VaultLoginError, match="was made by '.*Find out who"):
        read(new_client(vault_mount, vault_proxy.address, wrapped.auth))

    assert count(vault_proxy, "/wrapping/unwrap") == vault_proxy.logins == 0
    # It is there for those who look into it.
    assert unwrap(vault_mount, token)


def test_a_wrapped_secret_id_in_a_namespace(
    api: Call, vault_mount: VaultMount, tmp_path: pathlib.Path
) -> None:
    team = f"team-{vault_mount.name}"
    api("POST", f"sys/namespaces/{team}")
    api("POST", f"{team}/sys/auth/approle", {"type": "approle"})
    api("POST", f"{team}/sys/mounts/kv", {"type": "kv", "options": {"version": "1"}})
    api("POST", f"{team}/kv/app", {"x": "of the team"})
    policy = {"policy": 'path "kv/*" { capabilities = ["read"] }'}
    api("PUT", f"{team}/sys/policies/acl/web", policy)
    api("POST", f"{team}/auth/approle/role/web", {"token_policies": ["web"]})
    role = api("GET", f"{team}/auth/approle/role/web/role-id")["data"]
    root = hvac.Client(vault_mount.address, token=vault_mount.token, namespace=team)
    made = root.auth.approle.generate_secret_id("web", wrap_ttl="60s")
    auth = {
        "method": "approle",
        "role_id": role["role_id"],
        "role_name": "web",
        "wrapped_secret_id": made["wrap_info"]["token"],
    }
    place = {"VAULT_NAMESPACE": team, "VAULT_MOUNT": "kv", "VAULT_KV_VERSION": 1}

    assert read(new_client(vault_mount, vault_mount.address, auth, **place)) == (
        "of the team"
    )


# A user's name and password.


@pytest.mark.parametrize("password", ["hunter2", "correct horse", "pässwörd"])
def test_userpass(password: str, api: Call, vault_mount: VaultMount) -> None:
    place = f"auth/{vault_mount.name}"
    api("POST", f"sys/{place}", {"type": "userpass"})
    policy = {"policy": may_read(vault_mount)}
    api("PUT", f"sys/policies/acl/{vault_mount.name}", policy)
    user = {"password": password, "token_policies": [vault_mount.name]}
    api("POST", f"{place}/users/jo", user)
    auth = {
        "method": "userpass",
        "mount": vault_mount.name,
        "username": "jo",
        "password": password,
    }

    assert read(new_client(vault_mount, vault_mount.address, auth)) == "v"

    wrong = {**auth, "password": "canary-1d2e"}

    with pytest.raises(VaultLoginError, match="check the username") as caught:
        read(new_client(vault_mount, vault_mount.address, wrong))

    assert "canary" not in str(caught.value)


def test_ldap(vault_mount: VaultMount, listener: Listener) -> None:
    auth = {"method": "ldap", "username": "jo", "password": "hunter2"}

    assert read(new_client(vault_mount, listener.address, auth)) == "v"

    login, then = listener.heard
    assert (login.method, login.path) == ("POST", "/v1/auth/ldap/login/jo")
    assert login.body == {"password": "hunter2"}
    assert "x-vault-token" not in login.headers
    assert then.headers["x-vault-token"] == "made-up"


# A JSON Web Token.


@pytest.fixture(scope="module")
def issuer() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


def public_pem(key: rsa.RSAPrivateKey) -> str:
    return (
        key.public_key()
        .public_bytes(
            serialization.Encoding.PEM,
            serialization.PublicFormat.SubjectPublicKeyInfo,
        )
        .decode()
    )


def sign(key: rsa.RSAPrivateKey, claims: dict[str, object], life: int = 60) -> str:
    """A JWT that lives so many seconds."""

    def encode(part: bytes) -> str:
        return base64.urlsafe_b64encode(part).rstrip(b"=").decode()

    now = int(time.time())
    body = {"iat": now - 600, "nbf": now - 600, "exp": now + life, **claims}
    parts = [{"alg": "RS256", "typ": "JWT"}, body]
    signed = ".".join(encode(json.dumps(part).encode()) for part in parts)
    signature = key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
    return f"{signed}.{encode(signature)}"


def test_a_jwt_is_read_anew_at_each_login(
    issuer: rsa.RSAPrivateKey,
    api: Call,
    vault_server: DevServer,
    vault_mount: VaultMount,
    tmp_path: pathlib.Path,
) -> None:
    place = f"auth/{vault_mount.name}"
    api("POST", f"sys/{place}", {"type": "jwt"})
    api("POST", f"{place}/config", {"jwt_validation_pubkeys": [public_pem(issuer)]})
    policy = {"policy": may_read(vault_mount)}
    api("PUT", f"sys/policies/acl/{vault_mount.name}", policy)
    role = {
        "role_type": "jwt",
        "user_claim": "sub",
        "bound_subject": "ci",
        "token_policies": [vault_mount.name],
    }
    api("POST", f"{place}/role/web", role)
    file = tmp_path / "jwt"
    auth = {
        "method": "jwt",
        "mount": vault_mount.name,
        "role": "web",
        "jwt_file": str(file),
    }
    client = new_client(vault_mount, vault_mount.address, auth)
    file.write_text(sign(issuer, {"sub": "ci"}))
    assert read(client) == "v"

    kill_token(vault_server, client)
    # Vault allows some minutes of difference between clocks.
    file.write_text(old := sign(issuer, {"sub": "ci"}, life=-550))

    with pytest.raises(VaultLoginError, match="check the role and the JWT") as caught:
        read(client)

    assert old not in str(caught.value)
    file.write_text(sign(issuer, {"sub": "ci"}))
    assert read(client) == "v"


# Kubernetes.


def sign_account(key: rsa.RSAPrivateKey) -> str:
    """The token of a service account."""
    account = {"namespace": "shop", "serviceaccount": {"name": "web", "uid": "5f1c"}}
    return sign(key, {"sub": SERVICE_ACCOUNT, "kubernetes.io": account})


@pytest.fixture
def account(
    issuer: rsa.RSAPrivateKey,
    api: Call,
    vault_mount: VaultMount,
    tmp_path: pathlib.Path,
) -> cabc.Iterator[str]:
    """The token of a service account, of a cluster whose API server reviews tokens
    for Vault."""
    jwt = sign_account(issuer)

    def review(heard: Heard) -> tuple[int, dict[str, t.Any]]:
        known = heard.body["spec"]["token"] == jwt
        user = {"username": SERVICE_ACCOUNT, "uid": "5f1c"}
        return 201, {"status": {"authenticated": known, "user": user if known else {}}}

    place = f"auth/{vault_mount.name}"
    api("POST", f"sys/{place}", {"type": "kubernetes"})
    policy = {"policy": may_read(vault_mount)}
    api("PUT", f"sys/policies/acl/{vault_mount.name}", policy)
    role = {
        "bound_service_account_names": ["web"],
        "bound_service_account_namespaces": ["shop"],
        "token_policies": [vault_mount.name],
    }
    api("POST", f"{place}/role/web", role)

    with Listener(review) as listener:
        config = {
            "kubernetes_host": listener.address,
            "token_reviewer_jwt": jwt,
            # It wants one outside of a pod, also for an address without TLS.
            "kubernetes_ca_cert": write_client_certificate(tmp_path)[0].read_text(),
            "disable_local_ca_jwt": True,
        }
        api("POST", f"{place}/config", config)
        yield jwt
        assert listener.heard, "nobody asked the cluster"


def test_kubernetes_logs_in_with_the_service_account_of_the_pod(
    account: str,
    vault_mount: VaultMount,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = tmp_path / "token"
    file.write_text(account)
    monkeypatch.setattr("flask_vault.vault.methods._SERVICE_ACCOUNT", str(file))
    auth = {"method": "kubernetes", "mount": vault_mount.name, "role": "web"}

    assert read(new_client(vault_mount, vault_mount.address, auth)) == "v"


@pytest.mark.usefixtures("account")
def test_kubernetes_with_the_token_of_another_cluster(vault_mount: VaultMount) -> None:
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    place = {"mount": vault_mount.name, "role": "web"}
    auth = {"method": "kubernetes", "jwt": sign_account(other), **place}

    with pytest.raises(VaultLoginError, match="the role and the service account"):
        read(new_client(vault_mount, vault_mount.address, auth))


def test_kubernetes_outside_of_a_pod_says_which_file_is_missing(
    vault_mount: VaultMount,
) -> None:
    auth = {"method": "kubernetes", "role": "web"}

    with pytest.raises(VaultConfigError, match=r"'/var/run/secrets/.*/token'"):
        read(new_client(vault_mount, vault_mount.address, auth))


@pytest.mark.parametrize("method", ["kubernetes", "jwt", "ldap", "userpass"])
def test_a_method_is_called_what_it_is_called_in_the_config(method: str) -> None:
    given = {"role": "web"} if method in ("kubernetes", "jwt") else {"username": "jo"}

    assert parse_auth({"method": method, **given}, None).name == method


# A TLS certificate.


@pytest.fixture(scope="module")
def tls_server() -> cabc.Iterator[DevServer]:
    with DevServer(tls=True) as server:
        server.client().sys.enable_auth_method("cert")
        server.client().secrets.kv.v2.create_or_update_secret(
            "app", {"x": "v"}, mount_point="secret"
        )
        yield server


def write_client_certificate(folder: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """Make a certificate for a client, signed by itself.

    :return: the files of the certificate and its key.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "web")])
    now = datetime.datetime.now(datetime.timezone.utc)
    usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(usage, critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    files = folder / "web.pem", folder / "web.key"
    files[0].write_bytes(certificate.public_bytes(pem))
    files[1].write_bytes(private)
    return files


@pytest.mark.parametrize("bundled", [False, True])
def test_a_client_certificate(
    bundled: bool, tls_server: DevServer, tmp_path: pathlib.Path
) -> None:
    certificate, key = write_client_certificate(tmp_path)
    root = tls_server.client()
    policy = 'path "secret/data/*" { capabilities = ["read"] }'
    root.sys.create_or_update_acl_policy("web", policy)
    role = {"certificate": certificate.read_text(), "token_policies": ["web"]}
    root.write_data("auth/cert/certs/web", data=role)
    config = {
        "VAULT_ADDR": tls_server.address,
        "VAULT_CACERT": tls_server.ca_file,
        "VAULT_AUTH": {"method": "cert", "role": "web"},
        "VAULT_CLIENT_CERT": certificate,
    }

    if bundled:
        certificate.write_bytes(certificate.read_bytes() + key.read_bytes())
    else:
        config["VAULT_CLIENT_KEY"] = key

    assert read(VaultClient.from_mapping(config)) == "v"


def test_a_client_certificate_that_vault_does_not_know(
    tls_server: DevServer, tmp_path: pathlib.Path
) -> None:
    certificate, key = write_client_certificate(tmp_path)
    config: dict[str, object] = {
        "VAULT_ADDR": tls_server.address,
        "VAULT_CACERT": tls_server.ca_file,
        "VAULT_AUTH": "cert",
    }

    with pytest.raises(VaultConfigError, match="VAULT_CLIENT_CERT is unset"):
        read(VaultClient.from_mapping(config))

    shown = {"VAULT_CLIENT_CERT": certificate, "VAULT_CLIENT_KEY": key}

    with pytest.raises(VaultLoginError, match="VAULT_CLIENT_CERT"):
        read(VaultClient.from_mapping({**config, **shown}))


# The clouds. OpenBao has none of their plugins, so what is shown is what we send.


def fake_module(
    monkeypatch: pytest.MonkeyPatch, name: str, **contents: object
) -> types.ModuleType:
    """Put a library where the real one would be imported from."""
    head, _, _ = name.rpartition(".")

    if head and head not in sys.modules:
        fake_module(monkeypatch, head)

    module = types.ModuleType(name)
    module.__dict__.update(contents, __path__=[])
    monkeypatch.setitem(sys.modules, name, module)
    return module


class FakeAws:
    """The part of boto3 that is asked."""

    def Session(self) -> FakeAws:
        return self

    def get_credentials(self) -> FakeAws:
        return self

    def get_frozen_credentials(self) -> types.SimpleNamespace:
        return types.SimpleNamespace(
            access_key="AKIA", secret_key="canary-4f1a", token="session"
        )


def test_aws_signs_a_request_with_the_identity_of_the_host(
    vault_mount: VaultMount, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_module(monkeypatch, "boto3", Session=FakeAws().Session)
    auth = {
        "method": "aws",
        "role": "web",
        "region": "eu-west-1",
        "header_value": "vault.example.com",
    }

    assert read(new_client(vault_mount, listener.address, auth)) == "v"

    login = listener.heard[0]
    assert login.path == "/v1/auth/aws/login"
    assert login.body["role"] == "web"
    headers = json.loads(base64.b64decode(login.body["iam_request_headers"]))
    assert "Credential=AKIA/" in str(headers) and "/eu-west-1/sts/" in str(headers)
    assert headers["X-Vault-AWS-IAM-Server-ID"] == ["vault.example.com"]
    assert "canary-4f1a" not in str(login.body)


def test_azure_sends_the_token_of_the_managed_identity(
    vault_mount: VaultMount, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Identity:
        def get_token(self, scope: str) -> types.SimpleNamespace:
            return types.SimpleNamespace(token=f"jwt-for-{scope}")

    fake_module(monkeypatch, "azure.identity", DefaultAzureCredential=Identity)
    auth = {"method": "azure", "role": "web", "vm_name": "vm-1"}

    assert read(new_client(vault_mount, listener.address, auth)) == "v"

    login = listener.heard[0]
    assert login.path == "/v1/auth/azure/login"
    assert login.body == {
        "role": "web",
        "jwt": "jwt-for-https://management.azure.com/.default",
        "vm_name": "vm-1",
    }


def test_gcp_sends_an_identity_token_for_the_role(
    vault_mount: VaultMount, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_module(monkeypatch, "google.auth.transport.requests", Request=object)
    fake_module(
        monkeypatch,
        "google.oauth2.id_token",
        fetch_id_token=lambda request, audience: f"jwt-for-{audience}",
    )
    auth = {"method": "gcp", "role": "web", "mount": "cloud/gcp"}

    assert read(new_client(vault_mount, listener.address, auth)) == "v"

    login = listener.heard[0]
    assert login.path == "/v1/auth/cloud/gcp/login"
    assert login.body == {"role": "web", "jwt": "jwt-for-vault/web"}


@pytest.mark.parametrize(
    ("method", "library"),
    [("aws", "boto3"), ("azure", "azure.identity"), ("gcp", "google.oauth2.id_token")],
)
def test_a_cloud_library_that_is_missing_is_named_by_its_extra(
    method: str,
    library: str,
    vault_mount: VaultMount,
    listener: Listener,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake_module(monkeypatch, "google.auth.transport.requests", Request=object)
    monkeypatch.setitem(sys.modules, library, t.cast(t.Any, None))
    auth = {"method": method, "role": "web"}

    with pytest.raises(VaultConfigError, match=rf"pip install 'flask-vault\[{method}"):
        read(new_client(vault_mount, listener.address, auth))

    assert not listener.heard


@pytest.mark.parametrize("method", ["aws", "azure", "gcp"])
def test_the_extra_of_a_cloud_exists(method: str) -> None:
    project = pathlib.Path(__file__).parents[1] / "pyproject.toml"

    assert re.search(rf"^{method} = \[", project.read_text(), re.M)


def test_a_cloud_that_gives_no_identity_is_a_sentence_without_its_words(
    vault_mount: VaultMount, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Identity:
        def get_token(self, scope: str) -> t.NoReturn:
            raise RuntimeError("canary-77aa")

    fake_module(monkeypatch, "azure.identity", DefaultAzureCredential=Identity)
    auth = {"method": "azure", "role": "web"}

    with pytest.raises(VaultLoginError, match=r"an identity of its own") as caught:
        read(new_client(vault_mount, listener.address, auth))

    assert "canary" not in str(caught.value)
    assert not listener.heard


# A class of the user's own, and no login at all.


class BadgeLogin:
    """A login method as a user writes one, for a plugin that takes a badge."""

    name = "badge"
    makes_tokens = True

    def __init__(self, options: Options) -> None:
        options.check_names(("badge",))
        self._options = options

    def credential(self) -> Credential:
        return (self._options.require("badge"),)

    def login(self, client: hvac.Client, credential: Credential) -> Token:
        body = {"badge": credential[0]}
        answer = client.adapter.post("/v1/auth/badge/login", json=body)
        return token_from_login(t.cast("dict[str, t.Any]", answer), time.monotonic())


@pytest.mark.parametrize("colon", [":", "."])
def test_a_method_of_the_users_own(
    colon: str, vault_mount: VaultMount, listener: Listener
) -> None:
    auth = {"method": f"{__name__}{colon}BadgeLogin", "badge": "0815"}

    assert read(new_client(vault_mount, listener.address, auth)) == "v"
    assert listener.heard[0].path == "/v1/auth/badge/login"
    assert listener.heard[0].body == {"badge": "0815"}


@pytest.mark.parametrize("method", ["aprole", "no.such.module:Login", "json:nothing"])
def test_a_method_that_does_not_exist(method: str, vault_mount: VaultMount) -> None:
    with pytest.raises(VaultConfigError, match="VAULT_AUTH has the method"):
        new_client(vault_mount, vault_mount.address, {"method": method})


def test_no_method_at_all_behind_an_agent_that_adds_its_token(
    vault_mount: VaultMount, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VAULT_TOKEN", "not-for-this")

    def add_token(heard: Heard) -> tuple[int, dict[str, t.Any]]:
        path = heard.path.removeprefix("/v1/")
        return Api(vault_mount.address).ask(heard.method, path, token=vault_mount.token)

    with Listener(add_token) as agent:
        app = start_app(
            vault_mount.config(VAULT_ADDR=agent.address, VAULT_AUTH="none"),
            VAULT_TOKEN=None,
            VAULT_SECRETS={"X": "app#x"},
        )

    assert app.config["X"] == "v"
    assert not any("x-vault-token" in heard.headers for heard in agent.heard)
    assert not any("/auth/" in heard.path for heard in agent.heard)


def test_the_socket_of_an_agent_is_refused_with_what_to_do(
    vault_mount: VaultMount,
) -> None:
    with pytest.raises(VaultConfigError, match=r"""'listener "tcp"' on 127.0.0.1"""):
        new_client(vault_mount, "unix:///run/agent.sock", "none")


# Two roles: the app reads, and whoever rotates writes.


class Roles(t.NamedTuple):
    create_app: cabc.Callable[[], Flask]
    web: dict[str, str]
    writer: dict[str, str]


@pytest.fixture
def roles(
    vault_server: DevServer, vault_mount: VaultMount, tmp_path: pathlib.Path
) -> Roles:
    everything = f'path "{vault_mount.name}/*" {{ capabilities = ["read", "update"] }}'
    web = role_of(vault_server, vault_mount)
    writer = t.cast("dict[str, str]", approle(vault_server, everything))
    entry = {"ref": "app#x", "rotate": "token"}

    def create_app() -> Flask:
        return start_app(
            vault_mount.config(VAULT_AUTH=web, VAULT_ROTATE_AUTH=writer),
            VAULT_TOKEN=None,
            VAULT_SECRETS={"X": entry},
            VAULT_BACKUP_DIR=str(tmp_path),
            VAULT_BACKUP_KEYS=["k" * 42 + "A="],
        )

    return Roles(create_app, web, writer)


def flask_vault(roles: Roles, *arguments: str, stdin: str | None = None) -> Result:
    info = ScriptInfo(create_app=roles.create_app)
    return CliRunner().invoke(vault_group, arguments, input=stdin, obj=info)


def test_commands_that_write_use_the_role_that_may(
    roles: Roles, vault_mount: VaultMount
) -> None:
    assert flask_vault(roles, "set", "app#x", stdin="new").exit_code == 0
    assert vault_mount.read("app") == {"x": "new"}

    assert flask_vault(roles, "rotate", "--all").exit_code == 0
    assert vault_mount.read("app")["x"] not in ("v", "new")


def test_the_role_of_the_app_can_only_read(roles: Roles) -> None:
    app = roles.create_app()

    with app.app_context():
        client = app.extensions["vault"].client
        assert read(client) == "v"

        with pytest.raises(Exception, match="must grant 'create, update'"):
            client.set_secret("app", {"x": "new"})


def test_commands_that_read_do_with_the_role_of_the_app(
    roles: Roles, vault_mount: VaultMount
) -> None:
    roles.writer["secret_id"] = "wrong"

    assert flask_vault(roles, "get", "app#x", "--reveal").output == "v\n"
    assert flask_vault(roles, "set", "app#x", stdin="new").exit_code == 7
    assert vault_mount.read("app") == {"x": "v"}


@pytest.mark.parametrize("variable", ["VAULT_TOKEN", "BAO_TOKEN"])
def test_a_command_takes_the_token_of_the_person_first(
    variable: str,
    roles: Roles,
    vault_mount: VaultMount,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(variable, vault_mount.token)
    roles.writer["secret_id"] = roles.web["secret_id"] = "wrong"

    assert flask_vault(roles, "set", "app#x", stdin="new").exit_code == 0
    assert flask_vault(roles, "get", "app#x", "--reveal").output == "new\n"


def test_the_app_itself_takes_no_token_from_the_environment_over_its_method(
    roles: Roles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VAULT_TOKEN", "wrong")

    assert roles.create_app().config["X"] == "v"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"secret_idd": "x"}, "VAULT_ROTATE_AUTH: unknown key 'secret_idd'"),
        ({"secret_id": "wrong"}, "check the role id and the secret id in VAULT_ROTATE"),
    ],
)
def test_what_is_wrong_with_the_role_that_writes_is_told_with_its_key(
    change: dict[str, str], said: str, roles: Roles
) -> None:
    roles.writer.update(change)

    assert said in flask_vault(roles, "set", "app#x", stdin="new").output


# What goes wrong before a request is sent.


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (None, "set VAULT_AUTH"),
        ({"role_id": "x"}, "has no 'method'"),
        ({"method": "token", "tokn_file": "x"}, "did you mean 'token_file'"),
        ({"method": "jwt", "jwt": "x"}, "no 'role'"),
        ({"method": "userpass"}, "no 'username'"),
        (
            {"method": "approle", "secret_id": "x", "wrapped_secret_id": "y"},
            "keep one of them",
        ),
        (5, "VAULT_AUTH is a mapping"),
    ],
)
def test_a_login_that_is_not_configured_well(raw: object, said: str) -> None:
    with pytest.raises(VaultConfigError) as caught:
        parse_auth(raw, None)

    assert said in str(caught.value)


@pytest.mark.parametrize("text", ["", "\n", "canary two", "canary\x00", "canary-ü"])
def test_a_credential_that_fits_no_header_is_not_shown(
    text: str, vault_mount: VaultMount, vault_proxy: FaultProxy, tmp_path: pathlib.Path
) -> None:
    file = tmp_path / "token"
    file.write_text(text)
    auth = {"method": "token", "token_file": str(file)}

    with pytest.raises(VaultConfigError, match=str(file)) as caught:
        read(new_client(vault_mount, vault_proxy.address, auth))

    assert "canary" not in str(caught.value)
    assert vault_proxy.count == 0


def test_a_credential_file_that_is_not_there(
    vault_mount: VaultMount, tmp_path: pathlib.Path
) -> None:
    auth = {"method": "approle", "role_id": "r", "secret_id_file": str(tmp_path)}

    with pytest.raises(VaultConfigError, match=r"\['secret_id_file'\].*directory"):
        read(new_client(vault_mount, vault_mount.address, auth))


def test_the_names_of_options_may_be_upper_case_as_from_the_environment(
    vault_server: DevServer, vault_mount: VaultMount
) -> None:
    role = role_of(vault_server, vault_mount)
    auth = {name.upper(): value for name, value in role.items()}

    assert read(new_client(vault_mount, vault_mount.address, auth)) == "v"
