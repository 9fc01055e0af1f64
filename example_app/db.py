"""The notes, in SQLite. One connection for each request that needs one."""

from __future__ import annotations

import pathlib
import sqlite3
import typing as t

from flask import current_app
from flask import Flask
from flask import g

MAX_LENGTH: t.Final = 500

_SCHEMA = """
CREATE TABLE IF NOT EXISTS note (
    id INTEGER PRIMARY KEY,
    author TEXT NOT NULL,
    text TEXT NOT NULL,
    created TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP
)
"""


def init_app(app: Flask) -> None:
    app.teardown_appcontext(_close)


def clean_text(raw: object) -> str | None:
    """The text of a note, stripped; ``None`` when it cannot be one."""
    if not isinstance(raw, str):
        return None

    text = raw.strip()
    return text if 0 < len(text) <= MAX_LENGTH else None


def list_notes() -> list[dict[str, t.Any]]:
    """All notes, the newest first."""
    rows = _connection().execute("SELECT * FROM note ORDER BY id DESC")
    return [dict(row) for row in rows]


def add_note(author: str, text: str) -> dict[str, t.Any]:
    with _connection() as connection:
        # Without RETURNING, which SQLite has since 3.35 only.
        added = connection.execute(
            "INSERT INTO note (author, text) VALUES (?, ?)", (author, text)
        )

    rows = connection.execute("SELECT * FROM note WHERE id = ?", (added.lastrowid,))
    return dict(rows.fetchone())


def delete_note(number: int) -> None:
    with _connection() as connection:
        connection.execute("DELETE FROM note WHERE id = ?", (number,))


def _connection() -> sqlite3.Connection:
    if "db" not in g:
        # Made here and not in the factory: a command such as "flask vault rotate" makes
        # the app too, perhaps as a user who has no business with this file.
        path = pathlib.Path(current_app.config["DATABASE"])
        path.parent.mkdir(parents=True, exist_ok=True)
        g.db = sqlite3.connect(path)
        g.db.row_factory = sqlite3.Row
        g.db.execute(_SCHEMA)

    connection: sqlite3.Connection = g.db
    return connection


def _close(error: BaseException | None) -> None:
    connection = g.pop("db", None)

    if connection is not None:
        connection.close()
