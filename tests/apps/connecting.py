"""Opens a new connection to a database every 50 ms, as a worker does while a password
is rotated: with what the document holds, which it reads now and then.

Ends with standard input, and prints how many connections were opened and refused.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import threading
import time

import sqlalchemy as sa
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

from flask_vault.rotation.journal import candidates
from flask_vault.testing.plugin import VaultMount

#: Seconds between two reads of the document.
INTERVAL = 0.1


@functools.cache
def engine_of(url: str) -> sa.Engine:
    return sa.create_engine(url, poolclass=NullPool)


def main() -> None:
    mount = VaultMount(
        os.environ["TEST_MOUNT"], os.environ["TEST_VAULT"], os.environ["TEST_TOKEN"]
    )
    template = os.environ["TEST_TEMPLATE"]
    ended = threading.Event()

    def wait_for_the_end() -> None:
        sys.stdin.read()
        ended.set()

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    known: list[dict[str, str]] = []
    read_at = 0.0
    opened = refused = 0

    while not ended.wait(0.05):
        if time.monotonic() - read_at > INTERVAL:
            known = candidates(mount.read("database"), "password")
            read_at = time.monotonic()

        for one in known:
            try:
                engine_of(template.format(**one)).connect().close()
            except OperationalError:
                continue

            opened += 1
            break
        else:
            refused += 1

        if opened + refused == 1:
            print("first", flush=True)

    print(json.dumps({"opened": opened, "refused": refused}), flush=True)


if __name__ == "__main__":
    main()
