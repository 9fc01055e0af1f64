"""The signals that Flask-Vault sends.

The sender is the app itself, never a proxy. Signals reach receivers of this process
only. A receiver that raises is logged, and the others still run. Take ``**extra`` in
each receiver: a later version may send more.
"""

from __future__ import annotations

import logging
import traceback
import typing as t

import blinker

_log = logging.getLogger("flask_vault")
_signals = blinker.Namespace()

#: Sent when the config was filled at start-up.
#:
#: :param keys: the config keys that were set, a tuple of ``str``.
#: :param sources: ``vault``, ``env``, ``default`` or ``unset`` for each key of
#:     ``VAULT_SECRETS``, a ``dict``.
secrets_loaded = _signals.signal("vault-secrets-loaded")

#: Sent for each entry whose value was changed by a rotation of this process, with
#: ``app.config`` already updated, inside an app context. Carries no value.
#:
#: :param key: the config key.
#: :param path: mount and path of the document.
#: :param field: the field that was rotated.
#: :param version: the document's version now, ``None`` on KV v1.
#: :param previous_version: the version before.
#: :param origin: ``"local"``: this process rotated it.
secret_rotated = _signals.signal("vault-secret-rotated")


def send(signal: blinker.NamedSignal, sender: t.Any, **arguments: t.Any) -> None:
    """Call every receiver, also when one of them raises.

    The log names the type and the place of the failure, not its text, which may hold
    what the receiver was working on.
    """
    for receiver in signal.receivers_for(sender):
        try:
            receiver(sender, **arguments)
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)
            where = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "?"
            _log.error(
                "A receiver of the signal %s failed with %s at %s; the others were"
                " called.",
                signal.name,
                type(error).__name__,
                where,
            )
