"""The calls that an app or a script makes. Usable without Flask."""

from __future__ import annotations

import collections.abc as cabc
import copy
import datetime
import functools
import logging
import os
import typing as t

from .backups import open_backups
from .bootstrap import BootstrapCache
from .catalog import Catalog
from .entries import Entry
from .entries import parse_entries
from .entries import Reference
from .errors import SecretNotFoundError
from .errors import VaultConfigError
from .errors import VaultError
from .errors import VaultLoginError
from .errors import VaultPermissionError
from .errors import VaultUnavailableError
from .errors import without_frames
from .history import Historian
from .history import Need
from .keyring import KeyRing
from .observing import Observers
from .polling import Poller
from .rotation.backup import BackupStore
from .rotation.runner import Rotated
from .rotations import Rotations
from .settings import Settings
from .startup import load_documents
from .store import Held
from .store import Snapshot
from .store import Store
from .values import pick
from .values import RESERVED
from .vault.auth import parse_auth
from .vault.documents import Document
from .vault.documents import Location
from .vault.endpoint import Endpoint
from .vault.kv import KV
from .vault.transport import Transport
from .vault.updates import update
from .vault.versions import Versions

P = t.ParamSpec("P")
R = t.TypeVar("R")

#: Versions that a document with a key ring keeps: four years of monthly rotations.
RING_VERSIONS: t.Final = 50

_log = logging.getLogger("flask_vault")


def _at_the_edge(call: cabc.Callable[P, R]) -> cabc.Callable[P, R]:
    """Let exceptions leave without the frames, whose locals hold values and tokens."""

    @functools.wraps(call)
    def edge(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return call(*args, **kwargs)
        except VaultError as error:
            failure = without_frames(error)

        # This frame is in the traceback, too.
        del args, kwargs
        raise failure

    return edge


class Pin:
    """What one unit of work, such as a request, has seen of Vault, and keeps seeing."""

    __slots__ = ("documents", "owner", "rings", "snapshot", "values")

    def __init__(self, owner: VaultClient, snapshot: Snapshot) -> None:
        self.owner = owner
        self.snapshot = snapshot
        self.documents: dict[Location, Document] = {}
        self.values: dict[tuple[str, str | None], t.Any] = {}
        #: The key rings of an app, once one of them was asked for.
        self.rings: cabc.Mapping[str, KeyRing] | None = None


class VaultClient:
    """Reads, writes and rotates secrets.

    Made by :class:`~flask_vault.FlaskVault` for each app as ``vault.client``; scripts
    make one with :meth:`from_mapping`. It does nothing until it is asked for something,
    and may be shared by threads and used after a fork.

    :param settings: the connection, cache and backup settings.
    :param entries: what ``VAULT_SECRETS`` declares; says which fields may be rotated,
        and how.
    :param pin: gives the :class:`Pin` of the present unit of work, or ``None``.
    :param observers: are told of logins, requests and rotations.
    """

    def __init__(
        self,
        settings: Settings,
        entries: cabc.Iterable[Entry] = (),
        *,
        pin: cabc.Callable[[], Pin | None] | None = None,
        observers: Observers | None = None,
    ) -> None:
        if not isinstance(settings, Settings):
            raise TypeError(
                "VaultClient takes Settings: make one of a mapping with"
                " VaultClient.from_mapping(config)."
            )

        self.settings = settings
        self.catalog = Catalog(settings.mount, settings.prefix, entries)
        self._pin = pin or (lambda: None)
        self._observers = observers or Observers()
        self._listeners: list[cabc.Callable[[Rotated], None]] = []

        if not settings.enabled:
            return

        key = settings.client_key or settings.client_cert
        endpoint = Endpoint(
            settings.addresses,
            namespace=settings.namespace,
            verify=settings.verify,
            client_cert=(
                None
                if settings.client_cert is None
                else (settings.client_cert, t.cast(str, key))
            ),
            server_name=settings.server_name,
            proxy=settings.proxy,
            connect_timeout=settings.connect_timeout,
            read_timeout=settings.read_timeout,
        )
        self._transport = Transport(
            endpoint,
            parse_auth(
                settings.auth,
                settings.token,
                key=settings.auth_key,
                client_cert=endpoint.client_cert,
            ),
            revoke_on_exit=settings.revoke_on_exit,
            observers=self._observers,
        )
        self._kv = KV(self._transport, settings.kv_version)
        self._versions = Versions(self._transport, self._kv)
        self._historian = Historian(self._kv, self._versions)
        self._poller = Poller(self._kv, self._historian)
        self._store = Store(
            self._kv, ttl=settings.cache_ttl, max_stale=settings.max_stale
        )

    @classmethod
    def from_mapping(
        cls,
        config: cabc.Mapping[str, t.Any],
        environ: cabc.Mapping[str, str] = os.environ,
    ) -> VaultClient:
        """Make a client from the keys of :doc:`/configuration`, without Flask.

        :raises VaultConfigError: for the first key that is wrong.
        """
        return cls(
            Settings.from_mapping(config, environ),
            parse_entries(config.get("VAULT_SECRETS")),
        )

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {' or '.join(self.settings.addresses)}>"

    # --- reading ---------------------------------------------------------------------

    def get_secret(
        self,
        path: str,
        field: str | None = None,
        fallback_env: str | None = None,
        use_cache: bool = True,
    ) -> t.Any:
        """Read a field of a document, or the whole of it.

        Inside an app context repeated reads of a path see one version. Elsewhere a
        document is kept for ``VAULT_CACHE_TTL`` seconds. When a new read fails, the old
        document serves for ``VAULT_MAX_STALE`` seconds more.

        :param path: below ``VAULT_MOUNT`` and ``VAULT_PREFIX``, or absolute with a
            leading slash; ``path#field`` in one is good, too.
        :param field: ``None`` gives a copy of all fields as a ``dict``.
        :param fallback_env: environment variable that serves when Vault is unreachable
            or the path or field is missing. Never after a denial.
        :param use_cache: ``False`` asks Vault now.
        :return: the value as it is stored.
        :raises SecretNotFoundError: when path or field is missing.
        :raises VaultPermissionError: when the token may not read it.
        :raises VaultUnavailableError: when nobody could answer, and there is nothing
            young enough in memory.
        :raises VaultConfigError: when the path is none.
        """
        if use_cache:
            pin = self._pin()

            if pin is not None:
                try:
                    return pin.values[path, field]
                except KeyError:
                    pass

        return self._get_secret(path, field, fallback_env, use_cache)

    @_at_the_edge
    def _get_secret(
        self, path: str, field: str | None, fallback_env: str | None, use_cache: bool
    ) -> t.Any:
        reference = _reference(path, field)

        try:
            self._require_enabled(f"{reference}", " give 'fallback_env', or")
            document = self._read(self.catalog.location(reference), use_cache)

            if reference.field is None:
                return copy.deepcopy(_visible(document.data))

            value = pick(document.data, reference.field, document.path)
        except (VaultUnavailableError, SecretNotFoundError, VaultConfigError) as error:
            served = os.environ.get(fallback_env) if fallback_env else None
            disabled = not self.settings.enabled

            if not served or (isinstance(error, VaultConfigError) and not disabled):
                raise

            if not disabled:
                _log.warning(
                    "%s comes from the environment's %s, since Vault did not give it:"
                    " %s",
                    reference,
                    fallback_env,
                    error,
                )

            return served

        if isinstance(value, dict | list):
            return copy.deepcopy(value)

        if (pin := self._pin()) is not None:
            pin.values[path, field] = value

        return value

    def _read(self, location: Location, use_cache: bool = True) -> Document:
        pin = self._pin()

        if pin is None or not use_cache:
            document = self._store.read(location, use_cache=use_cache)
        elif location in pin.documents:
            return pin.documents[location]
        else:
            held = pin.snapshot.get(location)
            document = (
                held.document
                if held is not None and self._store.is_fresh(held)
                else self._store.read(location)
            )

        if pin is not None:
            self._repin(pin, location, document)

        return document

    def load(self, patience: float = 0.0) -> dict[Location, Document | VaultError]:
        """Read each document that the entries name once, several at a time.

        :param patience: seconds to wait for a server that does not answer.
        """
        self._require_enabled("What is in Vault")
        places = [self.catalog.location_of(entry) for entry in self.catalog.entries]
        return load_documents(
            self._transport, self._kv, self._store, places, self._bootstrap(), patience
        )

    def keep_for_restart(
        self, found: cabc.Mapping[Location, Document | VaultError]
    ) -> None:
        """Put the documents of a good start into ``VAULT_BOOTSTRAP_CACHE``, if any."""
        cache = self._bootstrap()
        good: dict[Location, Document] = {}

        for place, document in found.items():
            if isinstance(document, VaultUnavailableError):
                return

            if isinstance(document, Document):
                # What comes from the file is no news for it.
                if document.origin == "cache":
                    return

                good[place] = document

        if cache is not None and good:
            cache.save(good)

    # --- keeping up ------------------------------------------------------------------

    def poll(
        self, location: Location, needs: cabc.Sequence[Need], base: Held | None
    ) -> Held:
        """What is at a path now, see :meth:`flask_vault.polling.Poller.poll`."""
        return self._poller.poll(location, needs, base)

    def keep_history(self, location: Location) -> bool:
        """Have so many versions of a document kept that a key ring has its memory.

        :return: whether that was not so before.
        :raises VaultPermissionError: when the token may not.
        """
        if self._versions.limit_of(location) >= RING_VERSIONS:
            return False

        self._versions.raise_limit(location, RING_VERSIONS)
        return True

    def adopt(self, found: cabc.Mapping[Location, Held]) -> None:
        """Serve what a poll has found, all of it at once."""
        self._store.adopt(found)

    @property
    def transport(self) -> Transport:
        """The way to the server."""
        return self._transport

    @property
    def versions(self) -> Versions:
        """The metadata of documents."""
        return self._versions

    def _bootstrap(self) -> BootstrapCache | None:
        settings = self.settings

        if settings.bootstrap_cache is None:
            return None

        return BootstrapCache(
            settings.bootstrap_cache,
            settings.backup_keys,
            (settings.namespace, settings.mount, settings.prefix),
            settings.bootstrap_max_age,
        )

    def list_secrets(self, path: str = "") -> list[str]:
        """The names below a path; those of folders end with a slash.

        :raises SecretNotFoundError: when there are none.
        """
        return self._list_secrets(path)

    @_at_the_edge
    def _list_secrets(self, path: str) -> list[str]:
        self._require_enabled(path)
        bare = path.strip("/")

        if bare:
            reference = Reference.parse(f"/{bare}" if path.startswith("/") else bare)
            location = self.catalog.location(reference)
        else:
            joined = "/".join(filter(None, (self.settings.mount, self.settings.prefix)))
            location = Location(joined, mount=self.settings.mount)

        return self._kv.list(location)

    # --- writing ---------------------------------------------------------------------

    @_at_the_edge
    def set_secret(
        self,
        path: str,
        data: cabc.Mapping[str, t.Any],
        cas: int | None = None,
        *,
        replace: bool = False,
    ) -> int | None:
        """Write fields of a document, by check-and-set where there is KV v2.

        Other processes learn of it when they ask Vault the next time.

        :param path: as in :meth:`get_secret`, without a field.
        :param data: the fields, merged into those that are there.
        :param cas: the version that must be there now, 0 for none. ``None`` is the
            version just read.
        :param replace: drop the fields that ``data`` does not name.
        :return: the new version; ``None`` on KV v1.
        :raises CheckAndSetError: when somebody else wrote meanwhile.
        """
        self._require_enabled(path)
        location = self.catalog.location(_path_only(path))

        for name in data:
            if not isinstance(name, str) or not name or name in RESERVED:
                raise VaultConfigError(
                    f"{name!r} cannot be the name of a field: it is empty, no text, or"
                    " reserved for Flask-Vault."
                )

        def merge(present: Document) -> cabc.Mapping[str, t.Any]:
            kept = RESERVED & present.data.keys() if replace else present.data
            # What belongs to a rotation in progress is not the caller's to drop.
            return {**{name: present.data[name] for name in kept}, **data}

        written = update(self._kv, location, merge, expected=cas)
        self._hold(location, written)
        return written.version

    @_at_the_edge
    def rotate_secret(
        self,
        path: str,
        field: str,
        new_value: str | None = None,
        *,
        backup: bool = True,
    ) -> Rotated:
        """Replace a value, after a backup of the old one.

        A value that is in use elsewhere, too, such as the password of a database, takes
        two times ``VAULT_PROPAGATION_WINDOW``: :doc:`/rotating`.

        :param path: as in :meth:`get_secret`.
        :param new_value: ``None`` has one made as the entry for this field says in
            ``rotate``, or by the generator ``token``.
        :param backup: ``False`` rotates without a backup. That of a path which no entry
            names, and which is not below ``VAULT_PREFIX``, is not restored by
            :meth:`restore_secret`: the document may be another app's.
        :raises BackupError: when no backup can be made; nothing was changed.
        :raises AlreadyRotatedError: when somebody else rotated it meanwhile.
        :raises UnfinishedRotationError: when a step failed that may pass. Call it
            again.
        """
        self._require_enabled(path)
        return self.rotations.rotate_field(_path_only(path), field, new_value, backup)

    @_at_the_edge
    def restore_secret(self, file: str) -> Rotated:
        """Bring back the values that a rotation replaced, from its backup.

        :param file: the name of a file in ``VAULT_BACKUP_DIR``.
        :raises BackupError: when it cannot be read or trusted.
        :raises RotationError: when it is of a document that this app does not have.
        """
        self._require_enabled(file)
        return self.rotations.restore(file)

    @property
    def rotations(self) -> Rotations:
        """The rotations of what the entries declare, step by step.

        :meta private:
        """
        return Rotations(
            self.kv,
            self._versions,
            self.catalog,
            self.settings,
            self._done,
            self._observers,
        )

    def _done(self, rotated: Rotated) -> None:
        self._hold(rotated.location, rotated.document)

        for listener in self._listeners:
            listener(rotated)

    def on_rotated(self, listener: cabc.Callable[[Rotated], None]) -> None:
        """Have a function called after each rotation that this client made."""
        self._listeners.append(listener)

    @property
    def backups(self) -> BackupStore:
        """The backups in ``VAULT_BACKUP_DIR``.

        :raises BackupError: when the directory is unset.
        """
        transport = self._transport if self.settings.enabled else None
        return open_backups(self.settings, transport)

    def held(self, location: Location) -> Document | None:
        """The document in memory, whatever its age, if it is Vault's own.

        :meta private:
        """
        held = self._store.snapshot.get(location)

        if held is None or held.document.origin != "vault":
            return None

        return held.document

    # --- health and cache ------------------------------------------------------------

    def health_check(self) -> dict[str, t.Any]:
        """Ask the server how it is, and whether it accepts our token.

        Never raises for what the server says or does not say.

        :return: ``vault_available``, ``vault_initialized``, ``vault_sealed``,
            ``vault_standby``, ``authenticated`` (each a bool, or ``None`` when it is
            unknown), ``vault_version``, ``cache_size`` (documents in memory),
            ``failing`` (documents whose last read failed), ``token_ttl`` (seconds that
            the token lives) and ``error`` (the type of what went wrong).
        """
        result: dict[str, t.Any] = {
            "enabled": self.settings.enabled,
            "vault_available": False,
            "vault_initialized": None,
            "vault_sealed": None,
            "vault_standby": None,
            "vault_version": None,
            "authenticated": None,
            "token_ttl": None,
            "cache_size": 0,
            "failing": 0,
            "error": None,
        }

        if not self.settings.enabled:
            return result

        result["cache_size"] = len(self._store.snapshot)
        result["failing"] = len(self._store.failing)

        try:
            said = self._transport.health()
            result["vault_available"] = True
            result["vault_initialized"] = said.get("initialized")
            result["vault_sealed"] = said.get("sealed")
            result["vault_standby"] = said.get("standby")
            result["vault_version"] = said.get("version")

            if said.get("initialized") and not said.get("sealed"):
                result["token_ttl"] = self._transport.token_ttl()
                result["authenticated"] = True
        except VaultLoginError as error:
            result["authenticated"] = False
            result["error"] = type(error).__name__
        except VaultPermissionError:
            # It lives. Without the policy "default" it may not look itself up.
            pass
        except VaultError as error:
            result["error"] = type(error).__name__

        return result

    def clear_cache(self) -> None:
        """Forget every document, the stale ones too, and what this context has seen.

        Forgets as well that a login was refused: when the role was mended, or its lock
        is over, the same credential is sent once more.
        """
        if self.settings.enabled:
            self._store.clear()
            self._transport.forget_refusal()

        if (pin := self._pin()) is not None:
            pin.snapshot = Snapshot()
            pin.documents.clear()
            pin.values.clear()

    # --- parts -----------------------------------------------------------------------

    def new_pin(self) -> Pin:
        """A pin on what is in memory now."""
        return Pin(self, self._store.snapshot if self.settings.enabled else Snapshot())

    @property
    def kv(self) -> KV:
        """The key-value engines, without a cache.

        :raises VaultConfigError: when ``VAULT_ENABLED`` is false.
        """
        self._require_enabled("What is in Vault")
        return self._kv

    @property
    def failing(self) -> bool:
        """Whether a document is served that could not be read anew."""
        return bool(self.failures)

    @property
    def failures(self) -> dict[Location, VaultError]:
        """Why documents could not be read anew that are served all the same."""
        return self._store.failing if self.settings.enabled else {}

    def now(self) -> datetime.datetime:
        """Vault's time, from its last answers, in UTC.

        :raises VaultConfigError: when ``VAULT_ENABLED`` is false.
        """
        self._require_enabled("Vault's time")
        return self._transport.now()

    def _hold(self, location: Location, document: Document) -> None:
        self._store.put(location, document)

        if (pin := self._pin()) is not None:
            self._repin(pin, location, document)

    def _repin(self, pin: Pin, location: Location, document: Document) -> None:
        seen = pin.documents.get(location)
        pin.documents[location] = document

        if seen is not None and seen is not document:
            pin.values.clear()

    def _require_enabled(self, what: str, instead: str = "") -> None:
        if not self.settings.enabled:
            raise VaultConfigError(
                f"{what} cannot be read or written, since VAULT_ENABLED is"
                f" False:{instead} set it to True."
            )


@functools.lru_cache(1024)
def _reference(path: str, field: str | None) -> Reference:
    reference = Reference.parse(path)

    if field is None:
        return reference

    if reference.field is not None:
        raise VaultConfigError(
            f"The field is given twice, in {path!r} and as {field!r}: keep one."
        )

    return Reference.parse(f"{path}#{field}")


def _path_only(path: str) -> Reference:
    reference = Reference.parse(path)

    if reference.field is not None:
        raise VaultConfigError(
            f"{path!r} names a field: give the path {reference.path!r} alone."
        )

    return reference


def _visible(data: cabc.Mapping[str, t.Any]) -> dict[str, t.Any]:
    return {name: value for name, value in data.items() if name not in RESERVED}
