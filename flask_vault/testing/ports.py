"""Ports on loopback that stay ours while a server restarts on them."""

from __future__ import annotations

import os
import random
import socket
import weakref

#: Below the ranges that Linux (32768) and macOS (49152) hand to clients, so that no
#: outgoing connection sits on a port while its server is being restarted.
RANGE = range(20_000, 32_000, 3)

_open_leases: weakref.WeakSet[socket.socket] = weakref.WeakSet()


def _forget_in_child() -> None:
    """A lease is this process's, not that of those it forks."""
    for lease in list(_open_leases):
        lease.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)


def lease_ports() -> tuple[int, socket.socket]:
    """Find a free pair of ports, and keep others who use this function off it.

    :return: the first port of the pair, and the socket that is the lease. It is
        bound to the port above the pair, never listens, and ends with the process.
    """
    for port in random.sample(RANGE, k=200):
        lease = socket.socket()

        try:
            lease.bind(("127.0.0.1", port + 2))

            for wanted in (port, port + 1):
                with socket.socket() as probe:
                    # As servers do: connections that ended lately do not count.
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    probe.bind(("127.0.0.1", wanted))
        except OSError:
            lease.close()
        else:
            _open_leases.add(lease)
            return port, lease

    raise OSError(
        f"No two neighboring ports are free on 127.0.0.1 between {RANGE.start} and"
        f" {RANGE.stop}. Stop some of the servers there."
    )
