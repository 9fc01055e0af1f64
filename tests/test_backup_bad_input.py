"""Everything that may lie in ``VAULT_BACKUP_DIR``, or be in its place.

Two tables. A file that is no good backup of this app is not restored, and a folder that
is not safe or not writable stops a rotation before anything was changed. Each is told
in one sentence, at once, and leaves Vault and the folder as they were. How
:class:`BackupStore` does it is tested one by one in ``test_backup.py``.
"""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import dataclasses
import errno
import json
import os
import pathlib
import re
import resource
import stat
import typing as t

import pytest
from click.testing import CliRunner
from click.testing import Result
from flask import Flask
from flask.cli import ScriptInfo

from flask_vault import FlaskVault
from flask_vault.cli import vault_group
from flask_vault.rotation import files
from flask_vault.rotation.backup import BackupStore
from flask_vault.testing import FaultProxy
from flask_vault.testing.plugin import VaultMount
from tests.helpers import BACKUP_KEY
from tests.helpers import is_write

OTHER_KEY = "o" * 42 + "A="
CANARY = "canary-0e5f"
DOCUMENT = {"secret_key": f"{CANARY}-now"}
NAME = "flask_20261106T120000Z_1f2e3d4c.json"

# Whatever waits for a file that never answers, waits for ever.
pytestmark = pytest.mark.timeout(30)


@dataclasses.dataclass
class Shop:
    mount: VaultMount
    directory: pathlib.Path
    proxy: FaultProxy
    config: dict[str, object] = dataclasses.field(default_factory=dict)

    def create_app(self) -> Flask:
        app = Flask("shop")
        app.config.from_mapping(
            {
                **self.mount.config(),
                "VAULT_ADDR": self.proxy.address,
                "VAULT_SECRETS": {
                    "SECRET_KEY": {"ref": "flask#secret_key", "rotate": "token"}
                },
                "VAULT_BACKUP_DIR": str(self.directory),
                "VAULT_BACKUP_KEYS": [BACKUP_KEY],
                **self.config,
            }
        )
        FlaskVault(app)
        return app

    def rotate(self, *arguments: str) -> Result:
        return self.run("rotate", *arguments)

    def run(self, *arguments: str) -> Result:
        result = CliRunner().invoke(
            vault_group,
            arguments,
            obj=ScriptInfo(create_app=self.create_app),
        )

        if not isinstance(result.exception, SystemExit | None):
            raise result.exception

        assert CANARY not in result.output
        return result

    def write_backup(self, **changes: t.Any) -> pathlib.Path:
        """A good one, of the document as it was before."""
        values: dict[str, t.Any] = {
            "operation": "1f2e3d4c" + "0" * 24,
            "path": f"{self.mount.name}/flask",
            "label": "flask",
            "namespace": None,
            "fields": ["secret_key"],
            "from_version": 1,
            "before": {"secret_key": f"{CANARY}-before"},
            "after": DOCUMENT,
            "kv_version": 2,
        }
        store = BackupStore(self.directory, [BACKUP_KEY])
        file = self.directory / store.write(**(values | changes)).name
        return file.rename(self.directory / NAME)


@pytest.fixture
def shop(
    vault_mount: VaultMount, tmp_path: pathlib.Path, vault_proxy: FaultProxy
) -> Shop:
    vault_mount.write("flask", DOCUMENT)
    return Shop(vault_mount, tmp_path / "vault-backups", vault_proxy)


def seen(directory: pathlib.Path) -> dict[str, tuple[int, int, int]]:
    """The files, so far as a change of them would show."""
    return {
        file.name: (status.st_mode, status.st_size, status.st_mtime_ns)
        for file in directory.iterdir()
        for status in [file.lstat()]
    }


def test_the_backup_that_the_tables_spoil_is_a_good_one(shop: Shop) -> None:
    shop.write_backup()
    result = shop.rotate("--restore", NAME)
    assert result.exit_code == 0
    assert shop.mount.read("flask") == {"secret_key": f"{CANARY}-before"}


# What is given to --restore.


def corrupt(file: pathlib.Path, shop: Shop) -> None:
    file.write_bytes(os.urandom(file.stat().st_size))


def truncated(file: pathlib.Path, shop: Shop) -> None:
    os.truncate(file, file.stat().st_size // 2)


def without_its_last_byte(file: pathlib.Path, shop: Shop) -> None:
    os.truncate(file, file.stat().st_size - 1)


def with_one_byte_more(file: pathlib.Path, shop: Shop) -> None:
    file.write_bytes(file.read_bytes() + b"\n")


def empty(file: pathlib.Path, shop: Shop) -> None:
    os.truncate(file, 0)


def flipped_bit(file: pathlib.Path, shop: Shop) -> None:
    content = bytearray(file.read_bytes())
    content[-20] ^= 1
    file.write_bytes(content)


def bomb(file: pathlib.Path, shop: Shop) -> None:
    file.write_bytes(b'{"a":' * 100_000)


def wrong_key(file: pathlib.Path, shop: Shop) -> None:
    shop.config["VAULT_BACKUP_KEYS"] = [OTHER_KEY]


def no_key(file: pathlib.Path, shop: Shop) -> None:
    shop.config["VAULT_BACKUP_KEYS"] = []


def swapped_header(file: pathlib.Path, shop: Shop) -> None:
    """The values of another path, under the header of ours."""
    good = json.loads(file.read_text())
    shop.write_backup(path="secret/other", before={"secret_key": "theirs"})
    content = json.loads(file.read_text())
    content["header"] = good["header"]
    file.write_text(json.dumps(content, indent=2) + "\n")


def other_path(file: pathlib.Path, shop: Shop) -> None:
    shop.write_backup(path=f"{shop.mount.name}/of-another-app")


def other_namespace(file: pathlib.Path, shop: Shop) -> None:
    shop.write_backup(namespace="team-b")


def symlink(file: pathlib.Path, shop: Shop) -> None:
    """To what would be a good one."""
    file.rename(file.parent.parent / "elsewhere")
    file.symlink_to(file.parent.parent / "elsewhere")


def symlink_to_itself(file: pathlib.Path, shop: Shop) -> None:
    file.unlink()
    file.symlink_to(file.name)


def fifo(file: pathlib.Path, shop: Shop) -> None:
    file.unlink()
    os.mkfifo(file, 0o600)


def device(file: pathlib.Path, shop: Shop) -> None:
    """``/dev/zero``, which never ends."""
    file.unlink()

    try:
        os.mknod(file, 0o600 | stat.S_IFCHR, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("only root may make a device")


def directory(file: pathlib.Path, shop: Shop) -> None:
    file.unlink()
    file.mkdir(0o700)


def sparse_gibibyte(file: pathlib.Path, shop: Shop) -> None:
    os.truncate(file, 1024**3)


def of_another_user(file: pathlib.Path, shop: Shop) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may give files away")

    os.chown(file, 12345, -1)


def mode_0644(file: pathlib.Path, shop: Shop) -> None:
    file.chmod(0o644)


def mode_0620(file: pathlib.Path, shop: Shop) -> None:
    file.chmod(0o620)


def missing(file: pathlib.Path, shop: Shop) -> None:
    file.unlink()


UNTRUSTED = "cannot be decrypted: it is damaged, was changed, or was made with a key"

#: What was done to the file, the exit code, and what is told.
BAD_FILES: tuple[tuple[cabc.Callable[[pathlib.Path, Shop], None], int, str], ...] = (
    (corrupt, 6, UNTRUSTED),
    (truncated, 6, UNTRUSTED),
    (without_its_last_byte, 6, UNTRUSTED),
    (with_one_byte_more, 6, UNTRUSTED),
    (empty, 6, UNTRUSTED),
    (flipped_bit, 6, UNTRUSTED),
    (bomb, 6, UNTRUSTED),
    (wrong_key, 6, UNTRUSTED),
    (no_key, 6, "VAULT_BACKUP_KEYS is not set"),
    (swapped_header, 6, UNTRUSTED),
    (other_path, 5, "which no entry of VAULT_SECRETS names"),
    (other_namespace, 5, "in the namespace 'team-b'"),
    (symlink, 6, "is a symbolic link, and not a file"),
    (symlink_to_itself, 6, "is a symbolic link, and not a file"),
    (fifo, 6, "is not a regular file"),
    (device, 6, "is not a regular file|EACCES"),
    (directory, 6, "is not a regular file"),
    (sparse_gibibyte, 6, "is larger than 1048576 bytes"),
    (of_another_user, 6, "does not belong to the user who runs this"),
    (mode_0644, 6, "is open to other users; 'chmod 600' closes it"),
    (mode_0620, 6, "is open to other users; 'chmod 600' closes it"),
    (missing, 6, "is not in "),
)


@pytest.mark.parametrize(
    ("spoil", "code", "told"), BAD_FILES, ids=[row[0].__name__ for row in BAD_FILES]
)
def test_a_bad_file_is_not_restored(
    shop: Shop,
    spoil: cabc.Callable[[pathlib.Path, Shop], None],
    code: int,
    told: str,
) -> None:
    spoil(shop.write_backup(), shop)
    refused(shop, NAME, code, told)


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        f"../vault-backups/{NAME}",
        f"./{NAME}",
        "..",
        "/etc/passwd",
        "{directory}/" + NAME,
        f"{NAME}\x00",
        f"\x00{NAME}",
        f"{NAME}\n",
        "/dev/zero",
        "/proc/self/environ",
        "~/.ssh/id_rsa",
        "file:///etc/passwd",
        ".hidden.json",
        "x" * 100_000,
    ],
    ids=lambda name: repr(name[:24]),
)
def test_a_name_that_leads_elsewhere_is_not_opened(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    shop.write_backup()

    def opened(*args: object) -> t.NoReturn:
        raise AssertionError("it was opened")

    monkeypatch.setattr(files, "read", opened)
    name = name.format(directory=shop.directory)
    refused(shop, name, 6, "is not the name of a backup")


def refused(shop: Shop, name: str, code: int, told: str) -> None:
    before = seen(shop.directory)
    version = len(shop.proxy.requests)

    for arguments in (["--dry-run"], ["--yes"]):
        result = shop.rotate("--restore", name, *arguments)

        # A dry run asks Vault nothing, and so does not know whose a file is.
        if arguments == ["--dry-run"] and code == 5:
            continue

        assert result.exit_code == code, result.output
        assert result.stdout == ""
        (line,) = result.stderr.splitlines()
        assert line.startswith("Error: ")
        assert re.search(told, line)
        assert "\x00" not in line

    assert not any(is_write(r) for r in shop.proxy.requests[version:])
    assert shop.mount.read("flask") == DOCUMENT
    assert seen(shop.directory) == before


def test_a_bad_file_hides_no_good_one(shop: Shop) -> None:
    shop.write_backup().rename(shop.directory / "good.json")

    for spoil, *_ in BAD_FILES:
        if spoil in (wrong_key, no_key, other_path, other_namespace, missing):
            continue

        with contextlib.suppress(pytest.skip.Exception):
            file = shop.write_backup()
            spoil(file, shop)

            if file.exists() or file.is_symlink():
                file.rename(shop.directory / f"{spoil.__name__}.json")

    rows = json.loads(shop.run("backups", "verify", "--json").stdout)
    assert len(rows) > 15
    assert [row["file"] for row in rows if row["good"]] == ["good.json"]
    assert "good.json" in shop.rotate("--list-backups").stdout
    assert shop.rotate("--restore", "good.json").exit_code == 0


# Where a backup is to be written.


def is_a_symlink(place: pathlib.Path) -> None:
    elsewhere = place.parent / "elsewhere"
    elsewhere.mkdir(0o700)
    place.symlink_to(elsewhere)


def is_a_symlink_to_nothing(place: pathlib.Path) -> None:
    place.symlink_to(place.parent / "elsewhere")


def has_mode_0777(place: pathlib.Path) -> None:
    place.mkdir()
    place.chmod(0o777)


def has_mode_0750(place: pathlib.Path) -> None:
    place.mkdir()
    place.chmod(0o750)


def belongs_to_another_user(place: pathlib.Path) -> None:
    place.mkdir(0o700)

    if os.geteuid() != 0:
        pytest.skip("only root may give folders away")

    os.chown(place, 12345, -1)


def is_below_a_folder_of_everyone(place: pathlib.Path) -> None:
    place.parent.chmod(0o777)


def is_a_file(place: pathlib.Path) -> None:
    place.write_text("")


def is_a_fifo(place: pathlib.Path) -> None:
    os.mkfifo(place, 0o700)


BAD_FOLDERS: tuple[tuple[cabc.Callable[[pathlib.Path], None], str], ...] = (
    (is_a_symlink, "is a symbolic link"),
    (is_a_symlink_to_nothing, "is a symbolic link"),
    (has_mode_0777, "is open to other users. 'chmod 700' closes it"),
    (has_mode_0750, "is open to other users. 'chmod 700' closes it"),
    (belongs_to_another_user, "does not belong to the user who runs this"),
    (is_below_a_folder_of_everyone, "everyone may write to"),
    (is_a_file, "ENOTDIR"),
    (is_a_fifo, "ENOTDIR"),
)


@pytest.mark.parametrize(
    ("spoil", "told"), BAD_FOLDERS, ids=[row[0].__name__ for row in BAD_FOLDERS]
)
def test_a_bad_folder_stops_a_rotation_at_once(
    shop: Shop, spoil: cabc.Callable[[pathlib.Path], None], told: str
) -> None:
    spoil(shop.directory)
    before = seen(shop.directory.parent)
    not_rotated(shop, f"VAULT_BACKUP_DIR, .*{told}")
    assert seen(shop.directory.parent) == before


def test_a_folder_that_is_missing_and_cannot_be_made(shop: Shop) -> None:
    shop.directory = pathlib.Path("/proc/no-such-place/vault-backups")
    not_rotated(shop, "VAULT_BACKUP_DIR, .* cannot be opened")


@contextlib.contextmanager
def limited(size: int) -> cabc.Iterator[None]:
    """No file of this process can become larger than that."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))

    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [0, 1, 200])
def test_a_limit_on_the_size_of_files(shop: Shop, size: int) -> None:
    with limited(size):
        not_rotated(shop, "cannot be written to .*EFBIG")

    assert list(shop.directory.iterdir()) == []


@pytest.mark.parametrize("moment", ["of the check", "of the backup"])
@pytest.mark.parametrize("call", ["write", "fsync", "close"])
def test_a_full_disk(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, call: str, moment: str
) -> None:
    """It may speak up as late as in close(), and after the check went well."""
    write_temporary = files.write_temporary
    original = getattr(os, call)

    def full(*args: t.Any) -> t.Any:
        if call == "close":
            original(*args)

        monkeypatch.setattr(os, call, original)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def arm(folder: int, stem: str, blob: bytes) -> str:
        if (stem == "check") is (moment == "of the check"):
            monkeypatch.setattr(os, call, full)

        return write_temporary(folder, stem, blob)

    monkeypatch.setattr(files, "write_temporary", arm)
    not_rotated(shop, "cannot be written to .*ENOSPC.*Make room")
    assert list(shop.directory.iterdir()) == []


def not_rotated(shop: Shop, told: str) -> None:
    """Vault was not written to, and the command says why, and what to type then."""
    result = shop.rotate("--all")
    assert result.exit_code == 6, result.output
    (error,) = (x for x in result.stderr.splitlines() if x.startswith("Error: "))
    assert re.search(told, error)
    assert "flask vault rotate" in result.stderr.splitlines()[-1]
    assert not any(is_write(request) for request in shop.proxy.requests)
    assert shop.mount.read("flask") == DOCUMENT
