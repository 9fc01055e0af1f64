"""Who we are to the server: a token, kept alive, made anew before or when it dies."""

from __future__ import annotations

import atexit
import collections.abc as cabc
import contextlib
import copy
import logging
import math
import os
import threading
import time
import typing as t

from ..errors import SecretNotFoundError
from ..errors import VaultConfigError
from ..errors import VaultError
from ..errors import VaultLoginError
from ..errors import VaultPermissionError
from ..errors import VaultResponseError
from ..errors import VaultTLSError
from ..errors import VaultUnavailableError
from ..observing import Observers
from .auth import Credential
from .auth import LoginMethod
from .endpoint import Endpoint
from .endpoint import Route
from .process import PerProcess
from .process import SingleFlight
from .tokens import Plan
from .tokens import Token

if t.TYPE_CHECKING:
    import hvac
    import requests

T = t.TypeVar("T")

#: Seconds for which the answer to "is this token alive?" is believed. A token that dies
#: meanwhile is taken for one that is denied, and as long.
_VERDICT_LIFE: t.Final = 2.0

#: Seconds for which a path that was denied to a new token starts no other login.
_DENIAL_LIFE: t.Final = 60.0
_MOST_DENIALS: t.Final = 1000

#: Seconds between two looks at the credential of a token that was given to us: its file
#: may hold another by now.
_FOLLOW_EVERY: t.Final = 1.0

_log = logging.getLogger("flask_vault")


class Headers(t.Protocol):
    """What is said and heard in the headers of requests."""

    def headers(self, url: str) -> cabc.Mapping[str, str]: ...

    def take(self, method: str, url: str, headers: cabc.Mapping[str, str]) -> None: ...

    def ahead(self) -> cabc.Mapping[str, str] | None: ...


class _Login:
    """A token with a client that sends it."""

    def __init__(self, token: Token, client: hvac.Client, plan: Plan) -> None:
        self.token = token
        self.client = client
        self.plan = plan
        #: The server has done something for this token.
        self.proven = False
        self.uses_left = math.inf if token.uses is None else token.uses
        self.made = self.looked_at = time.monotonic()


class _State:
    """What must not cross a fork."""

    def __init__(self, http: requests.Session, route: Route) -> None:
        self.http = http
        self.route = route
        self.flights = SingleFlight()
        self.lock = threading.Lock()
        self.upkeep = threading.Lock()
        self.login: _Login | None = None
        self.anonymous: hvac.Client | None = None


class Session:
    """Runs operations with a token that is alive.

    The token crosses a fork: a child goes on with its parent's. Nothing else does.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        method: LoginMethod,
        wire: Headers,
        spare: cabc.Callable[[], bool],
        observers: Observers,
        *,
        revoke_on_exit: bool = False,
    ) -> None:
        self._endpoint = endpoint
        self._method = method
        self._wire = wire
        self._spare = spare
        self._observers = observers
        self._revoke_on_exit = revoke_on_exit
        self._state: PerProcess[_State] = PerProcess(self._new_state)
        self.token: Token | None = None
        self._refused: tuple[Credential, VaultLoginError] | None = None
        self._verdict: tuple[str, float, bool] | None = None
        self._denials: dict[tuple[str, str | None], float] = {}
        self._made_here: tuple[int, str] | None = None
        #: Monotonic time of the last answer that only the active node gives.
        self.fresh_at: float | None = None

    def run(self, operation: cabc.Callable[[hvac.Client], T]) -> T:
        """Run an operation; after a 403 that a dead token explains, once more.

        While a request was held up, the token that took over from its own may have died
        as well. So only one that was made for it settles what a 403 means.
        """
        login = self._current()
        asked = math.inf

        while True:
            try:
                result = operation(login.client)
            except VaultPermissionError as error:
                if self._is_denial(login, error):
                    raise

                if login.made >= asked:
                    self._remember(login, error)
                    raise

                denial = error
            else:
                login.proven = True
                return result

            asked = time.monotonic()
            login = self._anew(login, denial)

    def forget_refusal(self) -> None:
        """Let a credential that was refused be sent once more."""
        self._refused = None

    def rootless(self) -> hvac.Client:
        """A client without token and namespace, for what no namespace answers."""
        return self._client("", namespace=None)

    def anonymous(self) -> hvac.Client:
        """A client without a token."""
        state = self._state.get()

        if state.anonymous is None:
            state.anonymous = self._client("", self._endpoint.namespace)

        return state.anonymous

    def login(self) -> None:
        """Log in, unless that was done before."""
        self._login(None)

    def keep_alive(self) -> float:
        """Take the next step in the token's life, when it is due.

        :return: seconds until the one after it.
        """
        login = self._login(None)

        # A look costs a use of a token that has few of them.
        if login.uses_left is math.inf:
            login = self._current()

        return max(0.0, login.plan.at - time.monotonic())

    def prove_fresh(self) -> None:
        """Have the active node answer.

        A token that cannot be renewed (a batch token, the root token) is told so by the
        standby itself (measured). So OpenBao is asked for a state that is yet to come;
        other servers, whose standbys pass everything on, to renew the token. Whatever
        the active node says of the token, it is there.

        :raises VaultUnavailableError: when it did not answer.
        """
        adapter = self._current().client.adapter
        ahead = self._wire.ahead()

        # Not hvac's own calls: a token that may not do it is no failure here.
        try:
            if ahead is None:
                adapter.request("post", "/v1/auth/token/renew-self")
            else:
                adapter.request("get", "/v1/auth/token/lookup-self", headers=ahead)
        except (VaultUnavailableError, VaultTLSError):
            raise
        except VaultError:
            pass

        self.fresh_at = time.monotonic()

    # --- the token's life ------------------------------------------------------------

    def _current(self) -> _Login:
        login = self._login(None)
        now = time.monotonic()

        if login.token.expires_at <= now and self._method.makes_tokens:
            return self._login(login)

        if login.uses_left is not math.inf:
            login = self._with_a_use_left(login)

        # What has never worked is not asked about.
        if login.plan.at <= now and (login.proven or login.token.ours):
            return self._keep_alive(login)

        if not self._method.makes_tokens and now - login.looked_at > _FOLLOW_EVERY:
            return self._follow(login)

        return login

    def _with_a_use_left(self, login: _Login) -> _Login:
        with self._state.get().lock:
            login.uses_left -= 1
            left = login.uses_left

        if left >= 0 or not self._method.makes_tokens:
            return login

        return self._with_a_use_left(self._login(login))

    def _keep_alive(self, login: _Login) -> _Login:
        """Take the next step in the token's life, in one thread; the others go on."""
        upkeep = self._state.get().upkeep

        if not upkeep.acquire(blocking=False):
            return login

        try:
            # Another thread may have taken it between the look and here.
            if login.plan.at > time.monotonic():
                return login

            return self._step(login)
        except (VaultError, OSError) as error:
            # The token lives, so the caller's operation goes on with it.
            login.plan = login.plan.postponed(login.token)
            _log.warning("The Vault token could not be kept alive yet: %s", error)
            return login
        finally:
            upkeep.release()

    def _step(self, login: _Login) -> _Login:
        began = time.monotonic()
        can_login = self._method.makes_tokens

        if login.plan.step == "replace":
            return self._login(login)

        try:
            if login.plan.step == "renew":
                asked = None if login.token.lease is None else int(login.token.lease)
                answer = login.client.auth.token.renew_self(
                    t.cast("str", None if asked is None else f"{asked}s")
                )
                token = login.token.renewed(t.cast("dict[str, t.Any]", answer), began)
                self.fresh_at = time.monotonic()
            else:
                answer = login.client.auth.token.lookup_self()
                token = login.token.inspected(t.cast("dict[str, t.Any]", answer), began)
        except (VaultPermissionError, VaultResponseError):
            # It may not be renewed, or not by itself. It lives on to its end.
            if can_login:
                return self._login(login)

            login.plan = Plan(None, math.inf)
            return login

        self.token = login.token = token
        login.plan = Plan.of(token, can_login)

        if token.ttl is not None and login.plan.step is None:
            _log.warning(
                "The Vault token ends in %.0f s and cannot be renewed: replace it"
                " before, in VAULT_TOKEN or the token file.",
                token.ttl,
            )

        return login

    def _follow(self, login: _Login) -> _Login:
        login.looked_at = time.monotonic()

        with contextlib.suppress(VaultConfigError):
            if self._method.credential() != (login.token.value,):
                return self._login(login)

        return login

    # --- logins ----------------------------------------------------------------------

    def _login(self, instead_of: _Login | None) -> _Login:
        state = self._state.get()
        login = state.login

        if login is not None and login is not instead_of:
            return login

        return state.flights.do("login", lambda: self._fly(state, instead_of))

    def _fly(self, state: _State, instead_of: _Login | None) -> _Login:
        login = state.login

        # Another flight may have landed between the look and the take-off.
        if login is not None and login is not instead_of:
            return login

        token = self.token

        if token is None or instead_of is not None:
            token = self._new_token()

        self.token = token
        state.login = _Login(
            token,
            self._client(token.value, self._endpoint.namespace),
            Plan.of(token, self._method.makes_tokens),
        )
        return state.login

    def _new_token(self) -> Token:
        credential = self._method.credential()

        if self._refused is not None and self._refused[0] == credential:
            raise copy.copy(self._refused[1])

        try:
            with self._observers.span("login", method=self._method.name):
                token = self._method.login(self.anonymous(), credential)
        except VaultLoginError as error:
            self._refused = credential, error
            raise

        if self._method.makes_tokens:
            self.fresh_at = time.monotonic()

        if self._revoke_on_exit and token.ours:
            if self._made_here is None or self._made_here[0] != os.getpid():
                atexit.register(self._revoke, os.getpid())

            self._made_here = os.getpid(), token.value

        return token

    def _anew(self, dead: _Login, denial: VaultPermissionError) -> _Login:
        # A token that was given to us cannot be made anew; by now it may be another.
        if not self._method.makes_tokens:
            if self._method.credential() == (dead.token.value,):
                raise VaultLoginError(
                    f"Vault at {self._endpoint.shown} does not accept the token: it is"
                    " mistyped, expired, was revoked, or is for another server or"
                    " namespace. Check VAULT_TOKEN or the token file.",
                    status=denial.status,
                    path=denial.path,
                    errors=denial.errors,
                )

        return self._login(dead)

    # --- 403: dead, or denied? -------------------------------------------------------

    def _is_denial(self, login: _Login, error: VaultPermissionError) -> bool:
        if self._method.name == "none":
            return True

        key = login.token.value, error.path
        denied_before = self._denials.get(key, 0.0) > time.monotonic()

        # A verdict holds for what was denied before it. Another path is another
        # question: the token may have died since.
        if self._alive(login, error, believe=denied_before):
            self._remember(login, error)
            return True

        # Nothing tells that the token lives, and a new one was denied the same.
        return denied_before

    def _remember(self, login: _Login, error: VaultPermissionError) -> None:
        if len(self._denials) >= _MOST_DENIALS:
            self._denials.clear()

        key = login.token.value, error.path
        self._denials[key] = time.monotonic() + _DENIAL_LIFE

    def _alive(
        self, login: _Login, denial: VaultPermissionError, *, believe: bool
    ) -> bool:
        """Whether the token of a login is still good, asked once for all threads.

        :param believe: take an answer that is not older than a moment.
        """
        value = login.token.value
        verdict = self._verdict
        state = self._state.get()

        if verdict and verdict[0] == value and verdict[1] > time.monotonic():
            # The dead stay dead.
            if believe or not verdict[2]:
                return verdict[2]

        if state.login is not login:
            return False

        return state.flights.do(
            "alive", lambda: self._ask_alive(login.client, value, denial)
        )

    def _ask_alive(
        self, client: hvac.Client, value: str, denial: VaultPermissionError
    ) -> bool:
        """Ask what any living token may ask, and no dead one.

        Without the policy "default" a token may not look itself up. Which mount a path
        is in is told to all that may do anything there. When it may not do that either,
        the words of the denial are all that is left: a policy's come as a list of
        errors (seen on OpenBao 2.7.2).
        """
        alive = any("error occurred" in said for said in denial.errors)

        for question in (
            "auth/token/lookup-self",
            f"sys/internal/ui/mounts/{denial.path or ''}",
        ):
            try:
                client.read(question)
            except (VaultPermissionError, SecretNotFoundError):
                continue

            alive = True
            break

        self._verdict = value, time.monotonic() + _VERDICT_LIFE, alive
        return alive

    # --- per process -----------------------------------------------------------------

    def _new_state(self) -> _State:
        from .adapter import new_session

        return _State(new_session(self._endpoint), Route(self._endpoint.addresses))

    def _client(self, token: str, namespace: str | None) -> hvac.Client:
        import hvac

        from .adapter import VaultAdapter

        endpoint, state = self._endpoint, self._state.get()
        # An empty token, or hvac takes one from the environment or the home folder.
        return hvac.Client(
            url=endpoint.addresses[0],
            token=token,
            namespace=namespace,
            session=state.http,
            adapter=t.cast(t.Any, VaultAdapter),
            route=state.route,
            timeouts=(endpoint.connect_timeout, endpoint.read_timeout),
            spare=self._spare,
            extra_headers=self._wire.headers,
            on_headers=self._wire.take,
            observers=self._observers,
        )

    def _revoke(self, pid: int) -> None:
        """Revoke the token that this process made, at its exit."""
        made = self._made_here

        if made is None or made[0] != os.getpid() or pid != os.getpid():
            return

        with contextlib.suppress(VaultError):
            self._client(made[1], self._endpoint.namespace).auth.token.revoke_self()
