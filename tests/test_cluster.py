"""What an app sees of a cluster of three, as its leader is killed, frozen and replaced.

Every test has the same three servers and may do to them what it wants. All of them
together end within two minutes on two cores.
"""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import dataclasses
import functools
import itertools
import os
import socket
import threading
import time
import typing as t

import hvac.exceptions
import pytest
import requests
import requests.adapters

from flask_vault import VaultClient
from flask_vault.errors import CheckAndSetError
from flask_vault.errors import VaultConfigError
from flask_vault.errors import VaultConnectionError
from flask_vault.errors import VaultUnavailableError
from flask_vault.testing import DevCluster
from flask_vault.testing import FaultProxy
from flask_vault.testing.api import Api
from tests.helpers import before_each_write

#: Seconds for which the clients here keep a document, and wait for a silent server.
TTL = 0.1
READ_TIMEOUT = 1.0

#: Seconds that an app may need, once the cluster is back, until it is back too.
ALLOWANCE = 2.0

#: Seconds after which nothing comes any more. The machine may be busy.
LONG = 40.0


def wait_until(condition: cabc.Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONG

    while not condition():
        assert time.monotonic() < deadline, "It did not happen in time."
        time.sleep(0.02)


@pytest.fixture(scope="module")
def three_servers() -> cabc.Iterator[DevCluster]:
    with DevCluster() as cluster:
        yield cluster


@pytest.fixture
def cluster(three_servers: DevCluster) -> DevCluster:
    """A cluster of three, all of which serve."""
    three_servers.heal()
    return three_servers


_numbers = itertools.count()


@pytest.fixture
def prefix() -> str:
    """A folder of the test's own."""
    return f"test-{next(_numbers)}"


def new_client(
    cluster: DevCluster,
    prefix: str,
    *,
    servers: cabc.Iterable[int] = range(3),
    more: cabc.Iterable[str] = (),
    token: str | None = None,
) -> VaultClient:
    return VaultClient.from_mapping(
        {
            "VAULT_ADDR": [*(cluster.addresses[n] for n in servers), *more],
            "VAULT_TOKEN": token or cluster.root_token,
            "VAULT_PREFIX": prefix,
            "VAULT_CACHE_TTL": TTL,
            "VAULT_READ_TIMEOUT": READ_TIMEOUT,
        },
        {},
    )


def ask_leader(
    cluster: DevCluster, method: str, path: str, body: object = None
) -> dict[str, t.Any]:
    """Ask the one that cannot be out of date."""
    api = Api(cluster.addresses[cluster.leader()])
    return api.call(method, path, body, token=cluster.root_token)


def stored(cluster: DevCluster, path: str) -> dict[str, t.Any]:
    answer = ask_leader(cluster, "GET", f"secret/data/{path}")
    data: dict[str, t.Any] = answer["data"]["data"]
    return data


# What clients do all the while.


@dataclasses.dataclass(frozen=True)
class Call:
    began: float
    ended: float
    #: What was read, or is written.
    value: int
    error: Exception | None = None


class Traffic:
    """Counts what a client sends, be it answered or not, by its token."""

    def __init__(self) -> None:
        self._sent: list[tuple[float, str]] = []

    def note(self, request: requests.PreparedRequest) -> None:
        self._sent.append((time.monotonic(), request.headers["X-Vault-Token"]))

    def times(self, token: str, begin: float, end: float) -> list[float]:
        return [at for at, who in self._sent if who == token and begin <= at < end]

    def rate(self, token: str, begin: float, end: float) -> float:
        """Requests per second."""
        return len(self.times(token, begin, end)) / (end - begin)

    def peak(self, token: str, begin: float, end: float) -> int:
        """The most requests that any one second between the two saw."""
        times = self.times(token, begin, end)
        return max(sum(at <= other < at + 1 for other in times) for at in times)


@pytest.fixture
def traffic(monkeypatch: pytest.MonkeyPatch) -> Traffic:
    counted = Traffic()
    send = requests.adapters.HTTPAdapter.send

    def count(
        self: requests.adapters.HTTPAdapter,
        request: requests.PreparedRequest,
        *args: t.Any,
        **kwargs: t.Any,
    ) -> requests.Response:
        counted.note(request)
        return send(self, request, *args, **kwargs)

    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", count)
    return counted


class Load:
    """Eight threads that read and one that writes every 100 ms, through one client;
    two that read past the cache, through another; and a prober, which knows nothing of
    Flask-Vault, for each server."""

    def __init__(self, cluster: DevCluster, prefix: str, traffic: Traffic) -> None:
        self._cluster = cluster
        self._prefix = prefix
        self._traffic = traffic
        self._over = threading.Event()
        self._counter = itertools.count(1)
        self.reads: list[Call] = []
        self.uncached_reads: list[Call] = []
        self.writes: list[Call] = []
        self.probes: list[Call] = []
        #: When the test does to the cluster what it is about.
        self.fault_at = 0.0
        self.steady = 0.0
        self.token, other = [self._new_token() for _ in range(2)]
        # The leader first, so that it is the one that they are connected to.
        servers = [cluster.leader(), *cluster.standbys()]
        self.client = new_client(cluster, prefix, servers=servers, token=self.token)
        uncached = new_client(cluster, prefix, servers=servers, token=other)

        for path in ("first", "second", "ledger", "probe"):
            self.client.set_secret(path, {"value": 0})

        work: list[cabc.Callable[[], None]] = [self._write]

        for path in ("first", "second", "ledger", "probe") * 2:
            work.append(self._reader(self.client, path, self.reads, True))

        for path in ("first", "probe"):
            work.append(self._reader(uncached, path, self.uncached_reads, False))

        for address in cluster.addresses:
            work.append(self._prober(address))

        self._threads = [threading.Thread(target=one) for one in work]

    def _new_token(self) -> str:
        answer = ask_leader(self._cluster, "POST", "auth/token/create", {})
        return str(answer["auth"]["client_token"])

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()

        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._over.set()

        for thread in self._threads:
            thread.join(LONG)

    def _record(
        self, calls: list[Call], value: int, do: cabc.Callable[[], object]
    ) -> None:
        began = time.monotonic()
        error = None

        try:
            got = do()
        except Exception as caught:
            error = caught
        else:
            value = got if isinstance(got, int) else value

        calls.append(Call(began, time.monotonic(), value, error))

    def _reader(
        self, client: VaultClient, path: str, calls: list[Call], use_cache: bool
    ) -> cabc.Callable[[], None]:
        def read() -> None:
            while not self._over.wait(0.02 if use_cache else 0.1):
                self._record(
                    calls,
                    -1,
                    lambda: client.get_secret(path, "value", use_cache=use_cache),
                )

        return read

    def _write(self) -> None:
        for number in itertools.count(1):
            if self._over.wait(0.1):
                return

            field = {f"field_{number}": number}

            def write(field: dict[str, int] = field) -> None:
                self.client.set_secret("ledger", field)

            self._record(self.writes, number, write)

    def _prober(self, address: str) -> cabc.Callable[[], None]:
        """Writes a higher number each time, wherever it can."""
        api = Api(address, timeout=0.5)
        path = f"secret/data/{self._prefix}/probe"
        token = self._cluster.root_token

        def probe() -> None:
            while not self._over.wait(0.1):
                number = next(self._counter)
                body = {"data": {"value": number}}

                with contextlib.suppress(VaultConnectionError):
                    began = time.monotonic()
                    status, _ = api.ask("POST", path, body, token=token)

                    if status == 200:
                        self.probes.append(Call(began, time.monotonic(), number))

        return probe

    # How a test goes on.

    def settle(self) -> None:
        """Measure the rate at which requests are sent while all is well."""
        wait_until(lambda: len(self.writes) >= 5)
        begin, written = time.monotonic(), len(self.writes)
        wait_until(lambda: len(self.writes) >= written + 20)
        self.steady = self._traffic.rate(self.token, begin, time.monotonic())
        assert not any(call.error for call in self._all())
        self.fault_at = time.monotonic()

    def recovered_at(self) -> float:
        """Wait until the cluster takes writes again.

        :return: when the longest time in which it took none was over, by the probers.
        """

        def acknowledged() -> list[float]:
            return [call.ended for call in self.probes if call.ended > self.fault_at]

        wait_until(lambda: len(acknowledged()) >= 30)
        times = [self.fault_at, *sorted(acknowledged())]
        return max(
            zip(times, times[1:], strict=False), key=lambda two: two[1] - two[0]
        )[1]

    def write_after(self, at: float) -> Call:
        """The first write that is acknowledged after that time."""
        return self._first(
            self.writes, lambda call: call.error is None and call.ended >= at
        )

    def fresh_read_after(self, at: float, calls: list[Call]) -> Call:
        """The first read that shows what the prober wrote after that time."""
        number = min(call.value for call in self.probes if call.ended >= at)
        return self._first(
            calls, lambda call: call.error is None and call.value >= number
        )

    def _first(self, calls: list[Call], good: cabc.Callable[[Call], bool]) -> Call:
        wait_until(lambda: any(map(good, calls)))
        return next(filter(good, calls))

    def _all(self) -> list[Call]:
        return [*self.reads, *self.uncached_reads, *self.writes]

    # What has to hold in the end.

    def check_reads_were_served(self, back: float) -> None:
        times = [call.ended for call in self.reads]
        # All of an outage that lasts, from when the first server was given up.
        assert any(self.fault_at < at < back for at in times) or (
            back - self.fault_at < 2 * READ_TIMEOUT
        )
        failed = [call.error for call in self.reads if call.error is not None]
        assert failed == []
        # Old values are allowed, others are not.
        assert {call.value for call in self.reads} <= {
            0,
            *range(next(self._counter)),
        }

    def check_errors_are_typed(self) -> None:
        for call in self.uncached_reads:
            assert isinstance(call.error, VaultUnavailableError | None), call.error

        for call in self.writes:
            # The second: a write that was done and not acknowledged came between.
            assert isinstance(
                call.error, VaultUnavailableError | CheckAndSetError | None
            ), call.error

    def check_no_write_was_lost(self) -> None:
        there = stored(self._cluster, f"{self._prefix}/ledger")
        acknowledged = [call.value for call in self.writes if call.error is None]
        assert [n for n in acknowledged if there.get(f"field_{n}") != n] == []

    def check_rate(self, until: float) -> None:
        peak = self._traffic.peak(self.token, self.fault_at - 1, until)
        assert peak <= 2 * self.steady


@pytest.fixture
def load(cluster: DevCluster, prefix: str, traffic: Traffic) -> cabc.Iterator[Load]:
    with Load(cluster, prefix, traffic) as load:
        yield load


# The leader goes.


def kill(cluster: DevCluster) -> None:
    cluster.kill(cluster.leader())


def freeze(cluster: DevCluster) -> None:
    cluster.freeze(cluster.leader())


def seal(cluster: DevCluster) -> None:
    cluster.seal(cluster.leader())


def step_down(cluster: DevCluster) -> None:
    cluster.step_down()


@pytest.mark.parametrize(
    ("fault", "silence"),
    [(kill, 0.0), (freeze, READ_TIMEOUT), (seal, 0.0), (step_down, 0.0)],
)
def test_reads_go_on_and_nothing_is_lost_without_the_leader(
    cluster: DevCluster,
    load: Load,
    fault: cabc.Callable[[DevCluster], None],
    silence: float,
) -> None:
    load.settle()
    fault(cluster)
    cluster.leader()
    back = load.recovered_at()
    wrote = load.write_after(back)
    fresh = load.fresh_read_after(back, load.reads)
    uncached = load.fresh_read_after(back, load.uncached_reads)
    load.stop()

    load.check_reads_were_served(back)
    load.check_errors_are_typed()
    load.check_no_write_was_lost()
    load.check_rate(back + 1)
    # Who asked a server that says nothing finds out when its time is over.
    allowed = back + ALLOWANCE + silence
    assert wrote.ended <= allowed
    assert fresh.ended <= allowed + TTL
    assert uncached.ended <= allowed


def test_without_a_quorum_reads_go_on_and_writes_fail_until_there_is_one(
    cluster: DevCluster, load: Load
) -> None:
    load.settle()
    standbys = cluster.standbys()

    for number in standbys:
        cluster.kill(number)

    def writes() -> list[Call]:
        return [call for call in load.writes if call.began > load.fault_at]

    # The leader needs a moment to see that it is none any more.
    wait_until(lambda: sum(call.error is not None for call in writes()) >= 10)
    number_of_reads = len(load.reads)
    wait_until(lambda: len(load.reads) > number_of_reads + 100)
    # Its data is old, and all there is.
    wait_until(lambda: load.uncached_reads[-1].error is None)

    # The first ones may have been under way.
    failed = [call.error for call in writes()[5:]]
    assert None not in failed

    for number in standbys:
        cluster.restart(number)

    back = load.recovered_at()
    wrote = load.write_after(back)
    fresh = load.fresh_read_after(back, load.reads)
    load.stop()

    load.check_reads_were_served(back)
    load.check_errors_are_typed()
    load.check_no_write_was_lost()
    load.check_rate(back + 1)
    assert wrote.ended <= back + ALLOWANCE
    assert fresh.ended <= back + ALLOWANCE + TTL


def test_uncached_reads_right_after_a_write_do_not_storm_a_cluster_without_a_leader(
    cluster: DevCluster, prefix: str, traffic: Traffic
) -> None:
    """No standby knows yet that the last write is there, so each hands the read on to
    the leader that is no more."""
    token = cluster.root_token
    servers = [cluster.leader(), *cluster.standbys()]
    client = new_client(cluster, prefix, servers=servers)
    client.set_secret("app", {"value": 1})
    over = threading.Event()

    def read() -> None:
        while not over.wait(0.1):
            with contextlib.suppress(VaultUnavailableError):
                client.get_secret("app", "value", use_cache=False)

    threads = [threading.Thread(target=read) for _ in range(8)]

    for thread in threads:
        thread.start()

    try:
        begin = time.monotonic()
        wait_until(lambda: len(traffic.times(token, begin, time.monotonic())) > 150)
        steady = traffic.rate(token, begin, time.monotonic())
        client.set_secret("app", {"value": 2})
        fault_at = time.monotonic()
        kill(cluster)
        cluster.leader()
        end = time.monotonic()
    finally:
        over.set()

        for thread in threads:
            thread.join(LONG)

    assert traffic.peak(token, fault_at, end) <= 2 * steady


# Standbys are behind.


def test_who_wrote_reads_what_was_written_from_any_standby(
    cluster: DevCluster, prefix: str
) -> None:
    client = new_client(cluster, prefix, servers=cluster.standbys())

    for number in range(100):
        # Or the standby would refuse by the version that it still has.
        assert client.set_secret("app", {"value": number}, cas=number) == number + 1
        assert client.get_secret("app", "value", use_cache=False) == number


def test_the_same_reads_of_a_plain_client_are_stale(
    cluster: DevCluster, prefix: str
) -> None:
    """Or the test above would show nothing."""
    kv = cluster.client(cluster.standbys()[0]).secrets.kv.v2
    path = f"{prefix}/app"
    stale = 0

    for number in range(30):
        written = kv.create_or_update_secret(path, {"value": number})

        try:
            read = kv.read_secret_version(path, raise_on_deleted_version=True)
        except hvac.exceptions.InvalidPath:
            stale += 1
        else:
            stale += read["data"]["metadata"] != written["data"]

    assert stale > 10


def test_threads_read_their_own_writes_from_a_standby(
    cluster: DevCluster, prefix: str
) -> None:
    client = new_client(cluster, prefix, servers=cluster.standbys())
    wrong: list[object] = []

    def work(path: str) -> None:
        for number in range(25):
            try:
                client.set_secret(path, {"value": number})
                value = client.get_secret(path, "value", use_cache=False)
            except Exception as error:
                wrong.append(error)
            else:
                if value != number:
                    wrong.append((path, number, value))

    threads = [threading.Thread(target=work, args=(f"app-{n}",)) for n in range(8)]

    for thread in threads:
        thread.start()

    for thread in threads:
        thread.join(LONG)

    assert wrong == []


def test_an_answer_that_comes_late_does_not_take_back_what_was_learned(
    cluster: DevCluster, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two threads write, and the answers cross each other."""
    client = new_client(cluster, prefix, servers=cluster.standbys())
    client.set_secret("late", {"value": 0})
    answered, may_go_on = threading.Event(), threading.Event()
    learned: list[str] = []
    sent: list[str | None] = []
    send = requests.adapters.HTTPAdapter.send

    def hold_back(
        self: requests.adapters.HTTPAdapter,
        request: requests.PreparedRequest,
        *args: t.Any,
        **kwargs: t.Any,
    ) -> requests.Response:
        sent.append(request.headers.get("X-Vault-Index"))
        response = send(self, request, *args, **kwargs)

        if request.method == "POST" and response.ok:
            learned.append(response.headers["X-Vault-Index"])

            if str(request.url).endswith("late"):
                answered.set()
                may_go_on.wait(LONG)

        return response

    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", hold_back)
    late = threading.Thread(target=client.set_secret, args=("late", {"value": 1}))
    late.start()
    assert answered.wait(LONG)
    client.set_secret("early", {"value": 1})
    may_go_on.set()
    late.join(LONG)
    assert client.get_secret("early", "value", use_cache=False) == 1
    assert len(set(learned)) == 2
    assert sent[-1] == learned[1]


def test_two_clients_of_standbys_write_one_document_in_turn(
    cluster: DevCluster, prefix: str
) -> None:
    """Each begins with a read that does not know yet what the other wrote."""
    standbys = cluster.standbys()
    clients = [new_client(cluster, prefix, servers=standbys) for _ in range(2)]

    for number in range(10):
        for name, client in enumerate(clients):
            client.set_secret("app", {f"client_{name}": number})

    assert stored(cluster, f"{prefix}/app") == {"client_0": 9, "client_1": 9}


def test_a_document_that_others_keep_writing_to_is_written_through_a_standby(
    cluster: DevCluster, prefix: str
) -> None:
    """Faster than the standby learns of it, so that it is always out of date."""
    leader = new_client(cluster, prefix, servers=[cluster.leader()])
    client = new_client(cluster, prefix, servers=cluster.standbys())
    over = threading.Event()

    def keep_writing() -> None:
        for number in itertools.count():
            if over.wait(0.03):
                return

            with contextlib.suppress(CheckAndSetError):
                leader.set_secret("app", {"theirs": number})

    thread = threading.Thread(target=keep_writing)
    thread.start()

    try:
        for number in range(10):
            client.set_secret("app", {"ours": number})
    finally:
        over.set()
        thread.join(LONG)

    assert stored(cluster, f"{prefix}/app")["ours"] == 9


def test_a_write_by_version_does_not_bring_back_what_a_standby_still_has(
    cluster: DevCluster, prefix: str
) -> None:
    """A standby may learn of a version between the read of the fields that are kept and
    the write that names the version."""
    leader = new_client(cluster, prefix, servers=[cluster.leader()])
    standby = Api(cluster.addresses[cluster.standbys()[0]])

    def has_come(version: int) -> bool:
        status, answer = standby.ask(
            "GET", f"secret/data/{prefix}/app", token=cluster.root_token
        )
        return status == 200 and answer["data"]["metadata"]["version"] == version

    def write(number: int) -> int:
        return t.cast("int", leader.set_secret("app", {"theirs": number}))

    with FaultProxy(standby.address) as proxy:
        client = new_client(cluster, prefix, servers=[], more=[proxy.address])
        wait_until(functools.partial(has_come, write(0)))
        assert client.get_secret("app", "theirs") == 0

        for number in range(1, 6):
            version = write(number)
            before_each_write(
                proxy,
                functools.partial(wait_until, functools.partial(has_come, version)),
            )

            # It may find that somebody else was first. It may not undo what they did.
            with contextlib.suppress(CheckAndSetError):
                client.set_secret("app", {"ours": number}, cas=version)

            assert stored(cluster, f"{prefix}/app")["theirs"] == number


# A redirect to a stranger.


@contextlib.contextmanager
def canary(address: str) -> cabc.Iterator[list[bytes]]:
    """Listens in a server's place.

    :return: all that was sent there, connection by connection.
    """
    heard: list[bytes] = []
    host, _, port = address.removeprefix("http://").partition(":")

    def listen(listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return  # It was shut down.

            with connection:
                heard.append(connection.recv(1 << 16))

    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, int(port)))
        listener.listen()
        thread = threading.Thread(target=listen, args=(listener,))
        thread.start()

        try:
            yield heard
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(LONG)


def test_a_redirect_to_an_address_that_is_not_configured_is_not_followed(
    cluster: DevCluster, prefix: str
) -> None:
    """A standby without a leader sends writes to where its last one was. Somebody else
    may be there by now."""
    client = new_client(cluster, prefix, servers=cluster.standbys()[1:])
    client.set_secret("app", {"value": 1})
    leader, (other, last) = cluster.leader(), cluster.standbys()
    token = cluster.root_token
    plain = cluster.client(last).secrets.kv.v2
    cluster.kill(other)
    cluster.kill(leader)

    with canary(cluster.addresses[leader]) as heard:
        for _ in range(3):
            with pytest.raises(VaultUnavailableError) as caught:
                client.set_secret("app", {"value": 2})

            assert caught.value.status == 307
            assert token not in str(caught.value)

        assert client.get_secret("app", "value") == 1
        assert heard == []

        # The redirect is there, and hvac's own way with it.
        with pytest.raises(requests.ConnectionError):
            plain.create_or_update_secret(f"{prefix}/app", {"value": 2})

        assert token.encode() in b"".join(heard)


# The cluster itself.


def test_a_cluster_has_one_leader_and_one_state(
    cluster: DevCluster, prefix: str
) -> None:
    leader, standbys = cluster.leader(), cluster.standbys()
    assert sorted([leader, *standbys]) == [0, 1, 2]
    assert len(set(cluster.addresses)) == 3
    assert cluster.environ() == {
        "VAULT_ADDR": ",".join(cluster.addresses),
        "VAULT_TOKEN": cluster.root_token,
    }

    for number in range(3):
        kv = cluster.client(number).secrets.kv.v2
        kv.create_or_update_secret(f"{prefix}/from-{number}", {"value": number})

    def is_everywhere() -> bool:
        answers = [
            Api(address).ask(
                "GET",
                f"secret/data/{prefix}/from-{number}",
                token=cluster.root_token,
            )[0]
            for address in cluster.addresses
            for number in range(3)
        ]
        return answers == [200] * 9

    wait_until(is_everywhere)


def test_a_server_that_was_sealed_or_ended_comes_back_with_its_data(
    cluster: DevCluster, prefix: str
) -> None:
    number = cluster.standbys()[0]
    address = cluster.addresses[number]
    before = cluster.nodes[number].pid
    cluster.client(number).secrets.kv.v2.create_or_update_secret(
        f"{prefix}/app", {"value": 1}
    )

    def status() -> int:
        return Api(address).ask("GET", "sys/health")[0]

    cluster.seal(number)
    assert status() == 503
    assert number not in cluster.standbys()
    cluster.unseal(number)
    assert status() != 503
    cluster.restart(number, unseal=False)
    assert status() == 503
    assert cluster.addresses[number] == address
    assert cluster.nodes[number].pid != before
    cluster.heal()
    assert sorted([cluster.leader(), *cluster.standbys()]) == [0, 1, 2]
    assert stored(cluster, f"{prefix}/app") == {"value": 1}


def test_a_frozen_server_is_silent_and_goes_on_when_thawed(
    cluster: DevCluster,
) -> None:
    number = cluster.standbys()[0]
    cluster.freeze(number)

    with pytest.raises(VaultConnectionError):
        Api(cluster.addresses[number], timeout=0.3).ask("GET", "sys/health")

    assert number not in cluster.standbys()
    cluster.thaw(number)
    wait_until(lambda: number in cluster.standbys())


def test_nothing_is_left_of_a_cluster() -> None:
    with DevCluster(1, multiplier=1) as cluster:
        assert cluster.leader() == 0
        assert cluster.standbys() == []
        node = cluster.nodes[0]
        pid, folder = node.pid, node.log_path.parent
        # One that is frozen, too.
        cluster.freeze(0)

    assert not folder.exists()

    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)

    with pytest.raises(VaultConfigError, match="is closed"):
        cluster.start()


def test_a_cluster_needs_a_server() -> None:
    with pytest.raises(VaultConfigError, match="'nodes' is 0"):
        DevCluster(0)
