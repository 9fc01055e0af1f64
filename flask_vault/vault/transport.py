"""The way to the server: one HTTP session and one login per process id."""

from __future__ import annotations

import base64
import collections.abc as cabc
import contextlib
import copy
import datetime
import email.utils
import json
import logging
import time
import typing as t

from ..errors import VaultConnectionError
from ..errors import VaultError
from ..errors import VaultNotInitializedError
from ..errors import VaultResponseError
from ..errors import VaultSealedError
from ..errors import VaultUnavailableError
from ..errors import without_frames
from ..observing import Observers
from .endpoint import Endpoint
from .process import PerProcess
from .retries import Budget
from .retries import Patience
from .retries import pause_before_retry
from .session import Session

if t.TYPE_CHECKING:
    import hvac

    from .auth import LoginMethod
    from .tokens import Token

T = t.TypeVar("T")

#: How far ahead of the present an index is that no server has reached.
_FAR_AHEAD: t.Final = 10**9

#: Seconds for which a standby is not asked about what it was out of date about. It
#: lags behind by less than one (measured: up to 0.4).
_DISTRUST: t.Final = 5.0

#: To how many URLs the last write is remembered.
_MOST_INDEXES: t.Final = 1000

_log = logging.getLogger("flask_vault")


class Wire:
    """What the answers of a server tell beside their bodies."""

    def __init__(self) -> None:
        self._clock: tuple[float, float] | None = None
        self._told: str | None = None
        #: The index of the last write to each URL, and of the last of all. An index is
        #: opaque, so those of writes that cross each other cannot be compared.
        self._indexes: dict[str, str] = {}
        self._index: str | None = None
        #: Until when the active node has to answer for a URL; monotonic time.
        self._distrusted: dict[str, float] = {}
        #: That of the last answer.
        self._seen: str | None = None

    def now(self) -> datetime.datetime:
        """The server's time, from its ``Date`` header (a second's resolution).

        Before the first answer, the host's.
        """
        if self._clock is None:
            return datetime.datetime.now(datetime.timezone.utc)

        server, seen = self._clock
        return datetime.datetime.fromtimestamp(
            server + time.monotonic() - seen, datetime.timezone.utc
        )

    def ahead(self) -> cabc.Mapping[str, str] | None:
        """What no standby of OpenBao's answers by itself: it asks for a state that is
        yet to come, so the request goes on to the active node.

        :return: ``None`` before the first index, or when it is of another kind.
        """
        try:
            index = json.loads(base64.b64decode(self._seen or ""))
            index["value"] = str(int(index["value"]) + _FAR_AHEAD)
        except (ValueError, TypeError, KeyError):
            return None

        return {
            "X-Vault-Index": base64.b64encode(json.dumps(index).encode()).decode(),
            "X-Vault-Inconsistent": "forward-active-node",
        }

    def headers(self, url: str) -> cabc.Mapping[str, str]:
        """What makes a standby of OpenBao's know of our own writes.

        It forwards a request to the active node when it has not caught up. For writes
        as well: it compares a check-and-set with the version that it has itself.
        """
        if time.monotonic() < self._distrusted.get(url, 0.0):
            return self.ahead() or {}

        index = self._indexes.get(url, self._index)

        if index is None:
            return {}

        return {
            "X-Vault-Index": index,
            "X-Vault-Inconsistent": "forward-active-node",
        }

    def distrust(self, url: str) -> None:
        """Have the active node answer for this URL, until we have written there.

        Else who writes through a standby loses each race against somebody who writes
        faster than the standby learns of it.
        """
        if len(self._distrusted) >= _MOST_INDEXES:
            self._distrusted.clear()

        self._distrusted[url] = time.monotonic() + _DISTRUST

    def take(self, method: str, url: str, headers: cabc.Mapping[str, str]) -> None:
        """Note what an answer's headers say."""
        index = headers.get("X-Vault-Index")

        if index:
            self._seen = index

            if method.lower() in {"post", "put", "delete", "patch"}:
                if len(self._indexes) >= _MOST_INDEXES:
                    self._indexes.clear()

                self._index = self._indexes[url] = index
                self._distrusted.pop(url, None)

        now = time.monotonic()

        told = headers.get("Date")

        # Within a second there is nothing new to be learned.
        if told is None or told == self._told:
            return

        with contextlib.suppress(ValueError):
            date = email.utils.parsedate_to_datetime(told).timestamp()
            self._told = told

            # The header is cut to a second, so it tells the earliest that it can be.
            # What we had is kept while it fits: time must not go back by the fraction.
            if self._clock is not None:
                had = self._clock[0] + now - self._clock[1]

                if date <= had <= date + 1.5:
                    return

            self._clock = date, now


class Transport:
    """Runs operations of hvac's client with a living token.

    :param method: how to log in. It is asked for at the first use, not before.
    :param revoke_on_exit: revoke a token that we made when the process ends.
    :param observers: are told of logins and requests.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        method: LoginMethod,
        *,
        revoke_on_exit: bool = False,
        observers: Observers | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.method = method
        self._wire = Wire()
        self._budget: PerProcess[Budget] = PerProcess(Budget)
        self._patience = Patience()
        #: What told, inside of patient(), that nobody answers.
        self._silence: VaultConnectionError | None = None
        self._session = Session(
            endpoint,
            method,
            self._wire,
            lambda: self._budget.get().take(),
            observers or Observers(),
            revoke_on_exit=revoke_on_exit,
        )

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.endpoint.shown} {self.method.name}>"

    @property
    def token(self) -> Token | None:
        """The token in use, or ``None`` before the first login."""
        return self._session.token

    def call(
        self,
        operation: cabc.Callable[[hvac.Client], T],
        *,
        repeatable: bool = True,
        retry: bool = True,
    ) -> T:
        """Run an operation with a client that is logged in.

        A failure that may pass is tried again: once, soon; or, inside of
        :meth:`patient`, until its deadline. A 403 may mean a dead token. When it does,
        one new login is made for all threads, and the operation is run once more.

        :param repeatable: ``False`` for what must not be carried out twice. It is not
            sent again when it may have been done.
        :param retry: ``False`` sends nothing again that failed.
        :raises VaultLoginError: when the login is refused. It is not sent again until
            the credential changes.
        """
        if not retry:
            return self._session.run(operation)

        return self._retried(lambda: self._session.run(operation), repeatable)

    def login(self) -> None:
        """Log in now, unless that was done before."""
        self._retried(self._session.login, repeatable=True)

    @contextlib.contextmanager
    def patient(self, seconds: float) -> cabc.Iterator[None]:
        """Wait for a server that does not answer, as at the start of an app.

        :param seconds: for everything inside together; 0 does not wait.
        """
        self._silence = None
        self._patience = Patience.of(seconds)

        try:
            yield
        finally:
            self._patience = Patience()

    def distrust(self, path: str) -> None:
        """Ask no standby about this path for a moment: it was out of date."""
        self._wire.distrust(f"/v1/{path}")

    def now(self) -> datetime.datetime:
        """The server's time."""
        return self._wire.now()

    @property
    def fresh_at(self) -> float | None:
        """Monotonic time of the last answer that only the active node gives."""
        return self._session.fresh_at

    def keep_alive(self) -> float:
        """Take the next step in the token's life, when it is due.

        :return: seconds until the one after it.
        """
        return self._session.keep_alive()

    def prove_fresh(self) -> None:
        """Ask what a standby cannot answer from what it has.

        One that is cut off from its leader goes on answering reads, with old data and
        without a limit (measured).

        :raises VaultUnavailableError: when the active node did not answer.
        """
        self._session.prove_fresh()

    def health(self) -> dict[str, t.Any]:
        """What the server says of itself, sealed or not (``sys/health``)."""
        answer = self._session.rootless().sys.read_health_status(method="GET")
        said = t.cast("dict[str, t.Any]", answer)

        if "initialized" not in said:
            raise VaultResponseError(
                f"{self.endpoint.shown} does not answer like Vault: check VAULT_ADDR."
            )

        return said

    def forget_refusal(self) -> None:
        """Let a credential that was refused be sent once more."""
        self._session.forget_refusal()

    def token_ttl(self) -> int | None:
        """Seconds that the token lives, as the server says; ``None`` is for ever.

        :raises VaultLoginError: when it does not live any more, and no other is to be
            had.
        """
        answer = self.call(lambda client: client.auth.token.lookup_self())
        data = t.cast("dict[str, t.Any]", answer).get("data")
        ttl = data.get("ttl") if isinstance(data, dict) else None
        return ttl if isinstance(ttl, int) and ttl > 0 else None

    def _sealed_or_new(self, error: VaultSealedError) -> VaultUnavailableError:
        """A server that was never initialized says that it is sealed, too."""
        with contextlib.suppress(VaultError):
            if self.health().get("initialized") is False:
                return VaultNotInitializedError(
                    f"Vault at {self.endpoint.shown} is not initialized: run 'bao"
                    " operator init' or 'vault operator init'.",
                    status=error.status,
                    path=error.path,
                    errors=error.errors,
                )

        return error

    def _retried(self, work: cabc.Callable[[], T], repeatable: bool) -> T:
        attempt = 0
        silence = self._silence

        # When the time is up, another read would only wait for the same silence.
        if silence is not None and self._patience.is_over():
            raise copy.copy(silence)

        while True:
            try:
                return work()
            except VaultSealedError as error:
                raise self._sealed_or_new(error) from None
            except VaultUnavailableError as error:
                patience = self._patience
                pause = pause_before_retry(
                    error,
                    attempt,
                    patience,
                    self._budget.get(),
                    repeatable=repeatable,
                )

                if pause is None:
                    if isinstance(error, VaultConnectionError):
                        self._silence = without_frames(copy.copy(error))

                    raise

                if attempt == 0 and patience.deadline is not None:
                    _log.warning(
                        "%s Trying again for %.0f s (VAULT_STARTUP_TIMEOUT).",
                        error,
                        patience.deadline - time.monotonic(),
                    )

            time.sleep(pause)
            attempt += 1
