"""Who may log in."""

from __future__ import annotations

from flask import current_app
from werkzeug.security import check_password_hash


def is_user(name: object) -> bool:
    return name in current_app.config["USERS"]


def authenticate(name: str, password: str) -> bool:
    users: dict[str, str] = current_app.config["USERS"]
    # A name that nobody has takes as long as one that somebody has.
    password_hash = users.get(name) or next(iter(users.values()))
    return check_password_hash(password_hash, password) and name in users
