"""What the extension adds to ``flask --help``, which every command line pays."""

from __future__ import annotations

import importlib.metadata
import os
import pathlib
import subprocess
import tempfile
import time
import venv

import flask_vault

from .pairs import Side
from .pairs import take_turns
from .table import duration
from .table import Row
from .table import Section

ROUNDS = 31
BUDGET = 0.010

_PLAIN = """\
from flask import Flask

app = Flask(__name__)
app.config["STRIPE_KEY"] = "sk"
"""

_USING = """\
from flask import Flask

from flask_vault import FlaskVault

vault = FlaskVault()
app = Flask(__name__)
app.config.from_mapping(
    VAULT_ADDR="https://vault.invalid:8200",
    VAULT_TOKEN="unused",
    VAULT_SECRETS={
        "STRIPE_KEY": "stripe#api_key",
        "SECRET_KEY": {"ref": "flask#key", "rotate": "token", "keyring": True},
        "DATABASE": {"ref": "database", "template": "db://{username}:{password}@db/x"},
    },
)
vault.init_app(app)
"""


def measure() -> Section:
    """Wall clock of whole processes, in two virtual environments that differ in one
    distribution: the same packages, with and without Flask-Vault."""
    with tempfile.TemporaryDirectory(prefix="flask-vault-bench-") as name:
        folder = pathlib.Path(name)
        (folder / "plain.py").write_text(_PLAIN, "utf-8")
        (folder / "using.py").write_text(_USING, "utf-8")
        without = _Environment(folder / "without", installed=False)
        with_it = _Environment(folder / "with", installed=True)
        runs = take_turns(
            {
                "without": without.side("plain", folder),
                "installed": with_it.side("plain", folder),
                "used": with_it.side("using", folder),
            },
            ROUNDS,
            # The first runs write the compiled modules.
            warm_up=2,
        )

    def row(what: str, side: str, budget: float | None) -> Row:
        added = runs.difference(side, "without")
        return Row(
            what,
            duration(runs.median(side)),
            duration(runs.median("without")),
            f"{'+' if added >= 0 else '-'}{duration(abs(added))}",
            "" if budget is None else f"<= +{duration(budget)}",
            None if budget is None else added <= budget,
        )

    return Section(
        "flask --help vs the same in an environment without Flask-Vault"
        f"\n(whole processes; median of {ROUNDS} pairs)",
        [
            row("installed, and the app uses it", "used", BUDGET),
            row("installed, and the app does not use it", "installed", None),
        ],
    )


class _Environment:
    """A virtual environment with links to what this one has installed.

    :param installed: whether Flask-Vault is there too.
    """

    def __init__(self, folder: pathlib.Path, *, installed: bool) -> None:
        venv.EnvBuilder(symlinks=True).create(folder)
        self._python = os.fspath(folder / "bin" / "python")
        self._installed = installed
        target = pathlib.Path(
            self._run("-c", "import sysconfig; print(sysconfig.get_path('purelib'))")
        )
        package = pathlib.Path(flask_vault.__file__).parent

        for found in _installed_items():
            if not found.name.startswith("flask_vault"):
                (target / found.name).symlink_to(found)
            elif installed and found.suffix == ".dist-info":
                (target / found.name).symlink_to(found)

        if installed:
            (target / package.name).symlink_to(package)

    def side(self, app: str, folder: pathlib.Path) -> Side:
        """Runs ``flask --help`` for an app in a folder."""

        def run() -> float:
            began = time.perf_counter()
            shown = self._run("-m", "flask", "--app", app, "--help", folder=folder)
            taken = time.perf_counter() - began
            has_group = any(line.split()[:1] == ["vault"] for line in shown.split("\n"))

            if has_group is not self._installed:
                raise AssertionError(f"The group is not as it should be:\n{shown}")

            return taken

        return run

    def _run(self, *arguments: str, folder: pathlib.Path | None = None) -> str:
        # Nothing of this process' environment but what a shell needs to find things.
        kept = {"HOME", "LANG", "LC_ALL", "PATH", "TMPDIR"}
        finished = subprocess.run(
            [self._python, *arguments],
            cwd=folder,
            env={k: v for k, v in os.environ.items() if k in kept},
            stdout=subprocess.PIPE,
            check=True,
            text=True,
            timeout=60,
        )
        return finished.stdout.strip()


def _installed_items() -> list[pathlib.Path]:
    """Packages and metadata beside Flask, but no ``.pth`` files: those run code at each
    start of the interpreter, and one of them may be our own."""
    home = pathlib.Path(str(importlib.metadata.distribution("flask").locate_file("")))
    return [
        found
        for found in sorted(home.iterdir())
        if found.suffix != ".pth" and found.name != "__pycache__"
    ]
