"""Checks of the app itself, which need no server."""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import importlib.metadata
import pathlib
import re
import typing as t

from .case import Case
from .findings import Finding
from .findings import of_error

#: Before it, sessions are signed with the oldest of the keys (CVE-2025-47278).
_LEAST_FLASK: t.Final = (3, 1, 1)

#: Extensions that read their config in ``init_app``, and never again: their name in
#: ``app.extensions``, what people call them, and how their keys begin.
_READ_ONCE: t.Final = (
    ("cache", "Flask-Caching", "CACHE_"),
    ("celery", "Celery", "CELERY"),
    ("limiter", "Flask-Limiter", "RATELIMIT_"),
    ("mail", "Flask-Mail", "MAIL_"),
    ("mongoengine", "Flask-MongoEngine", "MONGODB_"),
    ("redis", "Flask-Redis", "REDIS_"),
    ("security", "Flask-Security", "SECURITY_"),
    ("session", "Flask-Session", "SESSION_"),
    ("sqlalchemy", "Flask-SQLAlchemy", "SQLALCHEMY_"),
)


def flask_version(case: Case) -> cabc.Iterator[Finding]:
    version = importlib.metadata.version("flask")
    numbers = tuple(int(n) for n in re.findall(r"\d+", version)[:3])

    if numbers >= _LEAST_FLASK:
        yield Finding("flask", "pass", f"Flask {version}")
    else:
        yield Finding(
            "flask",
            "fail",
            f"Flask {version} signs sessions with the oldest of the keys"
            " (CVE-2025-47278).",
            "Install Flask 3.1.1 or newer.",
        )


def config(case: Case) -> cabc.Iterator[Finding]:
    for error in case.errors:
        told = of_error("config", error)
        yield dataclasses.replace(told, cure=told.cure or "Correct it.")

    if case.errors:
        return

    if not case.settings.enabled:
        yield Finding(
            "config",
            "warn",
            "VAULT_ENABLED is false: nothing comes from Vault.",
            "Set VAULT_ENABLED to true, or leave it out.",
        )
    elif not case.entries:
        yield Finding(
            "config",
            "warn",
            "VAULT_SECRETS is empty: nothing comes from Vault.",
            "Declare what the app needs, such as {'STRIPE_KEY': 'stripe#api_key'}.",
        )
    else:
        yield Finding("config", "pass", f"{len(case.entries)} entries in VAULT_SECRETS")


def order(case: Case) -> cabc.Iterator[Finding]:
    """The factory was left at ``vault.init_app``: what is there came before it."""
    keys = [entry.key for entry in case.entries]
    late: dict[str, list[str]] = {}

    for name, title, prefix in _READ_ONCE:
        mine = [key for key in keys if key.startswith(prefix)]

        if mine and _is_there(case, name):
            late[title] = mine

    for title, mine in late.items():
        yield Finding(
            "order",
            "fail",
            f"{title} was initialized before FlaskVault, and has read"
            f" {', '.join(mine)} when it was not there yet.",
            "Call vault.init_app(app) before it, right after the config is loaded.",
        )

    if not late and keys:
        yield Finding(
            "order", "pass", "nothing that reads a secret once comes before FlaskVault"
        )


def _is_there(case: Case, name: str) -> bool:
    if name in case.app.extensions:
        return True

    # Flask-Session leaves nothing else behind.
    interface = type(case.app.session_interface).__module__
    return name == "session" and interface.startswith("flask_session")


def window(case: Case) -> cabc.Iterator[Finding]:
    settings = case.settings
    rings = [entry.key for entry in case.entries if entry.secret.keyring]

    if not rings:
        return

    wait, interval = settings.propagation_window, settings.refresh_interval
    told = f"a new key signs {wait:g} s after it was written"

    if settings.refresh_mode == "off":
        yield Finding(
            "window",
            "warn",
            f"VAULT_REFRESH_MODE is 'off', and {', '.join(rings)} have key rings: the"
            " workers do not learn of a new key.",
            "Set VAULT_REFRESH_MODE to 'thread', or call vault.refresh() yourself.",
        )
    elif wait <= interval:
        yield Finding(
            "window",
            "fail",
            f"{told}, and workers ask every {interval:g} s: one that has not asked yet"
            " refuses what another signs.",
            f"Set VAULT_PROPAGATION_WINDOW to {4 * interval:g} or more.",
        )
    elif wait < 3 * interval:
        yield Finding(
            "window",
            "warn",
            f"{told}, and workers ask every {interval:g} s: one failed request, and a"
            " worker refuses what another signs.",
            f"Set VAULT_PROPAGATION_WINDOW to {4 * interval:g} or more.",
        )
    else:
        yield Finding("window", "pass", f"{told}; workers ask every {interval:g} s")


def gunicorn(case: Case) -> cabc.Iterator[Finding]:
    file = pathlib.Path("gunicorn.conf.py")
    text = file.read_text("utf-8", "replace") if file.is_file() else ""
    arguments = case.environ.get("GUNICORN_CMD_ARGS", "")

    if not text and not arguments:
        return

    preloads = "--preload" in arguments or bool(
        re.search(r"^\s*preload_app\s*=\s*True", text, re.M)
    )

    if case.is_wrapped("VAULT_AUTH") and not preloads:
        yield Finding(
            "gunicorn",
            "warn",
            "each worker makes the app, and the wrapped secret id of VAULT_AUTH works"
            " for the first alone.",
            "Set preload_app = True in gunicorn.conf.py, or start it with --preload.",
        )
    elif preloads and "gevent" in text + arguments and "monkey" not in text:
        yield Finding(
            "gunicorn",
            "warn",
            "the app is preloaded before gevent has patched anything, and TLS fails"
            " then.",
            "Call gevent.monkey.patch_all() at the top of gunicorn.conf.py.",
        )
    elif preloads:
        yield Finding(
            "gunicorn", "pass", "preloaded: one login, whose token the workers share"
        )
    else:
        yield Finding("gunicorn", "pass", "each worker makes the app, and logs in")
