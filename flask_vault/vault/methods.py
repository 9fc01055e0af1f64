"""The login methods that need nothing but hvac."""

from __future__ import annotations

import collections.abc as cabc
import hashlib
import pathlib
import time
import typing as t

from ..errors import SecretNotFoundError
from ..errors import VaultConfigError
from ..errors import VaultLoginError
from ..errors import VaultPermissionError
from ..errors import VaultResponseError
from .auth import Credential
from .credentials import Options
from .tokens import Token
from .tokens import token_from_login
from .wrapping import unwrap_secret_id

if t.TYPE_CHECKING:
    import hvac

#: Where Kubernetes puts the token of a pod's service account.
_SERVICE_ACCOUNT: t.Final = "/var/run/secrets/kubernetes.io/serviceaccount/token"


def exchange(
    mount: str, what: str, send: cabc.Callable[[], object], *, key: str = "VAULT_AUTH"
) -> Token:
    """Send a login, and say what its refusal means.

    :param mount: of the auth method.
    :param what: the credential, for the message.
    :param send: sends the request and returns the answer.
    :param key: the config key that the credential is from, for the message.
    :raises VaultLoginError: when the server refuses the credential.
    """
    began = time.monotonic()
    refusal: VaultLoginError | None = None

    try:
        answer = send()
    except (VaultResponseError, VaultPermissionError) as error:
        # 400 and 403 are the refusals, and 401 what some gateway makes of them.
        if error.status not in {400, 401, 403}:
            raise

        said = " ".join("; ".join(error.errors).split()) or "no reason given"
        where = " that the method is enabled there, then" if error.status == 403 else ""
        refusal = VaultLoginError(
            f"Vault refuses the login at 'auth/{mount}' ({error.status}: {said}):"
            f" check{where} {what} in {key}. It is not tried again, since repeated"
            " failures lock the role.",
            status=error.status,
            path=error.path,
            errors=error.errors,
        )

    except SecretNotFoundError as error:
        refusal = VaultLoginError(
            f"There is no auth method at 'auth/{mount}' ({error.status}): check 'mount'"
            f" in {key}, and VAULT_NAMESPACE.",
            status=error.status,
            path=error.path,
            errors=error.errors,
        )

    if refusal is not None:
        raise refusal

    return token_from_login(t.cast("dict[str, t.Any]", answer), began)


class TokenLogin:
    """A token from ``VAULT_TOKEN``, a file or an environment variable.

    A file is followed: when an agent has put another token there, that is used.
    """

    name = "token"
    makes_tokens = False

    def __init__(self, options: Options) -> None:
        options.check_names(("token",))
        self._options = options

    def credential(self) -> Credential:
        token = self._options.read("token")

        if token is None:
            raise VaultConfigError(
                f"{self._options.key} has the method 'token' and there is none: set"
                " VAULT_TOKEN, or 'token_file' or 'token_env' beside the method."
            )

        return (token,)

    def login(self, client: hvac.Client, credential: Credential) -> Token:
        # Asking the server about it would cost a request, and a use of the token.
        return Token(credential[0])


class NoLogin:
    """No token at all: an agent or proxy adds one to what we send."""

    name = "none"
    makes_tokens = False

    def __init__(self, options: Options) -> None:
        options.check_names()

    def credential(self) -> Credential:
        return ("",)

    def login(self, client: hvac.Client, credential: Credential) -> Token:
        # As if it were known: there is nothing to ask about.
        return Token("", accessor="")


class AppRoleLogin:
    """AppRole: a role id and a secret id, or one that is wrapped."""

    name = "approle"
    makes_tokens = True

    def __init__(self, options: Options) -> None:
        options.check_names(
            ("role_id", "secret_id", "wrapped_secret_id"), ("mount", "role_name")
        )
        self._options = options
        self._mount = (options.text("mount") or "approle").strip("/")
        #: The wrapping token and what it held; a wrapping token works once.
        self._unwrapped: tuple[str, str] | None = None

        if options.has("secret_id") and options.has("wrapped_secret_id"):
            raise VaultConfigError(
                f"{options.key} has a secret id and a wrapped one: keep one of them."
            )

    def credential(self) -> Credential:
        role_id = self._options.require("role_id", fallback="VAULT_ROLE_ID")

        if self._options.has("wrapped_secret_id"):
            return role_id, "wrapped", self._options.require("wrapped_secret_id")

        secret_id = self._options.require("secret_id", fallback="VAULT_SECRET_ID")
        return role_id, "plain", secret_id

    def login(self, client: hvac.Client, credential: Credential) -> Token:
        role_id, kind, secret_id = credential

        if kind == "wrapped":
            secret_id = self._unwrap(client, secret_id)

        return exchange(
            self._mount,
            "the role id and the secret id",
            lambda: client.auth.approle.login(
                role_id, secret_id, use_token=False, mount_point=self._mount
            ),
            key=self._options.key,
        )

    def _unwrap(self, client: hvac.Client, wrapping_token: str) -> str:
        if self._unwrapped is None or self._unwrapped[0] != wrapping_token:
            secret_id = unwrap_secret_id(
                client, wrapping_token, self._mount, self._options.text("role_name")
            )
            self._unwrapped = wrapping_token, secret_id

        return self._unwrapped[1]


class JwtLogin:
    """A JSON Web Token, from a file that its issuer renews."""

    name = "jwt"
    makes_tokens = True
    _default_mount = "jwt"

    def __init__(self, options: Options) -> None:
        options.check_names(("jwt",), ("mount", "role"))
        self._options = options
        self._mount = (options.text("mount") or self._default_mount).strip("/")
        self._role = options.need("role")

    def credential(self) -> Credential:
        return (self._options.require("jwt"),)

    def login(self, client: hvac.Client, credential: Credential) -> Token:
        return exchange(
            self._mount,
            "the role and the JWT",
            lambda: client.auth.jwt.jwt_login(
                self._role, credential[0], use_token=False, path=self._mount
            ),
            key=self._options.key,
        )


class KubernetesLogin(JwtLogin):
    """The service account of a pod."""

    name = "kubernetes"
    _default_mount = "kubernetes"

    def __init__(self, options: Options) -> None:
        if not options.has("jwt"):
            options.raw["jwt_file"] = _SERVICE_ACCOUNT

        super().__init__(options)

    def login(self, client: hvac.Client, credential: Credential) -> Token:
        return exchange(
            self._mount,
            "the role and the service account",
            lambda: client.auth.kubernetes.login(
                self._role, credential[0], use_token=False, mount_point=self._mount
            ),
            key=self._options.key,
        )


class PasswordLogin:
    """A user's name and password: ``userpass`` and ``ldap``."""

    makes_tokens = True

    def __init__(self, options: Options) -> None:
        options.check_names(("password",), ("mount", "username"))
        self.name = options.method
        self._options = options
        self._mount = (options.text("mount") or options.method).strip("/")
        self._username = options.need("username")

    def credential(self) -> Credential:
        return (self._options.require("password", header=False),)

    def login(self, client: hvac.Client, credential: Credential) -> Token:
        method = client.auth.ldap if self.name == "ldap" else client.auth.userpass
        return exchange(
            self._mount,
            "the username and the password",
            lambda: method.login(
                self._username,
                credential[0],
                use_token=False,
                mount_point=self._mount,
            ),
            key=self._options.key,
        )


class CertLogin:
    """The client certificate of the TLS connection (``VAULT_CLIENT_CERT``)."""

    name = "cert"
    makes_tokens = True

    def __init__(self, options: Options) -> None:
        options.check_names((), ("mount", "role"))
        self._files = options.client_cert
        self._key = options.key
        self._mount = (options.text("mount") or "cert").strip("/")
        self._role = options.text("role")

    def credential(self) -> Credential:
        if self._files is None:
            raise VaultConfigError(
                f"{self._key} has the method 'cert' and VAULT_CLIENT_CERT is unset: set"
                " it to the file of the certificate."
            )

        try:
            read = [pathlib.Path(file).read_bytes() for file in self._files]
        except OSError as error:
            reason = error.strerror or type(error).__name__
        else:
            return tuple(hashlib.sha256(content).hexdigest() for content in read)

        raise VaultConfigError(
            f"VAULT_CLIENT_CERT or VAULT_CLIENT_KEY cannot be read ({reason}): check"
            " the files and their permissions."
        )

    def login(self, client: hvac.Client, credential: Credential) -> Token:
        body = {} if self._role is None else {"name": self._role}
        # hvac's own call takes the files of a certificate, and has no connection to
        # share with the requests that follow.
        return exchange(
            self._mount,
            "the certificate in VAULT_CLIENT_CERT and the role",
            lambda: client.adapter.post(f"/v1/auth/{self._mount}/login", json=body),
            key=self._key,
        )
