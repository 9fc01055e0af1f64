"""Several rotators at once, one that wakes up late, and workers that connect."""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import threading
import typing as t

import pytest

from flask_vault import AlreadyRotatedError
from flask_vault.rotation.backup import BackupStore
from flask_vault.rotation.steps import seam
from flask_vault.rotation.tasks import Result
from flask_vault.testing.plugin import VaultMount
from tests.helpers import at_once
from tests.helpers import BACKUP_KEY
from tests.test_database_rotation import alternating
from tests.test_database_rotation import FIRST
from tests.test_database_rotation import open_shop
from tests.test_database_rotation import Shop
from tests.test_database_rotation import shop as shop

SINGLE = ["postgres, single", "mariadb, single"]


@pytest.fixture(params=[*SINGLE, "postgres, alternating", "mariadb, alternating"])
def kind(request: pytest.FixtureRequest) -> str:
    """Which server, and whether its user changes its own password."""
    return str(request.param)


@pytest.fixture
def any_shop(
    kind: str,
    request: pytest.FixtureRequest,
    vault_mount: VaultMount,
    tmp_path: pathlib.Path,
) -> Shop:
    server, _, users = kind.partition(", ")
    shop = open_shop(vault_mount, request.getfixturevalue(server), tmp_path)

    if users == "alternating":
        alternating(shop)

    return shop


def operations_of(*folders: pathlib.Path) -> set[str]:
    return {
        info.header.operation
        for folder in folders
        for info in BackupStore(folder / "backups", [BACKUP_KEY]).list()
        if info.header
    }


def test_eight_rotations_at_once_on_two_hosts_are_one(
    any_shop: Shop, tmp_path: pathlib.Path
) -> None:
    shop = any_shop
    hosts = [tmp_path / "one", tmp_path / "two"]
    ready = threading.Barrier(8)

    def rotate(index: int) -> Result:
        host = dataclasses.replace(shop, folder=hosts[index % 2])
        client = host.client()
        client.load()
        plan = client.catalog.plan()
        seen = {x.location: client.held(x.location) for x in plan.tasks}
        ready.wait(10)
        rules = client.rotations.rules
        (result,) = client.rotations.operations(rules).run(
            plan.tasks, seen={k: v for k, v in seen.items() if v}
        )
        return result

    ends = at_once(8, rotate)
    results = [end for end in ends if isinstance(end, Result)]
    assert len(results) == 8, ends
    assert len({result.operation for result in results}) == 1
    assert {result.state for result in results} == {"done"}, [r.error for r in results]
    assert {type(r.error) for r in results} <= {type(None), AlreadyRotatedError}
    assert any(result.error is None for result in results)
    assert len(operations_of(*filter(pathlib.Path.exists, hosts))) == 1
    assert shop.live_logs_in()
    assert "_rotation" not in shop.document()


@dataclasses.dataclass
class Zombie:
    """A rotator that stands still at a step until it is told to go on."""

    shop: Shop
    step: str
    rules: dict[str, t.Any]
    reached: threading.Event = dataclasses.field(default_factory=threading.Event)
    released: threading.Event = dataclasses.field(default_factory=threading.Event)
    result: Result | None = None
    thread: threading.Thread | None = None

    def _run(self) -> None:
        self.result = self.shop.run(**self.rules)

    def _at(self, step: str) -> None:
        if step == self.step and threading.current_thread() is self.thread:
            self.reached.set()
            self.released.wait(30)

    @contextlib.contextmanager
    def standing_still(self) -> cabc.Iterator[None]:
        self.thread = threading.Thread(target=self._run)

        with seam(self._at):
            self.thread.start()
            assert self.reached.wait(10)

            try:
                yield
            finally:
                self.released.set()
                self.thread.join(30)


@pytest.mark.parametrize("fenced", [True, False])
def test_a_zombie_stands_down_and_without_the_fence_it_would_not(
    fenced: bool, kind: str, any_shop: Shop
) -> None:
    """Stopped before it changes the password; others finish its operation, and more."""
    shop = any_shop
    zombie = Zombie(shop, "connected", {"fenced": fenced})

    with zombie.standing_still():
        # The first is the zombie's own, the others are new. Where users take turns,
        # the zombie's is in use again after three.
        for _ in range(3 if "alternating" in kind else 2):
            assert shop.run().state == "done"

        before = shop.document()

    assert zombie.result is not None
    assert shop.document() == before, "nothing is written by it in any case"
    # Without the fence, the database has a password that the document has not.
    assert shop.live_logs_in() is fenced

    if fenced:
        assert zombie.result.error is None
        assert zombie.result.joined


@pytest.mark.parametrize("kind", SINGLE)
def test_one_that_stops_with_the_lock_in_its_hands_delays_the_others_by_seconds(
    any_shop: Shop,
) -> None:
    shop = any_shop
    zombie = Zombie(shop, "fenced", {})

    with zombie.standing_still():
        assert shop.run(verify_for=15).state == "done"
        assert shop.run().state == "done"
        before = shop.document()

    assert zombie.result is not None
    assert shop.document() == before
    assert shop.live_logs_in()


def test_a_field_that_others_write_meanwhile_stays(shop: Shop) -> None:
    def write(step: str) -> None:
        data = shop.document()
        shop.mount.write("database", {**data, "note": f"{data.get('note', '')}x"})

    with seam(write):
        assert shop.run().state == "done"

    assert len(shop.document()["note"]) > 8
    assert shop.live_logs_in()


@contextlib.contextmanager
def connecting(shop: Shop, number: int) -> cabc.Iterator[list[dict[str, int]]]:
    """Processes that open connections meanwhile; afterwards, how they fared."""
    environ = {
        **os.environ,
        "TEST_MOUNT": shop.mount.name,
        "TEST_VAULT": shop.mount.address,
        "TEST_TOKEN": shop.mount.token,
        "TEST_TEMPLATE": shop.template,
    }
    ends: list[dict[str, int]] = []

    with contextlib.ExitStack() as stack:
        workers = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-m", "tests.apps.connecting"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    env=environ,
                )
            )
            for _ in range(number)
        ]

        for worker in workers:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "first\n"

        yield ends

        for worker in workers:
            said, _ = worker.communicate(timeout=30)
            ends.append(json.loads(said))


def test_no_new_connection_is_refused_while_the_password_is_rotated(
    kind: str, any_shop: Shop
) -> None:
    shop = any_shop

    if "alternating" in kind:
        shop.rotate["revoke_previous"] = True

    shop.more["VAULT_PROPAGATION_WINDOW"] = 0.5
    seen = {FIRST}

    with connecting(shop, 2) as ends:
        for _ in range(5):
            seen.add(
                shop.client()
                .rotate_secret("database", "password")
                .document.data["password"]
            )

    assert len(seen) == 6
    assert [end["refused"] for end in ends] == [0, 0]
    assert all(end["opened"] > 20 for end in ends)


@pytest.mark.parametrize("kind", SINGLE)
def test_the_same_without_candidates_sees_refusals(any_shop: Shop, kind: str) -> None:
    """So the test above can see them."""
    shop = any_shop
    user = shop.document()["username"]

    def blind(step: str) -> None:
        if step == "applying":
            # A worker that does not look at the journal knows the old value only.
            known.append(shop.server.logs_in(user, FIRST))
        elif step == "committed":
            known.append(shop.server.logs_in(user, FIRST))

    known: list[bool] = []

    with seam(blind):
        shop.run()

    assert known == [True, False]
