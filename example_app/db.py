"""The notes, in a database. That its password changes is no matter here."""

from __future__ import annotations

import datetime
import typing as t

import sqlalchemy as sa
from flask_sqlalchemy import SQLAlchemy

MAX_LENGTH: t.Final = 500

database = SQLAlchemy()


def _now() -> str:
    return f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d %H:%M:%S}"


_notes = sa.Table(
    "note",
    database.metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("author", sa.Text, nullable=False),
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("created", sa.Text, nullable=False, default=_now),
)


def create_tables(url: str) -> None:
    """Make the tables, once, as the user who owns them."""
    engine = sa.create_engine(url)
    database.metadata.create_all(engine)
    engine.dispose()


def clean_text(raw: object) -> str | None:
    """The text of a note, stripped; ``None`` when it cannot be one."""
    if not isinstance(raw, str):
        return None

    text = raw.strip()
    return text if 0 < len(text) <= MAX_LENGTH else None


def list_notes() -> list[dict[str, t.Any]]:
    """All notes, the newest first."""
    rows = database.session.execute(sa.select(_notes).order_by(_notes.c.id.desc()))
    return [dict(row) for row in rows.mappings()]


def add_note(author: str, text: str) -> dict[str, t.Any]:
    added = database.session.execute(
        sa.insert(_notes).values(author=author, text=text).returning(_notes)
    )
    note = dict(added.mappings().one())
    database.session.commit()
    return note


def delete_note(number: int) -> None:
    database.session.execute(sa.delete(_notes).where(_notes.c.id == number))
    database.session.commit()
