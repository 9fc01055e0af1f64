"""The calls of ``vault.client``, which a script without Flask may make, too."""

from __future__ import annotations

import datetime
import math
import pathlib
import threading
import typing as t

import pytest

from flask_vault import AlreadyRotatedError
from flask_vault import BackupError
from flask_vault import CheckAndSetError
from flask_vault import get_secret
from flask_vault import Rotated
from flask_vault import RotationError
from flask_vault import SecretFieldError
from flask_vault import SecretNotFoundError
from flask_vault import SecretValueError
from flask_vault import SecretVersionError
from flask_vault import VaultClient
from flask_vault import VaultConfigError
from flask_vault import VaultConnectionError
from flask_vault import VaultError
from flask_vault import VaultPermissionError
from flask_vault import VaultResponseError
from flask_vault import VaultUnavailableError
from flask_vault.testing import DevServer
from flask_vault.testing import FaultProxy
from flask_vault.testing.faults import RecordedRequest
from flask_vault.testing.plugin import VaultMount
from tests.helpers import approle
from tests.helpers import at_once
from tests.helpers import BACKUP_KEY
from tests.helpers import before_each_write
from tests.helpers import is_write
from tests.helpers import may_read
from tests.helpers import start_app

SECRETS = {
    "KEY": {"ref": "app#key", "rotate": {"generator": "hex", "bytes": 16}},
    "PASSWORD": {"ref": "db#password", "rotate": {"kind": "database"}},
}


def new_client(
    mount: VaultMount, proxy: FaultProxy, folder: pathlib.Path, **config: t.Any
) -> VaultClient:
    return VaultClient.from_mapping(
        mount.config(
            **{
                "VAULT_ADDR": proxy.address,
                "VAULT_BACKUP_DIR": folder / "backups",
                "VAULT_BACKUP_KEYS": [BACKUP_KEY],
                "VAULT_SECRETS": SECRETS,
                "VAULT_READ_TIMEOUT": 2,
                **config,
            }
        )
    )


@pytest.fixture
def client(
    vault_mount: VaultMount, vault_proxy: FaultProxy, tmp_path: pathlib.Path
) -> VaultClient:
    vault_mount.write("app", {"key": "old", "other": "o"})
    return new_client(vault_mount, vault_proxy, tmp_path)


@pytest.fixture
def v1_client(
    vault_server: DevServer,
    vault_mount: VaultMount,
    vault_proxy: FaultProxy,
    tmp_path: pathlib.Path,
) -> t.Iterator[VaultClient]:
    """On a mount of KV version 1."""
    name = f"{vault_mount.name}-v1"
    vault_server.enable_kv(name, version=1)
    client = new_client(vault_mount, vault_proxy, tmp_path, VAULT_MOUNT=name)
    client.set_secret("app", {"key": "old", "other": "o"})
    yield client
    vault_server.disable_mount(name)


# Reading.


def test_a_field_or_the_whole_document(client: VaultClient) -> None:
    assert client.get_secret("app", "key") == "old"
    assert client.get_secret("app", field="key") == "old"
    assert client.get_secret("app#key") == "old"
    assert client.get_secret("app") == {"key": "old", "other": "o"}
    assert client.get_secret(f"/{client.settings.mount}/app", "key") == "old"


def test_a_value_comes_as_it_is_stored(
    client: VaultClient, vault_mount: VaultMount
) -> None:
    stored = {"n": 5, "f": 1.5, "b": True, "o": {"a": [1]}, "none": None, "e": ""}
    vault_mount.write("types", stored)

    assert {name: client.get_secret("types", name) for name in stored} == stored


@pytest.mark.parametrize(
    ("path", "field", "kind", "said"),
    [
        ("gone", "x", SecretNotFoundError, "no document at"),
        ("app", "gone", SecretFieldError, "it has key, other"),
        ("app#key", "key", VaultConfigError, "given twice"),
        ("../sys/mounts", None, VaultConfigError, "write the path out"),
        ("a//b", None, VaultConfigError, "single slashes"),
        ("app", "", VaultConfigError, "names no field"),
        ("app", "_rotation", SecretFieldError, "has no field '_rotation'"),
        ("/cubbyhole/x", "y", VaultConfigError, "no key-value engine"),
    ],
)
def test_what_cannot_be_read(
    path: str,
    field: str | None,
    kind: type[VaultError],
    said: str,
    client: VaultClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(kind) as caught:
        client.get_secret(path, field)

    assert type(caught.value) is kind
    assert said in str(caught.value)

    # The fallback is for what is missing, never for what is wrong.
    monkeypatch.setenv("FALLBACK", "from env")

    if kind is VaultConfigError:
        with pytest.raises(kind):
            client.get_secret(path, field, "FALLBACK")
    else:
        assert client.get_secret(path, field, "FALLBACK") == "from env"


def test_the_fallback_serves_what_is_unreachable_with_a_warning(
    client: VaultClient,
    vault_proxy: FaultProxy,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    vault_proxy.cut()

    with pytest.raises(VaultConnectionError):
        client.get_secret("app", "key", fallback_env="FALLBACK")

    monkeypatch.setenv("FALLBACK", "from env")
    assert client.get_secret("app", "key", fallback_env="FALLBACK") == "from env"
    assert "app#key comes from the environment's FALLBACK" in caplog.text
    assert "from env" not in caplog.text


def test_the_fallback_never_serves_after_a_denial(
    vault_server: DevServer,
    vault_mount: VaultMount,
    vault_proxy: FaultProxy,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FALLBACK", "from env")
    role = approle(vault_server, may_read(vault_mount, "other"))
    client = new_client(
        vault_mount, vault_proxy, tmp_path, VAULT_TOKEN=None, VAULT_AUTH=role
    )

    with pytest.raises(VaultPermissionError) as caught:
        client.get_secret("app", "key", "FALLBACK")

    # What Vault said, for who handles it.
    error = caught.value
    assert (error.status, error.path) == (403, f"{vault_mount.name}/app")
    assert "permission denied" in error.errors[0]


def test_the_fallback_does_not_stay_when_vault_is_back(
    vault_mount: VaultMount, vault_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault_mount.write("app", {"key": "old"})
    monkeypatch.setenv("FALLBACK", "from env")
    app = start_app(vault_mount.config(VAULT_ADDR=vault_proxy.address))
    vault_proxy.cut()

    with app.app_context():
        assert get_secret("app", "key", "FALLBACK") == "from env"
        vault_proxy.heal()
        assert get_secret("app", "key", "FALLBACK") == "old"


def test_list_secrets(client: VaultClient, vault_mount: VaultMount) -> None:
    vault_mount.write("team/a b", {"x": "1"})

    assert client.list_secrets() == ["app", "team/"]
    assert client.list_secrets("team") == client.list_secrets("team/") == ["a b"]
    assert client.list_secrets(f"/{vault_mount.name}/team") == ["a b"]

    with pytest.raises(SecretNotFoundError):
        client.list_secrets("gone")


# Writing.


def test_set_secret_merges(client: VaultClient, vault_mount: VaultMount) -> None:
    assert client.set_secret("app", {"key": "new", "more": {"a": 1}}) == 2
    assert vault_mount.read("app") == {"key": "new", "other": "o", "more": {"a": 1}}
    assert client.get_secret("app", "key") == "new"


def test_set_secret_replaces_on_request(
    client: VaultClient, vault_mount: VaultMount
) -> None:
    client.set_secret("app", {"key": "new"}, replace=True)

    assert vault_mount.read("app") == {"key": "new"}


def test_set_secret_makes_a_document(
    client: VaultClient, vault_mount: VaultMount
) -> None:
    assert client.set_secret("fresh", {"x": "1"}) == 1
    assert client.set_secret("fresh2", {"x": "1"}, cas=0) == 1


def test_set_secret_after_a_deletion(
    client: VaultClient, vault_mount: VaultMount, vault_server: DevServer
) -> None:
    kv = vault_server.client().secrets.kv.v2
    kv.delete_latest_version_of_secret("app", mount_point=vault_mount.name)

    assert client.set_secret("app", {"x": "1"}) == 2
    assert vault_mount.read("app") == {"x": "1"}


def test_cas_is_the_version_that_must_be_there(
    client: VaultClient, vault_mount: VaultMount
) -> None:
    assert client.set_secret("app", {"key": "new"}, cas=1) == 2

    for cas in (0, 1, 3):
        with pytest.raises(CheckAndSetError) as caught:
            client.set_secret("app", {"key": "lost"}, cas=cas)

        assert f"not at version {cas} any more" in str(caught.value)

    assert vault_mount.read("app")["key"] == "new"


def test_a_second_writer_loses_nothing(
    client: VaultClient, vault_mount: VaultMount, vault_proxy: FaultProxy
) -> None:
    """Who comes between the read and the write is merged, not overwritten."""
    before_each_write(
        vault_proxy, lambda: vault_mount.write("app", {"key": "old", "theirs": "t"})
    )

    assert client.set_secret("app", {"ours": "o"}) == 3
    assert vault_mount.read("app") == {"key": "old", "theirs": "t", "ours": "o"}


def test_a_second_writer_is_told_when_the_caller_named_a_version(
    client: VaultClient, vault_mount: VaultMount, vault_proxy: FaultProxy
) -> None:
    before_each_write(vault_proxy, lambda: vault_mount.write("app", {"theirs": "t"}))

    with pytest.raises(CheckAndSetError):
        client.set_secret("app", {"ours": "o"}, cas=1)

    assert vault_mount.read("app") == {"theirs": "t"}
    assert sum(is_write(request) for request in vault_proxy.requests) == 1


def test_writers_that_never_end_are_given_up_on(
    client: VaultClient, vault_mount: VaultMount, vault_proxy: FaultProxy
) -> None:
    before_each_write(
        vault_proxy, lambda: vault_mount.write("app", {"theirs": "t"}), times=100
    )

    with pytest.raises(CheckAndSetError):
        client.set_secret("app", {"ours": "o"})

    assert sum(is_write(request) for request in vault_proxy.requests) <= 10


def test_writers_of_different_fields_all_arrive(
    client: VaultClient, vault_mount: VaultMount
) -> None:
    at_once(4, lambda i: client.set_secret("app", {f"field{i}": str(i)}))

    assert vault_mount.read("app") == {
        "key": "old",
        "other": "o",
        **{f"field{i}": str(i) for i in range(4)},
    }


Fault = t.Callable[[FaultProxy, VaultMount], None]


def answer_dropped(proxy: FaultProxy, mount: VaultMount) -> None:
    proxy.drop_reply(match=is_write)


def gateway_gave_up(proxy: FaultProxy, mount: VaultMount) -> None:
    """It passed the write on, and did not wait for the answer."""

    def hook(request: RecordedRequest) -> bool:
        if is_write(request):
            mount.write("app", {"key": "new", "other": "o"})

        return is_write(request)

    proxy.answer(504, times=1, match=hook)


@pytest.mark.parametrize("fault", [answer_dropped, gateway_gave_up])
def test_a_write_whose_answer_was_lost_is_looked_up(
    fault: Fault,
    client: VaultClient,
    vault_mount: VaultMount,
    vault_proxy: FaultProxy,
) -> None:
    fault(vault_proxy, vault_mount)

    assert client.set_secret("app", {"key": "new"}) == 2
    assert vault_mount.read("app") == {"key": "new", "other": "o"}
    assert client.get_secret("app", "key") == "new"


def test_a_write_that_did_not_arrive_is_an_error(
    client: VaultClient, vault_mount: VaultMount, vault_proxy: FaultProxy
) -> None:
    vault_proxy.answer(503, match=is_write)

    with pytest.raises(VaultUnavailableError):
        client.set_secret("app", {"key": "new"})

    assert client.get_secret("app", "key") == "old"


@pytest.mark.parametrize(
    ("path", "data"),
    [
        ("app#key", {"key": "x"}),
        ("a//b", {"key": "x"}),
        ("app", {"": "x"}),
        ("app", {"_rotation": "x"}),
        ("app", {1: "x"}),
    ],
)
def test_what_cannot_be_written(
    path: str,
    data: dict[t.Any, t.Any],
    client: VaultClient,
    vault_mount: VaultMount,
) -> None:
    with pytest.raises(VaultConfigError):
        client.set_secret(path, data)

    assert vault_mount.read("app") == {"key": "old", "other": "o"}


@pytest.mark.parametrize(
    "value",
    [b"canary-c0de", {"canary-c0de"}, datetime.date(2025, 1, 1), math.nan],
    ids=["bytes", "set", "date", "nan"],
)
def test_a_value_that_json_cannot_hold_is_a_mistake_of_the_callers(
    value: object, client: VaultClient, vault_mount: VaultMount
) -> None:
    with pytest.raises((VaultConfigError, SecretValueError)) as caught:
        client.set_secret("app", {"key": value})

    assert "'key'" in str(caught.value)
    assert "canary-c0de" not in str(caught.value)
    assert vault_mount.read("app")["key"] == "old"


def test_a_denied_write_names_the_right_that_it_needs(
    vault_server: DevServer,
    vault_mount: VaultMount,
    vault_proxy: FaultProxy,
    tmp_path: pathlib.Path,
) -> None:
    vault_mount.write("app", {"key": "old"})
    role = approle(vault_server, may_read(vault_mount))
    client = new_client(
        vault_mount, vault_proxy, tmp_path, VAULT_TOKEN=None, VAULT_AUTH=role
    )

    with pytest.raises(VaultPermissionError) as caught:
        client.set_secret("app", {"key": "new"})

    assert f"'create, update' on '{vault_mount.name}/data/app'" in str(caught.value)


def test_kv_version_1_has_no_check_and_set(v1_client: VaultClient) -> None:
    assert v1_client.set_secret("app", {"key": "new"}) is None
    assert v1_client.get_secret("app") == {"key": "new", "other": "o"}

    with pytest.raises(VaultConfigError, match="call without 'cas'"):
        v1_client.set_secret("app", {"key": "newer"}, cas=1)

    assert v1_client.get_secret("app", "key", use_cache=False) == "new"


# Rotation and its reversal.


def test_rotate_secret_makes_a_new_value_and_keeps_the_old_one_in_a_backup(
    client: VaultClient, vault_mount: VaultMount
) -> None:
    rotated = client.rotate_secret("app", "key")
    new = vault_mount.read("app")

    # As the entry's generator says; the rest of the document stays.
    assert len(bytes.fromhex(new["key"])) == 16
    assert new["other"] == "o"
    assert client.get_secret("app", "key") == new["key"]
    assert (rotated.fields, rotated.previous_version, rotated.version) == (
        ("key",),
        1,
        2,
    )

    restored = client.restore_secret(str(rotated.backup))

    assert vault_mount.read("app") == {"key": "old", "other": "o"}
    assert client.get_secret("app", "key") == "old"
    assert (restored.previous_version, restored.version) == (2, 3)
    # What the restoration replaced can be brought back in its turn.
    client.restore_secret(str(restored.backup))
    assert vault_mount.read("app")["key"] == new["key"]


def test_rotate_secret_with_a_given_value_and_without_an_entry(
    client: VaultClient, vault_mount: VaultMount
) -> None:
    client.rotate_secret("app", "key", new_value="given")
    client.rotate_secret("app", "other")

    stored = vault_mount.read("app")
    assert stored["key"] == "given"
    assert len(stored["other"]) >= 32


def test_a_value_that_would_not_change_is_no_rotation(
    client: VaultClient, vault_mount: VaultMount
) -> None:
    with pytest.raises(AlreadyRotatedError, match="nothing was changed"):
        client.rotate_secret("app", "key", new_value="old")


@pytest.mark.parametrize(
    ("path", "field", "kind"),
    [
        ("gone", "x", SecretNotFoundError),
        ("app", "gone", SecretFieldError),
        ("app", "_rotation", VaultError),
        ("app#key", "key", VaultConfigError),
        ("../app", "key", VaultConfigError),
    ],
)
def test_what_cannot_be_rotated(
    path: str,
    field: str,
    kind: type[VaultError],
    client: VaultClient,
    vault_mount: VaultMount,
) -> None:
    with pytest.raises(kind):
        client.rotate_secret(path, field)

    assert vault_mount.read("app") == {"key": "old", "other": "o"}


def test_a_password_without_its_database_is_not_rotated(
    client: VaultClient, vault_mount: VaultMount
) -> None:
    vault_mount.write("db", {"password": "old"})

    with pytest.raises(VaultConfigError, match="it is no database URL"):
        client.rotate_secret("db", "password")

    assert vault_mount.read("db") == {"password": "old"}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"VAULT_BACKUP_KEYS": ()}, "flask vault backup-key"),
        ({"VAULT_BACKUP_DIR": None}, "VAULT_BACKUP_DIR is unset"),
    ],
)
def test_without_a_backup_nothing_is_rotated_unless_that_is_wanted(
    config: dict[str, object],
    said: str,
    client: VaultClient,
    vault_mount: VaultMount,
    vault_proxy: FaultProxy,
    tmp_path: pathlib.Path,
) -> None:
    careless = new_client(vault_mount, vault_proxy, tmp_path, **config)

    with pytest.raises(BackupError) as caught:
        careless.rotate_secret("app", "key")

    assert said in str(caught.value)
    assert vault_proxy.count == 0
    assert vault_mount.read("app")["key"] == "old"

    assert careless.rotate_secret("app", "key", backup=False).backup is None
    assert vault_mount.read("app")["key"] != "old"


@pytest.mark.parametrize("fault", [answer_dropped, gateway_gave_up])
def test_a_rotation_whose_answer_was_lost_is_looked_up(
    fault: Fault,
    client: VaultClient,
    vault_mount: VaultMount,
    vault_proxy: FaultProxy,
) -> None:
    fault(vault_proxy, vault_mount)

    rotated = client.rotate_secret("app", "key", new_value="new")

    assert vault_mount.read("app") == {"key": "new", "other": "o"}
    assert rotated.version == 2
    assert client.get_secret("app", "key") == "new"


def test_a_rotation_on_kv_version_1_whose_answer_was_lost_is_looked_up(
    v1_client: VaultClient, vault_proxy: FaultProxy
) -> None:
    vault_proxy.drop_reply(match=is_write)

    rotated = v1_client.rotate_secret("app", "key", new_value="new")

    assert rotated.version is None
    assert v1_client.get_secret("app", "key", use_cache=False) == "new"


def test_a_rotation_that_did_not_arrive_changes_nothing(
    client: VaultClient, vault_mount: VaultMount, vault_proxy: FaultProxy
) -> None:
    vault_proxy.answer(503, match=is_write)

    with pytest.raises(VaultUnavailableError):
        client.rotate_secret("app", "key")

    assert vault_mount.read("app")["key"] == "old"
    assert client.get_secret("app", "key") == "old"


def test_a_rotation_on_top_of_another_writer_keeps_what_that_one_wrote(
    client: VaultClient, vault_mount: VaultMount, vault_proxy: FaultProxy
) -> None:
    before_each_write(
        vault_proxy, lambda: vault_mount.write("app", {"key": "old", "theirs": "t"})
    )

    rotated = client.rotate_secret("app", "key", new_value="new")

    assert vault_mount.read("app") == {"key": "new", "theirs": "t"}
    assert (rotated.previous_version, rotated.version) == (2, 3)
    # The backup is of what was really replaced.
    client.restore_secret(str(rotated.backup))
    assert vault_mount.read("app") == {"key": "old", "theirs": "t"}


def test_of_two_rotations_at_once_one_is_told_that_it_came_late(
    client: VaultClient,
    vault_mount: VaultMount,
    vault_proxy: FaultProxy,
    tmp_path: pathlib.Path,
) -> None:
    other = new_client(
        vault_mount, vault_proxy, tmp_path, VAULT_ADDR=vault_mount.address
    )
    done: list[Rotated] = []
    before_each_write(
        vault_proxy, lambda: done.append(other.rotate_secret("app", "key"))
    )

    with pytest.raises(AlreadyRotatedError, match="by somebody else"):
        client.rotate_secret("app", "key")

    assert len(done) == 1
    assert vault_mount.read("app")["key"] == other.get_secret("app", "key")
    assert client.get_secret("app", "key", use_cache=False) == (
        other.get_secret("app", "key")
    )


def test_eight_rotations_at_once_leave_the_value_of_one_that_succeeded(
    client: VaultClient, vault_mount: VaultMount
) -> None:
    ends = at_once(8, lambda i: client.rotate_secret("app", "key", new_value=f"v{i}"))
    done = [f"v{i}" for i, end in enumerate(ends) if isinstance(end, Rotated)]

    assert vault_mount.read("app")["key"] in done
    assert {type(end) for end in ends} <= {Rotated, AlreadyRotatedError}
    assert client.get_secret("app", "key") == vault_mount.read("app")["key"]


def test_a_deleted_document_comes_back_whole(
    client: VaultClient, vault_mount: VaultMount, vault_server: DevServer
) -> None:
    kv = vault_server.client().secrets.kv.v2
    backup = str(client.rotate_secret("app", "key").backup)

    kv.delete_latest_version_of_secret("app", mount_point=vault_mount.name)
    client.restore_secret(backup)
    assert vault_mount.read("app") == {"key": "old", "other": "o"}

    kv.delete_metadata_and_all_versions("app", mount_point=vault_mount.name)
    client.restore_secret(backup)
    assert vault_mount.read("app") == {"key": "old", "other": "o"}


def test_a_document_of_kv_version_1_is_rotated_and_restored(
    v1_client: VaultClient, vault_server: DevServer
) -> None:
    rotated = v1_client.rotate_secret("app", "key")
    assert v1_client.get_secret("app", "key", use_cache=False) != "old"

    v1_client.restore_secret(str(rotated.backup))
    assert v1_client.get_secret("app", use_cache=False) == {"key": "old", "other": "o"}


def test_a_deleted_document_of_kv_version_1_comes_back_whole(
    v1_client: VaultClient, vault_server: DevServer
) -> None:
    backup = str(v1_client.rotate_secret("app", "key").backup)
    vault_server.client().secrets.kv.v1.delete_secret(
        "app", mount_point=v1_client.settings.mount
    )

    v1_client.restore_secret(backup)

    assert v1_client.get_secret("app", use_cache=False) == {"key": "old", "other": "o"}


def test_restore_refuses_what_is_not_ours(
    client: VaultClient,
    vault_mount: VaultMount,
    vault_proxy: FaultProxy,
    tmp_path: pathlib.Path,
) -> None:
    vault_mount.write("foreign", {"key": "old"})
    backup = str(client.rotate_secret("foreign", "key").backup)
    before = vault_mount.read("foreign")

    another = new_client(vault_mount, vault_proxy, tmp_path, VAULT_PREFIX="another")

    with pytest.raises(RotationError, match="no entry of VAULT_SECRETS names"):
        another.restore_secret(backup)

    for name in ("gone.json", "../app.json", "/etc/passwd", ""):
        with pytest.raises(BackupError):
            client.restore_secret(name)

    stranger = new_client(
        vault_mount, vault_proxy, tmp_path, VAULT_BACKUP_KEYS=["o" * 42 + "A="]
    )

    with pytest.raises(BackupError, match="VAULT_BACKUP_KEYS"):
        stranger.restore_secret(backup)

    backup = str(client.rotate_secret("app", "key").backup)
    elsewhere = new_client(vault_mount, vault_proxy, tmp_path, VAULT_NAMESPACE="team")

    with pytest.raises(RotationError, match="in the namespace None"):
        elsewhere.restore_secret(backup)

    assert vault_mount.read("foreign") == before
    assert vault_mount.read("app")["key"] != "old"


def test_a_restoration_that_would_change_nothing_is_none(client: VaultClient) -> None:
    backup = str(client.rotate_secret("app", "key").backup)
    client.restore_secret(backup)

    with pytest.raises(AlreadyRotatedError, match="already"):
        client.restore_secret(backup)


def test_a_listener_hears_of_rotations_and_restorations(client: VaultClient) -> None:
    heard: list[Rotated] = []
    client.on_rotated(heard.append)
    backup = client.rotate_secret("app", "key").backup
    client.restore_secret(str(backup))

    assert [r.version for r in heard] == [2, 3]


# Health.


def test_health_check_of_a_server_that_is_well(
    client: VaultClient, vault_server: DevServer
) -> None:
    client.get_secret("app")
    health = client.health_check()

    assert health.pop("vault_version")
    assert health == {
        "enabled": True,
        "vault_available": True,
        "vault_initialized": True,
        "vault_sealed": False,
        "vault_standby": False,
        "authenticated": True,
        "token_ttl": None,
        "cache_size": 1,
        "failing": 0,
        "error": None,
    }


def test_health_check_tells_how_long_the_token_lives(
    vault_server: DevServer,
    vault_mount: VaultMount,
    vault_proxy: FaultProxy,
    tmp_path: pathlib.Path,
) -> None:
    role = approle(vault_server, may_read(vault_mount), token_ttl="600s")
    client = new_client(
        vault_mount, vault_proxy, tmp_path, VAULT_TOKEN=None, VAULT_AUTH=role
    )

    assert 590 <= client.health_check()["token_ttl"] <= 600


def test_health_check_never_raises(
    client: VaultClient,
    vault_mount: VaultMount,
    vault_proxy: FaultProxy,
    tmp_path: pathlib.Path,
) -> None:
    wrong = new_client(vault_mount, vault_proxy, tmp_path, VAULT_TOKEN="wrong")
    health = wrong.health_check()
    assert health["vault_available"] is True
    assert health["authenticated"] is False
    assert health["error"] == "VaultLoginError"

    vault_proxy.answer(200, "<html>")
    health = client.health_check()
    assert health["vault_available"] is False
    assert health["authenticated"] is None
    assert health["error"] == VaultResponseError.__name__

    vault_proxy.cut()
    health = client.health_check()
    assert health["vault_available"] is False
    assert health["vault_sealed"] is None
    assert health["error"] == VaultConnectionError.__name__


def test_health_check_of_a_sealed_server() -> None:
    with DevServer() as server:
        client = VaultClient.from_mapping(server.environ(), {})
        server.seal()
        health = client.health_check()

    assert health["vault_available"] is True
    assert health["vault_sealed"] is True
    assert health["authenticated"] is None
    assert health["error"] is None


def test_health_check_of_a_server_that_is_not_initialized() -> None:
    with DevServer(storage="raft", initialize=False) as server:
        config = {"VAULT_ADDR": server.address, "VAULT_TOKEN": "x"}
        health = VaultClient.from_mapping(config, {}).health_check()

    assert health["vault_available"] is True
    assert health["vault_initialized"] is False
    assert health["authenticated"] is None


def test_an_address_may_have_a_path(
    vault_mount: VaultMount, vault_proxy: FaultProxy, tmp_path: pathlib.Path
) -> None:
    """Of a gateway that has more behind it than Vault."""
    address = f"{vault_proxy.address}/vault/"
    client = new_client(vault_mount, vault_proxy, tmp_path, VAULT_ADDR=address)

    with pytest.raises(VaultError):
        client.get_secret("app")

    assert vault_proxy.requests[0].path.startswith("/vault/v1/sys/internal/ui/")


# Answers that are not Vault's.


def test_a_redirect_takes_the_token_nowhere(
    client: VaultClient, vault_server: DevServer, vault_proxy: FaultProxy
) -> None:
    with FaultProxy(vault_server.address) as stranger:
        for status, kind in {
            301: VaultResponseError,
            302: VaultResponseError,
            # A standby's word for its leader, which may come back.
            307: VaultUnavailableError,
            308: VaultResponseError,
        }.items():
            vault_proxy.answer(status, headers={"Location": stranger.address})

            for call in (
                lambda: client.get_secret("app", "key", use_cache=False),
                lambda: client.set_secret("app", {"key": "x"}),
            ):
                with pytest.raises(kind, match="not followed"):
                    call()

        assert stranger.connections == 0


@pytest.mark.parametrize(
    "body",
    ["", "null", "[]", '"text"', "{", "<html>", '{"data": null}', "{}", b"\xff"]
    + [pytest.param("[" * 100_000, id="nested")],
)
def test_a_200_that_is_no_document_is_an_error(
    body: str | bytes, client: VaultClient, vault_proxy: FaultProxy
) -> None:
    client.get_secret("app")
    vault_proxy.answer(200, body, match="/data/")

    with pytest.raises(VaultResponseError):
        client.get_secret("app", "key", use_cache=False)


@pytest.mark.parametrize(
    "body",
    [
        '{"data": {"data": {"key": "x"}, "metadata": {}}}',
        '{"data": {"data": {"key": "x"}, "metadata": {"version": "two"}}}',
        '{"data": {"data": {"key": "x"}, "metadata": {"version": null}}}',
    ],
)
def test_a_document_without_a_version_is_an_error(
    body: str, client: VaultClient, vault_proxy: FaultProxy
) -> None:
    client.get_secret("app")
    vault_proxy.answer(200, body, match="/data/")

    with pytest.raises(VaultResponseError):
        client.get_secret("app", "key", use_cache=False)


def test_silence_ends_after_the_timeout(
    client: VaultClient,
    vault_mount: VaultMount,
    vault_proxy: FaultProxy,
    tmp_path: pathlib.Path,
) -> None:
    hasty = new_client(vault_mount, vault_proxy, tmp_path, VAULT_READ_TIMEOUT=0.1)
    vault_proxy.hang()

    with pytest.raises(VaultConnectionError, match="did not answer in time"):
        hasty.get_secret("app", "key")


def test_a_version_that_was_destroyed_is_told_apart(
    client: VaultClient, vault_mount: VaultMount, vault_server: DevServer
) -> None:
    kv = vault_server.client().secrets.kv.v2
    kv.destroy_secret_versions("app", [1], mount_point=vault_mount.name)

    with pytest.raises(SecretVersionError) as caught:
        client.get_secret("app", "key")

    assert caught.value.metadata is not None
    assert caught.value.metadata["destroyed"] is True


# The object itself.


def test_it_asks_nothing_before_it_is_asked(
    client: VaultClient, vault_proxy: FaultProxy
) -> None:
    assert repr(client) == f"<VaultClient {vault_proxy.address}>"
    assert vault_proxy.connections == 0


def test_sixty_four_threads_share_eight_connections(
    client: VaultClient, vault_mount: VaultMount, vault_proxy: FaultProxy
) -> None:
    for i in range(64):
        vault_mount.write(f"p{i}", {"x": f"v{i}"})

    values = at_once(64, lambda i: client.get_secret(f"p{i}", "x"))

    assert values == [f"v{i}" for i in range(64)]
    assert vault_proxy.max_connections <= 8


def test_it_ends_with_its_threads(client: VaultClient) -> None:
    client.get_secret("app")

    assert not [x for x in threading.enumerate() if x.name.startswith("flask-vault")]
