"""What is sent again when an answer is bad or missing, how often, and what never is."""

from __future__ import annotations

import collections.abc as cabc
import concurrent.futures
import contextlib
import logging
import time

import pytest

from flask_vault import FlaskVault
from flask_vault import VaultClient
from flask_vault import VaultConnectionError
from flask_vault import VaultError
from flask_vault import VaultRateLimitedError
from flask_vault import VaultResponseError
from flask_vault import VaultSealedError
from flask_vault import VaultUnavailableError
from flask_vault.testing import DevServer
from flask_vault.testing import FaultProxy
from flask_vault.testing.api import Api
from flask_vault.testing.faults import RecordedRequest
from flask_vault.testing.plugin import VaultMount
from flask_vault.vault.documents import Location
from flask_vault.vault.retries import Budget
from flask_vault.vault.retries import Patience
from flask_vault.vault.retries import pause_before_retry
from tests.helpers import approle
from tests.helpers import at_once
from tests.helpers import before_each_write
from tests.helpers import Clock
from tests.helpers import is_write
from tests.helpers import may_read
from tests.helpers import new_app
from tests.helpers import refused
from tests.helpers import start_app

HTML = "<!DOCTYPE html><html><body>Our load balancer says hello.</body></html>"
SEALED = {"errors": ["Vault is sealed"]}
TRANSIENT = [412, 429, 472, 473, 500, 502, 503, 504]


@pytest.fixture(autouse=True)
def _document(vault_mount: VaultMount) -> None:
    vault_mount.write("app", {"x": "v"})


@pytest.fixture
def config(vault_mount: VaultMount, vault_proxy: FaultProxy) -> dict[str, object]:
    return vault_mount.config(
        VAULT_ADDR=vault_proxy.address, VAULT_KV_VERSION=2, VAULT_READ_TIMEOUT=0.4
    )


@pytest.fixture
def client(config: dict[str, object]) -> VaultClient:
    return VaultClient.from_mapping(config)


def read(client: VaultClient, path: str = "app") -> object:
    return client.get_secret(path, "x", use_cache=False)


def reads(proxy: FaultProxy) -> int:
    """How often a document was asked for; what explains a fault does not count."""
    return sum("/data/" in request.path for request in proxy.requests)


@contextlib.contextmanager
def within(least: float, most: float) -> cabc.Iterator[None]:
    """Expect that something takes so many seconds."""
    began = time.monotonic()
    yield
    assert least <= time.monotonic() - began <= most


# Inside of a request: once, and soon.


@pytest.mark.parametrize("body", [None, HTML], ids=["vault", "gateway"])
@pytest.mark.parametrize("status", TRANSIENT)
def test_what_may_pass_is_tried_once_more(
    status: int, body: str | None, client: VaultClient, vault_proxy: FaultProxy
) -> None:
    vault_proxy.answer(status, body, times=1)

    with within(0, 1):
        assert read(client) == "v"

    assert vault_proxy.count == 2


def test_a_connection_that_breaks_is_tried_once_more(
    client: VaultClient, vault_proxy: FaultProxy
) -> None:
    vault_proxy.drop_reply()

    assert read(client) == "v"
    assert vault_proxy.count == 2


@pytest.mark.parametrize("status", TRANSIENT)
def test_what_does_not_pass_is_told_after_the_second_try(
    status: int, client: VaultClient, vault_proxy: FaultProxy, vault_mount: VaultMount
) -> None:
    vault_proxy.answer(status, {"errors": ["the words of Vault"]})

    with within(0, 1), pytest.raises(VaultUnavailableError) as caught:
        read(client)

    assert caught.value.status == status
    assert caught.value.path == f"{vault_mount.name}/data/app"
    assert caught.value.errors == ("the words of Vault",)
    assert "the words of Vault" in str(caught.value)
    assert vault_proxy.count == 2


@pytest.mark.parametrize("status", [400, 401, 404, 405, 501])
def test_what_will_not_pass_is_not_tried_again(
    status: int, client: VaultClient, vault_proxy: FaultProxy
) -> None:
    vault_proxy.answer(status)

    with pytest.raises(VaultError) as caught:
        read(client)

    assert caught.value.status == status
    assert vault_proxy.count == 1


def test_a_sealed_server_is_not_asked_again(
    client: VaultClient, vault_proxy: FaultProxy
) -> None:
    vault_proxy.answer(503, SEALED)

    with pytest.raises(VaultSealedError, match="operator unseal"):
        read(client)

    assert reads(vault_proxy) == 1


@pytest.mark.parametrize("status", [429, 503])
def test_a_short_retry_after_is_obeyed(
    status: int, client: VaultClient, vault_proxy: FaultProxy
) -> None:
    vault_proxy.answer(status, headers={"Retry-After": "1"}, times=1)

    with within(1, 1.5):
        assert read(client) == "v"


@pytest.mark.parametrize("status", [429, 503])
def test_a_long_retry_after_is_not_waited_for_in_a_request(
    status: int, client: VaultClient, vault_proxy: FaultProxy
) -> None:
    vault_proxy.answer(status, headers={"Retry-After": "60"})

    with within(0, 0.5), pytest.raises(VaultUnavailableError) as caught:
        read(client)

    assert caught.value.retry_after == 60
    assert vault_proxy.count == 1


# Answers that are none.


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (HTML, "an HTML page"),
        ('{"data": {"data": {"x"', "not JSON"),
        ("", "not JSON"),
        ("[]", "not JSON"),
        ("null", "not JSON"),
    ],
)
def test_a_200_that_is_not_vaults_is_an_error_and_not_tried_again(
    body: str, said: str, client: VaultClient, vault_proxy: FaultProxy
) -> None:
    vault_proxy.answer(200, body)

    with pytest.raises(VaultResponseError, match=rf"{said}.*check VAULT_ADDR"):
        read(client)

    assert vault_proxy.count == 1


@pytest.mark.parametrize("body", [{}, {"data": None}, {"data": {"data": None}}])
def test_json_that_is_no_document_is_an_error(
    body: dict[str, object], client: VaultClient, vault_proxy: FaultProxy
) -> None:
    vault_proxy.answer(200, body)

    with pytest.raises(VaultResponseError, match="shape of a document"):
        read(client)


def test_an_answer_that_ends_in_the_middle_is_tried_once_more(
    client: VaultClient, vault_proxy: FaultProxy
) -> None:
    vault_proxy.answer(200, '{"data": {', {"Content-Length": "500"}, times=1)

    assert read(client) == "v"
    assert vault_proxy.count == 2


def test_silence_costs_the_read_timeout_twice_and_no_more(
    client: VaultClient, vault_proxy: FaultProxy
) -> None:
    vault_proxy.hang()

    with within(0.8, 1.4), pytest.raises(VaultConnectionError, match="in time"):
        read(client)

    assert vault_proxy.count == 2
    vault_proxy.heal()
    assert read(client) == "v"


@pytest.mark.parametrize("fault", ["html", "sealed", "silence", "gone"])
def test_what_was_read_before_goes_on_serving(
    fault: str, config: dict[str, object], vault_proxy: FaultProxy
) -> None:
    client = VaultClient.from_mapping({**config, "VAULT_CACHE_TTL": 0})
    assert client.get_secret("app", "x") == "v"

    if fault == "html":
        vault_proxy.answer(200, HTML)
    elif fault == "sealed":
        vault_proxy.answer(503, SEALED)
    elif fault == "silence":
        vault_proxy.hang()
    else:
        vault_proxy.cut()

    assert client.get_secret("app", "x") == "v"
    assert client.failing


# At the start of an app: until a deadline.


def start(config: dict[str, object], patience: float) -> object:
    app = start_app(
        config, VAULT_SECRETS={"X": "app#x"}, VAULT_STARTUP_TIMEOUT=patience
    )
    return app.config["X"]


def test_an_app_waits_for_a_server_that_is_late(
    config: dict[str, object],
    vault_proxy: FaultProxy,
    caplog: pytest.LogCaptureFixture,
) -> None:
    vault_proxy.answer(502, times=4)

    with caplog.at_level(logging.WARNING, "flask_vault"), within(0, 10):
        assert start(config, 20) == "v"

    assert vault_proxy.count == 5
    assert caplog.text.count("VAULT_STARTUP_TIMEOUT") == 1


def test_an_app_waits_for_a_server_that_is_not_there_yet(
    config: dict[str, object], vault_proxy: FaultProxy
) -> None:
    vault_proxy.cut()

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        starting = pool.submit(start, config, 20)

        with pytest.raises(concurrent.futures.TimeoutError):
            starting.result(0.3)

        vault_proxy.heal()
        assert starting.result(10) == "v"


@pytest.mark.parametrize("fault", ["gone", "502", "silence"])
def test_an_app_gives_up_at_the_deadline(
    fault: str, config: dict[str, object], vault_proxy: FaultProxy
) -> None:
    if fault == "gone":
        vault_proxy.cut()
    elif fault == "502":
        vault_proxy.answer(502)
    else:
        vault_proxy.hang()

    secrets = {f"KEY_{i}": f"app{i}#x" for i in range(30)}
    kind = VaultUnavailableError if fault == "502" else VaultConnectionError
    app = new_app(config, VAULT_SECRETS=secrets, VAULT_STARTUP_TIMEOUT=1)

    # Those that are under way at the deadline may end, and no others begin.
    with within(0.2, 1.7), refused(app, kind):
        FlaskVault(app)


@pytest.mark.parametrize("status", [429, 503])
def test_an_app_that_starts_obeys_retry_after(
    status: int, config: dict[str, object], vault_proxy: FaultProxy
) -> None:
    vault_proxy.answer(status, headers={"Retry-After": "2"}, times=1)

    with within(2, 2.5):
        assert start(config, 20) == "v"


@pytest.mark.parametrize("patience", [0, 20])
def test_an_app_does_not_wait_for_what_only_a_person_can_change(
    patience: float, config: dict[str, object], vault_proxy: FaultProxy
) -> None:
    vault_proxy.answer(503, SEALED)

    with within(0, 1), pytest.raises(VaultSealedError, match="operator unseal"):
        start(config, patience)

    assert reads(vault_proxy) == 1


def test_an_app_that_has_started_waits_no_more(
    config: dict[str, object], vault_proxy: FaultProxy
) -> None:
    app = start_app(config, VAULT_SECRETS={"X": "app#x"}, VAULT_STARTUP_TIMEOUT=20)
    vault_proxy.answer(502)

    with within(0, 1), pytest.raises(VaultUnavailableError):
        read(app.extensions["vault"].client)


# The pauses, and the ceiling on how often.


def unavailable(**given: object) -> VaultUnavailableError:
    error = VaultUnavailableError("It is away.")
    error.__dict__.update(given)
    return error


def pauses(attempt: int, patience: Patience, **given: object) -> list[float | None]:
    return [
        pause_before_retry(
            unavailable(**given), attempt, patience, Budget(), repeatable=True
        )
        for _ in range(300)
    ]


@pytest.mark.parametrize(
    ("attempt", "most"), [(0, 0.1), (1, 0.2), (3, 0.8), (6, 5), (99, 5)]
)
def test_a_pause_is_random_below_a_limit_that_doubles(
    attempt: int, most: float
) -> None:
    found = [p for p in pauses(attempt, Patience.of(60)) if p is not None]

    assert len(found) == 300
    assert 0 <= min(found) < most * 0.1
    assert most * 0.9 < max(found) <= most


def test_a_pause_never_goes_beyond_the_deadline() -> None:
    found = pauses(10, Patience.of(1))

    assert None in found
    assert max(p for p in found if p is not None) < 1
    assert set(pauses(0, Patience.of(1), retry_after=2.0)) == {None}


@pytest.mark.parametrize("seconds", [None, 60])
def test_what_may_be_done_is_not_repeated_when_that_would_harm(
    seconds: float | None,
) -> None:
    patience = Patience() if seconds is None else Patience.of(seconds)

    for maybe_done in (True, False):
        error = unavailable(maybe_done=maybe_done)
        pause = pause_before_retry(error, 0, patience, Budget(), repeatable=False)
        assert (pause is None) is maybe_done


def test_a_budget_allows_a_burst_and_then_a_rate() -> None:
    clock = Clock()
    budget = Budget(burst=20, rate=4, clock=clock)

    assert [budget.take() for _ in range(25)] == [True] * 20 + [False] * 5

    clock.advance(1)
    assert [budget.take() for _ in range(6)] == [True] * 4 + [False] * 2

    clock.advance(3600)
    assert [budget.take() for _ in range(21)] == [True] * 20 + [False]


def test_the_ceiling_holds_when_everything_fails(
    client: VaultClient, vault_proxy: FaultProxy
) -> None:
    vault_proxy.answer(502)
    began = time.monotonic()

    def ask(index: int) -> int:
        for _ in range(10):
            with pytest.raises(VaultUnavailableError):
                read(client, f"app{index}")

        return 10

    first_tries = sum(int(str(asked)) for asked in at_once(16, ask))
    retries = vault_proxy.count - first_tries

    assert first_tries == 160
    assert 10 <= retries <= 10 + 4 * (time.monotonic() - began) + 1


def test_a_start_of_many_documents_makes_no_storm(
    config: dict[str, object], vault_proxy: FaultProxy
) -> None:
    """The login is good, and every read fails."""
    vault_proxy.answer(502, match="/data/")
    secrets = {f"KEY_{i}": f"app{i}#x" for i in range(40)}

    with within(1.5, 3.5), pytest.raises(VaultUnavailableError):
        start_app(config, VAULT_SECRETS=secrets, VAULT_STARTUP_TIMEOUT=3)

    assert vault_proxy.count - 40 <= 20 + 4 * 3


# Writes.


def versions(mount: VaultMount) -> int:
    place = f"{mount.name}/metadata/app"
    answer = Api(mount.address).call("GET", place, token=mount.token)
    return int(answer["data"]["current_version"])


def writes(proxy: FaultProxy) -> int:
    return sum(map(is_write, proxy.requests))


def test_a_write_whose_answer_was_lost_is_looked_for_and_not_repeated(
    client: VaultClient, vault_proxy: FaultProxy, vault_mount: VaultMount
) -> None:
    vault_proxy.drop_reply(match=is_write)

    assert client.set_secret("app", {"x": "new"}) == 2
    assert (writes(vault_proxy), versions(vault_mount)) == (1, 2)


@pytest.mark.parametrize("fault", ["silence", "502"])
def test_a_write_that_was_not_done_is_repeated_by_check_and_set(
    fault: str, client: VaultClient, vault_proxy: FaultProxy, vault_mount: VaultMount
) -> None:
    if fault == "silence":
        vault_proxy.hang(is_write, times=1)
    else:
        vault_proxy.answer(502, times=1, match=is_write)

    assert client.set_secret("app", {"x": "new"}) == 2
    assert (writes(vault_proxy), versions(vault_mount)) == (2, 2)


def test_a_write_that_was_cut_off_is_not_done_behind_our_back(
    client: VaultClient, vault_proxy: FaultProxy, vault_mount: VaultMount
) -> None:
    before_each_write(vault_proxy, vault_proxy.cut)

    with pytest.raises(VaultConnectionError):
        client.set_secret("app", {"x": "new"})

    vault_proxy.heal()
    assert versions(vault_mount) == 1
    assert client.set_secret("app", {"x": "new"}) == 2


@pytest.mark.parametrize("status", [412, 429, 503])
def test_a_write_that_the_server_did_not_begin_is_sent_again(
    status: int, client: VaultClient, vault_proxy: FaultProxy, vault_mount: VaultMount
) -> None:
    vault_proxy.answer(status, times=1, match=is_write)

    assert client.set_secret("app", {"x": "new"}) == 2
    assert (writes(vault_proxy), versions(vault_mount)) == (2, 2)


@pytest.mark.parametrize("done", [True, False])
def test_a_write_without_check_and_set_is_looked_for_and_never_repeated(
    done: bool,
    config: dict[str, object],
    vault_proxy: FaultProxy,
    vault_mount: VaultMount,
) -> None:
    name = f"{vault_mount.name}-v1"
    body = {"type": "kv", "options": {"version": "1"}}
    api = Api(vault_mount.address)
    api.call("POST", f"sys/mounts/{name}", body, token=vault_mount.token)
    place = {"VAULT_MOUNT": name, "VAULT_KV_VERSION": 1}
    client = VaultClient.from_mapping({**config, **place})

    if done:
        vault_proxy.drop_reply(match=is_write)
        client.set_secret("app", {"x": "new"})
        assert read(client) == "new"
    else:
        vault_proxy.hang(is_write)

        with pytest.raises(VaultConnectionError):
            client.set_secret("app", {"x": "new"})

    assert writes(vault_proxy) == 1


def test_a_mount_whose_answer_was_lost_is_made_all_the_same(
    client: VaultClient, vault_proxy: FaultProxy, vault_mount: VaultMount
) -> None:
    name = f"{vault_mount.name}-new"
    vault_proxy.drop_reply(match="/sys/mounts/")

    client.kv.make_mount(Location(f"{name}/app", mount=name))

    assert client.set_secret(f"/{name}/app", {"x": "v"}) == 1


def test_a_login_whose_answer_was_lost_is_made_again(
    config: dict[str, object],
    vault_server: DevServer,
    vault_proxy: FaultProxy,
    vault_mount: VaultMount,
) -> None:
    role = approle(vault_server, may_read(vault_mount))
    auth = {"VAULT_TOKEN": None, "VAULT_AUTH": role}
    vault_proxy.drop_reply(match="/login")

    assert read(VaultClient.from_mapping({**config, **auth})) == "v"
    assert vault_proxy.logins == 2


# A real limit of the rate.


@pytest.fixture
def quota(vault_mount: VaultMount) -> cabc.Iterator[None]:
    """Three requests in an hour."""
    place = f"sys/quotas/rate-limit/{vault_mount.name}"
    body = {"path": vault_mount.name, "rate": 3, "interval": "1h"}
    api = Api(vault_mount.address)
    api.call("POST", place, body, token=vault_mount.token)
    yield
    api.call("DELETE", place, token=vault_mount.token)


@pytest.mark.usefixtures("quota")
def test_a_quota_that_is_used_up(
    config: dict[str, object], vault_proxy: FaultProxy
) -> None:
    client = VaultClient.from_mapping({**config, "VAULT_CACHE_TTL": 0})

    for _ in range(3):
        assert read(client) == "v"

    with within(0, 1), pytest.raises(VaultRateLimitedError, match="raise the quota"):
        read(client)

    assert vault_proxy.count == 5
    # And the app goes on with what it has.
    assert client.get_secret("app", "x") == "v"


@pytest.mark.usefixtures("quota")
def test_a_quota_is_not_gone_around_by_another_address(
    config: dict[str, object], vault_proxy: FaultProxy, vault_mount: VaultMount
) -> None:
    both = [vault_proxy.address, vault_mount.address.replace("127.0.0.1", "localhost")]
    client = VaultClient.from_mapping({**config, "VAULT_ADDR": both})

    for _ in range(3):
        read(client)

    with pytest.raises(VaultRateLimitedError):
        read(client)

    assert vault_proxy.count == 5


# Redirects.


@pytest.fixture
def canary(vault_mount: VaultMount) -> cabc.Iterator[FaultProxy]:
    """A host that nobody has configured."""
    with FaultProxy(vault_mount.address) as canary:
        yield canary
        assert (canary.connections, canary.count) == (0, 0)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_redirect_takes_the_token_to_no_other_host(
    method: str,
    status: int,
    canary: FaultProxy,
    client: VaultClient,
    vault_proxy: FaultProxy,
    vault_mount: VaultMount,
) -> None:
    def of_that_method(request: RecordedRequest) -> bool:
        return request.method == method

    place = f"{canary.address}/v1/{vault_mount.name}/data/app"
    vault_proxy.answer(status, headers={"Location": place}, match=of_that_method)

    with pytest.raises(VaultError, match="not followed") as caught:
        read(client) if method == "GET" else client.set_secret("app", {"x": "new"})

    assert canary.address not in str(caught.value)
    assert vault_mount.token not in str(caught.value)
    assert versions(vault_mount) == 1


@pytest.mark.parametrize(
    "place",
    ["//{host}/v1/x", "http://127.0.0.1:80@{host}/v1/x", "\\\\{host}", "http://[::1"],
)
def test_a_redirect_to_a_disguised_address_is_not_followed_either(
    place: str, canary: FaultProxy, client: VaultClient, vault_proxy: FaultProxy
) -> None:
    host = canary.address.removeprefix("http://")
    vault_proxy.answer(307, headers={"Location": place.format(host=host)})

    with pytest.raises(VaultError, match="not followed"):
        read(client)


def test_a_login_is_not_redirected_either(
    canary: FaultProxy,
    config: dict[str, object],
    vault_proxy: FaultProxy,
) -> None:
    role = {"method": "approle", "role_id": "r", "secret_id": "canary-51d0"}
    auth = {"VAULT_TOKEN": None, "VAULT_AUTH": role}
    vault_proxy.answer(307, headers={"Location": f"{canary.address}/v1/auth"})

    with pytest.raises(VaultError, match="not followed") as caught:
        read(VaultClient.from_mapping({**config, **auth}))

    assert "canary-51d0" not in str(caught.value)
