"""What may go wrong with rotated secrets: a list, and where each point is tested."""

from __future__ import annotations

import ast
import collections.abc as cabc
import contextlib
import datetime
import functools
import pathlib
import time
import typing as t

import pytest
import sqlalchemy as sa

from flask_vault import RotationError
from flask_vault import UnfinishedRotationError
from flask_vault import VaultConnectionError
from flask_vault import VaultSealedError
from flask_vault.extension import state_of
from flask_vault.integrations import sqlalchemy as integration
from flask_vault.rotation.backup import BackupStore
from flask_vault.rotation.journal import record_of
from flask_vault.rotation.steps import seam
from flask_vault.state import AppState
from flask_vault.testing import DevServer
from flask_vault.testing import FaultProxy
from flask_vault.testing.api import Api
from flask_vault.testing.plugin import VaultMount
from tests.helpers import approle
from tests.helpers import BACKUP_KEY
from tests.helpers import start_app
from tests.postgres import Postgres
from tests.test_database_rotation import admin
from tests.test_database_rotation import FIRST
from tests.test_database_rotation import Shop
from tests.test_database_rotation import shop as shop

#: What goes wrong, and the tests of it. Where there is none, why.
TABLE: dict[str, tuple[str, ...]] = {
    "killed after PREPARED, then the plain command": (
        "test_kill_matrix.test_killed_at_a_step_the_plain_command_ends_it",
    ),
    "killed between the database's commit and PROMOTED": (
        "test_kill_matrix.test_killed_at_a_step_the_plain_command_ends_it",
        "test_rotation_races.test_no_new_connection_is_refused_while_the_password_is_rotated",
    ),
    "Vault is cut off right after the database was changed": (
        "test_cli_rotate_elsewhere.test_the_command_names_what_is_left_when_vault_goes_away",
    ),
    "the database is cut off before it was changed": (
        "test_rotation_faults.test_a_database_that_goes_away_meanwhile",
    ),
    "Vault is sealed meanwhile": (
        "test_rotation_faults.test_a_vault_that_is_sealed_meanwhile",
    ),
    "the leader of a cluster is killed during a write": (
        "test_cluster.test_reads_go_on_and_nothing_is_lost_without_the_leader",
        "test_rotation_on_raft.test_a_rotation_survives_the_loss_of_the_leader",
    ),
    "a standby is cut off and serves old data": (
        "test_refresh.test_an_answer_that_is_older_is_not_taken",
        "test_session_guard.test_a_stale_worker_leaves_a_cookie_that_it_cannot_verify_alone",
    ),
    "the token is revoked meanwhile": (
        "test_rotation_faults.test_a_token_that_is_revoked_meanwhile",
    ),
    "the rotator's session at the database is ended": (
        "test_database_rotation.test_a_session_that_the_server_ends_before_the_commit_is_begun_anew",
    ),
    "the host's clock is a day off": (
        "test_rotation_faults.test_a_clock_that_is_a_day_off_ends_no_wait",
        "test_refresh.test_a_hosts_clock_that_is_a_day_off_moves_no_key",
    ),
    "the folder for backups is full": (
        "test_kill_matrix.test_with_a_fault_at_a_step_the_plain_command_ends_it",
        "test_backup.test_no_file_is_left_whatever_step_fails",
    ),
    "the folder for backups is missing, a link, open to others, of another user": (
        "test_backup.test_a_symbolic_link_is_refused",
        "test_backup.test_one_that_others_can_enter_is_refused",
        "test_backup.test_one_of_another_user_is_refused",
    ),
    "a backup is damaged, or the key is another": (
        "test_backup.test_every_bit_of_the_file_counts",
        "test_backup.test_another_key_opens_nothing",
        "test_backup.test_one_bad_file_hides_no_good_one",
    ),
    "a name to restore is a path, a link, a FIFO, a device, 1 GiB": (
        "test_backup.test_what_is_not_the_name_of_a_backup_is_refused_unopened",
        "test_backup.test_a_fifo_is_refused_without_waiting",
        "test_backup.test_a_device_is_refused",
        "test_backup.test_a_file_of_1_gib_is_refused_unread",
    ),
    "a backup is of another app": (
        "test_cli_rotate.test_restore_of_another_apps_backup",
    ),
    "eight rotations at once": (
        "test_rotation_races.test_eight_rotations_at_once_on_two_hosts_are_one",
    ),
    "a rotator wakes up after a later operation": (
        "test_rotation_races.test_a_zombie_stands_down_and_without_the_fence_it_would_not",
    ),
    "somebody overwrites the document meanwhile": (
        "test_database_rotation.test_a_document_that_somebody_overwrites_meanwhile_is_not_taken_for_done",
    ),
    "a version is deleted, undeleted, destroyed, the document made anew": (
        "test_refresh.test_the_last_good_value_is_kept",
        "test_refresh.test_an_undeleted_version_is_good_again",
        "test_refresh.test_a_document_that_was_made_anew_begins_a_new_ring",
    ),
    "a value is empty, null, of another type, too large": (
        "test_refresh.test_the_last_good_value_is_kept",
        "test_refresh.test_one_bad_field_keeps_the_whole_document",
        "test_values.test_a_value_that_cannot_be_used_says_why_and_is_not_shown",
    ),
    "the database rejects each new password": (
        "test_database_rotation.test_a_value_that_the_database_rejects_three_times_is_given_up",
    ),
    "the database takes any password": (
        "test_database_rotation.test_a_database_that_takes_any_password_is_refused",
    ),
    # The replica is a second server that was left behind by the rotation: streaming
    # replication that is cut off in time ends in the same state.
    "a failover to a replica that has the old password": (
        "test_rotation_faults.test_a_failover_to_a_replica_with_the_old_password",
        "test_rotation_faults.test_a_failover_after_the_rotation_is_found_and_repaired",
        "test_rotation_faults.test_a_replica_that_takes_no_changes_yet_is_waited_for",
    ),
    "an answer is a redirect, HTML, a 429": (
        "test_retries.test_a_redirect_takes_the_token_to_no_other_host",
        "test_retries.test_a_200_that_is_not_vaults_is_an_error_and_not_tried_again",
        "test_retries.test_a_quota_that_is_used_up",
        "test_addresses.test_a_certificate_for_another_name",
    ),
    "the refresh thread dies, a fork, a receiver that raises": (
        "test_refresh.test_a_dead_thread_is_started_anew_and_told",
        "test_forks.test_no_process_gets_the_answer_of_another",
        "test_signals.test_a_receiver_that_raises_stops_nobody_and_its_text_is_not_logged",
    ),
}


@functools.cache
def functions_in(module: str) -> set[str]:
    source = (pathlib.Path(__file__).parent / f"{module}.py").read_text("utf-8")
    return {
        node.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef)
    }


@pytest.mark.parametrize("fault", TABLE)
def test_a_fault_of_the_list_has_a_test(fault: str) -> None:
    for test in TABLE[fault]:
        module, name = test.split(".")
        assert name in functions_in(module)


def at(wanted: str, do: t.Callable[[], object]) -> t.Callable[[str], None]:
    done: list[str] = []

    def reach(step: str) -> None:
        if step == wanted and not done:
            done.append(step)
            do()

    return reach


def test_a_database_that_goes_away_meanwhile(
    vault_mount: VaultMount, tmp_path: pathlib.Path
) -> None:
    with Postgres() as server:
        user = server.create_user(FIRST)
        document = server.document(user, FIRST)
        vault_mount.write("database", document)
        shop = Shop(vault_mount, server, tmp_path)

        with seam(at("applying", server.stop)):
            result = shop.run()

        assert isinstance(result.error, UnfinishedRotationError)
        assert "does not answer" in str(result.error)
        assert result.state == "APPLYING"
        assert shop.document()["password"] == FIRST

        server.start()
        assert shop.live_logs_in(), "the old password is in use"
        assert shop.run().operation == result.operation
        assert shop.document()["password"] != FIRST
        assert shop.live_logs_in()


def test_a_vault_that_is_sealed_meanwhile(shop: Shop, vault_proxy: FaultProxy) -> None:
    shop.more["VAULT_ADDR"] = vault_proxy.address
    sealed = {"errors": ["Vault is sealed"]}

    with seam(at("committed", lambda: vault_proxy.answer(503, sealed))):
        result = shop.run()

    assert isinstance(result.error, VaultSealedError)
    assert "_rotation" in shop.document()
    vault_proxy.heal()
    assert shop.run().state == "done"
    assert shop.live_logs_in()


def test_a_token_that_is_revoked_meanwhile(shop: Shop, vault_server: DevServer) -> None:
    """One new login, and the rotation goes on."""
    rights = 'capabilities = ["create", "read", "update"]'
    auth = approle(vault_server, f'path "{shop.mount.name}/*" {{ {rights} }}')
    shop.more.update(VAULT_TOKEN=None, VAULT_AUTH=auth)
    api, root = Api(vault_server.address), vault_server.root_token

    def revoke() -> None:
        api.call("POST", "sys/leases/revoke-prefix/auth/approle", token=root)

    with seam(at("committed", revoke)):
        result = shop.run()

    assert result.error is None
    assert shop.live_logs_in()


@pytest.mark.parametrize("days", [-1, 1])
def test_a_clock_that_is_a_day_off_ends_no_wait(
    days: int, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All waits are by Vault's clock, so the host's may jump meanwhile."""
    seconds = time.time
    off = datetime.timedelta(days=days).total_seconds()
    shop.more["VAULT_PROPAGATION_WINDOW"] = 60

    def jump() -> None:
        monkeypatch.setattr(time, "time", lambda: seconds() + off)

    with seam(at("prepared", jump)):
        assert shop.run(wait=False).state == "PREPARED"

    assert shop.run(wait=False).state == "PREPARED"
    record = record_of(shop.document(), "password")
    assert record is not None and record.state == "PREPARED"


@pytest.fixture
def replica(shop: Shop) -> cabc.Iterator[Postgres]:
    """Another server with the same user, who has the first password there."""
    user = shop.document()["username"]

    with Postgres() as server:
        server.run(f"CREATE ROLE {user} LOGIN PASSWORD '{FIRST}'")
        yield server


def fail_over(shop: Shop, replica: Postgres) -> None:
    """Have the app's name for the database lead to the replica."""
    shop.server = replica
    host = f"{replica.host}:{replica.port}"
    shop.mount.write("database", {**shop.mount.read("database"), "host": host})


@contextlib.contextmanager
def an_engine(shop: Shop) -> cabc.Iterator[tuple[AppState, sa.Engine]]:
    """The engine of a worker, which has just asked Vault."""
    key = integration.DEFAULT_KEY
    entry = {"ref": "database", "template": shop.template}
    config = shop.mount.config(VAULT_REFRESH_MODE="off", VAULT_SECRETS={key: entry})
    app = start_app(config)
    engine = sa.create_engine(app.config[key])
    integration.follow(app, engine, key)

    yield state_of(app), engine

    engine.dispose()


@pytest.mark.parametrize("step", ["committed", "promoted"])
def test_a_failover_to_a_replica_with_the_old_password(
    step: str, shop: Shop, replica: Postgres
) -> None:
    """While the rotation is open. Workers still know the old password, and the next run
    puts the new one there, too."""
    with seam(at(step, lambda: fail_over(shop, replica))), seam(at(step, stop)):
        interrupted = shop.run()

    assert interrupted.error is not None

    with an_engine(shop) as (_, engine), engine.connect() as connection:
        assert connection.scalar(sa.text("SELECT 1")) == 1

    again = shop.run()
    assert again.operation == interrupted.operation
    assert again.state == "done"
    assert shop.document()["password"] != FIRST
    assert shop.live_logs_in()


def test_a_failover_after_the_rotation_is_found_and_repaired(
    shop: Shop, replica: Postgres
) -> None:
    """The journal is gone by then. What the database has, is in the backup alone."""
    shop.run()
    fail_over(shop, replica)
    new = shop.document()["password"]
    result = shop.run()
    assert type(result.error) is RotationError
    assert "does not take 'password' of the document" in str(result.error)
    assert shop.document()["password"] == new

    # Whoever may change the password needs no old one.
    admin(shop)
    assert shop.run().state == "done"
    assert shop.live_logs_in()


def test_a_replica_that_takes_no_changes_yet_is_waited_for(shop: Shop) -> None:
    user = shop.document()["username"]
    shop.server.run(f"ALTER ROLE {user} SET default_transaction_read_only = on")
    result = shop.run()
    assert isinstance(result.error, UnfinishedRotationError)
    assert "takes no changes now" in str(result.error)
    assert result.state == "APPLYING"

    shop.server.run(f"ALTER ROLE {user} RESET default_transaction_read_only")
    assert shop.run().operation == result.operation
    assert shop.live_logs_in()


def test_a_transaction_that_the_server_ends_is_no_rejected_password(shop: Shop) -> None:
    """As after a write to Vault that took longer than a transaction may be idle."""
    user = shop.document()["username"]

    def wait_for_its_end() -> None:
        deadline = time.monotonic() + 20

        while shop.server.connections(user):
            assert time.monotonic() < deadline
            time.sleep(0.05)

    with seam(at("fenced", wait_for_its_end)):
        result = shop.run(verify_for=20)

    assert "idle-in-transaction" in shop.server.log
    assert result.state == "done"
    assert not result.joined
    backups = BackupStore(shop.folder / "backups", [BACKUP_KEY]).list()
    assert len(backups) == 1, "no second value was made"
    assert shop.live_logs_in()


def stop() -> None:
    raise VaultConnectionError("the rotator is cut off")
