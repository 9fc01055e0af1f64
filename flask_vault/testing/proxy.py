"""A proxy that counts requests and misbehaves on request.

It stands between a client and a real server, so that a test can show what a real
server cannot be made to do: an answer that gets lost after the write was done, a
load balancer's HTML page, a network that is gone for a while.

It also runs by itself, for benchmarks that must not share an interpreter with it:

.. code-block:: console

    $ python -m flask_vault.testing.proxy --upstream http://127.0.0.1:8200 --delay 0.005
    http://127.0.0.1:20001

Then it obeys lines on standard input, ``stats``, ``reset``, ``delay SECONDS``, answers
each with its counters as one JSON object, and ends when standard input does.
"""

from __future__ import annotations

import collections
import collections.abc as cabc
import dataclasses
import json
import os
import re
import selectors
import socket
import threading
import typing as t
import urllib.parse
import weakref

from .conversation import Conversation
from .faults import Body
from .faults import Fault
from .faults import make_answer
from .faults import Match
from .faults import RecordedRequest
from .ports import lease_ports

P = t.TypeVar("P", bound="FaultProxy")

# Also below a namespace, and of userpass, whose path ends with the name.
_LOGIN = re.compile(r"/v1/(.+/)?auth/.+/login(/|$)")

_open_proxies: weakref.WeakSet[FaultProxy] = weakref.WeakSet()


def _forget_in_child() -> None:
    """A forked child has copies of the sockets and none of the threads: who connects
    to them would wait for ever."""
    for proxy in list(_open_proxies):
        proxy._disown()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)


class FaultProxy:
    """A proxy before a server, for one test.

    .. code-block:: python

        with FaultProxy(server.address) as proxy:
            app.config["VAULT_ADDR"] = proxy.address
            proxy.answer(503, times=2, match=r"/v1/secret/")
            ...
            assert proxy.count == 4

    Of several faults that match a request, the one that was added last counts.

    :param upstream_address: of the server behind, ``http`` only.
    :param delay: how long each request waits before it is passed on, in seconds.
    :param history: how many requests :attr:`requests` remembers. The counters count
        them all.
    """

    def __init__(
        self, upstream_address: str, *, delay: float = 0.0, history: int = 100_000
    ) -> None:
        url = urllib.parse.urlsplit(
            upstream_address if "//" in upstream_address else f"//{upstream_address}"
        )

        if url.scheme not in ("", "http") or not url.hostname or not url.port:
            raise ValueError(
                f"'upstream_address' is {upstream_address!r}. Give an address such as"
                " 'http://127.0.0.1:8200'; the proxy does not speak TLS."
            )

        #: How long each request waits before it is passed on, in seconds. May be set
        #: at any time.
        self.delay = delay
        self.upstream = (url.hostname, url.port)
        self._changed = threading.Condition()
        self._history: collections.deque[RecordedRequest]
        self._history = collections.deque(maxlen=history)
        self._count = self._logins = self._connections = self._most = 0
        self._faults: list[Fault] = []
        self._conversations: set[Conversation] = set()
        self.is_cut = False
        self._port: int | None = None
        self._lease: socket.socket | None = None
        self._listener: socket.socket | None = None
        self._waker: socket.socket | None = None
        self._accepting: threading.Thread | None = None

    # Its life.

    def __enter__(self: P) -> P:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def start(self: P) -> P:
        """Listen on a free port of loopback. Does nothing when it does already."""
        if self._lease is None:
            self._port, self._lease = lease_ports()
            self.is_cut = False
            self._listen()
            _open_proxies.add(self)

        return self

    def close(self) -> None:
        """Close all connections and stop listening. May be repeated."""
        self.cut()

        for conversation in self._list_conversations():
            conversation.thread.join(10)

        if self._lease is not None:
            self._lease.close()
            self._lease = None

    @property
    def address(self) -> str:
        """Such as ``http://127.0.0.1:20001``. The same after a cut."""
        if self._port is None:
            raise ValueError(
                "This 'FaultProxy' has no address yet. Use it as a context manager or"
                " call 'start()' first."
            )

        return f"http://127.0.0.1:{self._port}"

    def __repr__(self) -> str:
        where = "not started" if self._port is None else self.address
        return f"<{type(self).__name__} {where} count={self._count}>"

    # What was seen.

    @property
    def requests(self) -> list[RecordedRequest]:
        """The requests so far, in the order in which they were answered."""
        with self._changed:
            return list(self._history)

    @property
    def count(self) -> int:
        """How many requests there were."""
        return self._count

    @property
    def logins(self) -> int:
        """How many of them were logins, by whatever method and with any outcome."""
        return self._logins

    @property
    def connections(self) -> int:
        """How many connections clients have opened."""
        return self._connections

    @property
    def open_connections(self) -> int:
        """How many of them are open now."""
        return len(self._conversations)

    @property
    def max_connections(self) -> int:
        """The most connections that were open at the same time."""
        return self._most

    def reset(self) -> None:
        """Begin to count anew. Faults stay; :meth:`heal` ends them."""
        with self._changed:
            self._history.clear()
            self._count = self._logins = self._connections = 0
            self._most = len(self._conversations)

    def wait_for(self, count: int, timeout: float = 10.0) -> None:
        """Wait until that many requests were seen. One is seen just before its answer
        is sent, or when it begins to hang.

        :raise TimeoutError: when there were fewer after ``timeout`` seconds.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._count >= count, timeout):
                raise TimeoutError(
                    f"Only {self._count} of {count} requests came within"
                    f" {timeout:g} seconds."
                )

    # Faults.

    def cut(self) -> None:
        """Close all connections and refuse new ones, until :meth:`heal`."""
        self.is_cut = True
        self._stop_listening()

        for conversation in self._list_conversations():
            conversation.interrupt()

    def heal(self) -> None:
        """End all faults, the delay too. What hangs is disconnected."""
        with self._changed:
            self._faults.clear()

        self.delay = 0.0

        for conversation in self._list_conversations():
            if conversation.hangs:
                conversation.interrupt()

        if self.is_cut and self._lease is not None:
            self.is_cut = False
            self._listen()

    def answer(
        self,
        status: int,
        body: Body = None,
        headers: cabc.Mapping[str, str] | None = None,
        *,
        times: int | None = None,
        match: Match = None,
    ) -> None:
        """Answer requests without passing them on.

        :param status: the status code.
        :param body: text, or a mapping that is sent as JSON. An empty list of errors
            when not given, as in Vault's own refusals.
        :param headers: more headers, such as ``Location`` or ``Retry-After``.
        :param times: for how many requests, for all when not given.
        :param match: for which requests, see :data:`~flask_vault.testing.faults.Match`.
        """
        self._add(make_answer(status, body, headers, times, match))

    def drop_reply(self, times: int | None = 1, match: Match = None) -> None:
        """Pass requests on, read the whole reply, and close the connection without
        sending it: what was asked for is done, and the client does not know.

        :param times: for how many requests, for all when ``None``.
        :param match: for which requests.
        """
        self._add(Fault("drop_reply", match, times))

    def hang(self, match: Match = None, times: int | None = None) -> None:
        """Take requests and say nothing, until the client gives up or :meth:`heal`.

        :param match: for which requests.
        :param times: for how many requests, for all when not given.
        """
        self._add(Fault("hang", match, times))

    def _add(self, fault: Fault) -> None:
        with self._changed:
            self._faults.append(fault)

    def pick(self, request: RecordedRequest) -> Fault | None:
        """The fault that is for this request, used up by one.

        :meta private:
        """
        if not self._faults:
            return None

        with self._changed:
            for fault in reversed(self._faults):
                if not fault.is_for(request):
                    continue

                if fault.times is not None:
                    fault.times -= 1

                    if fault.times == 0:
                        self._faults.remove(fault)

                return fault

        return None

    def record(
        self, request: RecordedRequest, status: int | None, fault: str | None = None
    ) -> None:
        """Count a request.

        :meta private:
        """
        with self._changed:
            self._history.append(
                dataclasses.replace(request, status=status, fault=fault)
            )
            self._count += 1

            if request.method in ("POST", "PUT") and _LOGIN.match(request.path):
                self._logins += 1

            self._changed.notify_all()

    # Its connections.

    def forget(self, conversation: Conversation) -> None:
        """Take a connection that has ended off the list.

        :meta private:
        """
        with self._changed:
            self._conversations.discard(conversation)

    def _list_conversations(self) -> list[Conversation]:
        with self._changed:
            return list(self._conversations)

    def _listen(self) -> None:
        self._listener = socket.socket()
        # Connections that ended lately keep the port from nobody.
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(("127.0.0.1", self._port or 0))
        self._listener.listen(512)
        self._waker, wakened = socket.socketpair()
        self._accepting = threading.Thread(
            target=self._accept,
            args=(self._listener, wakened),
            name="fault-proxy-accept",
            daemon=True,
        )
        self._accepting.start()

    def _stop_listening(self) -> None:
        if self._accepting is None or self._waker is None:
            return

        # Closing a socket does not wake who waits for it.
        self._waker.close()
        self._accepting.join()
        self._accepting = None

    def _accept(self, listener: socket.socket, wakened: socket.socket) -> None:
        with listener, wakened, selectors.DefaultSelector() as selector:
            selector.register(listener, selectors.EVENT_READ)
            selector.register(wakened, selectors.EVENT_READ)

            while not any(key.fileobj is wakened for key, _ in selector.select()):
                try:
                    client, _ = listener.accept()
                except OSError:
                    continue  # It had left before.

                conversation = Conversation(self, client)

                with self._changed:
                    self._conversations.add(conversation)
                    self._connections += 1
                    self._most = max(self._most, len(self._conversations))

                conversation.thread.start()

    def _disown(self) -> None:
        # A thread of the parent may have held it.
        self._changed = threading.Condition()

        for sock in (self._listener, self._waker, self._lease):
            if sock is not None:
                sock.close()

        for conversation in self._conversations:
            conversation.close()

        self._accepting = self._lease = None
        self._conversations.clear()


def main(arguments: cabc.Sequence[str] | None = None) -> None:
    """Run a proxy until standard input ends."""
    import argparse
    import sys

    parser = argparse.ArgumentParser(
        prog="python -m flask_vault.testing.proxy",
        description="Count and delay the requests to a server. Obeys the lines"
        " 'stats', 'reset' and 'delay SECONDS' on standard input and ends with it.",
    )
    parser.add_argument("--upstream", required=True, help="the server's address")
    parser.add_argument(
        "--delay", type=float, default=0.0, help="seconds before each request"
    )
    options = parser.parse_args(arguments)

    with FaultProxy(options.upstream, delay=options.delay, history=0) as proxy:
        print(proxy.address, flush=True)

        for line in sys.stdin:
            order, _, value = line.strip().partition(" ")

            if order == "reset":
                proxy.reset()
            elif order == "delay":
                proxy.delay = float(value)

            stats = {
                "count": proxy.count,
                "logins": proxy.logins,
                "connections": proxy.connections,
                "max_connections": proxy.max_connections,
            }
            print(json.dumps(stats), flush=True)


if __name__ == "__main__":
    main()
