"""A swap of keys may fall between a request's reads of key and fallbacks."""

from __future__ import annotations

import collections.abc as cabc
import datetime
import sys
import threading
import time
import typing as t

import pytest
from flask import Flask
from flask.config import Config
from flask.sessions import SecureCookieSessionInterface
from itsdangerous import BadSignature
from itsdangerous import URLSafeTimedSerializer

from flask_vault.config_writer import ConfigWriter
from flask_vault.entries import parse_entries
from flask_vault.keyring import compute
from flask_vault.keyring import KeyRing
from flask_vault.keyring import Version

READERS, SWAPS = 8, 1_000

#: Seconds after which a machine is too slow for this.
MOST = 100.0
ENTRIES = parse_entries({"SECRET_KEY": {"ref": "flask#key", "keyring": True}})

#: For how many swaps a key is accepted after it has signed.
KEPT = 120

START = datetime.datetime(2030, 1, 1, tzinfo=datetime.timezone.utc)
STEP = datetime.timedelta(seconds=1)


class BusyConfig(Config):
    """Waits after each access, or the gap between two were too short to be met."""

    def __getitem__(self, key: str) -> t.Any:
        value = super().__getitem__(key)
        time.sleep(0.0002)
        return value


class KeyFirst(dict[str, t.Any]):
    """Turns the writer's order round: the fallbacks wait until the key is written."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._config = config

    def __setitem__(self, key: str, value: t.Any) -> None:
        super().__setitem__(key, value)

        if key == "SECRET_KEY":
            self._config[key] = value
            # Somebody signs with it meanwhile.
            time.sleep(0.0005)
            self._config["SECRET_KEY_FALLBACKS"] = self["SECRET_KEY_FALLBACKS"]


class BusyApp(Flask):
    config_class = BusyConfig


class Readers:
    """Threads that open each other's sessions and sign new ones, as requests do."""

    def __init__(self, app: Flask) -> None:
        self.opened = self.rejected = 0
        self._app = app
        self._sessions = SecureCookieSessionInterface()
        self._cookie = self._serializer().dumps({"user": "ada"})
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(READERS)]

    def __enter__(self) -> Readers:
        for thread in self._threads:
            thread.start()

        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stopped.set()

        for thread in self._threads:
            thread.join(10)

    def _run(self) -> None:
        while not self._stopped.is_set():
            cookie = self._cookie

            try:
                self._serializer().loads(cookie)
            except BadSignature:
                self.rejected += 1

            self._cookie = self._serializer().dumps({"user": "ada"})
            self.opened += 1

    def _serializer(self) -> URLSafeTimedSerializer:
        serializer = self._sessions.get_signing_serializer(self._app)
        assert serializer is not None
        return serializer


def ring_of(newest: int, window: int) -> KeyRing:
    """The ring of a history with a key per second."""
    history = [
        Version(number, START + number * STEP, f"session-key-{number}")
        for number in range(max(0, newest - KEPT - window), newest + 1)
    ]
    return compute(
        history,
        START + newest * STEP,
        propagation_window=window * STEP,
        retire_after=KEPT * STEP,
    )


def swap(
    app: Flask, writer: ConfigWriter, window: int, enough: int, seconds: float = 0.0
) -> tuple[int, int]:
    """Swap rings while others read, until so many sessions were rejected.

    :param seconds: over which the swaps are spread.
    :return: how many swaps there were, and how many rejected sessions.
    """
    began = time.monotonic()
    writer.write({}, {"SECRET_KEY": ring_of(0, window)})
    swaps = 0

    with Readers(app) as readers:
        while swaps < SWAPS and readers.rejected < enough:
            assert time.monotonic() - began < MOST
            swaps += 1
            opened = readers.opened
            writer.write({}, {"SECRET_KEY": ring_of(swaps, window)})

            # A reader must not sleep through the life of a key.
            while readers.opened < opened + 2 or (
                time.monotonic() - began < swaps * seconds / SWAPS
            ):
                time.sleep(0)

    return swaps, readers.rejected


@pytest.fixture
def app() -> cabc.Iterator[Flask]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield BusyApp("shop")
    sys.setswitchinterval(interval)


@pytest.mark.parametrize(("window", "seconds"), [(0, 0.0), (3, 10.0)])
def test_no_session_is_rejected_whenever_a_ring_is_swapped(
    app: Flask, window: int, seconds: float
) -> None:
    """With no window, too: what signs is accepted in that instant at the latest."""
    writer = ConfigWriter(app.config, ENTRIES)
    assert swap(app, writer, window, 1, seconds) == (SWAPS, 0)


def test_were_the_key_written_first_some_would_be(app: Flask) -> None:
    writer = ConfigWriter(KeyFirst(app.config), ENTRIES)
    swaps, rejected = swap(app, writer, 0, enough=1)
    assert swaps < SWAPS
    assert rejected > 0
