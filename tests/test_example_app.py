"""The example app on a real server, and ``make demo`` as its user meets it."""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import http.cookiejar
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from example_app import create_app
from example_app import db
from example_app import vault
from flask_vault.errors import VaultPermissionError
from flask_vault.rotation.backup import BackupStore
from flask_vault.rotation.keys import new_key
from flask_vault.testing import DevServer
from flask_vault.testing import FaultProxy
from flask_vault.testing.plugin import VaultMount
from tests.postgres import Postgres

ROOT = pathlib.Path(__file__).parent.parent
FLASK = pathlib.Path(sys.executable).with_name("flask")

FLASK_PATH = "example/test/flask"
JWT_PATH = "example/test/jwt"
DATABASE_PATH = "example/test/database"
PASSWORD = "first-password-77d0"
LOGIN = {"name": "demo", "password": "demo"}
FORM = re.compile(r'name="csrf_token" value="([^"]+)"')

MakeApp = cabc.Callable[..., Flask]


def wait_until(condition: cabc.Callable[[], bool], timeout: float = 15.0) -> None:
    deadline = time.monotonic() + timeout

    while not condition():
        assert time.monotonic() < deadline, "It did not happen in time."
        time.sleep(0.02)


class Browser:
    """Keeps its cookies, and sends the forms that it was given."""

    def __init__(self, client: FlaskClient) -> None:
        self.client = client

    def open_form(self, path: str = "/") -> str:
        """What proves that the form of a page is ours."""
        found = FORM.search(self.client.get(path).text)
        assert found is not None
        return found[1]

    def send(self, path: str, form: str | None = None, **fields: str) -> TestResponse:
        """Fill in a form; one that was open already, if given."""
        form = form or self.open_form("/login")
        return self.client.post(path, data={"csrf_token": form, **fields})

    def log_in(self) -> None:
        assert self.send("/login", **LOGIN).location == "/"

    def is_logged_in(self) -> bool:
        return self.client.get("/").status_code == 200


def bearer(client: FlaskClient) -> dict[str, str]:
    """The header with a token that was just made."""
    response = client.post("/api/token", data=LOGIN)
    assert response.status_code == 201
    return {"Authorization": f"Bearer {response.text}"}


def write_keys(mount: VaultMount, word: str) -> None:
    mount.write(FLASK_PATH, {"secret_key": f"the-{word}-session-key"})
    mount.write(JWT_PATH, {"secret_key": f"the-{word}-token-key".ljust(32, ".")})


@pytest.fixture
def user(postgres: Postgres) -> str:
    """A user of the database, with tables that nobody else sees."""
    name = postgres.create_user(PASSWORD)
    postgres.run(f"CREATE SCHEMA AUTHORIZATION {name}")
    db.create_tables(postgres.url(name, PASSWORD))
    return name


@pytest.fixture
def make_app(
    vault_server: DevServer, vault_mount: VaultMount, postgres: Postgres, user: str
) -> cabc.Iterator[MakeApp]:
    """Makes the app as it runs: behind an AppRole that may read its documents."""
    write_keys(vault_mount, "first")
    vault_mount.write(DATABASE_PATH, postgres.document(user, PASSWORD))
    policy = "\n".join(
        f'path "{vault_mount.name}/{kind}/{path}" {{ capabilities = ["read"] }}'
        for path in (FLASK_PATH, JWT_PATH, DATABASE_PATH)
        for kind in ("data", "metadata")
    )
    role_id, secret_id = vault_server.create_approle(vault_mount.name, policy)

    made: list[Flask] = []

    def make(**config: object) -> Flask:
        app = create_app(
            {
                "VAULT_ADDR": vault_mount.address,
                "VAULT_AUTH": {
                    "method": "approle",
                    "role_id": role_id,
                    "secret_id": secret_id,
                },
                "VAULT_ENVIRONMENT": "test",
                "VAULT_MOUNT": vault_mount.name,
                "VAULT_REFRESH_MODE": "off",
                **config,
            }
        )
        made.append(app)
        return app

    yield make

    for app in made:
        with app.app_context():
            db.database.engine.dispose()


@pytest.fixture
def app(make_app: MakeApp) -> Flask:
    return make_app()


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


@pytest.fixture
def browser(client: FlaskClient) -> Browser:
    return Browser(client)


# The app.


def test_its_secrets_come_from_vault(app: Flask, user: str) -> None:
    assert app.config["SECRET_KEY"] == "the-first-session-key"
    assert app.config["JWT_SECRET_KEY"].startswith("the-first-token-key")
    assert f"{user}:{PASSWORD}@" in app.config["SQLALCHEMY_DATABASE_URI"]


def test_the_app_can_read_its_secrets_and_not_write_them(app: Flask) -> None:
    with app.app_context(), pytest.raises(VaultPermissionError):
        app.extensions["vault"].client.set_secret("flask", {"secret_key": "mine"})


def test_making_the_app_connects_to_no_database(
    app: Flask, postgres: Postgres, user: str
) -> None:
    """A command such as "flask vault rotate" makes it, too."""
    assert postgres.connections(user) == set()


@pytest.mark.parametrize(
    ("path", "posts"),
    [("/", False), ("/notes", True), ("/notes/1/delete", True), ("/logout", True)],
)
def test_nobody_gets_in_without_a_login(
    browser: Browser, path: str, posts: bool
) -> None:
    response = browser.send(path) if posts else browser.client.get(path)
    assert response.location == "/login"


@pytest.mark.parametrize("path", ["/login", "/notes", "/notes/1/delete", "/logout"])
def test_a_form_of_another_site_is_refused(browser: Browser, path: str) -> None:
    browser.log_in()
    assert browser.client.post(path, data={"text": "milk"}).status_code == 400
    assert browser.is_logged_in()


@pytest.mark.parametrize("name", ["demo", "nobody", ""])
@pytest.mark.parametrize("password", ["wrong", ""])
def test_a_wrong_login_is_refused(browser: Browser, name: str, password: str) -> None:
    fields = {"name": name, "password": password}
    response = browser.send("/login", **fields)
    assert response.status_code == 401
    assert "no such name with this password" in response.text
    assert not browser.is_logged_in()

    response = browser.client.post("/api/token", data=fields)
    assert response.status_code == 401
    assert response.json == {"error": "There is no such name with this password."}


def test_a_user_logs_in_keeps_a_note_deletes_it_and_logs_out(browser: Browser) -> None:
    browser.log_in()
    assert "no notes yet" in browser.client.get("/").text

    browser.send("/notes", text="<b>milk</b> & bread")
    page = browser.client.get("/").text
    assert "&lt;b&gt;milk&lt;/b&gt; &amp; bread" in page
    assert "demo," in page

    browser.send("/notes/1/delete")
    assert "no notes yet" in browser.client.get("/").text

    browser.send("/logout")
    assert not browser.is_logged_in()


@pytest.mark.parametrize("text", ["", "  ", "x" * (db.MAX_LENGTH + 1)])
def test_a_note_that_is_empty_or_too_long_is_refused(
    browser: Browser, text: str
) -> None:
    browser.log_in()
    assert browser.send("/notes", text=text).status_code == 400
    response = browser.client.post(
        "/api/notes", json={"text": text}, headers=bearer(browser.client)
    )
    assert response.status_code == 400


# Its API.


def test_the_api_serves_who_has_a_token(client: FlaskClient) -> None:
    headers = bearer(client)
    added = client.post("/api/notes", json={"text": " milk "}, headers=headers)
    assert added.status_code == 201
    assert added.json is not None
    assert added.json["text"] == "milk"
    assert added.json["author"] == "demo"

    listed = client.get("/api/notes", headers=headers)
    assert listed.json == {"notes": [added.json]}


@pytest.mark.parametrize(
    "authorization", [None, "Bearer", "Bearer a.b.c", "Basic ZGVtbzpkZW1v", "a.b.c"]
)
def test_the_api_refuses_everybody_else(
    browser: Browser, authorization: str | None
) -> None:
    browser.log_in()
    headers = {} if authorization is None else {"Authorization": authorization}
    response = browser.client.get("/api/notes", headers=headers)
    assert response.status_code in {401, 422}
    assert response.json is not None
    assert list(response.json) == ["error"]


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        (b"{", "application/json", 400),
        (b"[]", "application/json", 400),
        (b"{}", "application/json", 400),
        (b'{"text": 1}', "application/json", 400),
        (b"text=milk", "application/x-www-form-urlencoded", 415),
    ],
)
def test_the_api_says_in_json_what_is_wrong(
    client: FlaskClient, body: bytes, content_type: str, status: int
) -> None:
    response = client.post(
        "/api/notes", data=body, content_type=content_type, headers=bearer(client)
    )
    assert response.status_code == status
    assert response.json is not None
    assert response.json["error"]


# A rotation.


def test_a_rotation_logs_nobody_out_and_refuses_no_form_and_no_token(
    make_app: MakeApp, vault_mount: VaultMount
) -> None:
    app = make_app(VAULT_PROPAGATION_WINDOW=0)
    client = app.test_client()
    browser, headers = Browser(client), bearer(client)
    browser.log_in()
    form = browser.open_form()

    for word in ("second", "third"):
        write_keys(vault_mount, word)
        vault.refresh(app)

    assert app.config["SECRET_KEY"] == "the-third-session-key"
    assert browser.is_logged_in()
    assert browser.send("/notes", form, text="milk").location == "/"
    assert client.get("/api/notes", headers=headers).status_code == 200


def test_a_new_password_of_the_database_refuses_no_request(
    make_app: MakeApp, vault_mount: VaultMount, postgres: Postgres, user: str
) -> None:
    app = make_app()
    client = app.test_client()
    headers = bearer(client)
    assert client.get("/api/notes", headers=headers).status_code == 200
    postgres.set_password(user, "second-password")
    vault_mount.write(DATABASE_PATH, postgres.document(user, "second-password"))
    vault.refresh(app)
    assert client.get("/api/notes", headers=headers).status_code == 200
    assert "second-password" in app.config["SQLALCHEMY_DATABASE_URI"]


def test_the_other_workers_accept_what_the_first_one_signs(make_app: MakeApp) -> None:
    browser, other = Browser(make_app().test_client()), make_app().test_client()
    browser.log_in()
    cookie = browser.client.get_cookie("session")
    assert cookie is not None
    other.set_cookie("session", cookie.value)
    assert Browser(other).is_logged_in()
    headers = bearer(browser.client)
    assert other.get("/api/notes", headers=headers).status_code == 200


def test_the_app_goes_on_while_vault_is_down(
    make_app: MakeApp, vault_proxy: FaultProxy
) -> None:
    app = make_app(VAULT_ADDR=vault_proxy.address)
    browser = Browser(app.test_client())
    browser.log_in()
    vault_proxy.cut()
    vault.refresh(app)
    assert browser.is_logged_in()
    headers = bearer(browser.client)
    assert browser.client.get("/api/notes", headers=headers).status_code == 200
    assert browser.client.get("/vault/health").json == {"status": "warn"}


def test_the_health_shows_no_details_unless_it_is_asked_to(make_app: MakeApp) -> None:
    response = make_app().test_client().get("/vault/health")
    assert (response.status_code, response.json) == (200, {"status": "pass"})

    app = make_app(VAULT_HEALTH_DETAILS="always")
    response = app.test_client().get("/vault/health")
    assert response.json is not None
    secrets = response.json["secrets"]
    assert {key: secret["source"] for key, secret in secrets.items()} == {
        "SECRET_KEY": "vault",
        "JWT_SECRET_KEY": "vault",
        "SQLALCHEMY_DATABASE_URI": "vault",
    }
    assert "the-first" not in response.text


def test_it_runs_without_vault_on_the_environment(
    make_app: MakeApp, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    url = f"sqlite:///{tmp_path / 'notes.sqlite3'}"
    db.create_tables(url)
    monkeypatch.setenv("DATABASE_URL", url)
    monkeypatch.setenv("SECRET_KEY", "made-up")
    monkeypatch.setenv("JWT_SECRET_KEY", "made-up-too".ljust(32, "."))
    client = make_app(VAULT_ENABLED=False, VAULT_ADDR=None).test_client()
    browser = Browser(client)
    browser.log_in()
    assert browser.is_logged_in()
    assert client.get("/api/notes", headers=bearer(client)).status_code == 200


# A rotation that dies.


def test_a_rotation_killed_between_backup_and_write_loses_nothing(
    vault_mount: VaultMount, vault_proxy: FaultProxy, tmp_path: pathlib.Path
) -> None:
    before = {"secret_key": "the-old-key", "kept": "as it is"}
    write_keys(vault_mount, "first")
    vault_mount.write(FLASK_PATH, before)
    backups, key = tmp_path / "backups", new_key()
    environ = {
        **os.environ,
        "VAULT_ADDR": vault_proxy.address,
        "VAULT_TOKEN": vault_mount.token,
        "VAULT_ENVIRONMENT": "test",
        "FLASK_VAULT_MOUNT": vault_mount.name,
        "FLASK_VAULT_BACKUP_DIR": str(backups),
        "FLASK_VAULT_BACKUP_KEYS": key,
    }

    def start(*arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [FLASK, "--app", ROOT / "example_app", "vault", "rotate", *arguments],
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(*arguments: str) -> str:
        process = start(*arguments)
        output, _ = process.communicate(timeout=30)
        assert process.returncode == 0, output
        return output

    vault_proxy.hang(lambda request: request.method in {"POST", "PUT"})

    with start("--secret", "SECRET_KEY") as process:
        wait_until(lambda: any(r.fault == "hang" for r in vault_proxy.requests))
        process.kill()

    vault_proxy.heal()
    (hanging,) = (r for r in vault_proxy.requests if r.fault == "hang")
    assert hanging.path == f"/v1/{vault_mount.name}/data/{FLASK_PATH}"
    assert process.returncode == -signal.SIGKILL
    assert vault_mount.read(FLASK_PATH) == before

    store = BackupStore(backups, [key])
    (info,) = store.list(verify=True)
    assert (info.problem, info.verified) == (None, True)
    assert info.name in run("--list-backups")
    assert store.read(info.name).before == before

    assert "done." in run("--secret", "SECRET_KEY")
    after = vault_mount.read(FLASK_PATH)
    assert after["secret_key"] != before["secret_key"]
    assert after["kept"] == before["kept"]
    # The run that was killed had made a value that nobody has used.
    assert after != store.read(info.name).after

    assert "restored" in run("--restore", info.name)
    assert vault_mount.read(FLASK_PATH) == before


# make demo.


class DistantBrowser:
    """Keeps cookies, and follows redirects."""

    def __init__(self, url: str) -> None:
        self.url = url
        cookies = http.cookiejar.CookieJar()
        self._opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}),
            urllib.request.HTTPCookieProcessor(cookies),
        )

    def open(self, path: str, **form: str) -> tuple[str, str]:
        """Where one lands, and what is there."""
        data = urllib.parse.urlencode(form).encode() if form else None

        with self._opener.open(self.url + path, data, timeout=10) as response:
            landed: str = response.url
            return landed.removeprefix(self.url), response.read().decode()

    def open_form(self, path: str = "/") -> str:
        found = FORM.search(self.open(path)[1])
        assert found is not None
        return found[1]

    def is_logged_in(self) -> bool:
        return self.open("/")[0] == "/"


def descendants(pid: int) -> set[int]:
    """The processes that a process has started, and those that they have."""
    parents = {}

    # Empty where there is no such folder, as on macOS.
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name of the program, in parentheses, may hold anything.
            fields = path.read_text("utf-8", "replace").rpartition(")")[2].split()
        except OSError:
            continue

        parents[int(path.parent.name)] = int(fields[1])

    found = {pid}

    while more := {p for p, parent in parents.items() if parent in found} - found:
        found |= more

    return found - {pid}


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False

    return True


def find_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Demo:
    """``make demo`` in one terminal, and a shell in another one."""

    def __init__(self, folder: pathlib.Path) -> None:
        # As /tmp is: others may enter it, as the user who runs PostgreSQL for root.
        self.temporary = pathlib.Path(tempfile.mkdtemp(prefix="flask-vault-demo-"))
        self.temporary.chmod(0o711)
        self.elsewhere = folder / "elsewhere"
        self.elsewhere.mkdir()
        self._output = folder / "output"
        self.port = find_port()

        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "example_app.demo", "--port", str(self.port)],
                cwd=ROOT,
                env={**os.environ, "TMPDIR": str(self.temporary)},
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def output(self) -> str:
        return self._output.read_text()

    def wait_for_its_text(self) -> None:
        def is_there() -> bool:
            assert self.process.poll() is None, self.output
            return "Ctrl-C ends" in self.output

        wait_until(is_there, 30)

    def commands(self) -> list[str]:
        _, _, text = self.output.partition("The app answers")
        return [line.strip() for line in text.splitlines() if line.startswith(" " * 4)]

    def open_terminal(self, command: str) -> subprocess.Popen[str]:
        """Paste what was printed into a shell that knows nothing of this one."""
        return subprocess.Popen(
            ["sh", "-c", command],
            cwd=self.elsewhere,
            env={"PATH": os.environ["PATH"], "HOME": str(self.elsewhere)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def paste(self, command: str) -> str:
        """The same, to its end."""
        with self.open_terminal(command) as terminal:
            output, errors = terminal.communicate(timeout=30)

        assert terminal.returncode == 0, errors
        # How far a rotation is.
        assert re.sub(r"database#password: .*\n", "", errors) == ""
        return output

    def operate(self, arguments: str) -> str:
        """Run a ``flask vault`` command as the operator that the demo makes one."""
        _, environment, *_ = shlex.split(self.commands()[3].removeprefix("("))
        flask = shlex.quote(str(FLASK))
        # Two seconds are two polls, and no new password has to be watched here.
        window = "export FLASK_VAULT_PROPAGATION_WINDOW=2"
        become = f". {shlex.quote(environment)} && {window}"
        return self.paste(f"{become} && {flask} vault {arguments}")

    def end(self, number: int) -> None:
        started = descendants(self.process.pid)
        self.process.send_signal(number)
        assert self.process.wait(20) == 0
        wait_until(lambda: not any(map(is_running, started)))
        assert list(self.temporary.iterdir()) == []

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(20)

        shutil.rmtree(self.temporary, ignore_errors=True)


@pytest.fixture
def demo(tmp_path: pathlib.Path) -> cabc.Iterator[Demo]:
    with contextlib.closing(Demo(tmp_path)) as demo:
        yield demo


def test_everything_that_the_demo_tells_to_try_works(demo: Demo) -> None:
    demo.wait_for_its_text()
    load, log_in, read, rotate, watch, restore = demo.commands()
    browser = DistantBrowser(f"http://127.0.0.1:{demo.port}")
    browser.open("/login", csrf_token=browser.open_form("/login"), **LOGIN)
    form = browser.open_form()
    original = demo.operate("get SECRET_KEY --reveal")
    token = demo.paste(f'{log_in}; echo "$token"').strip()

    with (
        demo.open_terminal(f"exec {load}") as busy,
        demo.open_terminal(rotate) as rotation,
    ):
        wait_until(lambda: "2 pending, 1 signing" in demo.paste(watch), 30)
        rotated, errors = rotation.communicate(timeout=60)
        assert rotation.returncode == 0, errors
        assert rotated.count("secret_key rotated, version 2") == 2
        assert "database: password rotated, version 6" in rotated
        wait_until(lambda: "2 signing, 1 retired" in demo.paste(watch), 30)
        busy.send_signal(signal.SIGINT)
        counted, _ = busy.communicate(timeout=30)

    assert re.search(r"^\d{3,} requests, 0 failures$", counted, re.M), counted
    assert busy.returncode == 0
    assert demo.operate("get SECRET_KEY --reveal") != original
    assert browser.is_logged_in()
    assert (
        "kept through it all"
        in browser.open("/notes", csrf_token=form, text="kept through it all")[1]
    )
    assert "kept through it all" in demo.paste(f"token={token}; {read}")

    assert "secret_key restored, now version 3" in demo.paste(restore)
    assert demo.operate("get SECRET_KEY --reveal") == original
    assert browser.is_logged_in()

    demo.end(signal.SIGINT)
    assert original.strip() not in demo.output


def test_the_load_says_when_there_is_nobody_to_ask() -> None:
    url = f"http://127.0.0.1:{find_port()}"
    done = subprocess.run(
        [sys.executable, ROOT / "example_app" / "load.py", url],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 1
    assert f"The app at {url} lets nobody in" in done.stderr


def test_all_secrets_of_the_demo_are_rotated_and_restored(demo: Demo) -> None:
    demo.wait_for_its_text()

    def values() -> list[str]:
        keys = ("SECRET_KEY", "JWT_SECRET_KEY", "SQLALCHEMY_DATABASE_URI")
        return [demo.operate(f"get {key} --reveal") for key in keys]

    original = values()
    demo.operate("rotate --all")
    assert not set(values()) & set(original)

    backups = json.loads(demo.operate("rotate --list-backups --json"))
    paths = {backup["path"].rpartition("/")[2] for backup in backups}
    assert paths == {"flask", "jwt", "database"}

    for backup in backups:
        demo.operate(f"rotate --restore {backup['file']}")

    assert values() == original
    demo.end(signal.SIGINT)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_app_of_the_demo_does_not_know_the_operators_token(demo: Demo) -> None:
    demo.wait_for_its_text()
    commands = {
        pid: pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
        for pid in descendants(demo.process.pid)
    }
    environs = [
        pathlib.Path(f"/proc/{pid}/environ").read_bytes()
        for pid, command in commands.items()
        if b"\0gunicorn\0" in command and b"\0vault\0dev\0" not in command
    ]
    # Gunicorn itself, and two workers.
    assert len(environs) == 3

    for environ in environs:
        assert b"VAULT_ADDR=" in environ
        assert b"VAULT_TOKEN=" not in environ

    demo.end(signal.SIGTERM)


def test_the_demo_can_be_ended_before_it_is_ready(demo: Demo) -> None:
    wait_until(lambda: any(demo.temporary.glob("*/flask-vault-*")))
    demo.end(signal.SIGTERM)
    assert "The app answers" not in demo.output


def test_a_demo_that_cannot_start_ends_with_the_reason(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLASK_VAULT_PREFIX", "a//b")

    with contextlib.closing(Demo(tmp_path)) as demo:
        assert demo.process.wait(20) == 2
        assert "VAULT_PREFIX 'a//b' has an empty segment" in demo.output
        assert list(demo.temporary.iterdir()) == []
