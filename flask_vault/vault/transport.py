"""The way to the server: one HTTP session and one login per process id."""

from __future__ import annotations

import collections.abc as cabc
import copy
import dataclasses
import datetime
import email.utils
import time
import typing as t

from ..errors import VaultLoginError
from ..errors import VaultPermissionError
from .auth import Credential
from .auth import LoginMethod
from .auth import Token
from .process import PerProcess
from .process import SingleFlight

if t.TYPE_CHECKING:
    import hvac
    import requests

T = t.TypeVar("T")

#: Seconds for which an answer to "is this token alive?" is believed.
_VERDICT_LIFE: t.Final = 5.0


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """Which server, and how to reach it.

    :param verify: check the certificate against the system's authorities (``True``) or
        those in a file or folder; ``False`` checks nothing.
    :param connect_timeout: seconds.
    :param read_timeout: seconds of silence from the server.
    """

    address: str
    namespace: str | None = None
    verify: bool | str = True
    connect_timeout: float = 2.0
    read_timeout: float = 5.0


@dataclasses.dataclass
class _Login:
    token: Token
    client: hvac.Client
    #: The server has done something for this token.
    proven: bool = False


class _State:
    """What must not cross a fork."""

    def __init__(self, session: requests.Session) -> None:
        self.session = session
        self.flights = SingleFlight()
        self.login: _Login | None = None


class Transport:
    """Runs operations of hvac's client with a living token.

    :param method: how to log in. It is asked for at the first use, not before.
    """

    def __init__(self, endpoint: Endpoint, method: LoginMethod) -> None:
        self.endpoint = endpoint
        self.method = method
        self._state: PerProcess[_State] = PerProcess(self._new_state)
        #: Crosses a fork: a child goes on with the token of its parent.
        self._token: Token | None = None
        self._refused: tuple[Credential, VaultLoginError] | None = None
        self._verdict: tuple[str, float, bool] | None = None
        self._clock: tuple[float, float] | None = None
        self._anonymous: PerProcess[hvac.Client] = PerProcess(lambda: self._client(""))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.endpoint.address} {self.method.name}>"

    @property
    def token(self) -> Token | None:
        """The token in use, or ``None`` before the first login."""
        return self._token

    def call(self, operation: cabc.Callable[[hvac.Client], T]) -> T:
        """Run an operation with a client that is logged in.

        A 403 may mean a dead token. When it does, one new login is made for all
        threads, and the operation is run once more.

        :raises VaultLoginError: when the login is refused. It is not sent again until
            the credential changes.
        """
        login = self._login(None)

        try:
            result = operation(login.client)
        except VaultPermissionError as error:
            if self._alive(login):
                raise

            denial = error
        else:
            login.proven = True
            return result

        return operation(self._login_anew(login, denial).client)

    def anonymous(self, operation: cabc.Callable[[hvac.Client], T]) -> T:
        """Run an operation that needs no token."""
        return operation(self._anonymous.get())

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

    def login(self) -> Token:
        """Log in now, unless that was done before."""
        return self._login(None).token

    def health(self) -> dict[str, t.Any]:
        """What the server says of itself, sealed or not (``sys/health``)."""
        return t.cast(
            "dict[str, t.Any]",
            self.anonymous(lambda client: client.sys.read_health_status(method="GET")),
        )

    def token_ttl(self) -> int | None:
        """Seconds that the token lives, as the server says; ``None`` is for ever.

        :raises VaultLoginError: when it does not live any more, and no other is to be
            had.
        """
        answer = self.call(lambda client: client.auth.token.lookup_self())
        return int(t.cast("dict[str, t.Any]", answer)["data"]["ttl"]) or None

    # --- login ---------------------------------------------------------------------

    def _login(self, dead: _Login | None) -> _Login:
        state = self._state.get()
        login = state.login

        if login is not None and login is not dead:
            return login

        return state.flights.do("login", lambda: self._fly_login(state, dead))

    def _fly_login(self, state: _State, dead: _Login | None) -> _Login:
        login = state.login

        # Another flight may have landed between the look and the take-off.
        if login is not None and login is not dead:
            return login

        token = self._token

        if token is None or dead is not None:
            token = self._new_token()

        self._token = token
        state.login = _Login(token, self._client(token.value))
        return state.login

    def _new_token(self) -> Token:
        credential = self.method.credential()

        if self._refused is not None and self._refused[0] == credential:
            raise copy.copy(self._refused[1])

        try:
            return self.method.login(self._anonymous.get(), credential)
        except VaultLoginError as error:
            self._refused = credential, error
            raise

    def _login_anew(self, dead: _Login, denial: VaultPermissionError) -> _Login:
        credential = self.method.credential()

        # A token from config cannot be made anew; from a file it may be another by now.
        if credential == (dead.token.value,):
            # Without the "default" policy a living token may not look itself up.
            if dead.proven:
                raise denial

            raise VaultLoginError(
                f"Vault at {self.endpoint.address} does not accept the token"
                f" (asked for {denial.path!r}): it expired, was revoked, or is for"
                " another server or namespace. Check VAULT_TOKEN or the token file.",
                status=denial.status,
                path=denial.path,
                errors=denial.errors,
            )

        return self._login(dead)

    def _alive(self, login: _Login) -> bool:
        """Whether the token of a login is still good, asked once for all threads."""
        value = login.token.value
        verdict = self._verdict

        if verdict and verdict[0] == value and verdict[1] > time.monotonic():
            return verdict[2]

        if self._state.get().login is not login:
            return False

        return self._state.get().flights.do(
            "alive", lambda: self._fly_alive(login.client, value)
        )

    def _fly_alive(self, client: hvac.Client, value: str) -> bool:
        try:
            client.auth.token.lookup_self()
            alive = True
        except VaultPermissionError:
            alive = False

        self._verdict = value, time.monotonic() + _VERDICT_LIFE, alive
        return alive

    # --- per process -----------------------------------------------------------------

    def _new_state(self) -> _State:
        from .adapter import new_session

        return _State(new_session(self.endpoint.verify))

    def _client(self, token: str) -> hvac.Client:
        import hvac

        from .adapter import VaultAdapter

        endpoint = self.endpoint
        # An empty token, or hvac takes one from the environment or the home folder.
        return hvac.Client(
            url=endpoint.address,
            token=token,
            namespace=endpoint.namespace,
            session=self._state.get().session,
            adapter=t.cast(t.Any, VaultAdapter),
            timeouts=(endpoint.connect_timeout, endpoint.read_timeout),
            on_headers=self._on_headers,
        )

    def _on_headers(self, headers: cabc.Mapping[str, str]) -> None:
        now = time.monotonic()

        if self._clock is not None and now - self._clock[1] < 10:
            return

        try:
            date = email.utils.parsedate_to_datetime(headers["Date"])
        except (KeyError, ValueError):
            return

        self._clock = date.timestamp(), now
