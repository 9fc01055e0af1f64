"""Passwords of a database server that asks for them: PostgreSQL, mostly."""

from __future__ import annotations

import dataclasses
import logging
import pathlib
import re
import typing as t

import pytest

from flask_vault import AlreadyRotatedError
from flask_vault import RotationError
from flask_vault import UnfinishedRotationError
from flask_vault import VaultClient
from flask_vault import VaultConfigError
from flask_vault.rotation import dialects
from flask_vault.rotation.dialects import scram_verifier
from flask_vault.rotation.journal import record_of
from flask_vault.rotation.rotators import Rejected
from flask_vault.rotation.steps import seam
from flask_vault.rotation.tasks import Result
from flask_vault.testing.plugin import VaultMount
from tests.databases import Database
from tests.helpers import BACKUP_KEY
from tests.postgres import Postgres
from tests.postgres import TRUSTED

FIRST = "first-password-77d0"


@dataclasses.dataclass
class Shop:
    """An app with a password of a database to rotate."""

    mount: VaultMount
    server: Database
    folder: pathlib.Path
    rotate: dict[str, t.Any] = dataclasses.field(default_factory=dict)
    more: dict[str, t.Any] = dataclasses.field(default_factory=dict)

    @property
    def template(self) -> str:
        return f"{self.server.driver}://{{username}}:{{password}}@{{host}}/{{dbname}}"

    def client(self) -> VaultClient:
        return VaultClient.from_mapping(
            self.mount.config(
                VAULT_BACKUP_DIR=str(self.folder / "backups"),
                VAULT_BACKUP_KEYS=[BACKUP_KEY],
                VAULT_SECRETS={
                    "DATABASE_URL": {
                        "ref": "database",
                        "template": self.template,
                        "rotate": {
                            "kind": "database",
                            "field": "password",
                            **self.rotate,
                        },
                    }
                },
                **{"VAULT_PROPAGATION_WINDOW": 0, **self.more},
            ),
            {},
        )

    def document(self) -> dict[str, t.Any]:
        return self.mount.read("database")

    def live_logs_in(self) -> bool:
        live = self.document()
        return self.server.logs_in(live["username"], live["password"])

    def run(self, **rules: t.Any) -> Result:
        """One run with other rules than usual."""
        rotations = self.client().rotations
        operations = rotations.operations(
            dataclasses.replace(
                rotations.rules, **{"outlast": 1, "verify_for": 1, **rules}
            )
        )
        (task,) = self.client().catalog.plan().tasks
        (result,) = operations.run([task])
        return result


def open_shop(mount: VaultMount, server: Database, folder: pathlib.Path) -> Shop:
    mount.write("database", server.document(server.create_user(FIRST), FIRST))
    return Shop(mount, server, folder)


@pytest.fixture
def shop(vault_mount: VaultMount, postgres: Postgres, tmp_path: pathlib.Path) -> Shop:
    return open_shop(vault_mount, postgres, tmp_path)


def admin(shop: Shop) -> None:
    """Give the rotation an administrator of its own."""
    user = shop.server.create_admin("admin-password")
    url = shop.server.url(user, "admin-password")
    shop.mount.write("database-admin", {"url": url})
    shop.rotate["admin"] = "database-admin#url"


def alternating(shop: Shop) -> tuple[str, str]:
    first = shop.document()["username"]
    second = shop.server.create_user("nobody-knows-this-one")
    admin(shop)
    shop.rotate["users"] = [first, second]
    return first, second


# The ways to do it.


def test_a_user_changes_its_own_password(shop: Shop) -> None:
    user = shop.document()["username"]
    rotated = shop.client().rotate_secret("database", "password")
    after = shop.document()

    assert rotated.fields == ("password",)
    assert rotated.document.data == after
    assert after["username"] == user
    assert after["password"] != FIRST
    assert "_rotation" not in after
    assert shop.live_logs_in()
    assert not shop.server.logs_in(user, FIRST)


def test_an_administrator_changes_it_also_when_the_document_is_wrong(
    shop: Shop,
) -> None:
    admin(shop)
    shop.mount.write("database", {**shop.document(), "password": "drifted"})
    shop.client().rotate_secret("database", "password")
    assert shop.live_logs_in()


def test_two_users_take_turns_and_the_one_in_use_is_never_touched(shop: Shop) -> None:
    first, second = alternating(shop)
    shop.client().rotate_secret("database", "password")
    once = shop.document()
    assert once["username"] == second
    assert shop.live_logs_in()
    assert shop.server.logs_in(first, FIRST), "who still has it goes on"

    shop.client().rotate_secret("database", "password")
    assert shop.document()["username"] == first
    assert shop.live_logs_in()
    assert shop.server.logs_in(second, once["password"])
    assert not shop.server.logs_in(first, FIRST)


def test_of_two_users_the_previous_can_be_closed(shop: Shop) -> None:
    first, _ = alternating(shop)
    shop.rotate["revoke_previous"] = True
    shop.client().rotate_secret("database", "password")
    assert shop.live_logs_in()
    assert not shop.server.logs_in(first, FIRST)


def test_a_user_with_the_right_changes_the_other_one(shop: Shop) -> None:
    first, second = alternating(shop)
    del shop.rotate["admin"]
    shop.server.run(
        f"ALTER ROLE {first} CREATEROLE",
        f"GRANT {second} TO {first} WITH ADMIN OPTION",
    )
    shop.client().rotate_secret("database", "password")
    assert shop.document()["username"] == second
    assert shop.live_logs_in()


def test_a_password_of_ones_own_choice(shop: Shop) -> None:
    shop.client().rotate_secret("database", "password", new_value="my'own\\choice")
    assert shop.document()["password"] == "my'own\\choice"
    assert shop.live_logs_in()


def test_a_restore_changes_the_database_as_well(shop: Shop) -> None:
    client = shop.client()
    rotated = client.rotate_secret("database", "password")
    restored = client.restore_secret(str(rotated.backup))
    assert restored.document.data["password"] == FIRST
    assert shop.live_logs_in()
    assert "_rotation" not in shop.document()

    with pytest.raises(AlreadyRotatedError, match="already"):
        client.restore_secret(str(rotated.backup))


def test_the_databases_log_holds_no_password(shop: Shop) -> None:
    seen = [FIRST]

    for _ in range(2):
        shop.client().rotate_secret("database", "password")
        seen.append(shop.document()["password"])

    alternating(shop)
    shop.client().rotate_secret("database", "password")
    seen.append(shop.document()["password"])
    log = shop.server.log
    assert log.count("PASSWORD 'SCRAM-SHA-256$") >= 3
    # The test itself made the first one, in plain text.
    assert [value for value in seen[1:] if value in log] == []


def test_the_verifier_is_one_that_the_server_would_make(postgres: Postgres) -> None:
    user = postgres.create_user("other")
    postgres.run(f"ALTER ROLE {user} PASSWORD '{scram_verifier('pass-word')}'")
    assert postgres.logs_in(user, "pass-word")

    with pytest.raises(Rejected):
        scram_verifier("pässword")


# What is refused before anything is done.


def test_a_database_that_takes_any_password_is_refused(shop: Shop) -> None:
    """No login proves anything there."""
    shop.server.run(f"DROP ROLE IF EXISTS {TRUSTED}", f"CREATE ROLE {TRUSTED} LOGIN")
    before = {**shop.document(), "username": TRUSTED}
    shop.mount.write("database", before)

    with pytest.raises(RotationError, match=f"takes any password of '{TRUSTED}'"):
        shop.client().rotate_secret("database", "password")

    assert shop.document() == before


def test_a_document_that_is_wrong_already_is_refused(shop: Shop) -> None:
    before = {**shop.document(), "password": "drifted"}
    shop.mount.write("database", before)

    with pytest.raises(RotationError, match="nothing was changed: correct it"):
        shop.client().rotate_secret("database", "password")

    assert shop.document() == before
    assert shop.server.logs_in(before["username"], FIRST)


def test_an_administrator_of_another_server_is_refused(shop: Shop) -> None:
    """It would change the password of another user of the same name."""
    admin(shop)
    url = "postgresql+psycopg://a:b@127.0.0.1:1/postgres"
    shop.mount.write("database-admin", {"url": url})

    with pytest.raises(RotationError, match="another server"):
        shop.client().rotate_secret("database", "password")


def test_a_user_that_takes_no_turns_is_refused(shop: Shop) -> None:
    shop.rotate["users"] = ["a", "b"]

    with pytest.raises(RotationError, match="none of the 'users'"):
        shop.client().rotate_secret("database", "password")


@pytest.mark.parametrize(
    ("rotate", "said"),
    [
        ({"users": ["a"]}, "the two users that take turns"),
        ({"users": "ab"}, "the two users that take turns"),
        ({"admni": "x"}, "no option 'admni'"),
        ({"length": 3}, "'length'"),
    ],
)
def test_what_is_wrong_in_rotate_is_said_at_the_start(
    rotate: dict[str, t.Any], said: str, shop: Shop
) -> None:
    shop.rotate = rotate

    with pytest.raises(VaultConfigError, match=said) as caught:
        shop.client()

    assert "VAULT_SECRETS['DATABASE_URL']" in str(caught.value)


def test_kv_version_1_has_nothing_to_keep_a_journal_with(
    shop: Shop, vault_server: t.Any
) -> None:
    from flask_vault.testing.api import Api

    old = f"{shop.mount.name}-v1"
    vault_server.enable_kv(old, version=1)
    Api(shop.mount.address).call(
        "POST", f"{old}/database", shop.document(), token=shop.mount.token
    )
    shop.more["VAULT_MOUNT"] = old

    with pytest.raises(RotationError, match="version 1"):
        shop.client().rotate_secret("database", "password")


# What goes wrong meanwhile.


def test_a_database_that_does_not_answer_is_temporary(shop: Shop) -> None:
    before = {**shop.document(), "host": "127.0.0.1:1"}
    shop.mount.write("database", before)
    result = shop.run()
    assert isinstance(result.error, UnfinishedRotationError)
    assert "127.0.0.1:1 does not answer" in str(result.error)
    assert shop.document() == before


def test_a_password_that_somebody_else_changed_meanwhile_needs_a_person(
    shop: Shop,
) -> None:
    def interfere(step: str) -> None:
        if step == "applying":
            user = shop.document()["username"]
            shop.server.run(f"ALTER ROLE {user} PASSWORD 'by hand'")

    with seam(interfere):
        result = shop.run()

    assert type(result.error) is RotationError
    assert "somebody else has changed it" in str(result.error)
    assert result.state == "APPLYING"
    stuck = shop.mount.read("database")
    assert type(shop.run().error) is RotationError
    assert shop.mount.read("database") == stuck

    # Whatever is in the journal is a way out.
    shop.server.run(f"ALTER ROLE {stuck['username']} PASSWORD '{FIRST}'")
    assert shop.run().state == "done"
    assert shop.live_logs_in()


def test_a_value_that_the_database_rejects_three_times_is_given_up(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusing = dataclasses.replace(
        dialects.POSTGRESQL, change="DO $$ BEGIN RAISE 'too weak'; END $$"
    )
    monkeypatch.setitem(dialects.DIALECTS, "postgresql", refusing)
    before = shop.document()
    result = shop.run()
    assert type(result.error) is RotationError
    assert "the new 3 values were rejected" in str(result.error)
    assert result.state == "aborted"
    assert shop.document() == before
    assert shop.live_logs_in()


def test_a_right_that_is_missing_is_not_the_values_fault(shop: Shop) -> None:
    _, second = alternating(shop)
    del shop.rotate["admin"]
    result = shop.run()
    assert type(result.error) is RotationError
    assert "grant the right" in str(result.error)
    record = record_of(shop.document(), "password")
    assert record is not None and record.state == "APPLYING"

    # Given the right, the same operation goes on.
    first = shop.document()["username"]
    shop.server.run(
        f"ALTER ROLE {first} CREATEROLE",
        f"GRANT {second} TO {first} WITH ADMIN OPTION",
    )
    again = shop.run()
    assert (again.state, again.operation) == ("done", record.operation)
    assert shop.live_logs_in()


def test_a_session_that_the_server_ends_before_the_commit_is_begun_anew(
    shop: Shop,
) -> None:
    user = shop.document()["username"]
    ended: list[str] = []

    def end(step: str) -> None:
        if step == "before commit" and not ended:
            ended.append(step)
            shop.server.end_sessions(user)

    with seam(end):
        assert shop.run(verify_for=10).state == "done"

    assert ended
    assert shop.live_logs_in()


def test_a_commit_whose_answer_is_lost_is_found_out(shop: Shop) -> None:
    """The password was changed, and the rotator does not know."""

    def interrupt(step: str) -> None:
        if step == "committed":
            raise ConnectionResetError

    with seam(interrupt):
        result = shop.run()

    assert isinstance(result.error, UnfinishedRotationError)
    record = record_of(shop.document(), "password")
    assert record is not None and record.pending is not None
    assert shop.run().operation == result.operation
    assert shop.document()["password"] == record.pending["password"]
    assert shop.live_logs_in()


@pytest.mark.parametrize("step", ["applying", "committed"])
def test_a_document_that_somebody_overwrites_meanwhile_is_not_taken_for_done(
    step: str, shop: Shop
) -> None:
    """As "vault kv put" does, which knows nothing of the journal."""
    before = shop.document()

    def overwrite(reached: str) -> None:
        if reached == step:
            shop.mount.write("database", before)

    with seam(overwrite):
        result = shop.run()

    assert type(result.error) is RotationError
    assert result.state == "gone"
    assert "somebody has overwritten the document" in str(result.error)
    (version,) = re.findall(r"kv rollback .*-version=(\d+) database", str(result.error))

    if step == "committed":
        # A new run does not begin on top of it, and says the same.
        again = shop.run()
        assert type(again.error) is RotationError
        assert f"-version={version} database" in str(again.error)

    shop.mount.write("database", shop.mount.read("database", int(version)))
    assert shop.run(begin=False).state == "done"
    assert shop.live_logs_in()


def test_nothing_that_is_logged_holds_a_password(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)

    for name in ("sqlalchemy.engine", "sqlalchemy.pool", "urllib3", "hvac"):
        caplog.set_level(logging.DEBUG, name)

    shop.client().rotate_secret("database", "password")
    alternating(shop)
    shop.client().rotate_secret("database", "password")
    assert "flask_vault.audit" in {record.name for record in caplog.records}
    assert FIRST not in caplog.text
    assert shop.document()["password"] not in caplog.text
    assert "SCRAM-SHA-256$" not in caplog.text
    assert "admin-password" not in caplog.text
