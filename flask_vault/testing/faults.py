"""What the proxy remembers of a request, and what it can do to one."""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import email.utils
import http.client
import json
import re

#: What to answer: text, or a mapping that is sent as JSON.
Body = str | bytes | cabc.Mapping[str, object] | None


@dataclasses.dataclass(frozen=True)
class RecordedRequest:
    """What is remembered of a request. No header's value and no body is: both may
    hold a token or a secret."""

    #: Such as ``GET``.
    method: str
    #: Such as ``/v1/secret/data/app``, without the query.
    path: str
    #: Such as ``version=3``, empty when there is none.
    query: str
    #: The names of the headers in lower case, in the order they came.
    headers: tuple[str, ...]
    #: Of the answer that the client got or, of a dropped reply, should have got.
    #: ``None`` when there was no answer.
    status: int | None = None
    #: What was done to it: ``answer``, ``drop_reply``, ``hang``, ``cut``, or
    #: ``upstream`` when the server behind was not there. ``None`` for nothing.
    fault: str | None = None


#: Which requests a fault is for: a regular expression that is searched for in the
#: path, or a function that is given the request. All of them when ``None``.
Match = str | re.Pattern[str] | cabc.Callable[[RecordedRequest], bool] | None


@dataclasses.dataclass
class Fault:
    """One thing to do to the requests that match, so many times."""

    kind: str
    match: Match = None
    times: int | None = None
    status: int | None = None
    head: bytes = b""
    body: bytes = b""

    def __post_init__(self) -> None:
        if isinstance(self.match, str):
            self.match = re.compile(self.match)

        if self.times is not None and self.times < 1:
            raise ValueError(
                f"'times' is {self.times}. Give the number of requests, or 'None' for"
                " all of them."
            )

    def is_for(self, request: RecordedRequest) -> bool:
        if self.match is None:
            return True

        if callable(self.match):
            return self.match(request)

        return re.search(self.match, request.path) is not None

    def reply_to(self, method: str) -> bytes:
        """The prepared answer, as it goes over the wire."""
        # Those who keep Vault's time read it from there.
        date = f"Date: {email.utils.formatdate(usegmt=True)}\r\n\r\n"
        return self.head + date.encode() + (b"" if method == "HEAD" else self.body)


def make_answer(
    status: int,
    body: Body,
    headers: cabc.Mapping[str, str] | None,
    times: int | None,
    match: Match,
) -> Fault:
    """Prepare an answer that does not come from the server."""
    if body is None:
        content = b"" if status in (204, 304) else b'{"errors":[]}\n'
    elif isinstance(body, bytes):
        content = body
    elif isinstance(body, str):
        content = body.encode()
    else:
        content = json.dumps(body).encode()

    html = content.lstrip()[:1] == b"<"
    fields = {
        "Content-Type": "text/html" if html else "application/json",
        "Content-Length": str(len(content)),
        **(headers or {}),
    }
    reason = http.client.responses.get(status, "Unknown")
    head = f"HTTP/1.1 {status} {reason}\r\n" + "".join(
        f"{name}: {value}\r\n" for name, value in fields.items()
    )
    return Fault("answer", match, times, status, head.encode("latin-1"), content)
