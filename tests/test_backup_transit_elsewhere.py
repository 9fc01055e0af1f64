"""A journalled rotation whose backup needs Vault's transit engine."""

from __future__ import annotations

import collections.abc as cabc
import secrets

import pytest

from flask_vault.testing import DevServer
from flask_vault.testing import FaultProxy
from flask_vault.testing.api import Api
from flask_vault.testing.faults import RecordedRequest
from tests.test_cli_rotate_elsewhere import Shop
from tests.test_cli_rotate_elsewhere import shop as shop


@pytest.fixture
def transit(shop: Shop, vault_server: DevServer) -> cabc.Iterator[str]:
    mount = f"transit-{secrets.token_hex(6)}"
    api, token = Api(vault_server.address), vault_server.root_token
    api.call("POST", f"sys/mounts/{mount}", {"type": "transit"}, token=token)
    api.call("POST", f"{mount}/keys/backups", {}, token=token)
    shop.more |= {
        "VAULT_BACKUP_KEYS": [],
        "VAULT_BACKUP_TRANSIT_KEY": f"{mount}/backups",
    }
    yield mount
    vault_server.disable_mount(mount)


def test_a_database_password_there_and_back(shop: Shop, transit: str) -> None:
    before = shop.mount.read("database")
    assert shop.rotate("--secret", "database").exit_code == 0
    assert shop.mount.read("database") != before
    assert shop.live_logs_in()

    verified = shop.run("backups", "verify")
    assert verified.exit_code == 0
    assert f"{transit}/backups" in verified.stdout
    (file,) = [x.name for x in (shop.folder / "backups").iterdir()]
    assert shop.rotate("--restore", file, "--yes").exit_code == 0
    assert shop.mount.read("database") == before
    assert shop.live_logs_in()


@pytest.mark.parametrize("after", [0, 1, 2, 3])
@pytest.mark.parametrize("status", [503, 403])
def test_an_engine_that_fails_at_any_request(
    shop: Shop, transit: str, vault_proxy: FaultProxy, after: int, status: int
) -> None:
    """The database keeps its password, and the same command goes on."""
    before = shop.mount.read("database")
    shop.more["VAULT_ADDR"] = vault_proxy.address
    asked = 0

    def late(request: RecordedRequest) -> bool:
        nonlocal asked

        if transit not in request.path:
            return False

        asked += 1
        return asked > after

    vault_proxy.answer(status, {"errors": ["no"]}, times=None, match=late)
    result = shop.rotate("--secret", "database")
    assert result.exit_code == (4 if status == 503 else 7), result.output
    assert shop.mount.read("database")["password"] == before["password"]
    assert shop.live_logs_in()
    assert not list((shop.folder / "backups").glob("*"))

    vault_proxy.heal()
    assert shop.follow(result).exit_code == 0, result.output
    assert shop.mount.read("database")["password"] != before["password"]
    assert shop.state() is None
    assert shop.live_logs_in()
