"""Documents in memory: for how long, fetched by whom, and what when Vault is gone."""

from __future__ import annotations

import logging
import threading
import typing as t

import pytest
from flask import Flask

from flask_vault import get_secret
from flask_vault import get_vault_client
from flask_vault import SecretNotFoundError
from flask_vault import VaultClient
from flask_vault import VaultConnectionError
from flask_vault import VaultUnavailableError
from flask_vault.store import RETRY_PAUSE
from flask_vault.store import Store
from flask_vault.testing import DevServer
from flask_vault.testing import FaultProxy
from flask_vault.testing.plugin import VaultMount
from flask_vault.vault.documents import Document
from flask_vault.vault.documents import Location
from flask_vault.vault.kv import KV
from tests.helpers import at_once
from tests.helpers import Clock
from tests.helpers import start_app

TTL = 300.0
MAX_STALE = 3600.0


@pytest.fixture
def clock() -> Clock:
    return Clock()


def controlled(client: VaultClient, clock: Clock) -> VaultClient:
    client._store._clock = clock
    return client


@pytest.fixture
def client(
    vault_mount: VaultMount, vault_proxy: FaultProxy, clock: Clock
) -> VaultClient:
    vault_mount.write("app", {"x": "v1"})
    config = vault_mount.config(VAULT_ADDR=vault_proxy.address, VAULT_KV_VERSION=2)
    return controlled(VaultClient.from_mapping(config), clock)


@pytest.fixture
def app(vault_mount: VaultMount, vault_proxy: FaultProxy, clock: Clock) -> Flask:
    vault_mount.write("app", {"x": "v1"})
    config = vault_mount.config(VAULT_ADDR=vault_proxy.address, VAULT_KV_VERSION=2)
    app = start_app(config)
    controlled(get_client(app), clock)
    return app


def get_client(app: Flask) -> VaultClient:
    client: VaultClient = app.extensions["vault"].client
    return client


def read(client: VaultClient) -> object:
    return client.get_secret("app", "x")


# The cache.


def test_a_document_serves_for_its_ttl(
    client: VaultClient,
    vault_mount: VaultMount,
    vault_proxy: FaultProxy,
    clock: Clock,
) -> None:
    assert [read(client) for _ in range(3)] == ["v1"] * 3
    vault_mount.write("app", {"x": "v2"})
    clock.advance(TTL - 0.1)
    assert read(client) == "v1"
    clock.advance(0.1)
    assert read(client) == "v2"
    assert vault_proxy.count == 2


def test_a_ttl_of_0_asks_each_time(
    vault_mount: VaultMount, vault_proxy: FaultProxy
) -> None:
    vault_mount.write("app", {"x": "v1"})
    config = vault_mount.config(VAULT_ADDR=vault_proxy.address, VAULT_CACHE_TTL=0)
    client = VaultClient.from_mapping(config, {})
    assert read(client) == "v1"
    vault_mount.write("app", {"x": "v2"})
    assert read(client) == "v2"


def test_use_cache_false_asks_and_refreshes_the_cache(
    client: VaultClient, vault_mount: VaultMount, vault_proxy: FaultProxy
) -> None:
    read(client)
    vault_mount.write("app", {"x": "v2"})

    assert client.get_secret("app", "x", use_cache=False) == "v2"
    assert read(client) == "v2"
    assert vault_proxy.count == 2


def test_use_cache_false_is_told_when_vault_is_gone(
    client: VaultClient, vault_proxy: FaultProxy
) -> None:
    read(client)
    vault_proxy.cut()

    with pytest.raises(VaultConnectionError):
        client.get_secret("app", "x", use_cache=False)


def test_clear_cache_forgets_all(
    client: VaultClient, vault_mount: VaultMount, vault_proxy: FaultProxy
) -> None:
    read(client)
    vault_mount.write("app", {"x": "v2"})
    client.clear_cache()
    assert read(client) == "v2"

    client.clear_cache()
    vault_proxy.cut()

    with pytest.raises(VaultConnectionError):
        read(client)


def test_what_a_caller_does_to_a_value_stays_with_the_caller(
    client: VaultClient, vault_mount: VaultMount
) -> None:
    vault_mount.write("app", {"x": {"a": [1]}})
    client.get_secret("app")["x"]["a"].append(2)
    client.get_secret("app", "x")["a"].append(3)

    assert client.get_secret("app") == {"x": {"a": [1]}}


# One flight.


def test_fifty_threads_that_ask_for_one_expired_secret_send_one_request(
    client: VaultClient,
    vault_mount: VaultMount,
    vault_proxy: FaultProxy,
    clock: Clock,
) -> None:
    read(client)
    vault_mount.write("app", {"x": "v2"})
    clock.advance(TTL)
    vault_proxy.reset()
    vault_proxy.delay = 0.05

    assert at_once(50, lambda i: read(client)) == ["v2"] * 50
    assert vault_proxy.count == 1


def test_fifty_threads_share_a_failure_and_each_gets_its_own_exception(
    client: VaultClient, vault_proxy: FaultProxy
) -> None:
    vault_proxy.answer(503)
    vault_proxy.delay = 0.05

    errors = at_once(50, lambda i: read(client))

    assert {type(error) for error in errors} == {VaultUnavailableError}
    assert {getattr(error, "status", None) for error in errors} == {503}
    assert len({id(error) for error in errors}) == 50
    # One try and its one retry, for all of them.
    assert vault_proxy.count == 2


def test_who_comes_just_too_late_for_a_flight_takes_what_it_brought(
    client: VaultClient, vault_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    flights = client._store._sync.get().flights
    do = flights.do

    def just_too_late(*call: t.Any) -> object:
        monkeypatch.setattr(flights, "do", do)
        read(client)  # By another, between our look and our take-off.
        return do(*call)

    monkeypatch.setattr(flights, "do", just_too_late)

    assert read(client) == "v1"
    assert vault_proxy.count == 1


def test_different_secrets_do_not_wait_for_each_other(
    client: VaultClient, vault_mount: VaultMount, vault_proxy: FaultProxy
) -> None:
    vault_mount.write("slow", {"x": "slow"})
    vault_proxy.hang(match="/slow")
    thread = threading.Thread(target=client.get_secret, args=("slow", "x", "ENV"))
    thread.start()
    vault_proxy.wait_for(1)

    assert read(client) == "v1"
    assert thread.is_alive()

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ENV", "from env")
        vault_proxy.heal()
        thread.join(10)


# When Vault is gone.


def test_with_the_server_stopped_all_get_the_stale_value_until_max_stale(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    with DevServer() as server:
        root = server.client().secrets.kv.v2
        root.create_or_update_secret("app", {"x": "v1"}, mount_point="secret")
        client = controlled(VaultClient.from_mapping(server.environ()), clock)
        read(client)

        server.stop()
        clock.advance(TTL)

        assert at_once(50, lambda i: read(client)) == ["v1"] * 50
        assert client.failing
        assert "served 300 seconds old" in caplog.text

        clock.advance(MAX_STALE - 0.1)
        assert read(client) == "v1"

        clock.advance(0.1)

        for end in at_once(50, lambda i: read(client)):
            assert isinstance(end, VaultConnectionError)


def test_an_outage_is_asked_about_once_in_a_while_not_by_each_read(
    client: VaultClient, vault_proxy: FaultProxy, clock: Clock
) -> None:
    read(client)
    clock.advance(TTL)
    vault_proxy.answer(503)
    vault_proxy.reset()

    # With something to serve, one try is enough.
    assert [read(client) for _ in range(20)] == ["v1"] * 20
    assert vault_proxy.count == 1

    clock.advance(RETRY_PAUSE + 1)
    assert [read(client) for _ in range(20)] == ["v1"] * 20
    assert vault_proxy.count == 2


def test_it_ends_when_vault_is_back(
    client: VaultClient,
    vault_mount: VaultMount,
    vault_proxy: FaultProxy,
    clock: Clock,
) -> None:
    read(client)
    clock.advance(TTL)
    vault_proxy.cut()
    assert read(client) == "v1"
    assert client.failing

    vault_mount.write("app", {"x": "v2"})
    vault_proxy.heal()
    clock.advance(RETRY_PAUSE)

    assert read(client) == "v2"
    assert not client.failing


@pytest.mark.parametrize("status", [403, 404, 429, 500, 503, 200])
def test_whatever_is_no_good_document_keeps_the_last_good_one(
    status: int, client: VaultClient, vault_proxy: FaultProxy, clock: Clock
) -> None:
    read(client)
    clock.advance(TTL)
    vault_proxy.answer(status, "<html>" if status == 200 else None, match="/data/")

    assert read(client) == "v1"
    assert client.failing


def test_a_value_that_never_came_is_asked_for_again_at_once(
    client: VaultClient, vault_mount: VaultMount, vault_proxy: FaultProxy
) -> None:
    vault_proxy.answer(503, times=2)

    with pytest.raises(VaultUnavailableError):
        read(client)

    assert read(client) == "v1"


def test_each_raised_error_is_the_callers_own(
    client: VaultClient, vault_proxy: FaultProxy, clock: Clock
) -> None:
    """One object that is raised in many threads mixes their tracebacks."""
    read(client)
    clock.advance(TTL + MAX_STALE + 1)
    vault_proxy.answer(503)
    errors = []

    for _ in range(3):
        with pytest.raises(VaultUnavailableError) as caught:
            read(client)

        errors.append(caught.value)

    assert len({id(error) for error in errors}) == 3


def test_a_path_that_is_not_there_does_not_make_the_app_unwell(
    client: VaultClient,
) -> None:
    with pytest.raises(SecretNotFoundError):
        client.get_secret("gone", "x")

    assert not client.failing


# One state of the world for each context.


def test_two_reads_in_a_context_see_one_version(
    app: Flask, vault_mount: VaultMount, clock: Clock
) -> None:
    with app.app_context():
        assert get_secret("app", "x") == "v1"
        vault_mount.write("app", {"x": "v2", "y": "new"})
        clock.advance(TTL)
        assert get_secret("app", "x") == "v1"
        # Another field is of the same document.
        assert get_secret("app") == {"x": "v1"}

        with app.app_context():
            assert get_secret("app", "x") == "v2"

        assert get_secret("app", "x") == "v1"


def test_a_context_is_not_disturbed_by_another_thread(
    app: Flask, vault_mount: VaultMount
) -> None:
    """Also for a document that it reads for the first time after the other did."""
    client = get_client(app)
    client.get_secret("app", "x")

    with app.app_context():
        client.get_secret("app", "x")
        vault_mount.write("app", {"x": "v2"})
        at_once(1, lambda i: client.get_secret("app", "x", use_cache=False))
        assert get_secret("app", "x") == "v1"

    with app.app_context():
        assert get_secret("app", "x") == "v2"


def test_one_state_of_the_world_is_that_of_the_contexts_first_read(
    app: Flask, vault_mount: VaultMount
) -> None:
    vault_mount.write("other", {"x": "o1"})
    client = get_client(app)
    client.get_secret("app", "x")
    client.get_secret("other", "x")

    with app.app_context():
        assert get_secret("app", "x") == "v1"
        vault_mount.write("other", {"x": "o2"})
        at_once(1, lambda i: client.get_secret("other", "x", use_cache=False))
        assert get_secret("other", "x") == "o1"


def test_with_a_ttl_of_0_a_context_asks_once(
    vault_mount: VaultMount, vault_proxy: FaultProxy
) -> None:
    vault_mount.write("app", {"x": "v1"})
    config = vault_mount.config(VAULT_ADDR=vault_proxy.address, VAULT_KV_VERSION=2)
    app = start_app(config, VAULT_CACHE_TTL=0)

    for expected in (1, 2):
        with app.app_context():
            assert [get_secret("app", "x") for _ in range(3)] == ["v1"] * 3

        assert vault_proxy.count == expected


def test_use_cache_false_moves_the_context_on(
    app: Flask, vault_mount: VaultMount
) -> None:
    with app.app_context():
        assert get_secret("app", "x") == "v1"
        vault_mount.write("app", {"x": "v2"})
        assert get_secret("app", "x", use_cache=False) == "v2"
        assert get_secret("app", "x") == "v2"


def test_a_context_sees_what_it_has_written(app: Flask) -> None:
    with app.app_context():
        assert get_secret("app", "x") == "v1"
        get_vault_client().set_secret("app", {"x": "v2"})
        assert get_secret("app", "x") == "v2"


def test_clear_cache_forgets_what_the_context_has_seen(
    app: Flask, vault_mount: VaultMount
) -> None:
    with app.app_context():
        assert get_secret("app", "x") == "v1"
        vault_mount.write("app", {"x": "v2"})
        get_vault_client().clear_cache()
        assert get_secret("app", "x") == "v2"


def test_a_request_is_a_context(
    app: Flask, vault_mount: VaultMount, clock: Clock
) -> None:
    @app.get("/")
    def index() -> list[object]:
        first = get_secret("app", "x")
        vault_mount.write("app", {"x": f"{first}+"})
        clock.advance(TTL)
        return [first, get_secret("app", "x")]

    browser = app.test_client()

    assert browser.get("/").json == ["v1", "v1"]
    assert browser.get("/").json == ["v1+", "v1+"]


def test_the_client_of_another_app_leaves_a_contexts_state_alone(
    app: Flask, vault_mount: VaultMount
) -> None:
    other = start_app(vault_mount.config()).extensions["vault"].client

    with app.app_context():
        assert other.get_secret("app", "x") == "v1"
        assert get_secret("app", "x") == "v1"
        vault_mount.write("app", {"x": "v2"})
        at_once(1, lambda i: get_client(app).get_secret("app", "x", use_cache=False))
        assert get_secret("app", "x") == "v1"


# Order.


class SlowAnswer:
    """A KV whose answers arrive when a test says so: a network that is slow after the
    server has done its part, which no proxy before it can show."""

    def __init__(self, kv: KV) -> None:
        self._kv = kv
        self.answered = threading.Event()
        self.arrives = threading.Event()

    def read(self, location: Location, *, retry: bool = True) -> Document:
        document = self._kv.read(location)
        self.answered.set()
        assert self.arrives.wait(10)
        return document


def test_an_old_answer_that_comes_late_does_not_replace_what_was_written_meanwhile(
    client: VaultClient, clock: Clock
) -> None:
    slow = SlowAnswer(client._kv)
    client._store._kv = slow  # type: ignore[assignment]
    reader = threading.Thread(target=read, args=(client,))
    reader.start()
    assert slow.answered.wait(10)

    clock.advance(0.1)
    client.set_secret("app", {"x": "v2"})
    slow.arrives.set()
    reader.join(10)

    assert read(client) == "v2"


def test_loading_many_asks_for_each_once_and_keeps_the_failures_apart(
    client: VaultClient, vault_mount: VaultMount, vault_proxy: FaultProxy
) -> None:
    places = [
        Location(f"{vault_mount.name}/p{i}", mount=vault_mount.name) for i in (1, 2)
    ]
    vault_mount.write("p1", {"x": "v"})
    store = Store(client._kv, ttl=TTL, max_stale=MAX_STALE)

    found = store.read_many([*places, *places])

    assert vault_proxy.count == 2
    assert isinstance(found[places[0]], Document)
    assert isinstance(found[places[1]], SecretNotFoundError)


@pytest.mark.parametrize("status", [403, 503])
def test_health_check_tells_how_many_documents_fail(
    status: int, client: VaultClient, vault_proxy: FaultProxy, clock: Clock
) -> None:
    read(client)
    clock.advance(TTL)
    vault_proxy.answer(status, match="/data/")
    read(client)

    health = client.health_check()

    assert (health["cache_size"], health["failing"]) == (1, 1)


def test_a_stale_read_is_logged_without_the_value(
    client: VaultClient,
    vault_proxy: FaultProxy,
    clock: Clock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    client.set_secret("app", {"x": "canary-4a7b"})
    clock.advance(TTL)
    vault_proxy.cut()
    read(client)

    (record,) = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert "/app' is served 300 seconds old" in record.message
    assert "canary-4a7b" not in caplog.text
