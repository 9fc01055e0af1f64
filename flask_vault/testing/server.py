"""A real OpenBao or Vault for tests, demos and ``flask vault dev``."""

from __future__ import annotations

import os
import pathlib
import re
import secrets
import shutil
import socket
import time
import typing as t
import weakref

from ..errors import VaultConfigError
from ..errors import VaultConnectionError
from ..errors import VaultUnavailableError
from .api import Api
from .binary import find_binary
from .config import Storage
from .config import write_config
from .ports import lease_ports
from .process import GRACE
from .process import GuardedProcess
from .tls import write_certificates

if t.TYPE_CHECKING:
    import hvac

D = t.TypeVar("D", bound="DevServer")

#: Programs that were found to know no file storage.
_without_file_storage: set[str] = set()


class _ServerEnded(VaultUnavailableError):
    """The process ended before it was ready."""


def _clean_up(guard: GuardedProcess, leases: list[socket.socket]) -> None:
    """What is left to do for a server that nobody has any more."""
    guard.close()

    for lease in leases:
        lease.close()


class DevServer:
    """Runs ``bao server`` or ``vault server`` on loopback, for as long as this object
    lives and never longer than this process, even when that is killed.

    Without ``storage`` it is the program's own development mode: in memory, started
    in a quarter of a second, unsealed, a KV version 2 engine at ``secret/``. With
    ``storage`` it is a real server with its data in a temporary folder, which this
    class initializes and unseals, and which can be stopped, killed and restarted
    with its data kept.

    .. code-block:: python

        with DevServer() as server:
            server.client().secrets.kv.v2.create_or_update_secret(
                "app", secret={"key": "value"}, mount_point="secret"
            )
            app.config.from_mapping(server.environ())

    :param binary: the ``bao`` or ``vault`` to run. Looked for when not given, see
        :func:`~flask_vault.testing.binary.find_binary`.
    :param storage: ``"file"`` or ``"raft"``. OpenBao has no file storage any more;
        asked for it, it gets raft, and :attr:`storage` says so.
    :param tls: serve ``https`` with a certificate for ``127.0.0.1`` and
        ``localhost``, whose authority is in :attr:`ca_file`.
    :param initialize: ``False`` leaves a server with ``storage`` uninitialized: it
        answers 501 to a health check until :meth:`initialize` is called.
    :param port: the port to listen on, with the port above it for the server's
        own use. Free ones are chosen when not given.
    :param timeout: how long the server may take to become ready, in seconds.
    :raise VaultConfigError: when there is no program to run.
    """

    def __init__(
        self,
        *,
        binary: str | os.PathLike[str] | None = None,
        storage: Storage | None = None,
        tls: bool = False,
        initialize: bool = True,
        port: int | None = None,
        timeout: float = 30.0,
    ) -> None:
        if os.name != "posix":
            raise VaultConfigError("'DevServer' runs on Linux and macOS only.")

        if storage not in (None, "file", "raft"):
            raise VaultConfigError(
                f"'storage' is {storage!r}. Give 'file' or 'raft', or leave it out."
            )

        if not initialize and storage is None:
            raise VaultConfigError(
                "A server in development mode initializes itself. Give 'storage' too"
                " for one that is not initialized."
            )

        self.binary = find_binary(binary)
        #: The storage that is in use, ``None`` for development mode.
        self.storage: Storage | None = storage
        #: The certificate authority to trust, once started with ``tls``.
        self.ca_file: str | None = None
        self._tls = tls
        self._initialize = initialize
        self._timeout = timeout
        self._port = port
        self._chosen = port is None
        self._started = False
        self._leases: list[socket.socket] = []
        self._guard: GuardedProcess | None = None
        self._closed = False
        self._certificate: tuple[str, str] | None = None
        self._root_token: str | None = None
        self._unseal_keys: list[str] = []

        if storage is None:
            self._root_token = f"dev-root-{secrets.token_hex(16)}"

    # What a caller wants to know.

    @property
    def address(self) -> str:
        """Such as ``http://127.0.0.1:20001``. The same after a restart."""
        if self._port is None:
            raise VaultConfigError(
                "This 'DevServer' has no address yet. Use it as a context manager or"
                " call 'start()' first."
            )

        return f"http{'s' if self._tls else ''}://127.0.0.1:{self._port}"

    @property
    def root_token(self) -> str:
        """A token that may do everything."""
        if self._root_token is None:
            raise VaultConfigError(
                "This 'DevServer' has no root token yet. Call 'initialize()' first."
            )

        return self._root_token

    @property
    def pid(self) -> int:
        """The server's process id."""
        pid = self._state()["pid"]

        if pid is None:
            raise VaultUnavailableError(
                "The test server is not running. Call 'start()' or 'restart()'."
            )

        return int(pid)

    @property
    def running(self) -> bool:
        """Whether the process lives, be it sealed or not."""
        try:
            return self._state()["pid"] is not None
        except VaultUnavailableError:
            return False

    @property
    def log_path(self) -> pathlib.Path:
        """Where the server writes its log, through all restarts."""
        return self._folder / "server.log"

    def log(self) -> str:
        """What the server has logged so far."""
        try:
            return self._redact(self.log_path.read_text("utf-8", "replace"))
        except FileNotFoundError:
            return ""

    def environ(self) -> dict[str, str]:
        """The variables that point a client here: ``VAULT_ADDR``, ``VAULT_TOKEN``
        and, with ``tls``, ``VAULT_CACERT``."""
        found = {"VAULT_ADDR": self.address, "VAULT_TOKEN": self.root_token}

        if self.ca_file is not None:
            found["VAULT_CACERT"] = self.ca_file

        return found

    def client(self) -> hvac.Client:
        """A new client with the root token."""
        import hvac
        import requests

        session = requests.Session()
        # Proxies and certificate bundles from the environment are for others.
        session.trust_env = False

        if self.ca_file is not None:
            session.verify = self.ca_file

        return hvac.Client(url=self.address, token=self.root_token, session=session)

    def __repr__(self) -> str:
        where = "not started" if self._port is None else self.address
        return f"<{type(self).__name__} {where} {self.storage or 'dev'}>"

    # Its life.

    def __enter__(self: D) -> D:
        try:
            return self.start()
        except BaseException:
            self.close()  # Nobody else will.
            raise

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def start(self: D, *, unseal: bool = True) -> D:
        """Start the server and wait until it is ready. Does nothing when it runs.

        :param unseal: ``False`` leaves it sealed.
        :raise VaultUnavailableError: when it ends or does not become ready in time;
            the message holds the end of its log.
        """
        if self._closed:
            raise VaultConfigError("This 'DevServer' is closed. Make a new one.")

        if self._guard is None:
            self._guard = GuardedProcess()
            # At the interpreter's end too, if nobody closes it before.
            self._clean_up = weakref.finalize(
                self, _clean_up, self._guard, self._leases
            )
        elif self.running:
            return self

        try:
            self._launch()
            self._make_ready(unseal)
        except BaseException:
            # Also a Ctrl-C. The folder stays for the log until close().
            self.kill()
            raise

        return self

    def stop(self) -> None:
        """Stop the server as an operator would. Its data and log stay until
        :meth:`close`; development mode has no data to keep."""
        self._order("stop", grace=GRACE)

    def kill(self) -> None:
        """End the server at once, with SIGKILL. Its data stays."""
        self._order("stop", grace=0)

    def restart(self, *, unseal: bool = True) -> None:
        """Stop the server if it runs, and start it on the same port.

        In development mode it comes back empty, with the same root token.

        :param unseal: ``False`` leaves it sealed.
        """
        self.stop()
        self.start(unseal=unseal)

    def close(self) -> None:
        """Stop the server and remove its folder. It cannot be started again."""
        if self._guard is not None and not self._closed:
            try:
                self.kill()  # Nothing is kept, so nothing needs time to be saved.
            except VaultUnavailableError:
                pass  # The guard is gone, or is not ours but our parent's.

            self._clean_up()

        self._closed = True

    # Its state.

    def initialize(self) -> None:
        """Initialize with one key share, unseal, and enable ``secret/``."""
        answer = self._api.call(
            "PUT", "sys/init", {"secret_shares": 1, "secret_threshold": 1}
        )
        self._root_token = answer["root_token"]
        self._unseal_keys = answer["keys_base64"]
        self.unseal()
        self.enable_kv("secret")

    def seal(self) -> None:
        """Seal the server: it answers 503 until :meth:`unseal`."""
        self._call("PUT", "sys/seal")
        self._await_health(503)

    def unseal(self) -> None:
        """Unseal the server and wait until it serves."""
        if not self._unseal_keys:
            raise VaultConfigError(
                "This 'DevServer' has no unseal key. Call 'initialize()' first."
            )

        for key in self._unseal_keys:
            self._api.call("PUT", "sys/unseal", {"key": key})

        self._await_service()

    # What tests need on it.

    def enable_kv(self, mount: str, version: int = 2) -> None:
        """Mount a KV secrets engine and wait until it can be written.

        :param mount: such as ``secret``.
        :param version: of the engine, 1 or 2.
        """
        self._call(
            "POST",
            f"sys/mounts/{mount}",
            {"type": "kv", "options": {"version": str(version)}},
        )

        if version == 2:
            self._await_kv(mount)

    def disable_mount(self, mount: str) -> None:
        """Unmount a secrets engine. Everything in it is lost."""
        self._call("DELETE", f"sys/mounts/{mount}")

    def create_approle(
        self, name: str, policy_hcl: str, **role_options: object
    ) -> tuple[str, str]:
        """Make an AppRole with a policy of the same name, and one secret id for it.
        Enables the AppRole login method when it is missing.

        :param name: of the role and the policy.
        :param policy_hcl: what the role may do, in Vault's policy language.
        :param role_options: parameters of the role, such as ``token_ttl="5s"``.
        :return: the role id and the secret id.
        """
        if "approle/" not in self._call("GET", "sys/auth")["data"]:
            self._call("POST", "sys/auth/approle", {"type": "approle"})

        role = f"auth/approle/role/{name}"
        self._call("PUT", f"sys/policies/acl/{name}", {"policy": policy_hcl})
        self._call("POST", role, {"token_policies": [name], **role_options})
        role_id = self._call("GET", f"{role}/role-id")["data"]["role_id"]
        secret_id = self._call("POST", f"{role}/secret-id", {})["data"]["secret_id"]
        return role_id, secret_id

    # Behind it.

    @property
    def _folder(self) -> pathlib.Path:
        if self._guard is None:
            raise VaultConfigError("This 'DevServer' was not started. Call 'start()'.")

        return self._guard.folder

    @property
    def _api(self) -> Api:
        return Api(self.address, ca_file=self.ca_file)

    def _call(self, method: str, path: str, body: object = None) -> dict[str, t.Any]:
        return self._api.call(method, path, body, token=self.root_token)

    def _order(self, do: str, **arguments: object) -> dict[str, t.Any]:
        if self._guard is None or self._closed:
            return {"pid": None, "returncode": None}

        return self._guard.order(do, **arguments)

    def _state(self) -> dict[str, t.Any]:
        return self._order("state")

    def _launch(self) -> None:
        """Start the process and wait for its first answer."""
        if self.storage == "file" and self.binary in _without_file_storage:
            self.storage = "raft"

        attempts = 5

        while True:
            if self._chosen and not self._leases:
                self._port, lease = lease_ports()
                self._leases.append(lease)

            try:
                return self._launch_once()
            except _ServerEnded as error:
                attempts -= 1
                said = str(error).lower()

                if self.storage == "file" and "unknown storage type" in said:
                    _without_file_storage.add(self.binary)
                    self.storage = "raft"
                elif (
                    # Somebody was faster. A server that was here before must not
                    # move, or its restart would not be one.
                    "address already in use" in said
                    and self._leases
                    and not self._started
                    and attempts
                ):
                    self._leases.pop().close()
                else:
                    raise

    def _launch_once(self) -> None:
        argv = [self.binary, "server"]
        # What steers a client or another server of this machine is not for ours.
        env = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("VAULT_", "BAO_"))
        }
        env["HOME"] = os.fspath(self._folder)

        if self.storage is None:
            argv += [
                "-dev",
                "-dev-no-store-token",
                f"-dev-listen-address=127.0.0.1:{self._port}",
            ]
            env["BAO_DEV_ROOT_TOKEN_ID"] = self.root_token
            env["VAULT_DEV_ROOT_TOKEN_ID"] = self.root_token

            if self._tls:
                folder = self._folder / "tls"
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                self.ca_file = None
                argv += ["-dev-tls", f"-dev-tls-cert-dir={folder}"]
        else:
            if self._tls and self._certificate is None:
                self.ca_file, *pair = write_certificates(self._folder)
                self._certificate = (pair[0], pair[1])

            argv.append(f"-config={self._write_config()}")

        # Development mode prints the root token and the unseal key there, after its
        # start. It is read here and removed, so that neither stays in a file.
        console = self._folder / "console"
        self._order(
            "start",
            argv=argv,
            env=env,
            log=os.fspath(self.log_path),
            console=os.fspath(console),
        )

        try:
            self._await_health(200, 429, 473, 501, 503)

            if self.storage is None:
                self._unseal_keys = self._read_unseal_keys(console)
        finally:
            console.unlink(missing_ok=True)

    def _write_config(self) -> pathlib.Path:
        storage = t.cast("Storage", self.storage)
        return write_config(self._folder, storage, self.address, self._certificate)

    def _read_unseal_keys(self, console: pathlib.Path) -> list[str]:
        """Development mode tells its unseal key nowhere else."""
        deadline = time.monotonic() + 5

        while time.monotonic() < deadline:
            found = re.findall(r"^Unseal Key: *(\S+)", console.read_text(), re.M)

            if found:
                return found

            time.sleep(0.01)

        return []

    def _make_ready(self, unseal: bool) -> None:
        status, _ = self._api.ask("GET", "sys/health")

        if status == 501:
            if self._initialize:
                self.initialize()

                if not unseal:
                    self.seal()
        elif status != 503:
            self._await_service()
        elif unseal:
            self.unseal()

        self._started = True

    def _await_service(self) -> None:
        """Wait until an unsealed server takes reads and writes."""
        self._await_health(200)
        _, answer = self._api.ask("GET", "sys/mounts", token=self._root_token)

        for mount, engine in (answer.get("data") or {}).items():
            if engine["type"] == "kv" and "2" in (engine["options"] or {}).values():
                self._await_kv(mount.rstrip("/"))

    def _await_health(self, *wanted: int) -> None:
        """Wait until the health check answers with one of these status codes."""
        deadline = time.monotonic() + self._timeout
        status = None

        while True:
            if self._tls and self.storage is None and self.ca_file is None:
                for path in (self._folder / "tls").glob("*ca*.pem"):
                    self.ca_file = os.fspath(path)

            try:
                # Soon asked again: what holds the port may be no server at all.
                api = Api(self.address, ca_file=self.ca_file, timeout=1.0)
                status, _ = api.ask("GET", "sys/health")
            except VaultConnectionError:
                status = None

            # Asked in any case: an answer may come from another server that has
            # taken the port.
            state = self._state()

            if state["pid"] is None:
                raise _ServerEnded(
                    f"The test server ended with status {state['returncode']}. Its"
                    f" last words:\n{self._last_words()}"
                )

            if status in wanted:
                return

            if time.monotonic() > deadline:
                said = "does not answer" if status is None else f"answers {status}"
                raise VaultUnavailableError(
                    f"After {self._timeout:g} seconds the test server {said}. Give it"
                    f" a longer 'timeout', or see its last words:\n"
                    f"{self._last_words()}",
                    status=status,
                )

            time.sleep(0.01)

    def _await_kv(self, mount: str) -> None:
        """A new KV version 2 engine refuses everything until it has upgraded its
        empty store."""
        deadline = time.monotonic() + self._timeout

        while time.monotonic() < deadline:
            status, answer = self._api.ask(
                "GET", f"{mount}/config", token=self.root_token
            )

            if status != 400 or "pgrad" not in str(answer.get("errors")):
                return

            time.sleep(0.01)

    def _last_words(self) -> str:
        said = []

        for path in (self.log_path, self._folder / "console"):
            try:
                text = path.read_text("utf-8", "replace")
            except FileNotFoundError:
                continue

            said += text.splitlines()[-12:]

        return self._redact("\n".join(said)) or "(nothing)"

    def _redact(self, text: str) -> str:
        for secret in (self._root_token, *self._unseal_keys):
            if secret:
                text = text.replace(secret, "[redacted]")

        return text
