"""Two hosts, whose keys are rotated ten times under load, and nobody notices."""

from __future__ import annotations

import collections
import collections.abc as cabc
import concurrent.futures
import contextlib
import itertools
import secrets
import subprocess
import sys
import threading
import time
import typing as t

import pytest
from flask import Flask
from flask.sessions import SecureCookieSessionInterface

from flask_vault.testing.api import Api
from flask_vault.testing.plugin import VaultMount
from tests.hosts import Answer
from tests.hosts import environ_of
from tests.hosts import Host
from tests.hosts import ROOT
from tests.hosts import wait_for
from tests.hosts import WORKERS

APP = "tests.apps.two_hosts:create_app()"
CLIENTS, ROTATIONS = 16, 10

#: Seconds. The second host's polls come as late as they may: the jitter makes a fifth
#: more of it, and 0.6 s are left for the poll itself.
WINDOW = 3.0
INTERVAL, LATE_INTERVAL = 0.4, 0.8 * WINDOW / 1.2

#: Seconds that a client waits after its three requests.
PAUSE = 0.25


class Users:
    """Clients that hop between all workers of the hosts, each with a session that
    counts, and with tokens and forms that they keep.

    :ivar lost: what was refused, by its kind.
    :ivar crossed: what was accepted though another key had come to sign meanwhile.
    :ivar signs: by worker, the version of the keys that it signs with.
    :ivar accepts: the newest that it accepts.
    """

    def __init__(self, hosts: cabc.Sequence[Host]) -> None:
        self.lost: collections.Counter[str] = collections.Counter()
        self.crossed: collections.Counter[str] = collections.Counter()
        self.signs: dict[int, int] = {}
        self.accepts: dict[int, int] = {}
        self.signed: set[tuple[int, int]] = set()
        self.requests = 0
        self._hosts = hosts
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._errors: list[BaseException] = []
        self._threads = [threading.Thread(target=self._run) for _ in range(CLIENTS)]

    def __enter__(self) -> Users:
        for thread in self._threads:
            thread.start()

        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stopped.set()

        for thread in self._threads:
            thread.join(30)

        if self._errors:
            raise self._errors[0]

    def await_all(self, versions: cabc.Mapping[int, int], least: int) -> None:
        """Wait until all workers have told of so new a version."""

        def is_so() -> bool:
            told = list(versions.values())
            return len(told) == len(self._hosts) * WORKERS and min(told) >= least

        wait_for(is_so)

    def ask(self, path: str, **options: t.Any) -> Answer:
        answer = secrets.choice(self._hosts).ask(path, **options)

        with self._lock:
            self.requests += 1

            if "pid" in answer.json:
                pid, signs = answer.json["pid"], answer.json["signs"]
                self.signs[pid], self.accepts[pid] = signs, answer.json["accepts"]
                self.signed.add((pid, signs))

        return answer

    def note(self, what: str, accepted: bool, crossed: bool = False) -> None:
        with self._lock:
            self.lost[what] += not accepted
            self.crossed[what] += accepted and crossed

    def _run(self) -> None:
        try:
            user = User(self)

            while not self._stopped.wait(PAUSE):
                user.act()
        except BaseException as error:
            self._errors.append(error)


class User:
    """One client."""

    #: How many tokens and forms it keeps, the first one for ever.
    KEPT = 4

    def __init__(self, users: Users) -> None:
        self._users = users
        self._cookie: str | None = None
        self._count = self._signs = 0
        self._tokens: list[Answer] = []
        self._forms: list[Answer] = []
        self._turn = secrets.randbelow(20)

    def act(self) -> None:
        self._turn += 1
        self._use_session()
        self._use_token()
        self._use_form()

    def _use_session(self) -> None:
        answer = self._ask("/count")
        kept = answer.json["count"] == self._count + 1
        self._users.note("session", kept, answer.json["signs"] > self._signs)
        self._count, self._signs = answer.json["count"], answer.json["signs"]

        # They are bound to it.
        if not kept:
            self._forms.clear()

    def _use_token(self) -> None:
        if self._is_time_for_another(self._tokens):
            self._tokens.append(self._ask("/token"))

        token = secrets.choice(self._tokens)
        answer = self._users.ask("/me", token=token.json["token"])
        self._users.note("token", answer.status == 200, _crossed(token, answer))

    def _use_form(self) -> None:
        if self._is_time_for_another(self._forms):
            self._forms.append(self._ask("/form"))

        form = secrets.choice(self._forms)
        fields = {"csrf_token": form.json["form"], "text": "hello"}
        answer = self._ask("/form", form=fields)
        accepted = answer.json.get("text") == "hello"
        self._users.note("form", accepted, _crossed(form, answer))

    def _is_time_for_another(self, kept: list[Answer]) -> bool:
        if kept and self._turn % 10:
            return False

        del kept[1 : len(kept) - self.KEPT + 2]
        return True

    def _ask(self, path: str, **options: t.Any) -> Answer:
        answer = self._users.ask(path, cookie=self._cookie, **options)
        self._cookie = answer.cookie or self._cookie
        return answer


def _crossed(kept: Answer, answer: Answer) -> bool:
    return bool(answer.json.get("signs", 0) > kept.json["signs"])


@pytest.fixture
def mount(vault_mount: VaultMount) -> VaultMount:
    api = Api(vault_mount.address)

    for path in ("flask", "jwt"):
        vault_mount.write(path, new_key())
        # A mount keeps ten versions, and there will be eleven.
        api.call(
            "POST",
            f"{vault_mount.name}/metadata/{path}",
            {"max_versions": 20},
            token=vault_mount.token,
        )

    return vault_mount


@contextlib.contextmanager
def two_hosts(config: cabc.Mapping[str, object]) -> cabc.Iterator[list[Host]]:
    hosts = [
        Host(APP, {**config, "VAULT_REFRESH_INTERVAL": interval})
        for interval in (INTERVAL, LATE_INTERVAL)
    ]

    with hosts[0], hosts[1]:
        for host in hosts:
            host.await_answer("/look")

        yield hosts


def new_key() -> dict[str, object]:
    return {"key": secrets.token_urlsafe(48)}


def write_by_hand(mount: VaultMount) -> None:
    for path in ("flask", "jwt"):
        mount.write(path, new_key())


def write_by_command(config: cabc.Mapping[str, object]) -> None:
    subprocess.run(
        [
            *(sys.executable, "-m", "flask", "--app", APP, "vault", "rotate"),
            *("--secret", "SECRET_KEY", "--secret", "JWT_SECRET_KEY", "--no-backup"),
        ],
        cwd=ROOT,
        env=environ_of(config),
        check=True,
        stdout=subprocess.DEVNULL,
        timeout=30,
    )


def cookie_of(key: str, **data: object) -> str:
    app = Flask("shop")
    app.secret_key = key
    serializer = SecureCookieSessionInterface().get_signing_serializer(app)
    assert serializer is not None
    return str(serializer.dumps(data))


def look(hosts: cabc.Sequence[Host], cookie: str) -> cabc.Iterator[tuple[int, bool]]:
    """Ask often enough, and at once, to meet most of the workers.

    :return: who answered, and whether they accepted the cookie.
    """
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        asked = itertools.islice(itertools.cycle(hosts), 16)

        for answer in pool.map(lambda host: host.ask("/look", cookie=cookie), asked):
            yield answer.json["pid"], answer.json["count"] is not None


def test_ten_rotations_lose_nothing_and_a_destroyed_key_is_refused(
    mount: VaultMount,
) -> None:
    config = mount.config(
        VAULT_PROPAGATION_WINDOW=WINDOW, VAULT_REFRESH_INTERVAL=INTERVAL
    )

    with two_hosts(config) as hosts:
        with Users(hosts) as users:
            users.await_all(users.signs, 1)

            for version in range(2, ROTATIONS + 2):
                if version <= ROTATIONS / 2 + 1:
                    write_by_command(config)
                else:
                    write_by_hand(mount)

                # Every second one comes while the one before is not in use yet.
                if version % 2:
                    users.await_all(users.signs, version)
                else:
                    wait_for(lambda v=version: v in users.accepts.values())  # type: ignore[misc]

        assert users.lost.total() == 0, users.lost
        assert min(users.crossed[w] for w in ("session", "token", "form")) > CLIENTS
        # So much for the run itself.
        assert set(users.signs.values()) == {ROTATIONS + 1}
        assert len({version for _, version in users.signed}) > ROTATIONS / 2
        check_that_a_destroyed_key_is_refused(mount, hosts)


def check_that_a_destroyed_key_is_refused(
    mount: VaultMount, hosts: cabc.Sequence[Host]
) -> None:
    leaked = cookie_of(mount.read("flask", ROTATIONS)["key"], count=7)
    accepted: set[int] = set()

    while len(accepted) < len(hosts) * WORKERS:
        answers = list(look(hosts, leaked))
        assert all(is_accepted for _, is_accepted in answers)
        accepted |= {pid for pid, _ in answers}

    Api(mount.address).call(
        "POST",
        f"{mount.name}/destroy/flask",
        {"versions": [ROTATIONS]},
        token=mount.token,
    )
    deadline = time.monotonic() + LATE_INTERVAL + 1
    refused: set[int] = set()

    # What is sent after the deadline counts, and one that is refused stays so.
    while refused != accepted:
        is_late = time.monotonic() > deadline

        for pid, is_accepted in look(hosts, leaked):
            assert not (is_accepted and (is_late or pid in refused))

            if not is_accepted:
                refused.add(pid)


def test_without_the_window_the_same_users_lose_their_sessions(
    mount: VaultMount,
) -> None:
    with (
        two_hosts(mount.config(VAULT_PROPAGATION_WINDOW=0)) as hosts,
        Users(hosts) as users,
    ):
        users.await_all(users.signs, 1)

        for version in range(2, 5):
            write_by_hand(mount)
            users.await_all(users.signs, version)

    assert users.lost["session"] > 0
