"""Makes the picture of a terminal that is in the README and the docs.

.. code-block:: console

    $ python -m tests.terminal_cast
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import pathlib
import pty
import re
import struct
import subprocess
import sys
import tempfile
import termios

from rich.console import Console
from rich.text import Text

from flask_vault.rotation.keys import new_key
from flask_vault.testing import DevServer
from flask_vault.testing.plugin import VaultMount

PICTURE = pathlib.Path(__file__).parents[1] / "docs" / "images" / "rotate.svg"

COLUMNS = 80

#: Lines at the top of the doctor's report that are shown, besides the last.
REPORT = 10

APP = """\
from flask import Flask
from flask_vault import FlaskVault
from flask_vault.rotation.rotators import Job
from flask_vault.rotation.rotators import Rotator

app = Flask("shop")
app.config.from_prefixed_env()
app.config["VAULT_SECRETS"] = {
    "SECRET_KEY": {"ref": "flask#secret_key", "rotate": "token"},
    "STRIPE_API_KEY": "stripe#api_key",
    "PARTNER_TOKEN": {"ref": "partner#token", "rotate": {"kind": "partner"}},
}
vault = FlaskVault()


@vault.rotator("partner")
class PartnerRotator(Rotator):
    creates_elsewhere = False

    def create(self, job: Job) -> str:
        return f"made-up-{job.operation}"

    def apply(self, job: Job) -> None: ...

    def verify(self, job: Job) -> None: ...

    def revoke(self, job: Job) -> None: ...


vault.init_app(app)
"""

SECRETS = {
    "flask": {"secret_key": "made-up-and-longer-than-32-letters"},
    "stripe": {"api_key": "made-up-and-longer-than-32-letters-too"},
    "partner": {"token": "made-up-and-longer-than-32-letters-again"},
}

#: Where the recording ends: in the middle of a wait.
HALF_WAY = re.compile(r"waiting.*\b2 s")

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def main() -> None:
    with DevServer() as server, tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        (folder / "app.py").write_text(APP)
        mount = VaultMount("secret", server.address, server.root_token)

        for path, data in SECRETS.items():
            mount.write(path, data)

        environ = {
            **os.environ,
            "TERM": "xterm-256color",
            "VAULT_ADDR": server.address,
            "VAULT_TOKEN": server.root_token,
            "FLASK_VAULT_BACKUP_KEYS": new_key(),
            "FLASK_VAULT_PROPAGATION_WINDOW": "4",
            "FLASK_VAULT_REFRESH_INTERVAL": "1",
        }
        doctor = recorded(folder, environ, "doctor").split("\n")
        screen = "\n".join(
            (
                "$ flask vault doctor",
                *doctor[:REPORT],
                "...",
                doctor[-1],
                "$ flask vault status",
                recorded(folder, environ, "status"),
                "$ flask vault rotate --all",
                recorded(folder, environ, "rotate", "--all"),
            )
        )

    PICTURE.write_text(as_svg(screen))
    print(f"{PICTURE.name}: {PICTURE.stat().st_size} bytes")


def recorded(folder: pathlib.Path, environ: dict[str, str], *arguments: str) -> str:
    """What a terminal shows of a command; of one that waits, until half of it."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, COLUMNS, 0, 0))
    shown = ""

    with subprocess.Popen(
        [sys.executable, "-m", "flask", "vault", *arguments],
        cwd=folder,
        env=environ,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    ) as process:
        os.close(theirs)

        # Linux says by an error that nobody is on the other side any more.
        with contextlib.suppress(OSError):
            while not HALF_WAY.search(_COLOUR.sub("", shown)):
                shown += os.read(ours, 4096).decode().replace("\r\n", "\n")

        process.kill()

    os.close(ours)
    # A line that was drawn over is what was drawn last.
    drawn = re.sub(r"\x1b\[\?\d+[hl]|\x1b\[\d*A", "", shown)
    lines = (re.split(r"\r|\x1b\[2K", line)[-1] for line in drawn.split("\n"))
    return "\n".join(lines).strip("\n")


def as_svg(screen: str) -> str:
    """The picture, which fetches nothing from anybody."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), highlight=False)
    console.print(Text.from_ansi(screen), soft_wrap=True)
    # The same names in each picture, so that a change shows what has changed.
    svg = console.export_svg(title="flask vault", unique_id="terminal")
    svg = re.sub(r"\s*@font-face \{.*?\}", "", svg, flags=re.S)
    svg = re.sub(r"font-family: Fira Code, monospace", "font-family: monospace", svg)
    svg = re.sub(r"<!-- Generated.*?-->", "", svg)
    return "\n".join(line.rstrip() for line in svg.splitlines()) + "\n"


if __name__ == "__main__":
    main()
