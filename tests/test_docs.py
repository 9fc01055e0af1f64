"""Does what the README and the documentation tell a reader to do.

Every page is followed from its top to its end, in an empty folder and with a server of
its own. Python samples are executed, in one namespace for each page. A sample with a
caption (in the README: one that begins with a comment of its name) is a file, and is
written; a file of tests is run, too. What follows ``$`` in a console sample is run by a
shell, and has to print what the page shows, down to names that are new in each run: a
backup's file, a time, a port. So has a Python sample, when text comes after it.
"""

from __future__ import annotations

import ast
import collections.abc as cabc
import contextlib
import dataclasses
import importlib
import io
import json
import os
import pathlib
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import typing as t

import pytest
from flask import Flask
from sybil import Document
from sybil import Example
from sybil.parsers.markdown import CodeBlockParser as MarkdownCodeBlocks
from sybil.parsers.rest import CodeBlockParser as RestCodeBlocks

import flask_vault
from flask_vault import errors
from flask_vault import FlaskVault
from flask_vault import Secret
from flask_vault import testing
from flask_vault.entries import MISSING
from flask_vault.invocation import exit_code_of
from flask_vault.rotation.generators import GENERATORS
from flask_vault.settings import ENVIRONMENT
from flask_vault.settings import KEYS
from flask_vault.settings import Settings
from flask_vault.testing import DevServer
from flask_vault.testing import FaultProxy
from flask_vault.vault.auth import _METHODS as METHODS

ROOT = pathlib.Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.rst"))]

#: What is run or used, and what is only looked at.
RUN = ("console", "json", "python", "text", "toml")
SHOWN = ("ini", "yaml")

#: Commands that the machine of the tests has done already, or that fetch things.
NOT_RUN = re.compile(r"(python3? -m venv|\. \.venv/|pip install|git clone|make)\b")

#: A curl for machines that have none.
CURL = """\
#!{python}
import http.cookiejar
import os
import sys
import urllib.error
import urllib.request

request = urllib.request.Request(sys.argv[-1])
cookies = http.cookiejar.MozillaCookieJar()
keep = None
arguments = iter(sys.argv[1:-1])

for argument in arguments:
    if argument == "-H":
        request.add_header(*next(arguments).split(": ", 1))
    elif argument == "-b":
        file = next(arguments)

        if os.path.exists(file):
            cookies.load(file, ignore_discard=True)
    elif argument == "-c":
        keep = next(arguments)
    elif argument != "-s":
        sys.exit(f"this curl knows no {{argument}}")

opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(cookies))

try:
    answer = opener.open(request)
except urllib.error.HTTPError as error:
    answer = error

if keep:
    cookies.save(keep, ignore_discard=True)

sys.stdout.write(answer.read().decode())
"""

# --- what differs from run to run --------------------------------------------------

BACKUP = r"[a-z-]+_\d{8}T\d{6}Z_[0-9a-f]{8}\.json"
DEV_FOLDER = r"/[^ ']*/flask-vault-dev-\w+"

#: Names that a later command on the page uses.
LEARNT = re.compile(f"{BACKUP}|{DEV_FOLDER}")

#: Questions on the terminal, and what their answer is where the page shows none.
QUESTION = re.compile(r"^(Value of .*:|Repeat for .*:|.* \[y/N\]:)(?: (.*))?$", re.M)

VARIABLE = (
    (re.compile(DEV_FOLDER), "DEV_FOLDER"),
    (re.compile(BACKUP), "BACKUP"),
    (re.compile(r"\b[0-9a-f]{32}\b"), "OPERATION"),
    (re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?\+00:00"), "TIME"),
    (re.compile(r"(127\.0\.0\.1|localhost):\d+"), "LOCAL"),
    (re.compile(r"^\[[\d:+ -]+\] \[\d+\]", re.M), "WHEN"),
    (re.compile(r"\(\d+\)$", re.M), "PID"),
    (re.compile(r'"(age|last_\w+|next_change)_seconds": \d+'), "AGE"),
    (re.compile(r"\b\d+ (s|min|h|d)(?=$|  )", re.M), "AGE"),
    (re.compile(r"[A-Za-z0-9_-]{43}=?"), "KEY"),
    (re.compile(r"^\d+ requests,", re.M), "REQUESTS"),
    (re.compile(r" {2,}"), "  "),
    (re.compile(r" +$", re.M), ""),
)


def without_colours(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def without_variables(text: str) -> str:
    text = without_colours(text)

    for pattern, replacement in VARIABLE:
        text = pattern.sub(replacement, text)

    return text.strip()


def matches(expected: str, printed: str) -> bool:
    """Whether a page shows what was printed. A line ``...`` stands for any lines."""
    lines = without_variables(expected).split("\n")
    pattern = "".join(
        "(?:.*\n)*?" if line == "..." else f"{re.escape(line)}\n" for line in lines
    )
    return re.fullmatch(pattern, f"{without_variables(printed)}\n") is not None


# --- terminals ---------------------------------------------------------------------


class Terminal:
    """A shell on a terminal, which keeps its variables from one command to the next."""

    def __init__(self, folder: pathlib.Path, environ: cabc.Mapping[str, str]) -> None:
        self._ours, theirs = os.openpty()
        name = os.ttyname(theirs)
        # Who leads a session and opens a terminal, controls it. It is needed for
        # prompts that hide what is typed.
        take = f"exec 3<&0 <{name} >{name} 2>&1; exec bash --norc --noprofile /dev/fd/3"
        self._process = subprocess.Popen(
            ["bash", "--norc", "--noprofile", "-c", take],
            cwd=folder,
            # The pages show a sentence in one line, and a browser folds it.
            env={**environ, "COLUMNS": "1000"},
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        self._theirs = theirs

    def run(self, command: str, answers: cabc.Iterable[tuple[str, str]] = ()) -> str:
        """Run a command to its end.

        :param answers: what it asks for, and what to type then.
        :return: what the terminal shows.
        """
        end = f"end-of-{time.monotonic_ns()}"
        stdin = self._process.stdin
        assert stdin is not None
        stdin.write(f"{command}\nprintf '\\n%s\\n' {end}\n".encode())
        stdin.flush()
        shown = ""

        for question, answer in answers:
            shown = self._read_until(re.escape(question) + r"\s*\Z", shown)
            os.write(self._ours, f"{answer}\n".encode())

        shown = self._read_until(rf"^{end}$", shown)
        return shown.partition(end)[0].removesuffix("\n")

    def _read_until(self, pattern: str, shown: str) -> str:
        while not re.search(pattern, without_colours(shown), re.M):
            if not select.select([self._ours], [], [], 30)[0]:
                raise AssertionError(f"there came no {pattern!r}, but {shown!r}")

            shown += os.read(self._ours, 65_536).decode().replace("\r\n", "\n")

        return without_colours(shown)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(20)
        os.close(self._theirs)
        os.close(self._ours)


class Background:
    """A command that goes on until the end of the page, in a terminal of its own."""

    def __init__(
        self, command: str, folder: pathlib.Path, environ: cabc.Mapping[str, str]
    ) -> None:
        self._process = subprocess.Popen(
            ["bash", "--noprofile", "--norc", "-c", f"exec {command}"],
            cwd=folder,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._printed: list[str] = []
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None

        with self._process.stdout as stdout:
            for line in stdout:
                with self._changed:
                    self._printed.append(line)
                    self._changed.notify_all()

    @property
    def printed(self) -> str:
        return "".join(self._printed)

    def wait_for(self, expected: str) -> None:
        """Wait until it has printed this; a server says more with each request."""
        wanted = f"{expected}\n..."

        with self._changed:
            self._changed.wait_for(lambda: matches(wanted, self.printed), 30)

        assert_matches(wanted, self.printed)

    def close(self) -> None:
        # As Ctrl-C does, to all that run in this terminal.
        os.killpg(self._process.pid, signal.SIGINT)

        try:
            self._process.wait(20)
        finally:
            self._process.kill()
            self._reader.join(20)


def assert_matches(expected: str, printed: str) -> None:
    if not matches(expected, printed):
        raise AssertionError(
            f"the page shows\n\n{without_variables(expected)}\n\nand there came\n\n"
            f"{without_variables(printed)}"
        )


# --- pages -------------------------------------------------------------------------


@dataclasses.dataclass
class Reader:
    """Somebody who does what a page says."""

    folder: pathlib.Path
    server: DevServer
    environ: dict[str, str]
    #: Words of the page, and what they are here.
    words: dict[str, str]
    monkeypatch: pytest.MonkeyPatch
    terminal: Terminal | None = None
    background: list[Background] = dataclasses.field(default_factory=list)
    namespace: dict[str, t.Any] = dataclasses.field(default_factory=dict)
    #: By the Python sample before.
    printed: str = ""

    def translate(self, text: str) -> str:
        for word, here in self.words.items():
            text = text.replace(word, here)

        return text

    # One for each language.

    def python(self, example: Example) -> None:
        name = file_name_of(example)

        if name is not None:
            self.write_file(example)

            if name.startswith("test_"):
                self.run_tests(name)

            return

        # So that a traceback has the lines of the page.
        source = "\n" * (example.line + example.parsed.line_offset)
        source += self.translate(example.parsed)
        code = compile(source, example.path, "exec", dont_inherit=True)

        self.take_environ()

        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(code, self.namespace)  # noqa: S102 - that is the point

        self.printed = printed.getvalue()

    def take_environ(self) -> None:
        """Let a Python sample see what the page has exported before it."""
        if self.terminal is None:
            return

        dump = 'python -c "import json, os; print(json.dumps(dict(os.environ)))"'
        environ: dict[str, str] = json.loads(self.terminal.run(dump))

        for name in set(os.environ) | set(environ):
            if not name.startswith(("FLASK_", "VAULT_")):
                continue

            if name in environ:
                self.monkeypatch.setenv(name, environ[name])
            else:
                self.monkeypatch.delenv(name)

    def text(self, example: Example) -> None:
        """What the Python sample before it has printed, a file, or something else."""
        if self.printed:
            assert_matches(example.parsed, self.printed)
            self.printed = ""
        elif file_name_of(example) is not None:
            self.write_file(example)

    def write_file(self, example: Example) -> None:
        name = file_name_of(example)
        assert name is not None, f"{example.path}:{example.line} has no file's name"
        (self.folder / name).write_text(self.translate(example.parsed))

    json = toml = write_file

    def run_tests(self, name: str) -> None:
        """Run a file of tests as its author would, with the plugins that are there."""
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-W", "error", name],
            cwd=self.folder,
            env=self.environ,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def write_files_of(self, page: str) -> None:
        """For a page that goes on with the app of another one."""
        for example in parse(DOCS / page, RUN):
            if file_name_of(example):
                self.write_file(example)

    def use_policy(self, policy: str, name: str = "shop", files: str = "vault") -> None:
        """Make an AppRole, with the files from which somebody logs in."""
        role_id, secret_id = self.server.create_approle(name, policy)
        secrets = self.folder / "run" / "secrets"
        secrets.mkdir(parents=True, exist_ok=True)
        (secrets / f"{files}_role_id").write_text(role_id)
        (secrets / f"{files}_secret_id").write_text(f"{secret_id}\n")

    def console(self, example: Example) -> None:
        for command, expected in commands_in(example.parsed):
            if not NOT_RUN.match(command):
                self.run(command, expected)

    def run(self, command: str, expected: str) -> None:
        translated = self.translate(command)

        if is_server(command):
            process = Background(translated, self.folder, self.environ)
            self.background.append(process)
            process.wait_for(expected)
            self.learn(expected, process.printed)
            return

        if self.terminal is None:
            self.terminal = Terminal(self.folder, self.environ)

        answers = [
            (self.translate(question), answer or "typed-in")
            for question, answer in QUESTION.findall(expected)
        ]
        shown = self.terminal.run(translated, answers)
        assert_matches(expected, shown)
        self.learn(expected, shown)

    def wait_for_file(self, name: str) -> None:
        """For what a command in the background writes."""
        deadline = time.monotonic() + 30

        while not (self.folder / name).exists():
            assert time.monotonic() < deadline, name
            time.sleep(0.05)

    def new_terminal(self) -> None:
        """For the invisible sample of a page that says so."""
        if self.terminal is not None:
            self.terminal.close()
            self.terminal = None

    def learn(self, expected: str, printed: str) -> None:
        pairs = zip(LEARNT.findall(expected), LEARNT.findall(printed), strict=False)
        self.words.update(pairs)

    def close(self) -> None:
        for process in self.background:
            process.close()

        self.new_terminal()


def file_name_of(example: Example) -> str | None:
    options = example.region.lexemes.get("options") or {}
    named = re.match(r"# (\w+\.py)\n", example.parsed)
    return options.get("caption") or (named and named[1])


def commands_in(source: str) -> cabc.Iterator[tuple[str, str]]:
    """The commands of a console sample, each with what it prints."""
    for part in re.split(r"(?m)^\$ ", source)[1:]:
        command, _, expected = part.partition("\n")

        while command.endswith("\\"):
            more, _, expected = expected.partition("\n")
            command = f"{command[:-1]} {more.removeprefix('> ').strip()}"

        yield command, textwrap.dedent(expected).strip("\n")


def is_server(command: str) -> bool:
    """Whether a command goes on until somebody ends it."""
    pattern = "flask run|flask vault dev( -- gunicorn .*)?|(gunicorn|bao agent) .*"
    pattern += "|python load.py"
    return re.fullmatch(pattern, command) is not None


def parse(page: pathlib.Path, languages: cabc.Iterable[str]) -> Document:
    blocks = MarkdownCodeBlocks if page.suffix == ".md" else RestCodeBlocks
    parsers = [blocks(language, lambda example: None) for language in languages]
    return Document.parse(str(page), *parsers)


def language_of(example: Example) -> str:
    return str(example.region.lexemes["arguments"])


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.fixture
def server() -> cabc.Iterator[DevServer]:
    """A server of the page's own: pages use the mount ``secret``, as readers do."""
    with DevServer() as server:
        yield server


@pytest.fixture
def reader(
    server: DevServer,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> cabc.Iterator[Reader]:
    folder = tmp_path / "project"
    folder.mkdir()
    programs = tmp_path / "bin"
    programs.mkdir()

    if shutil.which("curl") is None:
        curl = programs / "curl"
        curl.write_text(CURL.format(python=sys.executable))
        curl.chmod(0o755)

    here = pathlib.Path(sys.executable).parent
    # The pages show tables that are not folded.
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setenv("PATH", f"{here}:{os.environ['PATH']}:{programs}")
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    port, second, third = free_port(), free_port(), free_port()

    # The shell of somebody who may do everything in Vault.
    for name, value in server.environ().items():
        monkeypatch.setenv(name, value)

    reader = Reader(
        folder,
        server,
        {**os.environ, "FLASK_RUN_PORT": str(port), "PYTHONUNBUFFERED": "1"},
        {
            "https://vault.example.com:8200": server.address,
            "/run/secrets/": f"{folder}/run/secrets/",
            "127.0.0.1:5000": f"127.0.0.1:{port}",
            "127.0.0.1:8000": f"127.0.0.1:{second}",
            "127.0.0.1:8100": f"127.0.0.1:{third}",
        },
        monkeypatch,
    )

    def write(path: str, **fields: object) -> None:
        """For what a page takes for granted, in its invisible samples."""
        server.client().secrets.kv.v2.create_or_update_secret(path, fields)

    reader.namespace.update(
        __name__="page",
        write=write,
        server=server,
        reader=reader,
    )

    if sys.version_info < (3, 11):
        # The same by its old name, which pytest brings there.
        monkeypatch.setitem(sys.modules, "tomllib", importlib.import_module("tomli"))

    loaded = set(sys.modules)

    try:
        yield reader
    finally:
        reader.close()

        for name in set(sys.modules) - loaded:
            file = getattr(sys.modules[name], "__file__", None) or ""

            if file.startswith(str(folder)):
                del sys.modules[name]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_can_be_followed(page: pathlib.Path, reader: Reader) -> None:
    for example in parse(page, RUN):
        try:
            getattr(reader, language_of(example))(example)
        except Exception as error:
            where = f"{page.relative_to(ROOT)}:{example.line}"
            raise AssertionError(f"{where}: {error}") from error


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_sample_of_a_page_is_of_a_kind_that_is_known(page: pathlib.Path) -> None:
    """One in a language that nobody has heard of would never be run."""
    text = page.read_text("utf-8")
    block = (
        r"^\s*```(.*)"
        if page.suffix == ".md"
        else r"^\s*\.\. (?:code-block|code|sourcecode)::(.*)"
    )
    found = [name.strip() for name in re.findall(block, text, re.M)]
    assert set(filter(None, found)) <= {*RUN, *SHOWN}
    # Sphinx takes an indented block after "::" for Python, too.
    assert page.suffix == ".md" or not re.search(r"^(?!\s*\.\. ).*::\n\n", text, re.M)


# --- nothing is left out -----------------------------------------------------------

CONFIGURATION = (DOCS / "configuration.rst").read_text("utf-8")


def entries_of(directive: str) -> dict[str, str]:
    """The entries of the configuration page, by name, each with its text."""
    start = rf"^\.\. {directive}:: (\w+)\n"
    parts = re.split(start, CONFIGURATION, flags=re.M)[1:]
    names, texts = parts[::2], parts[1::2]
    assert len(set(names)) == len(names)
    # An entry ends where the text is not indented any more.
    return {
        name: re.split(r"^\S", text, maxsplit=1, flags=re.M)[0]
        for name, text in zip(names, texts, strict=True)
    }


def default_in(text: str) -> object:
    """The default that an entry tells; ``None`` for one that is unset."""
    (told,) = re.findall(r"^ +Default: (.*)", text, re.M)

    if told.startswith("unset"):
        return None

    found = re.match("``(.*?)``", told)
    assert found is not None, told
    return ast.literal_eval(found[1])


def test_every_key_has_an_entry() -> None:
    assert set(entries_of("data")) == {*KEYS, "VAULT_SECRETS"}


@pytest.mark.parametrize("key", KEYS)
def test_an_entry_tells_the_default_of_its_key(key: str) -> None:
    text = entries_of("data")[key]

    if key == "VAULT_BACKUP_DIR":  # It depends on the app.
        assert "Default: ``vault-backups`` in :attr:`app.instance_path" in text
        return

    if key == "VAULT_ADDR":  # There is none: an app has to set it.
        assert default_in(text) is None
        return

    settings = Settings.from_mapping({"VAULT_ADDR": "https://vault.example.com"}, {})
    names = {"VAULT_TLS_SERVER_NAME": "server_name"}
    name = names.get(key, key.removeprefix("VAULT_").lower())
    default = getattr(settings, name)
    assert default_in(text) == (None if default == () else default)


@pytest.mark.parametrize("key", KEYS)
def test_an_entry_tells_the_environment_names_of_its_key(key: str) -> None:
    told = re.findall(r"^ +Environment: (.*)\.$", entries_of("data")[key], re.M)
    names = re.findall(r"``(\w+)``", "".join(told))
    assert tuple(names) == ENVIRONMENT.get(key, ())


@pytest.mark.parametrize("field", dataclasses.fields(Secret), ids=lambda f: f.name)
def test_every_field_of_an_entry_is_described(
    field: dataclasses.Field[object],
) -> None:
    text = entries_of("describe")[field.name]

    if field.default is dataclasses.MISSING:
        assert "Default:" not in text
    elif field.default is MISSING:
        assert default_in(text) is None
    else:
        assert default_in(text) == field.default


def test_every_generator_is_described() -> None:
    table = entries_of("describe")["rotate"]
    assert set(re.findall(r"^ +``(\w+)`` ", table, re.M)) == set(GENERATORS)


def test_every_login_method_is_described() -> None:
    told = re.findall(r"``(\w+)``", entries_of("data")["VAULT_AUTH"])
    assert set(METHODS) <= set(told)
    page = (DOCS / "authentication.rst").read_text("utf-8")
    assert set(METHODS) <= set(re.findall(r"``(\w+)``", page))


def test_every_error_of_a_connection_is_on_the_page_of_failures() -> None:
    page = (DOCS / "failures.rst").read_text("utf-8")
    every = {name for name in errors.__dict__ if re.match("Vault.+Error$", name)}
    assert every <= set(re.findall(r":exc:`(\w+)`", page))


def test_every_public_name_is_on_the_api_page() -> None:
    page = (DOCS / "api.rst").read_text("utf-8")
    names = set(re.findall(r"^\.\. auto\w+:: (\w+)", page, re.M))
    assert {*flask_vault.__all__, *testing.__all__} <= names


def test_every_exit_code_is_on_the_page_of_the_commands() -> None:
    page = (DOCS / "cli.rst").read_text("utf-8")
    told = {int(code) for code in re.findall(r"^(\d)     ", page, re.M)}
    every = [getattr(errors, name) for name in dir(errors) if name.endswith("Error")]
    assert told == {0, *(exit_code_of(error("")) for error in every)}


def test_the_comparison_counts_our_requests_right(server: DevServer) -> None:
    """Twenty keys in four documents, as in the table of the README."""
    role = server.create_approle("app", 'path "secret/*" { capabilities = ["read"] }')
    entries = {}

    for document in "abcd":
        fields = {f"field{number}": "value" for number in range(5)}
        server.client().secrets.kv.v2.create_or_update_secret(document, fields)

        for field in fields:
            entries[f"{document}_{field}".upper()] = f"{document}#{field}"

    def requests_with(**config: t.Any) -> int:
        with FaultProxy(server.address) as proxy:
            app = Flask(__name__)
            app.config.from_mapping(
                VAULT_ADDR=proxy.address,
                VAULT_AUTH={
                    "method": "approle",
                    "role_id": role[0],
                    "secret_id": role[1],
                },
                VAULT_SECRETS=entries,
                **config,
            )
            FlaskVault(app)
            return proxy.count

    (row,) = re.findall(r"^\| Flask-Vault .*", PAGES[0].read_text("utf-8"), re.M)
    assert row.split("|")[2].split() == ["6", "(²)"]
    assert requests_with() == 6
    assert requests_with(VAULT_KV_VERSION=2) == 5


def test_every_test_that_the_threat_model_names_is_there() -> None:
    page = (DOCS / "threat-model.rst").read_text("utf-8")
    _, _, table = page.partition(".. _what-shows-it:")
    files = re.split(r"``(test_\w+\.py)``", table)[1:]
    claimed = [
        (file, name)
        for file, names in zip(files[::2], files[1::2], strict=True)
        for name in re.findall(r"``(test_\w+)``", names)
    ]
    assert len(claimed) > 20

    for file, name in claimed:
        text = (ROOT / "tests" / file).read_text("utf-8")
        assert re.search(rf"^ *def {name}\(", text, re.M), (file, name)
