"""A client that was used before a fork, as under ``gunicorn --preload``."""

from __future__ import annotations

import json
import subprocess
import sys
import typing as t

import pytest

from flask_vault.testing import DevServer
from flask_vault.testing import FaultProxy
from flask_vault.testing.plugin import VaultMount
from tests.helpers import approle
from tests.helpers import may_read

# In a process of its own: the test's has threads, which do not survive a fork.
PREPARE = """\
import json, os, sys, threading
from flask_vault import VaultClient

client = VaultClient.from_mapping(json.load(sys.stdin))


def fork(work):
    start, go = os.pipe()
    pid = os.fork()

    if pid == 0:
        os.close(go)
        os.read(start, 1)
        code = 100

        try:
            code = work()
        finally:
            os._exit(code)

    os.close(start)
    return pid, go


def codes(children):
    for _, go in children:
        os.close(go)

    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid, _ in children]


def count_wrong(first, number):
    wrong = 0

    for i in range(first, first + number):
        value = client.get_secret(f"p{i % 100}", "x", use_cache=False)
        wrong += value != f"v{i % 100}"

    return wrong
"""

READ_IN_CHILDREN = """\
count_wrong(0, 1)
children = [fork(lambda: count_wrong(25 * n, 100)) for n in range(4)]
ends, own = [], []
waiter = threading.Thread(target=lambda: ends.extend(codes(children)))
waiter.start()

while waiter.is_alive():
    own.append(count_wrong(len(own), 1))

print(json.dumps({"children": ends, "parent": sum(own)}))
"""

FORK_WHILE_BUSY = """\
count_wrong(0, 1)
ready = threading.Barrier(9)


def read():
    ready.wait()
    count_wrong(0, 20)


threads = [threading.Thread(target=read) for _ in range(8)]

for thread in threads:
    thread.start()

ready.wait()
ends = []

for _ in range(10):
    ends += codes([fork(lambda: count_wrong(0, 2))])

for thread in threads:
    thread.join()

print(json.dumps({"children": ends}))
"""


@pytest.fixture
def config(
    vault_server: DevServer, vault_mount: VaultMount, vault_proxy: FaultProxy
) -> dict[str, object]:
    for i in range(100):
        vault_mount.write(f"p{i}", {"x": f"v{i}"})

    return vault_mount.config(
        VAULT_ADDR=vault_proxy.address,
        VAULT_TOKEN=None,
        VAULT_AUTH=approle(vault_server, may_read(vault_mount)),
        VAULT_KV_VERSION=2,
    )


def run(script: str, config: dict[str, object]) -> dict[str, t.Any]:
    done = subprocess.run(
        [sys.executable, "-c", PREPARE + script],
        input=json.dumps(config),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, t.Any] = json.loads(done.stdout)
    return result


def test_no_process_gets_the_answer_of_another(
    config: dict[str, object], vault_proxy: FaultProxy
) -> None:
    """A shared HTTP session hands one reader the secret of another."""
    assert run(READ_IN_CHILDREN, config) == {"children": [0] * 4, "parent": 0}
    # The children go on with the token of their parent.
    assert vault_proxy.logins == 1
    assert vault_proxy.count >= 1 + 1 + 400


def test_a_fork_in_the_midst_of_requests_leaves_no_lock_behind(
    config: dict[str, object], vault_proxy: FaultProxy
) -> None:
    vault_proxy.delay = 0.005

    assert run(FORK_WHILE_BUSY, config) == {"children": [0] * 10}
    assert vault_proxy.logins == 1
