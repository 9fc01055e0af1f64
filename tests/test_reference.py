"""The reference has every public name, every command and every option."""

from __future__ import annotations

import collections.abc as cabc
import pathlib
import re
import shutil
import subprocess
import sys
import zlib

import click
import pytest

import flask_vault
from flask_vault.cli import vault_group

DOCS = pathlib.Path(__file__).parent.parent / "docs"

#: Their pages, which link to others that are not built here.
PAGES = ("api.rst", "cli.rst", "signals.rst")


@pytest.fixture(scope="module")
def inventory(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """What can be linked to in the built reference, as ``domain:role name``."""
    folder = tmp_path_factory.mktemp("reference")

    for name in PAGES:
        shutil.copy(DOCS / name, folder)

    shutil.copytree(DOCS / "_inv", folder / "_inv")
    subprocess.run(
        [
            *(sys.executable, "-m", "sphinx", "--quiet", "-b", "dirhtml"),
            *("-c", DOCS, "-D", "root_doc=api", folder, folder / "built"),
        ],
        check=True,
        stderr=subprocess.DEVNULL,
    )
    packed = (folder / "built" / "objects.inv").read_bytes()
    text = zlib.decompress(packed.split(b"\n", 4)[4]).decode()
    return {
        f"{role} {name}"
        for name, role in re.findall(r"^(.+?) (\w+:\w+) -?\d+ ", text, re.M)
    }


def options(
    command: click.Command, path: tuple[str, ...] = ("flask", "vault")
) -> cabc.Iterator[str]:
    """Each option and argument of a command and of those below it."""
    for parameter in command.params:
        # What has no name is there to be refused.
        if isinstance(parameter, click.Argument) and parameter.metavar != "":
            yield f"{'-'.join(path)}.{parameter.human_readable_name}"
        elif isinstance(parameter, click.Option):
            yield from (f"{'-'.join(path)}.{name}" for name in parameter.opts)

    if isinstance(command, click.Group):
        for name, below in command.commands.items():
            yield from options(below, (*path, name))


def test_every_public_name_has_its_place(inventory: set[str]) -> None:
    documented = {
        line.partition(" ")[2] for line in inventory if line.startswith("py:")
    }
    places = (
        "flask_vault",
        "flask_vault.signals",
        "flask_vault.errors",
        "flask_vault.testing",
    )
    missing = [
        name
        for name in flask_vault.__all__
        if not any(f"{place}.{name}" in documented for place in places)
    ]
    assert missing == []


def test_every_command_and_option_has_its_place(inventory: set[str]) -> None:
    documented = {
        line.partition(" ")[2] for line in inventory if line.startswith("std:cmdoption")
    }
    assert set(options(vault_group)) == {
        name for name in documented if name.startswith("flask-vault")
    }
