"""Login methods: how a token comes to be, each reading its credential at each login."""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import difflib
import os
import pathlib
import time
import typing as t

from ..errors import VaultConfigError
from ..errors import VaultLoginError
from ..errors import VaultPermissionError
from ..errors import VaultResponseError

if t.TYPE_CHECKING:
    import hvac

#: What a method logs in with; compared, so that a refused one is not sent twice.
Credential = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Token:
    """A token and what the server said of it when it was made."""

    value: str = dataclasses.field(repr=False)
    accessor: str | None = None
    #: Seconds that it lives, counted from ``obtained``; ``None`` is unknown.
    ttl: int | None = None
    renewable: bool = False
    policies: tuple[str, ...] = ()
    #: Monotonic time of the login.
    obtained: float = dataclasses.field(default_factory=time.monotonic)

    @property
    def seconds_left(self) -> float | None:
        """Seconds until it dies, or ``None`` when that is unknown."""
        if self.ttl is None:
            return None

        return max(0.0, self.obtained + self.ttl - time.monotonic())


class LoginMethod(t.Protocol):
    """How to get a token."""

    #: As in ``VAULT_AUTH["method"]``.
    name: str

    def credential(self) -> Credential:
        """Read the credential anew from where it is kept.

        :raises VaultConfigError: when it is missing or unreadable.
        """
        ...

    def login(self, client: hvac.Client, credential: Credential) -> Token:
        """Exchange the credential for a token.

        :param client: one without a token.
        :raises VaultLoginError: when the server refuses it.
        """
        ...


def parse_auth(
    raw: object,
    token: str | None,
    environ: cabc.Mapping[str, str] = os.environ,
) -> LoginMethod:
    """Make the login method that ``VAULT_AUTH`` describes.

    :param raw: ``VAULT_AUTH``: a method's name, or a mapping with ``method`` and its
        options; ``None`` uses ``token``.
    :param token: ``VAULT_TOKEN``.
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
            "VAULT_AUTH is a mapping such as {'method': 'approle', ...}, not"
            f" {type(raw).__name__}."
        )

    options = {
        str(k).lower() if str(k).isupper() else str(k): v for k, v in raw.items()
    }
    method = options.pop("method", None)

    if method == "token":
        _check_options("token", options, ("token", *_sources("token")))
        return TokenLogin(options, token, environ)

    if method == "approle":
        known = ("mount", *_sources("role_id"), *_sources("secret_id"))
        _check_options("approle", options, known)
        return AppRoleLogin(options, environ)

    raise VaultConfigError(
        f"VAULT_AUTH has the method {method!r}; the methods are 'approle' and 'token'."
    )


class TokenLogin:
    """A token from ``VAULT_TOKEN``, a file or an environment variable."""

    name = "token"

    def __init__(
        self,
        options: cabc.Mapping[str, object],
        token: str | None,
        environ: cabc.Mapping[str, str],
    ) -> None:
        self._options = {"token": token, **options}

        if "token_file" in options or "token_env" in options:
            self._options.pop("token", None)

        self._environ = environ

    def credential(self) -> Credential:
        token = _read_option("token", self._options, self._environ)

        if token is None:
            raise VaultConfigError(
                "VAULT_AUTH has the method 'token' and there is none: set VAULT_TOKEN,"
                " or 'token_file' in VAULT_AUTH."
            )

        return (token,)

    def login(self, client: hvac.Client, credential: Credential) -> Token:
        # Asking the server about it would cost a request, and a use of the token.
        return Token(credential[0])


class AppRoleLogin:
    """AppRole: a role id and a secret id, from config, files or the environment."""

    name = "approle"

    def __init__(
        self,
        options: cabc.Mapping[str, object],
        environ: cabc.Mapping[str, str],
    ) -> None:
        self._options = dict(options)
        self._environ = environ
        self._mount = str(options.get("mount", "approle")).strip("/")

    def credential(self) -> Credential:
        role_id = self._part("role_id", "VAULT_ROLE_ID")
        secret_id = self._part("secret_id", "VAULT_SECRET_ID")
        return role_id, secret_id

    def _part(self, name: str, fallback: str) -> str:
        options = self._options

        if not any(source in options for source in _sources(name)):
            options = {f"{name}_env": fallback}

        value = _read_option(name, options, self._environ)

        if value is None:
            raise VaultConfigError(
                f"VAULT_AUTH has the method 'approle' and no {name}: add '{name}',"
                f" '{name}_file' or '{name}_env', or set {fallback} in the environment."
            )

        return value

    def login(self, client: hvac.Client, credential: Credential) -> Token:
        role_id, secret_id = credential
        refusal: VaultLoginError | None = None

        try:
            answer = client.auth.approle.login(
                role_id, secret_id, use_token=False, mount_point=self._mount
            )
        except (VaultResponseError, VaultPermissionError) as error:
            if error.status not in {400, 403}:
                raise

            said = "; ".join(error.errors) or "no reason given"
            refusal = VaultLoginError(
                f"Vault refuses the AppRole login at 'auth/{self._mount}'"
                f" ({error.status}: {' '.join(said.split())}): check the role id and"
                " the secret id in VAULT_AUTH. It is not tried again, since repeated"
                " failures lock the role.",
                status=error.status,
                path=error.path,
                errors=error.errors,
            )

        if refusal is not None:
            raise refusal

        return token_from_answer(t.cast("dict[str, t.Any]", answer))


def token_from_answer(answer: cabc.Mapping[str, t.Any]) -> Token:
    """Read the ``auth`` part of a login's answer.

    :raises VaultResponseError: when there is none.
    """
    auth = answer.get("auth")

    if not isinstance(auth, dict) or not isinstance(auth.get("client_token"), str):
        raise VaultResponseError(
            "The answer to the login holds no token: check that VAULT_ADDR is Vault's"
            " address."
        )

    return Token(
        auth["client_token"],
        accessor=auth.get("accessor") or None,
        ttl=auth.get("lease_duration") or None,
        renewable=bool(auth.get("renewable")),
        policies=tuple(auth.get("policies") or ()),
    )


def _sources(name: str) -> tuple[str, str, str]:
    return name, f"{name}_file", f"{name}_env"


def _check_options(
    method: str, options: cabc.Mapping[str, object], known: tuple[str, ...]
) -> None:
    for name in options:
        if name in known:
            continue

        close = difflib.get_close_matches(name, known, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise VaultConfigError(
            f"VAULT_AUTH: unknown key {name!r}{hint}; the keys of {method!r} are"
            f" {', '.join(dict.fromkeys(known))}."
        )


def _read_option(
    name: str,
    options: cabc.Mapping[str, object],
    environ: cabc.Mapping[str, str],
) -> str | None:
    """The value of an option: as given, from a file, or from the environment."""
    plain, in_file, in_env = _sources(name)

    if options.get(plain) is not None:
        return clean_header(str(options[plain]), f"VAULT_AUTH[{plain!r}]")

    if options.get(in_file) is not None:
        path = pathlib.Path(str(options[in_file])).expanduser()
        return clean_header(_read_file(path, in_file), f"the file {str(path)!r}")

    variable = str(options.get(in_env, ""))
    value = environ.get(variable, "") if variable else ""
    return clean_header(value, f"the environment's {variable}") if value else None


def _read_file(path: pathlib.Path, option: str) -> str:
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError:
        reason = "it is not text"
    except OSError as error:
        reason = error.strerror or type(error).__name__

    raise VaultConfigError(
        f"VAULT_AUTH[{option!r}]: the file {str(path)!r} cannot be read ({reason}):"
        " check the path and its permissions."
    )


def clean_header(value: str, where: str) -> str:
    """Strip a value that goes into a header, and refuse one that cannot.

    :raises VaultConfigError: naming ``where`` it is from and never the value. HTTP
        libraries print the value when they refuse it.
    """
    value = value.strip()

    if not value:
        raise VaultConfigError(f"{where} is empty: put the credential there.")

    if not value.isascii() or not value.isprintable() or " " in value:
        raise VaultConfigError(
            f"{where} holds white space, a control character or a letter outside of"
            " ASCII: it is no token or id of Vault's; check that it is one line."
        )

    return value
