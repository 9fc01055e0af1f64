"""What a user's own loggers write of the secrets that an app has: a mask."""

from __future__ import annotations

import collections.abc as cabc
import gc
import io
import json
import logging
import traceback
import typing as t
import weakref

import pytest
from flask import Flask
from werkzeug.local import LocalProxy

from flask_vault import FlaskVault
from flask_vault.extension import state_of
from flask_vault.redaction import Redaction
from flask_vault.testing import DevServer
from flask_vault.testing.plugin import VaultMount
from tests.helpers import approle
from tests.helpers import BACKUP_KEY
from tests.helpers import may_read
from tests.helpers import new_app

CANARY = "canary-3f7e"
RING = {"ref": "flask#key", "rotate": "token", "keyring": True}


class Everything(logging.Formatter):
    """Writes all that a record has, as a log collector might."""

    def format(self, record: logging.LogRecord) -> str:
        raised = record.exc_info
        text = "".join(traceback.format_exception(raised[1])) if raised else ""
        return f"{super().format(record)} {vars(record)} {text}"


class Log:
    """A logger of the user's, with one handler."""

    def __init__(self) -> None:
        self._out = io.StringIO()
        self.logger = logging.Logger("users")  # noqa: LOG001
        self.handler = logging.StreamHandler(self._out)
        self.handler.setFormatter(Everything())
        self.logger.addHandler(self.handler)

    @property
    def text(self) -> str:
        return self._out.getvalue()


@pytest.fixture
def log() -> Log:
    return Log()


def start(
    mount: VaultMount, log: Log, entries: cabc.Mapping[str, object], **extra: object
) -> tuple[FlaskVault, Flask]:
    vault = FlaskVault()
    vault.redact(log.logger)
    app = new_app(mount.config(TESTING=True, **extra), VAULT_SECRETS=entries)
    vault.init_app(app)
    return vault, app


class Holder:
    def __repr__(self) -> str:
        return f"<Holder {CANARY}>"


def fail(message: str) -> t.NoReturn:
    try:
        raise ValueError(message)
    except ValueError as error:
        raise RuntimeError("the outer one") from error


@pytest.mark.parametrize(
    "write",
    [
        lambda log: log.warning(f"the key is {CANARY}!"),
        lambda log: log.warning("the key is %s!", CANARY),
        lambda log: log.warning("%(key)s", {"key": CANARY, "other": CANARY}),
        lambda log: log.warning("%s of %d", [CANARY, {"a": (CANARY,)}], 5),
        lambda log: log.warning("%r", Holder()),
        lambda log: log.warning(ValueError(CANARY)),
        lambda log: log.warning({"event": CANARY}),
        lambda log: log.warning("hello", extra={"key": CANARY, "n": 5}),
        lambda log: log.warning("hello", extra={"request": {"headers": [CANARY]}}),
        lambda log: log.warning("hello", extra={"holder": Holder()}),
        lambda log: log.warning("hello %(a)s", {"a": 1, "b": CANARY}),
        lambda log: log.warning("too many %s", CANARY, CANARY),
    ],
)
def test_a_value_is_masked_wherever_a_record_has_it(
    vault_mount: VaultMount,
    log: Log,
    write: cabc.Callable[[logging.Logger], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    vault_mount.write("a", {"a": CANARY})
    _app = start(vault_mount, log, {"A": "a#a"})
    write(log.logger)
    assert "***" in log.text
    assert CANARY not in log.text
    assert CANARY not in "".join(capsys.readouterr())


def test_a_value_is_masked_in_the_text_of_an_exception(
    vault_mount: VaultMount, log: Log
) -> None:
    vault_mount.write("a", {"a": CANARY})
    _app = start(vault_mount, log, {"A": "a#a"})

    try:
        fail(f"cannot log in with {CANARY}")
    except RuntimeError:
        log.logger.exception("it failed")

    assert "ValueError: cannot log in with ***" in log.text
    assert "RuntimeError: the outer one" in log.text
    assert CANARY not in log.text


@pytest.mark.parametrize(
    ("value", "spelled"),
    [
        ("p@ss/w:rd%1", "db://p%40ss%2Fw%3Ard%251@db"),
        ("with space", "?key=with+space"),
        ('quote"and\\', json.dumps({"key": 'quote"and\\'})),
        ("first line\nsecond", repr("first line\nsecond")),
        ("Zürich-Zürich", json.dumps("Zürich-Zürich")),
    ],
)
def test_a_value_is_masked_as_it_is_spelled_elsewhere(
    vault_mount: VaultMount, log: Log, value: str, spelled: str
) -> None:
    vault_mount.write("a", {"a": value})
    _app = start(vault_mount, log, {"A": "a#a"})
    log.logger.warning("it is %s", spelled)
    assert "***" in log.text
    assert spelled not in log.text


def test_what_no_secret_is_stays(vault_mount: VaultMount, log: Log) -> None:
    vault_mount.write("a", {"a": CANARY, "short": "1234567"})
    vault_mount.write("db", {"user": "ada.lovelace", "password": f"{CANARY}-pw"})
    _app = start(
        vault_mount,
        log,
        {
            "A": "a#a",
            "SHORT": "a#short",
            "URL": {"ref": "db", "template": "db://{user}:{password}@db"},
            "MODE": {"ref": "gone#a", "default": "development"},
        },
    )
    unbound: LocalProxy[object] = LocalProxy(lambda: fail("unbound"))
    args = ["ada.lovelace", "1234567", "development", 5, 1.5, None]
    extra = {"thing": unbound, "items": args}

    try:
        fail("an error")
    except RuntimeError as error:
        log.logger.error("%s %s %s %d %.2f %s", *args, extra=extra, exc_info=error)

    assert "ada.lovelace 1234567 development 5 1.50 None" in log.text
    assert "RuntimeError: the outer one" in log.text
    assert "***" not in log.text


def test_the_parts_of_a_template_are_masked(vault_mount: VaultMount, log: Log) -> None:
    vault_mount.write("db", {"user": "ada.lovelace", "password": CANARY})
    template = "db://{user}:{password}@db"
    _app = start(vault_mount, log, {"URL": {"ref": "db", "template": template}})
    log.logger.warning("%s and db://ada.lovelace:%s@db", CANARY, CANARY)
    assert "*** and *** " in log.text
    assert CANARY not in log.text


def test_values_that_a_rotation_brings_are_masked_and_those_before_it_still(
    vault_mount: VaultMount, log: Log
) -> None:
    vault_mount.write("flask", {"key": f"{CANARY}-1"})
    vault_mount.write("stripe", {"key": f"{CANARY}-3"})
    vault, app = start(vault_mount, log, {"KEY": RING, "STRIPE": "stripe#key"})
    log.logger.warning("before")
    vault_mount.write("flask", {"key": f"{CANARY}-2"})
    vault_mount.write("stripe", {"key": f"{CANARY}-4"})
    vault.refresh(app)

    for number in range(1, 5):
        log.logger.warning("it is %s-%d", CANARY, number)

    assert log.text.count("it is *** ") == 4
    assert CANARY not in log.text


def test_tokens_and_credentials_are_masked(
    vault_mount: VaultMount, vault_server: DevServer, log: Log
) -> None:
    vault_mount.write("a", {"a": CANARY})
    role = approle(vault_server, may_read(vault_mount))
    _, app = start(
        vault_mount,
        log,
        {"A": "a#a"},
        VAULT_TOKEN=None,
        VAULT_AUTH=role,
        VAULT_BACKUP_KEYS=[BACKUP_KEY],
        VAULT_HEALTH_TOKEN=f"{CANARY}-health",
    )
    token = state_of(app).client.transport.token
    assert token is not None
    hidden = [token.value, str(role["secret_id"]), BACKUP_KEY, f"{CANARY}-health"]
    log.logger.warning("%s", hidden)
    assert [value for value in hidden if value in log.text] == []


def test_values_of_the_environment_are_masked_without_vault(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A", CANARY)
    vault = FlaskVault()
    vault.redact(log.handler)
    app = new_app(
        {"VAULT_ENABLED": False}, VAULT_SECRETS={"A": {"ref": "a#a", "env": "A"}}
    )
    vault.init_app(app)
    log.logger.warning(CANARY)
    assert CANARY not in log.text


def test_the_records_of_other_loggers_are_masked_at_the_handler(
    vault_mount: VaultMount, log: Log
) -> None:
    vault_mount.write("a", {"a": CANARY})
    vault = FlaskVault(new_app(vault_mount.config(), VAULT_SECRETS={"A": "a#a"}))
    root = logging.getLogger()
    child = logging.getLogger("users.child")
    root.addHandler(log.handler)

    try:
        vault.redact(root)
        child.warning("it is %s", CANARY)
    finally:
        root.removeHandler(log.handler)
        forget(root)

    assert "it is ***" in log.text
    assert CANARY not in log.text


def test_a_record_is_masked_for_the_handlers_of_the_loggers_above(
    vault_mount: VaultMount, log: Log
) -> None:
    vault_mount.write("a", {"a": CANARY})
    vault = FlaskVault(new_app(vault_mount.config(), VAULT_SECRETS={"A": "a#a"}))
    logger = logging.Logger("users.child")  # noqa: LOG001
    logger.parent = log.logger
    logger.addHandler(logging.StreamHandler(io.StringIO()))
    logger.handlers[0].setLevel(logging.ERROR)
    vault.redact(logger)
    logger.warning("it is %s", CANARY)
    assert "it is ***" in log.text
    assert CANARY not in log.text


def test_without_any_handler_the_last_resort_is_masked(
    vault_mount: VaultMount,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    vault_mount.write("a", {"a": CANARY})
    vault = FlaskVault(new_app(vault_mount.config(), VAULT_SECRETS={"A": "a#a"}))
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])

    try:
        vault.redact(root)
        logging.getLogger("users.child").warning("it is %s", CANARY)
    finally:
        forget(root)

    assert capsys.readouterr().err == "it is ***\n"


def forget(root: logging.Logger) -> None:
    assert logging.lastResort is not None

    for target in (root, logging.lastResort, *root.handlers):
        for one in list(target.filters):
            if isinstance(one, Redaction):
                target.removeFilter(one)


def test_a_second_call_adds_no_second_filter(log: Log) -> None:
    vault = FlaskVault()
    vault.redact(log.logger)
    vault.redact(log.logger)
    assert len(log.handler.filters) == 1
    assert log.logger.filters == []


def test_the_filter_itself_tells_nothing(
    vault_mount: VaultMount, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault_mount.write("a", {"a": CANARY})
    _app = start(vault_mount, log, {"A": "a#a"})
    (redaction,) = log.handler.filters
    log.logger.warning("hello")
    assert CANARY not in repr(redaction)

    def broken(*args: object) -> t.NoReturn:
        raise KeyError(CANARY)

    monkeypatch.setattr("flask_vault.redaction._masked", broken)

    try:
        fail(CANARY)
    except RuntimeError:
        log.logger.exception("it is %s", CANARY, extra={"key": CANARY})

    assert "withheld: masking it failed with KeyError" in log.text
    assert CANARY not in log.text


def test_an_app_that_is_gone_is_not_kept(vault_mount: VaultMount, log: Log) -> None:
    vault_mount.write("a", {"a": CANARY})
    vault, app = start(vault_mount, log, {"A": "a#a"})
    log.logger.warning(CANARY)
    gone = weakref.ref(app)
    del app
    gc.collect()
    assert gone() is None
    log.logger.warning("hello")
    assert CANARY not in log.text
