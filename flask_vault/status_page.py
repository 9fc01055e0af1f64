"""``/vault/health`` for people: the same facts as a page.

One answer has all of it. There is no script, and nothing is loaded from anywhere.
"""

from __future__ import annotations

import base64
import collections.abc as cabc
import functools
import hashlib
import hmac
import os
import pathlib
import typing as t

import jinja2
import markupsafe
from flask import request
from flask import Response

from .status_facts import facts_of
from .status_facts import tone_of
from .status_rows import Row

if t.TYPE_CHECKING:
    from .state import AppState

#: Seconds after which a browser asks again.
EVERY: t.Final = 10

_HTML: t.Final = "text/html"
_FOLDER: t.Final = pathlib.Path(__file__).parent / "pages"


def prepare() -> None:
    """Read the templates, so that no request waits for a disk."""
    _style()

    for name in _environment().list_templates():
        if name.endswith(".html"):
            _environment().get_template(name)


def is_wanted() -> bool:
    """Whether a person asks: the request names HTML, as browsers do, and prefers it.

    A load balancer that takes anything (``*/*``) gets the JSON.
    """
    accepted = request.accept_mimetypes
    named = any(kind == _HTML for kind, _ in accepted)
    others = ("application/health+json", "application/json")
    return named and accepted.best_match((*others, _HTML)) == _HTML


def has_password(expected: str) -> bool:
    """Whether the request has the token as the password of HTTP Basic.

    That is how a browser can send it, and it is in no URL and no history then.
    """
    given = request.authorization

    if given is None or given.type != "basic":
        return False

    return hmac.compare_digest((given.password or "").encode(), expected.encode())


def page(state: AppState, details: cabc.Mapping[str, t.Any], code: int) -> Response:
    """The page of an app.

    :param details: the health's.
    """
    paused = request.args.get("refresh") == "off"
    facts = facts_of(state, details)
    response = _response(
        "status.html",
        code,
        app=state.app.name,
        facts=facts,
        rows=markupsafe.Markup("\n").join(_row(row) for row in facts.rows),
        process=os.getpid(),
        every=None if paused else EVERY,
    )

    if not paused:
        response.headers["Refresh"] = str(EVERY)

    return response


def question(status: str) -> Response:
    """Ask for the token. Who has none sees what everybody may."""
    response = _response("question.html", 401, status=status, tone=tone_of(status))
    response.headers["WWW-Authenticate"] = (
        'Basic realm="Status of Vault: any user, the token as password",'
        ' charset="UTF-8"'
    )
    return response


@functools.cache
def _environment() -> jinja2.Environment:
    """Not the app's: its filters and its escaping are its own business."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )


@functools.cache
def _style() -> tuple[markupsafe.Markup, str]:
    """The style sheet, and its hash for the policy."""
    text = (_FOLDER / "status.css").read_text("utf-8")
    digest = hashlib.sha256(text.encode()).digest()
    # It is a file of ours, and nothing is put into it.
    style = markupsafe.Markup(text)  # noqa: S704 # nosec B704
    return style, f"'sha256-{base64.b64encode(digest).decode()}'"


@functools.lru_cache(maxsize=1024)
def _row(row: Row) -> markupsafe.Markup:
    """The HTML of a secret. Most are the same as on the page before."""
    macros = t.cast(t.Any, _environment().get_template("status_row.html").module)
    return t.cast(markupsafe.Markup, macros.html_of(row))


def _response(template: str, code: int, **names: object) -> Response:
    style, digest = _style()
    html = _environment().get_template(template).render(style=style, **names)
    response = Response(html, status=code, mimetype=_HTML)
    response.vary.add("Accept")
    response.headers.update(
        {
            "Cache-Control": "no-store",
            "Content-Security-Policy": (
                f"default-src 'none'; style-src {digest}; img-src data:;"
                " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
            ),
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        }
    )
    return response
