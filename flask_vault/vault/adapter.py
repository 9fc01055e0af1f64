"""What every request to the server goes through. Imports hvac, so import it late."""

from __future__ import annotations

import collections
import collections.abc as cabc
import threading
import time
import typing as t

import hvac.adapters
import requests
import requests.adapters
import urllib3

from ..errors import VaultError
from ..errors import VaultRateLimitedError
from ..errors import VaultTLSError
from ..errors import VaultUnavailableError
from ..observing import Observers
from .answers import Json
from .answers import json_object
from .answers import no_answer
from .answers import refusal
from .endpoint import Endpoint
from .endpoint import Route

#: Most connections of one process; more threads wait for one.
POOL_SIZE: t.Final = 8

_SAFE_METHODS: t.Final = frozenset({"get", "head", "list"})


class _Turns:
    """Lets so many threads in at a time, and the others in the order they came.

    urllib3's own queue of connections lets a thread that is running take back what it
    has just given, and the others starve.
    """

    def __init__(self, number: int) -> None:
        self._lock = threading.Lock()
        self._free = number
        self._waiting: collections.deque[threading.Lock] = collections.deque()

    def __enter__(self) -> None:
        with self._lock:
            if self._free:
                self._free -= 1
                return

            gate = threading.Lock()
            gate.acquire()
            self._waiting.append(gate)

        try:
            gate.acquire()
        except BaseException:
            self._leave(gate)
            raise

    def __exit__(self, *exc_info: object) -> None:
        self._pass_on()

    def _leave(self, gate: threading.Lock) -> None:
        """Give up waiting, as at Ctrl-C or a worker's timeout."""
        with self._lock:
            if gate in self._waiting:
                self._waiting.remove(gate)
                return

        self._pass_on()

    def _pass_on(self) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._free += 1


class _Pool(requests.adapters.HTTPAdapter):
    """Connections that may expect another name in the server's certificate."""

    def __init__(self, server_name: str | None) -> None:
        self._server_name = server_name
        self._turns = _Turns(POOL_SIZE)
        super().__init__(pool_connections=8, pool_maxsize=POOL_SIZE, pool_block=True)

    def send(self, *args: t.Any, **kwargs: t.Any) -> requests.Response:
        # The answer is read inside: that gives the connection back.
        with self._turns:
            response = super().send(*args, **kwargs)
            _ = response.content
            return response

    def init_poolmanager(self, *args: t.Any, **kwargs: t.Any) -> None:
        if self._server_name is not None:
            kwargs["server_hostname"] = self._server_name
            kwargs["assert_hostname"] = self._server_name

        super().init_poolmanager(*args, **kwargs)

    def proxy_manager_for(self, *args: t.Any, **kwargs: t.Any) -> t.Any:
        if self._server_name is not None:
            kwargs["server_hostname"] = self._server_name
            kwargs["assert_hostname"] = self._server_name

        return super().proxy_manager_for(*args, **kwargs)


def new_session(endpoint: Endpoint) -> requests.Session:
    """A session that takes nothing from the environment.

    ``HTTP_PROXY``, ``REQUESTS_CA_BUNDLE`` and ``~/.netrc`` are meant for other things,
    and a token must not go through a proxy that someone set for them.
    """
    session = requests.Session()
    session.trust_env = False
    session.verify = endpoint.verify
    session.cert = endpoint.client_cert

    if endpoint.proxy is not None:
        session.proxies = {"http": endpoint.proxy, "https": endpoint.proxy}

    if endpoint.verify is False:
        # It would be told at each request, and we have told it at the start.
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)

    session.mount("http://", _Pool(None))
    session.mount("https://", _Pool(endpoint.server_name))
    return session


# Generic in the published stubs only.
if t.TYPE_CHECKING:
    _Adapter = hvac.adapters.Adapter[Json]
else:
    _Adapter = hvac.adapters.Adapter


class VaultAdapter(_Adapter):
    """hvac's transport, with our exceptions and no surprises.

    It follows a redirect to a configured address only (hvac's own hands the token to
    any host that is named in one), takes only JSON objects for an answer, and raises
    only :exc:`VaultError`.

    :param route: the addresses to try.
    :param timeouts: seconds to connect, and seconds of silence while reading.
    :param spare: whether one more request than was asked for may be sent now.
    :param extra_headers: gives headers for a request to a URL.
    :param on_headers: called with method, URL and headers of each answer.
    :param observers: are told of each request to one address.
    """

    def __init__(
        self,
        *,
        route: Route,
        timeouts: tuple[float, float],
        spare: cabc.Callable[[], bool],
        extra_headers: cabc.Callable[[str], cabc.Mapping[str, str]],
        on_headers: cabc.Callable[[str, str, cabc.Mapping[str, str]], None],
        observers: Observers,
        **kwargs: t.Any,
    ) -> None:
        super().__init__(**kwargs)
        self._route = route
        self._timeouts = timeouts
        self._spare = spare
        self._extra_headers = extra_headers
        self._on_headers = on_headers
        self._observers = observers

    def get_login_token(self, response: Json) -> str:
        return str(response["auth"]["client_token"])

    def request(
        self,
        method: str,
        url: str,
        headers: cabc.Mapping[str, str] | None = None,
        raise_exception: bool = True,
        **kwargs: t.Any,
    ) -> Json:
        """Send one request, to the first address that takes it.

        :param raise_exception: ``False`` returns the body of an error answer, as
            ``sys/health`` needs.
        :return: the JSON object of the answer, empty for 204.
        """
        sent = {
            "X-Vault-Request": "true",
            **self._extra_headers(url),
            **(headers or {}),
        }

        if self.token:
            sent["X-Vault-Token"] = self.token

        if self.namespace:
            sent["X-Vault-Namespace"] = self.namespace

        if wrap_ttl := kwargs.pop("wrap_ttl", None):
            sent["X-Vault-Wrap-TTL"] = str(wrap_ttl)

        left = self._route.in_order()
        failure: VaultError | None = None

        while left:
            address = left.pop(0)

            # Another address is another request. When none works, asking all of them
            # each time would make an outage worse.
            if failure is not None and not self._spare():
                # The next request begins where this one stopped.
                self._route.keep(address)
                break

            began = time.monotonic()
            answer, leader = self._send(
                method, address, url, sent, raise_exception, kwargs
            )
            self._observers.requested(method, url, began, answer)

            # A refusal is an answer, too: this server works.
            if not isinstance(answer, VaultUnavailableError | VaultTLSError):
                self._route.keep(address)

            if not isinstance(answer, VaultError):
                return answer

            # What the first one said is told: it is the one that usually serves.
            failure = failure or answer

            # A standby says that it did nothing, and who does. When it did something
            # all the same, check-and-set makes a second write harmless.
            if leader in left:
                left.remove(leader)
                left.insert(0, leader)
            elif not _may_go_elsewhere(answer, method, url):
                failure = answer
                break

        raise t.cast(VaultError, failure)

    def _send(
        self,
        method: str,
        address: str,
        url: str,
        headers: dict[str, str],
        raise_exception: bool,
        kwargs: dict[str, t.Any],
    ) -> tuple[Json | VaultError, str]:
        """Ask one address.

        :return: the body, or what went wrong; and the configured address to which a
            redirect leads, else an empty text.
        """
        session = self.session
        try:
            # Not session.request(): its redirects, cookies and merging of settings are
            # of no use here, and a fifth of the cost.
            request = requests.Request(
                method, self.urljoin(address, url), headers=headers, **kwargs
            ).prepare()
            response = session.get_adapter(str(request.url)).send(
                request,
                timeout=self._timeouts,
                verify=t.cast("bool | str", session.verify),
                cert=session.cert,
                proxies=session.proxies,
            )
        except Exception as error:
            # Whatever it is that the layers below raise may hold the token.
            # Returned, not raised: an exception that is raised here has a context, and
            # that has the token in its frames.
            return no_answer(error, address), ""

        self._on_headers(method, url, response.headers)
        body = json_object(response)

        if body is not None and (response.status_code < 300 or not raise_exception):
            return body, ""

        leader = self._route.find(response.headers.get("Location", ""))
        path = url.strip("/").removeprefix("v1/")
        return refusal(response, path, address, body), leader or ""


def _may_go_elsewhere(failure: VaultError, method: str, url: str) -> bool:
    """Whether another address may be asked after this failure.

    Not when the request may have been carried out and must not be twice, and not to get
    around a limit of the rate.
    """
    if not isinstance(failure, VaultUnavailableError):
        return False

    if isinstance(failure, VaultRateLimitedError):
        return False

    # A token of a login whose answer was lost is used by nobody, and ends by itself.
    is_login = url.startswith("/v1/auth/") and "/login" in url
    return not failure.maybe_done or is_login or method.lower() in _SAFE_METHODS
