"""Masks secrets in what others log."""

from __future__ import annotations

import base64
import collections.abc as cabc
import contextlib
import json
import logging
import operator
import typing as t
import urllib.parse
import weakref

from .entries import Entry
from .state import AppState
from .values import fields_of
from .vault.documents import Document

MASK: t.Final = "***"

#: Least characters of a value that is masked. A shorter one is part of other words, and
#: a mask in their middle would tell it.
SHORTEST: t.Final = 8

#: Fields of a document that are no secrets where the entry is made of several fields,
#: such as the parts of a database's URL.
PLAIN_FIELDS: t.Final = frozenset(
    {
        *("database", "db", "dbname", "driver", "host", "hostname"),
        *("port", "scheme", "server", "user", "username"),
    }
)

#: Options of ``VAULT_AUTH`` that are credentials.
_CREDENTIALS: t.Final = frozenset({"jwt", "password", "secret_id", "token"})

#: What each record has, and what of it cannot hold a value.
_STANDARD: t.Final = frozenset(vars(logging.makeLogRecord({})))

_formatter = logging.Formatter()


class Redaction(logging.Filter):
    """A filter that masks the secrets of apps, and lets every record pass.

    What is masked goes with the app: a value is masked from the moment on at which the
    config has it, and as long as a key ring accepts it.

    :param states: gives the apps' states.
    """

    def __init__(
        self, states: cabc.Callable[[], cabc.Iterable[weakref.ref[AppState]]]
    ) -> None:
        super().__init__()
        self._states = states
        #: What the secrets were taken from, and the secrets. Replaced in one step.
        self._known: tuple[tuple[object, ...], tuple[str, ...]] = (), ()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"

    def cover(self, target: logging.Logger | logging.Handler) -> None:
        """Mask what a handler writes, or a logger and each of its handlers.

        The filters of a logger see only what is logged with itself; those of a handler
        all that reaches it.
        """
        if isinstance(target, logging.Handler):
            target.addFilter(self)
            return

        for handler in target.handlers:
            handler.addFilter(self)

        # The handlers of the loggers above it get its records, too.
        if target.parent is not None or not target.handlers:
            target.addFilter(self)

        # Without a handler anywhere, this is the one that writes.
        if target is logging.getLogger() and logging.lastResort is not None:
            logging.lastResort.addFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        """Mask the record. Nothing is raised, and nothing passes that was not seen."""
        try:
            self._mask(record)
        except Exception as error:
            record.msg = "A record was withheld: masking it failed with %s."
            record.args = (type(error).__name__,)
            record.exc_info = record.exc_text = record.stack_info = None

            for name in vars(record).keys() - _STANDARD:
                setattr(record, name, MASK)

        return True

    # --- records ---------------------------------------------------------------------

    def _mask(self, record: logging.LogRecord) -> None:
        secrets = self._current()

        if not secrets:
            return

        try:
            text = record.getMessage()
        except Exception:
            # The handler would print both when it fails in the same way.
            text = f"{record.msg!r} {record.args!r}"
            record.msg, record.args = text, ()

        masked = _masked(text, secrets)

        if masked is not text:
            record.msg, record.args = masked, ()
        elif record.args:
            # One that the message does not show may be shown elsewhere.
            record.args = _masked_all(record.args, secrets)

        if record.exc_info or record.exc_text:
            self._mask_exception(record, secrets)

        if record.stack_info:
            record.stack_info = _masked(record.stack_info, secrets)

        if len(vars(record)) > len(_STANDARD):
            for name in vars(record).keys() - _STANDARD:
                vars(record)[name] = _masked_all(vars(record)[name], secrets)

    def _mask_exception(
        self, record: logging.LogRecord, secrets: tuple[str, ...]
    ) -> None:
        text = record.exc_text

        if text is None and isinstance(record.exc_info, tuple):
            text = _formatter.formatException(record.exc_info)

        if text is None:
            return

        masked = _masked(text, secrets)

        if masked is not text:
            # Whoever formats it anew would do so from the exception itself.
            record.exc_text, record.exc_info = masked, None

    # --- secrets ---------------------------------------------------------------------

    def _current(self) -> tuple[str, ...]:
        """What is masked now, the longest first."""
        states = [state for ref in self._states() if (state := ref()) is not None]
        seen = tuple(part for state in states for part in _parts_of(state))

        # Each part is replaced whole when something in it changes.
        before, secrets = self._known

        if len(seen) == len(before) and all(map(operator.is_, seen, before)):
            return secrets

        found = {text for state in states for text in _secrets_of(state)}
        long = (text for text in found if len(text) >= SHORTEST)
        secrets = tuple(sorted(long, key=len, reverse=True))
        self._known = seen, secrets
        return secrets


def _parts_of(state: AppState) -> cabc.Iterator[object]:
    """What tells by its identity whether the secrets of an app are others."""
    yield state.live.applied
    yield state.live.rings
    yield state.live.outcomes

    if state.settings.enabled:
        yield state.client.transport.token


def _secrets_of(state: AppState) -> cabc.Iterator[str]:
    for value in _values_of(state):
        for text in _texts_in(value):
            yield from _spellings_of(text)


def _values_of(state: AppState) -> cabc.Iterator[t.Any]:
    settings, live = state.settings, state.live
    yield from (settings.token, settings.health_token, *settings.backup_keys)

    for auth in (settings.auth, settings.rotate_auth):
        if isinstance(auth, cabc.Mapping):
            yield from (auth[name] for name in _CREDENTIALS & auth.keys())

    if settings.enabled:
        token = state.client.transport.token
        yield None if token is None else token.value

    for key, outcome in live.outcomes.items():
        # A default is in the code, and often a plain word.
        if outcome.source in {"vault", "cache", "env"}:
            yield from _visible(outcome.entry, state.app.config.get(key))

        if settings.enabled:
            place = state.client.catalog.location_of(outcome.entry)
            held = live.applied.get(place)
            present = None if held is None else held.document
            documents = (present, live.before.get(place))
            yield from _fields_of(outcome.entry, documents)

    for ring in live.rings.values():
        yield from (key.value for key in ring.accepted)


def _fields_of(
    entry: Entry, documents: cabc.Iterable[Document | None]
) -> cabc.Iterator[t.Any]:
    """What an entry takes from its document, and from the one before, which requests
    that began earlier still work with."""
    for document in documents:
        if document is not None:
            data = document.data
            yield from _visible(
                entry, {n: data[n] for n in fields_of(entry, data) if n in data}
            )


def _visible(entry: Entry, value: t.Any) -> cabc.Iterator[t.Any]:
    if entry.reference.field is None and isinstance(value, cabc.Mapping):
        yield from (v for name, v in value.items() if name not in PLAIN_FIELDS)
    else:
        yield value


def _texts_in(value: t.Any) -> cabc.Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, bytes):
        yield value.decode("utf-8", "replace")
        yield base64.b64encode(value).decode()
        yield repr(value)[2:-1]
    elif isinstance(value, cabc.Mapping):
        for item in value.values():
            yield from _texts_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts_in(item)


def _spellings_of(text: str) -> cabc.Iterator[str]:
    """How a value may be written: as it is, in a ``repr``, in JSON, in a URL."""
    text = text.strip()
    yield text
    yield repr(text)[1:-1]
    yield json.dumps(text)[1:-1]
    yield urllib.parse.quote(text, safe="")
    yield urllib.parse.quote_plus(text)


# --- masking -------------------------------------------------------------------------


def _masked(text: str, secrets: cabc.Iterable[str]) -> str:
    """The same object when there is nothing to mask."""
    if len(text) < SHORTEST:
        return text

    for secret in secrets:
        if secret in text:
            text = text.replace(secret, MASK)

    return text


def _masked_all(value: t.Any, secrets: tuple[str, ...]) -> t.Any:
    """The same object when there is nothing to mask."""
    if isinstance(value, str):
        return _masked(value, secrets)

    if isinstance(value, int | float | None):
        return value

    if isinstance(value, cabc.Mapping):
        fields = {name: _masked_all(item, secrets) for name, item in value.items()}
        same = all(fields[name] is item for name, item in value.items())
        return value if same else fields

    if type(value) in {list, tuple}:
        items = [_masked_all(item, secrets) for item in value]
        same = all(one is other for one, other in zip(items, value, strict=True))
        return value if same else type(value)(items)

    # Whatever it is, a handler would write it as one of these.
    # When it cannot be written, no handler can.
    with contextlib.suppress(Exception):
        for text in (str(value), repr(value)):
            masked = _masked(text, secrets)

            if masked is not text:
                return masked

    return value
