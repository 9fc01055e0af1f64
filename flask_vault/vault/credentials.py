"""Where the options of a login method come from: config, files, the environment."""

from __future__ import annotations

import collections.abc as cabc
import difflib
import os
import pathlib

from ..errors import VaultConfigError


class Options:
    """The options of ``VAULT_AUTH``, read anew at each question.

    Each may be given as it is, in a file (``NAME_file``), or in an environment variable
    (``NAME_env``).

    :param method: for messages.
    :param key: the config key that holds the options, for messages.
    """

    def __init__(
        self,
        method: str,
        raw: cabc.Mapping[str, object],
        *,
        key: str = "VAULT_AUTH",
        environ: cabc.Mapping[str, str] = os.environ,
        client_cert: tuple[str, str] | None = None,
    ) -> None:
        #: The files of the certificate that the connection shows, if any.
        self.client_cert = client_cert
        self.method = method
        self.raw = dict(raw)
        self.key = key
        self._environ = environ

    def check_names(
        self, sourced: cabc.Iterable[str] = (), plain: cabc.Iterable[str] = ()
    ) -> None:
        """Refuse an option that the method does not know.

        :param sourced: those that may come from a file or the environment.
        :param plain: those that may not.
        """
        known = [*plain, *(name for s in sourced for name in _sources(s))]

        for name in self.raw:
            if name in known:
                continue

            close = difflib.get_close_matches(name, known, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise VaultConfigError(
                f"{self.key}: unknown key {name!r}{hint}; the keys of {self.method!r}"
                f" are {', '.join(known)}."
            )

    def has(self, name: str) -> bool:
        """Whether an option is given in any way."""
        return any(source in self.raw for source in _sources(name))

    def text(self, name: str, default: str | None = None) -> str | None:
        """A plain option."""
        value = self.raw.get(name, default)
        return None if value is None else str(value).strip()

    def need(self, name: str) -> str:
        """A plain option that must be given."""
        value = self.text(name)

        if not value:
            raise VaultConfigError(
                f"{self.key} has the method {self.method!r} and no {name!r}: add it."
            )

        return value

    def read(
        self, name: str, *, fallback: str | None = None, header: bool = True
    ) -> str | None:
        """The value of an option from where it is kept now.

        :param fallback: an environment variable that serves when the option is not
            given in any way.
        :param header: whether it is a token or an id, and not any text.
        """
        clean = clean_header if header else _clean_text
        plain, in_file, in_env = _sources(name)

        if self.raw.get(plain) is not None:
            return clean(str(self.raw[plain]), f"{self.key}[{plain!r}]")

        if self.raw.get(in_file) is not None:
            path = pathlib.Path(str(self.raw[in_file])).expanduser()
            text = self._read_file(path, in_file)
            return clean(text, f"the file {str(path)!r}")

        variable = str(self.raw.get(in_env) or (not self.has(name) and fallback) or "")
        value = self._environ.get(variable, "") if variable else ""
        return clean(value, f"the environment's {variable}") if value else None

    def require(
        self, name: str, *, fallback: str | None = None, header: bool = True
    ) -> str:
        """As :meth:`read`, for an option that must be there."""
        value = self.read(name, fallback=fallback, header=header)

        if value is None:
            also = f", or set {fallback} in the environment" if fallback else ""
            raise VaultConfigError(
                f"{self.key} has the method {self.method!r} and no {name}: add"
                f" {name!r}, '{name}_file' or '{name}_env'{also}."
            )

        return value

    def _read_file(self, path: pathlib.Path, option: str) -> str:
        try:
            return path.read_text("utf-8")
        except UnicodeDecodeError:
            reason = "it is not text"
        except OSError as error:
            reason = error.strerror or type(error).__name__

        raise VaultConfigError(
            f"{self.key}[{option!r}]: the file {str(path)!r} cannot be read ({reason}):"
            " check the path and its permissions."
        )


def _sources(name: str) -> tuple[str, str, str]:
    return name, f"{name}_file", f"{name}_env"


def _clean_text(value: str, where: str) -> str:
    # An editor ends a file with a line break; a password may have spaces anywhere.
    value = value.removesuffix("\n").removesuffix("\r")

    if not value:
        raise VaultConfigError(f"{where} is empty: put the credential there.")

    return value


def clean_header(value: str, where: str) -> str:
    """Strip a value that goes into a header, and refuse one that cannot.

    :raises VaultConfigError: naming ``where`` it is from and never the value. HTTP
        libraries print the value when they refuse it.
    """
    value = value.strip()

    if not value:
        raise VaultConfigError(f"{where} is empty: put the credential there.")

    if not value.isascii() or not value.isprintable() or " " in value:
        raise VaultConfigError(
            f"{where} holds white space, a control character or a letter outside of"
            " ASCII: it is no token or id of Vault's; check that it is one line."
        )

    return value
