"""Reads HTTP/1.1 messages off a socket, whole and as they came."""

from __future__ import annotations

import re
import socket

#: More than any server of this kind sends as a head.
MAX_HEAD = 1 << 20


class ProtocolError(Exception):
    """What came is not HTTP/1.1, or ended in the middle."""


class Message:
    """One request or reply, as it came over the wire."""

    def __init__(self, head: bytes) -> None:
        self.head = head
        self.body = b""
        lines = head[:-4].decode("latin-1").split("\r\n")
        #: The three words of the first line.
        self.start = lines[0].split(" ", 2)
        #: The names of the headers in lower case, in the order they came.
        self.names: list[str] = []
        self._values: dict[str, str] = {}
        version = next((word for word in self.start if word.startswith("HTTP/")), "")

        if len(self.start) < 2 or version not in ("HTTP/1.0", "HTTP/1.1"):
            raise ProtocolError

        for line in lines[1:]:
            key, _, value = line.partition(":")
            name = key.strip().lower()
            self.names.append(name)
            self._values[name] = value.strip().lower()

        #: Whether nothing can follow on this connection.
        self.ends_connection = version == "HTTP/1.0" or self.says("connection", "close")

    @property
    def content(self) -> bytes:
        return self.head + self.body

    @property
    def status(self) -> int:
        """Of a reply."""
        if not self.start[1].isdigit():
            raise ProtocolError

        return int(self.start[1])

    @property
    def length(self) -> int | None:
        """Of the body, if it is told."""
        value = self._values.get("content-length")

        if value is None:
            return None

        if not value.isdigit():
            raise ProtocolError

        return int(value)

    def says(self, name: str, value: str) -> bool:
        """Whether a header has this among its values."""
        return value in self._values.get(name, "")


class Stream:
    """A socket that gives whole messages."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock = sock
        self._buffer = b""

    def read_request(self) -> Message | None:
        """The next request, ``None`` when the client is done."""
        request = self._read_head()

        if request is None:
            return None

        if request.says("expect", "100-continue"):
            # Said here, so the server behind need not be asked to say it.
            self.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.head = re.sub(rb"(?i)\r\nexpect:[^\r]*", b"", request.head)

        if request.says("transfer-encoding", "chunked"):
            request.body = self._read_chunks()
        elif request.length:
            request.body = self._take(request.length)

        return request

    def read_reply(self, method: str) -> Message:
        """The reply to a request with this method."""
        reply = self._read_head()

        while reply is not None and reply.status < 200:
            reply = self._read_head()

        if reply is None:
            raise ProtocolError

        if method == "HEAD" or reply.status in (204, 304):
            pass
        elif reply.says("transfer-encoding", "chunked"):
            reply.body = self._read_chunks()
        elif reply.length is not None:
            reply.body = self._take(reply.length)
        else:
            reply.ends_connection = True

            while self._receive():
                pass

            reply.body, self._buffer = self._buffer, b""

        return reply

    def send(self, content: bytes) -> None:
        self._sock.sendall(content)

    def drain(self) -> None:
        """Read until the other side, or :meth:`shut_down`, ends it."""
        while self._sock.recv(1 << 16):
            pass

    def is_stale(self) -> bool:
        """Whether the other side has closed since the last message. Asked before a
        request is sent, because afterwards nobody knows whether it was done."""
        try:
            self._sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return bool(self._buffer)
        except OSError:
            pass

        return True  # It ended, or said something that nobody had asked for.

    def shut_down(self) -> None:
        """Wake whoever reads from it in another thread."""
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # The other side was faster.

    def close(self) -> None:
        self._sock.close()

    def _receive(self) -> bool:
        data = self._sock.recv(1 << 16)
        self._buffer += data
        return bool(data)

    def _take(self, size: int) -> bytes:
        if len(self._buffer) < size:
            # Joined once: a value of a megabyte comes in many pieces.
            parts = [self._buffer]
            missing = size - len(self._buffer)

            while missing > 0:
                data = self._sock.recv(min(max(missing, 1 << 12), 1 << 20))

                if not data:
                    raise ProtocolError

                parts.append(data)
                missing -= len(data)

            self._buffer = b"".join(parts)

        taken, self._buffer = self._buffer[:size], self._buffer[size:]
        return taken

    def _take_until(self, mark: bytes) -> bytes:
        while (end := self._buffer.find(mark)) < 0:
            if len(self._buffer) > MAX_HEAD or not self._receive():
                raise ProtocolError

        return self._take(end + len(mark))

    def _read_head(self) -> Message | None:
        if not self._buffer and not self._receive():
            return None

        if not self._buffer[:1].isalpha():
            # A TLS client for one, which would wait for an answer to its greeting.
            raise ProtocolError

        return Message(self._take_until(b"\r\n\r\n"))

    def _read_chunks(self) -> bytes:
        """A chunked body with its sizes and trailers, as it came."""
        parts = []
        size = None

        while size != 0:
            line = self._take_until(b"\r\n")
            parts.append(line)

            try:
                size = int(line.split(b";")[0], 16)
            except ValueError:
                raise ProtocolError from None

            if size:
                parts.append(self._take(size + 2))

        while parts[-1] != b"\r\n":
            parts.append(self._take_until(b"\r\n"))

        return b"".join(parts)
