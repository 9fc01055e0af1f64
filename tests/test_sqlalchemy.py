"""Database logins that change while an app is at work, on a real PostgreSQL."""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import gc
import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
import traceback
import typing as t
import weakref

import pytest
import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from psycopg import sql
from sqlalchemy.exc import OperationalError

from flask_vault import SecretValueError
from flask_vault import VaultConfigError
from flask_vault.extension import state_of
from flask_vault.integrations import sqlalchemy as integration
from flask_vault.testing import FaultProxy
from flask_vault.testing.plugin import VaultMount
from tests.helpers import at_once
from tests.helpers import start_app
from tests.postgres import Postgres

KEY = "SQLALCHEMY_DATABASE_URI"
TEMPLATE = "postgresql+psycopg://{username}:{password}@{host}/{dbname}"
ENTRY: dict[str, object] = {
    "ref": "database",
    "template": TEMPLATE,
    "rotate": {"kind": "database", "field": "password"},
}
REFUSED = "password authentication failed"

#: What 'flask vault rotate' leaves in a document, but for the values.
OPEN = {"op": "0" * 32, "kind": "database", "state": "PROMOTED"}


class Shop:
    """An app with a database, and who changes its password."""

    def __init__(self, mount: VaultMount, postgres: Postgres, **extra: t.Any) -> None:
        self.mount = mount
        self.postgres = postgres
        self.user = postgres.create_user("pw-1")
        self.write("pw-1")
        config = mount.config(VAULT_REFRESH_MODE="off", VAULT_SECRETS={KEY: ENTRY})
        self.app = start_app({**config, **extra})
        self.db = SQLAlchemy(self.app)
        integration.init_app(self.app, self.db)

        with self.app.app_context():
            self.engine = self.db.engine

    def write(self, password: str, pending: str | None = None, **other: str) -> None:
        """Change the document, with a rotation under way when a value is pending."""
        document = {**self.postgres.document(self.user, password), **other}

        if pending is not None:
            rotation = {"pending": {"password": pending}, "previous": None}
            document["_rotation"] = {"v": 1, "password": {**OPEN, **rotation}}

        self.mount.write("database", document)

    def refresh(self) -> None:
        assert state_of(self.app).refresh().errors == {}

    def ask(self, query: str = "SELECT pg_backend_pid()") -> t.Any:
        with self.engine.connect() as connection:
            return connection.execute(sa.text(query)).scalar()

    def refusals(self) -> int:
        return self.postgres.log.count(f'{REFUSED} for user "{self.user}"')


@pytest.fixture
def open_shop(
    vault_mount: VaultMount, postgres: Postgres
) -> cabc.Iterator[cabc.Callable[..., Shop]]:
    with contextlib.ExitStack() as stack:

        def open_one(**extra: t.Any) -> Shop:
            shop = Shop(vault_mount, postgres, **extra)
            stack.callback(shop.engine.dispose)
            return shop

        yield open_one


@pytest.fixture
def shop(open_shop: cabc.Callable[..., Shop]) -> Shop:
    return open_shop()


# --- new connections ---------------------------------------------------------------


def test_new_connections_log_in_with_the_new_password(shop: Shop) -> None:
    shop.ask()
    engine = shop.engine
    shop.postgres.set_password(shop.user, "pw-2")
    shop.write("pw-2")
    shop.refresh()
    assert shop.ask()
    assert shop.refusals() == 0

    with shop.app.app_context():
        assert shop.db.engine is engine


def test_the_pool_is_replaced_and_what_is_at_work_finishes(shop: Shop) -> None:
    with contextlib.ExitStack() as stack:
        busy = stack.enter_context(shop.engine.connect())
        pid = busy.execute(sa.text("SELECT pg_backend_pid()")).scalar()
        idle = shop.ask()
        assert idle != pid
        shop.postgres.set_password(shop.user, "pw-2")
        shop.write("pw-2")
        shop.refresh()
        assert gone(shop, idle)
        assert busy.execute(sa.text("SELECT pg_backend_pid()")).scalar() == pid

    assert gone(shop, pid)
    assert shop.ask() == shop.ask()


def test_a_document_that_is_written_unchanged_costs_no_connection(shop: Shop) -> None:
    pid = shop.ask()
    shop.write("pw-1")
    shop.refresh()
    assert shop.ask() == pid


def test_another_database_is_followed(shop: Shop) -> None:
    name = f"{shop.user}_db"

    with sa.create_engine(
        shop.postgres.url("postgres", shop.postgres.password),
        isolation_level="AUTOCOMMIT",
    ).connect() as admin:
        admin.execute(sa.text(f"CREATE DATABASE {name}"))
        admin.invalidate()

    shop.write("pw-1", dbname=name)
    shop.refresh()
    assert shop.ask("SELECT current_database()") == name


def test_another_driver_is_refused(vault_mount: VaultMount, postgres: Postgres) -> None:
    entry = {"ref": "database#url"}
    user = postgres.create_user("pw-1")
    url = postgres.url(user, "pw-1")
    vault_mount.write("database", {"url": url})
    app = start_app(
        vault_mount.config(VAULT_REFRESH_MODE="off"), VAULT_SECRETS={KEY: entry}
    )
    integration.init_app(app, SQLAlchemy(app))

    for value in ("mysql+pymysql://ada:pw-2@db/shop", "pw-2 is no URL"):
        vault_mount.write("database", {"url": value})
        (error,) = state_of(app).refresh().errors.values()
        assert isinstance(error, SecretValueError)
        assert "pw-2" not in str(error)
        assert app.config[KEY] == url


def test_what_the_app_adds_to_a_connection_stays(
    open_shop: cabc.Callable[..., Shop],
) -> None:
    options = {"connect_args": {"application_name": "till"}}
    shop = open_shop(SQLALCHEMY_ENGINE_OPTIONS=options)
    shop.postgres.set_password(shop.user, "pw-2")
    shop.write("pw-2")
    shop.refresh()
    assert shop.ask("SHOW application_name") == "till"


def test_each_bind_has_a_key_of_its_own(
    vault_mount: VaultMount, postgres: Postgres
) -> None:
    users = [postgres.create_user("pw-1") for _ in range(2)]
    keys: dict[str | None, str] = {None: KEY, "reports": "REPORTS_DATABASE_URI"}

    def write(password: str) -> None:
        for user, key in zip(users, keys.values(), strict=True):
            vault_mount.write(key.lower(), postgres.document(user, password))

    write("pw-1")
    app = start_app(
        vault_mount.config(VAULT_REFRESH_MODE="off"),
        VAULT_SECRETS={k: {**ENTRY, "ref": k.lower()} for k in keys.values()},
    )
    app.config["SQLALCHEMY_BINDS"] = {"reports": app.config["REPORTS_DATABASE_URI"]}
    db = SQLAlchemy(app)
    integration.init_app(app, db, binds=keys)

    for user in users:
        postgres.set_password(user, "pw-2")

    write("pw-2")
    state_of(app).refresh()

    with app.app_context():
        for bind, user in zip(keys, users, strict=True):
            with db.engines[bind].connect() as connection:
                assert connection.execute(sa.text("SELECT user")).scalar() == user

            db.engines[bind].dispose()


# --- refused logins ----------------------------------------------------------------


def test_a_pending_password_is_tried_and_then_preferred(shop: Shop) -> None:
    shop.write("pw-1", pending="pw-2")
    shop.refresh()
    shop.postgres.set_password(shop.user, "pw-2")

    for _ in range(3):
        assert shop.ask()
        shop.engine.dispose()

    assert shop.refusals() == 1
    shop.write("pw-2")
    shop.refresh()
    assert shop.ask()
    assert shop.refusals() == 1


def test_a_rotation_that_is_undone_is_followed_back(shop: Shop) -> None:
    shop.write("pw-1", pending="pw-2")
    shop.refresh()

    for password in ("pw-2", "pw-1"):
        shop.postgres.set_password(shop.user, password)
        assert shop.ask()
        shop.engine.dispose()

    assert shop.refusals() == 2


def test_vault_may_change_before_the_database(shop: Shop) -> None:
    shop.write("pw-2")
    shop.refresh()
    assert shop.ask()
    shop.engine.dispose()
    shop.postgres.set_password(shop.user, "pw-2")
    assert shop.ask()
    assert shop.refusals() == 2


def test_vault_is_asked_when_all_known_passwords_are_refused(shop: Shop) -> None:
    shop.postgres.set_password(shop.user, "pw-2")
    shop.write("pw-2")
    assert shop.ask()
    assert shop.app.config[KEY].count("pw-2") == 1
    assert shop.refusals() == 1


def test_the_first_error_is_raised_when_nothing_helps(shop: Shop) -> None:
    shop.write("pw-1", pending="pw-2")
    shop.refresh()
    shop.postgres.set_password(shop.user, "pw-3")

    with pytest.raises(OperationalError, match=REFUSED) as caught:
        shop.ask()

    assert shop.refusals() == 2
    assert "pw-" not in str(caught.value)


@pytest.mark.parametrize(("patience", "tries"), [(0, 1), (60, 2)])
def test_a_driver_that_tells_nothing_is_trusted_while_it_is_quick(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, patience: float, tries: int
) -> None:
    monkeypatch.setattr(integration, "_is_refusal", lambda error: None)
    monkeypatch.setattr(integration, "PATIENCE", patience)
    shop.write("pw-1", pending="pw-2")
    shop.refresh()
    shop.postgres.set_password(shop.user, "pw-3")

    with pytest.raises(OperationalError, match=REFUSED):
        shop.ask()

    assert shop.refusals() == tries


def test_a_database_that_is_down_is_tried_once(
    vault_mount: VaultMount, vault_proxy: FaultProxy
) -> None:
    with Postgres() as postgres:
        shop = Shop(vault_mount, postgres, VAULT_ADDR=vault_proxy.address)
        shop.write("pw-1", pending="pw-2")
        shop.refresh()

    vault_proxy.reset()

    with pytest.raises(OperationalError, match="refused"):
        shop.ask()

    assert vault_proxy.count == 0


@pytest.mark.parametrize(
    ("greeting", "tries"),
    [
        # What MySQL says: access denied, and too many connections.
        (b"\xff\x15\x04#28000Access denied", 2),
        (b"\xff\x10\x04#08004Too many connections", 1),
        # And one that says nothing.
        (None, 1),
    ],
)
def test_only_a_refused_login_is_tried_with_another_password(
    vault_mount: VaultMount, greeting: bytes | None, tries: int
) -> None:
    with doorkeeper(greeting) as (port, visits):
        rotation = {"pending": {"password": "pw-2"}, "previous": None}
        vault_mount.write(
            "database",
            {
                "password": "pw-1",
                "host": f"127.0.0.1:{port}",
                "_rotation": {"v": 1, "password": {**OPEN, **rotation}},
            },
        )
        template = "mysql+pymysql://ada:{password}@{host}/shop?read_timeout=1"
        app = start_app(
            vault_mount.config(VAULT_REFRESH_MODE="off"),
            VAULT_SECRETS={KEY: {**ENTRY, "template": template}},
        )
        db = SQLAlchemy(app)
        integration.init_app(app, db)

        with app.app_context(), pytest.raises(OperationalError):
            db.engine.connect()

        assert len(visits) == tries


@contextlib.contextmanager
def doorkeeper(greeting: bytes | None) -> cabc.Iterator[tuple[int, list[object]]]:
    """A server that says one MySQL packet to each client.

    :return: its port, and who came.
    """
    visits: list[object] = []

    def serve() -> None:
        while True:
            try:
                client = server.accept()[0]
            except OSError:
                return

            visits.append(client)

            if greeting is not None:
                client.sendall(len(greeting).to_bytes(3, "little") + b"\0" + greeting)
                client.close()

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve)
        thread.start()

        try:
            yield server.getsockname()[1], visits
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join(10)

            for visit in visits:
                t.cast(socket.socket, visit).close()


# --- under load --------------------------------------------------------------------

LOAD = """\
import json, sys, time
import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from flask_vault import FlaskVault
from flask_vault.extension import state_of
from flask_vault.integrations import sqlalchemy as integration

KEY = "SQLALCHEMY_DATABASE_URI"
app = Flask("shop")
app.config.from_mapping(json.load(sys.stdin))
app.config["SQLALCHEMY_ENGINE_OPTIONS"] = {"poolclass": sa.pool.NullPool}
vault = FlaskVault(app)
db = SQLAlchemy(app)
integration.init_app(app, db)

with app.app_context():
    vault.start()

    while True:
        error = None

        try:
            with db.engine.connect() as connection:
                connection.execute(sa.text("SELECT 1"))
        except Exception as failure:
            error = str(failure)

        known = [sa.make_url(c).password for c in state_of(app).candidates(KEY)]
        print(json.dumps({"known": known, "error": error}), flush=True)
        time.sleep(0.05)
"""


class Load:
    """A process that makes a new connection each 50 ms."""

    def __init__(self, config: cabc.Mapping[str, object]) -> None:
        self.errors: list[str] = []
        self.logins = 0
        self._process = subprocess.Popen(
            [sys.executable, "-c", LOAD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdin is not None
        json.dump(config, self._process.stdin)
        self._process.stdin.close()

    def wait_for(self, *known: str) -> None:
        """Until these are its first candidates, and some connections were made."""
        left = 5

        while left:
            assert self._process.stdout is not None
            line = json.loads(self._process.stdout.readline())
            self.logins += 1
            left -= line["known"][: len(known)] == list(known)

            if line["error"] is not None:
                self.errors.append(line["error"])

    def close(self) -> None:
        self._process.kill()
        self._process.wait(10)
        assert self._process.stdout is not None
        self._process.stdout.close()


def test_no_login_fails_under_load_when_the_new_password_is_known_first(
    shop: Shop,
) -> None:
    config = shop.mount.config(VAULT_SECRETS={KEY: ENTRY}, VAULT_REFRESH_INTERVAL=0.2)

    with contextlib.ExitStack() as stack:
        loads = [Load(config) for _ in range(2)]

        for load in loads:
            stack.callback(load.close)
            load.wait_for("pw-1")

        for old, new in (("pw-1", "pw-2"), ("pw-2", "pw-3")):
            shop.write(old, pending=new)

            for load in loads:
                load.wait_for(old, new)

            shop.postgres.set_password(shop.user, new)

            for load in loads:
                load.wait_for(old, new)

            shop.write(new)

            for load in loads:
                load.wait_for(new)

    assert [load.errors for load in loads] == [[], []]
    assert all(load.logins > 30 for load in loads)
    # Each process, once for each rotation.
    assert shop.refusals() == 4


def test_threads_at_work_lose_no_query_and_leave_no_connection(shop: Shop) -> None:
    queries = [0] * 8
    done = threading.Event()

    def work(index: int) -> None:
        try:
            while not done.is_set():
                shop.ask("SELECT 1")
                queries[index] += 1
        finally:
            done.set()

    def let_them_work() -> None:
        """Each thread ends what it does, as a propagation window lets it."""
        before = list(queries)

        while not done.is_set() and any(map(int.__eq__, queries, before)):
            time.sleep(0.001)

    def rotate() -> None:
        try:
            for number in range(1, 11):
                shop.write(f"pw-{number}", pending=f"pw-{number + 1}")
                shop.refresh()
                shop.postgres.set_password(shop.user, f"pw-{number + 1}")
                let_them_work()
                shop.write(f"pw-{number + 1}")
                shop.refresh()
                let_them_work()
        finally:
            done.set()

    assert at_once(9, lambda i: work(i) if i < 8 else rotate()) == [None] * 9
    assert shop.app.config[KEY].count("pw-11") == 1
    shop.engine.dispose()

    for pid in shop.postgres.connections(shop.user):
        assert gone(shop, pid)


def test_logins_fail_when_the_new_password_is_not_known(shop: Shop) -> None:
    """So that the test before would see them."""
    shop.postgres.set_password(shop.user, "pw-2")

    with pytest.raises(OperationalError, match=REFUSED):
        shop.ask()


# --- forks -------------------------------------------------------------------------

FORK = """\
import json, os, sys
import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from flask_vault import FlaskVault
from flask_vault.extension import state_of
from flask_vault.integrations import sqlalchemy as integration

app = Flask("shop")
app.config.from_mapping(json.load(sys.stdin))
FlaskVault(app)
db = SQLAlchemy(app)
integration.init_app(app, db)


def pid_of_connection():
    with db.engine.connect() as connection:
        return connection.execute(sa.text("SELECT pg_backend_pid()")).scalar()


with app.app_context():
    before = pid_of_connection()
    print("ready", flush=True)
    os.read(0, 1)
    child = os.fork()

    if child == 0:
        # The document has changed: this retires the pool.
        assert state_of(app).refresh().changed
        own = pid_of_connection()
        os._exit(own == before)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    print(before == pid_of_connection(), flush=True)
"""


def test_a_forked_process_does_not_close_its_parents_connections(shop: Shop) -> None:
    config = shop.mount.config(VAULT_REFRESH_MODE="off", VAULT_SECRETS={KEY: ENTRY})
    process = subprocess.Popen(
        [sys.executable, "-c", FORK.replace("json.load(sys.stdin)", repr(config))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    assert process.stdin is not None and process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    shop.postgres.set_password(shop.user, "pw-2")
    shop.write("pw-2")
    output, _ = process.communicate("\n", timeout=30)
    assert (output, process.returncode) == ("True\n", 0)


# --- what is kept, and what is shown -----------------------------------------------


def test_no_password_is_in_the_engine_or_in_any_log(
    open_shop: cabc.Callable[..., Shop], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    options = {"echo_pool": "debug"}
    shop = open_shop(SQLALCHEMY_ECHO=True, SQLALCHEMY_ENGINE_OPTIONS=options)
    shop.write("pw-1", pending="pw-2")
    shop.refresh()
    shop.postgres.set_password(shop.user, "pw-2")
    shop.ask()
    shop.write("pw-2")
    shop.refresh()
    shop.ask()
    shop.postgres.set_password(shop.user, "pw-3")
    shop.engine.dispose()

    with pytest.raises(OperationalError) as caught:
        shop.ask()

    assert shop.user in caplog.text
    assert "pw-" not in caplog.text + str(caught.value)
    assert shop.engine.url.password is None
    # SQLAlchemy's own frames have what the engine was made with, and nothing newer.
    frames = [frame for frame, _ in traceback.walk_tb(caught.value.__traceback__)][1:]
    assert "pw-2" not in repr([frame.f_locals for frame in frames])


def test_an_app_that_is_gone_is_not_kept_by_its_engine(
    vault_mount: VaultMount, postgres: Postgres
) -> None:
    shop = Shop(vault_mount, postgres)
    db, app = shop.db, weakref.ref(shop.app)
    shop.ask()
    shop.engine.dispose()
    del shop
    gc.collect()
    assert app() is None
    assert db is not None


# --- mistakes ----------------------------------------------------------------------


def app_with(mount: VaultMount, **extra: t.Any) -> tuple[Flask, SQLAlchemy]:
    mount.write("stripe", {"api_key": "sk-1"})
    extra.setdefault("VAULT_SECRETS", {"STRIPE_API_KEY": "stripe#api_key"})
    app = start_app(mount.config(VAULT_REFRESH_MODE="off"), **extra)
    return app, SQLAlchemy(app)


def test_an_engine_whose_url_is_not_from_vault_is_refused(
    vault_mount: VaultMount,
) -> None:
    app, db = app_with(vault_mount, **{KEY: "postgresql+psycopg://ada@db/shop"})

    with pytest.raises(VaultConfigError, match="does not come from Vault"):
        integration.init_app(app, db)


def test_a_url_for_another_driver_is_refused_at_the_start(
    vault_mount: VaultMount, postgres: Postgres
) -> None:
    keys = {KEY: ENTRY, "OTHER_URI": {"ref": "other#url", "default": "sqlite://"}}
    vault_mount.write("database", postgres.document("ada", "pw-1"))
    app, db = app_with(vault_mount, VAULT_SECRETS=keys)

    with pytest.raises(VaultConfigError, match="OTHER_URI cannot be used: the engine"):
        integration.init_app(app, db, binds={None: "OTHER_URI"})


def test_a_bind_that_does_not_exist_is_refused(vault_mount: VaultMount) -> None:
    app, db = app_with(vault_mount, **{KEY: "sqlite://"})

    with pytest.raises(VaultConfigError, match="'reports': add it to SQLALCHEMY_BINDS"):
        integration.init_app(app, db, binds={"reports": "REPORTS_DATABASE_URI"})


def test_a_database_without_logins_is_left_alone(vault_mount: VaultMount) -> None:
    app, db = app_with(vault_mount, **{KEY: "sqlite://"})
    integration.init_app(app, db)

    with app.app_context(), db.engine.connect() as connection:
        assert connection.execute(sa.text("SELECT 1")).scalar() == 1


def test_without_vault_an_engine_is_left_alone(vault_mount: VaultMount) -> None:
    url = "postgresql+psycopg://ada:pw-1@db/shop"
    off: dict[str, t.Any] = {"VAULT_ENABLED": False, "VAULT_SECRETS": {KEY: ENTRY}}
    app, db = app_with(vault_mount, **off, **{KEY: url})
    integration.init_app(app, db)

    with app.app_context():
        assert db.engine.url == sa.make_url(url)


def gone(shop: Shop, pid: t.Any) -> bool:
    """Whether a connection has ended. The server takes a moment to notice."""
    query = sql.SQL("SELECT pg_sleep(0.01) FROM pg_stat_activity WHERE pid = {}")

    for _ in range(500):
        if not shop.postgres.execute(query.format(pid)):
            return True

    return False
