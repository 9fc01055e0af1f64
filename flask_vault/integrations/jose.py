"""Private keys as signed tokens need them: checked for an algorithm, with the public
half as a JSON Web Key.

The names are those of RFC 7517 and RFC 7518, of RFC 8037 for Edwards curves, and of
RFC 8812 for secp256k1.
"""

from __future__ import annotations

import base64
import collections.abc as cabc
import dataclasses
import hashlib
import json
import typing as t

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from ..errors import SecretValueError
from ..errors import VaultConfigError
from ..keyring import key_id
from ..keyring import KeyRing
from ..state import AppState

_PrivateKey = (
    RSAPrivateKey | EllipticCurvePrivateKey | Ed25519PrivateKey | Ed448PrivateKey
)

#: The kinds of keys that take each algorithm, the one to advise first. A kind is an
#: RSA key, or the name of a curve.
_KINDS: t.Final[cabc.Mapping[str, tuple[str, ...]]] = {
    **dict.fromkeys(("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"), ("RSA",)),
    "ES256": ("P-256",),
    "ES384": ("P-384",),
    "ES512": ("P-521",),
    "ES256K": ("secp256k1",),
    "EdDSA": ("Ed25519", "Ed448"),
}

#: The algorithms that sign with a private key.
ALGORITHMS: t.Final = tuple(_KINDS)

#: What makes a key of a kind, for the cure in a message.
_ROTATE: t.Final[cabc.Mapping[str, str]] = {
    "RSA": "{'generator': 'rsa'}",
    "P-256": "{'generator': 'ec', 'curve': 'P-256'}",
    "P-384": "{'generator': 'ec', 'curve': 'P-384'}",
    "P-521": "{'generator': 'ec', 'curve': 'P-521'}",
    "Ed25519": "{'generator': 'ed25519'}",
}

#: The names of curves, as JOSE has them, by the name that cryptography has.
_CURVES: t.Final[cabc.Mapping[str, str]] = {
    "secp256r1": "P-256",
    "secp384r1": "P-384",
    "secp521r1": "P-521",
    "secp256k1": "secp256k1",
}


#: Loaded keys that are kept beside those of the present ring and the one before it.
_SPARE: t.Final = 8

#: Values that are known to be good or bad, good for any number of kept versions.
_VERDICTS: t.Final = 1000


@dataclasses.dataclass(frozen=True)
class TokenKey:
    """What makes and checks tokens under one ``kid``.

    :param signs: a private key, or a shared secret.
    :param verifies: the public key, or the same secret.
    :param algorithms: those that the key is good for.
    :param members: what a JWK must have of the public key; nothing of a secret.
    """

    kid: str
    signs: t.Any = dataclasses.field(repr=False)
    verifies: t.Any = dataclasses.field(repr=False)
    algorithms: tuple[str, ...]
    members: cabc.Mapping[str, str] = dataclasses.field(default_factory=dict)


class TokenKeys:
    """The keys of a ring as tokens need them.

    Each value is looked at once, however often a poll or a request asks: OpenSSL takes
    30 ms to check an RSA key of 2048 bits.

    :param load: makes one of a value; raises a :exc:`ValueError` when it is of no use.
    """

    def __init__(self, load: cabc.Callable[[str, t.Any], TokenKey]) -> None:
        self._load = load
        # By the id of a value: what is wrong with it, or None.
        self._verdicts: dict[str, str | None] = {}
        self._loaded: dict[str, TokenKey] = {}

    def check(self, value: t.Any) -> None:
        """Refuse a value that is of no use, for ``AppState.check_values``.

        :raises ValueError: when it is none.
        """
        id = key_id(value)

        try:
            problem = self._verdicts[id]
        except KeyError:
            problem = self._judge(id, value)

        if problem is not None:
            raise ValueError(problem)

    def of(self, ring: KeyRing) -> tuple[TokenKey, ...]:
        """One for each accepted key, in the ring's order."""
        loaded = self._loaded

        # Requests that began before a rotation still use the ring before this one.
        if len(loaded) > 2 * len(ring.accepted) + _SPARE:
            self._loaded = {k.id: loaded[k.id] for k in ring.accepted if k.id in loaded}

        return tuple(
            loaded.get(key.id) or self._remember(key.id, key.value)
            for key in ring.accepted
        )

    def signing(self, ring: KeyRing) -> TokenKey:
        """The one that signs."""
        return self.of(ring)[ring.accepted.index(ring.signing)]

    def _judge(self, id: str, value: t.Any) -> str | None:
        problem = None

        # A refresh checks what is new before any request sees it, so none has to wait.
        try:
            self._remember(id, value)
        except ValueError as error:
            problem = str(error)

        if len(self._verdicts) >= _VERDICTS:
            self._verdicts = {}

        self._verdicts[id] = problem
        return problem

    def _remember(self, id: str, value: t.Any) -> TokenKey:
        key = self._loaded[id] = self._load(id, value)
        return key


def checked_keys(
    state: AppState, config_key: str, load: cabc.Callable[[str, t.Any], TokenKey]
) -> TokenKeys:
    """The keys of an app's ring, which from now on takes no value that is of no use.

    :param load: see :class:`TokenKeys`.
    :raises VaultConfigError: when the value that is there now is of no use.
    """
    keys = TokenKeys(load)
    problem = None

    try:
        state.check_values(config_key, keys.check)
        # It may be none of Vault's: a test or the environment has set it.
        value = state.app.config.get(config_key)

        if value is not None:
            keys.check(value)
    except SecretValueError as error:
        problem = str(error)
    except ValueError as error:
        problem = f"The value of {config_key} is of no use: {error}"

    if problem is not None:
        raise VaultConfigError(problem)

    return keys


def load_private_key(value: object, algorithm: str | None = None) -> TokenKey:
    """A private key and its public half, from PEM.

    :param algorithm: what it must be good for; ``None`` takes any key.
    :raises ValueError: with the rest of a sentence, and without the value, that begins
        with "the value".
    """
    key = _parse(value, algorithm)
    kind, members = _public_members(key)
    algorithms = tuple(name for name, kinds in _KINDS.items() if kind in kinds)

    if not algorithms:
        raise ValueError(
            f"it is a key on the curve {kind}, with which tokens are not signed."
            f" {_cure(algorithm)}"
        )

    if algorithm is not None and algorithm not in algorithms:
        wanted = " or ".join(_KINDS[algorithm])
        raise ValueError(
            f"it is a key of the kind {kind}, and JWT_ALGORITHM {algorithm!r} takes"
            f" {wanted}. {_cure(algorithm)} Or set JWT_ALGORITHM to"
            f" {' or '.join(map(repr, algorithms))}."
        )

    return TokenKey(_thumbprint(members), key, key.public_key(), algorithms, members)


def thumbprint(value: str | bytes) -> str:
    """The ``kid`` of a key: its JWK thumbprint (RFC 7638, SHA-256).

    :param value: a private key as PEM.
    :raises ValueError: when it is none.
    """
    return load_private_key(value).kid


def public_jwk(key: TokenKey, algorithm: str) -> dict[str, str]:
    """The public half of a key, for verifiers.

    :param algorithm: the one that tokens are signed with.
    """
    return {**key.members, "kid": key.kid, "use": "sig", "alg": algorithm}


# --- parts ---------------------------------------------------------------------------


def _parse(value: object, algorithm: str | None) -> _PrivateKey:
    if not isinstance(value, str | bytes):
        raise ValueError(
            f"it is of type {type(value).__name__}, and a private key is text."
            f" {_cure(algorithm)}"
        )

    pem = value.encode() if isinstance(value, str) else value

    # What fails is raised outside of the except block: the frames of the error, which
    # hold the value, must not live on as __context__.
    try:
        key = load_pem_private_key(pem, password=None)
    except TypeError:
        problem = "it is encrypted with a passphrase, and Vault does that already."
    except (ValueError, UnsupportedAlgorithm):
        problem = "it is no private key in PEM."
    else:
        if isinstance(key, _PrivateKey):
            return key

        problem = "it is a key of a kind with which tokens are not signed."

    if b"-----BEGIN PUBLIC KEY" in pem or b"-----BEGIN CERTIFICATE" in pem:
        problem = "it is the public half, and who signs needs the private key."
    elif b"-----BEGIN" in pem and rb"\n" in pem:
        problem = r"it has the two characters \n where a line should end."

    raise ValueError(f"{problem} {_cure(algorithm)}")


def _cure(algorithm: str | None) -> str:
    kinds = _KINDS.get(algorithm or "", ("RSA", "P-256", "Ed25519"))
    rotate = " or ".join(_ROTATE[kind] for kind in kinds if kind in _ROTATE)

    if not rotate:
        return f"Store a key for {algorithm!r}, as PKCS#8 in PEM."

    return (
        f"Store a key as PKCS#8 in PEM, or add 'rotate': {rotate} to the entry and make"
        " one with 'flask vault rotate'."
    )


def _public_members(key: _PrivateKey) -> tuple[str, dict[str, str]]:
    """The kind of a key, and what a JWK of it must have."""
    if isinstance(key, RSAPrivateKey):
        modulus = key.public_key().public_numbers()
        return "RSA", {"kty": "RSA", "n": _number(modulus.n), "e": _number(modulus.e)}

    if isinstance(key, EllipticCurvePrivateKey):
        curve = _CURVES.get(key.curve.name, key.curve.name)
        point = key.public_key().public_numbers()
        # RFC 7518, 6.2.1.2: as many bytes as the curve has, also when some are zero.
        size = (key.key_size + 7) // 8
        x, y = _number(point.x, size), _number(point.y, size)
        return curve, {"kty": "EC", "crv": curve, "x": x, "y": y}

    curve = "Ed25519" if isinstance(key, Ed25519PrivateKey) else "Ed448"
    raw = key.public_key().public_bytes_raw()
    return curve, {"kty": "OKP", "crv": curve, "x": _base64(raw)}


def _number(value: int, size: int | None = None) -> str:
    length = (value.bit_length() + 7) // 8 if size is None else size
    return _base64(value.to_bytes(length, "big"))


def _base64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")


def _thumbprint(members: cabc.Mapping[str, str]) -> str:
    # Byte for byte as RFC 7638, 3.3 has it.
    text = json.dumps(members, sort_keys=True, separators=(",", ":"))
    return _base64(hashlib.sha256(text.encode()).digest())
