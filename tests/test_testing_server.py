from __future__ import annotations

import collections.abc as cabc
import json
import os
import pathlib
import signal
import socket
import ssl
import subprocess
import sys
import time
import typing as t

import pytest

from flask_vault.errors import VaultConfigError
from flask_vault.errors import VaultConnectionError
from flask_vault.errors import VaultError
from flask_vault.errors import VaultUnavailableError
from flask_vault.testing import binary
from flask_vault.testing import DevServer
from flask_vault.testing.api import Api
from flask_vault.testing.ports import lease_ports
from flask_vault.testing.process import GuardedProcess

READ_SECRET = 'path "secret/data/app" { capabilities = ["read"] }'

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def wait_until(condition: cabc.Callable[[], bool], timeout: float = 15.0) -> None:
    deadline = time.monotonic() + timeout

    while not condition():
        assert time.monotonic() < deadline, "It did not happen in time."
        time.sleep(0.01)


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False

    return True


def health(server: DevServer) -> int:
    return Api(server.address, ca_file=server.ca_file).ask("GET", "sys/health")[0]


def write(server: DevServer, **data: object) -> None:
    Api(server.address, ca_file=server.ca_file).call(
        "POST", "secret/data/app", {"data": data}, token=server.root_token
    )


def read(server: DevServer) -> dict[str, t.Any]:
    answer = Api(server.address, ca_file=server.ca_file).call(
        "GET", "secret/data/app", token=server.root_token
    )
    data: dict[str, t.Any] = answer["data"]["data"]
    return data


def list_mounts(server: DevServer) -> dict[str, t.Any]:
    answer = Api(server.address).call("GET", "sys/mounts", token=server.root_token)
    mounts: dict[str, t.Any] = answer["data"]
    return mounts


@pytest.fixture(scope="module")
def raft() -> cabc.Iterator[DevServer]:
    """A server with storage. A test leaves it running and unsealed."""
    with DevServer(storage="raft") as server:
        yield server


@pytest.fixture
def program(tmp_path: pathlib.Path) -> cabc.Callable[[str], pathlib.Path]:
    """Makes a program that is started in the server's place."""

    def make(script: str) -> pathlib.Path:
        path = tmp_path / "bao"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return path

    return make


def test_development_mode_is_unsealed_and_has_kv_version_2(
    vault_server: DevServer,
) -> None:
    assert health(vault_server) == 200
    write(vault_server, key="value")
    assert read(vault_server) == {"key": "value"}


@linux_only
def test_it_listens_on_loopback_only(vault_server: DevServer) -> None:
    port = int(vault_server.address.rpartition(":")[2])
    lines = pathlib.Path("/proc/net/tcp").read_text().splitlines()[1:]
    lines += pathlib.Path("/proc/net/tcp6").read_text().splitlines()[1:]
    listening = [line.split()[1] for line in lines if line.split()[3] == "0A"]
    ours = {
        address
        for address in listening
        if int(address.rpartition(":")[2], 16) in (port, port + 1)
    }
    assert ours == {f"0100007F:{port:04X}", f"0100007F:{port + 1:04X}"}


def test_two_servers_run_at_once_and_share_nothing(vault_server: DevServer) -> None:
    with DevServer() as other:
        assert other.address != vault_server.address
        assert other.root_token != vault_server.root_token
        write(other, whose="other")
        write(vault_server, whose="first")
        assert read(other) == {"whose": "other"}

        with pytest.raises(VaultError) as caught:
            Api(other.address).call(
                "GET", "secret/data/app", token=vault_server.root_token
            )

        assert caught.value.status == 403


def test_the_client_is_hvac_with_the_root_token(vault_server: DevServer) -> None:
    answer = vault_server.client().lookup_token()
    assert isinstance(answer, dict)
    assert answer["data"]["policies"] == ["root"]


def test_environ_points_a_client_to_it(vault_server: DevServer) -> None:
    assert vault_server.environ() == {
        "VAULT_ADDR": vault_server.address,
        "VAULT_TOKEN": vault_server.root_token,
    }


def test_the_users_own_settings_and_token_file_are_left_alone(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".vault-token").write_text("mine")
    monkeypatch.setenv("HOME", os.fspath(tmp_path))
    monkeypatch.setenv("VAULT_DEV_LISTEN_ADDRESS", "127.0.0.1:1")
    monkeypatch.setenv("BAO_LOG_LEVEL", "nonsense")
    monkeypatch.setenv("VAULT_TOKEN", "mine")

    with DevServer() as server:
        assert health(server) == 200

    assert (tmp_path / ".vault-token").read_text() == "mine"


@linux_only
@pytest.mark.parametrize("storage", [None, "raft"])
def test_the_root_token_is_in_no_argument_no_file_and_no_repr(
    storage: t.Literal["raft"] | None,
) -> None:
    with DevServer(storage=storage) as server:
        token = server.root_token
        guard = int(pathlib.Path(f"/proc/{server.pid}/stat").read_text().split()[3])

        for pid in (server.pid, guard):
            arguments = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
            assert arguments
            assert token.encode() not in arguments

        assert token not in repr(server)
        assert "core" in server.log()
        folder = server.log_path.parent
        assert folder.stat().st_mode & 0o777 == 0o700
        files = [path for path in folder.rglob("*") if path.is_file()]
        assert server.log_path in files

        for path in files:
            assert token.encode() not in path.read_bytes(), path


def test_the_address_is_asked_for_too_early() -> None:
    server = DevServer()
    assert repr(server) == "<DevServer not started dev>"
    assert not server.running

    with pytest.raises(VaultConfigError, match=r"call 'start\(\)' first"):
        _ = server.address

    with pytest.raises(VaultUnavailableError, match="not running"):
        _ = server.pid


def test_close_removes_everything_and_may_be_repeated() -> None:
    server = DevServer().start()
    pid, folder, port = server.pid, server.log_path.parent, server._port
    assert port is not None
    server.close()
    server.close()
    assert not exists(pid)
    assert not folder.exists()
    assert not is_open(port)
    assert not server.running
    assert server.log() == ""

    with pytest.raises(VaultConfigError, match="is closed"):
        server.start()


def test_a_server_with_storage_can_be_sealed_and_unsealed(raft: DevServer) -> None:
    write(raft, key="value")
    raft.seal()
    assert health(raft) == 503
    assert raft.running
    raft.unseal()
    assert health(raft) == 200
    assert read(raft) == {"key": "value"}


def test_development_mode_can_be_sealed_and_unsealed() -> None:
    with DevServer() as server:
        write(server, key="value")
        server.seal()
        assert health(server) == 503
        server.unseal()
        assert read(server) == {"key": "value"}


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_server_with_storage_keeps_its_data(raft: DevServer, end: str) -> None:
    write(raft, end=end)
    before = raft.address, raft.pid
    getattr(raft, end)()
    assert not raft.running

    with pytest.raises(VaultConnectionError, match="Is it running"):
        health(raft)

    raft.restart()
    assert raft.address == before[0]
    assert raft.pid != before[1]
    assert read(raft) == {"end": end}


def test_restart_stops_a_running_server(raft: DevServer) -> None:
    write(raft, key="kept")
    pid = raft.pid
    raft.restart()
    assert raft.pid != pid
    assert read(raft) == {"key": "kept"}
    log = raft.log()
    assert log.count("cluster-listener.tcp: starting listener") >= 2


def test_a_restart_may_leave_it_sealed(raft: DevServer) -> None:
    raft.restart(unseal=False)
    assert health(raft) == 503
    raft.unseal()
    assert health(raft) == 200


def test_start_does_nothing_when_it_runs(raft: DevServer) -> None:
    pid = raft.pid
    raft.start()
    assert raft.pid == pid


def test_development_mode_comes_back_empty_with_the_same_token() -> None:
    with DevServer() as server:
        write(server, key="lost")
        token = server.root_token
        server.kill()
        server.restart()
        assert server.root_token == token

        with pytest.raises(VaultError) as caught:
            read(server)

        assert caught.value.status == 404
        write(server, key="new")


def test_it_can_be_left_uninitialized() -> None:
    with DevServer(storage="raft", initialize=False) as server:
        assert health(server) == 501

        with pytest.raises(VaultConfigError, match=r"initialize\(\)"):
            _ = server.root_token

        with pytest.raises(VaultConfigError, match=r"initialize\(\)"):
            server.unseal()

        server.initialize()
        assert health(server) == 200
        write(server, key="value")


def test_it_can_be_started_sealed() -> None:
    server = DevServer(storage="raft")

    try:
        server.start(unseal=False)
        assert health(server) == 503
        server.unseal()
        write(server, key="value")
    finally:
        server.close()


def test_file_storage_says_when_it_became_raft() -> None:
    with DevServer(storage="file") as server:
        assert health(server) == 200
        kind = "raft" if "openbao" in server.binary else "file"
        assert server.storage == kind
        assert repr(server) == f"<DevServer {server.address} {kind}>"


@pytest.mark.parametrize("storage", [None, "raft"])
def test_tls_is_trusted_through_its_own_authority(
    storage: t.Literal["raft"] | None,
) -> None:
    with DevServer(storage=storage, tls=True) as server:
        assert server.address.startswith("https://127.0.0.1:")
        assert server.ca_file is not None
        assert server.environ()["VAULT_CACERT"] == server.ca_file
        assert health(server) == 200
        named = server.address.replace("127.0.0.1", "localhost")
        assert Api(named, ca_file=server.ca_file).ask("GET", "sys/health")[0] == 200
        assert server.client().is_authenticated()

        with pytest.raises(VaultConnectionError) as caught:
            Api(server.address).ask("GET", "sys/health")

        assert isinstance(caught.value.__cause__, ssl.SSLCertVerificationError)


def test_create_approle_gives_a_login_with_just_that_policy(
    vault_server: DevServer,
) -> None:
    write(vault_server, key="value")
    api = Api(vault_server.address)

    for name in ("web", "worker"):  # The login method is enabled once.
        role_id, secret_id = vault_server.create_approle(
            name, READ_SECRET, token_ttl="7s"
        )
        login = api.call(
            "POST",
            "auth/approle/login",
            {"role_id": role_id, "secret_id": secret_id},
        )["auth"]
        assert login["lease_duration"] == 7
        assert login["policies"] == ["default", name]
        token = login["client_token"]
        answer = api.call("GET", "secret/data/app", token=token)
        assert answer["data"]["data"] == {"key": "value"}

        with pytest.raises(VaultError) as caught:
            api.call("POST", "secret/data/app", {"data": {}}, token=token)

        assert caught.value.status == 403


@pytest.mark.parametrize("version", [1, 2])
def test_a_kv_mount_can_be_written_at_once(
    vault_server: DevServer, version: int
) -> None:
    mount = f"kv-{version}"
    vault_server.enable_kv(mount, version)
    path = f"{mount}/app" if version == 1 else f"{mount}/data/app"
    api = Api(vault_server.address)
    api.call("POST", path, {"data": {"a": "b"}}, token=vault_server.root_token)
    assert list_mounts(vault_server)[f"{mount}/"]["options"] == {
        "version": str(version)
    }
    vault_server.disable_mount(mount)
    assert f"{mount}/" not in list_mounts(vault_server)


def test_a_refused_call_says_what_the_server_said(vault_server: DevServer) -> None:
    with pytest.raises(VaultError, match="already in use at secret/") as caught:
        vault_server.enable_kv("secret")

    assert caught.value.status == 400


# What may go wrong.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"storage": "consul"}, "'storage' is 'consul'. Give 'file' or 'raft'"),
        ({"initialize": False}, "Give 'storage' too"),
        ({"binary": "/nowhere/bao"}, "'binary' names '/nowhere/bao'"),
    ],
)
def test_wrong_options_are_refused_before_anything_starts(
    options: dict[str, t.Any], message: str
) -> None:
    with pytest.raises(VaultConfigError) as caught:
        DevServer(**options)

    assert message in str(caught.value)


def test_the_binary_is_the_argument_then_the_variable_then_on_path(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(name: str) -> str:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
        return os.fspath(path)

    argument, variable, vault = make("argument"), make("variable"), make("bin/vault")
    monkeypatch.setenv(binary.VARIABLE, variable)
    monkeypatch.setenv("PATH", os.path.dirname(vault))
    assert binary.find_binary(argument) == argument
    assert binary.find_binary() == variable
    monkeypatch.delenv(binary.VARIABLE)
    assert binary.find_binary() == vault
    assert binary.find_binary() != make("bin/bao") == binary.find_binary()


def test_the_binary_of_the_wheel_is_found_without_path(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(binary.VARIABLE, raising=False)
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    assert os.path.basename(binary.find_binary()) == "bao"


def test_no_binary_at_all_is_a_sentence_with_the_cure(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(binary.VARIABLE, raising=False)
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    monkeypatch.setattr(sys, "executable", os.fspath(tmp_path / "python"))

    with pytest.raises(VaultConfigError, match=r"pip install 'flask-vault\[testing\]'"):
        DevServer()


def test_the_variable_is_named_when_it_is_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(binary.VARIABLE, "no-such-program")

    with pytest.raises(VaultConfigError, match=f"'{binary.VARIABLE}' names"):
        DevServer()


def test_a_server_that_ends_at_once_is_noticed_with_its_last_words(
    program: cabc.Callable[[str], pathlib.Path],
) -> None:
    path = program("echo from the console; echo from the log >&2; exit 3")
    server = DevServer(binary=path, timeout=60)
    began = time.monotonic()

    with pytest.raises(VaultUnavailableError) as caught:
        server.start()

    assert time.monotonic() - began < 10
    assert "ended with status 3" in str(caught.value)
    assert "from the console" in str(caught.value)
    assert "from the log" in str(caught.value)
    server.close()


def test_the_token_is_not_among_the_last_words(
    program: cabc.Callable[[str], pathlib.Path],
) -> None:
    path = program('echo "Root Token: $BAO_DEV_ROOT_TOKEN_ID"; exit 1')

    with pytest.raises(VaultUnavailableError, match=r"Root Token: \[redacted\]"):
        DevServer(binary=path).start()


def test_a_server_that_is_never_ready_is_ended(
    program: cabc.Callable[[str], pathlib.Path],
) -> None:
    server = DevServer(binary=program("echo thinking; exec sleep 600"), timeout=0.2)

    with pytest.raises(VaultUnavailableError, match="After 0.2 seconds") as caught:
        server.start()

    assert "does not answer" in str(caught.value)
    assert "thinking" in str(caught.value)
    assert not server.running
    server.close()


def test_nothing_is_left_of_a_server_that_did_not_start(
    program: cabc.Callable[[str], pathlib.Path],
) -> None:
    server = DevServer(binary=program("exit 1"))

    with pytest.raises(VaultUnavailableError, match="ended with status 1"):
        with server:
            pass

    assert not server._folder.exists()


def test_a_program_that_cannot_be_run_is_a_sentence(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "bao"
    path.write_bytes(b"\x7fELF and then nothing")
    path.chmod(0o755)

    with pytest.raises(VaultConfigError, match="cannot be run"):
        DevServer(binary=path).start()


def test_a_given_port_that_is_taken_is_a_sentence() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()

        with pytest.raises(VaultUnavailableError, match="address already in use"):
            DevServer(port=taken.getsockname()[1]).start()


def test_a_chosen_port_that_is_lost_to_somebody_faster_is_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        lost = taken.getsockname()[1]
        answers = iter([(lost, socket.socket()), lease_ports()])
        monkeypatch.setattr(
            "flask_vault.testing.server.lease_ports", lambda: next(answers)
        )

        with DevServer() as server:
            assert health(server) == 200
            assert server.address != f"http://127.0.0.1:{lost}"


# It never outlives its owner.

HOLDER = """
import json
import os
import subprocess
import sys
from flask_vault.testing import DevServer

storage, child = json.loads(sys.argv[1])
server = DevServer(storage=storage).start()

if child == "exec":
    # Even one that is given whatever can be inherited.
    subprocess.Popen(["sleep", "600"], close_fds=False, stdout=subprocess.DEVNULL)
elif child == "fork" and os.fork() == 0:
    os.close(1)
    import time
    time.sleep(600)

print(json.dumps([os.getpid(), server.pid, server._port, str(server.log_path.parent)]))
sys.stdout.flush()
sys.stdin.read()
"""


class Holder(t.NamedTuple):
    process: subprocess.Popen[str]
    pid: int
    server: int
    port: int
    folder: pathlib.Path

    def wait_until_gone(self) -> None:
        wait_until(lambda: not exists(self.server))
        wait_until(lambda: not self.folder.exists())
        assert not is_open(self.port)


@pytest.fixture
def hold() -> cabc.Iterator[cabc.Callable[..., Holder]]:
    """Starts another interpreter that holds a server, and maybe has a child."""
    started: list[subprocess.Popen[str]] = []

    def start(storage: str | None = None, child: str | None = None) -> Holder:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, json.dumps([storage, child])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        assert process.stdout is not None
        pid, server, port, folder = json.loads(process.stdout.readline())
        assert is_open(port)
        return Holder(process, pid, server, port, pathlib.Path(folder))

    yield start

    for process in started:
        with process:
            try:
                # And its child, which may have outlived it.
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass


@pytest.mark.parametrize("storage", [None, "raft"])
def test_it_goes_when_its_owner_is_killed(
    hold: cabc.Callable[..., Holder], storage: str | None
) -> None:
    holder = hold(storage)
    holder.process.kill()
    holder.wait_until_gone()


@pytest.mark.parametrize("child", ["exec", "fork"])
def test_a_child_of_its_owner_does_not_keep_it(
    hold: cabc.Callable[..., Holder], child: str
) -> None:
    holder = hold(child=child)
    holder.process.kill()
    holder.wait_until_gone()


def test_it_goes_when_its_owner_is_killed_while_it_is_frozen(
    hold: cabc.Callable[..., Holder],
) -> None:
    holder = hold()
    os.kill(holder.server, signal.SIGSTOP)
    holder.process.kill()
    holder.wait_until_gone()


def test_it_goes_when_its_owner_ends_without_closing_it(
    hold: cabc.Callable[..., Holder],
) -> None:
    holder = hold()
    assert holder.process.stdin is not None
    holder.process.stdin.close()
    assert holder.process.wait(15) == 0
    holder.wait_until_gone()


def test_a_terminals_ctrl_c_is_for_its_owner_alone(
    hold: cabc.Callable[..., Holder],
) -> None:
    holder = hold()
    # What a terminal does: a signal to all processes of its foreground group.
    os.killpg(holder.pid, signal.SIGINT)
    holder.process.wait(15)
    holder.wait_until_gone()  # By the owner's own clean-up.
    assert os.getsid(0) != holder.pid


def test_it_is_in_no_session_of_its_owner(vault_server: DevServer) -> None:
    assert os.getsid(vault_server.pid) == vault_server.pid != os.getsid(0)


@linux_only
def test_it_goes_when_the_guard_is_killed() -> None:
    server = DevServer().start()
    pid, folder = server.pid, server.log_path.parent
    guard = int(pathlib.Path(f"/proc/{pid}/stat").read_text().split()[3])
    os.kill(guard, signal.SIGKILL)
    wait_until(lambda: not exists(pid))
    assert not server.running

    with pytest.raises(VaultUnavailableError, match="guards the test server is gone"):
        _ = server.pid

    server.close()
    assert not folder.exists()


def test_the_guard_can_be_terminated_by_an_operator() -> None:
    server = DevServer().start()
    pid, folder = server.pid, server.log_path.parent
    assert server._guard is not None
    server._guard._guard.terminate()
    wait_until(lambda: not exists(pid))
    wait_until(lambda: not folder.exists())
    server.close()


def test_a_server_that_dies_is_known_to_be_dead_and_leaves_its_log() -> None:
    with DevServer() as server:
        pid = server.pid
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not exists(pid))  # Not a zombie either.
        assert not server.running
        assert "core" in server.log()


def test_a_forked_child_neither_uses_nor_ends_it(vault_server: DevServer) -> None:
    pid = os.fork()

    if pid == 0:
        status = 1

        try:
            assert not vault_server.running

            with pytest.raises(VaultUnavailableError, match="forked this one"):
                _ = vault_server.pid

            vault_server._clean_up()
            status = 0
        finally:
            os._exit(status)

    assert os.waitpid(pid, 0)[1] == 0
    assert vault_server.running
    assert health(vault_server) == 200


def test_an_answer_that_nobody_awaited_is_not_taken_for_the_next() -> None:
    guard = GuardedProcess()

    try:
        guard._write(b'{"number": 77, "do": "state"}\n')  # And then a Ctrl-C.
        assert guard.order("state") == {"number": 1, "pid": None, "returncode": None}
    finally:
        guard.close()
