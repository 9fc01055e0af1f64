"""Everything that Flask-Vault raises.

.. code-block:: text

    VaultError
    ├── VaultConfigError          a VAULT_* key, an entry or a call is wrong
    ├── VaultUnavailableError     nobody could answer; asking again later may help
    │   ├── VaultConnectionError  refused, reset, timed out, name not found
    │   ├── VaultSealedError      the server answers 503: it is sealed
    │   ├── VaultNotInitializedError
    │   └── VaultRateLimitedError 429
    ├── VaultTLSError             the server's certificate is not trusted
    ├── VaultResponseError        an answer that is not Vault's
    ├── VaultLoginError           the server refused our credentials
    ├── VaultPermissionError      403: the token may not do this
    ├── SecretNotFoundError       no document at this path
    │   ├── SecretVersionError    that version was deleted, destroyed or never was
    │   └── SecretFieldError      the document has no such field
    ├── SecretValueError          the value cannot be used as the entry asks
    ├── CheckAndSetError          somebody else wrote the document first
    ├── BackupError               a backup cannot be written, read or trusted
    └── RotationError             a rotation was refused, or needs a person
        ├── AlreadyRotatedError   somebody else was first, or nothing would change
        └── UnfinishedRotationError  a step failed that may be repeated at any time

*Denied* (:exc:`VaultPermissionError`, :exc:`VaultLoginError`), *missing*
(:exc:`SecretNotFoundError`) and *unreachable* (:exc:`VaultUnavailableError`) are
never parents of one another, so ``except`` can tell them apart. No message holds a
secret value or a token.
"""

from __future__ import annotations

import traceback
import typing as t


class VaultError(Exception):
    """The base of every exception of this package.

    :param message: a sentence that says what is wrong and what to do.
    :param status: the HTTP status code, when a server answered.
    :param path: mount and path of the document in question.
    :param errors: what Vault said, word for word.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        path: str | None = None,
        errors: t.Sequence[str] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.path = path
        self.errors = tuple(errors)

    def __str__(self) -> str:
        return self.message


class VaultConfigError(VaultError):
    """A ``VAULT_*`` key, an entry of ``VAULT_SECRETS`` or a call is wrong."""


class VaultUnavailableError(VaultError):
    """Nobody could answer. Nothing is known about the secret itself."""

    #: Whether the request may have been carried out all the same.
    maybe_done: bool = False
    #: Seconds after which the server wants to be asked again, if it said so.
    retry_after: float | None = None


class VaultConnectionError(VaultUnavailableError):
    """No HTTP answer: refused, reset, timed out, or the name does not resolve."""


class VaultSealedError(VaultUnavailableError):
    """The server is sealed."""


class VaultNotInitializedError(VaultUnavailableError):
    """The server was never initialized."""


class VaultRateLimitedError(VaultUnavailableError):
    """The server answered 429: a rate limit quota is used up."""


class VaultTLSError(VaultError):
    """The server's certificate is not trusted, or is not for this name."""


class VaultResponseError(VaultError):
    """An answer that is not Vault's: HTML, a redirect, an unexpected status."""


class VaultLoginError(VaultError):
    """The server refused our credentials. Never retried by itself: five refused
    logins lock the role for everyone (Vault's user lockout)."""


class VaultPermissionError(VaultError):
    """The token is not allowed to do this."""


class SecretNotFoundError(VaultError):
    """There is no document at this path."""

    #: KV v2's metadata of the version, when it is there without its data.
    metadata: dict[str, t.Any] | None = None


class SecretVersionError(SecretNotFoundError):
    """This version of the document was deleted, destroyed, or never existed."""


class SecretFieldError(SecretNotFoundError):
    """The document exists and has no such field."""


class SecretValueError(VaultError):
    """The value is there and cannot be used the way the entry asks."""


class CheckAndSetError(VaultError):
    """Somebody else wrote the document since it was read."""


class BackupError(VaultError):
    """A backup cannot be written, read, or trusted."""


class RotationError(VaultError):
    """A rotation was refused, or needs a person to go on."""


class AlreadyRotatedError(RotationError):
    """Another process rotated the value meanwhile, or it is there already."""


class UnfinishedRotationError(RotationError):
    """A step of a rotation failed for a reason that may pass. What is needed to go on
    is in the document, so the same command goes on."""


E = t.TypeVar("E", bound=VaultError)


def without_frames(error: E) -> E:
    """Cut an exception off from the frames that it came through.

    Their local variables hold tokens and values, and error trackers report locals.

    :return: the same exception, to be raised again at the edge of the package.
    """
    error.__cause__ = None
    error.__context__ = None
    return error.with_traceback(None)


def place_of(error: BaseException) -> str:
    """Where an exception was raised, as ``file:line``, for a log without its text."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "?"
