"""The status page as Chromium shows it: nothing cut off, all of it to be read."""

from __future__ import annotations

import collections.abc as cabc
import urllib.parse

import pytest
from flask import Flask
from flask import Response

from flask_vault.status_page import question
from flask_vault.testing.plugin import VaultMount
from tests.browser import Browser
from tests.browser import open_browser
from tests.browser import served
from tests.browser import what_is_missing
from tests.helpers import start_app
from tests.status_picture import PICTURE
from tests.status_scenes import passing
from tests.status_scenes import SCENES

#: A phone, a tablet and a screen, in CSS pixels.
WIDTHS = 360, 768, 1280
SCHEMES = "light", "dark"

#: Least contrast of a text to what is behind it (WCAG 2.2, level AA).
CONTRAST = 4.5

TOKEN = "operator-token"


@pytest.fixture(scope="module")
def browser() -> cabc.Iterator[Browser]:
    missing = what_is_missing()

    if missing is not None:
        pytest.skip(missing)

    with open_browser() as browser:
        yield browser


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scene", SCENES)
def test_it_is_to_be_read(
    scene: str, width: int, browser: Browser, vault_mount: VaultMount
) -> None:
    with served(SCENES[scene](vault_mount)) as address:
        for scheme in SCHEMES:
            browser.open(f"{address}/vault/health", width, scheme)
            contrasts = browser.contrasts()
            passed, failed, _ = browser.axe()

            assert browser.overflow() == []
            assert len(contrasts) > 20
            assert [pair for pair in contrasts if pair[1] < CONTRAST] == []
            assert passed > 20
            assert failed == []


def test_the_policy_lets_its_style_in(
    browser: Browser, vault_mount: VaultMount
) -> None:
    faces = set()

    with served(passing(vault_mount)) as address:
        for scheme in SCHEMES:
            browser.open(f"{address}/vault/health", 1280, scheme)
            script = "return getComputedStyle(document.body).backgroundColor"
            faces.add(browser.driver.execute_script(script))

    assert browser.complaints() == []
    assert len(faces - {"rgba(0, 0, 0, 0)"}) == 2


@pytest.mark.parametrize("width", WIDTHS)
def test_a_screen_reader_finds_a_table_at_each_width(
    width: int, browser: Browser, vault_mount: VaultMount
) -> None:
    with served(passing(vault_mount)) as address:
        browser.open(f"{address}/vault/health", width)
        nodes = browser.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})

    named = [
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in nodes["nodes"]
        if not node["ignored"]
    ]

    assert ("heading", "All is well") in named
    assert ("table", "Secrets") in named
    assert ("rowheader", "STRIPE_API_KEY stripe#api_key") in named
    assert ("columnheader", "Keys and rotation") in named


def test_a_browser_sends_the_token_as_a_password(
    browser: Browser, vault_mount: VaultMount
) -> None:
    vault_mount.write("flask", {"key": "v"})
    app = start_app(
        vault_mount.config(VAULT_HEALTH_DETAILS="token", VAULT_HEALTH_TOKEN=TOKEN),
        VAULT_SECRETS={"KEY": "flask#key"},
    )

    with served(app) as address:
        # In the place of the dialog, which a browser without a screen does not show: it
        # sends this as its answer to the 401.
        host = urllib.parse.urlsplit(address).netloc
        browser.open(f"http://anybody:{TOKEN}@{host}/vault/health", 1280)

        assert browser.driver.find_element("css selector", "h1").text == "All is well"
        assert TOKEN not in browser.driver.page_source


@pytest.mark.parametrize("status", ["pass", "warn", "fail"])
def test_the_question_is_to_be_read_too(status: str, browser: Browser) -> None:
    app = Flask("shop")

    @app.get("/")
    def ask() -> Response:
        # Over a 401 the browser lays its dialog.
        response = question(status)
        response.status_code = 200
        return response

    with served(app) as address:
        for scheme in SCHEMES:
            for width in WIDTHS:
                browser.open(address, width, scheme)
                contrasts = browser.contrasts()

                assert browser.overflow() == []
                assert len(contrasts) == 2
                assert all(ratio >= CONTRAST for _, ratio in contrasts)
                assert browser.axe()[1] == []


def test_the_picture_in_the_docs_is_small() -> None:
    content = PICTURE.read_bytes()

    assert content.startswith(b"\x89PNG")
    assert len(content) < 100_000


def test_these_tests_see_what_is_wrong(browser: Browser) -> None:
    browser.open(
        "data:text/html,<body style='background:white'><p style='color:silver'>pale"
        "<p style='width:600px'>wide<img src=x>",
        360,
    )

    assert browser.overflow()
    assert dict(browser.contrasts())["pale"] < 2
    assert any(rule.startswith("image-alt:") for rule in browser.axe()[1])
