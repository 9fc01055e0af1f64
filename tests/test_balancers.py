"""The samples for nginx and HAProxy, before two hosts with the sample for gunicorn."""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from flask_vault.testing import FaultProxy
from flask_vault.testing.plugin import VaultMount

ROOT = pathlib.Path(__file__).parents[1]
SAMPLES = ROOT / "docs" / "deployment"


@dataclasses.dataclass
class Host:
    """A host of the app."""

    name: str
    port: int
    broken: pathlib.Path
    process: subprocess.Popen[bytes]

    @property
    def status(self) -> str:
        return str(json.loads(get(self.port, "/vault/health"))["status"])


@dataclasses.dataclass
class Site:
    """Two hosts with a load balancer before them."""

    hosts: tuple[Host, Host]
    port: int
    #: Where nginx lets itself be asked for the hosts' health. HAProxy asks by itself.
    check_port: int | None

    def serving(self) -> set[str]:
        """Who answers ten requests of users. Each of them must be answered."""
        return {get(self.port) for _ in range(10)}

    def wait_for(self, *names: str) -> None:
        """Wait until these serve, and nobody else."""
        deadline = time.monotonic() + 20

        while time.monotonic() < deadline:
            if self.check_port is not None:
                get(self.check_port, "/vault/health")
                get(self.check_port, "/vault/health")

            if self.serving() == set(names):
                return

            time.sleep(0.2)

        pytest.fail(f"those that serve are {self.serving()}, and not {names}")


def get(port: int, path: str = "/") -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        return str(answer.read().decode())


def free_ports(number: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]

        for sock in sockets:
            sock.bind(("127.0.0.1", 0))

        return [sock.getsockname()[1] for sock in sockets]


def await_answer(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30

    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError):
            get(port)
            return

        time.sleep(0.05)

    pytest.fail(f"{process.args!r} did not come up")


@contextlib.contextmanager
def running(
    command: list[str], folder: pathlib.Path, **environ: str
) -> cabc.Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, cwd=folder, env={**os.environ, **environ})

    try:
        yield process
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture
def hosts(
    vault_mount: VaultMount, vault_proxy: FaultProxy, tmp_path: pathlib.Path
) -> cabc.Iterator[tuple[Host, Host]]:
    vault_mount.write("flask", {"key": "k-1"})
    config = vault_mount.config(
        VAULT_ADDR=vault_proxy.address, VAULT_REFRESH_INTERVAL=1
    )
    settings = {f"FLASK_{name}": str(value) for name, value in config.items()}

    with contextlib.ExitStack() as stack:
        made = []

        for name, port in zip(("one", "two"), free_ports(2), strict=True):
            broken = tmp_path / f"{name}-is-broken"
            process = stack.enter_context(
                running(
                    [
                        *(sys.executable, "-m", "gunicorn", "--no-control-socket"),
                        *("--config", str(SAMPLES / "gunicorn.conf.py")),
                        *("--log-level", "error"),
                        "tests.apps.balanced:create_app()",
                    ],
                    ROOT,
                    **settings,
                    BIND=f"127.0.0.1:{port}",
                    WEB_CONCURRENCY="1",
                    HOST_NAME=name,
                    BROKEN=str(broken),
                )
            )
            made.append(Host(name, port, broken, process))

        for host in made:
            await_answer(host.port, host.process)

        yield made[0], made[1]


@pytest.fixture(params=["nginx", "haproxy"])
def site(
    request: pytest.FixtureRequest, hosts: tuple[Host, Host], tmp_path: pathlib.Path
) -> cabc.Iterator[Site]:
    kind: str = request.param
    # Debian's stand where only root's PATH leads.
    program = shutil.which(kind) or shutil.which(kind, path="/usr/sbin")

    if program is None:
        pytest.skip(f"{kind} is not installed")

    port, check_port = free_ports(2)
    file = SAMPLES / {"nginx": "nginx.conf", "haproxy": "haproxy.cfg"}[kind]
    text = file.read_text("utf-8")

    for sample, here in (
        ("app1:8000", f"127.0.0.1:{hosts[0].port}"),
        ("app2:8000", f"127.0.0.1:{hosts[1].port}"),
        ("listen 80;", f"listen 127.0.0.1:{port};"),
        ("bind :80", f"bind 127.0.0.1:{port}"),
        ("127.0.0.1:8081", f"127.0.0.1:{check_port}"),
        ("check inter 2s", "check inter 200ms"),
        ("http {", "http {\n    access_log off;"),
    ):
        text = text.replace(sample, here)

    config = tmp_path / file.name
    config.write_text(text)

    if kind == "nginx":
        options = f"daemon off; pid {tmp_path}/pid; error_log stderr;"
        command = [program, "-p", str(tmp_path), "-c", str(config), "-g", options]
    else:
        command = [program, "-db", "-f", str(config)]

    with running(command, tmp_path) as process:
        await_answer(port, process)
        yield Site(hosts, port, check_port if kind == "nginx" else None)


def test_a_host_that_is_gone_is_taken_out_and_no_user_sees_it(site: Site) -> None:
    site.wait_for("one", "two")
    gone = site.hosts[1].process
    gone.terminate()
    gone.wait(20)

    assert site.serving() == {"one"}


def test_a_host_that_fails_its_check_is_taken_out(site: Site) -> None:
    site.wait_for("one", "two")
    site.hosts[1].broken.touch()

    site.wait_for("one")


def test_all_hosts_stay_in_when_vault_is_down(
    site: Site, vault_proxy: FaultProxy
) -> None:
    site.wait_for("one", "two")
    vault_proxy.cut()
    deadline = time.monotonic() + 20

    while {host.status for host in site.hosts} != {"warn"}:
        assert time.monotonic() < deadline
        time.sleep(0.1)

    # So that HAProxy has asked each of them twice. It tells nobody.
    time.sleep(0 if site.check_port else 1)
    site.wait_for("one", "two")


def test_the_routes_of_the_health_are_for_those_inside(site: Site) -> None:
    with pytest.raises(urllib.error.HTTPError, match="404"):
        get(site.port, "/vault/health")
