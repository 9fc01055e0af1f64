"""The ``VAULT_*`` keys: names, defaults, checks. Each error names its key."""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import difflib
import ipaddress
import json
import logging
import os
import pathlib
import re
import typing as t
import urllib.parse

from .errors import VaultConfigError
from .paths import problem_of

#: Environment variable with the file that ``flask vault dev`` hands to what it starts.
DEV_FILE: t.Final = "_FLASK_VAULT_DEV"

DETAILS: t.Final = ("never", "token", "always")

REFRESH_MODES: t.Final = ("thread", "request", "off")

#: Keys for which the environment serves when the config has none, in this order.
ENVIRONMENT: t.Final[dict[str, tuple[str, ...]]] = {
    "VAULT_ADDR": ("VAULT_ADDR", "BAO_ADDR"),
    "VAULT_TOKEN": ("VAULT_TOKEN", "BAO_TOKEN"),
    "VAULT_NAMESPACE": ("VAULT_NAMESPACE", "BAO_NAMESPACE"),
    "VAULT_CACERT": ("VAULT_CACERT", "BAO_CACERT", "VAULT_CAPATH", "BAO_CAPATH"),
    "VAULT_CLIENT_CERT": ("VAULT_CLIENT_CERT", "BAO_CLIENT_CERT"),
    "VAULT_CLIENT_KEY": ("VAULT_CLIENT_KEY", "BAO_CLIENT_KEY"),
    "VAULT_TLS_SERVER_NAME": ("VAULT_TLS_SERVER_NAME", "BAO_TLS_SERVER_NAME"),
    "VAULT_ENVIRONMENT": ("VAULT_ENVIRONMENT",),
}

_FILES: t.Final = {
    "VAULT_CACERT": "the authority that signed the server's certificate",
    "VAULT_CLIENT_CERT": "the certificate that is shown to the server",
    "VAULT_CLIENT_KEY": "the key of the certificate in VAULT_CLIENT_CERT",
}

_log = logging.getLogger("flask_vault")


@dataclasses.dataclass(frozen=True)
class Settings:
    """The configuration of one app, checked."""

    enabled: bool = True
    #: In the order in which they are tried; empty only when not enabled.
    addresses: tuple[str, ...] = ()
    token: str | None = dataclasses.field(default=None, repr=False)
    auth: object = dataclasses.field(default=None, repr=False)
    #: The config key that ``auth`` is from, for messages.
    auth_key: str = "VAULT_AUTH"
    rotate_auth: object = dataclasses.field(default=None, repr=False)
    revoke_on_exit: bool = False
    namespace: str | None = None
    cacert: str | None = None
    skip_verify: bool = False
    client_cert: str | None = None
    client_key: str | None = None
    server_name: str | None = None
    proxy: str | None = dataclasses.field(default=None, repr=False)
    mount: str = "secret"
    prefix: str = ""
    environment: str | None = None
    kv_version: int | None = None
    connect_timeout: float = 2.0
    read_timeout: float = 5.0
    startup_timeout: float = 30.0
    cache_ttl: float = 300.0
    max_stale: float = 3600.0
    refresh_mode: str = "thread"
    refresh_interval: float = 30.0
    propagation_window: float = 120.0
    session_guard: bool = False
    bootstrap_cache: pathlib.Path | None = None
    bootstrap_max_age: float = 86_400.0
    backup_dir: pathlib.Path | None = None
    backup_keys: tuple[str, ...] = dataclasses.field(default=(), repr=False)
    #: Mount and name, or a name alone.
    backup_transit_key: str | None = None
    audit_log: pathlib.Path | None = None
    health: bool = True
    health_url_prefix: str = "/vault"
    health_blueprint: str = "vault"
    health_details: str = "never"
    health_token: str | None = dataclasses.field(default=None, repr=False)
    metrics_paths: bool = False

    @classmethod
    def from_mapping(
        cls,
        config: cabc.Mapping[str, t.Any],
        environ: cabc.Mapping[str, str] = os.environ,
    ) -> Settings:
        """Read ``app.config`` (or any mapping with the same keys).

        :param environ: serves for the address, token, namespace, CA file and
            environment's name where the config has none.
        :raises VaultConfigError: for the first key that is wrong.
        """
        read = _Reader(config, environ, _dev_overrides(environ))
        _check_names(config)
        _tell_unread(config, environ)
        enabled = read.flag("VAULT_ENABLED", True)
        interval = read.seconds("VAULT_REFRESH_INTERVAL", 30.0, positive=True)
        settings = cls(
            enabled=enabled,
            addresses=read.addresses("VAULT_ADDR"),
            token=read.header("VAULT_TOKEN"),
            auth=read.raw("VAULT_AUTH"),
            rotate_auth=read.raw("VAULT_ROTATE_AUTH"),
            revoke_on_exit=read.flag("VAULT_REVOKE_ON_EXIT", False),
            namespace=read.header("VAULT_NAMESPACE"),
            cacert=read.existing_path("VAULT_CACERT") if enabled else None,
            skip_verify=read.flag("VAULT_SKIP_VERIFY", False),
            client_cert=read.existing_path("VAULT_CLIENT_CERT") if enabled else None,
            client_key=read.existing_path("VAULT_CLIENT_KEY") if enabled else None,
            server_name=read.text("VAULT_TLS_SERVER_NAME"),
            proxy=read.proxy("VAULT_PROXY"),
            mount=read.path("VAULT_MOUNT", "secret"),
            environment=read.text("VAULT_ENVIRONMENT"),
            kv_version=read.kv_version("VAULT_KV_VERSION"),
            connect_timeout=read.seconds("VAULT_CONNECT_TIMEOUT", 2.0, positive=True),
            read_timeout=read.seconds("VAULT_READ_TIMEOUT", 5.0, positive=True),
            startup_timeout=read.seconds("VAULT_STARTUP_TIMEOUT", 30.0),
            cache_ttl=read.seconds("VAULT_CACHE_TTL", 300.0),
            max_stale=read.seconds("VAULT_MAX_STALE", 3600.0),
            refresh_mode=read.choice(
                "VAULT_REFRESH_MODE",
                # Tests refresh when they say so.
                "off" if config.get("TESTING") else "thread",
                REFRESH_MODES,
            ),
            refresh_interval=interval,
            propagation_window=read.seconds(
                # Three polls may be missed, and the fourth be late.
                "VAULT_PROPAGATION_WINDOW",
                max(120.0, 4 * interval),
            ),
            session_guard=read.flag("VAULT_SESSION_GUARD", False),
            bootstrap_cache=read.directory("VAULT_BOOTSTRAP_CACHE"),
            bootstrap_max_age=read.seconds("VAULT_BOOTSTRAP_MAX_AGE", 86_400.0),
            backup_dir=read.directory("VAULT_BACKUP_DIR"),
            backup_keys=read.texts("VAULT_BACKUP_KEYS"),
            backup_transit_key=read.optional_path("VAULT_BACKUP_TRANSIT_KEY"),
            audit_log=read.directory("VAULT_AUDIT_LOG"),
            health=read.flag("VAULT_HEALTH", True),
            health_url_prefix=read.url_prefix("VAULT_HEALTH_URL_PREFIX", "/vault"),
            health_blueprint=read.text("VAULT_HEALTH_BLUEPRINT") or "vault",
            health_details=read.choice("VAULT_HEALTH_DETAILS", "never", DETAILS),
            health_token=read.header("VAULT_HEALTH_TOKEN"),
            metrics_paths=read.flag("VAULT_METRICS_PATHS", False),
        )
        settings = dataclasses.replace(
            settings, prefix=_prefix(read, settings.environment, enabled)
        )

        if settings.health_details == "token" and not settings.health_token:
            raise VaultConfigError(
                "VAULT_HEALTH_DETAILS is 'token' and VAULT_HEALTH_TOKEN is unset: set"
                " it to the bearer token that may see the details."
            )

        if settings.client_key and not settings.client_cert:
            raise VaultConfigError(
                "VAULT_CLIENT_KEY is set and VAULT_CLIENT_CERT is not: set it to the"
                " file of the certificate."
            )

        if settings.bootstrap_cache and not settings.backup_keys:
            raise VaultConfigError(
                "VAULT_BOOTSTRAP_CACHE is set and VAULT_BACKUP_KEYS is not, which seals"
                " it: 'flask vault backup-key' makes a key."
            )

        if enabled and not settings.addresses:
            raise VaultConfigError(
                "VAULT_ADDR is unset: set it in the config or the environment, such as"
                " 'https://vault.example.com:8200', or set VAULT_ENABLED to False to"
                " run without Vault."
            )

        return settings

    @property
    def verify(self) -> bool | str:
        """What is believed of the server's certificate."""
        if self.skip_verify:
            return False

        return self.cacert or True


#: Every ``VAULT_*`` key but ``VAULT_SECRETS``.
KEYS: t.Final = (
    "VAULT_ADDR",
    "VAULT_AUDIT_LOG",
    "VAULT_AUTH",
    "VAULT_BACKUP_DIR",
    "VAULT_BACKUP_KEYS",
    "VAULT_BACKUP_TRANSIT_KEY",
    "VAULT_BOOTSTRAP_CACHE",
    "VAULT_BOOTSTRAP_MAX_AGE",
    "VAULT_CACERT",
    "VAULT_CACHE_TTL",
    "VAULT_CLIENT_CERT",
    "VAULT_CLIENT_KEY",
    "VAULT_CONNECT_TIMEOUT",
    "VAULT_ENABLED",
    "VAULT_ENVIRONMENT",
    "VAULT_HEALTH",
    "VAULT_HEALTH_BLUEPRINT",
    "VAULT_HEALTH_DETAILS",
    "VAULT_HEALTH_TOKEN",
    "VAULT_HEALTH_URL_PREFIX",
    "VAULT_KV_VERSION",
    "VAULT_MAX_STALE",
    "VAULT_METRICS_PATHS",
    "VAULT_MOUNT",
    "VAULT_NAMESPACE",
    "VAULT_PREFIX",
    "VAULT_PROPAGATION_WINDOW",
    "VAULT_PROXY",
    "VAULT_READ_TIMEOUT",
    "VAULT_REFRESH_INTERVAL",
    "VAULT_REFRESH_MODE",
    "VAULT_REVOKE_ON_EXIT",
    "VAULT_ROTATE_AUTH",
    "VAULT_SESSION_GUARD",
    "VAULT_SKIP_VERIFY",
    "VAULT_STARTUP_TIMEOUT",
    "VAULT_TLS_SERVER_NAME",
    "VAULT_TOKEN",
)


class _Reader:
    """Reads one key at a time; Flask may have made a number or a bool of any text."""

    def __init__(
        self,
        config: cabc.Mapping[str, t.Any],
        environ: cabc.Mapping[str, str],
        overrides: cabc.Mapping[str, t.Any],
    ) -> None:
        self._config = config
        self._environ = environ
        self._overrides = overrides

    def raw(self, key: str) -> t.Any:
        if key in self._overrides:
            return self._overrides[key]

        value = self._config.get(key)

        if value is not None:
            return value

        for name in ENVIRONMENT.get(key, ()):
            # An empty variable is how a shell or a container unsets one.
            if self._environ.get(name):
                return self._environ[name]

        return None

    def text(self, key: str) -> str | None:
        value = self.raw(key)

        if value is None:
            return None

        # from_prefixed_env() reads "123" as a number.
        if isinstance(value, bool) or not isinstance(value, str | int | os.PathLike):
            raise VaultConfigError(f"{key} is text, not {type(value).__name__}.")

        return str(value).strip() or None

    def header(self, key: str) -> str | None:
        """Text that goes into a header. It is not shown: it may be the token."""
        value = self.text(key)

        if value is not None and (not value.isascii() or not value.isprintable()):
            raise VaultConfigError(
                f"{key} holds a control character, a line break or a letter outside of"
                " ASCII: it must be one line of printable characters."
            )

        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self.raw(key)

        if value is None:
            return default

        if isinstance(value, str):
            value = {
                "1": True, "true": True, "yes": True, "on": True,
                "0": False, "false": False, "no": False, "off": False,
            }.get(value.strip().lower(), value)  # fmt: skip

        if value in (0, 1):
            return bool(value)

        raise VaultConfigError(f"{key} is true or false, not {value!r}.")

    def seconds(self, key: str, default: float, *, positive: bool = False) -> float:
        value = self.raw(key)

        if value is None:
            return default

        try:
            number = float("nan") if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            number = float("nan")

        if not (0 < number if positive else 0 <= number) or number == float("inf"):
            least = "above 0" if positive else "of 0 or more"
            raise VaultConfigError(f"{key} is a number of seconds {least}.")

        return number

    def choice(self, key: str, default: str, choices: tuple[str, ...]) -> str:
        value = self.text(key) or default

        if value not in choices:
            raise VaultConfigError(
                f"{key} is one of {', '.join(map(repr, choices))}, not {value!r}."
            )

        return value

    def kv_version(self, key: str) -> int | None:
        value = self.text(key)

        if value is None:
            return None

        if value not in {"1", "2"}:
            raise VaultConfigError(
                f"{key} is 1 or 2, not {value!r}; unset, the server is asked."
            )

        return int(value)

    def addresses(self, key: str) -> tuple[str, ...]:
        value = self.raw(key)

        if not isinstance(value, str) and isinstance(value, cabc.Sequence):
            texts = [str(item) for item in value]
        else:
            texts = [item for item in (self.text(key) or "").split(",") if item.strip()]

        return tuple(dict.fromkeys(_check_address(key, item.strip()) for item in texts))

    def proxy(self, key: str) -> str | None:
        value = self.text(key)

        # Not shown: it may hold a password.
        if value is not None and not re.match(r"https?://[^\s/]+", value):
            raise VaultConfigError(
                f"{key} is no address of an HTTP proxy: write it as"
                " 'http://proxy.example.com:3128'."
            )

        return value

    def existing_path(self, key: str) -> str | None:
        value = self.text(key)

        if value is not None and not os.path.exists(value):
            raise VaultConfigError(
                f"{key}: there is no file {value!r}: set it to the file of"
                f" {_FILES[key]}."
            )

        return value

    def directory(self, key: str) -> pathlib.Path | None:
        value = self.text(key)
        return None if value is None else pathlib.Path(value).expanduser()

    def texts(self, key: str) -> tuple[str, ...]:
        value = self.raw(key)

        if value is None:
            return ()

        if isinstance(value, str):
            return tuple(filter(None, re.split(r"[,\s]+", value)))

        if not isinstance(value, cabc.Sequence) or not all(
            isinstance(item, str) for item in value
        ):
            raise VaultConfigError(f"{key} is a list of texts.")

        return tuple(value)

    def path(self, key: str, default: str) -> str:
        value = (self.text(key) or default).strip("/")
        _check_segments(key, value)
        return value

    def optional_path(self, key: str) -> str | None:
        return None if self.text(key) is None else self.path(key, "")

    def url_prefix(self, key: str, default: str) -> str:
        value = self.text(key) or default

        if not value.startswith("/"):
            raise VaultConfigError(f"{key} begins with a slash, such as '/vault'.")

        return value.rstrip("/")


def _check_address(key: str, value: str) -> str:
    if value.startswith("unix:"):
        raise VaultConfigError(
            f"{key} is a socket, which Flask-Vault does not speak to: give the agent"
            " a 'listener \"tcp\"' on 127.0.0.1, and its address here."
        )

    try:
        url = urllib.parse.urlsplit(value)
        host, _ = url.hostname, url.port
    except ValueError:
        host = None

    # The value is not shown: somebody may have put a password into it.
    if (
        not host
        or url.scheme not in {"http", "https"}
        or "@" in url.netloc
        or url.query
        or url.fragment
    ):
        raise VaultConfigError(
            f"{key} is no address of a server: write it as"
            " 'https://vault.example.com:8200', without user name or query, or as a"
            " list of such addresses."
        )

    return value.rstrip("/").removesuffix("/v1")


def _prefix(read: _Reader, environment: str | None, enabled: bool) -> str:
    prefix = (read.text("VAULT_PREFIX") or "").strip("/")

    # Nothing is read below it, so an image can be built for any environment.
    if not enabled:
        return prefix

    if "{environment}" in prefix:
        if environment is None:
            raise VaultConfigError(
                "VAULT_PREFIX holds {environment} and VAULT_ENVIRONMENT is unset: set"
                " it in the config or the environment, such as 'production'. There is"
                " no default, since a guess would load the wrong secrets."
            )

        if "/" in environment:
            raise VaultConfigError("VAULT_ENVIRONMENT holds no slash.")

        prefix = prefix.replace("{environment}", environment)

    if "{" in prefix or "}" in prefix:
        raise VaultConfigError(
            f"VAULT_PREFIX {prefix!r} has a brace: the only placeholder is"
            " {environment}."
        )

    if prefix:
        _check_segments("VAULT_PREFIX", prefix)

    return prefix


def _check_segments(key: str, path: str) -> None:
    problem = problem_of(path)

    if problem is not None:
        raise VaultConfigError(f"{key} {path!r} {problem}")


def _check_names(config: cabc.Mapping[str, t.Any]) -> None:
    """A misspelled key would be silent: no secret, or a default in its place."""
    known = {*KEYS, "VAULT_SECRETS"}

    for key in config:
        if not key.startswith("VAULT_") or key in known:
            continue

        # dynaconf has its own settings in the config, also when it leaves Vault alone.
        if key.endswith("_FOR_DYNACONF"):
            continue

        for close in difflib.get_close_matches(key, known, n=1, cutoff=0.85):
            raise VaultConfigError(
                f"{key} is no key of Flask-Vault: did you mean {close}?"
            )

        _log.warning("%s is no key of this version of Flask-Vault; it is ignored.", key)


def _tell_unread(
    config: cabc.Mapping[str, t.Any], environ: cabc.Mapping[str, str]
) -> None:
    """Environment variables that somebody set, and that nothing will read."""
    for key in KEYS:
        if config.get(key) is not None:
            continue

        if environ.get(f"FLASK_{key}"):
            _log.warning(
                "FLASK_%s is in the environment, and the config has no %s: call"
                " app.config.from_prefixed_env() before init_app.",
                key,
                key,
            )
        elif key not in ENVIRONMENT and environ.get(key):
            _log.warning(
                "The variable %s is not read: name it FLASK_%s, and call"
                " app.config.from_prefixed_env() before init_app.",
                key,
                key,
            )


def _dev_overrides(environ: cabc.Mapping[str, str]) -> dict[str, t.Any]:
    """What ``flask vault dev`` sets over the config of the app that it starts.

    Only for a server on this host: an app must not be led to another one this way.
    """
    file = environ.get(DEV_FILE)

    if not file:
        return {}

    try:
        overrides = json.loads(pathlib.Path(file).read_text("utf-8"))
        host = urllib.parse.urlsplit(overrides["VAULT_ADDR"]).hostname or ""
        local = ipaddress.ip_address(host).is_loopback
    except (OSError, ValueError, KeyError, TypeError):
        local = False

    if not local:
        raise VaultConfigError(
            f"{DEV_FILE} is set in the environment, and 'flask vault dev' does not run"
            " any more: unset it, or start 'flask vault dev' again."
        )

    return dict(overrides)
