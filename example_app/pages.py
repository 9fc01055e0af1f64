"""What a person sees: log in, and keep notes.

The session cookie is signed with ``SECRET_KEY``, which Vault keeps.
"""

from __future__ import annotations

import typing as t

from flask import abort
from flask import Blueprint
from flask import current_app
from flask import redirect
from flask import render_template
from flask import request
from flask import session
from flask import url_for
from flask.typing import ResponseReturnValue
from werkzeug.security import check_password_hash

from . import db

bp = Blueprint("pages", __name__)


@bp.before_request
def require_login() -> ResponseReturnValue | None:
    if request.endpoint == "pages.login" or _user() is not None:
        return None

    # Nothing is put into the session here. A cookie that was signed with another key
    # then stays as it is, and is good again when that key is restored.
    return redirect(url_for("pages.login"))


@bp.route("/login", methods=["GET", "POST"])
def login() -> ResponseReturnValue:
    if request.method == "GET":
        return render_template("login.html")

    users: dict[str, str] = current_app.config["USERS"]
    name = request.form.get("name", "")
    # A name that nobody has takes as long as one that somebody has.
    password_hash = users.get(name) or next(iter(users.values()))
    matches = check_password_hash(password_hash, request.form.get("password", ""))

    if name not in users or not matches:
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
    return user if user in current_app.config["USERS"] else None
