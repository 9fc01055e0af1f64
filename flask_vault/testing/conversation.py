"""One client's connection to the proxy, with a thread of its own."""

from __future__ import annotations

import socket
import threading
import time
import typing as t

from .faults import Fault
from .faults import RecordedRequest
from .wire import Message
from .wire import ProtocolError
from .wire import Stream


class Host(t.Protocol):
    """The proxy, as far as a conversation needs it."""

    delay: float
    is_cut: bool
    upstream: tuple[str, int]

    def pick(self, request: RecordedRequest) -> Fault | None: ...

    def record(
        self, request: RecordedRequest, status: int | None, fault: str | None = None
    ) -> None: ...

    def forget(self, conversation: Conversation) -> None: ...


class Conversation:
    """One client's connection, and the connection to the server for it."""

    def __init__(self, proxy: Host, client: socket.socket) -> None:
        #: Whether it is silent on purpose.
        self.hangs = False
        self.thread = threading.Thread(
            target=self._run, name="fault-proxy", daemon=True
        )
        self._proxy = proxy
        self._client = Stream(client)
        self._upstream: Stream | None = None

    def interrupt(self) -> None:
        """Wake the thread wherever it waits. It then finds its connections closed."""
        for stream in (self._client, self._upstream):
            if stream is not None:
                stream.shut_down()

    def close(self) -> None:
        for stream in (self._client, self._upstream):
            if stream is not None:
                stream.close()

    def _run(self) -> None:
        try:
            while True:
                message = self._client.read_request()

                if message is None or not self._deal_with(message):
                    return
        except (OSError, ProtocolError):
            pass  # The client has left, or does not speak HTTP.
        finally:
            self._proxy.forget(self)
            self.close()

    def _deal_with(self, message: Message) -> bool:
        """Answer one request, or not.

        :return: whether the connection is good for another.
        """
        proxy = self._proxy
        path, _, query = message.start[1].partition("?")
        request = RecordedRequest(message.start[0], path, query, tuple(message.names))
        fault = proxy.pick(request)
        kind = None if fault is None else fault.kind

        if proxy.delay > 0:
            time.sleep(proxy.delay)

        if kind == "hang":
            self.hangs = True
            proxy.record(request, None, kind)
            self._client.drain()
            return False

        if fault is not None and kind == "answer":
            proxy.record(request, fault.status, kind)
            self._client.send(fault.reply_to(request.method))
            return not message.ends_connection

        try:
            reply = self._forward(message)
        except (OSError, ProtocolError):
            proxy.record(request, None, "cut" if proxy.is_cut else "upstream")
            return False

        proxy.record(request, reply.status, kind)

        if kind == "drop_reply":
            return False

        self._client.send(reply.content)
        return not (message.ends_connection or reply.ends_connection)

    def _forward(self, message: Message) -> Message:
        if self._upstream is not None and self._upstream.is_stale():
            self._upstream.close()
            self._upstream = None

        if self._upstream is None:
            upstream = socket.create_connection(self._proxy.upstream, 10)
            upstream.settimeout(None)
            self._upstream = Stream(upstream)

        if self._proxy.is_cut:
            # The cut may have come before this connection, and missed it.
            raise ConnectionAbortedError

        self._upstream.send(message.content)
        reply = self._upstream.read_reply(message.start[0])

        if reply.ends_connection:
            self._upstream.close()
            self._upstream = None

        return reply
