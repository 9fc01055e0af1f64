"""The signals that Flask-Vault sends.

The sender is the app itself, never a proxy. Signals reach receivers of this process
only. A receiver that raises is logged, and the others still run. Take ``**extra`` in
each receiver: a later version may send more.
"""

from __future__ import annotations

import logging
import typing as t

import blinker

from .errors import place_of

_log = logging.getLogger("flask_vault")
_signals = blinker.Namespace()

#: Sent when the config was filled at start-up.
#:
#: :param keys: the config keys that were set, a tuple of ``str``.
#: :param sources: ``vault``, ``cache``, ``env``, ``default`` or ``unset`` for each key
#:     of ``VAULT_SECRETS``, a ``dict``.
secrets_loaded = _signals.signal("vault-secrets-loaded")

#: Sent in every process when it learns that an entry has another value in Vault, with
#: ``app.config`` already updated, inside an app context. Carries no value. A value of a
#: key ring is accepted from now on, and signs later: see ``keyring_advanced``.
#:
#: :param key: the config key.
#: :param path: mount and path of the document.
#: :param field: the field that was rotated, ``None`` for a whole document.
#: :param version: the document's version now, ``None`` on KV v1.
#: :param previous_version: the version before.
#: :param origin: ``"local"`` when this process rotated it, ``"refresh"`` when it found
#:     out by asking.
secret_rotated = _signals.signal("vault-secret-rotated")

#: Sent when another key of a ring signs, or one is accepted no more, with
#: ``app.config`` already updated, inside an app context.
#:
#: :param key: the config key.
#: :param version: the version of the value that signs.
#: :param accepted: the versions that are accepted, newest first, a tuple of ``int``.
keyring_advanced = _signals.signal("vault-keyring-advanced")

#: Sent once when the refresh begins to fail, and once for paths that fail as well
#: later; the app goes on with what it has.
#:
#: :param paths: mounts and paths that failed, a tuple of ``str``.
#: :param error: name of the first failure's type, such as ``"VaultConnectionError"``.
refresh_failed = _signals.signal("vault-refresh-failed")

#: Sent once when the refresh works again.
#:
#: :param seconds: for how long it failed, a ``float``.
refresh_recovered = _signals.signal("vault-refresh-recovered")


def send(signal: blinker.NamedSignal, sender: t.Any, **arguments: t.Any) -> int:
    """Call every receiver, also when one of them raises.

    The log names the type and the place of the failure, not its text, which may hold
    what the receiver was working on.

    :return: how many have raised.
    """
    called = [
        call(f"the signal {signal.name}", receiver, sender, **arguments)
        for receiver in signal.receivers_for(sender)
    ]
    return called.count(False)


def call(
    what: str, receiver: t.Callable[..., object], *args: t.Any, **kwargs: t.Any
) -> bool:
    """Call one receiver; what it raises is logged, and no more.

    :param what: what it receives, for the log.
    :return: whether it raised nothing.
    """
    try:
        receiver(*args, **kwargs)
    except Exception as error:
        _log.error(
            "A receiver of %s failed with %s at %s; the others were called.",
            what,
            type(error).__name__,
            place_of(error),
        )
        return False

    return True
