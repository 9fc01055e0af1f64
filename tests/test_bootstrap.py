"""A start while the server is away, from what the last good start has kept on disk."""

from __future__ import annotations

import datetime
import json
import logging
import os
import pathlib
import stat
import time
import typing as t

import pytest
from flask import Flask

from flask_vault import BackupError
from flask_vault import SecretNotFoundError
from flask_vault import VaultConfigError
from flask_vault import VaultConnectionError
from flask_vault import VaultError
from flask_vault import VaultLoginError
from flask_vault import VaultPermissionError
from flask_vault import VaultSealedError
from flask_vault.bootstrap import BootstrapCache
from flask_vault.testing import DevServer
from flask_vault.testing import FaultProxy
from flask_vault.testing.plugin import VaultMount
from flask_vault.vault.documents import Document
from flask_vault.vault.documents import Location
from tests.helpers import approle
from tests.helpers import BACKUP_KEY
from tests.helpers import may_read
from tests.helpers import new_app
from tests.helpers import refused
from tests.helpers import start_app

CANARY = "canary-90c2"
OTHER_KEY = "o" * 42 + "A="
SEALED = {"errors": ["Vault is sealed"]}
SECRETS = {
    "X": "app#x",
    "Y": {"ref": "app#y", "version": 1},
    "WHOLE": {"ref": "more", "cast": "json"},
}
HOUR = 3600.0


@pytest.fixture(autouse=True)
def _documents(vault_mount: VaultMount) -> None:
    vault_mount.write("app", {"x": "old", "y": "seven"})
    vault_mount.write("app", {"x": CANARY, "y": "eight"})
    vault_mount.write("more", {"list": [1, None, "ü"]})


@pytest.fixture
def file(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "state" / "vault.cache"


@pytest.fixture
def config(
    vault_server: DevServer,
    vault_mount: VaultMount,
    vault_proxy: FaultProxy,
    file: pathlib.Path,
) -> dict[str, object]:
    return vault_mount.config(
        VAULT_ADDR=vault_proxy.address,
        VAULT_TOKEN=None,
        VAULT_AUTH=approle(vault_server, may_read(vault_mount)),
        VAULT_SECRETS=SECRETS,
        VAULT_BOOTSTRAP_CACHE=str(file),
        VAULT_BACKUP_KEYS=[BACKUP_KEY],
        VAULT_READ_TIMEOUT=0.3,
        VAULT_STARTUP_TIMEOUT=0.5,
        VAULT_CACHE_TTL=0,
        VAULT_HEALTH_DETAILS="always",
    )


def values(app: Flask) -> list[object]:
    return [app.config[key] for key in SECRETS]


GOOD = [CANARY, "seven", {"list": [1, None, "ü"]}]


def health(app: Flask) -> t.Any:
    return json.loads(app.test_client().get("/vault/health").data)


# A start without the server.


def test_an_app_starts_from_its_cache_when_the_server_is_sealed(
    config: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    """A real one, and no waiting for what only a person can change."""
    with DevServer() as server, FaultProxy(server.address) as proxy:
        mount = VaultMount("secret", server.address, server.root_token)
        mount.write("app", {"x": "v"})
        config |= mount.config(VAULT_ADDR=proxy.address, VAULT_SECRETS={"X": "app#x"})
        config |= {"VAULT_AUTH": None, "VAULT_STARTUP_TIMEOUT": 30}
        start_app(config)
        server.seal()

        began = time.monotonic()
        app = start_app(config)
        assert time.monotonic() - began < 2

        assert app.config["X"] == "v"
        assert "Vault does not answer: 1 of 1 documents come from" in caplog.text

        server.unseal()
        client = app.extensions["vault"].client
        assert client.get_secret("app", "x", use_cache=False) == "v"


@pytest.mark.parametrize("fault", ["gone", "silent", "sealed", "broken"])
def test_an_app_starts_from_its_cache_when_the_server_is(
    fault: str, config: dict[str, object], vault_proxy: FaultProxy
) -> None:
    assert values(start_app(config)) == GOOD

    if fault == "gone":
        vault_proxy.cut()
    elif fault == "silent":
        vault_proxy.hang()
    elif fault == "sealed":
        vault_proxy.answer(503, SEALED)
    else:
        vault_proxy.answer(502)

    began = time.monotonic()
    assert values(start_app(config)) == GOOD
    assert time.monotonic() - began < 2


def test_what_the_server_still_gives_comes_from_it(
    config: dict[str, object], vault_proxy: FaultProxy, vault_mount: VaultMount
) -> None:
    start_app(config)
    vault_mount.write("app", {"x": "new", "y": "nine"})
    vault_proxy.answer(502, match="/data/more")

    app = start_app(config)

    assert values(app) == ["new", "seven", GOOD[2]]
    sources = {k: s["source"] for k, s in health(app)["secrets"].items()}
    assert sources == {"X": "vault", "Y": "vault", "WHOLE": "cache"}


def test_operators_see_where_the_secrets_are_from_and_how_old(
    config: dict[str, object],
    vault_proxy: FaultProxy,
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = start_app(config)
    assert health(app)["status"] == "pass"
    vault_proxy.cut()

    with caplog.at_level(logging.WARNING, "flask_vault"):
        app = start_app(config)

    said = health(app)
    assert said["status"] == "warn"
    assert {s["source"] for s in said["secrets"].values()} == {"cache"}
    assert said["secrets"]["Y"]["version"] == 1
    assert "3 of 3 documents come from VAULT_BOOTSTRAP_CACHE, 0 s old" in caplog.text
    assert CANARY not in caplog.text


def test_the_app_goes_on_with_the_cache_and_recovers_by_itself(
    config: dict[str, object],
    vault_proxy: FaultProxy,
    vault_mount: VaultMount,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("flask_vault.store.RETRY_PAUSE", 0.0)
    start_app(config)
    vault_mount.write("app", {"x": "new", "y": "nine"})
    vault_proxy.cut()
    client = start_app(config).extensions["vault"].client
    assert client.get_secret("app", "x") == CANARY
    assert client.get_secret("app") == {"x": CANARY, "y": "eight"}

    with pytest.raises(VaultConnectionError):
        client.get_secret("app", "x", use_cache=False)

    vault_proxy.heal()
    assert client.get_secret("app", "x") == "new"


# A start that it is not for.


def start_refused(config: dict[str, object], kind: type[VaultError]) -> None:
    with refused(new_app(config), kind):
        start_app(config)


def test_without_a_cache_the_app_does_not_start(
    config: dict[str, object], vault_proxy: FaultProxy, file: pathlib.Path
) -> None:
    vault_proxy.answer(503, SEALED)
    start_refused(config, VaultSealedError)

    vault_proxy.heal()
    del config["VAULT_BOOTSTRAP_CACHE"]
    start_app(config)
    assert not file.parent.exists()


@pytest.mark.parametrize(
    ("status", "where", "kind"),
    [
        (403, "/data/app", VaultPermissionError),
        (403, "/data/", VaultPermissionError),
        (404, "/data/more", SecretNotFoundError),
        (403, "/login", VaultLoginError),
        (400, "/login", VaultLoginError),
    ],
)
def test_a_denial_is_an_answer(
    status: int,
    where: str,
    kind: type[VaultError],
    config: dict[str, object],
    vault_proxy: FaultProxy,
    file: pathlib.Path,
) -> None:
    start_app(config)
    kept = file.read_bytes()
    vault_proxy.answer(status, match=where)

    start_refused(config, kind)
    assert file.read_bytes() == kept


def test_a_denial_of_one_document_counts_while_another_does_not_come(
    config: dict[str, object], vault_proxy: FaultProxy
) -> None:
    start_app(config)
    vault_proxy.answer(502, match="/data/more")
    vault_proxy.answer(403, match="/data/app")

    start_refused(config, VaultPermissionError)


# A file that is not used.


@pytest.fixture
def cached(config: dict[str, object], vault_proxy: FaultProxy) -> None:
    """A good file, before a start that must not use it."""
    start_app(config)
    vault_proxy.answer(503, SEALED)


def check_unused(
    config: dict[str, object], caplog: pytest.LogCaptureFixture, said: str
) -> None:
    caplog.clear()
    start_refused(config, VaultSealedError)
    assert said in caplog.text
    assert CANARY not in caplog.text


@pytest.mark.usefixtures("cached")
@pytest.mark.parametrize("place", [0, 11, 12, 100, -17, -1])
def test_a_file_that_was_changed(
    place: int,
    config: dict[str, object],
    file: pathlib.Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    blob = bytearray(file.read_bytes())
    blob[place] ^= 1
    file.write_bytes(blob)

    check_unused(config, caplog, "damaged or was changed")


@pytest.mark.usefixtures("cached")
@pytest.mark.parametrize("size", [0, 5, 12, 20, -1])
def test_a_file_that_was_cut_off(
    size: int,
    config: dict[str, object],
    file: pathlib.Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    file.write_bytes(file.read_bytes()[:size])

    check_unused(config, caplog, "damaged or was changed")


@pytest.mark.usefixtures("cached")
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("VAULT_PREFIX", "another-app"),
        ("VAULT_MOUNT", "another-mount"),
        ("VAULT_NAMESPACE", "another-team"),
        ("VAULT_BACKUP_KEYS", [OTHER_KEY]),
    ],
)
def test_a_file_of_another_app(
    key: str,
    value: object,
    config: dict[str, object],
    caplog: pytest.LogCaptureFixture,
) -> None:
    check_unused({**config, key: value}, caplog, "of another app, environment or key")


@pytest.mark.usefixtures("cached")
def test_a_file_that_is_too_old(
    config: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    config["VAULT_BOOTSTRAP_MAX_AGE"] = 0

    check_unused(config, caplog, "VAULT_BOOTSTRAP_MAX_AGE allows")


@pytest.mark.usefixtures("cached")
@pytest.mark.parametrize("mode", [0o644, 0o640, 0o602, 0o4606])
def test_a_file_that_others_may_open(
    mode: int,
    config: dict[str, object],
    file: pathlib.Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    file.chmod(mode)

    check_unused(config, caplog, "open to other users")


@pytest.mark.usefixtures("cached")
def test_a_file_of_another_user(
    config: dict[str, object],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 54321)

    check_unused(config, caplog, "belongs to another user")


@pytest.mark.usefixtures("cached")
@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "nothing"])
def test_what_is_no_file_at_all(
    kind: str,
    config: dict[str, object],
    file: pathlib.Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    aside = file.rename(file.with_name("aside"))

    if kind == "link":
        file.symlink_to(aside)
    elif kind == "pipe":
        os.mkfifo(file, 0o600)
    elif kind == "folder":
        file.mkdir(0o700)

    check_unused(config, caplog, "is not used, since")


@pytest.mark.usefixtures("cached")
def test_another_entry_than_those_that_were_kept(config: dict[str, object]) -> None:
    config["VAULT_SECRETS"] = {"X": "app#x", "NEW": "never-read#x"}

    start_refused(config, VaultSealedError)


@pytest.mark.parametrize("keys", [["short"], ["k" * 44], [""], ["YQ=="]])
def test_a_key_that_is_none_is_told_with_its_config_key(
    keys: list[str], config: dict[str, object]
) -> None:
    config["VAULT_BACKUP_KEYS"] = keys

    with pytest.raises((VaultConfigError, BackupError), match="VAULT_BACKUP_KEYS"):
        start_app(config)


# The file itself.


def test_the_file_is_for_its_owner_alone_and_shows_nothing(
    config: dict[str, object], file: pathlib.Path, vault_mount: VaultMount
) -> None:
    before = os.umask(0)

    try:
        start_app(config)
    finally:
        os.umask(before)

    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert os.listdir(file.parent) == [file.name]

    for plain in (CANARY, vault_mount.name, "app", "saved"):
        assert plain.encode() not in file.read_bytes()


def test_the_key_of_backups_seals_only_backups(
    config: dict[str, object], file: pathlib.Path
) -> None:
    """Who finds a way to open one kind of file has not opened the other."""
    from base64 import urlsafe_b64decode

    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    start_app(config)
    blob = file.read_bytes()

    with pytest.raises(InvalidTag):
        AESGCM(urlsafe_b64decode(BACKUP_KEY)).decrypt(blob[:12], blob[12:], None)


def test_each_good_start_replaces_the_file(
    config: dict[str, object],
    file: pathlib.Path,
    vault_mount: VaultMount,
    vault_proxy: FaultProxy,
) -> None:
    start_app(config)
    vault_mount.write("app", {"x": "newer", "y": "one"})
    start_app(config)
    vault_proxy.cut()

    assert start_app(config).config["X"] == "newer"


def test_a_new_key_comes_first_and_the_old_one_still_opens(
    config: dict[str, object], vault_proxy: FaultProxy
) -> None:
    start_app(config)
    config["VAULT_BACKUP_KEYS"] = [OTHER_KEY, BACKUP_KEY]
    vault_proxy.cut()
    assert values(start_app(config)) == GOOD

    vault_proxy.heal()
    start_app(config)
    config["VAULT_BACKUP_KEYS"] = [OTHER_KEY]
    vault_proxy.cut()
    assert values(start_app(config)) == GOOD


def test_a_start_without_the_server_leaves_the_file_as_it_is(
    config: dict[str, object], file: pathlib.Path, vault_proxy: FaultProxy
) -> None:
    start_app(config)
    kept = file.read_bytes()
    vault_proxy.cut()

    start_app(config)

    assert file.read_bytes() == kept


def test_an_entry_that_may_be_missing_is_no_matter_for_the_others(
    config: dict[str, object], vault_proxy: FaultProxy
) -> None:
    missing = {"MISSING": {"ref": "no-such#x", "required": False}}
    config["VAULT_SECRETS"] = {**SECRETS, **missing}
    start_app(config)
    vault_proxy.cut()

    app = start_app(config)

    assert values(app) == GOOD
    assert app.config["MISSING"] is None


def test_a_write_that_fails_leaves_the_old_file_and_stops_nobody(
    config: dict[str, object],
    file: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    start_app(config)
    kept = file.read_bytes()

    def fail(*args: object) -> t.NoReturn:
        raise OSError(28, "No space left on device")

    for call in ("replace", "fsync"):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, fail)
            assert values(start_app(config)) == GOOD

        assert "cannot be written (No space left on device)" in caplog.text
        assert file.read_bytes() == kept
        assert os.listdir(file.parent) == [file.name]
        caplog.clear()


def test_a_place_that_cannot_be_written_stops_nobody(
    config: dict[str, object],
    tmp_path: pathlib.Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "file").touch()
    config["VAULT_BOOTSTRAP_CACHE"] = str(tmp_path / "file" / "cache")

    assert values(start_app(config)) == GOOD
    assert "so the next start depends on Vault" in caplog.text


def test_a_link_is_replaced_and_not_written_through(
    config: dict[str, object], file: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    target = tmp_path / "target"
    target.write_text("mine")
    file.parent.mkdir()
    file.symlink_to(target)

    start_app(config)

    assert target.read_text() == "mine"
    assert not file.is_symlink()


# Its age, by the clock of the host, which may be wrong.


@pytest.mark.parametrize(
    ("passed", "age"), [(0, 0), (HOUR, HOUR), (2 * HOUR, None), (-24 * HOUR, 0)]
)
def test_the_age_of_a_file(
    passed: float, age: float | None, file: pathlib.Path
) -> None:
    now = [datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)]
    given = [BACKUP_KEY], ("team", "secret", "shop"), 1.5 * HOUR
    cache = BootstrapCache(file, *given, now=lambda: now[0])
    place = Location("secret/shop/app", 3, "secret")
    cache.save({place: Document("secret/shop/app", {"x": "v"}, 3, now[0])})
    now[0] += datetime.timedelta(seconds=passed)

    if age is None:
        with pytest.raises(BackupError, match="is 7200 s old"):
            cache.load()
    else:
        found, told = cache.load()
        assert told == age
        assert found[place].data == {"x": "v"}
        assert (found[place].version, found[place].origin) == (3, "cache")
        assert next(iter(found)).mount == "secret"


def test_its_repr_shows_no_key(file: pathlib.Path) -> None:
    shown = repr(BootstrapCache(file, [BACKUP_KEY], (), 1))

    assert BACKUP_KEY not in shown
