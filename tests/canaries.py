"""Watches what the whole run prints and logs for values that were written to Vault.

``test_leaks.py`` looks where it expects a leak. This looks everywhere: at what each
test printed and logged, what the commands said that it ran, and what the programs wrote
that it started. A run in which a secret was seen fails at its end.

A secret is a text that only ever stands in a value (``canary-`` and four hexadecimal
digits, as many files here have one), a long value that a test wrote by
:meth:`VaultMount.write <flask_vault.testing.plugin.VaultMount.write>`, the token that
it did so with, and the secret id of each AppRole.
"""

from __future__ import annotations

import collections.abc as cabc
import functools
import logging
import re
import subprocess
import typing as t

import pytest
from click.testing import CliRunner

from flask_vault.testing import DevServer
from flask_vault.testing.plugin import VaultMount

_CANARY: t.Final = re.compile(r"canary-[0-9a-f]{4}[\w-]*")

#: A shorter value may be a word that is printed for another reason, and so may be one
#: that is the same character again and again.
_LONG: t.Final = 20
_VARIED: t.Final = 8


class Watch:
    """A pytest plugin: what was seen, and where."""

    def __init__(self) -> None:
        self.secrets: set[str] = set()
        self.leaks: dict[tuple[str, str, str], None] = {}
        self._test = "outside of a test"
        self._handler = _Handler(self)
        self._undo: list[cabc.Callable[[], None]] = []

    # --- what is a secret ----------------------------------------------------------

    def note(self, value: object) -> None:
        """Take down what is in a value."""
        if isinstance(value, str):
            if len(value) >= _LONG and len(set(value)) >= _VARIED:
                self.secrets.add(value)
        elif isinstance(value, cabc.Mapping):
            for part in value.values():
                self.note(part)
        elif isinstance(value, list | tuple):
            for part in value:
                self.note(part)

    # --- where one may be ----------------------------------------------------------

    def look(self, where: str, text: object) -> None:
        """Search what was printed."""
        if isinstance(text, bytes):
            text = text.decode("utf-8", "replace")

        if not isinstance(text, str) or not text:
            return

        seen = set(_CANARY.findall(text))
        seen |= {secret for secret in self.secrets if secret in text}

        for secret in seen:
            line = next((ln for ln in text.splitlines() if secret in ln), "")
            shown = line.strip().replace(secret, "<secret>")[:200]
            self.leaks[self._test, where, shown] = None

    def start(self) -> None:
        logging.getLogger().addHandler(self._handler)
        self._wrap(VaultMount, "write", before=self._note_written)
        self._wrap(DevServer, "create_approle", after=lambda ids, *_: self.note(ids[1]))
        self._wrap(
            subprocess.Popen,
            "communicate",
            after=lambda output, process, *_: self._look_at(process.args, *output),
        )
        self._wrap(
            CliRunner,
            "invoke",
            after=lambda result, _, command, arguments=(), *rest: self._look_at(
                arguments, result.output
            ),
        )

    def stop(self) -> None:
        logging.getLogger().removeHandler(self._handler)

        for undo in reversed(self._undo):
            undo()

    def _note_written(
        self, mount: VaultMount, path: str, data: cabc.Mapping[str, object]
    ) -> None:
        self.note(mount.token)
        self.note(data)

    def _look_at(self, command: object, *output: object) -> None:
        # It is what this option is for.
        if "--reveal" not in str(command):
            for text in output:
                self.look("a command", text)

    def _wrap(
        self,
        owner: type,
        name: str,
        before: cabc.Callable[..., object] = lambda *_: None,
        after: cabc.Callable[..., object] = lambda *_: None,
    ) -> None:
        real = getattr(owner, name)

        @functools.wraps(real)
        def watched(*args: t.Any, **options: t.Any) -> t.Any:
            before(*args, *options.values())
            result = real(*args, **options)
            after(result, *args)
            return result

        setattr(owner, name, watched)
        self._undo.append(lambda: setattr(owner, name, real))

    # --- hooks of pytest -----------------------------------------------------------

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._test = nodeid

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for title, text in report.sections:
            self.look(title, text)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        self.stop()
        answer = getattr(session.config, "workeroutput", None)

        if answer is not None:
            answer["leaks"] = list(self.leaks)
        elif self.leaks:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: t.Any) -> None:
        """A worker of pytest-xdist has ended. What it saw is ours to tell."""
        # One that has crashed has nothing to say.
        for leak in getattr(node, "workeroutput", {}).get("leaks", ()):
            self.leaks[tuple(leak)] = None

    def pytest_terminal_summary(
        self, terminalreporter: pytest.TerminalReporter
    ) -> None:
        if not self.leaks:
            return

        terminalreporter.section("secrets that were printed or logged", red=True)

        for test, where, line in self.leaks:
            terminalreporter.write_line(f"{test}: {where}: {line}")


class _Handler(logging.Handler):
    """Looks at each record, also where a test has turned the log on."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self._watch = watch

    def emit(self, record: logging.LogRecord) -> None:
        self._watch.look(f"log of {record.name}", record.getMessage())


def watch(config: pytest.Config) -> None:
    """Begin to watch, for ``pytest_configure``."""
    found = Watch()
    found.start()
    config.pluginmanager.register(found, "canaries")
