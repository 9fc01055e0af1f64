"""Login methods: which there are, and how one is chosen by ``VAULT_AUTH``."""

from __future__ import annotations

import collections.abc as cabc
import importlib
import os
import typing as t

from ..errors import VaultConfigError
from .credentials import Options
from .tokens import Token

if t.TYPE_CHECKING:
    import hvac

#: What a method logs in with; compared, so that a refused one is not sent twice.
Credential = tuple[str, ...]


class LoginMethod(t.Protocol):
    """How to get a token. A class of the user's own is named by its dotted path.

    It is made with the :class:`~flask_vault.vault.credentials.Options` of
    ``VAULT_AUTH``.
    """

    #: As in ``VAULT_AUTH["method"]``, for messages.
    name: str
    #: Whether a login makes a new token. A token that somebody gave us is what it is.
    makes_tokens: bool

    def credential(self) -> Credential:
        """Read the credential anew from where it is kept.

        :raises VaultConfigError: when it is missing or unreadable.
        """
        ...

    def login(self, client: hvac.Client, credential: Credential) -> Token:
        """Exchange the credential for a token.

        :param client: one without a token.
        :raises VaultLoginError: when the server refuses it. It is not sent again.
        """
        ...


#: Where each method's class is. Imported when it is chosen.
_METHODS: t.Final[dict[str, str]] = {
    "approle": "methods:AppRoleLogin",
    "aws": "cloud:AwsLogin",
    "azure": "cloud:AzureLogin",
    "cert": "methods:CertLogin",
    "gcp": "cloud:GcpLogin",
    "jwt": "methods:JwtLogin",
    "kubernetes": "methods:KubernetesLogin",
    "ldap": "methods:PasswordLogin",
    "none": "methods:NoLogin",
    "token": "methods:TokenLogin",
    "userpass": "methods:PasswordLogin",
}


def parse_auth(
    raw: object,
    token: str | None,
    *,
    key: str = "VAULT_AUTH",
    environ: cabc.Mapping[str, str] = os.environ,
    client_cert: tuple[str, str] | None = None,
) -> LoginMethod:
    """Make the login method that ``VAULT_AUTH`` describes.

    :param raw: a method's name, or a mapping with ``method`` and its options; ``None``
        uses ``token``.
    :param token: ``VAULT_TOKEN``.
    :param key: the config key that ``raw`` is from, for messages.
    :param client_cert: the files of ``VAULT_CLIENT_CERT`` and its key.
    :raises VaultConfigError: with the key and the cure in the message.
    """
    if raw is None:
        if token is None:
            raise VaultConfigError(
                "No way to log in to Vault is configured: set VAULT_AUTH, such as"
                " {'method': 'approle', 'role_id': ..., 'secret_id_file': ...}, or"
                " VAULT_TOKEN."
            )

        raw = {"method": "token"}

    if isinstance(raw, str):
        raw = {"method": raw}

    if not isinstance(raw, cabc.Mapping):
        raise VaultConfigError(
            f"{key} is a mapping such as {{'method': 'approle', ...}}, not"
            f" {type(raw).__name__}."
        )

    # Environment variables are upper case: FLASK_VAULT_AUTH__METHOD=approle.
    options = {
        str(k).lower() if str(k).isupper() else str(k): v for k, v in raw.items()
    }
    method = options.pop("method", None)

    if not isinstance(method, str):
        raise VaultConfigError(
            f"{key} has no 'method': add one of {', '.join(_METHODS)}."
        )

    # VAULT_TOKEN is an option of the method that it is for.
    if method == "token" and token is not None:
        if not {"token", "token_file", "token_env"} & options.keys():
            options["token"] = token

    made = Options(method, options, key=key, environ=environ, client_cert=client_cert)
    return _class_of(method, key)(made)


def _class_of(method: str, key: str) -> cabc.Callable[[Options], LoginMethod]:
    known = _METHODS.get(method)

    if known is not None:
        module, _, name = known.partition(":")
        found = getattr(importlib.import_module(f".{module}", __package__), name)
        return t.cast("cabc.Callable[[Options], LoginMethod]", found)

    module, colon, name = method.partition(":")

    if not colon:
        module, _, name = method.rpartition(".")

    if not module or not name:
        raise VaultConfigError(
            f"{key} has the method {method!r}; the methods are {', '.join(_METHODS)},"
            " or the dotted path of a class of your own."
        )

    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        found = None

    if not callable(found):
        raise VaultConfigError(
            f"{key} has the method {method!r}, which cannot be imported: write it as"
            " 'package.module:Class'."
        )

    return t.cast("cabc.Callable[[Options], LoginMethod]", found)
