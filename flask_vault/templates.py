"""Text with ``{field}`` placeholders; in a URL, values are escaped where they stand."""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import string
import typing as t
import urllib.parse

from .errors import SecretValueError
from .errors import VaultConfigError

_Part = t.Literal["verbatim", "host", "quoted"]


@dataclasses.dataclass(frozen=True)
class Template:
    """A parsed template: literals, and fields with the way in which each is written.

    In a URL (``scheme://``) a value is percent-encoded, so that the password
    ``p@s/s:w`` works. In the host part it may be host, port and commas, and nothing
    that would begin another part (RFC 3986, section 3). ``{field!s}`` is verbatim, and
    so is everything in a text that is no URL.
    """

    pieces: tuple[tuple[str, str | None, _Part], ...]

    @property
    def fields(self) -> tuple[str, ...]:
        """The names that the template uses, in order."""
        return tuple(name for _, name, _ in self.pieces if name is not None)

    @classmethod
    def parse(cls, text: str) -> Template:
        """Read a template.

        :raises VaultConfigError: for anything but ``{field}`` and ``{field!s}``.
        """
        try:
            raw = list(string.Formatter().parse(text))
        except ValueError:
            raise VaultConfigError(
                f"the template {text!r} has an odd brace: write {{{{ or }}}} for a"
                " literal one."
            ) from None

        for _, name, spec, conversion in raw:
            if name is not None:
                _check_placeholder(text, name, spec, conversion)

        # A placeholder is one NUL here, which no literal of a sane template holds.
        url = "".join(lit + ("" if name is None else "\0") for lit, name, _, _ in raw)
        pieces: list[tuple[str, str | None, _Part]] = []
        position = 0

        for literal, name, _, conversion in raw:
            position += len(literal)
            part = "verbatim" if conversion else _part_at(url, position)
            pieces.append((literal, name, part))
            position += 0 if name is None else 1

        return cls(tuple(pieces))

    def render(self, lookup: cabc.Callable[[str], str]) -> str:
        """Fill the template.

        :param lookup: gives the value of a field by its name.
        :raises SecretValueError: when the value for a host is none.
        """
        out: list[str] = []

        for literal, name, part in self.pieces:
            out.append(literal)

            if name is not None:
                out.append(_WRITERS[part](name, lookup(name)))

        return "".join(out)


def _check_placeholder(
    text: str, name: str, spec: str | None, conversion: str | None
) -> None:
    # No attribute, index or format spec: a template reads fields and nothing else.
    if not name.replace("-", "_").isidentifier() or spec:
        raise VaultConfigError(
            f"the template {text!r} holds {{{name}}}: a placeholder is the bare name"
            " of a field, such as {password} or {password!s}."
        )

    if conversion not in {None, "s"}:
        raise VaultConfigError(
            f"the template {text!r} has the conversion !{conversion}: the only one is"
            " !s, for a value that is not escaped."
        )


def _part_at(url: str, position: int) -> _Part:
    scheme = url.find("://")

    if scheme < 0 or position < scheme:
        return "verbatim"

    authority = scheme + 3
    end = min(
        (i for i in (url.find(c, authority) for c in "/?#") if i >= 0),
        default=len(url),
    )
    after_user = url.rfind("@", authority, end)
    return "host" if after_user < position < end else "quoted"


def _host(name: str, value: str) -> str:
    if any(c in "/?#@\\%" or c.isspace() or not c.isprintable() for c in value):
        raise SecretValueError(
            f"The value of the field {name!r} stands where the template has a host, and"
            f" is none: correct it in Vault, or write {{{name}!s}} to insert it"
            " verbatim."
        )

    return value


_WRITERS: t.Final[dict[_Part, cabc.Callable[[str, str], str]]] = {
    "verbatim": lambda name, value: value,
    "host": _host,
    "quoted": lambda name, value: urllib.parse.quote(value, safe=""),
}
