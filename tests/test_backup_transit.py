"""Backups that Vault's transit engine opens (``VAULT_BACKUP_TRANSIT_KEY``).

The format is tested with a stand-in for the engine, the engine with the real one.
"""

from __future__ import annotations

import base64
import collections.abc as cabc
import json
import os
import pathlib
import secrets
import traceback
import typing as t

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from flask_vault.client import VaultClient
from flask_vault.errors import BackupError
from flask_vault.errors import VaultConfigError
from flask_vault.errors import VaultConnectionError
from flask_vault.errors import VaultError
from flask_vault.errors import VaultPermissionError
from flask_vault.errors import VaultUnavailableError
from flask_vault.rotation.backup import BackupStore
from flask_vault.rotation.upkeep import Upkeep
from flask_vault.settings import Settings
from flask_vault.testing import DevServer
from flask_vault.testing import FaultProxy
from flask_vault.testing.api import Api
from flask_vault.testing.plugin import VaultMount
from tests.helpers import approle
from tests.helpers import BACKUP_KEY

OTHER_KEY = "o" * 42 + "A="
CANARY = "canary-4b1d"
OPERATION = "1f2e3d4c" + "0" * 24


class Engine:
    """Wraps keys as the transit engine does, without a server."""

    name = "transit/backups"

    def __init__(self) -> None:
        self.key = AESGCM(secrets.token_bytes(32))
        self.version = 1
        self.failure: VaultError | None = None
        self.asked = 0

    def new_key(self) -> tuple[bytes, str]:
        self._ask()
        key, nonce = secrets.token_bytes(32), secrets.token_bytes(12)
        wrapped = base64.b64encode(nonce + self.key.encrypt(nonce, key, None)).decode()
        return key, f"vault:v{self.version}:{wrapped}"

    def unwrap(self, wrapped: str) -> bytes | None:
        self._ask()

        try:
            blob = base64.b64decode(wrapped.split(":")[2], validate=True)
            return self.key.decrypt(blob[:12], blob[12:], None)
        except Exception:
            return None

    def _ask(self) -> None:
        self.asked += 1

        if self.failure is not None:
            raise self.failure


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def directory(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "vault-backups"


def write(store: BackupStore, **changes: t.Any) -> str:
    values: dict[str, t.Any] = {
        "operation": OPERATION,
        "path": "secret/shop/flask",
        "label": "flask",
        "namespace": None,
        "fields": ["secret_key"],
        "from_version": 3,
        "before": {"secret_key": f"{CANARY}-old"},
        "after": {"secret_key": f"{CANARY}-new"},
        "kv_version": 2,
    }
    return store.write(**(values | changes)).name


# Who can open a file.


@pytest.mark.parametrize("keys", [[], [BACKUP_KEY]])
def test_the_engine_alone_opens_it(
    directory: pathlib.Path, engine: Engine, keys: list[str]
) -> None:
    name = write(BackupStore(directory, keys, engine))

    backup = BackupStore(directory, [], engine).read(name)
    assert backup.before == {"secret_key": f"{CANARY}-old"}
    assert backup.after == {"secret_key": f"{CANARY}-new"}
    assert CANARY not in (directory / name).read_text() + repr(backup)


def test_a_key_of_the_list_alone_opens_it_and_the_engine_is_not_asked(
    directory: pathlib.Path, engine: Engine
) -> None:
    """As after the loss of Vault."""
    name = write(BackupStore(directory, [BACKUP_KEY], engine))
    engine.failure = VaultConnectionError("nobody there")
    asked = engine.asked

    for store in (
        BackupStore(directory, [OTHER_KEY, BACKUP_KEY]),
        BackupStore(directory, [BACKUP_KEY], engine),
    ):
        assert store.read(name).before["secret_key"] == f"{CANARY}-old"

    assert engine.asked == asked


def test_verify_names_each_key_that_opened_it(
    directory: pathlib.Path, engine: Engine
) -> None:
    write(BackupStore(directory, [BACKUP_KEY], engine))
    keys = [OTHER_KEY, BACKUP_KEY]

    (info,) = BackupStore(directory, keys, engine).list(verify=True, every_key=True)
    assert info.opened_by == ("VAULT_BACKUP_KEYS[1]", "transit/backups")

    (info,) = BackupStore(directory, keys).list(verify=True, every_key=True)
    assert info.opened_by == ("VAULT_BACKUP_KEYS[1]",)

    engine.key = AESGCM(secrets.token_bytes(32))
    (info,) = BackupStore(directory, keys, engine).list(verify=True, every_key=True)
    assert info.opened_by == ("VAULT_BACKUP_KEYS[1]",)


def test_the_engine_is_asked_only_when_it_has_to_be(
    directory: pathlib.Path, engine: Engine
) -> None:
    """So that what needs a good file, such as a retention, needs no Vault."""
    store = BackupStore(directory, [BACKUP_KEY], engine)
    write(store)
    engine.failure = VaultConnectionError("nobody there")

    (info,) = store.list(verify=True)
    assert info.opened_by == ("VAULT_BACKUP_KEYS[0]",)
    assert info.failure is None


def test_files_from_before_the_engine_stay_readable(
    directory: pathlib.Path, engine: Engine
) -> None:
    old = write(BackupStore(directory, [BACKUP_KEY]))
    store = BackupStore(directory, [BACKUP_KEY], engine)

    assert json.loads((directory / old).read_text())["version"] == 1
    assert store.read(old).before["secret_key"] == f"{CANARY}-old"
    assert json.loads((directory / write(store)).read_text())["version"] == 2
    assert engine.asked == 1, "to make the new one"


def test_without_the_engine_the_format_is_the_old_one(directory: pathlib.Path) -> None:
    """So that a release that came before can read it."""
    name = write(BackupStore(directory, [BACKUP_KEY]))

    assert list(json.loads((directory / name).read_text())) == [
        "format",
        "version",
        "key_id",
        "header",
        "nonce",
        "ciphertext",
    ]


def test_what_a_file_names_is_not_sent_to_another_key(
    directory: pathlib.Path, engine: Engine
) -> None:
    name = write(BackupStore(directory, [], engine))
    other = Engine()
    other.name = "transit/other"
    store = BackupStore(directory, [OTHER_KEY], other)

    with pytest.raises(BackupError, match="cannot be decrypted"):
        store.read(name)

    (info,) = store.list()
    assert info.problem is not None and "'transit/backups'" in info.problem
    assert other.asked == 0


def test_the_documented_format_can_be_decrypted_by_hand(
    directory: pathlib.Path, engine: Engine
) -> None:
    """Someone may have the file and a key, and no Flask-Vault."""
    import hmac

    name = write(BackupStore(directory, [BACKUP_KEY], engine))
    content = json.loads((directory / name).read_text())
    nonce = base64.b64decode(content.pop("nonce"))
    ciphertext = base64.b64decode(content.pop("ciphertext"))
    raw = base64.urlsafe_b64decode(BACKUP_KEY)

    def associated(*names: str) -> bytes:
        part = {name: content[name] for name in names}
        return json.dumps(part, sort_keys=True, separators=(",", ":")).encode()

    local = content["local"]
    key = AESGCM(hmac.digest(raw, b"flask-vault-backup 2 wrap", "sha256")).decrypt(
        base64.b64decode(local["nonce"]),
        base64.b64decode(local["wrapped"]),
        associated("format", "version", "header"),
    )
    assert key == engine.unwrap(content["transit"]["wrapped"])
    plain = AESGCM(key).decrypt(nonce, ciphertext, associated(*content))
    assert json.loads(plain)["before"] == {"secret_key": f"{CANARY}-old"}


# What was changed, or put together from two files.


@pytest.mark.parametrize("keys", [[], [BACKUP_KEY]], ids=["engine", "both"])
def test_every_bit_of_the_file_counts(
    directory: pathlib.Path, engine: Engine, keys: list[str]
) -> None:
    """Header, wrapped keys, white space, nonces, cipher text, base64's spare bits."""
    store = BackupStore(directory, keys, engine)
    file = directory / write(store)
    good = file.read_bytes()

    for position in range(len(good)):
        for bit in range(8):
            bad = bytearray(good)
            bad[position] ^= 1 << bit
            file.write_bytes(bad)

            with pytest.raises(BackupError, match="cannot be decrypted"):
                store.read(file.name)

    for size in range(len(good)):
        file.write_bytes(good[:size])

        with pytest.raises(BackupError, match="cannot be decrypted"):
            store.read(file.name)

    file.write_bytes(good)
    assert store.read(file.name).before["secret_key"] == f"{CANARY}-old"


@pytest.mark.parametrize("part", ["header", "transit", "local", "nonce", "ciphertext"])
@pytest.mark.parametrize("keys", [[], [BACKUP_KEY]], ids=["engine", "both"])
def test_no_part_can_come_from_another_backup(
    directory: pathlib.Path, engine: Engine, part: str, keys: list[str]
) -> None:
    store = BackupStore(directory, [BACKUP_KEY], engine)
    file = directory / write(store)
    other = directory / write(store, path="secret/shop/other", before={"n": 1})
    content = json.loads(file.read_text())
    content[part] = json.loads(other.read_text())[part]
    file.write_text(json.dumps(content, indent=2) + "\n")

    with pytest.raises(BackupError, match="cannot be decrypted"):
        BackupStore(directory, keys, engine).read(file.name)


@pytest.mark.parametrize(
    "change",
    [
        {"local": None},
        {"transit": None},
        {"transit": {"key": "transit/backups"}},
        {"transit": {"key": "a\nb", "wrapped": "vault:v1:AAAA"}},
        {"transit": {"key": "transit/backups", "wrapped": "\x1b[2J"}},
        {"transit": {"key": "transit/backups", "wrapped": "A" * 10_000}},
        {"transit": {"key": ["transit"], "wrapped": 1}},
        {"local": {"key_id": "a", "nonce": "", "wrapped": ""}},
        {"local": []},
        {"version": 1},
        {"version": 3},
        {"key_id": "0" * 16},
    ],
    ids=str,
)
def test_keys_that_are_none_are_refused(
    directory: pathlib.Path, engine: Engine, change: dict[str, object]
) -> None:
    store = BackupStore(directory, [BACKUP_KEY], engine)
    file = directory / write(store)
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, **change}, indent=2) + "\n")

    with pytest.raises(BackupError, match="cannot be decrypted"):
        store.read(file.name)


def test_who_may_use_the_engine_can_seal_what_is_no_backup(
    directory: pathlib.Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = BackupStore(directory, [], engine)
    name = write(store)

    for plain in (
        b"[]",
        b"{}",
        b'{"before": [], "after": {}}',
        b"\xff",
        b'{"before": 1}',
        b"[" * 100_000,
    ):
        monkeypatch.setattr(AESGCM, "decrypt", lambda *args, p=plain: p)

        with pytest.raises(BackupError, match="cannot be decrypted"):
            store.read(name)

        monkeypatch.undo()


# The engine fails.


def test_a_silence_is_waited_for_once(directory: pathlib.Path, engine: Engine) -> None:
    store = BackupStore(directory, [BACKUP_KEY], engine)
    names = {write(store) for _ in range(5)}
    engine.failure = VaultConnectionError("nobody there")
    engine.asked = 0

    infos = store.list(verify=True, every_key=True)
    assert {info.name for info in infos if info.verified} == names
    assert {info.failure for info in infos} == {engine.failure}
    assert engine.asked == 1

    infos = BackupStore(directory, [], engine).list(verify=True, every_key=True)
    assert not any(info.verified for info in infos)
    assert {info.failure for info in infos} == {engine.failure}


@pytest.mark.parametrize("call", ["new_key", "unwrap"])
@pytest.mark.parametrize("keys", [[], [BACKUP_KEY]], ids=["engine", "both"])
def test_check_finds_that_the_engine_does_not_do_what_a_restore_needs(
    directory: pathlib.Path,
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    keys: list[str],
) -> None:
    failure = VaultPermissionError("denied")

    def fails(*args: object) -> t.NoReturn:
        raise failure

    monkeypatch.setattr(engine, call, fails)

    with pytest.raises(VaultPermissionError):
        BackupStore(directory, keys, engine).check()

    assert not directory.exists() or os.listdir(directory) == []


def test_no_file_is_left_when_it_cannot_be_opened_again(
    directory: pathlib.Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = BackupStore(directory, [], engine)
    monkeypatch.setattr(engine, "unwrap", lambda wrapped: None)

    for call in (store.check, lambda: write(store)):
        with pytest.raises(BackupError, match="could not be read back"):
            call()

    assert os.listdir(directory) == []


# The real engine.


@pytest.fixture
def transit(vault_server: DevServer) -> cabc.Iterator[str]:
    """The name of a transit engine with the key ``backups``."""
    name = f"transit-{secrets.token_hex(6)}"
    _call(vault_server, f"sys/mounts/{name}", {"type": "transit"})
    _call(vault_server, f"{name}/keys/backups")
    yield name
    vault_server.disable_mount(name)


def _call(server: DevServer, path: str, body: object = None) -> None:
    Api(server.address).call("POST", path, body or {}, token=server.root_token)


def may_use(transit: str, *routes: str) -> str:
    return "".join(
        f'path "{transit}/{route}/backups" {{ capabilities = ["update"] }}\n'
        for route in routes
    )


class Shop(t.NamedTuple):
    mount: VaultMount
    directory: pathlib.Path
    transit: str

    def client(self, **config: object) -> VaultClient:
        return VaultClient.from_mapping(
            {
                **self.mount.config(),
                "VAULT_SECRETS": {"SECRET_KEY": "flask#secret_key"},
                "VAULT_BACKUP_DIR": str(self.directory),
                "VAULT_BACKUP_TRANSIT_KEY": f"{self.transit}/backups",
                **config,
            },
            {},
        )


@pytest.fixture
def shop(vault_mount: VaultMount, directory: pathlib.Path, transit: str) -> Shop:
    vault_mount.write("flask", {"secret_key": f"{CANARY}-old"})
    return Shop(vault_mount, directory, transit)


@pytest.mark.parametrize("keys", [[], [BACKUP_KEY]], ids=["engine", "both"])
def test_a_rotation_and_the_way_back(shop: Shop, keys: list[str]) -> None:
    client = shop.client(VAULT_BACKUP_KEYS=keys)
    file = client.rotate_secret("flask", "secret_key").backup
    assert file is not None
    client.restore_secret(file)

    assert shop.mount.read("flask") == {"secret_key": f"{CANARY}-old"}
    by = (*(["VAULT_BACKUP_KEYS[0]"] if keys else []), f"{shop.transit}/backups")
    assert {
        info.opened_by for info in client.backups.list(verify=True, every_key=True)
    } == {by}


def test_the_policy_that_the_documentation_names_is_enough(
    shop: Shop, vault_server: DevServer
) -> None:
    policy = may_use(shop.transit, "datakey/plaintext", "decrypt")
    document = (
        f'path "{shop.mount.name}/data/flask" {{ capabilities = ["read", %s] }}\n'
    )
    auth = approle(vault_server, policy + document % '"create", "update"')
    client = shop.client(VAULT_AUTH=auth, VAULT_TOKEN=None)
    file = client.rotate_secret("flask", "secret_key").backup

    assert file is not None
    assert client.restore_secret(file).version == 3


@pytest.mark.parametrize("denied", ["datakey/plaintext", "decrypt"])
def test_a_denial_names_the_right_and_nothing_is_rotated(
    shop: Shop, vault_server: DevServer, denied: str
) -> None:
    (allowed,) = {"datakey/plaintext", "decrypt"} - {denied}
    document = f'path "{shop.mount.name}/*" {{ capabilities = ["read", "update"] }}\n'
    auth = approle(vault_server, may_use(shop.transit, allowed) + document)
    client = shop.client(VAULT_AUTH=auth, VAULT_TOKEN=None)

    with pytest.raises(VaultPermissionError) as caught:
        client.rotate_secret("flask", "secret_key")

    assert f"'{shop.transit}/{denied}/backups'" in str(caught.value)
    assert "VAULT_BACKUP_TRANSIT_KEY" in str(caught.value)
    assert shop.mount.read("flask") == {"secret_key": f"{CANARY}-old"}
    assert not shop.directory.exists() or os.listdir(shop.directory) == []


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("{transit}/missing", "encryption key not found"),
        ("no-such-engine/backups", "no transit engine at 'no-such-engine'"),
        ("{transit}/signing", "not supported for key type"),
        ("{transit}/rsa", "is an asymmetric key"),
        ("{transit}/derived", "missing 'context'"),
    ],
)
def test_a_key_that_cannot_is_refused_before_anything_is_rotated(
    shop: Shop, vault_server: DevServer, key: str, told: str
) -> None:
    for name, kind in (
        ("signing", {"type": "ed25519"}),
        ("rsa", {"type": "rsa-2048"}),
        ("derived", {"derived": True}),
    ):
        if name in key:
            _call(vault_server, f"{shop.transit}/keys/{name}", kind)

    client = shop.client(VAULT_BACKUP_TRANSIT_KEY=key.format(transit=shop.transit))

    with pytest.raises(BackupError, match="VAULT_BACKUP_TRANSIT_KEY") as caught:
        client.rotate_secret("flask", "secret_key")

    assert told in str(caught.value)
    assert shop.mount.read("flask") == {"secret_key": f"{CANARY}-old"}
    assert not shop.directory.exists()


@pytest.mark.parametrize("fault", ["cut", "sealed", "limited", "html"])
def test_an_engine_that_does_not_answer_stops_the_rotation_and_no_value_is_told(
    shop: Shop, vault_proxy: FaultProxy, fault: str
) -> None:
    client = shop.client(VAULT_ADDR=vault_proxy.address)
    client.get_secret("flask")

    if fault == "cut":
        vault_proxy.cut()
    elif fault == "sealed":
        vault_proxy.answer(503, {"errors": ["Vault is sealed"]}, times=None)
    elif fault == "limited":
        vault_proxy.answer(429, {"errors": []}, times=None)
    else:
        vault_proxy.answer(200, b"<html>login</html>", times=None)

    with pytest.raises(VaultError) as caught:
        client.rotate_secret("flask", "secret_key")

    assert isinstance(caught.value, VaultUnavailableError) is (fault != "html")
    assert CANARY not in "".join(traceback.format_exception(caught.value))
    assert shop.mount.read("flask") == {"secret_key": f"{CANARY}-old"}
    assert not shop.directory.exists() or os.listdir(shop.directory) == []


def test_an_answer_that_holds_no_key_is_refused(
    shop: Shop, vault_proxy: FaultProxy
) -> None:
    client = shop.client(VAULT_ADDR=vault_proxy.address)

    for plaintext in ("", "AAAA", None, 1, "not base64!"):
        data = {"plaintext": plaintext, "ciphertext": "vault:v1:AAAA"}
        vault_proxy.answer(200, {"data": data}, match=lambda r: "datakey" in r.path)

        with pytest.raises(VaultError, match="no key of 32 bytes"):
            client.backups.check()


def test_the_key_of_a_backup_is_in_no_log(
    shop: Shop, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("DEBUG")
    key = shop.client().rotate_secret("flask", "secret_key")

    assert key.backup is not None
    assert CANARY not in caplog.text
    assert 'plaintext":' not in caplog.text


def test_rekey_takes_the_newest_version_of_the_engines_key(
    shop: Shop, vault_server: DevServer
) -> None:
    """After which the older versions may be retired."""
    client = shop.client()
    file = client.rotate_secret("flask", "secret_key").backup
    assert file is not None
    _call(vault_server, f"{shop.transit}/keys/backups/rotate")
    assert [x.done for x in Upkeep(client.backups).rekey()] == [True]
    assert [x.done for x in Upkeep(client.backups).rekey()] == [False]

    _call(
        vault_server,
        f"{shop.transit}/keys/backups/config",
        {"min_decryption_version": 2},
    )
    assert client.backups.read(file).before == {"secret_key": f"{CANARY}-old"}


def test_a_version_that_was_retired_too_early(
    shop: Shop, vault_server: DevServer
) -> None:
    client = shop.client()
    file = client.rotate_secret("flask", "secret_key").backup
    assert file is not None
    _call(vault_server, f"{shop.transit}/keys/backups/rotate")
    config = f"{shop.transit}/keys/backups/config"
    _call(vault_server, config, {"min_decryption_version": 2})

    with pytest.raises(BackupError, match="cannot be decrypted"):
        client.restore_secret(file)

    _call(vault_server, config, {"min_decryption_version": 1})
    assert client.restore_secret(file).version == 3


# The setting.


@pytest.mark.parametrize(
    ("value", "mount", "key"),
    [
        ("backups", "transit", "backups"),
        ("transit/backups", "transit", "backups"),
        ("/team/transit/backups/", "team/transit", "backups"),
    ],
)
def test_a_name_alone_is_one_of_the_mount_transit(
    value: str, mount: str, key: str
) -> None:
    client = VaultClient.from_mapping(
        {
            "VAULT_ADDR": "http://127.0.0.1:1",
            "VAULT_TOKEN": "t",
            "VAULT_BACKUP_DIR": "x",
        }
        | {"VAULT_BACKUP_TRANSIT_KEY": value},
        {},
    )
    wrapper = client.backups.sealer._wrapper
    assert wrapper is not None
    assert wrapper.name == f"{mount}/{key}"


@pytest.mark.parametrize("value", ["../sys/x", "a//b", "a/./b", "a\nb", "/", 1.5])
def test_what_is_no_path_is_refused(value: object) -> None:
    with pytest.raises(VaultConfigError, match="VAULT_BACKUP_TRANSIT_KEY"):
        Settings.from_mapping(
            {"VAULT_ADDR": "http://x", "VAULT_BACKUP_TRANSIT_KEY": value}, {}
        )
