"""Fixtures with a real server, for this project's suite and for users'.

.. code-block:: python

    def test_my_app(vault_mount):
        vault_mount.write("flask", {"secret_key": "value"})
        app = create_app(vault_mount.config(VAULT_SECRETS={...}))

Loaded by pytest itself when Flask-Vault is installed (an entry point of the group
``pytest11``), so nothing is imported here before a fixture is used.
"""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import os
import secrets
import typing as t

import pytest

if t.TYPE_CHECKING:
    from .proxy import FaultProxy
    from .server import DevServer

#: Set it to skip the tests that need a server where there is no program to run.
SKIP_VARIABLE = "FLASK_VAULT_SKIP_WITHOUT_SERVER"


@dataclasses.dataclass(frozen=True)
class VaultMount:
    """A KV version 2 engine that only this test uses."""

    #: The name of the mount, for ``VAULT_MOUNT``.
    name: str
    #: The server's address, for ``VAULT_ADDR``.
    address: str
    #: A token that may do everything, for ``VAULT_TOKEN``.
    token: str = dataclasses.field(repr=False)

    def write(self, path: str, data: cabc.Mapping[str, object]) -> int:
        """Write a document.

        :return: its new version.
        """
        answer = self._call("POST", path, {"data": dict(data)})
        return int(answer["data"]["version"])

    def read(self, path: str, version: int | None = None) -> dict[str, t.Any]:
        """Read a document, in its newest version when none is given."""
        query = "" if version is None else f"?version={version}"
        data: dict[str, t.Any] = self._call("GET", path + query)["data"]["data"]
        return data

    def config(self, **extra: object) -> dict[str, object]:
        """What ``app.config.from_mapping`` needs to use this mount.

        :param extra: more keys, or other values for these.
        """
        return {
            "VAULT_ADDR": self.address,
            "VAULT_TOKEN": self.token,
            "VAULT_MOUNT": self.name,
            # A test does not wait for a server that is away.
            "VAULT_STARTUP_TIMEOUT": 0,
            **extra,
        }

    def _call(self, method: str, path: str, body: object = None) -> dict[str, t.Any]:
        from .api import Api

        return Api(self.address).call(
            method, f"{self.name}/data/{path}", body, token=self.token
        )


@pytest.fixture(scope="session")
def vault_server() -> cabc.Iterator[DevServer]:
    """A server in development mode, one for each process that runs tests. A test that
    stops or seals a server starts a :class:`~flask_vault.testing.DevServer` of its
    own."""
    from ..errors import VaultConfigError
    from .server import DevServer

    try:
        server = DevServer()
    except VaultConfigError as error:
        if os.environ.get(SKIP_VARIABLE):
            pytest.skip(str(error))

        pytest.fail(
            f"{error} To skip such tests instead, set {SKIP_VARIABLE}=1.", pytrace=False
        )

    with server:
        yield server


@pytest.fixture
def vault_mount(vault_server: DevServer) -> cabc.Iterator[VaultMount]:
    """A fresh KV version 2 engine, removed after the test."""
    from ..errors import VaultError

    name = f"test-{secrets.token_hex(6)}"
    vault_server.enable_kv(name)
    yield VaultMount(name, vault_server.address, vault_server.root_token)

    try:
        vault_server.disable_mount(name)
    except VaultError:
        # The test has stopped the server or removed the mount. Then there is nothing
        # to clean, and the next test that needs it says so better.
        pass


@pytest.fixture
def vault_proxy(vault_server: DevServer) -> cabc.Iterator[FaultProxy]:
    """A :class:`~flask_vault.testing.FaultProxy` before the server, one per test."""
    from .proxy import FaultProxy

    with FaultProxy(vault_server.address) as proxy:
        yield proxy
