"""How long a token lives, what is done before it dies, and what when it has died.

The callers of an app never see any of it.
"""

from __future__ import annotations

import collections
import collections.abc as cabc
import concurrent.futures
import contextlib
import dataclasses
import json
import math
import pathlib
import subprocess
import sys
import threading
import time

import pytest

from flask_vault import VaultClient
from flask_vault import VaultLoginError
from flask_vault import VaultPermissionError
from flask_vault.testing import DevServer
from flask_vault.testing import FaultProxy
from flask_vault.testing.api import Api
from flask_vault.testing.faults import RecordedRequest
from flask_vault.testing.plugin import VaultMount
from flask_vault.vault.tokens import Plan
from flask_vault.vault.tokens import Token
from tests.helpers import approle
from tests.helpers import at_once
from tests.helpers import may_read


@pytest.fixture(autouse=True)
def _document(vault_mount: VaultMount) -> None:
    vault_mount.write("app", {"x": "v"})
    vault_mount.write("denied", {"x": "v"})


def new_client(
    mount: VaultMount, address: str, auth: object, **config: object
) -> VaultClient:
    """Without the token of the mount, unless one is given."""
    given = {"VAULT_ADDR": address, "VAULT_TOKEN": None, "VAULT_AUTH": auth}
    return VaultClient.from_mapping(
        mount.config(**{**given, "VAULT_KV_VERSION": 2, **config})
    )


Reader = cabc.Callable[..., VaultClient]


@pytest.fixture
def reader(
    vault_server: DevServer, vault_mount: VaultMount, vault_proxy: FaultProxy
) -> Reader:
    """Makes a client whose role reads ``app`` alone, and has used its first token."""

    def make(**role_options: object) -> VaultClient:
        role = approle(vault_server, may_read(vault_mount, "app"), **role_options)
        client = new_client(vault_mount, vault_proxy.address, role)
        read(client)
        vault_proxy.reset()
        return client

    return make


def read(client: VaultClient, path: str = "app") -> object:
    return client.get_secret(path, "x", use_cache=False)


def token_of(client: VaultClient) -> str:
    token = client._transport.token
    assert token is not None
    return token.value


def is_alive(mount: VaultMount, token: str) -> bool:
    ask = {"token": token}
    answer = Api(mount.address).ask("POST", "auth/token/lookup", ask, token=mount.token)
    return answer[0] == 200


def await_death(mount: VaultMount, token: str) -> None:
    deadline = time.monotonic() + 10

    while is_alive(mount, token):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def revoke(server: DevServer, token: str) -> None:
    server.client().auth.token.revoke(token)


def seen(proxy: FaultProxy) -> collections.Counter[str]:
    """What the server was asked, by kind; refusals apart from what they were for."""
    kinds = {"renew-self": "renewals", "lookup-self": "lookups", "login": "logins"}
    found: collections.Counter[str] = collections.Counter()

    for request in proxy.requests:
        found[kinds.get(request.path.rpartition("/")[2], "reads")] += 1
        found["refused"] += request.status in (400, 403)

    return found


@contextlib.contextmanager
def load(
    client: VaultClient, threads: int, pause: float = 0.0
) -> cabc.Iterator[collections.Counter[str]]:
    """Read all the time, and count what came of it.

    :param pause: seconds between two reads of a thread.
    """
    ends: collections.Counter[str] = collections.Counter()
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            try:
                found = str(read(client))
            except Exception as error:
                found = f"{type(error).__name__}: {error}"

            ends[found] += 1
            stop.wait(pause)

    workers = [threading.Thread(target=work) for _ in range(threads)]

    for worker in workers:
        worker.start()

    try:
        yield ends
    finally:
        stop.set()

        for worker in workers:
            worker.join(30)


# A token that has died.


def test_the_first_login_is_made_once_for_all_threads(
    vault_server: DevServer, vault_mount: VaultMount, vault_proxy: FaultProxy
) -> None:
    role = approle(vault_server, may_read(vault_mount))
    client = new_client(vault_mount, vault_proxy.address, role)

    assert at_once(16, lambda i: read(client)) == ["v"] * 16
    assert vault_proxy.logins == 1


def test_sixteen_threads_with_an_expired_token_log_in_once(
    reader: Reader, vault_mount: VaultMount, vault_proxy: FaultProxy
) -> None:
    client = reader(token_ttl="1s")
    await_death(vault_mount, token_of(client))

    assert at_once(16, lambda i: read(client)) == ["v"] * 16
    # Its end was known, so that nobody was asked whether it had come.
    assert seen(vault_proxy) == {"logins": 1, "reads": 16, "refused": 0}


def test_a_token_that_is_revoked_under_load_costs_one_login_and_no_error(
    reader: Reader, vault_server: DevServer, vault_proxy: FaultProxy
) -> None:
    client = reader()

    with load(client, 16) as ends:
        vault_proxy.wait_for(200)
        revoke(vault_server, token_of(client))
        vault_proxy.wait_for(vault_proxy.count + 400)

    assert set(ends) == {"v"}
    assert vault_proxy.logins == seen(vault_proxy)["lookups"] == 1


def test_a_request_that_was_held_up_while_two_tokens_died_is_served_too(
    reader: Reader, vault_server: DevServer, vault_proxy: FaultProxy
) -> None:
    """As one that waits for a connection under load."""
    client = reader()
    arrived = threading.Event()

    def hold_up_the_first(request: RecordedRequest) -> bool:
        vault_proxy.delay = 0.0 if arrived.is_set() else 0.7
        arrived.set()
        return False

    vault_proxy.drop_reply(times=None, match=hold_up_the_first)

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        held_up = pool.submit(read, client)
        arrived.wait(10)
        revoke(vault_server, token_of(client))
        read(client)
        revoke(vault_server, token_of(client))
        assert not held_up.done()
        assert held_up.result() == "v"

    assert vault_proxy.logins == 2
    assert read(client) == "v"


def test_a_token_given_to_us_that_dies_is_told_apart_from_a_denial(
    vault_server: DevServer,
    vault_mount: VaultMount,
    vault_proxy: FaultProxy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("flask_vault.vault.tokens.INSPECT_AFTER", 0.0)
    create = vault_server.client().auth.token.create
    token = create(policies=["root"], ttl="1h")["auth"]["client_token"]
    client = new_client(vault_mount, vault_proxy.address, None, VAULT_TOKEN=token)

    # By the second read it was asked about, and may be asked about.
    assert read(client) == read(client) == "v"
    assert seen(vault_proxy)["lookups"] == 1
    revoke(vault_server, token)

    for _ in range(3):
        with pytest.raises(VaultLoginError, match="expired, was revoked"):
            read(client)


# A token that lives, for a while.

#: Seconds for which every kind of token is watched, and what each lives at first.
WATCHED, TTL = 12.0, 3


@dataclasses.dataclass
class Watched:
    """What happened to a client in these seconds."""

    ends: collections.Counter[str]
    seen: collections.Counter[str]
    logins: int


@pytest.fixture(scope="module")
def watched(vault_server: DevServer) -> cabc.Iterator[dict[str, Watched]]:
    """Clients with tokens of every kind, watched side by side."""
    kinds: dict[str, dict[str, object]] = {
        "renewable": {"token_ttl": TTL},
        "near its maximum": {"token_ttl": TTL, "token_max_ttl": 5},
        "periodic": {"token_period": TTL},
        "batch": {"token_ttl": TTL, "token_type": "batch"},
        "without policy": {"token_ttl": TTL, "token_no_default_policy": True},
        "shaky": {"token_ttl": TTL},
    }
    mount = VaultMount("secret", vault_server.address, vault_server.root_token)
    mount.write("app", {"x": "v"})
    create = vault_server.client().auth.token.create
    given = create(policies=["root"], ttl=f"{TTL}s")["auth"]["client_token"]

    with contextlib.ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr("flask_vault.vault.tokens.INSPECT_AFTER", 0.0)
        proxies = {k: FaultProxy(vault_server.address) for k in (*kinds, "given")}
        ends = {}

        for kind, proxy in proxies.items():
            stack.enter_context(proxy)

            if kind == "given":
                config: dict[str, object] = {"VAULT_TOKEN": given}
            else:
                role = approle(vault_server, may_read(mount), **kinds[kind])
                config = {"VAULT_AUTH": role}

            client = new_client(mount, proxy.address, None, **config)
            threads = 16 if kind == "renewable" else 4
            ends[kind] = stack.enter_context(load(client, threads, 0.2))

        # It has time for some more tries before the token dies.
        proxies["shaky"].answer(503, times=3, match="renew-self")
        time.sleep(WATCHED)
        found = {k: Watched(ends[k], seen(p), p.logins) for k, p in proxies.items()}

    yield found


def check_served(watched: Watched) -> None:
    """Whether callers saw values alone, and the server no token that was dead."""
    assert set(watched.ends) == {"v"}
    # One, when the machine stalls for the last second of a token.
    assert watched.seen["refused"] == watched.seen["lookups"] <= 1


#: How often something is done in these seconds that is done between 0.6 and 0.667 of
#: the time left, by the read after that.
OFTEN = (5, 6, 7)


@pytest.mark.parametrize("kind", ["renewable", "periodic"])
def test_a_token_is_renewed_before_it_dies(
    kind: str, watched: dict[str, Watched]
) -> None:
    check_served(watched[kind])
    assert watched[kind].logins == 1
    assert watched[kind].seen["renewals"] in OFTEN


def test_a_token_near_its_maximum_is_replaced_before_it_dies(
    watched: dict[str, Watched],
) -> None:
    check_served(watched["near its maximum"])
    assert watched["near its maximum"].logins in (3, 4)


def test_a_batch_token_is_replaced_and_never_renewed(
    watched: dict[str, Watched],
) -> None:
    check_served(watched["batch"])
    assert watched["batch"].seen["renewals"] == 0
    assert watched["batch"].logins - 1 in OFTEN


def test_a_token_that_may_not_renew_itself_is_replaced(
    watched: dict[str, Watched],
) -> None:
    found = watched["without policy"]

    assert set(found.ends) == {"v"}
    assert found.logins - 1 in OFTEN
    # Each says it of its own, and nothing else was refused.
    assert found.seen["refused"] == found.seen["renewals"] == found.logins - 1


def test_a_renewal_that_fails_for_a_while_is_no_matter(
    watched: dict[str, Watched],
) -> None:
    check_served(watched["shaky"])
    assert watched["shaky"].logins == 1


def test_a_token_given_to_us_is_kept_alive_too(watched: dict[str, Watched]) -> None:
    found = watched["given"]

    assert set(found.ends) == {"v"}
    assert (found.logins, found.seen["lookups"], found.seen["refused"]) == (0, 1, 0)
    assert found.seen["renewals"] in OFTEN


def test_a_renewal_comes_at_a_random_time_before_two_thirds_are_over() -> None:
    token = Token("s", ours=True, ttl=300, renewable=True, obtained=1000.0, lease=300)
    times = [Plan.of(token, can_login=True).at for _ in range(200)]

    assert 1180 <= min(times) < max(times) <= 1200
    assert max(times) - min(times) > 10


def test_a_renewal_that_gives_little_is_the_last() -> None:
    token = Token("s", ours=True, ttl=300, renewable=True, obtained=1000.0, lease=300)
    auth = {"lease_duration": 100, "renewable": True}

    last = token.renewed({"auth": auth}, 1200.0)

    assert Plan.of(last, can_login=True).step == "replace"
    assert last.expires_at == 1300.0


def test_a_token_without_an_end_needs_nothing() -> None:
    assert Plan.of(Token("s", ours=True), can_login=True) == Plan(None, math.inf)


# A token with a number of uses.


def test_a_token_of_five_uses_serves_any_number_of_reads(
    reader: Reader, vault_proxy: FaultProxy
) -> None:
    client = reader(token_num_uses=5)

    ends = at_once(8, lambda i: [read(client) for _ in range(20)])

    assert ends == [["v"] * 20] * 8
    # The first token had four uses left.
    assert vault_proxy.logins == math.ceil((160 - 4) / 5)
    assert seen(vault_proxy)["refused"] == 0


def test_uses_that_somebody_else_took_are_no_matter(
    reader: Reader, vault_mount: VaultMount, vault_proxy: FaultProxy
) -> None:
    """As the other workers of a preloaded app do."""
    client = reader(token_num_uses=5)
    place = f"{vault_mount.name}/data/app"

    for _ in range(6):
        for _ in range(3):
            Api(vault_mount.address).ask("GET", place, token=token_of(client))

        assert at_once(4, lambda i: read(client)) == ["v"] * 4


# A denial.


@pytest.mark.parametrize("no_default_policy", [False, True])
def test_a_denied_path_is_no_reason_to_log_in_or_to_ask_again_and_again(
    no_default_policy: bool, reader: Reader, vault_proxy: FaultProxy
) -> None:
    client = reader(token_no_default_policy=no_default_policy)

    def ask(index: int) -> int:
        denials = 0

        while denials < 7:
            with pytest.raises(VaultPermissionError, match="must grant 'read'"):
                read(client, "denied")

            denials += 1

        return denials

    assert at_once(16, ask) == [7] * 16
    # A token that may not look itself up may be tried anew, once.
    assert vault_proxy.logins <= int(no_default_policy)
    assert 1 <= seen(vault_proxy)["lookups"] <= 2
    assert vault_proxy.count <= 16 * 7 + 6
    assert read(client) == "v"


@pytest.mark.parametrize("no_default_policy", [False, True])
def test_many_denied_paths_are_no_reason_for_a_storm(
    no_default_policy: bool, reader: Reader, vault_proxy: FaultProxy
) -> None:
    client = reader(token_no_default_policy=no_default_policy)

    for _ in range(10):
        for path in ("denied", "denied-too"):
            with pytest.raises(VaultPermissionError):
                read(client, path)

    # One for each path at most, for a token that may not look itself up.
    assert vault_proxy.logins <= (2 if no_default_policy else 0)
    assert seen(vault_proxy)["lookups"] <= 2


def test_a_token_that_dies_just_after_a_denial_is_replaced_too(
    reader: Reader, vault_server: DevServer
) -> None:
    client = reader()

    with pytest.raises(VaultPermissionError):
        read(client, "denied")

    # That it was alive was true a moment ago.
    revoke(vault_server, token_of(client))

    assert read(client) == "v"


# A refusal.


@pytest.fixture
def refused(
    vault_server: DevServer,
    vault_mount: VaultMount,
    vault_proxy: FaultProxy,
    tmp_path: pathlib.Path,
) -> tuple[VaultClient, pathlib.Path, str]:
    """A client with a bad secret id, the file that it is in, and a good one."""
    role = approle(vault_server, may_read(vault_mount))
    good = str(role.pop("secret_id"))
    file = tmp_path / "secret-id"
    file.write_text("bad")
    role["secret_id_file"] = str(file)
    return new_client(vault_mount, vault_proxy.address, role), file, good


def test_a_refused_login_is_sent_once_and_a_good_one_works_right_after(
    refused: tuple[VaultClient, pathlib.Path, str], vault_proxy: FaultProxy
) -> None:
    client, file, good = refused

    for _ in range(2):
        ends = at_once(16, lambda i: read(client))
        assert {type(end) for end in ends} == {VaultLoginError}

    assert vault_proxy.logins == 1

    # More would have locked the role, for the good one too.
    file.write_text(good)
    assert read(client) == "v"
    assert vault_proxy.logins == 2


def test_a_refused_login_is_not_sent_again_by_the_retries_of_a_start(
    refused: tuple[VaultClient, pathlib.Path, str], vault_proxy: FaultProxy
) -> None:
    client, _, _ = refused
    client = VaultClient.from_mapping(
        {
            "VAULT_ADDR": vault_proxy.address,
            "VAULT_AUTH": client.settings.auth,
            "VAULT_SECRETS": {f"KEY_{i}": f"app{i}#x" for i in range(20)},
        }
    )

    found = client.load(patience=30)

    assert {type(end) for end in found.values()} == {VaultLoginError}
    assert vault_proxy.count == vault_proxy.logins == 1


# Forks, and the end of a process.

PREPARE = """\
import json, os, sys
from flask_vault import VaultClient

client = VaultClient.from_mapping(json.load(sys.stdin))


def read():
    assert client.get_secret("app", "x", use_cache=False) == "v"


def fork(work):
    pid = os.fork()

    if pid:
        return pid

    work()
    sys.exit()


def wait_for(*pids):
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * len(pids)


read()
token = client._transport.token.value
"""


def run(script: str, client: VaultClient, **config: object) -> str:
    """Run a script in a process of its own, with a client as this one.

    :return: what it printed.
    """
    settings = client.settings
    given = {
        "VAULT_ADDR": settings.addresses[0],
        "VAULT_AUTH": settings.auth,
        "VAULT_TOKEN": settings.token,
        "VAULT_MOUNT": settings.mount,
        **config,
    }
    done = subprocess.run(
        [sys.executable, "-c", PREPARE + script],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_children_go_on_with_the_token_of_their_parent(
    reader: Reader, vault_proxy: FaultProxy
) -> None:
    client = reader()

    run(
        "wait_for(*(fork(lambda: [read() for _ in range(20)]) for _ in 'abcd'))", client
    )

    assert vault_proxy.logins == 1


def test_a_child_replaces_a_dead_token_for_itself(
    reader: Reader, vault_server: DevServer, vault_proxy: FaultProxy
) -> None:
    script = """
client._transport.call(lambda c: c.auth.token.revoke_self())
wait_for(fork(read), fork(read))
"""

    run(script, reader())

    assert vault_proxy.logins == 3


@pytest.mark.parametrize("wanted", [True, False, None])
def test_a_token_is_revoked_at_exit_when_that_is_wanted(
    wanted: bool | None, reader: Reader, vault_mount: VaultMount
) -> None:
    config = {} if wanted is None else {"VAULT_REVOKE_ON_EXIT": wanted}

    token = run("print(token)", reader(), **config)

    assert is_alive(vault_mount, token) is not wanted


def test_the_exit_of_a_child_revokes_nothing_that_its_parent_uses(
    reader: Reader, vault_mount: VaultMount, vault_proxy: FaultProxy
) -> None:
    script = "wait_for(fork(read), fork(read))\nread()\nprint(token)"

    token = run(script, reader(), VAULT_REVOKE_ON_EXIT=True)

    assert vault_proxy.logins == 1
    assert [r.status for r in vault_proxy.requests if "revoke" in r.path] == [204]
    assert not is_alive(vault_mount, token)


def test_a_token_of_a_childs_own_is_revoked_at_its_exit(
    reader: Reader, vault_mount: VaultMount, vault_proxy: FaultProxy
) -> None:
    script = """
client._transport.call(lambda c: c.auth.token.revoke_self())
wait_for(fork(lambda: (read(), print(client._transport.token.value, flush=True))))
os._exit(0)
"""

    token = run(script, reader(), VAULT_REVOKE_ON_EXIT=True)

    assert vault_proxy.logins == 2
    assert not is_alive(vault_mount, token)


def test_a_token_given_to_us_is_not_ours_to_revoke(
    vault_server: DevServer, vault_mount: VaultMount
) -> None:
    create = vault_server.client().auth.token.create
    token = create(policies=["root"], ttl="1h")["auth"]["client_token"]
    client = new_client(vault_mount, vault_mount.address, None, VAULT_TOKEN=token)

    run("", client, VAULT_REVOKE_ON_EXIT=True)

    assert is_alive(vault_mount, token)
