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
from tests.helpers import at_once
from tests.helpers import BACKUP_KEY
from tests.postgres import Postgres
from tests.test_database_rotation import alternating
from tests.test_database_rotation import FIRST
from tests.test_database_rotation import Shop
from tests.test_database_rotation import shop as shop


def operations_of(*folders: pathlib.Path) -> set[str]:
    return {
        info.header.operation
        for folder in folders
        for info in BackupStore(folder / "backups", [BACKUP_KEY]).list()
        if info.header
    }


@pytest.mark.parametrize("kind", ["single", "alternating"])
def test_eight_rotations_at_once_on_two_hosts_are_one(
    kind: str, shop: Shop, tmp_path: pathlib.Path
) -> None:
    if kind == "alternating":
        alternating(shop)

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
@pytest.mark.parametrize("kind", ["single", "alternating"])
def test_a_zombie_stands_down_and_without_the_fence_it_would_not(
    fenced: bool, kind: str, shop: Shop
) -> None:
    """Stopped before it changes the password; others finish its operation, and more."""
    if kind == "alternating":
        alternating(shop)

    zombie = Zombie(shop, "connected", {"fenced": fenced})

    with zombie.standing_still():
        # The first is the zombie's own, the others are new. Where users take turns,
        # the zombie's is in use again after three.
        for _ in range(2 if kind == "single" else 3):
            assert shop.run().state == "done"

        before = shop.document()

    assert zombie.result is not None
    assert shop.document() == before, "nothing is written by it in any case"
    # Without the fence, the database has a password that the document has not.
    assert shop.live_logs_in() is fenced

    if fenced:
        assert zombie.result.error is None
        assert zombie.result.joined


def test_one_that_stops_with_the_lock_in_its_hands_delays_the_others_by_seconds(
    shop: Shop,
) -> None:
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


@pytest.mark.parametrize("kind", ["single", "alternating"])
def test_no_new_connection_is_refused_while_the_password_is_rotated(
    kind: str, shop: Shop
) -> None:
    if kind == "alternating":
        alternating(shop)
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


def test_the_same_without_candidates_sees_refusals(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, postgres: Postgres
) -> None:
    """So the test above can see them."""

    def blind(step: str) -> None:
        if step == "applying":
            # A worker that does not look at the journal knows the old value only.
            user = shop.document()["username"]
            known.append(postgres.logs_in(user, FIRST))
        elif step == "committed":
            known.append(postgres.logs_in(shop.document()["username"], FIRST))

    known: list[bool] = []

    with seam(blind):
        shop.run()

    assert known == [True, False]
