"""What is known of an app that may not be able to start."""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import dataclasses
import datetime
import os
import re
import typing as t

from flask import Flask

from ..client import VaultClient
from ..entries import Entry
from ..entries import parse_entries
from ..errors import VaultConfigError
from ..errors import VaultError
from ..loading import with_backup_dir
from ..resolve import Outcome
from ..settings import ENVIRONMENT
from ..settings import Settings
from ..vault.documents import Document
from ..vault.documents import Location

#: Who rotates: a person's token, a role of its own, or the app.
Identity = t.Literal["VAULT_TOKEN", "VAULT_ROTATE_AUTH", "VAULT_AUTH"]

#: Without them nobody knows where the documents are.
_LEAD_THERE: t.Final = {"VAULT_MOUNT", "VAULT_PREFIX", "VAULT_NAMESPACE"}


def utc_now() -> datetime.datetime:
    return datetime.datetime.now(datetime.timezone.utc)


@dataclasses.dataclass
class Case:
    """An app, and what the checks learn of it one after another.

    :param complete: whether all keys could be read that say where the documents are.
    """

    app: Flask
    settings: Settings
    entries: tuple[Entry, ...]
    errors: tuple[VaultError, ...] = ()
    complete: bool = True
    environ: cabc.Mapping[str, str] = dataclasses.field(
        default_factory=lambda: os.environ, repr=False
    )
    clock: cabc.Callable[[], datetime.datetime] = utc_now
    #: What each address says of itself.
    health: dict[str, dict[str, t.Any]] = dataclasses.field(default_factory=dict)
    #: The app's client, once it is logged in.
    client: VaultClient | None = None
    documents: dict[Location, Document | VaultError] = dataclasses.field(
        default_factory=dict, repr=False
    )
    #: What each entry comes to, with its value.
    outcomes: dict[str, Outcome] = dataclasses.field(default_factory=dict, repr=False)
    _clients: list[VaultClient] = dataclasses.field(default_factory=list, repr=False)

    @property
    def is_ready(self) -> bool:
        """Whether there is a server that could take a login."""
        return any(
            said.get("initialized") and not said.get("sealed")
            for said in self.health.values()
        )

    @property
    def rotates(self) -> bool:
        return any(entry.rotation is not None for entry in self.entries)

    @property
    def operator(self) -> Identity:
        """Who runs ``flask vault rotate`` here."""
        if any(self.environ.get(name) for name in ENVIRONMENT["VAULT_TOKEN"]):
            return "VAULT_TOKEN"

        return (
            "VAULT_AUTH" if self.settings.rotate_auth is None else "VAULT_ROTATE_AUTH"
        )

    def client_of(self, identity: Identity) -> VaultClient:
        """A client that logs in as somebody.

        :raises VaultConfigError: when the credentials are not described rightly.
        """
        settings = self.settings

        if identity == "VAULT_TOKEN":
            names = ENVIRONMENT["VAULT_TOKEN"]
            token = next(filter(None, map(self.environ.get, names)), None)
            settings = dataclasses.replace(settings, token=token, auth=None)
        elif identity == "VAULT_ROTATE_AUTH":
            settings = dataclasses.replace(
                settings, auth=settings.rotate_auth, auth_key="VAULT_ROTATE_AUTH"
            )

        client = VaultClient(settings, self.entries)
        self._clients.append(client)
        return client

    def close(self) -> None:
        """Revoke the tokens that were made to look with."""
        for client in self._clients:
            transport = client.transport

            if transport.method.makes_tokens and transport.token is not None:
                with contextlib.suppress(VaultError):
                    transport.call(lambda made: made.auth.token.revoke_self())

        self._clients.clear()

    def is_wrapped(self, identity: Identity) -> bool:
        """Whether a login would use up what the app needs for its own."""
        auth = {
            "VAULT_TOKEN": None,
            "VAULT_ROTATE_AUTH": self.settings.rotate_auth,
            "VAULT_AUTH": self.settings.auth,
        }[identity]
        names = auth if isinstance(auth, cabc.Mapping) else ()
        return any(str(name).lower().startswith("wrapped_") for name in names)


def case_of(app: Flask, environ: cabc.Mapping[str, str] = os.environ) -> Case:
    """Read the config of an app as far as it can be read.

    A key that is wrong is noted and left out, so that it hides nothing else.
    """
    config, names = dict(app.config), dict(environ)
    errors: list[VaultError] = []
    left_out: set[str] = set()
    settings: Settings | None = None

    while settings is None:
        try:
            settings = Settings.from_mapping(config, names)
        except VaultConfigError as error:
            key = _key_of(error)

            # One that was wrong, and is missed now that it is left out, is told once.
            if key not in left_out:
                errors.append(error)

            left_out.add(key)

            if _leave_out(key, config, names):
                continue

            # It is one that has to be there, such as the address.
            if config.get("VAULT_ENABLED") is False:
                config, names = {}, {}

            config["VAULT_ENABLED"] = False

    entries: tuple[Entry, ...] = ()

    for key, raw in _items(app.config.get("VAULT_SECRETS"), errors):
        try:
            entries += parse_entries({key: raw})
        except VaultError as error:
            errors.append(error)

    try:
        # What they have to agree on.
        parse_entries({entry.key: entry.secret for entry in entries})
        VaultClient(dataclasses.replace(settings, enabled=False), entries)
    except VaultError as error:
        errors.append(error)
        entries = ()

    return Case(
        app,
        with_backup_dir(settings, app),
        entries,
        tuple(errors),
        not left_out & _LEAD_THERE,
        environ,
    )


def _items(raw: object, errors: list[VaultError]) -> cabc.Iterable[tuple[t.Any, t.Any]]:
    if isinstance(raw, cabc.Mapping):
        return raw.items()

    try:
        parse_entries(raw)
    except VaultError as error:
        errors.append(error)

    return ()


def _key_of(error: VaultError) -> str:
    named = re.match(r"_?[A-Z][A-Z_]+", str(error))
    return "" if named is None else named[0]


def _leave_out(key: str, config: dict[str, t.Any], environ: dict[str, str]) -> bool:
    before = len(config) + len(environ)

    for name in (key, *ENVIRONMENT.get(key, ())):
        environ.pop(name, None)

    config.pop(key, None)
    return len(config) + len(environ) < before
