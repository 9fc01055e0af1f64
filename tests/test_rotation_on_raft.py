"""Rotations on a cluster of three whose leader is killed or frozen meanwhile.

When, is up to chance: after a step of the rotation that each round draws, while the
rotation goes on. A few rounds are run each time, all of them by ``make test-slow``.
"""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import dataclasses
import itertools
import pathlib
import random
import threading
import typing as t

import pytest

from flask_vault import VaultClient
from flask_vault import VaultError
from flask_vault.rotation.backup import BackupStore
from flask_vault.rotation.steps import seam
from flask_vault.testing import DevCluster
from flask_vault.testing.api import Api
from tests.helpers import BACKUP_KEY
from tests.postgres import Postgres
from tests.test_cluster import stored
from tests.test_cluster import wait_until
from tests.test_kill_matrix import PASSED

FIRST = "first-password-77d0"

#: Rounds of each test run, and of ``make test-slow``.
ALWAYS, SLOW = 5, 30


@dataclasses.dataclass(frozen=True)
class Round:
    number: int
    kind: str
    fault: str
    step: str
    #: Seconds from the step to the fault.
    delay: float

    def __str__(self) -> str:
        kind = self.kind.replace(", ", "-")
        return f"{self.number}-{kind}-{self.fault}-{self.step}".replace(" ", "-")


def rounds() -> cabc.Iterator[t.Any]:
    for number in range(ALWAYS + SLOW):
        # The same rounds each time, so that one that fails can be run again.
        chance = random.Random(number)  # noqa: S311
        kind = "signing" if number % 3 == 2 else "database, single"
        drawn = Round(
            number,
            kind,
            "freeze" if number % 2 else "kill",
            chance.choice(PASSED[kind][:-1]),
            chance.uniform(0, 0.015),
        )
        marks = [pytest.mark.slow] if number >= ALWAYS else []
        yield pytest.param(drawn, id=str(drawn), marks=marks)


@pytest.fixture(scope="module")
def three_servers() -> cabc.Iterator[DevCluster]:
    # An election takes half as long as usual.
    with DevCluster(multiplier=1) as cluster:
        yield cluster


@pytest.fixture
def cluster(three_servers: DevCluster) -> DevCluster:
    three_servers.heal()
    return three_servers


class Scene:
    """A document with a value to rotate, to which somebody else keeps writing."""

    def __init__(
        self, cluster: DevCluster, postgres: Postgres, folder: pathlib.Path, one: Round
    ) -> None:
        self.cluster = cluster
        self.postgres = postgres
        self.one = one
        self.backups = BackupStore(folder / "backups", [BACKUP_KEY])
        self.path = f"raft/{folder.name}"
        self.user = postgres.create_user(FIRST)
        self.acknowledged: list[int] = []
        self._folder = folder
        self.client().set_secret(self.path, postgres.document(self.user, FIRST))
        wait_until(self._is_everywhere)

    def _is_everywhere(self) -> bool:
        # A standby takes a moment to learn of it, and knows of no document until then.
        token, path = self.cluster.root_token, f"secret/data/{self.path}"
        apis = map(Api, self.cluster.addresses)
        return all(api.ask("GET", path, token=token)[0] == 200 for api in apis)

    def client(self) -> VaultClient:
        rotate: object = "token"
        ref = f"{self.path}#password"
        entry: dict[str, object] = {}

        if self.one.kind != "signing":
            rotate = {"kind": "database", "field": "password"}
            ref = self.path
            template = f"{self.postgres.driver}://{{username}}:{{password}}@{{host}}"
            entry["template"] = f"{template}/{{dbname}}"

        return VaultClient.from_mapping(
            {
                "VAULT_ADDR": list(self.cluster.addresses),
                "VAULT_TOKEN": self.cluster.root_token,
                "VAULT_READ_TIMEOUT": 1.0,
                "VAULT_PROPAGATION_WINDOW": 0,
                "VAULT_BACKUP_DIR": str(self._folder / "backups"),
                "VAULT_BACKUP_KEYS": [BACKUP_KEY],
                "VAULT_SECRETS": {"KEY": {"ref": ref, "rotate": rotate, **entry}},
            },
            {},
        )

    def rotate(self, begin: bool = True) -> str | None:
        """One run.

        :return: the new value, when the run says that it is in use.
        """
        client = self.client()
        plan = client.catalog.plan()

        with contextlib.suppress(VaultError):
            for target in plan.targets if begin else []:
                return str(client.rotations.rotate(target).document.data["password"])

        rules = dataclasses.replace(client.rotations.rules, begin=begin)

        for result in client.rotations.operations(rules).run(plan.tasks):
            if result.error is None and result.document is not None:
                return str(result.document.data["password"])

        return None

    @contextlib.contextmanager
    def another_writer(self) -> cabc.Iterator[None]:
        over = threading.Event()
        client = self.client()

        def write() -> None:
            for number in itertools.count():
                if over.wait(0.05):
                    return

                with contextlib.suppress(VaultError):
                    client.set_secret(self.path, {f"note_{number}": number})
                    self.acknowledged.append(number)

        thread = threading.Thread(target=write)
        thread.start()

        try:
            wait_until(lambda: len(self.acknowledged) >= 3)
            yield
            wait_until(lambda: len(self.acknowledged) >= 6)
        finally:
            over.set()
            thread.join(60)

    @contextlib.contextmanager
    def leader_lost_meanwhile(self) -> cabc.Iterator[None]:
        strike = getattr(self.cluster, self.one.fault)
        timer = threading.Timer(self.one.delay, strike, [self.cluster.leader()])

        def reach(step: str) -> None:
            if step == self.one.step and timer.ident is None:
                timer.start()

        with seam(reach):
            yield

        assert timer.ident is not None, f"the rotation did not reach {self.one.step!r}"
        timer.join()

    def values_made(self) -> set[str]:
        return {
            str(self.backups.read(info.name).after[field])
            for info in self.backups.list()
            if info.header
            for field in info.header.fields
            if field == "password"
        }


@pytest.mark.parametrize("one", list(rounds()))
def test_a_rotation_survives_the_loss_of_the_leader(
    one: Round, cluster: DevCluster, postgres: Postgres, tmp_path: pathlib.Path
) -> None:
    scene = Scene(cluster, postgres, tmp_path, one)

    with scene.another_writer():
        with scene.leader_lost_meanwhile():
            acknowledged = scene.rotate()

        cluster.heal()
        scene.rotate(begin=False)

    document = stored(cluster, scene.path)
    assert "_rotation" not in document
    assert document["password"] in {acknowledged or FIRST, *scene.values_made()}

    if acknowledged is not None:
        assert document["password"] == acknowledged

    if one.kind != "signing":
        assert postgres.logs_in(scene.user, document["password"])

    lost = [n for n in scene.acknowledged if document.get(f"note_{n}") != n]
    assert lost == []
