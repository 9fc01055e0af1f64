from __future__ import annotations

import base64
import contextlib
import datetime as dt
import errno
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import textwrap
import threading
import traceback
import types
import typing as t
from pathlib import Path

import pytest

from flask_vault.errors import BackupError
from flask_vault.errors import VaultConfigError
from flask_vault.rotation import files as module
from flask_vault.rotation.backup import BackupStore
from flask_vault.rotation.envelope import Backup
from flask_vault.rotation.files import MAX_SIZE
from flask_vault.rotation.keys import new_key

KEY = "k" * 42 + "A="
OTHER_KEY = "o" * 42 + "A="
CANARY = "canary-8c1e"
OPERATION = "1f2e3d4c" + "0" * 24
NAME = "flask_20251106T120000Z_1f2e3d4c.json"
UNTRUSTED = (
    "cannot be decrypted: it is damaged, was changed, or was made with a key that is"
    " neither in VAULT_BACKUP_KEYS nor VAULT_BACKUP_TRANSIT_KEY."
)


class Clock:
    now = dt.datetime(2025, 11, 6, 12, 0, 0, 250, tzinfo=dt.timezone.utc)

    def __call__(self) -> dt.datetime:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += dt.timedelta(seconds=seconds)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "instance" / "vault-backups"


@pytest.fixture
def store(directory: Path, clock: Clock) -> BackupStore:
    return BackupStore(directory, [KEY], clock=clock)


def write(store: BackupStore, **changes: t.Any) -> Backup:
    values: dict[str, t.Any] = {
        "operation": OPERATION,
        "path": "secret/store-erp/prod/flask",
        "label": "flask",
        "namespace": None,
        "fields": ["secret_key"],
        "from_version": 3,
        "before": {"secret_key": f"{CANARY}-old", "other": 1},
        "after": {"secret_key": f"{CANARY}-new", "other": 1},
        "kv_version": 2,
    }
    return store.write(**(values | changes))


def problems(store: BackupStore, **kwargs: t.Any) -> dict[str, str | None]:
    return {info.name: info.problem for info in store.list(**kwargs)}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


class TestKeys:
    def test_new_keys_are_32_random_bytes(self) -> None:
        keys = {new_key() for _ in range(20)}

        assert len(keys) == 20
        assert {len(base64.urlsafe_b64decode(key)) for key in keys} == {32}

    def test_a_new_key_is_accepted(self, directory: Path) -> None:
        store = BackupStore(directory, [new_key()])

        assert store.read(write(store).name).before["other"] == 1

    @pytest.mark.parametrize(
        "key",
        [
            "",
            "short",
            KEY[:-1],
            KEY + "A",
            base64.urlsafe_b64encode(b"x" * 16).decode(),
            base64.urlsafe_b64encode(b"x" * 31).decode(),
            base64.urlsafe_b64encode(b"x" * 33).decode(),
            "!" + KEY[1:],
            KEY[:20] + "\n" + KEY[21:],
            "é" + KEY[1:],
            None,
            b"k" * 44,
        ],
    )
    def test_what_is_no_key_is_refused_without_being_shown(
        self, directory: Path, key: str
    ) -> None:
        with pytest.raises(VaultConfigError) as caught:
            BackupStore(directory, [KEY, key])

        message = str(caught.value)
        assert "VAULT_BACKUP_KEYS[1]" in message
        assert "flask vault backup-key" in message
        assert not key or str(key) not in message
        assert KEY not in message
        assert not directory.exists()

    def test_one_string_is_not_a_list_of_keys(self, directory: Path) -> None:
        with pytest.raises(VaultConfigError, match="must be a list") as caught:
            BackupStore(directory, KEY)

        assert KEY not in str(caught.value)

    def test_white_space_around_a_key_does_no_harm(self, directory: Path) -> None:
        name = write(BackupStore(directory, [f" {KEY}\n"])).name

        assert BackupStore(directory, [KEY]).read(name).name == name

    def test_without_keys_only_list_works(
        self, directory: Path, store: BackupStore
    ) -> None:
        name = write(store).name
        keyless = BackupStore(directory, [])

        for call in (keyless.check, lambda: write(keyless), lambda: keyless.read(name)):
            with pytest.raises(
                BackupError, match="VAULT_BACKUP_KEYS is not set.*'flask vault backup-k"
            ):
                call()

        (info,) = keyless.list()
        assert info.header is not None
        assert info.header.path == "secret/store-erp/prod/flask"
        assert info.problem is not None and "VAULT_BACKUP_KEYS" in info.problem

    def test_without_keys_nothing_is_made(self, directory: Path) -> None:
        with pytest.raises(BackupError):
            BackupStore(directory, []).check()

        assert not directory.parent.exists()

    def test_the_first_key_encrypts_and_all_decrypt(
        self, directory: Path, store: BackupStore
    ) -> None:
        old = write(store).name
        both = BackupStore(directory, [OTHER_KEY, KEY])
        new = write(both).name

        assert both.read(old).before["other"] == both.read(new).before["other"] == 1
        assert BackupStore(directory, [OTHER_KEY]).read(new).name == new
        assert set(problems(both, verify=True).values()) == {None}

        with pytest.raises(BackupError, match="cannot be decrypted"):
            store.read(new)

    def test_keys_are_not_in_the_repr(self, store: BackupStore) -> None:
        assert KEY[:8] not in repr(store)
        assert "vault-backups" in repr(store)


class TestWrite:
    def test_what_is_written_is_what_is_read(self, store: BackupStore) -> None:
        written = write(store)

        assert written.name == NAME
        assert store.read(NAME) == written
        assert written.before == {"secret_key": f"{CANARY}-old", "other": 1}
        assert written.after == {"secret_key": f"{CANARY}-new", "other": 1}
        header = written.header
        assert header.path == "secret/store-erp/prod/flask"
        assert header.namespace is None
        assert header.fields == ("secret_key",)
        assert header.from_version == 3
        assert header.kv_version == 2
        assert header.operation == OPERATION
        assert header.created_at == Clock.now

    @pytest.mark.parametrize(
        "document",
        [
            {},
            {"empty": "", "null": None, "bool": True, "float": 0.1, "int": 2**70},
            {"text": "é \u2028 \ud800 \x00 😀", "\u00e9": "key"},
            {"nested": {"list": [1, [2, {"b": 1, "a": 2}]]}},
            types.MappingProxyType({"frozen": types.MappingProxyType({"a": (1, 2)})}),
        ],
    )
    def test_any_json_survives(self, store: BackupStore, document: t.Any) -> None:
        name = write(store, before=document, after=document).name

        expected = json.loads(json.dumps(document, default=dict))
        assert store.read(name).before == expected
        assert store.read(name).after == expected

    def test_kv_v1_in_a_namespace(self, store: BackupStore) -> None:
        changes = {"from_version": None, "kv_version": 1, "namespace": "team/a"}
        header = store.read(write(store, **changes).name).header

        assert (header.from_version, header.kv_version) == (None, 1)
        assert header.namespace == "team/a"

    def test_the_clock_may_have_any_time_zone(self, directory: Path) -> None:
        zone = dt.timezone(dt.timedelta(hours=5, minutes=30))
        store = BackupStore(directory, [KEY], clock=lambda: Clock.now.astimezone(zone))

        assert write(store).name == NAME
        assert [info.problem for info in store.list()] == [None]

    def test_only_the_owner_may_read_it(
        self, store: BackupStore, directory: Path
    ) -> None:
        before = os.umask(0)

        try:
            write(store)
        finally:
            os.umask(before)

        assert mode(directory) == 0o700
        assert mode(directory / NAME) == 0o600
        # Above it may be an instance path, which others have to pass.
        assert mode(directory.parent) == 0o755

    def test_no_value_is_in_the_file_or_in_a_repr(
        self, store: BackupStore, directory: Path
    ) -> None:
        backup = write(store)
        text = (directory / NAME).read_text()

        assert CANARY not in text + repr(backup) + repr(store) + repr(store.list())
        assert KEY[:8] not in text

    def test_the_header_is_the_same_whatever_the_values(
        self, store: BackupStore, directory: Path
    ) -> None:
        """Not even a hash of a value: short ones could be guessed."""
        clear = []

        for value in ("one", "two"):
            name = write(store, before={"a": value}, after={"a": value}).name
            content = json.loads((directory / name).read_text())
            del content["nonce"], content["ciphertext"]
            clear.append(content)

        assert clear[0] == clear[1]

    def test_the_same_document_never_gives_the_same_cipher_text(
        self, store: BackupStore, directory: Path
    ) -> None:
        files = [(directory / write(store).name).read_text() for _ in range(5)]

        for part in ("nonce", "ciphertext"):
            assert len({json.loads(file)[part] for file in files}) == 5

    def test_the_documented_format_can_be_decrypted_by_hand(
        self, store: BackupStore, directory: Path
    ) -> None:
        """Someone may have the file and the key, and no Flask-Vault."""
        import hmac

        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        write(store)
        content = json.loads((directory / NAME).read_text())
        nonce = base64.b64decode(content.pop("nonce"))
        ciphertext = base64.b64decode(content.pop("ciphertext"))
        key = base64.urlsafe_b64decode(KEY)
        seal = hmac.digest(key, b"flask-vault-backup 1 seal", "sha256")
        key_id = hmac.digest(key, b"flask-vault-backup 1 key id", "sha256").hex()[:16]
        associated = json.dumps(content, sort_keys=True, separators=(",", ":"))

        assert content["key_id"] == key_id
        assert (content["format"], content["version"]) == ("flask-vault-backup", 1)
        plain = AESGCM(seal).decrypt(nonce, ciphertext, associated.encode("ascii"))
        assert json.loads(plain)["before"]["secret_key"] == f"{CANARY}-old"

    @pytest.mark.parametrize(
        ("label", "stem"),
        [
            ("a/b/c", "a-b-c"),
            ("my app", "my_app"),
            ("../../etc/passwd", "etc-passwd"),
            (".hidden", "hidden"),
            ("--restore", "restore"),
            ("a\nb\x00c", "a_b_c"),
            ("é", "_"),
            ("", "secret"),
            ("/", "secret"),
            ("x" * 5000, "x" * 100),
        ],
    )
    def test_a_label_becomes_a_safe_file_name(
        self, store: BackupStore, directory: Path, label: str, stem: str
    ) -> None:
        name = write(store, label=label).name

        assert name == f"{stem}_20251106T120000Z_1f2e3d4c.json"
        assert os.listdir(directory) == [name]
        assert store.read(name).name == name

    @pytest.mark.parametrize("links", [True, False])
    def test_no_other_backup_is_ever_replaced(
        self,
        store: BackupStore,
        directory: Path,
        monkeypatch: pytest.MonkeyPatch,
        links: bool,
    ) -> None:
        """Also where the file system has no hard links."""
        if not links:
            monkeypatch.setattr(os, "link", _failing(errno.EPERM))

        first = write(store, label="a/b", before={"n": 1})
        second = write(store, label="a-b", before={"n": 2})

        assert first.name == "a-b_20251106T120000Z_1f2e3d4c.json"
        assert second.name == "a-b-2_20251106T120000Z_1f2e3d4c.json"
        assert store.read(first.name).before == {"n": 1}
        assert store.read(second.name).before == {"n": 2}
        assert sorted(os.listdir(directory)) == sorted([first.name, second.name])
        assert mode(directory / second.name) == 0o600

    def test_writers_at_the_same_instant_all_keep_their_file(
        self, store: BackupStore
    ) -> None:
        names: list[str] = []
        threads = [
            threading.Thread(
                target=lambda n=n: names.append(write(store, before={"n": n}).name)
            )
            for n in range(16)
        ]

        for thread in threads:
            thread.start()

        for thread in threads:
            thread.join()

        assert len(set(names)) == 16
        assert {store.read(name).before["n"] for name in names} == set(range(16))

    def test_a_document_whose_file_could_not_be_read_back_is_refused(
        self, store: BackupStore, directory: Path
    ) -> None:
        with pytest.raises(BackupError, match="too large to back up") as caught:
            write(store, before={"value": CANARY * (MAX_SIZE // len(CANARY))})

        assert CANARY not in str(caught.value)
        assert not directory.exists()

    def test_the_largest_file_that_is_written_can_be_read(
        self, store: BackupStore, directory: Path
    ) -> None:
        name = write(store, before={"value": "x" * 785_000}, after={}).name

        assert MAX_SIZE - 2000 < (directory / name).stat().st_size <= MAX_SIZE
        assert len(store.read(name).before["value"]) == 785_000

    @pytest.mark.parametrize(
        "value",
        [CANARY.encode(), {CANARY}, object, float("nan"), float("inf")],
        ids=["bytes", "set", "type", "nan", "inf"],
    )
    def test_what_json_cannot_express_is_refused(
        self, store: BackupStore, directory: Path, value: object
    ) -> None:
        with pytest.raises(BackupError, match="JSON cannot express") as caught:
            write(store, before={"value": value})

        assert CANARY not in "".join(traceback.format_exception(caught.value))
        assert caught.value.__context__ is None
        assert not directory.exists()

    def test_a_document_that_contains_itself_is_refused(
        self, store: BackupStore
    ) -> None:
        document: dict[str, t.Any] = {}
        document["self"] = document

        with pytest.raises(BackupError, match="JSON cannot express"):
            write(store, before=document)

    def test_a_document_of_any_depth_is_written_or_refused(
        self, store: BackupStore, directory: Path
    ) -> None:
        store.check()
        outcomes = set()

        for depth in range(0, 2000, 25):
            document: dict[str, t.Any] = {}

            for _ in range(depth):
                document = {"a": document}

            try:
                name = write(store, before=document, after={}).name
            except BackupError:
                outcomes.add("refused")
                assert os.listdir(directory) == []
            else:
                outcomes.add("written")
                os.unlink(directory / name)

        assert "written" in outcomes

    @pytest.mark.parametrize(
        "changes",
        [
            {"path": "secret/a\x1b[2Jb"},
            {"namespace": "a\nb"},
            {"fields": ["ok", "a\u202eb"]},
        ],
    )
    def test_what_would_garble_a_listing_is_refused(
        self, store: BackupStore, directory: Path, changes: dict[str, t.Any]
    ) -> None:
        with pytest.raises(BackupError, match="control character"):
            write(store, **changes)

        assert not directory.exists()

    @pytest.mark.parametrize("operation", ["", "../../x", "1f2e3d4c", "G" * 32])
    def test_an_operation_is_a_uuid(self, store: BackupStore, operation: str) -> None:
        with pytest.raises(ValueError, match="hexadecimal form of a UUID"):
            write(store, operation=operation)


class TestWriteFails:
    @pytest.mark.parametrize("call", ["write", "fsync", "close", "link", "open"])
    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG, errno.EIO])
    def test_no_file_is_left_whatever_step_fails(
        self,
        store: BackupStore,
        directory: Path,
        monkeypatch: pytest.MonkeyPatch,
        call: str,
        number: int,
    ) -> None:
        """A full disk may speak up as late as in close()."""
        store.check()
        original: t.Callable[..., t.Any] = getattr(os, call)

        def fails(*args: t.Any, **kwargs: t.Any) -> t.Any:
            if call == "open" and "dir_fd" not in kwargs:
                return original(*args, **kwargs)

            # Linux closes the descriptor although it complains.
            if call == "close":
                original(*args, **kwargs)

            # The store closes its directory too, while the error passes.
            monkeypatch.setattr(os, call, original)
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, call, fails)

        with pytest.raises(BackupError, match=errno.errorcode[number]) as caught:
            write(store)

        monkeypatch.undo()
        assert os.listdir(directory) == []
        assert str(directory) in str(caught.value)
        assert "VAULT_BACKUP_DIR" in str(caught.value)
        assert CANARY not in str(caught.value)

    def test_no_file_is_left_when_the_directory_cannot_be_synced(
        self,
        store: BackupStore,
        directory: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        store.check()
        original = os.fsync

        def fsync(file: int) -> None:
            if stat.S_ISDIR(os.fstat(file).st_mode):
                raise OSError(errno.EIO, os.strerror(errno.EIO))

            original(file)

        monkeypatch.setattr(os, "fsync", fsync)

        with pytest.raises(BackupError, match="EIO"):
            write(store)

        assert os.listdir(directory) == []

    def test_file_and_directory_are_synced_before_write_returns(
        self, store: BackupStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store.check()
        steps: list[str] = []
        fsync, link = os.fsync, os.link

        def note_fsync(file: int) -> None:
            is_directory = stat.S_ISDIR(os.fstat(file).st_mode)
            steps.append("sync directory" if is_directory else "sync file")
            fsync(file)

        def note_link(*args: t.Any, **kwargs: t.Any) -> None:
            steps.append("link")
            link(*args, **kwargs)

        monkeypatch.setattr(os, "fsync", note_fsync)
        monkeypatch.setattr(os, "link", note_link)
        write(store)

        assert steps == ["sync file", "link", "sync directory"]

    def test_a_disk_that_takes_a_few_bytes_at_a_time(
        self, store: BackupStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        original = os.write
        monkeypatch.setattr(os, "write", lambda file, data: original(file, data[:100]))

        assert store.read(write(store).name).before["other"] == 1

    def test_a_disk_that_corrupts_is_noticed(
        self,
        store: BackupStore,
        directory: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        store.check()
        original = os.write

        def corrupting(file: int, data: memoryview) -> int:
            bad = bytearray(data)
            bad[-10] ^= 1
            return original(file, bad)

        monkeypatch.setattr(os, "write", corrupting)

        with pytest.raises(BackupError, match="could not be read back"):
            write(store)

        with pytest.raises(BackupError, match="could not be read back"):
            store.check()

        assert os.listdir(directory) == []

    def test_another_document_in_its_place_is_noticed(
        self,
        store: BackupStore,
        directory: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        other = (directory / write(store, before={"n": 1}).name).read_bytes()
        os.unlink(directory / NAME)
        monkeypatch.setattr(module, "read", lambda directory, name: other)

        with pytest.raises(BackupError, match="something else than what was written"):
            write(store, before={"n": 2})

        assert os.listdir(directory) == []

    def test_an_interrupt_leaves_no_file_and_is_not_wrapped(
        self,
        store: BackupStore,
        directory: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        store.check()

        for call in ("write", "link", "fsync"):
            with monkeypatch.context() as patch:
                patch.setattr(os, call, _interrupted)

                with pytest.raises(KeyboardInterrupt):
                    write(store)

            assert os.listdir(directory) == []

    def test_no_descriptor_is_left_open(
        self,
        store: BackupStore,
        directory: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        name = write(store).name
        before = len(os.listdir("/proc/self/fd"))

        for _ in range(3):
            write(store)
            store.list()
            store.check()

            with pytest.raises(BackupError):
                store.read(f"x{name}")

            with monkeypatch.context() as patch, pytest.raises(BackupError):
                patch.setattr(os, "write", _failing(errno.ENOSPC))
                write(store)

            directory.chmod(0o755)

            with pytest.raises(BackupError):
                store.list()

            directory.chmod(0o700)

        assert len(os.listdir("/proc/self/fd")) == before

    @pytest.mark.parametrize("limit", [0, 1, 100, 400])
    def test_a_limit_on_the_size_of_files(self, directory: Path, limit: int) -> None:
        """The real thing: the kernel writes what fits, then says EFBIG."""
        code = f"""
            import resource
            resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
            for call in (store.check, write):
                try:
                    call()
                except BackupError as error:
                    print(error)
        """
        result = _run(directory, code)

        assert result.returncode == 0, result.stderr
        assert result.stdout.count("(EFBIG)") == 2
        assert CANARY not in result.stdout
        assert os.listdir(directory) == []


class TestCrash:
    @pytest.mark.parametrize("call", ["write", "fsync", "link"])
    def test_killed_before_the_file_has_its_name(
        self, directory: Path, call: str
    ) -> None:
        code = f"""
            store.check()
            def kill(*args, **kwargs):
                os.kill(os.getpid(), signal.SIGKILL)
            os.{call} = kill
            write()
        """
        result = _run(directory, code)

        assert result.returncode == -signal.SIGKILL, result.stderr
        (left,) = os.listdir(directory)
        assert left.endswith(".tmp")
        assert mode(directory / left) == 0o600
        assert CANARY.encode() not in (directory / left).read_bytes()

        store = BackupStore(directory, [KEY])
        assert store.list() == []

        with pytest.raises(BackupError, match="is not the name of a backup"):
            store.read(left)

        # The next run is not in the way of the last one.
        store.check()
        assert write(store).name in problems(store)

    @pytest.mark.parametrize("call", ["unlink", "fsync"])
    def test_killed_after_the_file_has_its_name(
        self, directory: Path, call: str
    ) -> None:
        code = f"""
            store.check()
            link = os.link
            def kill(*args, **kwargs):
                os._exit(7)
            def arm(*args, **kwargs):
                link(*args, **kwargs)
                os.{call} = kill
            os.link = arm
            write()
        """
        result = _run(directory, code)

        assert result.returncode == 7, result.stderr
        store = BackupStore(directory, [KEY])
        ((name, problem),) = problems(store, verify=True).items()
        assert problem is None
        assert store.read(name).before["secret_key"] == f"{CANARY}-old"

    def test_killed_between_claim_and_rename_without_hard_links(
        self, directory: Path
    ) -> None:
        code = """
            store.check()
            def no_link(*args, **kwargs):
                raise PermissionError(errno.EPERM, "no links")
            os.link = no_link
            os.rename = lambda *args, **kwargs: os._exit(7)
            write()
        """
        result = _run(directory, code)

        assert result.returncode == 7, result.stderr
        store = BackupStore(directory, [KEY])
        (info,) = store.list()
        assert info.problem is not None

        with pytest.raises(BackupError, match="cannot be decrypted"):
            store.read(info.name)


class TestDirectory:
    """What :meth:`BackupStore.check` refuses, every other call refuses too."""

    def refused(self, store: BackupStore, message: str) -> None:
        calls: list[t.Callable[[], object]] = [
            store.check,
            store.list,
            lambda: write(store),
            lambda: store.read(NAME),
        ]

        for call in calls:
            with pytest.raises(BackupError, match=message) as caught:
                call()

            assert "VAULT_BACKUP_DIR" in str(caught.value)

    def test_a_missing_one_is_made_for_us_alone(
        self, store: BackupStore, directory: Path
    ) -> None:
        before = os.umask(0)

        try:
            store.check()
        finally:
            os.umask(before)

        assert mode(directory) == 0o700
        assert mode(directory.parent) == 0o755
        assert os.listdir(directory) == []

    def test_list_and_read_make_nothing(
        self, store: BackupStore, directory: Path
    ) -> None:
        assert store.list() == []

        with pytest.raises(BackupError, match="ENOENT"):
            store.read(NAME)

        assert not directory.parent.exists()

    def test_a_relative_one_stays_where_it_was(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        store = BackupStore(Path("backups"), [KEY])
        monkeypatch.chdir("/")
        store.check()

        assert (tmp_path / "backups").is_dir()

    def test_a_symbolic_link_is_refused(
        self, store: BackupStore, directory: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "elsewhere").mkdir(0o700)
        directory.parent.mkdir()
        directory.symlink_to(tmp_path / "elsewhere")

        self.refused(store, "is a symbolic link")
        assert os.listdir(tmp_path / "elsewhere") == []

    def test_a_symbolic_link_to_nothing_is_refused(
        self, store: BackupStore, directory: Path, tmp_path: Path
    ) -> None:
        directory.parent.mkdir()
        directory.symlink_to(tmp_path / "elsewhere")

        self.refused(store, "is a symbolic link")
        assert not (tmp_path / "elsewhere").exists()

    def test_a_symbolic_link_that_comes_late_is_refused(
        self,
        store: BackupStore,
        directory: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Put there between the look and the opening."""
        (tmp_path / "elsewhere").mkdir(0o700)
        directory.parent.mkdir()
        directory.symlink_to(tmp_path / "elsewhere")
        monkeypatch.setattr(Path, "is_symlink", lambda self: False)

        self.refused(store, "ENOTDIR|ELOOP")
        assert os.listdir(tmp_path / "elsewhere") == []

    def test_a_link_above_it_is_followed(self, tmp_path: Path) -> None:
        """``current`` is a link on many hosts."""
        (tmp_path / "releases" / "5").mkdir(parents=True)
        (tmp_path / "current").symlink_to("releases/5")
        store = BackupStore(tmp_path / "current" / "backups", [KEY])

        assert store.read(write(store).name).before["other"] == 1

    def test_links_in_a_circle_are_refused(self, tmp_path: Path) -> None:
        (tmp_path / "a").symlink_to("b")
        (tmp_path / "b").symlink_to("a")

        with pytest.raises(BackupError, match="VAULT_BACKUP_DIR.*cannot be opened"):
            BackupStore(tmp_path / "a" / "backups", [KEY]).check()

    @pytest.mark.parametrize("bits", [0o777, 0o770, 0o755, 0o710, 0o701, 0o720])
    def test_one_that_others_can_enter_is_refused(
        self, store: BackupStore, directory: Path, bits: int
    ) -> None:
        directory.mkdir(parents=True)
        directory.chmod(bits)

        self.refused(store, "is open to other users.*chmod 700")
        assert os.listdir(directory) == []
        assert mode(directory) == bits

    def test_one_of_another_user_is_refused(
        self,
        store: BackupStore,
        directory: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        directory.mkdir(parents=True, mode=0o700)
        monkeypatch.setattr(os, "geteuid", lambda: directory.stat().st_uid + 1)

        self.refused(store, "does not belong to the user")
        assert os.listdir(directory) == []

    @pytest.mark.parametrize("depth", [1, 2])
    def test_one_below_a_directory_of_everyone_is_refused(
        self, store: BackupStore, directory: Path, depth: int
    ) -> None:
        directory.parent.mkdir()
        directory.parents[depth - 1].chmod(0o777)

        for call in (store.check, lambda: write(store)):
            with pytest.raises(BackupError, match="everyone may write to") as caught:
                call()

            assert repr(str(directory.parents[depth - 1])) in str(caught.value)

        assert not directory.exists()

        directory.mkdir(0o700)
        self.refused(store, "everyone may write to")
        directory.parents[depth - 1].chmod(0o700)

    def test_one_below_a_sticky_directory_of_everyone_is_fine(
        self, store: BackupStore, directory: Path
    ) -> None:
        directory.parent.mkdir()
        directory.parent.chmod(0o1777)
        store.check()

        assert write(store).name == NAME

    @pytest.mark.parametrize("link_is_open", [True, False])
    def test_a_link_hides_no_directory_of_everyone(
        self, tmp_path: Path, link_is_open: bool
    ) -> None:
        """Neither where the link stands, nor where it leads."""
        (tmp_path / "closed").mkdir(0o700)
        (tmp_path / "open").mkdir()
        (tmp_path / "open").chmod(0o777)
        here, there = ("open", "closed") if link_is_open else ("closed", "open")
        (tmp_path / there / "real").mkdir(0o700)
        (tmp_path / here / "link").symlink_to(tmp_path / there / "real")

        with pytest.raises(BackupError, match="everyone may write to.*open"):
            BackupStore(tmp_path / here / "link" / "backups", [KEY]).check()

    def test_a_file_in_its_place_is_refused(
        self, store: BackupStore, directory: Path
    ) -> None:
        directory.parent.mkdir()
        directory.write_text("a file")

        self.refused(store, "ENOTDIR")
        assert directory.read_text() == "a file"

    def test_a_file_above_it_is_refused(
        self, store: BackupStore, directory: Path
    ) -> None:
        directory.parent.write_text("a file")

        for call in (store.check, lambda: write(store)):
            with pytest.raises(BackupError, match="VAULT_BACKUP_DIR.*ENOTDIR"):
                call()

    def test_one_that_cannot_be_made_is_told(self) -> None:
        with pytest.raises(BackupError, match="VAULT_BACKUP_DIR.*cannot be opened"):
            BackupStore(Path("/proc/no-such-place/backups"), [KEY]).check()

    def test_one_that_cannot_be_written_is_found_by_check(
        self,
        store: BackupStore,
        directory: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        directory.mkdir(parents=True, mode=0o700)
        original = os.open

        def read_only(path: t.Any, flags: int, *args: t.Any, **kwargs: t.Any) -> int:
            if flags & os.O_CREAT:
                raise OSError(errno.EROFS, os.strerror(errno.EROFS))

            return original(path, flags, *args, **kwargs)

        monkeypatch.setattr(os, "open", read_only)

        with pytest.raises(BackupError, match="cannot be written.*EROFS"):
            store.check()

    def test_check_leaves_the_backups_alone(
        self, store: BackupStore, directory: Path
    ) -> None:
        write(store)
        store.check()

        assert os.listdir(directory) == [NAME]


class TestRead:
    @pytest.fixture(autouse=True)
    def one_backup(self, store: BackupStore) -> None:
        write(store)

    def refused(self, store: BackupStore, name: str, message: str) -> None:
        with pytest.raises(BackupError, match=message) as caught:
            store.read(name)

        assert repr(name) in str(caught.value)
        assert "\x00" not in str(caught.value)

    @pytest.mark.parametrize(
        "name",
        [
            "../../etc/passwd",
            "/etc/passwd",
            f"./{NAME}",
            f"../vault-backups/{NAME}",
            f"{NAME}/",
            f"{NAME}\n",
            f"{NAME}\x00",
            f"{NAME}\x00.json",
            f"\x00{NAME}",
            f"..\\{NAME}",
            "",
            ".",
            "..",
            ".json",
            ".hidden.json",
            "-option.json",
            "flask.tmp",
            "\ud800.json",
            "é.json",
            "x" * 300 + ".json",
            "x" * 100_000,
        ],
    )
    def test_what_is_not_the_name_of_a_backup_is_refused_unopened(
        self, store: BackupStore, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        monkeypatch.setattr(module, "read", _interrupted)

        self.refused(store, name, "is not the name of a backup.*without a directory")

    def test_the_absolute_path_of_a_backup_is_refused(
        self, store: BackupStore, directory: Path
    ) -> None:
        self.refused(store, str(directory / NAME), "is not the name of a backup")

    def test_a_name_that_is_not_there(self, store: BackupStore) -> None:
        self.refused(store, "flask.json", "is not in .*--list-backups")

    def test_the_longest_name_is_looked_for(self, store: BackupStore) -> None:
        self.refused(store, "x" * 250 + ".json", "is not in ")

    def test_a_renamed_backup_can_be_read(
        self, store: BackupStore, directory: Path
    ) -> None:
        (directory / NAME).rename(directory / "renamed.json")

        assert store.read("renamed.json").header.path == "secret/store-erp/prod/flask"

    def test_a_symbolic_link_is_refused(
        self, store: BackupStore, directory: Path
    ) -> None:
        (directory / "link.json").symlink_to(NAME)

        self.refused(store, "link.json", "is a symbolic link")
        assert problems(store)["link.json"] == "is a symbolic link, and not a file"

    @pytest.mark.timeout(20)
    def test_a_fifo_is_refused_without_waiting(
        self, store: BackupStore, directory: Path
    ) -> None:
        os.mkfifo(directory / "fifo.json", 0o600)

        self.refused(store, "fifo.json", "is not a regular file")
        assert problems(store)["fifo.json"] == "is not a regular file"

    def test_a_directory_is_refused(self, store: BackupStore, directory: Path) -> None:
        (directory / "directory.json").mkdir(0o700)

        self.refused(store, "directory.json", "is not a regular file")

    def test_a_socket_is_refused(
        self, store: BackupStore, directory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # The path of a socket must be short.
        monkeypatch.chdir(directory)

        with contextlib.closing(socket.socket(socket.AF_UNIX)) as listener:
            listener.bind("socket.json")

            self.refused(store, "socket.json", "cannot be read: .*ENXIO")
            assert len(problems(store)) == 2

    @pytest.mark.timeout(20)
    def test_a_device_is_refused(self, store: BackupStore, directory: Path) -> None:
        """``/dev/zero`` never ends."""
        try:
            os.mknod(directory / "zero.json", 0o600 | stat.S_IFCHR, os.makedev(1, 5))
        except PermissionError:
            pytest.skip("only root may make a device")

        self.refused(store, "zero.json", "is not a regular file|EACCES")

    def test_a_file_of_1_gib_is_refused_unread(
        self,
        store: BackupStore,
        directory: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        with open(directory / "large.json", "wb", opener=_private) as file:
            file.truncate(1024**3)

        monkeypatch.setattr(module, "open", _interrupted, raising=False)
        self.refused(store, "large.json", f"is larger than {MAX_SIZE} bytes")

    @pytest.mark.parametrize("size", [MAX_SIZE, MAX_SIZE + 1])
    def test_the_limit_is_1_mib(
        self, store: BackupStore, directory: Path, size: int
    ) -> None:
        with open(directory / "large.json", "wb", opener=_private) as file:
            file.truncate(size)

        self.refused(
            store,
            "large.json",
            "is larger than" if size > MAX_SIZE else "cannot be decrypted",
        )

    @pytest.mark.parametrize("bits", [0o640, 0o604, 0o620, 0o602, 0o644, 0o666])
    def test_a_file_that_others_can_open_is_refused(
        self, store: BackupStore, directory: Path, bits: int
    ) -> None:
        (directory / NAME).chmod(bits)

        self.refused(store, NAME, "is open to other users; 'chmod 600' closes it")
        assert "chmod 600" in str(problems(store)[NAME])

    def test_a_file_of_another_user_is_refused(
        self,
        store: BackupStore,
        directory: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        uid = directory.stat().st_uid
        answers = iter([uid, uid + 1])
        monkeypatch.setattr(os, "geteuid", lambda: next(answers))

        self.refused(store, NAME, "does not belong to the user")

    def test_a_file_that_belongs_to_another_user_on_the_disk(
        self, store: BackupStore, directory: Path
    ) -> None:
        if os.geteuid() != 0:
            pytest.skip("only root may give files away")

        os.chown(directory / NAME, 12345, -1)

        self.refused(store, NAME, "does not belong to the user")

    def test_another_key_opens_nothing(self, directory: Path) -> None:
        self.refused(
            BackupStore(directory, [OTHER_KEY]), NAME, re.escape(UNTRUSTED) + "$"
        )

    def test_every_bit_of_the_file_counts(
        self, store: BackupStore, directory: Path
    ) -> None:
        """Keys, header, white space, nonce, cipher text, base64's spare bits."""
        file = directory / NAME
        good = file.read_bytes()
        expected = f"The backup {NAME!r} {UNTRUSTED}"

        for position in range(len(good)):
            for bit in range(8):
                bad = bytearray(good)
                bad[position] ^= 1 << bit
                file.write_bytes(bad)

                with pytest.raises(BackupError) as caught:
                    store.read(NAME)

                assert str(caught.value) == expected, (position, bit)

        file.write_bytes(good)
        assert store.read(NAME).before["other"] == 1

    def test_every_byte_of_the_file_is_needed(
        self, store: BackupStore, directory: Path
    ) -> None:
        file = directory / NAME
        good = file.read_bytes()
        bad = [good[:size] for size in range(len(good))]
        bad += [good[1:], good + b"\n", b" " + good, good + good, good[:-1] + b"\r\n"]

        for content in bad:
            file.write_bytes(content)

            with pytest.raises(BackupError, match=re.escape(UNTRUSTED) + "$"):
                store.read(NAME)

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"null",
            b"[]",
            b"{}",
            b'"text"',
            b'{"header": null}',
            b'{"header": {}}',
            b"\xff\xfe",
            b"[" * 500_000,
            b'{"a":' * 100_000,
            b"9" * 500_000,
            b"NaN",
            b"\x00" * 1000,
        ],
        ids=lambda content: str(content[:12]),
    )
    def test_what_was_never_a_backup(
        self, store: BackupStore, directory: Path, content: bytes
    ) -> None:
        (directory / NAME).write_bytes(content)

        self.refused(store, NAME, re.escape(UNTRUSTED) + "$")
        assert problems(store) == {NAME: UNTRUSTED[:-1]}

    @pytest.mark.parametrize(
        "part", ["header", "nonce", "ciphertext", "key_id", "format", "version"]
    )
    def test_no_part_can_come_from_another_backup(
        self, store: BackupStore, directory: Path, part: str
    ) -> None:
        """Put the header of one path on the values of another, say."""
        both = BackupStore(directory, [OTHER_KEY, KEY])
        other = write(both, path="secret/other", before={"n": 1}, after={"n": 2}).name
        content = json.loads((directory / NAME).read_text())
        content[part] = json.loads((directory / other).read_text())[part]

        if part in ("format", "version"):
            content[part] = {"format": "another", "version": 2}[part]

        _put(directory / NAME, content)

        self.refused(both, NAME, re.escape(UNTRUSTED) + "$")

    @pytest.mark.parametrize("part", ["nonce", "ciphertext"])
    @pytest.mark.parametrize("size", [0, 1, 7, 11, 13, 15, 16, 200])
    def test_parts_of_another_size(
        self, store: BackupStore, directory: Path, part: str, size: int
    ) -> None:
        content = json.loads((directory / NAME).read_text())
        content[part] = base64.b64encode(b"x" * size).decode()
        _put(directory / NAME, content)

        self.refused(store, NAME, re.escape(UNTRUSTED) + "$")

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("path", "secret/store-erp/prod/other"),
            ("namespace", "team"),
            ("fields", ["secret_key", "other"]),
            ("fields", []),
            ("from_version", 2),
            ("from_version", None),
            ("kv_version", 1),
            ("operation", "0" * 32),
            ("created_at", "2025-11-06T12:00:00.000251+00:00"),
        ],
    )
    def test_a_header_that_was_changed_well_is_listed_and_not_trusted(
        self, store: BackupStore, directory: Path, key: str, value: object
    ) -> None:
        content = json.loads((directory / NAME).read_text())
        content["header"][key] = value
        _put(directory / NAME, content)

        assert problems(store) == {NAME: None}
        assert problems(store, verify=True) == {NAME: UNTRUSTED[:-1]}
        self.refused(store, NAME, re.escape(UNTRUSTED) + "$")

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("path", 1),
            ("path", None),
            ("path", ["a"]),
            ("path", "a\x1b[2Jb"),
            ("path", "a\nb"),
            ("namespace", []),
            ("namespace", {}),
            ("namespace", 1),
            ("namespace", "\x9b2J"),
            ("fields", None),
            ("fields", "text"),
            ("fields", {"a": 1}),
            ("fields", [1]),
            ("fields", ["\u202e"]),
            ("from_version", "3"),
            ("from_version", 3.0),
            ("from_version", True),
            ("kv_version", None),
            ("kv_version", [2]),
            ("operation", None),
            ("operation", "\x07"),
            ("created_at", None),
            ("created_at", 1762430400),
            ("created_at", "yesterday"),
            ("created_at", "2025-11-06T12:00:00.000250"),
            ("created_at", "2025-11-06T12:00:00.000250+01:00"),
            ("created_at", "2025-11-06T12:00:00Z"),
            ("extra", 1),
        ],
    )
    def test_a_header_that_is_none_is_not_shown(
        self, store: BackupStore, directory: Path, key: str, value: object
    ) -> None:
        content = json.loads((directory / NAME).read_text())
        content["header"][key] = value
        _put(directory / NAME, content)

        (info,) = store.list()
        assert info.header is None
        assert info.problem == UNTRUSTED[:-1]
        self.refused(store, NAME, re.escape(UNTRUSTED) + "$")

    def test_the_same_content_in_other_words_is_refused(
        self, store: BackupStore, directory: Path
    ) -> None:
        """One form only, so that nothing can be hidden in a second key, say."""
        good = (directory / NAME).read_text()
        content = json.loads(good)
        variants = [
            json.dumps(content),
            json.dumps(content, indent=4) + "\n",
            json.dumps(content, indent=2, sort_keys=True) + "\n",
            good.replace('"path"', '"path": "other",\n    "path"'),
            good.replace("flask-vault", "flask\\u002dvault"),
        ]

        for variant in variants:
            (directory / NAME).write_text(variant)

            with pytest.raises(BackupError, match="cannot be decrypted"):
                store.read(NAME)

    def test_an_error_shows_no_value_and_no_key(
        self, store: BackupStore, directory: Path
    ) -> None:
        file = directory / NAME
        file.write_text(file.read_text().replace("prod", "test"))

        with pytest.raises(BackupError) as caught:
            store.read(NAME)

        text = "".join(traceback.format_exception(caught.value))
        assert CANARY not in text
        assert KEY not in text


class TestList:
    def test_the_newest_is_first(self, store: BackupStore, clock: Clock) -> None:
        names = []

        for label in ("b", "c", "a"):
            names.append(write(store, label=label).name)
            clock.advance(0.1)

        assert [info.name for info in store.list()] == names[::-1]

    def test_the_headers_are_shown(self, store: BackupStore) -> None:
        header = write(store).header

        (info,) = store.list()
        assert (info.name, info.header, info.problem) == (NAME, header, None)
        assert not info.verified

        (info,) = store.list(verify=True)
        assert (info.header, info.problem) == (header, None)
        assert info.verified

    def test_one_bad_file_hides_no_good_one(
        self, store: BackupStore, directory: Path, clock: Clock
    ) -> None:
        good = [write(store).name]
        clock.advance(60)
        bad = write(store).name
        clock.advance(60)
        good.insert(0, write(store).name)
        (directory / bad).write_bytes(b"\x00")
        (directory / "notes.json").write_text("{}")
        os.mkfifo(directory / "fifo.json")
        (directory / "loop.json").symlink_to("loop.json")

        for verify in (False, True):
            infos = store.list(verify=verify)
            assert [info.name for info in infos if not info.problem] == good
            assert {info.name for info in infos if info.problem} == {
                bad,
                "notes.json",
                "fifo.json",
                "loop.json",
            }
            # It stands where its name says, between the good ones.
            assert [info.name for info in infos[:3]] == [good[0], bad, good[1]]

    def test_a_file_that_goes_away_meanwhile(
        self, store: BackupStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write(store)
        original = os.listdir
        monkeypatch.setattr(os, "listdir", lambda path: [*original(path), "gone.json"])

        assert problems(store)["gone.json"] == (
            "cannot be read: No such file or directory (ENOENT)"
        )

    def test_what_is_no_backup_by_name_is_not_listed(
        self, store: BackupStore, directory: Path
    ) -> None:
        store.check()

        for name in (
            "flask.0123456789abcdef.tmp",
            "README",
            ".hidden.json",
            "a b.json",
        ):
            (directory / name).write_text("")

        assert store.list() == []

    def test_the_keys_that_are_missing_are_told(
        self, store: BackupStore, directory: Path
    ) -> None:
        write(store)

        (info,) = BackupStore(directory, [OTHER_KEY]).list()
        assert info.header is not None
        assert info.problem == "was made with a key that is not in VAULT_BACKUP_KEYS"


def test_cryptography_is_not_imported_by_the_import() -> None:
    code = (
        "import sys, flask_vault.rotation.backup, flask_vault.rotation.generators;"
        "sys.exit('cryptography' in sys.modules)"
    )

    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def _failing(number: int) -> t.Callable[..., t.NoReturn]:
    def fails(*args: object, **kwargs: object) -> t.NoReturn:
        raise OSError(number, os.strerror(number))

    return fails


def _interrupted(*args: object, **kwargs: object) -> t.NoReturn:
    raise KeyboardInterrupt


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _put(file: Path, content: object) -> None:
    """Write the content the way the store does."""
    file.write_text(json.dumps(content, indent=2) + "\n")


def _run(directory: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own, which it may limit or kill."""
    head = f"""
import errno, os, signal, sys
from pathlib import Path
from flask_vault.errors import BackupError
from flask_vault.rotation.backup import BackupStore

store = BackupStore(Path({str(directory)!r}), [{KEY!r}])

def write():
    store.write(
        operation={OPERATION!r}, path="secret/flask", label="flask", namespace=None,
        fields=["secret_key"], from_version=1, kv_version=2,
        before={{"secret_key": "{CANARY}-old"}},
        after={{"secret_key": "{CANARY}-new"}},
    )
"""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", head + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
    )
