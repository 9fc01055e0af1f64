from __future__ import annotations

import ast
import collections.abc as cabc
import importlib.metadata
import importlib.resources
import subprocess
import sys
from pathlib import Path

import pytest

import flask_vault

PACKAGE = Path(flask_vault.__file__).parent

# The rooms, from the ground up, and what each may import of the others. A file is a
# room of its own; a folder is one room, whose files may import each other. "*" is all.
GROUND = {"errors", "observing", "paths", "signals"}
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "observing": {"errors"},
    "paths": set(),
    "durations": set(),
    "layout": set(),
    "colours": {"layout"},
    "signals": {"errors"},
    "vault": GROUND,
    "settings": GROUND,
    "keyring": GROUND,
    "templates": GROUND,
    "entries": GROUND | {"templates"},
    "values": GROUND | {"templates", "entries"},
    "store": GROUND | {"vault"},
    "rotation": GROUND | {"vault", "templates"},
}
MAY_IMPORT["resolve"] = MAY_IMPORT["values"] | MAY_IMPORT["store"] | {"values", "store"}
MAY_IMPORT["catalog"] = MAY_IMPORT["values"] | {"values", "vault", "rotation"}
MAY_IMPORT["backups"] = GROUND | {"vault", "rotation", "settings"}
MAY_IMPORT["rotations"] = MAY_IMPORT["catalog"] | {"backups", "catalog", "settings"}
MAY_IMPORT["bootstrap"] = GROUND | {"vault", "rotation"}
MAY_IMPORT["startup"] = MAY_IMPORT["store"] | {"store", "bootstrap"}
MAY_IMPORT["keyring"] = set()
MAY_IMPORT["history"] = GROUND | {"vault"}
MAY_IMPORT["store"] |= {"history"}
MAY_IMPORT["polling"] = GROUND | {"vault", "history", "store"}
MAY_IMPORT["candidates"] = MAY_IMPORT["resolve"] | {"resolve", "keyring", "rotation"}
MAY_IMPORT["rings"] = MAY_IMPORT["resolve"] | {"resolve", "keyring", "history"}
MAY_IMPORT["config_writer"] = MAY_IMPORT["entries"] | {"entries", "keyring"}
MAY_IMPORT["live"] = MAY_IMPORT["rings"] | {"rings", "config_writer"}
MAY_IMPORT["announcer"] = GROUND | {"vault"}
MAY_IMPORT["telling"] = GROUND | {"announcer", "live"}
MAY_IMPORT["client"] = MAY_IMPORT["resolve"] | {
    "history",
    "keyring",
    "polling",
    "backups",
    "bootstrap",
    "startup",
    "resolve",
    "rotation",
    "settings",
    "catalog",
    "rotations",
}
# Users' own suites import this one, and pay for what it imports.
MAY_IMPORT["testing"] = {"errors"}

BELOW_THE_TOP = set(MAY_IMPORT) - {"testing"}
MAY_IMPORT["refresher"] = GROUND | {"vault"}
MAY_IMPORT["placeholders"] = GROUND | {"templates"}
MAY_IMPORT["state"] = BELOW_THE_TOP | {"refresher", "invocation"}
MAY_IMPORT["status_rows"] = BELOW_THE_TOP | {"state"}
MAY_IMPORT["status_facts"] = BELOW_THE_TOP | {"state", "status_rows"}
MAY_IMPORT["status_page"] = BELOW_THE_TOP | {"state", "status_rows", "status_facts"}
MAY_IMPORT["health"] = BELOW_THE_TOP | {"state", "status_page"}
MAY_IMPORT["middleware"] = BELOW_THE_TOP | {"state"}
MAY_IMPORT["session_guard"] = BELOW_THE_TOP | {"state"}
MAY_IMPORT["invocation"] = GROUND
MAY_IMPORT["loading"] = BELOW_THE_TOP | {"state", "invocation"}
MAY_IMPORT["extension"] = BELOW_THE_TOP | {
    "refresher",
    "health",
    "state",
    "invocation",
    "loading",
    "placeholders",
    "middleware",
    "redaction",
    "session_guard",
}
MAY_IMPORT["integrations"] = BELOW_THE_TOP | {"extension", "state", "invocation"}
MAY_IMPORT["console"] = BELOW_THE_TOP | {
    "colours",
    "extension",
    "invocation",
    "layout",
    "loading",
    "state",
}
MAY_IMPORT["policy"] = BELOW_THE_TOP
MAY_IMPORT["policy_command"] = BELOW_THE_TOP | {"console", "policy", "state"}
MAY_IMPORT["doctor"] = BELOW_THE_TOP | {"console", "loading", "policy"}
MAY_IMPORT["doctor_command"] = {
    "console",
    "doctor",
    "errors",
    "invocation",
    "loading",
}
MAY_IMPORT["redaction"] = BELOW_THE_TOP | {"state"}
MAY_IMPORT["provisioning"] = BELOW_THE_TOP
MAY_IMPORT["rotate_command"] = BELOW_THE_TOP | {"console", "invocation", "state"}
MAY_IMPORT["import_plan"] = MAY_IMPORT["entries"] | {"entries", "settings"}
MAY_IMPORT["import_command"] = MAY_IMPORT["rotate_command"] | {"import_plan"}
MAY_IMPORT["backups_command"] = MAY_IMPORT["rotate_command"] | {"backup_command"}
MAY_IMPORT["completion"] = BELOW_THE_TOP | {"invocation", "loading", "state"}
MAY_IMPORT["status_command"] = MAY_IMPORT["rotate_command"] | {"health"}
MAY_IMPORT["audit_command"] = MAY_IMPORT["rotate_command"]
MAY_IMPORT["backup_command"] = MAY_IMPORT["rotate_command"]
MAY_IMPORT["rotate_plan"] = MAY_IMPORT["rotate_command"]
MAY_IMPORT["bars"] = set()
MAY_IMPORT["reporter"] = BELOW_THE_TOP | {"bars", "console"}
MAY_IMPORT["rotate_command"] = MAY_IMPORT["rotate_command"] | {
    "reporter",
    "rotate_plan",
}
MAY_IMPORT["dev"] = {"*"}
MAY_IMPORT["cli"] = {"*"}
# The public names.
MAY_IMPORT["__init__"] = BELOW_THE_TOP | {"extension", "state"}

WITHOUT_FLASK = {"vault", "rotation"}


def modules() -> dict[str, ast.Module]:
    """Every module of the package, parsed, by its dotted name below the package."""
    found = {}

    for path in sorted(PACKAGE.rglob("*.py")):
        parts = list(path.relative_to(PACKAGE).with_suffix("").parts)

        if len(parts) > 1 and parts[-1] == "__init__":
            parts.pop()

        found[".".join(parts)] = ast.parse(path.read_text(), filename=str(path))

    return found


MODULES = modules()


def imported_names(name: str) -> cabc.Iterator[str]:
    """Every module that this one imports, absolute; at whatever depth, and also where
    only a type checker would import it.
    """
    full = "flask_vault" if name == "__init__" else f"flask_vault.{name}"
    is_folder = name == "__init__" or (PACKAGE / Path(*name.split("."))).is_dir()
    package = full.split(".") if is_folder else full.split(".")[:-1]

    for node in ast.walk(MODULES[name]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *filter(None, [node.module])])

            # What is taken from a package may be a module of it, or a name in it.
            for alias in node.names:
                below = f"{source}.{alias.name}".removeprefix("flask_vault.")
                yield f"{source}.{alias.name}" if below in MODULES else source


def imported_modules(name: str) -> set[str]:
    """The modules of this package among them, by their keys in ``MODULES``."""
    found = set()

    for imported in imported_names(name):
        if imported == "flask_vault":
            found.add("__init__")
        elif imported.startswith("flask_vault."):
            found.add(imported.removeprefix("flask_vault."))

    return found


def room_of(name: str) -> str:
    return name.split(".")[0]


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_only_what_its_room_may(name: str) -> None:
    room = room_of(name)
    assert room in MAY_IMPORT, f"give {room!r} a line in MAY_IMPORT, at its height"
    allowed = MAY_IMPORT[room]
    reached = {room_of(imported) for imported in imported_modules(name)} - {room}

    if "*" not in allowed:
        assert reached <= allowed, f"{name} reaches up"


def test_modules_do_not_import_each_other_in_a_circle() -> None:
    left = {name: imported_modules(name) - {name} for name in MODULES}

    # Take away, again and again, what imports nothing that is left.
    while done := {name for name, imports in left.items() if not imports & set(left)}:
        left = {name: left[name] for name in left if name not in done}

    assert left == {}


@pytest.mark.parametrize("name", [n for n in MODULES if room_of(n) in WITHOUT_FLASK])
def test_the_lower_rooms_know_no_flask(name: str) -> None:
    assert "flask" not in {imported.split(".")[0] for imported in imported_names(name)}


def test_the_import_walk_sees_every_kind_of_import(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = """
import typing as t
import flask_vault.store
from . import kv
from ..errors import VaultError
from .. import signals
from flask_vault import settings, get_secret

if t.TYPE_CHECKING:
    from flask import Flask

def late():
    from ..rotation import runner
"""
    others = ["rotation.runner", "settings", "signals", "store", "vault.kv"]
    monkeypatch.setitem(MODULES, "vault.auth", ast.parse(source))

    for name in others:
        monkeypatch.setitem(MODULES, name, ast.parse(""))

    assert imported_modules("vault.auth") == {
        "__init__",
        "errors",
        "rotation.runner",
        "settings",
        "signals",
        "store",
        "vault.kv",
    }
    assert "flask" in set(imported_names("vault.auth"))


def test_import_of_the_package_is_cheap() -> None:
    """``flask --help`` and every process that never talks to Vault pay for it."""
    code = "import sys, flask_vault; print(*sys.modules)"
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, text=True
    ).stdout
    heavy = {"hvac", "cryptography", "requests", "urllib3"}
    assert "flask_vault" in output.split()
    assert heavy.isdisjoint(output.split())


def test_type_hints_are_shipped() -> None:
    assert importlib.resources.files("flask_vault").joinpath("py.typed").is_file()


def test_the_version_is_that_of_the_distribution() -> None:
    assert importlib.metadata.version("flask-vault")


def test_every_public_name_exists() -> None:
    assert [n for n in flask_vault.__all__ if not hasattr(flask_vault, n)] == []
    assert len(set(flask_vault.__all__)) == len(flask_vault.__all__)


@pytest.mark.parametrize(
    ("group", "name", "value"),
    [
        ("flask.commands", "vault", "flask_vault.cli:vault_group"),
        ("pytest11", "flask_vault", "flask_vault.testing.plugin"),
    ],
)
def test_the_entry_points_lead_somewhere(group: str, name: str, value: str) -> None:
    (entry,) = importlib.metadata.entry_points(group=group, name=name)
    assert entry.value == value
    assert entry.load() is not None
