"""What a person sees: log in, and keep notes.

The session cookie and the forms are signed with ``SECRET_KEY``, which Vault keeps.
"""

from __future__ import annotations

import typing as t

from flask import abort
from flask import Blueprint
from flask import redirect
from flask import render_template
from flask import request
from flask import session
from flask import url_for
from flask.typing import ResponseReturnValue

from . import db
from . import users

bp = Blueprint("pages", __name__)


@bp.before_request
def require_login() -> ResponseReturnValue | None:
    if request.endpoint == "pages.login" or _user() is not None:
        return None

    return redirect(url_for("pages.login"))


@bp.route("/login", methods=["GET", "POST"])
def login() -> ResponseReturnValue:
    if request.method == "GET":
        return render_template("login.html")

    name = request.form.get("name", "")

    if not users.authenticate(name, request.form.get("password", "")):
        return render_template("login.html", failed=True), 401

    session.clear()
    session["user"] = name
    return redirect(url_for("pages.index"))


@bp.post("/logout")
def logout() -> ResponseReturnValue:
    session.clear()
    return redirect(url_for("pages.login"))


@bp.get("/")
def index() -> str:
    return render_template(
        "notes.html", user=_user(), notes=db.list_notes(), max_length=db.MAX_LENGTH
    )


@bp.post("/notes")
def add() -> ResponseReturnValue:
    text = db.clean_text(request.form.get("text"))

    if text is None:
        abort(400, f"A note has from 1 to {db.MAX_LENGTH} characters.")

    db.add_note(t.cast(str, _user()), text)
    return redirect(url_for("pages.index"))


@bp.post("/notes/<int:number>/delete")
def delete(number: int) -> ResponseReturnValue:
    db.delete_note(number)
    return redirect(url_for("pages.index"))


def _user() -> str | None:
    user = session.get("user")
    return user if users.is_user(user) else None
