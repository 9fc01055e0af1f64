"""Runs ``flask vault`` commands, each in a process of its own that may kill itself.

The imports are done once, so a command costs a fork and no second. Each line on
standard input is a JSON object; each is answered by one.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import typing as t

from flask import Flask
from flask.cli import ScriptInfo

# What a command imports when it needs it.
import flask_vault.rotate_command
import flask_vault.rotation.callables
import flask_vault.rotation.database  # noqa: F401
from flask_vault import FlaskVault
from flask_vault.cli import vault_group


def _run(order: dict[str, t.Any], output: int) -> t.NoReturn:
    os.environ.update(order["environ"])
    os.dup2(output, 1)
    os.dup2(output, 2)

    def create_app() -> Flask:
        app = Flask("shop")
        app.config.from_mapping(order["config"])
        FlaskVault(app)
        return app

    code = 1

    try:
        vault_group.main(
            order["arguments"], "vault", obj=ScriptInfo(create_app=create_app)
        )
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    import hvac  # noqa: F401
    import psycopg  # noqa: F401
    import pymysql  # type: ignore[import-untyped]  # noqa: F401
    import sqlalchemy.dialects.mysql  # noqa: F401
    import sqlalchemy.dialects.postgresql  # noqa: F401

    for line in sys.stdin:
        order = json.loads(line)

        with tempfile.TemporaryFile() as output:
            if (child := os.fork()) == 0:
                _run(order, output.fileno())

            _, status = os.waitpid(child, 0)
            output.seek(0)
            said = output.read().decode()

        code = os.waitstatus_to_exitcode(status)
        print(json.dumps({"code": code, "said": said}), flush=True)


if __name__ == "__main__":
    main()
