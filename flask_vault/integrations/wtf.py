"""Flask-WTF: a form that was rendered before a rotation is accepted after it.

.. code-block:: python

    vault.init_app(app)
    csrf.init_app(app)
    flask_vault.integrations.wtf.init_app(app)

Flask-WTF signs with ``WTF_CSRF_SECRET_KEY`` and verifies with it. It hands that to
itsdangerous, which also takes a list: it signs with the last key and accepts each. So
the whole ring is one config value, which no reader can see torn.
"""

from __future__ import annotations

import typing as t

from flask import Flask

from ..errors import VaultConfigError
from ..extension import when_loaded
from ..keyring import KeyRing
from ..state import AppState

try:
    # Without it, the call is a mistake.
    import flask_wtf  # type: ignore[import-untyped]  # noqa: F401
except ImportError:
    raise VaultConfigError(
        "flask_vault.integrations.wtf needs Flask-WTF: pip install 'flask-vault[wtf]'."
    ) from None

CSRF_KEY: t.Final = "WTF_CSRF_SECRET_KEY"


def init_app(app: Flask) -> None:
    """Keep ``WTF_CSRF_SECRET_KEY`` what the key ring says.

    That is the ring of its own entry; without one, the ring of ``SECRET_KEY``.

    :raises VaultConfigError: when the entry has no ring, or the config sets the key
        itself.
    """
    when_loaded(app, _follow)


def _follow(state: AppState) -> None:
    if not state.settings.enabled:
        return

    key = CSRF_KEY if CSRF_KEY in {e.key for e in state.entries} else "SECRET_KEY"

    if key != CSRF_KEY and state.app.config.get(CSRF_KEY) is not None:
        raise VaultConfigError(
            f"{CSRF_KEY} is in the config, and would not change when SECRET_KEY is"
            " rotated: remove it, or make it an entry of VAULT_SECRETS with"
            " 'keyring': True."
        )

    state.follow(key, _keys)


def _keys(ring: KeyRing) -> dict[str, list[t.Any]]:
    signing = ring.signing
    others = [key.value for key in reversed(ring.accepted) if key is not signing]
    return {CSRF_KEY: [*others, signing.value]}
