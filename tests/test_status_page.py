"""``/vault/health`` as a page: who gets it, and what it says of each state."""

from __future__ import annotations

import base64
import hashlib
import html
import re
import time
import typing as t

import pytest
from flask import Flask
from werkzeug.test import TestResponse

from flask_vault import FlaskVault
from flask_vault.errors import VaultError
from flask_vault.errors import VaultLoginError
from flask_vault.errors import VaultNotInitializedError
from flask_vault.errors import VaultRateLimitedError
from flask_vault.errors import VaultSealedError
from flask_vault.extension import state_of
from flask_vault.status_facts import facts_of
from flask_vault.testing import FaultProxy
from flask_vault.testing.plugin import VaultMount
from flask_vault.vault.tokens import Token
from tests import status_scenes
from tests.helpers import start_app
from tests.status_scenes import CANARY
from tests.status_scenes import journal
from tests.status_scenes import OPERATION
from tests.status_scenes import SCENES

#: What Chromium sends.
BROWSER = (
    "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,"
    "image/apng,*/*;q=0.8,application/signed-exchange;v=b3;q=0.7"
)
TOKEN = "operator-token"


def ask(app: Flask, accept: str | None = BROWSER, **options: t.Any) -> TestResponse:
    headers = {"Accept": accept} if accept else {}
    headers.update(options.pop("headers", {}))
    path = options.pop("path", "/vault/health")
    return app.test_client().get(path, headers=headers, **options)


def text_of(response: TestResponse) -> str:
    """What is to be read, without the tags, in one line."""
    body = re.sub(r"<style>.*?</style>", "", response.text, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", body)).split())


def row_of(response: TestResponse, key: str) -> str:
    """What is to be read in the row of a secret."""
    rows = re.findall(r"<tr role=\"row\" class.*?</tr>", response.text, re.DOTALL)
    row = next(row for row in rows if f">{key}<" in row)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", row)).split())


def basic(password: str, user: str = "anybody") -> dict[str, str]:
    both = base64.b64encode(f"{user}:{password}".encode()).decode()
    return {"Authorization": f"Basic {both}"}


@pytest.fixture
def mount(vault_mount: VaultMount) -> VaultMount:
    vault_mount.write("flask", {"key": CANARY})
    return vault_mount


@pytest.fixture
def app(mount: VaultMount, vault_proxy: FaultProxy) -> Flask:
    app = start_app(
        mount.config(VAULT_ADDR=vault_proxy.address),
        VAULT_HEALTH_DETAILS="always",
        VAULT_SECRETS={"KEY": {"ref": "flask#key", "keyring": True}},
    )
    # The refreshes are the test's.
    state_of(app).refresher.stop()
    return app


@pytest.fixture
def closed_app(mount: VaultMount) -> Flask:
    """Its details are for whoever has the token."""
    return start_app(
        mount.config(VAULT_HEALTH_DETAILS="token", VAULT_HEALTH_TOKEN=TOKEN),
        VAULT_SECRETS={"KEY": "flask#key"},
    )


# --- who gets it ---------------------------------------------------------------------


def test_a_browser_gets_a_page(app: Flask) -> None:
    answer = ask(app)

    assert answer.status_code == 200
    assert answer.mimetype == "text/html"
    assert "All is well" in text_of(answer)
    assert (
        app.test_client().head("/vault/health", headers={"Accept": BROWSER}).data == b""
    )


@pytest.mark.parametrize(
    "accept",
    [
        None,
        "*/*",
        "text/*",
        "application/json",
        "application/health+json",
        "application/json, text/html;q=0.9",
        "application/json, text/plain, */*",
        "text/html;q=0, */*",
    ],
)
def test_everybody_else_gets_the_json(accept: str | None, app: Flask) -> None:
    answer = ask(app, accept)

    assert answer.mimetype == "application/health+json"
    assert answer.json is not None and answer.json["status"] == "pass"


def test_without_details_there_is_no_page(mount: VaultMount) -> None:
    app = start_app(mount.config(), VAULT_SECRETS={"KEY": "flask#key"})

    assert ask(app).json == {"status": "pass"}
    assert ask(app, headers=basic("")).json == {"status": "pass"}


def test_a_cache_keeps_neither(app: Flask) -> None:
    for accept in (BROWSER, "*/*"):
        assert ask(app, accept).headers["Cache-Control"] == "no-store"
        assert ask(app, accept).headers["Vary"] == "Accept"


def test_a_browser_is_asked_for_the_token(closed_app: Flask) -> None:
    answer = ask(closed_app)

    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"].startswith("Basic realm=")
    # A page that comes again would ask again.
    assert "Refresh" not in answer.headers
    assert "Vault: pass" in text_of(answer)
    assert "KEY" not in answer.text


def test_nobody_but_a_browser_is_asked(closed_app: Flask) -> None:
    """A load balancer would take a 401 for a host that fails."""
    for accept in (None, "*/*", "application/json"):
        assert ask(closed_app, accept).status_code == 200
        assert ask(closed_app, accept).json == {"status": "pass"}


@pytest.mark.parametrize(
    "given",
    [basic(TOKEN), basic(TOKEN, user=""), {"Authorization": f"Bearer {TOKEN}"}],
)
def test_who_has_the_token_sees_the_page(
    given: dict[str, str], closed_app: Flask
) -> None:
    answer = ask(closed_app, headers=given)

    assert answer.status_code == 200
    assert "KEY" in answer.text
    assert TOKEN not in answer.text


@pytest.mark.parametrize(
    "header",
    [
        basic("other")["Authorization"],
        basic("", user=TOKEN)["Authorization"],
        basic("\u00e9")["Authorization"],
        "Basic",
        "Basic !",
        f"Basic {TOKEN}",
        "Bearer other",
        TOKEN,
    ],
)
def test_who_has_not_is_asked_again(header: str, closed_app: Flask) -> None:
    answer = ask(closed_app, headers={"Authorization": header})

    assert answer.status_code == 401
    assert "KEY" not in answer.text


def test_a_token_in_the_url_is_none(closed_app: Flask) -> None:
    query = {"token": TOKEN, "access_token": TOKEN, "password": TOKEN}

    assert ask(closed_app, query_string=query).status_code == 401


def test_a_password_is_for_the_page_only(closed_app: Flask) -> None:
    assert ask(closed_app, "*/*", headers=basic(TOKEN)).json == {"status": "pass"}


# --- what it is ----------------------------------------------------------------------


def test_nothing_runs_and_nothing_is_loaded(app: Flask) -> None:
    answer = ask(app)
    policy = answer.headers["Content-Security-Policy"]
    style = re.search(r"<style>(.*?)</style>", answer.text, re.DOTALL)
    assert style is not None
    digest = hashlib.sha256(style[1].encode()).digest()

    assert policy.startswith("default-src 'none';")
    assert f"style-src 'sha256-{base64.b64encode(digest).decode()}';" in policy
    assert "unsafe" not in policy and "http" not in policy
    assert not re.search(r"<script|\son\w+=|\sstyle=|(src|href)=.http", answer.text)


def test_it_comes_again_until_it_is_paused(app: Flask) -> None:
    assert ask(app).headers["Refresh"] == "10"
    assert 'href="?refresh=off"' in ask(app).text

    paused = ask(app, query_string={"refresh": "off"})
    assert "Refresh" not in paused.headers
    assert 'href="?refresh=on"' in paused.text


def test_it_asks_nobody(app: Flask, vault_proxy: FaultProxy) -> None:
    ask(app)
    vault_proxy.reset()
    vault_proxy.hang()

    for _ in range(3):
        assert ask(app).status_code == 200

    assert vault_proxy.count == vault_proxy.connections == 0


def test_what_others_have_named_is_escaped(mount: VaultMount) -> None:
    evil = "<img src=x onerror=alert(1)>\"'"
    app = Flask(evil)
    app.config.from_mapping(
        mount.config(
            VAULT_HEALTH_DETAILS="always",
            VAULT_SECRETS={
                "KEY": {"ref": f"flask#{evil}", "required": False},
            },
        )
    )
    FlaskVault(app)
    answer = ask(app)

    assert "<img" not in answer.text
    assert text_of(answer).count(evil) == 3  # In the title, below the headline, a row.


@pytest.mark.parametrize("scene", SCENES.values())
def test_no_value_no_address_and_no_mount_is_on_it(
    scene: t.Callable[[VaultMount], Flask], vault_mount: VaultMount
) -> None:
    answer = ask(scene(vault_mount))

    for hidden in (CANARY, vault_mount.name, vault_mount.token, "127.0.0.1", "8200"):
        assert hidden not in answer.text


# --- what it says --------------------------------------------------------------------


def test_when_all_is_well(vault_mount: VaultMount) -> None:
    answer = ask(status_scenes.passing(vault_mount))
    text = text_of(answer)

    assert answer.status_code == 200
    assert "shop and Vault: pass Every secret is as Vault has it." in text
    assert re.search(r"Server Answers active node answered 1\d s ago", text)
    assert re.search(r"Token 4\d min left of 60 min, token login, renewed", text)
    assert re.search(r"Refresh Works last success 1\d s ago, every 30 s by a", text)
    assert "Secrets 5 5 from vault, 1 in rotation" in text
    assert row_of(answer, "STRIPE_API_KEY") == (
        "STRIPE_API_KEY stripe#api_key vault 1 212 d \u2013 none"
    )
    assert row_of(answer, "MAIL_PASSWORD").startswith(
        "MAIL_PASSWORD \u2026/mail#password vault"
    )


def test_a_key_ring_is_a_time_line(vault_mount: VaultMount) -> None:
    answer = ask(status_scenes.passing(vault_mount))

    assert re.fullmatch(
        r"SECRET_KEY flask#secret_key vault 3 \d+ s"
        r" v1 retired 22 d left v2 signing for 8 d v3 pending signs in \d+ s"
        r" Next change in \d+ s",
        row_of(answer, "SECRET_KEY"),
    )


def test_a_new_key_is_seen_once_it_is_known(app: Flask, mount: VaultMount) -> None:
    assert "v1 signing" in row_of(ask(app), "KEY")

    mount.write("flask", {"key": f"{CANARY}-2"})
    state_of(app).refresh()

    assert re.search(
        r"v1 signing for \d+ s v2 pending signs in 1\d\d s", row_of(ask(app), "KEY")
    ) or re.search(r"v2 pending signs in 2 min", row_of(ask(app), "KEY"))


def test_when_vault_is_gone(app: Flask, vault_proxy: FaultProxy) -> None:
    vault_proxy.cut()
    state_of(app).refresh()
    answer = ask(app)
    text = text_of(answer)

    assert answer.status_code == 200
    assert "Serving, with a warning" in text and "Vault: warn" in text
    assert "(VaultConnectionError). The app goes on with what it has." in text
    assert "Server No answer" in text

    vault_proxy.heal()
    state_of(app).refresh()
    assert "All is well" in text_of(ask(app))


def test_when_nothing_proves_that_all_is_still_so(vault_mount: VaultMount) -> None:
    text = text_of(ask(status_scenes.stale(vault_mount)))

    assert "The refresh has failed for 4 h (VaultConnectionError)." in text
    assert "other hosts may sign with keys that it has not heard of" in text
    assert "Server No answer active node answered 4 h ago" in text
    assert "Refresh Failing for 4 h" in text


def test_when_single_secrets_are_not_as_they_should_be(vault_mount: VaultMount) -> None:
    answer = ask(status_scenes.failing(vault_mount))
    text = text_of(answer)

    assert "Vault's value is missing for GEOIP_KEY, SENTRY_DSN." in text
    # What is wrong with a document is no fault of the server's.
    assert "Server Answers" in text
    assert "vault SecretFieldError" in row_of(answer, "STRIPE_API_KEY")
    assert "default SecretNotFoundError" in row_of(answer, "GEOIP_KEY")
    assert "unset SecretNotFoundError" in row_of(answer, "SENTRY_DSN")


def test_what_needs_a_look_comes_first(vault_mount: VaultMount) -> None:
    keys = re.findall(
        'class="key">(.*?)<', ask(status_scenes.failing(vault_mount)).text
    )

    assert keys == [
        *("SQLALCHEMY_DATABASE_URI", "STRIPE_API_KEY", "GEOIP_KEY", "SENTRY_DSN"),
        *("SECRET_KEY", "JWT_SECRET_KEY", "MAIL_PASSWORD"),
    ]


def test_when_the_host_is_not_fit(vault_mount: VaultMount) -> None:
    answer = ask(status_scenes.broken(vault_mount))

    assert answer.status_code == 503
    assert "Not fit to serve" in text_of(answer)
    assert "The secrets of this process were never loaded." in text_of(answer)
    assert answer.headers["Refresh"] == "10"


def test_when_vault_is_off(vault_mount: VaultMount) -> None:
    text = text_of(ask(status_scenes.disabled(vault_mount)))

    assert "Vault: pass VAULT_ENABLED is False, so nothing comes from Vault." in text
    assert "Refresh Off VAULT_ENABLED is False" in text
    assert "Secrets 3 2 from default, 1 unset" in text
    assert "Server" not in text and "Token" not in text


def test_without_a_secret(mount: VaultMount) -> None:
    app = start_app(mount.config(VAULT_HEALTH_DETAILS="always"))

    assert "VAULT_SECRETS declares none." in text_of(ask(app))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (VaultSealedError("x"), "Sealed"),
        (VaultNotInitializedError("x"), "Not initialized"),
        (VaultLoginError("x"), "Login refused"),
        (VaultRateLimitedError("x"), "Rate limit reached"),
    ],
)
def test_the_server_in_a_word(
    error: VaultError, words: str, vault_mount: VaultMount
) -> None:
    app = status_scenes.passing(vault_mount)
    status_scenes.fail(state_of(app), error, for_seconds=5)
    answer = ask(app)

    assert f"Server {words} active node" in text_of(answer)
    # It is not the fault of the secret that was asked for first.
    assert type(error).__name__ not in row_of(answer, "SECRET_KEY")


def test_a_standby_that_is_cut_off_is_told(vault_mount: VaultMount) -> None:
    app = status_scenes.passing(vault_mount)
    status_scenes.note(state_of(app), last_fresh=time.monotonic() - 1000)
    text = text_of(ask(app))

    assert "Server Only a standby answers active node answered 16 min ago" in text
    assert "Serving, with a warning" in text


@pytest.mark.parametrize(
    ("token", "said"),
    [
        (None, "None yet"),
        (Token("x"), "No end known"),
        (Token("x", ttl=3600, renewable=True, obtained=-4000), "Expired"),
        (Token("x", ttl=1e9), "left of 11574 d, token login, nobody renews it"),
    ],
)
def test_the_tokens_life(
    token: Token | None, said: str, vault_mount: VaultMount
) -> None:
    app = status_scenes.passing(vault_mount)
    state_of(app).client.transport._session.token = token

    assert said in text_of(ask(app))


# --- open rotations ------------------------------------------------------------------


def with_journal(mount: VaultMount, record: object) -> Flask:
    """An app with a password in whose document there is a journal."""
    mount.write("db", {"user": "u", "password": CANARY, "_rotation": record})
    return start_app(
        mount.config(VAULT_HEALTH_DETAILS="always"),
        VAULT_SECRETS={
            "URI": {
                "ref": "db",
                "template": "db://{user}:{password}@db",
                "rotate": {"kind": "database", "field": "password"},
            },
            "USER": "db#user",
        },
    )


@pytest.mark.parametrize(
    ("state", "stages"),
    [
        ("INTENT", "present ahead ahead ahead"),
        ("PREPARED", "present ahead ahead"),
        ("APPLYING", "done present ahead"),
        ("PROMOTED", "done done present"),
    ],
)
def test_an_open_rotation_and_its_step(
    state: str, stages: str, vault_mount: VaultMount
) -> None:
    answer = ask(with_journal(vault_mount, journal(state)))

    assert re.findall(r'<li class="(\w+)"', answer.text) == stages.split()
    assert f'aria-current="step"><b>{state}<' in answer.text
    assert (
        f"Open database rotation of password operation {OPERATION[:8]}, at this step"
        in row_of(answer, "URI")
    )
    # Another field of the document is not being rotated.
    assert "rotation" not in row_of(answer, "USER")
    assert "All is well" in text_of(answer)
    assert CANARY not in answer.text


def test_a_rotation_that_stands_still_is_told(vault_mount: VaultMount) -> None:
    app = status_scenes.passing(vault_mount)
    status_scenes.age_document(state_of(app), "SQLALCHEMY_DATABASE_URI", 3600)
    answer = ask(app)

    assert ask(app, "*/*").json["status"] == "pass"  # type: ignore[index]
    assert "Serving, with a rotation to finish shop and Vault: pass" in text_of(answer)
    assert "flask vault rotate --secret SQLALCHEMY_DATABASE_URI" in text_of(answer)


@pytest.mark.parametrize(
    "record",
    [
        CANARY,
        [CANARY],
        {},
        {"v": 2, "password": {"state": "PREPARED", "op": CANARY}},
        {"v": 1, "password": CANARY},
        {"v": 1, "password": {"state": CANARY}},
        {"v": 1, "password": {"state": [CANARY]}},
        journal("PREPARED", op=CANARY, kind=CANARY),
        journal("PREPARED", op={CANARY: 1}, kind=[CANARY]),
        journal("PREPARED", op=f"{OPERATION}{CANARY}"),
        {"v": 1, CANARY: {"state": "PREPARED"}},
    ],
)
def test_of_a_record_that_is_none_nothing_is_shown(
    record: object, vault_mount: VaultMount
) -> None:
    answer = ask(with_journal(vault_mount, record))

    assert answer.status_code == 200
    assert CANARY not in answer.text


def test_the_page_and_the_json_tell_the_same(vault_mount: VaultMount) -> None:
    app = status_scenes.failing(vault_mount)
    details = t.cast("dict[str, t.Any]", ask(app, "*/*").json)
    facts = facts_of(state_of(app), details)

    assert facts.status == details["status"]
    assert {row.key: row.source for row in facts.rows} == {
        key: secret["source"] for key, secret in details["secrets"].items()
    }
