"""What a program sees: the notes as JSON, for who has a token.

The tokens are signed with ``JWT_SECRET_KEY``, which Vault keeps.
"""

from __future__ import annotations

from flask import abort
from flask import Blueprint
from flask import jsonify
from flask import request
from flask.typing import ResponseReturnValue
from flask_jwt_extended import create_access_token
from flask_jwt_extended import get_jwt_identity
from flask_jwt_extended import jwt_required
from werkzeug.exceptions import HTTPException

from . import db
from . import users

bp = Blueprint("api", __name__, url_prefix="/api")


@bp.post("/token")
def make_token() -> ResponseReturnValue:
    name = request.form.get("name", "")

    if not users.authenticate(name, request.form.get("password", "")):
        abort(401, "There is no such name with this password.")

    # Plain, so that a shell needs nothing to read it.
    return create_access_token(name), 201, {"Content-Type": "text/plain"}


@bp.get("/notes")
@jwt_required()  # type: ignore[untyped-decorator]
def list_notes() -> ResponseReturnValue:
    return jsonify(notes=db.list_notes())


@bp.post("/notes")
@jwt_required()  # type: ignore[untyped-decorator]
def add_note() -> ResponseReturnValue:
    body = request.get_json()
    text = db.clean_text(body.get("text")) if isinstance(body, dict) else None

    if text is None:
        abort(
            400,
            'Send an object such as {"text": "..."}, with from 1 to'
            f" {db.MAX_LENGTH} characters.",
        )

    return jsonify(db.add_note(get_jwt_identity(), text)), 201


@bp.errorhandler(HTTPException)
def show_error(error: HTTPException) -> ResponseReturnValue:
    response = error.get_response()
    response.data = jsonify(error=error.description).data
    response.content_type = "application/json"
    return response
