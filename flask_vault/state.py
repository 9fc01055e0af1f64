"""What Flask-Vault keeps for one app, in ``app.extensions["vault"]``."""

from __future__ import annotations

import contextlib
import logging
import os
import typing as t

from flask import current_app
from flask import Flask
from flask import g
from flask import has_app_context

from .client import Pin
from .client import VaultClient
from .entries import Entry
from .errors import VaultError
from .resolve import failure_of
from .resolve import Outcome
from .resolve import resolve_entry
from .resolve import without_vault
from .rotation.runner import Rotated
from .settings import Settings
from .signals import secret_rotated
from .signals import secrets_loaded
from .signals import send
from .vault.documents import Document
from .vault.documents import Location

if t.TYPE_CHECKING:
    from werkzeug.local import LocalProxy

_log = logging.getLogger("flask_vault")

#: ``g`` itself. An attribute read through the proxy costs ten times as much.
_present_g = t.cast("LocalProxy[t.Any]", g)._get_current_object


class AppState:
    """The client of an app, its entries, and what became of them."""

    def __init__(
        self, app: Flask, settings: Settings, entries: tuple[Entry, ...]
    ) -> None:
        self.app = app
        self.settings = settings
        self.entries = entries
        self.client = VaultClient(settings, entries, pin=self._pin)
        self.client.on_rotated(self._rotated)
        self.loaded = False
        #: What the last asking brought, until the start is known to be good.
        self._found: dict[Location, Document | VaultError] = {}
        #: By config key; without the values, which are in ``app.config``.
        self.outcomes: dict[str, Outcome] = {}

    def load(self, patience: float = 0.0) -> None:
        """Read all entries, and only when all required ones are good, set the config.

        :param patience: seconds to wait for a server that does not answer.
        :raises VaultError: for those that are not.
        """
        outcomes = self.resolve(patience)
        failure = failure_of(outcomes)

        if failure is not None:
            raise failure

        for outcome in outcomes:
            key = outcome.entry.key

            if outcome.source == "unset":
                self.app.config.setdefault(key, None)
            else:
                # Assigned, not setdefault: Flask has SECRET_KEY as None.
                self.app.config[key] = outcome.value

        self.loaded = True

        if self.settings.enabled:
            self.client.keep_for_restart(self._found)

        self._found = {}

        with self._app_context():
            send(
                secrets_loaded,
                self.app,
                keys=tuple(o.entry.key for o in outcomes if o.source != "unset"),
                sources={o.entry.key: o.source for o in outcomes},
            )

    def resolve(self, patience: float = 0.0) -> list[Outcome]:
        """Ask for every entry, and note what became of it. The config stays."""
        if self.settings.enabled:
            found = self._found = self.client.load(patience)
            outcomes = [
                resolve_entry(
                    entry, found[self.client.catalog.location_of(entry)], os.environ
                )
                for entry in self.entries
            ]
        else:
            outcomes = [
                without_vault(entry, os.environ, self.app.config.get(entry.key))
                for entry in self.entries
            ]
            unset = [o.entry.key for o in outcomes if o.source == "unset"]

            if unset:
                _log.warning(
                    "VAULT_ENABLED is False, and nothing serves for %s: set their 'env'"
                    " or 'default' when the app needs them.",
                    ", ".join(unset),
                )

        self.outcomes = {o.entry.key: o.without_value() for o in outcomes}
        return outcomes

    # --- rotations of this process ---------------------------------------------------

    def _rotated(self, rotated: Rotated) -> None:
        changed: list[tuple[Outcome, str]] = []

        for entry in self.entries:
            if self.client.catalog.location_of(entry) != rotated.location:
                continue

            outcome = resolve_entry(entry, rotated.document, os.environ)

            if outcome.source != "vault":
                _log.warning(
                    "%s keeps its value, since the rotated one does not serve: %s",
                    entry.key,
                    outcome.error,
                )
                continue

            self.outcomes[entry.key] = outcome.without_value()
            field = entry.reference.field

            if field in rotated.fields:
                changed.append((outcome, field))
            elif field is None and self.app.config.get(entry.key) != outcome.value:
                changed.append((outcome, entry.rotated_field or rotated.fields[0]))

        # All of them before the first signal: a receiver sees the whole new state.
        for outcome, _ in changed:
            self.app.config[outcome.entry.key] = outcome.value

        with self._app_context():
            for outcome, field in changed:
                send(
                    secret_rotated,
                    self.app,
                    key=outcome.entry.key,
                    path=rotated.location.path,
                    field=field,
                    version=rotated.version,
                    previous_version=rotated.previous_version,
                    origin="local",
                )

    # --- contexts --------------------------------------------------------------------

    def _app_context(self) -> contextlib.AbstractContextManager[object]:
        if has_app_context() and current_app == self.app:
            return contextlib.nullcontext()

        return self.app.app_context()

    def _pin(self) -> Pin | None:
        """What the current app context has seen; ``None`` outside of one of our app."""
        try:
            store = _present_g()
        except RuntimeError:
            return None

        try:
            pin: Pin = store._vault_snapshot
        except AttributeError:
            if current_app != self.app:
                return None

            pin = store._vault_snapshot = self.client.new_pin()

        return pin if pin.owner is self.client else None
