"""Public keys for those who verify an app's tokens."""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import threading
import typing as t

import jwt as pyjwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric import ed25519
from flask import Flask
from flask.testing import FlaskClient
from flask_jwt_extended import JWTManager
from werkzeug.serving import make_server

from flask_vault import extension
from flask_vault import VaultConfigError
from flask_vault.extension import state_of
from flask_vault.integrations import jose
from flask_vault.integrations import jwks
from flask_vault.integrations import jwt_extended
from flask_vault.rotation.generators import make
from flask_vault.testing.plugin import VaultMount
from tests.helpers import new_app
from tests.helpers import start_app
from tests.test_jwt_extended import add_views
from tests.test_jwt_extended import kid_of
from tests.test_jwt_extended import log_in
from tests.test_jwt_extended import pem
from tests.test_jwt_extended import refresh
from tests.test_jwt_extended import RSA
from tests.test_jwt_extended import secp256k1
from tests.test_jwt_extended import secret
from tests.test_jwt_extended import settings

URL = "/.well-known/jwks.json"

#: The key of RFC 8037, A.1, and its thumbprint, A.3.
RFC_8037 = bytes.fromhex(
    "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60"
)
RFC_8037_THUMBPRINT = "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"


def start(mount: VaultMount, algorithm: str = "ES256", **extra: object) -> Flask:
    app = start_app(mount.config(), **settings(algorithm, **extra))
    manager = JWTManager(app)
    jwt_extended.init_app(app, manager)
    app.register_blueprint(jwks.blueprint())
    return add_views(app)


def keys_of(app: Flask) -> list[dict[str, str]]:
    client: FlaskClient = app.test_client()
    return t.cast("dict[str, list[dict[str, str]]]", client.get(URL).json)["keys"]


@contextlib.contextmanager
def serving(app: Flask) -> cabc.Iterator[str]:
    server = make_server("127.0.0.1", 0, app)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()

    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join(20)
        server.server_close()


CASES = [
    ("RS256", RSA, {"kty", "n", "e"}),
    ("PS384", RSA, {"kty", "n", "e"}),
    ("ES256", make("ec", {}), {"kty", "crv", "x", "y"}),
    ("ES384", make("ec", {"curve": "P-384"}), {"kty", "crv", "x", "y"}),
    ("ES512", make("ec", {"curve": "P-521"}), {"kty", "crv", "x", "y"}),
    ("ES256K", secp256k1(), {"kty", "crv", "x", "y"}),
    ("EdDSA", make("ed25519", {}), {"kty", "crv", "x"}),
]


@pytest.mark.parametrize(("algorithm", "value", "members"), CASES)
def test_a_key_has_what_a_verifier_needs_and_nothing_private(
    vault_mount: VaultMount, algorithm: str, value: str, members: set[str]
) -> None:
    vault_mount.write("jwt", {"key": value})
    app = start(vault_mount, algorithm)
    (key,) = keys_of(app)

    assert set(key) == members | {"kid", "use", "alg"}
    assert (key["use"], key["alg"]) == ("sig", algorithm)
    assert key["kid"] == kid_of(log_in(app)) == jwks.thumbprint(value)


@pytest.mark.parametrize(("algorithm", "value", "members"), CASES)
def test_pyjwts_client_verifies_with_it(
    vault_mount: VaultMount, algorithm: str, value: str, members: set[str]
) -> None:
    vault_mount.write("jwt", {"key": value})
    app = start(vault_mount, algorithm)
    token = log_in(app)

    with serving(app) as address:
        key = pyjwt.PyJWKClient(address + URL).get_signing_key_from_jwt(token)

    assert pyjwt.decode(token, key, algorithms=[algorithm])["sub"] == "ada"


def test_a_key_is_published_before_it_signs_and_after(vault_mount: VaultMount) -> None:
    first, second = make("ec", {}), make("ec", {})
    vault_mount.write("jwt", {"key": first})
    app = start(vault_mount, VAULT_PROPAGATION_WINDOW=3600)
    vault_mount.write("jwt", {"key": second})
    refresh(app)
    both = [jwks.thumbprint(second), jwks.thumbprint(first)]

    assert [key["kid"] for key in keys_of(app)] == both
    assert kid_of(log_in(app)) == both[1]
    later = start(vault_mount)
    assert [key["kid"] for key in keys_of(later)] == both
    assert kid_of(log_in(later)) == both[0]


def test_a_key_is_published_once(vault_mount: VaultMount) -> None:
    value = make("ec", {})
    vault_mount.write("jwt", {"key": value})
    vault_mount.write("jwt", {"key": f"{value}\n"})

    assert len(keys_of(start(vault_mount))) == 1


@pytest.mark.parametrize(("window", "age"), [(0, 0), (1, 0), (121, 60), (3600, 1800)])
def test_the_answer_may_be_kept_for_half_the_window(
    vault_mount: VaultMount, window: int, age: int
) -> None:
    vault_mount.write("jwt", {"key": make("ec", {})})
    client = start(vault_mount, VAULT_PROPAGATION_WINDOW=window).test_client()
    answer = client.get(URL)

    assert answer.mimetype == "application/jwk-set+json"
    assert answer.cache_control.public
    assert answer.cache_control.max_age == age
    again = client.get(URL, headers={"If-None-Match": answer.headers["ETag"]})
    assert (again.status_code, again.data) == (304, b"")


def test_another_key_and_another_place(vault_mount: VaultMount) -> None:
    vault_mount.write("jwt", {"key": RSA})
    app = start_app(
        vault_mount.config(),
        VAULT_SECRETS={"PARTNER_KEY": {"ref": "jwt#key", "keyring": True}},
    )
    usual = jwks.blueprint("PARTNER_KEY", "/partners", name="usual")
    other = jwks.blueprint("PARTNER_KEY", None, algorithm="PS256", name="other")
    app.register_blueprint(usual)
    app.register_blueprint(other)
    client = app.test_client()

    for url, algorithm in (("/partners/jwks.json", "RS256"), ("/jwks.json", "PS256")):
        answer = client.get(url)
        assert answer.json is not None
        assert [key["alg"] for key in answer.json["keys"]] == [algorithm]


def test_one_blueprint_serves_several_apps(vault_mount: VaultMount) -> None:
    routes = jwks.blueprint("KEY")
    kids = []

    for path in ("one", "two"):
        vault_mount.write(path, {"key": make("ec", {})})
        app = start_app(
            vault_mount.config(),
            VAULT_SECRETS={"KEY": {"ref": f"{path}#key", "keyring": True}},
        )
        app.register_blueprint(routes)
        kids.append([key["kid"] for key in keys_of(app)])

    assert kids[0] != kids[1]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("jwt#key", "has no key ring"),
        ({"ref": "jwt#key", "keyring": True}, "it is no private key in PEM"),
    ],
)
def test_what_cannot_be_published_is_told_at_the_start(
    vault_mount: VaultMount, entry: object, message: str
) -> None:
    vault_mount.write("jwt", {"key": secret(1)})
    app = start_app(vault_mount.config(), VAULT_SECRETS={"JWT_PRIVATE_KEY": entry})

    with pytest.raises(VaultConfigError, match=message) as caught:
        app.register_blueprint(jwks.blueprint())

    assert "JWT_PRIVATE_KEY" in str(caught.value)
    assert secret(1) not in str(caught.value)


def test_a_shared_secret_has_no_public_keys(vault_mount: VaultMount) -> None:
    vault_mount.write("jwt", {"key": secret(1)})

    with pytest.raises(VaultConfigError, match="JWT_PRIVATE_KEY has no key ring"):
        start(vault_mount, "HS256")

    with pytest.raises(VaultConfigError, match="'HS256' is no algorithm that signs"):
        jwks.blueprint(algorithm="HS256")


def test_flask_help_needs_no_vault(
    vault_mount: VaultMount, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault_mount.write("jwt", {"key": make("ec", {})})

    with monkeypatch.context() as patched:
        patched.setattr(extension, "will_not_use_it", lambda: True)
        app = start(vault_mount)

    assert "vault" not in app.extensions
    assert len(keys_of(app)) == 1


def test_an_image_is_built_without_a_key() -> None:
    app = new_app({"VAULT_ENABLED": False}, **settings("ES256"))
    extension.FlaskVault(app)
    app.register_blueprint(jwks.blueprint())

    assert not state_of(app).live.rings


# --- standards ---------------------------------------------------------------------


def test_the_thumbprint_of_rfc_8037() -> None:
    key = ed25519.Ed25519PrivateKey.from_private_bytes(RFC_8037)

    assert jwks.thumbprint(pem(key)) == RFC_8037_THUMBPRINT
    assert jwks.thumbprint(pem(key).encode()) == RFC_8037_THUMBPRINT


def test_a_thumbprint_is_of_private_keys() -> None:
    with pytest.raises(ValueError, match="it is no private key in PEM"):
        jwks.thumbprint("no key")


def test_a_coordinate_is_as_long_as_the_curve() -> None:
    """RFC 7518, 6.2.1.2: a leading zero byte must not be left out."""
    keys = (ec.derive_private_key(n, ec.SECP256R1()) for n in range(1, 10_000))
    short = next(k for k in keys if k.public_key().public_numbers().x < 1 << 248)
    key = jose.load_private_key(pem(short), "ES256")

    assert len(pyjwt.utils.base64url_decode(key.members["x"])) == 32
    jwk = pyjwt.PyJWK(jose.public_jwk(key, "ES256"))
    assert jwk.key.public_numbers() == short.public_key().public_numbers()
