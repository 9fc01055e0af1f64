"""Uses the example app without a pause, and counts what fails. Ctrl-C ends it.

Each of its users logs in once. From then on a page that is not theirs, a form or a
token that is refused, and an error of the database are failures.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import http.cookiejar
import json
import re
import sys
import threading
import time
import typing as t
import urllib.error
import urllib.parse
import urllib.request

USERS: t.Final = 3

#: Seconds of each user between two requests.
PAUSE: t.Final = 0.02

_FORM = re.compile(r'name="csrf_token" value="([^"]+)"')


class Counts:
    """What all users have seen."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.requests = 0
        self.failures: list[str] = []

    def add(self, failure: str | None) -> None:
        with self._lock:
            self.requests += 1

            if failure is not None:
                self.failures.append(failure)

    def __str__(self) -> str:
        return f"{self.requests} requests, {len(self.failures)} failures"


class User:
    """Somebody with a session, a form that is open, and a token."""

    def __init__(self, url: str, counts: Counts) -> None:
        self._url = url
        self._counts = counts
        self._opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}),
            urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar()),
        )
        login = {"name": "demo", "password": "demo"}
        self._post("/login", **login, csrf_token=self._form_of("/login"))
        self._form = self._form_of("/")
        self._token = self._post("/api/token", **login)

    def work(self, over: threading.Event) -> None:
        while not over.is_set():
            for action in (self._read_page, self._read_notes, self._keep_and_delete):
                failure = None

                try:
                    action()
                except (OSError, http.client.HTTPException, ValueError) as error:
                    failure = f"{action.__name__.strip('_')}: {error}"

                self._counts.add(failure)

                if over.wait(PAUSE):
                    return

    def _read_page(self) -> None:
        landed, _ = self._open("/")

        if landed != "/":
            raise ValueError(f"it was sent to {landed}")

    def _read_notes(self) -> None:
        json.loads(self._ask("/api/notes"))

    def _keep_and_delete(self) -> None:
        body = json.dumps({"text": "load"}).encode()
        number = json.loads(self._ask("/api/notes", body))["id"]
        self._post(f"/notes/{number}/delete", csrf_token=self._form)

    def _ask(self, path: str, body: bytes | None = None) -> str:
        headers = {
            "Authorization": f"Bearer {self._token}",
            "Content-Type": "application/json",
        }
        return self._open(path, body, headers)[1]

    def _post(self, path: str, **form: str) -> str:
        return self._open(path, urllib.parse.urlencode(form).encode())[1]

    def _form_of(self, path: str) -> str:
        found = _FORM.search(self._open(path)[1])

        if found is None:
            raise ValueError(f"{path} has no form")

        return found[1]

    def _open(
        self,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> tuple[str, str]:
        """Where one lands, and what is there."""
        request = urllib.request.Request(self._url + path, body, headers or {})

        with self._opener.open(request, timeout=10) as response:
            landed: str = response.url
            return landed.removeprefix(self._url), response.read().decode()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", nargs="?", default="http://127.0.0.1:8000")
    parser.add_argument("--seconds", type=float, help="default: until Ctrl-C")
    arguments = parser.parse_args()
    counts, over = Counts(), threading.Event()

    try:
        users = [User(arguments.url.rstrip("/"), counts) for _ in range(USERS)]
    except (OSError, ValueError) as error:
        print(f"The app at {arguments.url} lets nobody in: {error}", file=sys.stderr)
        return 1

    threads = [threading.Thread(target=user.work, args=[over]) for user in users]
    print(f"{USERS} users are at work at {arguments.url}. Ctrl-C ends it.", flush=True)

    for thread in threads:
        thread.start()

    with contextlib.suppress(KeyboardInterrupt):
        watch(counts, arguments.seconds)

    over.set()

    for thread in threads:
        thread.join()

    for failure in sorted(set(counts.failures)):
        print(failure)

    print(counts)
    return 1 if counts.failures else 0


def watch(counts: Counts, seconds: float | None) -> None:
    """Show the counts until the time is over: in place on a terminal."""
    end = None if seconds is None else time.monotonic() + seconds
    terminal = sys.stdout.isatty()

    try:
        while end is None or time.monotonic() < end:
            if terminal:
                print(f"\r{counts}", end="", flush=True)

            time.sleep(0.2)
    finally:
        if terminal:
            print("\r", end="")


if __name__ == "__main__":
    sys.exit(main())
