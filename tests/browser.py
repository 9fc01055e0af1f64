"""Chromium without a screen, as far as it is there, and what it can tell of a page."""

from __future__ import annotations

import base64
import collections.abc as cabc
import contextlib
import importlib.resources
import importlib.util
import os
import shutil
import threading
import typing as t

from flask import Flask
from werkzeug.serving import make_server
from werkzeug.serving import WSGIRequestHandler

if t.TYPE_CHECKING:
    from selenium.webdriver import Chrome

PROGRAMS = "chromium", "chromedriver"
PACKAGES = "selenium", "selenium_axe_python"

#: Every text of a page with less contrast to what is behind it, as WCAG counts it.
_CONTRAST = """
const canvas = document.createElement('canvas').getContext(
  '2d', {willReadFrequently: true});
function rgba(color) {
  canvas.clearRect(0, 0, 1, 1);
  canvas.fillStyle = color;
  canvas.fillRect(0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data];
}
function light([r, g, b]) {
  const [x, y, z] = [r, g, b].map(value => {
    const part = value / 255;
    return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * x + 0.7152 * y + 0.0722 * z;
}
function behind(element) {
  for (let at = element; at; at = at.parentElement) {
    const color = rgba(getComputedStyle(at).backgroundColor);
    if (color[3] === 255) return color;
    if (color[3] !== 0) throw `half transparent: ${at.outerHTML.slice(0, 80)}`;
  }
  throw 'the page has no background';
}
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
const found = [];
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement;
  const text = walker.currentNode.textContent.trim();
  if (!text || element.closest('.unseen') || !element.getClientRects().length) continue;
  const [a, b] = [light(rgba(getComputedStyle(element).color)), light(behind(element))];
  found.push([text, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)]);
}
return found;
"""

#: What reaches beyond the window, or is cut off.
_OVERFLOW = """
const wide = document.documentElement.clientWidth;
const found = document.documentElement.scrollWidth > wide ? ['the page'] : [];
for (const element of document.body.querySelectorAll('*')) {
  if (element.closest('.unseen, thead')) continue;
  const box = element.getBoundingClientRect();
  const cut = element.scrollWidth > element.clientWidth + 1
    && getComputedStyle(element).display !== 'inline' && !element.closest('svg');
  if (box.right > wide + 0.5 || box.left < -0.5 || cut) {
    found.push(element.outerHTML.slice(0, 100));
  }
}
return found;
"""

_AXE = """
const done = arguments[arguments.length - 1];
axe.run(document, {resultTypes: ['violations', 'incomplete']}).then(
  found => done([found.passes.length, ...['violations', 'incomplete'].map(
    kind => found[kind].map(rule => `${rule.id}: ${rule.nodes.map(n => n.html)}`))]),
  error => done([0, [String(error)], []]),
);
"""


def what_is_missing() -> str | None:
    """Why there is no browser to be had; ``None`` when there is one."""
    programs = [name for name in PROGRAMS if shutil.which(name) is None]

    if programs:
        return (
            f"{' and '.join(programs)} is missing: install Debian's packages chromium"
            " and chromium-driver"
        )

    packages = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    return f"{' and '.join(packages)} is not installed" if packages else None


class Browser:
    """A window of a size and a colour scheme."""

    def __init__(self, driver: Chrome) -> None:
        self.driver = driver

    def open(self, url: str, width: int, scheme: str = "light") -> None:
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False},
        )
        self.driver.execute_cdp_cmd(
            "Emulation.setEmulatedMedia",
            {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
        )
        # What it says belongs to the page that is open.
        self.complaints()
        self.driver.get(url)

    def overflow(self) -> list[str]:
        """The elements that are wider than there is room for."""
        return t.cast("list[str]", self.driver.execute_script(_OVERFLOW))

    def contrasts(self) -> list[tuple[str, float]]:
        """Each text that is seen, and its contrast."""
        return [tuple(pair) for pair in self.driver.execute_script(_CONTRAST)]

    def axe(self) -> tuple[int, list[str], list[str]]:
        """How many rules of axe-core pass, which fail, and which it cannot judge."""
        source = importlib.resources.files("selenium_axe_python") / "axe-core"
        self.driver.execute_script((source / "axe.min.js").read_text("utf-8"))
        passed, failed, unsure = self.driver.execute_async_script(_AXE)
        return passed, failed, unsure

    def complaints(self) -> list[str]:
        """What the console says, such as of a broken policy."""
        log = t.cast(t.Any, self.driver).get_log("browser")
        return [entry["message"] for entry in log]

    def picture(self) -> bytes:
        """The whole page as PNG."""
        shot = self.driver.execute_cdp_cmd(
            "Page.captureScreenshot", {"captureBeyondViewport": True}
        )
        return base64.b64decode(shot["data"])


@contextlib.contextmanager
def open_browser() -> cabc.Iterator[Browser]:
    """A browser of its own, with nothing of the user's."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = t.cast(str, shutil.which("chromium"))
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})

    for argument in ("--headless=new", "--hide-scrollbars", "--disable-dev-shm-usage"):
        options.add_argument(argument)

    # Its sandbox does not start for root, who runs the tests in a container.
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")

    driver = webdriver.Chrome(options, Service(shutil.which("chromedriver")))

    try:
        driver.set_page_load_timeout(30)
        driver.set_script_timeout(30)
        yield Browser(driver)
    finally:
        driver.quit()


class _Quiet(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: object) -> None:
        pass


@contextlib.contextmanager
def served(app: Flask) -> cabc.Iterator[str]:
    """An app on a free port.

    :return: its address.
    """
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=_Quiet)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()

    try:
        yield f"http://127.0.0.1:{server.port}"
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()
