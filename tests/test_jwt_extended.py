"""Tokens that are out there while their key is rotated."""

from __future__ import annotations

import collections.abc as cabc
import importlib
import json
import logging
import sys
import time
import typing as t

import jwt as pyjwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flask import Flask
from flask import jsonify
from flask_jwt_extended import create_access_token
from flask_jwt_extended import create_refresh_token
from flask_jwt_extended import decode_token
from flask_jwt_extended import get_jwt_identity
from flask_jwt_extended import jwt_required
from flask_jwt_extended import JWTManager

from flask_vault import extension
from flask_vault import VaultConfigError
from flask_vault.extension import state_of
from flask_vault.integrations import jwt_extended
from flask_vault.rotation.generators import make
from flask_vault.testing import DevServer
from flask_vault.testing import FaultProxy
from flask_vault.testing.plugin import VaultMount
from tests.helpers import new_app
from tests.helpers import start_app

CANARY = "canary-7a31"


def secret(number: int) -> str:
    return f"jwt-test-secret-{number}-".ljust(64, "x")


def pem(key: t.Any, password: str | None = None) -> str:
    return t.cast(
        str,
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(password.encode())
            if password
            else serialization.NoEncryption(),
        ).decode(),
    )


def secp256k1() -> str:
    return pem(ec.generate_private_key(ec.SECP256K1()))


RSA = make("rsa", {})
P256 = make("ec", {})


def public_pem(value: str) -> str:
    key = serialization.load_pem_private_key(value.encode(), None).public_key()
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    ).decode()


def is_shared(algorithm: str) -> bool:
    return algorithm.startswith("HS")


def settings(algorithm: str, **extra: object) -> dict[str, object]:
    key = "JWT_SECRET_KEY" if is_shared(algorithm) else "JWT_PRIVATE_KEY"
    return {
        "JWT_ALGORITHM": algorithm,
        "VAULT_SECRETS": {key: {"ref": "jwt#key", "keyring": True}},
        "VAULT_PROPAGATION_WINDOW": 0,
        "VAULT_REFRESH_MODE": "off",
        **extra,
    }


def add_views(app: Flask) -> Flask:
    @app.post("/login")
    def login() -> t.Any:
        return jsonify(
            access=create_access_token("ada"), again=create_refresh_token("")
        )

    @app.get("/me")
    @jwt_required()  # type: ignore[untyped-decorator]
    def me() -> t.Any:
        return jsonify(name=get_jwt_identity())

    return app


def start(
    mount: VaultMount,
    algorithm: str = "HS256",
    manager: JWTManager | None = None,
    **extra: object,
) -> Flask:
    app = start_app(mount.config(), **settings(algorithm, **extra))
    manager = JWTManager() if manager is None else manager
    manager.init_app(app)
    jwt_extended.init_app(app, manager)
    return add_views(app)


def log_in(app: Flask) -> str:
    return str(
        t.cast("dict[str, str]", app.test_client().post("/login").json)["access"]
    )


def kid_of(token: str) -> str | None:
    return pyjwt.get_unverified_header(token).get("kid")


def look(app: Flask, token: str) -> tuple[int, t.Any]:
    headers = {"Authorization": f"Bearer {token}"}
    answer = app.test_client().get("/me", headers=headers)
    return answer.status_code, answer.json


def accepts(app: Flask, token: str) -> bool:
    return look(app, token) == (200, {"name": "ada"})


def refresh(app: Flask) -> dict[str, t.Any]:
    return dict(state_of(app).refresh().errors)


@pytest.fixture
def mount(vault_mount: VaultMount) -> VaultMount:
    vault_mount.write("jwt", {"key": secret(1)})
    return vault_mount


# --- rotations ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("algorithm", "new_key"),
    [
        ("HS256", lambda: make("token", {"bytes": 32})),
        ("HS384", lambda: make("token", {"bytes": 48})),
        ("HS512", lambda: make("token", {"bytes": 64})),
        ("RS256", lambda: make("rsa", {})),
        ("PS512", lambda: make("rsa", {})),
        ("ES256", lambda: make("ec", {})),
        ("ES384", lambda: make("ec", {"curve": "P-384"})),
        ("ES512", lambda: make("ec", {"curve": "P-521"})),
        ("ES256K", secp256k1),
        ("EdDSA", lambda: make("ed25519", {})),
    ],
)
def test_a_token_survives_rotations(
    vault_mount: VaultMount, algorithm: str, new_key: cabc.Callable[[], str]
) -> None:
    vault_mount.write("jwt", {"key": new_key()})
    app = start(vault_mount, algorithm)
    tokens = [log_in(app)]

    for _ in range(2):
        vault_mount.write("jwt", {"key": new_key()})
        refresh(app)
        tokens.append(log_in(app))

    assert len({kid_of(token) for token in tokens}) == 3
    assert all(accepts(app, token) for token in tokens)
    assert {pyjwt.get_unverified_header(token)["alg"] for token in tokens} == {
        algorithm
    }


def test_a_new_key_is_accepted_before_it_signs(mount: VaultMount) -> None:
    app = start(mount, VAULT_PROPAGATION_WINDOW=3600)
    before = log_in(app)
    mount.write("jwt", {"key": secret(2)})
    refresh(app)
    ahead = log_in(start(mount))

    assert kid_of(log_in(app)) == kid_of(before) != kid_of(ahead)
    assert accepts(app, ahead)


def test_all_hosts_name_a_key_alike(mount: VaultMount) -> None:
    assert kid_of(log_in(start(mount))) == kid_of(log_in(start(mount)))


def test_the_tokens_of_one_context_have_one_key(mount: VaultMount) -> None:
    app = start(mount)

    with app.app_context():
        first = create_access_token("ada")
        mount.write("jwt", {"key": secret(2)})
        refresh(app)
        second = create_refresh_token("ada")
        assert decode_token(first)["sub"] == decode_token(second)["sub"] == "ada"

    assert kid_of(first) == kid_of(second) != kid_of(log_in(app))


def test_a_token_of_a_destroyed_key_is_refused(
    mount: VaultMount, vault_server: DevServer
) -> None:
    app = start(mount)
    token = log_in(app)
    mount.write("jwt", {"key": secret(2)})
    refresh(app)
    assert accepts(app, token)

    kv = vault_server.client().secrets.kv.v2
    kv.destroy_secret_versions("jwt", [1], mount_point=mount.name)
    refresh(app)

    assert look(app, token)[0] == 401


# --- tokens from before ------------------------------------------------------------


def start_without(mount: VaultMount, value: str) -> Flask:
    """An app as it was before."""
    app = Flask("shop")
    app.config["JWT_SECRET_KEY"] = value
    JWTManager(app)
    return add_views(app)


def test_a_token_without_kid_is_accepted_until_its_key_retires(
    mount: VaultMount,
) -> None:
    token = log_in(start_without(mount, secret(1)))
    assert kid_of(token) is None
    app = start(mount)
    assert accepts(app, token)

    for number in (2, 3):
        mount.write("jwt", {"key": secret(number)})
        refresh(app)

    # Of the same second as the rotation, so that it does not say which key it is of.
    with app.app_context():
        old = pyjwt.decode(token, options={"verify_signature": False})

    old["iat"] -= 60
    assert accepts(app, pyjwt.encode(old, secret(1)))


def test_a_token_without_kid_is_of_the_key_that_signed_when_it_was_made(
    mount: VaultMount,
) -> None:
    """The key was rotated by hand, a day before this integration came."""
    mount.write("jwt", {"key": secret(2)})
    token = log_in(start_without(mount, secret(2)))
    app = start(mount)

    assert len(state_of(app).current_ring("JWT_SECRET_KEY").accepted) == 2
    assert accepts(app, token)


@pytest.mark.parametrize("issued", [None, "x", True, [], float("nan"), 1e400, -1])
def test_a_token_without_kid_may_claim_any_time(
    mount: VaultMount, issued: object
) -> None:
    app = start(mount, JWT_VERIFY_SUB=False)
    claims = {"sub": "ada", "iat": issued, "exp": time.time() + 60}
    status, _ = look(app, pyjwt.encode(claims, "not-the-key".ljust(32, "x")))

    assert status in {401, 422}


# --- unknown keys ------------------------------------------------------------------


def with_kid(kid: object) -> str:
    """A token whose header has any ``kid``, also one that PyJWT does not write."""
    parts = [{"alg": "HS256", "typ": "JWT", "kid": kid}, {"sub": "ada"}]
    texts = [pyjwt.utils.base64url_encode(json.dumps(p).encode()) for p in parts]
    return b".".join([*texts, b"c2lnbmF0dXJl"]).decode()


def test_a_key_that_another_host_knows_is_asked_for(mount: VaultMount) -> None:
    behind = start(mount)
    mount.write("jwt", {"key": secret(2)})
    token = log_in(start(mount))

    assert accepts(behind, token)


def test_an_unknown_key_is_asked_for_once_and_refused(
    mount: VaultMount, vault_proxy: FaultProxy
) -> None:
    app = start(mount, VAULT_ADDR=vault_proxy.address)
    vault_proxy.reset()
    answers = [look(app, with_kid("unknown")) for _ in range(5)]

    message = "The token's key is unknown or no longer accepted"
    assert answers == [(401, {"msg": message})] * 5
    assert 0 < vault_proxy.count <= 3


def test_an_unknown_key_is_refused_while_vault_is_gone(
    mount: VaultMount, vault_proxy: FaultProxy
) -> None:
    app = start(mount, VAULT_ADDR=vault_proxy.address)
    vault_proxy.cut()

    assert look(app, with_kid("unknown"))[0] == 401


def test_the_users_own_answer_to_invalid_tokens_is_kept(mount: VaultMount) -> None:
    manager = JWTManager()

    @manager.invalid_token_loader
    def teapot(reason: str) -> tuple[str, int]:
        return f"no: {reason}", 418

    app = start(mount, manager=manager)
    headers = {"Authorization": f"Bearer {with_kid('unknown')}"}
    answer = app.test_client().get("/me", headers=headers)

    assert answer.status_code == 418
    assert answer.text == "no: The token's key is unknown or no longer accepted"


@pytest.mark.parametrize(
    "kid", [None, 7, 1.5, True, [], {}, "", "x" * 10_240, "\x00", "ключ", "../jwt"]
)
def test_any_kid_is_refused(mount: VaultMount, kid: object) -> None:
    app = start(mount)

    assert look(app, with_kid(kid))[0] in {401, 422}

    with app.app_context(), pytest.raises(pyjwt.InvalidTokenError):
        decode_token(with_kid(kid))


def test_an_unknown_key_has_an_error_of_its_own_outside_of_a_request(
    mount: VaultMount,
) -> None:
    with start(mount).app_context(), pytest.raises(jwt_extended.UnknownKeyError):
        decode_token(with_kid("unknown"))


# --- algorithms --------------------------------------------------------------------


def test_a_public_key_is_never_taken_for_a_secret(vault_mount: VaultMount) -> None:
    vault_mount.write("jwt", {"key": RSA})
    app = start(vault_mount, "RS256", JWT_DECODE_ALGORITHMS=["RS256", "HS256"])
    kid = kid_of(log_in(app))
    claims = {"sub": "ada", "exp": time.time() + 60}
    forged = pyjwt.encode(claims, "x" * 32, headers={"kid": kid})
    header, payload, _ = forged.split(".")
    public = public_pem(RSA).encode()
    hmac = pyjwt.get_algorithm_by_name("HS256")
    signature = hmac.sign(f"{header}.{payload}".encode(), public)
    token = f"{header}.{payload}.{pyjwt.utils.base64url_encode(signature).decode()}"

    assert look(app, token) == (422, {"msg": "The specified alg value is not allowed"})


def test_a_token_without_a_signature_is_refused(mount: VaultMount) -> None:
    app = start(mount)
    kid = kid_of(log_in(app))
    token = pyjwt.encode({"sub": "ada"}, "", algorithm="none", headers={"kid": kid})

    assert look(app, token)[0] == 422


def test_algorithms_that_the_key_is_good_for_may_be_decoded(
    vault_mount: VaultMount,
) -> None:
    vault_mount.write("jwt", {"key": RSA})
    old = log_in(start(vault_mount, "RS256"))
    app = start(vault_mount, "PS256", JWT_DECODE_ALGORITHMS=["RS256"])

    assert accepts(app, log_in(app))
    assert accepts(app, old)


BAD_VALUES = [
    ("HS256", RSA, "it is an asymmetric key, and JWT_ALGORITHM 'HS256' takes a secret"),
    ("HS256", public_pem(RSA), "it is an asymmetric key"),
    ("RS256", CANARY, "it is no private key in PEM. Store a key"),
    ("RS256", RSA.replace("\n", r"\n"), "it has the two characters"),
    ("RS256", RSA[:400] + RSA[500:], "it is no private key in PEM"),
    ("RS256", public_pem(RSA), "it is the public half"),
    ("RS256", P256, "a key of the kind P-256, and JWT_ALGORITHM 'RS256' takes RSA"),
    ("ES256", RSA, "a key of the kind RSA, and JWT_ALGORITHM 'ES256' takes P-256"),
    ("ES384", P256, "'rotate': {'generator': 'ec', 'curve': 'P-384'}"),
    ("ES256K", P256, "Store a key for 'ES256K', as PKCS#8 in PEM."),
    ("EdDSA", P256, "Or set JWT_ALGORITHM to 'ES256'."),
    ("ES256", pem(ec.generate_private_key(ec.SECP224R1())), "on the curve secp224r1"),
    (
        "ES256",
        pem(ec.generate_private_key(ec.SECP256R1()), CANARY),
        "it is encrypted with a passphrase",
    ),
]


@pytest.mark.parametrize(("algorithm", "value", "problem"), BAD_VALUES)
def test_a_value_that_does_not_fit_the_algorithm_stops_the_start(
    vault_mount: VaultMount, algorithm: str, value: str, problem: str
) -> None:
    vault_mount.write("jwt", {"key": value})

    with pytest.raises(VaultConfigError) as caught:
        start(vault_mount, algorithm)

    message = str(caught.value)
    assert problem in message
    assert ("JWT_SECRET_KEY" if is_shared(algorithm) else "JWT_PRIVATE_KEY") in message
    assert value[-80:-40] not in message.split() and CANARY not in message
    assert caught.value.__context__ is None


@pytest.mark.parametrize(("algorithm", "value", "problem"), BAD_VALUES)
def test_a_rotation_to_such_a_value_changes_nothing(
    vault_mount: VaultMount, algorithm: str, value: str, problem: str
) -> None:
    good = {
        "HS256": secret(1),
        "RS256": RSA,
        "ES256": P256,
        "ES384": make("ec", {"curve": "P-384"}),
        "ES256K": secp256k1(),
        "EdDSA": make("ed25519", {}),
    }[algorithm]
    vault_mount.write("jwt", {"key": good})
    app = start(vault_mount, algorithm)
    kid = kid_of(log_in(app))
    vault_mount.write("jwt", {"key": value})
    (error,) = refresh(app).values()

    assert problem in str(error)
    assert kid_of(log_in(app)) == kid
    assert accepts(app, log_in(app))
    assert app.test_client().get("/vault/health").json == {"status": "warn"}


def test_a_value_of_no_use_in_the_history_is_skipped(vault_mount: VaultMount) -> None:
    vault_mount.write("jwt", {"key": P256})
    token = log_in(start(vault_mount, "ES256"))
    vault_mount.write("jwt", {"key": CANARY})
    vault_mount.write("jwt", {"key": make("ec", {})})
    app = start(vault_mount, "ES256")

    assert accepts(app, token)
    assert accepts(app, log_in(app))
    assert len(state_of(app).current_ring("JWT_PRIVATE_KEY").accepted) == 2


@pytest.mark.filterwarnings("ignore::jwt.warnings.InsecureKeyLengthWarning")
@pytest.mark.parametrize(
    ("algorithm", "length"), [("HS256", 32), ("HS384", 48), ("HS512", 64)]
)
def test_a_short_secret_is_told_once(
    vault_mount: VaultMount,
    caplog: pytest.LogCaptureFixture,
    algorithm: str,
    length: int,
) -> None:
    short = CANARY.ljust(length - 1, "x")
    vault_mount.write("jwt", {"key": short})
    app = start(vault_mount, algorithm)
    log_in(app)
    refresh(app)
    (record,) = [r for r in caplog.records if r.levelno == logging.WARNING]

    assert record.getMessage() == (
        f"JWT_SECRET_KEY has {length - 1} bytes, and {algorithm} asks for {length} or"
        " more (RFC 7518): add 'rotate': {'generator': 'token', 'bytes':"
        f" {length}}} to its entry, and rotate it."
    )
    caplog.clear()
    vault_mount.write("jwt", {"key": CANARY.ljust(length, "x")})
    refresh(app)
    assert caplog.records == []


# --- the start ---------------------------------------------------------------------


def test_the_key_needs_a_ring(mount: VaultMount) -> None:
    with pytest.raises(VaultConfigError, match="'JWT_SECRET_KEY': {'ref'") as caught:
        start(mount, VAULT_SECRETS={"JWT_SECRET_KEY": "jwt#key"})

    assert "JWT_SECRET_KEY, with which 'HS256' signs, has no key ring" in str(
        caught.value
    )


def test_a_ring_for_another_algorithm_is_told(mount: VaultMount) -> None:
    with pytest.raises(VaultConfigError, match="set JWT_ALGORITHM to HS256"):
        start(mount, JWT_ALGORITHM="RS256")


@pytest.mark.parametrize("algorithm", ["none", "ES521", "hs256", None])
def test_an_unknown_algorithm_is_told(mount: VaultMount, algorithm: str | None) -> None:
    with pytest.raises(VaultConfigError, match=f"JWT_ALGORITHM is {algorithm!r}"):
        start(mount, JWT_ALGORITHM=algorithm)


def test_the_manager_has_to_be_initialized_first(mount: VaultMount) -> None:
    app = start_app(mount.config(), **settings("HS256"))

    with pytest.raises(VaultConfigError, match=r"call jwt.init_app\(app\) first"):
        jwt_extended.init_app(app, JWTManager())


def test_flask_help_needs_no_vault(
    mount: VaultMount, monkeypatch: pytest.MonkeyPatch, vault_proxy: FaultProxy
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(extension, "will_not_use_it", lambda: True)
        app = start(mount, VAULT_ADDR=vault_proxy.address)

    assert vault_proxy.count == 0
    assert kid_of(log_in(app)) == kid_of(log_in(start(mount)))


@pytest.mark.parametrize(
    ("algorithm", "key", "value"),
    [("HS256", "JWT_SECRET_KEY", secret(1)), ("ES256", "JWT_PRIVATE_KEY", P256)],
)
def test_a_test_sets_the_key_itself(algorithm: str, key: str, value: str) -> None:
    app = new_app({"VAULT_ENABLED": False, key: value}, **settings(algorithm))
    extension.FlaskVault(app)
    manager = JWTManager(app)
    jwt_extended.init_app(app, manager)
    add_views(app)

    assert accepts(app, log_in(app))


def test_a_key_that_a_test_sets_is_checked() -> None:
    app = new_app({"VAULT_ENABLED": False, "JWT_PRIVATE_KEY": "x"}, **settings("ES256"))
    extension.FlaskVault(app)

    with pytest.raises(
        VaultConfigError, match="JWT_PRIVATE_KEY is of no use: it is no"
    ):
        jwt_extended.init_app(app, JWTManager(app))


def test_an_image_is_built_without_a_key() -> None:
    app = new_app({"VAULT_ENABLED": False}, **settings("HS256"))
    extension.FlaskVault(app)
    jwt_extended.init_app(app, JWTManager(app))


def test_a_missing_extension_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flask_jwt_extended", None)
    monkeypatch.delitem(sys.modules, "flask_vault.integrations.jwt_extended")

    with pytest.raises(VaultConfigError, match=r"install 'flask-vault\[jwt\]'"):
        importlib.import_module("flask_vault.integrations.jwt_extended")


# --- the user's loaders ------------------------------------------------------------


def test_headers_of_the_users_are_kept(mount: VaultMount) -> None:
    manager = JWTManager()

    @manager.additional_headers_loader
    def headers(identity: str) -> dict[str, str]:
        return {"tenant": f"of-{identity}", "kid": "mine"}

    app = start(mount, manager=manager)
    header = pyjwt.get_unverified_header(log_in(app))

    assert header["tenant"] == "of-ada"
    assert header["kid"] == state_of(app).current_ring("JWT_SECRET_KEY").signing.id


@pytest.mark.parametrize("loader", ["encode_key_loader", "decode_key_loader"])
def test_a_loader_that_chooses_a_key_is_refused(mount: VaultMount, loader: str) -> None:
    manager = JWTManager()
    getattr(manager, loader)(lambda *_: "key")

    with pytest.raises(VaultConfigError, match=f"remove the {loader}"):
        start(mount, manager=manager)


@pytest.mark.parametrize(
    "loader", ["additional_headers_loader", "encode_key_loader", "decode_key_loader"]
)
def test_a_loader_that_is_set_too_late_is_told_with_the_first_token(
    mount: VaultMount, loader: str
) -> None:
    manager = JWTManager()
    app = start(mount, manager=manager)
    getattr(manager, loader)(lambda *_: {})

    with app.app_context(), pytest.raises(VaultConfigError, match=f"The {loader} of"):
        create_access_token("ada")


def test_a_manager_may_serve_several_apps(
    mount: VaultMount, vault_mount: VaultMount
) -> None:
    manager = JWTManager()
    plain = Flask("plain")
    plain.config["JWT_SECRET_KEY"] = secret(9)
    manager.init_app(plain)
    add_views(plain)
    first, second = start(mount, manager=manager), start(mount, manager=manager)

    assert accepts(second, log_in(first))
    assert kid_of(log_in(plain)) is None
    assert accepts(plain, log_in(plain))
    assert not accepts(plain, log_in(first))
