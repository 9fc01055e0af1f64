"""What a program sees: the notes as JSON, for who has the key that Vault keeps."""

from __future__ import annotations

import hmac
import typing as t

from flask import abort
from flask import Blueprint
from flask import jsonify
from flask import request
from flask.typing import ResponseReturnValue
from werkzeug.datastructures import WWWAuthenticate
from werkzeug.exceptions import HTTPException
from werkzeug.exceptions import Unauthorized

from flask_vault import get_secret
from flask_vault import VaultError

from . import db

#: Where the key is in Vault, below ``VAULT_PREFIX``.
API_KEY: t.Final = "notes#api_key"

bp = Blueprint("api", __name__, url_prefix="/api")


@bp.before_request
def require_key() -> None:
    # app.config["NOTES_API_KEY"] is as old as this process. This is at most
    # VAULT_CACHE_TTL seconds old, and it is read from memory until then.
    expected: str = get_secret(API_KEY, fallback_env="NOTES_API_KEY")
    authorization = request.authorization
    given = ""

    if authorization is not None and authorization.type == "bearer":
        given = authorization.token or ""

    # As bytes: as text it would have to be ASCII.
    if not hmac.compare_digest(given.encode(), expected.encode()):
        raise Unauthorized(
            "Send the API key, as in 'Authorization: Bearer KEY'.",
            www_authenticate=WWWAuthenticate("bearer"),
        )


@bp.get("/notes")
def list_notes() -> ResponseReturnValue:
    return jsonify(notes=db.list_notes())


@bp.post("/notes")
def add_note() -> ResponseReturnValue:
    body = request.get_json()
    text = db.clean_text(body.get("text")) if isinstance(body, dict) else None

    if text is None:
        abort(
            400,
            'Send an object such as {"text": "..."}, with from 1 to'
            f" {db.MAX_LENGTH} characters.",
        )

    return jsonify(db.add_note("api", text)), 201


@bp.errorhandler(HTTPException)
def show_error(error: HTTPException) -> ResponseReturnValue:
    response = error.get_response()
    response.data = jsonify(error=error.description).data
    response.content_type = "application/json"
    return response


@bp.errorhandler(VaultError)
def show_outage(error: VaultError) -> ResponseReturnValue:
    # Only when Vault has been gone for VAULT_CACHE_TTL and VAULT_MAX_STALE seconds. Who
    # asks learns nothing about Vault.
    return jsonify(error="The API key cannot be checked now. Try again later."), 503
