"""Rotators of a user's own."""

from __future__ import annotations

import importlib.metadata
import pathlib
import typing as t

import pytest

from flask_vault import FlaskVault
from flask_vault import RotationError
from flask_vault import UnfinishedRotationError
from flask_vault import VaultClient
from flask_vault import VaultConfigError
from flask_vault.rotation import registry
from flask_vault.rotation.journal import Fields
from flask_vault.rotation.rotators import Job
from flask_vault.rotation.rotators import NotYet
from flask_vault.rotation.rotators import Rejected
from flask_vault.rotation.rotators import Rotator
from flask_vault.rotation.tasks import Rules
from flask_vault.rotations import Rotations
from flask_vault.testing.plugin import VaultMount
from tests.helpers import BACKUP_KEY

CANARY = "canary-77d0"

#: What the rotator below was asked, and what it does about it.
calls: list[tuple[str, t.Any, t.Any]] = []
script: dict[str, t.Any] = {}


class Scripted(Rotator):
    """Does what the test says, and notes what it is told."""

    def __init__(self, account: str = "none") -> None:
        self.account = account

    def _act(self, name: str, job: Job, default: t.Any = None) -> t.Any:
        calls.append((name, job.old, job.new))
        act = script.get(name, default)
        return act(job) if callable(act) else act

    def create(self, job: Job) -> str | Fields:
        return t.cast("str | Fields", self._act("create", job, f"{CANARY}-new"))

    def find(self, job: Job) -> str | Fields | None:
        return t.cast("str | Fields | None", self._act("find", job))

    def apply(self, job: Job) -> None:
        self._act("apply", job)

    def verify(self, job: Job) -> None:
        self._act("verify", job)

    def revoke(self, job: Job) -> None:
        self._act("revoke", job)

    def abort(self, job: Job) -> bool:
        return bool(self._act("abort", job))


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    calls.clear()
    script.clear()
    monkeypatch.setattr(registry, "_registered", {})
    impatient = Rules(window=0, adopt_after=0, outlast=1, verify_for=0.3)
    monkeypatch.setattr(Rotations, "rules", impatient)


def client(mount: VaultMount, folder: pathlib.Path, **rotate: object) -> VaultClient:
    mount.write("stripe", {"api_key": f"{CANARY}-old", "account": "a"})
    return VaultClient.from_mapping(
        mount.config(
            VAULT_BACKUP_DIR=str(folder / "backups"),
            VAULT_BACKUP_KEYS=[BACKUP_KEY],
            VAULT_SECRETS={"STRIPE_KEY": {"ref": "stripe#api_key", "rotate": rotate}},
        ),
        {},
    )


DOTTED = f"{__name__}:Scripted"

OLD, NEW = f"{CANARY}-old", f"{CANARY}-new"


def test_the_methods_are_called_in_this_order(
    vault_mount: VaultMount, tmp_path: pathlib.Path
) -> None:
    client(vault_mount, tmp_path, kind=DOTTED).rotate_secret("stripe", "api_key")
    assert calls == [
        ("create", OLD, None),
        ("apply", OLD, NEW),
        ("verify", OLD, NEW),
        ("revoke", OLD, NEW),
    ]
    assert vault_mount.read("stripe") == {"api_key": NEW, "account": "a"}


def test_a_name_is_given_with_a_decorator(
    vault_mount: VaultMount, tmp_path: pathlib.Path
) -> None:
    vault = FlaskVault()
    assert vault.rotator("stripe")(Scripted) is Scripted
    client(vault_mount, tmp_path, kind="stripe").rotate_secret("stripe", "api_key")
    assert vault_mount.read("stripe")["api_key"] == NEW

    with pytest.raises(VaultConfigError, match="choose another one"):
        vault.rotator("database")


def test_a_name_comes_from_an_entry_point(
    vault_mount: VaultMount, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    point = importlib.metadata.EntryPoint("acme", DOTTED, registry.ENTRY_POINTS)

    def points(**wanted: str) -> list[importlib.metadata.EntryPoint]:
        return [point] if wanted.get("name", "acme") == "acme" else []

    monkeypatch.setattr(importlib.metadata, "entry_points", points)
    client(vault_mount, tmp_path, kind="acme").rotate_secret("stripe", "api_key")
    assert vault_mount.read("stripe")["api_key"] == NEW


@pytest.mark.parametrize(
    ("rotate", "said"),
    [
        ({"kind": "strpe"}, "did you mean 'stripe'"),
        ({"kind": f"{__name__}:Missing"}, "there is no 'Missing'"),
        ({"kind": "no_such_module:X"}, "there is no module 'no_such_module'"),
        ({"kind": DOTTED, "acount": "x"}, "unexpected keyword argument 'acount'"),
    ],
)
def test_what_cannot_be_used_is_said(
    rotate: dict[str, object],
    said: str,
    vault_mount: VaultMount,
    tmp_path: pathlib.Path,
) -> None:
    registry.register("stripe")(Scripted)

    with pytest.raises(VaultConfigError, match=said):
        client(vault_mount, tmp_path, **rotate).rotate_secret("stripe", "api_key")

    assert vault_mount.read("stripe")["api_key"] == OLD


def test_several_fields_change_together(
    vault_mount: VaultMount, tmp_path: pathlib.Path
) -> None:
    script["create"] = {"api_key": NEW, "account": "b"}
    client(vault_mount, tmp_path, kind=DOTTED).rotate_secret("stripe", "api_key")
    assert vault_mount.read("stripe") == {"api_key": NEW, "account": "b"}


@pytest.mark.parametrize("made", ["", " ", None, 7, {"account": "b"}])
def test_what_is_no_value_is_not_used(
    made: object, vault_mount: VaultMount, tmp_path: pathlib.Path
) -> None:
    script["create"] = made

    with pytest.raises(RotationError, match="the rotator made no value"):
        client(vault_mount, tmp_path, kind=DOTTED).rotate_secret("stripe", "api_key")

    assert vault_mount.read("stripe")["api_key"] == OLD


@pytest.mark.parametrize("method", ["create", "apply", "verify", "revoke"])
def test_an_exception_leaves_the_rotation_open_and_its_text_unsaid(
    method: str, vault_mount: VaultMount, tmp_path: pathlib.Path
) -> None:
    def fail(job: Job) -> t.NoReturn:
        raise ValueError(f"it failed with {job.new} and {job.old}")

    script[method] = fail
    ours = client(vault_mount, tmp_path, kind=DOTTED)

    with pytest.raises(UnfinishedRotationError) as caught:
        ours.rotate_secret("stripe", "api_key")

    said = str(caught.value)
    assert f"{method}() of the rotator raised ValueError" in said
    assert CANARY not in said
    assert caught.value.__context__ is None
    assert "_rotation" in vault_mount.read("stripe")

    del script[method]
    ours.rotate_secret("stripe", "api_key")
    assert vault_mount.read("stripe") == {"api_key": NEW, "account": "a"}


def test_verify_is_asked_again_until_the_value_works(
    vault_mount: VaultMount, tmp_path: pathlib.Path
) -> None:
    def slowly(job: Job) -> None:
        if [name for name, *_ in calls].count("verify") < 3:
            raise NotYet("the provider is slow")

    script["verify"] = slowly
    client(vault_mount, tmp_path, kind=DOTTED).rotate_secret("stripe", "api_key")
    assert vault_mount.read("stripe")["api_key"] == NEW


def test_a_value_that_never_works_is_never_put_in_place(
    vault_mount: VaultMount, tmp_path: pathlib.Path
) -> None:
    def never(job: Job) -> t.NoReturn:
        raise NotYet("the provider does not know it")

    script["verify"] = never

    with pytest.raises(UnfinishedRotationError, match="the provider does not know it"):
        client(vault_mount, tmp_path, kind=DOTTED).rotate_secret("stripe", "api_key")

    assert vault_mount.read("stripe")["api_key"] == OLD


@pytest.mark.parametrize("proven", [True, False])
def test_a_rejected_value_is_given_up_only_when_that_is_harmless(
    proven: bool, vault_mount: VaultMount, tmp_path: pathlib.Path
) -> None:
    def reject(job: Job) -> t.NoReturn:
        raise Rejected("too short")

    script.update(apply=reject, abort=proven)

    with pytest.raises(RotationError, match="too short"):
        client(vault_mount, tmp_path, kind=DOTTED).rotate_secret("stripe", "api_key")

    after = vault_mount.read("stripe")
    assert after["api_key"] == OLD
    assert ("_rotation" in after) is not proven


def test_a_claim_lets_only_one_process_go_on(
    vault_mount: VaultMount, tmp_path: pathlib.Path
) -> None:
    """Another one finishes the operation while this one waits for the target's lock."""
    ours = client(vault_mount, tmp_path, kind=DOTTED)
    reached: list[str] = []

    def slowly(job: Job) -> None:
        script["apply"] = None
        ours.rotate_secret("stripe", "api_key")
        reached.append("lock")
        job.claim()
        reached.append("change")

    script["apply"] = slowly
    ours.rotate_secret("stripe", "api_key")
    assert reached == ["lock"]
    assert vault_mount.read("stripe")["api_key"] == NEW


def test_what_a_run_has_begun_to_give_up_is_not_put_in_place_by_another(
    vault_mount: VaultMount, tmp_path: pathlib.Path
) -> None:
    """Its key may have been deleted at the provider already."""
    ours = client(vault_mount, tmp_path, kind=DOTTED)
    (task,) = ours.catalog.plan().tasks
    operations = ours.rotations.operations(ours.rotations.rules)

    def stop(job: Job) -> t.NoReturn:
        raise KeyboardInterrupt

    script.update(apply=stop)

    with pytest.raises(KeyboardInterrupt):
        operations.run([task])

    # The same in the midst of giving up, and another run that comes then.
    del script["apply"]
    ends: list[Exception | None] = []

    def give_up(job: Job) -> bool:
        ends.append(operations.run([task])[0].error)
        raise KeyboardInterrupt

    script.update(abort=give_up)

    with pytest.raises(KeyboardInterrupt):
        operations.abort(task)

    (end,) = ends
    assert isinstance(end, RotationError)
    assert "--abort" in str(end)
    assert vault_mount.read("stripe")["api_key"] == OLD

    # When it is not harmless after all, anybody may go on.
    script.update(abort=False)
    assert isinstance(operations.abort(task).error, RotationError)
    assert operations.run([task])[0].state == "done"
    assert vault_mount.read("stripe")["api_key"] == NEW
