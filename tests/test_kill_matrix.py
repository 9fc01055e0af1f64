"""Rotations that end at every step: by SIGKILL, and by each fault that may come.

Whatever happened, the plain command once more ends with one live value that works, a
document without a journal, and no second value made. The run prints the table.
"""

from __future__ import annotations

import collections
import collections.abc as cabc
import contextlib
import dataclasses
import errno
import json
import os
import pathlib
import secrets
import signal
import subprocess
import sys
import typing as t

import pytest

from flask_vault import VaultClient
from flask_vault.rotation.backup import BackupStore
from flask_vault.rotation.journal import record_of
from flask_vault.rotation.journal import RESERVED_FIELD
from flask_vault.rotation.steps import CRASH_VARIABLE
from flask_vault.rotation.steps import seam
from flask_vault.rotation.steps import STEPS
from flask_vault.rotation.tasks import Result
from flask_vault.testing import DevServer
from flask_vault.testing import FaultProxy
from flask_vault.testing.plugin import VaultMount
from tests.apps import provider
from tests.databases import Database
from tests.helpers import BACKUP_KEY
from tests.helpers import show_at_the_end
from tests.mariadb import installed
from tests.mariadb import MariaDB
from tests.postgres import Postgres

FIRST = "first-password-77d0"

_DATABASE = (
    "started",
    "prepared",
    "backed up",
    "applying",
    "connected",
    "fenced",
    "before commit",
    "committed",
    "applied",
    "verified",
    "promoted",
    "revoked",
    "done",
)

#: By which steps each kind comes.
PASSED: dict[str, tuple[str, ...]] = {
    "signing": ("started", "backed up", "done"),
    "database, single": _DATABASE,
    "database, alternating": _DATABASE,
    "database, MariaDB": _DATABASE,
    "callable": (
        "started",
        "intended",
        "created",
        "prepared",
        "backed up",
        "applying",
        "applied",
        "verified",
        "promoted",
        "revoked",
        "done",
    ),
}

#: The same, for the table of a test.
KINDS = [
    pytest.param(
        kind,
        marks=pytest.mark.skipif(
            "MariaDB" in kind and not installed(), reason="there is no MariaDB"
        ),
    )
    for kind in PASSED
]

FAULTS = ("lost reply", "500", "403", "ENOSPC", "timeout")

#: Whether what is rotated did not need a second run, by kind, fault and step.
OUTCOMES: dict[tuple[str, str], dict[str, str]] = collections.defaultdict(dict)


@dataclasses.dataclass
class World:
    """One Vault, one database, one provider; and what is rotated next."""

    mount: VaultMount
    proxy: FaultProxy
    postgres: Postgres
    mariadb: MariaDB | None
    folder: pathlib.Path
    commands: subprocess.Popen[str]
    admin: str
    kind: str = ""
    path: str = ""
    rotate: t.Any = None

    def renew(self, kind: str) -> None:
        """Forget what was, and set up a value of this kind."""
        self.kind = kind
        self.path = f"doc-{secrets.token_hex(4)}"
        before: dict[str, t.Any] = {"password": FIRST, "other": "stays"}
        self.rotate = "token"

        if kind.startswith("database"):
            self.rotate = {"kind": "database", "field": "password"}
            user = self.server.create_user(FIRST)
            before |= self.server.document(user, FIRST)

        if kind == "database, alternating":
            other = self.postgres.create_user("nobody-knows-this-one")
            self.rotate["users"] = [before["username"], other]
            self.rotate["admin"] = "admin#url"

        if kind == "callable":
            before["password"] = provider.make()
            self.rotate = {**provider.ROTATE, "field": "password"}

        self.mount.write(self.path, before)

    @property
    def server(self) -> Database:
        if "MariaDB" not in self.kind:
            return self.postgres

        assert self.mariadb is not None
        return self.mariadb

    @property
    def backup_dir(self) -> pathlib.Path:
        return self.folder / self.path

    def config(self, **more: object) -> dict[str, object]:
        entry: dict[str, object] = {
            "ref": f"{self.path}#password",
            "rotate": self.rotate,
        }

        if self.kind.startswith("database"):
            driver = self.server.driver
            template = f"{driver}://{{username}}:{{password}}@{{host}}/{{dbname}}"
            entry = {"ref": self.path, "template": template, "rotate": self.rotate}

        return self.mount.config(
            VAULT_BACKUP_DIR=str(self.backup_dir),
            VAULT_BACKUP_KEYS=[BACKUP_KEY],
            VAULT_PROPAGATION_WINDOW=0,
            VAULT_KV_VERSION=2,
            VAULT_SECRETS={"KEY": entry},
            **more,
        )

    # Runs.

    def command(self, crash_at: str = "") -> tuple[int, str]:
        """The plain command, as a program. A negative code is the signal's."""
        order = {
            "config": self.config(),
            "arguments": ["rotate", "--secret", "KEY"],
            "environ": {CRASH_VARIABLE: crash_at},
        }
        assert self.commands.stdin is not None
        assert self.commands.stdout is not None
        print(json.dumps(order), file=self.commands.stdin, flush=True)
        answer = json.loads(self.commands.stdout.readline())
        return answer["code"], answer["said"]

    def run(self) -> Result | None:
        """The same in this process, through the proxy. ``None`` when it failed."""
        client = VaultClient.from_mapping(
            self.config(VAULT_ADDR=self.proxy.address, VAULT_READ_TIMEOUT=0.3), {}
        )
        plan = client.catalog.plan()

        if plan.targets:
            with contextlib.suppress(Exception):
                client.rotations.rotate(plan.targets[0])

            return None

        rules = dataclasses.replace(client.rotations.rules, outlast=10, verify_for=5)
        (result,) = client.rotations.operations(rules).run(plan.tasks)
        return result

    # What holds.

    def document(self) -> dict[str, t.Any]:
        return self.mount.read(self.path)

    def works(self, data: cabc.Mapping[str, t.Any]) -> bool:
        """Whether the target takes these values."""
        if self.kind.startswith("database"):
            return self.server.logs_in(data["username"], data["password"])

        return self.kind != "callable" or data["password"] in provider.keys()

    def assert_a_candidate_works(self) -> None:
        """At no instant is what is live in neither the document nor a backup."""
        from flask_vault.rotation.journal import candidates

        assert any(map(self.works, candidates(self.document(), "password")))

    def pending(self) -> str | None:
        record = record_of(self.document(), "password")
        return record.pending["password"] if record and record.pending else None

    def assert_idle_and_live(self) -> None:
        data = self.document()
        assert RESERVED_FIELD not in data
        assert data["other"] == "stays"
        assert self.works(data)

    def operations(self) -> set[str]:
        """Of which operations there are backups."""
        store = BackupStore(self.backup_dir, [BACKUP_KEY])
        return {i.header.operation for i in store.list(verify=True) if i.header}


@pytest.fixture(scope="module")
def world(
    request: pytest.FixtureRequest,
    vault_server: DevServer,
    postgres: Postgres,
    tmp_path_factory: pytest.TempPathFactory,
) -> cabc.Iterator[World]:
    folder = tmp_path_factory.mktemp("matrix")
    (folder / "provider").mkdir()
    environ = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("VAULT_", "BAO_", "FLASK_"))
    }
    environ[provider.FOLDER] = str(folder / "provider")
    name = f"matrix-{secrets.token_hex(4)}"
    vault_server.enable_kv(name)
    mount = VaultMount(name, vault_server.address, vault_server.root_token)
    mariadb = request.getfixturevalue("mariadb") if installed() else None
    admin = postgres.create_admin("admin-password")
    mount.write("admin", {"url": postgres.url(admin, "admin-password")})

    with (
        subprocess.Popen(
            [sys.executable, "-m", "tests.apps.commands"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environ,
        ) as commands,
        FaultProxy(vault_server.address) as proxy,
    ):
        yield World(mount, proxy, postgres, mariadb, folder, commands, admin)
        assert commands.stdin is not None
        commands.stdin.close()

    vault_server.disable_mount(name)


@pytest.fixture(autouse=True)
def _provider(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(provider.FOLDER, str(world.folder / "provider"))


@pytest.fixture(scope="module", autouse=True)
def _table(request: pytest.FixtureRequest) -> cabc.Iterator[None]:
    yield
    show_at_the_end(
        request.config,
        [
            f"{kind} | {fault} | "
            + ", ".join(f"{step}: {end}" for step, end in steps.items())
            for (kind, fault), steps in sorted(OUTCOMES.items())
        ],
    )


@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_a_step_the_plain_command_ends_it(kind: str, world: World) -> None:
    for step in PASSED[kind]:
        world.renew(kind)
        before = len(provider.made())
        code, said = world.command(crash_at=step)
        assert code == -signal.SIGKILL, f"{step}: {said}"
        world.assert_a_candidate_works()
        pending = world.pending()

        # Killed when all was done: the next run would be another rotation.
        if step == "done":
            world.assert_idle_and_live()
            assert world.document()["password"] != FIRST
            OUTCOMES[kind, "SIGKILL"][step] = "done"
            continue

        code, said = world.command()
        assert code == 0, f"{step}: {said}"
        world.assert_idle_and_live()
        assert world.document()["password"] != FIRST

        if pending is not None:
            assert world.document()["password"] == pending, step

        if kind != "signing":
            assert len(world.operations()) == 1, step

        if kind == "callable":
            assert len(provider.made()) == before + 1, step

        OUTCOMES[kind, "SIGKILL"][step] = "resumed" if pending else "ok"


@contextlib.contextmanager
def fault_after(
    step: str, fault: str, world: World, monkeypatch: pytest.MonkeyPatch
) -> cabc.Iterator[None]:
    """From this step on, the next thing of that sort fails."""

    def full(descriptor: int) -> t.NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    armed = False

    def arm(reached: str) -> None:
        nonlocal armed

        if reached != step or armed:
            return

        armed = True

        if fault == "lost reply":
            world.proxy.drop_reply(times=1)
        elif fault == "500":
            world.proxy.answer(500, times=1)
        elif fault == "403":
            world.proxy.answer(403, {"errors": ["permission denied"]}, times=1)
        elif fault == "timeout":
            world.proxy.hang(times=1)
        else:
            monkeypatch.setattr(os, "fsync", full)

    with seam(arm), monkeypatch.context():
        yield

    monkeypatch.undo()
    monkeypatch.setenv(provider.FOLDER, str(world.folder / "provider"))
    world.proxy.heal()
    assert armed, f"no run came by {step!r}"


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("kind", [kind for kind in PASSED if "MariaDB" not in kind])
def test_with_a_fault_at_a_step_the_plain_command_ends_it(
    kind: str, fault: str, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in PASSED[kind]:
        world.renew(kind)
        before = len(provider.made())

        with fault_after(step, fault, world, monkeypatch):
            result = world.run()

        world.assert_a_candidate_works()
        pending = world.pending()
        done = world.document()["password"] != FIRST and RESERVED_FIELD not in (
            world.document()
        )

        if kind == "callable":
            done = done and result is not None and result.state == "done"

        if not done:
            again = world.run()
            assert again is None or again.error is None, f"{step}: {again}"

        world.assert_idle_and_live()

        if kind != "callable":
            assert world.document()["password"] != FIRST

        if pending is not None:
            assert world.document()["password"] == pending, step

        if kind == "callable":
            assert len(provider.made()) == before + 1, step

        OUTCOMES[kind, fault][step] = "went on" if done else "second run"


def test_the_matrix_has_every_step() -> None:
    assert {step for steps in PASSED.values() for step in steps} == set(STEPS)
