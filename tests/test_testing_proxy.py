from __future__ import annotations

import collections.abc as cabc
import concurrent.futures
import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
import typing as t

import pytest

from flask_vault.testing import DevServer
from flask_vault.testing import FaultProxy
from flask_vault.testing.plugin import VaultMount

READ_NOTHING = 'path "secret/*" { capabilities = ["deny"] }'


class Client:
    """One keep-alive connection with a token."""

    def __init__(self, proxy: FaultProxy, token: str = "", timeout: float = 10) -> None:
        host = proxy.address.removeprefix("http://")
        self.connection = http.client.HTTPConnection(host, timeout=timeout)
        self.headers = {"X-Vault-Token": token}

    def ask(
        self, method: str, path: str, body: object = None
    ) -> tuple[int, dict[str, str], bytes]:
        try:
            self.connection.request(
                method,
                path,
                None if body is None else json.dumps(body),
                self.headers,
            )
            response = self.connection.getresponse()
            return response.status, dict(response.getheaders()), response.read()
        except BaseException:
            # Or it could not be used again.
            self.connection.close()
            raise

    def get(self, path: str) -> int:
        return self.ask("GET", path)[0]


@pytest.fixture
def connect(
    vault_proxy: FaultProxy, vault_mount: VaultMount
) -> cabc.Iterator[cabc.Callable[..., Client]]:
    clients: list[Client] = []

    def make(timeout: float = 10) -> Client:
        clients.append(Client(vault_proxy, vault_mount.token, timeout))
        return clients[-1]

    yield make

    for client in clients:
        client.connection.close()


@pytest.fixture
def client(connect: cabc.Callable[..., Client]) -> Client:
    return connect()


@pytest.fixture
def path(vault_mount: VaultMount) -> str:
    """Of a document that exists."""
    vault_mount.write("app", {"key": "value"})
    return f"/v1/{vault_mount.name}/data/app"


def fault_of(proxy: FaultProxy) -> str | None:
    return proxy.requests[-1].fault


def test_it_passes_requests_on_and_remembers_them_without_secrets(
    vault_proxy: FaultProxy, vault_mount: VaultMount, client: Client, path: str
) -> None:
    status, _, content = client.ask("GET", f"{path}?version=1")
    assert (status, json.loads(content)["data"]["data"]) == (200, {"key": "value"})
    client.ask("POST", path, {"data": {"key": "a new value"}})
    assert vault_mount.read("app") == {"key": "a new value"}
    first, second = vault_proxy.requests
    assert (first.method, first.path, first.query) == ("GET", path, "version=1")
    assert (first.status, first.fault) == (200, None)
    assert "x-vault-token" in first.headers
    assert (second.method, second.status) == ("POST", 200)
    assert vault_mount.token not in repr(vault_proxy.requests)
    assert "a new value" not in repr(vault_proxy.requests)


def test_it_counts_requests_logins_and_connections(
    vault_server: DevServer,
    vault_proxy: FaultProxy,
    connect: cabc.Callable[..., Client],
    path: str,
) -> None:
    role_id, secret_id = vault_server.create_approle("proxied", READ_NOTHING)
    one, two = connect(), connect()
    one.get(path)
    login = {"role_id": role_id, "secret_id": secret_id}
    assert one.ask("POST", "/v1/auth/approle/login", login)[0] == 200
    assert two.ask("PUT", "/v1/auth/approle/login", {"role_id": "x"})[0] == 400
    two.get("/v1/auth/approle/login")  # Is none.
    two.ask("POST", "/v1/auth/userpass/login/ann", {})  # Is one, by name.
    assert vault_proxy.count == len(vault_proxy.requests) == 5
    assert vault_proxy.logins == 3
    assert vault_proxy.connections == 2
    assert vault_proxy.open_connections == vault_proxy.max_connections == 2
    assert repr(vault_proxy) == f"<FaultProxy {vault_proxy.address} count=5>"


def test_reset_counts_anew(vault_proxy: FaultProxy, client: Client, path: str) -> None:
    vault_proxy.answer(503)
    client.get(path)
    vault_proxy.reset()
    assert vault_proxy.requests == []
    assert (vault_proxy.count, vault_proxy.logins, vault_proxy.connections) == (0, 0, 0)
    assert vault_proxy.max_connections == 1  # It is still open.
    assert client.get(path) == 503  # A fault stays.


def test_a_cut_closes_connections_and_refuses_new_ones_until_healed(
    vault_proxy: FaultProxy, connect: cabc.Callable[..., Client], path: str
) -> None:
    client, address = connect(), vault_proxy.address
    assert client.get(path) == 200
    vault_proxy.cut()
    vault_proxy.cut()  # May be repeated.

    # The one that was open,
    with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):
        client.get(path)

    # and a new one.
    with pytest.raises(ConnectionRefusedError):
        client.get(path)

    vault_proxy.heal()
    assert vault_proxy.address == address
    assert client.get(path) == 200
    assert vault_proxy.count == 2


def test_a_cut_ends_what_is_under_way(
    vault_proxy: FaultProxy, connect: cabc.Callable[..., Client], path: str
) -> None:
    vault_proxy.hang()

    with concurrent.futures.ThreadPoolExecutor() as pool:
        asked = pool.submit(connect().get, path)
        vault_proxy.wait_for(1)
        vault_proxy.cut()

        with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):
            asked.result(10)


def test_the_delay_holds_each_request_and_may_be_set_at_any_time(
    vault_proxy: FaultProxy, client: Client, path: str
) -> None:
    client.get(path)
    vault_proxy.delay = 0.2
    began = time.monotonic()
    client.get(path)
    assert 0.2 <= time.monotonic() - began < 5
    vault_proxy.heal()
    assert vault_proxy.delay == 0


@pytest.mark.parametrize(
    ("answer", "headers", "content"),
    [
        ({"status": 503}, {"Content-Type": "application/json"}, b'{"errors":[]}\n'),
        (
            {"status": 429, "headers": {"Retry-After": "3"}, "body": {"errors": ["x"]}},
            {"Retry-After": "3", "Content-Type": "application/json"},
            b'{"errors": ["x"]}',
        ),
        (
            {"status": 200, "body": "<html>Sign in</html>"},
            {"Content-Type": "text/html", "Content-Length": "20"},
            b"<html>Sign in</html>",
        ),
        (
            {"status": 307, "body": b"", "headers": {"Location": "http://x.invalid/"}},
            {"Location": "http://x.invalid/", "Content-Length": "0"},
            b"",
        ),
        (
            {"status": 200, "body": "{", "headers": {"Content-Type": "text/plain"}},
            {"Content-Type": "text/plain"},
            b"{",
        ),
        ({"status": 204}, {}, b""),
    ],
)
def test_an_answer_is_given_without_asking_the_server(
    vault_proxy: FaultProxy,
    client: Client,
    path: str,
    answer: dict[str, t.Any],
    headers: dict[str, str],
    content: bytes,
) -> None:
    vault_proxy.answer(**answer)
    status, got, body = client.ask("POST", path, {"data": {"key": "changed"}})
    assert status == answer["status"]
    assert got.items() >= headers.items()
    assert got["Date"].endswith("GMT")
    assert body == content
    assert vault_proxy.requests[-1].status == status
    assert fault_of(vault_proxy) == "answer"
    # The connection goes on, and nothing was written.
    vault_proxy.heal()
    data = json.loads(client.ask("GET", path)[2])["data"]["data"]
    assert data == {"key": "value"}
    assert vault_proxy.connections == 1


def test_an_answer_to_head_has_no_body(
    vault_proxy: FaultProxy, client: Client, path: str
) -> None:
    vault_proxy.answer(200, "hello", times=1)
    status, headers, content = client.ask("HEAD", path)
    assert (status, headers["Content-Length"], content) == (200, "5", b"")
    assert client.get(path) == 200


def test_a_fault_is_for_so_many_requests_that_match(
    vault_proxy: FaultProxy, client: Client, path: str
) -> None:
    vault_proxy.answer(503, times=2, match=r"/data/")
    assert client.get("/v1/sys/health") == 200
    assert [client.get(path) for _ in range(3)] == [503, 503, 200]


def test_a_fault_may_be_chosen_by_a_function(
    vault_proxy: FaultProxy, client: Client, path: str
) -> None:
    vault_proxy.answer(403, match=lambda request: request.method == "POST")
    assert client.get(path) == 200
    assert client.ask("POST", path, {"data": {}})[0] == 403


def test_the_newest_fault_counts(
    vault_proxy: FaultProxy, client: Client, path: str
) -> None:
    vault_proxy.answer(503)
    vault_proxy.answer(429, times=1)
    assert [client.get(path) for _ in range(3)] == [429, 503, 503]


def test_a_fault_for_no_request_is_refused(vault_proxy: FaultProxy) -> None:
    with pytest.raises(ValueError, match="'times' is 0"):
        vault_proxy.answer(503, times=0)


def test_a_dropped_reply_is_of_a_write_that_was_done(
    vault_proxy: FaultProxy, vault_mount: VaultMount, client: Client, path: str
) -> None:
    vault_proxy.drop_reply(match=r"/data/app$")

    with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):
        client.ask("POST", path, {"data": {"key": "done"}})

    assert vault_mount.read("app") == {"key": "done"}
    assert vault_proxy.requests[-1].status == 200
    assert fault_of(vault_proxy) == "drop_reply"
    assert client.get(path) == 200  # It was for one request.


def test_a_hanging_request_is_not_passed_on(
    vault_proxy: FaultProxy,
    vault_mount: VaultMount,
    connect: cabc.Callable[..., Client],
    path: str,
) -> None:
    vault_proxy.hang(path)
    impatient = connect(timeout=0.1)

    with pytest.raises(TimeoutError):
        impatient.ask("POST", path, {"data": {"key": "lost"}})

    assert impatient.get("/v1/sys/health") == 200
    assert [(r.status, r.fault) for r in vault_proxy.requests] == [
        (None, "hang"),
        (200, None),
    ]
    assert vault_mount.read("app") == {"key": "value"}


def test_healing_disconnects_what_hangs_and_nothing_else(
    vault_proxy: FaultProxy, connect: cabc.Callable[..., Client], path: str
) -> None:
    bystander, victim = connect(), connect()
    bystander.get("/v1/sys/health")
    vault_proxy.hang(path)

    with concurrent.futures.ThreadPoolExecutor() as pool:
        asked = pool.submit(victim.get, path)
        vault_proxy.wait_for(2)
        vault_proxy.heal()

        with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):
            asked.result(10)

    bystander.get("/v1/sys/health")
    assert victim.get(path) == 200
    assert vault_proxy.connections == 3


def test_waiting_for_requests_that_do_not_come_ends(vault_proxy: FaultProxy) -> None:
    with pytest.raises(TimeoutError, match="Only 0 of 1 requests came"):
        vault_proxy.wait_for(1, timeout=0.01)


# It is a good proxy otherwise.


def test_many_threads_get_their_own_answers(
    vault_proxy: FaultProxy,
    vault_mount: VaultMount,
    connect: cabc.Callable[..., Client],
) -> None:
    threads, rounds = 20, 25
    together = threading.Barrier(threads)

    for number in range(threads):
        vault_mount.write(str(number), {"number": number})

    def work(number: int) -> set[int]:
        client, seen = connect(), set()
        together.wait(10)

        for _ in range(rounds):
            answer = client.ask("GET", f"/v1/{vault_mount.name}/data/{number}")
            seen.add(json.loads(answer[2])["data"]["data"]["number"])

        return seen

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        seen = list(pool.map(work, range(threads)))

    assert seen == [{number} for number in range(threads)]
    assert vault_proxy.count == threads * rounds
    assert vault_proxy.connections == vault_proxy.max_connections == threads


def test_large_documents_pass_whole_in_both_directions(
    vault_proxy: FaultProxy, vault_mount: VaultMount, client: Client
) -> None:
    value = "v" * 700_000
    path = f"/v1/{vault_mount.name}/data/large"
    assert client.ask("POST", path, {"data": {"key": value}})[0] == 200
    _, headers, content = client.ask("GET", path)
    assert headers["Transfer-Encoding"] == "chunked"
    assert json.loads(content)["data"]["data"] == {"key": value}
    assert client.get(path) == 200
    assert vault_proxy.connections == 1


def test_a_chunked_request_passes(
    vault_mount: VaultMount, client: Client, path: str
) -> None:
    client.connection.request(
        "POST",
        path,
        iter([b'{"data": ', b'{"key": "in ', b'pieces"}}']),
        client.headers,
        encode_chunked=True,
    )
    response = client.connection.getresponse()
    response.read()
    assert response.status == 200
    assert vault_mount.read("app") == {"key": "in pieces"}
    assert client.get(path) == 200


def receive(sock: socket.socket, size: int) -> bytes:
    received = b""

    while len(received) < size:
        data = sock.recv(65536)
        assert data, "It was closed."
        received += data

    return received


@pytest.fixture
def raw(vault_proxy: FaultProxy) -> cabc.Iterator[socket.socket]:
    host, _, port = vault_proxy.address.removeprefix("http://").partition(":")

    with socket.create_connection((host, int(port)), 10) as sock:
        yield sock


def test_a_client_that_asks_to_continue_may(
    raw: socket.socket, vault_mount: VaultMount, path: str
) -> None:
    body = b'{"data": {"key": "continued"}}'
    raw.sendall(
        f"POST {path} HTTP/1.1\r\nHost: x\r\nX-Vault-Token: {vault_mount.token}\r\n"
        f"Expect: 100-continue\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    )
    going_on = b"HTTP/1.1 100 Continue\r\n\r\n"
    assert receive(raw, len(going_on)) == going_on
    raw.sendall(body)
    assert receive(raw, 1).startswith(b"HTTP/1.1 200 OK\r\n")
    assert vault_mount.read("app") == {"key": "continued"}


def test_requests_sent_in_one_go_are_answered_in_order(
    vault_proxy: FaultProxy, raw: socket.socket
) -> None:
    for status in (203, 202, 201):
        vault_proxy.answer(status, b"", times=1)

    raw.sendall(
        b"GET /a HTTP/1.1\r\n\r\nGET /b HTTP/1.1\r\n\r\nGET /c HTTP/1.1\r\n\r\n"
    )
    vault_proxy.wait_for(3)
    assert [(r.path, r.status) for r in vault_proxy.requests] == [
        ("/a", 201),
        ("/b", 202),
        ("/c", 203),
    ]


def test_a_request_that_ends_its_connection_does(
    vault_proxy: FaultProxy, raw: socket.socket
) -> None:
    raw.sendall(b"GET /v1/sys/health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")

    with raw.makefile("rb") as stream:
        assert stream.read().startswith(b"HTTP/1.1 200 OK\r\n")  # Up to the end.

    assert vault_proxy.requests[-1].status == 200


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01 a TLS client's greeting",
        b"GET /\r\n\r\n",
        b"GET / HTTP/2\r\n\r\n",
        b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: many\r\n\r\n",
        b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nmany\r\n",
        b"GET / HTTP/1.1\r\nContent-Le",
    ],
)
def test_who_does_not_speak_http_is_disconnected_and_not_counted(
    vault_proxy: FaultProxy, raw: socket.socket, client: Client, garbage: bytes
) -> None:
    vault_proxy.answer(503)
    raw.sendall(garbage)

    if garbage.endswith(b"Le"):
        raw.shutdown(socket.SHUT_WR)  # The others are recognized by themselves.

    try:
        assert raw.recv(1) == b""
    except ConnectionResetError:
        pass  # So is what closes with bytes unread.

    assert client.get("/v1/sys/health") == 503
    assert vault_proxy.count == 1


def test_a_restarted_server_is_found_again_and_no_request_is_sent_twice() -> None:
    with DevServer() as server, FaultProxy(server.address) as proxy:
        client = Client(proxy, server.root_token)
        path = "/v1/secret/data/app"
        assert client.ask("POST", path, {"data": {"a": 1}})[0] == 200
        server.kill()

        with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):
            client.get(path)

        assert proxy.requests[-1].status is None
        assert fault_of(proxy) == "upstream"
        server.restart()
        # The client's connection is new, the proxy's too; and both may be old.
        content = client.ask("POST", path, {"data": {"a": 1}})[2]
        assert json.loads(content)["data"]["version"] == 1
        server.restart()
        content = client.ask("POST", path, {"data": {"a": 1}})[2]
        assert json.loads(content)["data"]["version"] == 1
        client.connection.close()


def test_nothing_of_it_is_left_after_closing(vault_server: DevServer) -> None:
    before = set(threading.enumerate())
    proxy = FaultProxy(vault_server.address).start()
    proxy.start()  # Does nothing.
    proxy.hang("/hang")
    clients = [Client(proxy) for _ in range(3)]
    clients[0].get("/v1/sys/health")
    clients[1].connection.connect()

    with concurrent.futures.ThreadPoolExecutor() as pool:
        asked = pool.submit(clients[2].get, "/hang")
        proxy.wait_for(2)
        proxy.close()
        proxy.close()
        assert asked.exception(10) is not None

    for client in clients:
        client.connection.close()

    with pytest.raises(ConnectionRefusedError):
        Client(proxy).get("/v1/sys/health")

    proxy.heal()  # Does not bring it back.

    with pytest.raises(ConnectionRefusedError):
        Client(proxy).get("/v1/sys/health")

    assert set(threading.enumerate()) <= before


def test_a_forked_child_does_not_keep_its_port(vault_server: DevServer) -> None:
    with FaultProxy(vault_server.address) as proxy:
        client = Client(proxy)
        assert client.get("/v1/sys/health") == 200
        reader, writer = os.pipe()
        pid = os.fork()

        if pid == 0:
            os.close(writer)
            os.read(reader, 1)  # Until the parent has seen enough.
            os._exit(0)

        try:
            assert client.get("/v1/sys/health") == 200
            proxy.cut()

            with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):
                client.get("/v1/sys/health")

            with pytest.raises(ConnectionRefusedError):
                client.get("/v1/sys/health")
        finally:
            os.close(writer)
            os.close(reader)
            os.waitpid(pid, 0)


@pytest.mark.parametrize("address", ["https://127.0.0.1:8200", "http://x", "nonsense"])
def test_an_address_it_cannot_use_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="'upstream_address' is"):
        FaultProxy(address)


def test_the_address_is_asked_for_too_early() -> None:
    proxy = FaultProxy("127.0.0.1:8200")
    assert repr(proxy) == "<FaultProxy not started count=0>"

    with pytest.raises(ValueError, match=r"call 'start\(\)' first"):
        _ = proxy.address


def test_it_runs_by_itself(vault_server: DevServer) -> None:
    command = ["-m", "flask_vault.testing.proxy", "--upstream", vault_server.address]

    with subprocess.Popen(
        [sys.executable, "-W", "error", *command, "--delay", "0.001"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        connection = http.client.HTTPConnection(address.removeprefix("http://"))

        for _ in range(3):
            connection.request("GET", "/v1/sys/health")
            assert connection.getresponse().read()

        def order(text: str) -> dict[str, int]:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(text + "\n")
            process.stdin.flush()
            answer: dict[str, int] = json.loads(process.stdout.readline())
            return answer

        assert order("stats") == {
            "count": 3,
            "logins": 0,
            "connections": 1,
            "max_connections": 1,
        }
        assert order("delay 0")["count"] == 3
        assert order("reset")["count"] == 0
        connection.close()
        process.stdin.close()
        assert process.wait(10) == 0
