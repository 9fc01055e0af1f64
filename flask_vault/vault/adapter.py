"""What every request to the server goes through. Imports hvac, so import it late."""

from __future__ import annotations

import collections.abc as cabc
import ssl
import typing as t

import hvac.adapters
import requests
import requests.adapters

from ..errors import SecretNotFoundError
from ..errors import VaultConfigError
from ..errors import VaultConnectionError
from ..errors import VaultError
from ..errors import VaultNotInitializedError
from ..errors import VaultPermissionError
from ..errors import VaultRateLimitedError
from ..errors import VaultResponseError
from ..errors import VaultSealedError
from ..errors import VaultTLSError
from ..errors import VaultUnavailableError

Json = dict[str, t.Any]

#: Most connections of one process; more threads wait for one.
POOL_SIZE: t.Final = 8


def new_session(verify: bool | str) -> requests.Session:
    """A session that takes nothing from the environment.

    ``HTTP_PROXY``, ``REQUESTS_CA_BUNDLE`` and ``~/.netrc`` are meant for other things,
    and a token must not go through a proxy that someone set for them.
    """
    session = requests.Session()
    session.trust_env = False
    session.verify = verify
    pool = requests.adapters.HTTPAdapter(
        pool_connections=1, pool_maxsize=POOL_SIZE, pool_block=True
    )
    session.mount("http://", pool)
    session.mount("https://", pool)
    return session


# Generic in the published stubs only.
if t.TYPE_CHECKING:
    _Adapter = hvac.adapters.Adapter[Json]
else:
    _Adapter = hvac.adapters.Adapter


class VaultAdapter(_Adapter):
    """hvac's transport, with our exceptions and no surprises.

    It follows no redirect (hvac's own hands the token to any host that is named in
    one), takes only JSON objects for an answer, and raises only :exc:`VaultError`.

    :param timeouts: seconds to connect, and seconds of silence while reading.
    :param on_headers: called with the headers of each answer.
    """

    def __init__(
        self,
        *,
        timeouts: tuple[float, float],
        on_headers: cabc.Callable[[cabc.Mapping[str, str]], None],
        **kwargs: t.Any,
    ) -> None:
        super().__init__(**kwargs)
        self._timeouts = timeouts
        self._on_headers = on_headers

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
        """Send one request.

        :param raise_exception: ``False`` returns the body of an error answer, as
            ``sys/health`` needs.
        :return: the JSON object of the answer, empty for 204.
        """
        path = url.strip("/").removeprefix("v1/")
        sent = {"X-Vault-Request": "true", **(headers or {})}

        if self.token:
            sent["X-Vault-Token"] = self.token

        if self.namespace:
            sent["X-Vault-Namespace"] = self.namespace

        if wrap_ttl := kwargs.pop("wrap_ttl", None):
            sent["X-Vault-Wrap-TTL"] = str(wrap_ttl)

        try:
            response = self.session.request(
                method=method,
                url=self.urljoin(self.base_uri, url),
                headers=sent,
                allow_redirects=False,
                timeout=self._timeouts,
                **kwargs,
            )
        except (requests.RequestException, OSError) as error:
            failure = _no_answer(error, self.base_uri)
        else:
            self._on_headers(response.headers)
            body = _json_object(response)

            if body is not None and (response.status_code < 300 or not raise_exception):
                return body

            failure = _refusal(response, path, self.base_uri, body)

        # Outside of "except", so that the failure has no context with a token in it.
        raise failure


def _json_object(response: requests.Response) -> Json | None:
    if response.status_code == 204:
        return {}

    try:
        body = response.json()
    except ValueError:
        return None

    return body if isinstance(body, dict) else None


def _refusal(
    response: requests.Response, path: str, address: str, body: Json | None
) -> VaultError:
    status = response.status_code
    errors = [str(e) for e in (body or {}).get("errors") or []]
    said = " ".join("; ".join(errors).split())
    what: dict[str, t.Any] = {"status": status, "path": path, "errors": errors}
    quoted = f" ({status}: {said})" if said else f" ({status})"

    if status == 403:
        return VaultPermissionError(
            f"Vault denies access to {path!r}{quoted}: the token's policy must allow"
            " it.",
            **what,
        )

    if status == 404:
        missing = SecretNotFoundError(
            f"Vault has nothing at {path!r}{quoted}: check mount and path.", **what
        )
        data = (body or {}).get("data")
        missing.metadata = data.get("metadata") if isinstance(data, dict) else None
        return missing

    if status == 429:
        return VaultRateLimitedError(
            f"Vault at {address} limits the rate of requests{quoted}: try again later,"
            " or raise the quota.",
            **what,
        )

    if status == 501 or "not initialized" in said or "not yet initialized" in said:
        return VaultNotInitializedError(
            f"Vault at {address} is not initialized{quoted}: run 'bao operator init' or"
            " 'vault operator init'.",
            **what,
        )

    if status == 503 and "sealed" in said.lower():
        return VaultSealedError(
            f"Vault at {address} is sealed{quoted}: unseal it with 'bao operator"
            " unseal' or 'vault operator unseal'.",
            **what,
        )

    # A new KV v2 mount says 400 while it prepares itself.
    if (
        status in {408, 412, 472, 473}
        or status >= 500
        or "upgrading from" in said.lower()
    ):
        return VaultUnavailableError(
            f"Vault at {address} cannot answer now{quoted}.", **what
        )

    if 300 <= status < 400:
        return VaultResponseError(
            f"Vault at {address} answers with a redirect ({status}), which is not"
            " followed: the token goes to no other host. Set VAULT_ADDR to the address"
            " of the server itself.",
            **what,
        )

    if body is None:
        return VaultResponseError(
            f"{address} does not answer like Vault{_guess(response)}: check"
            " VAULT_ADDR.",
            **what,
        )

    return VaultResponseError(f"Vault refuses {path!r}{quoted}.", **what)


def _guess(response: requests.Response) -> str:
    start = response.content[:200].lstrip().lower()

    if b"http request to an https server" in start:
        return " (the server speaks https, the address says http)"

    if start.startswith((b"<!doctype", b"<html", b"<")):
        return f" ({response.status_code}, an HTML page)"

    return f" ({response.status_code}, not JSON)"


def _no_answer(error: Exception, address: str) -> VaultError:
    """Name what went wrong without the text of the original.

    Only some of requests' messages are safe: ``InvalidHeader`` prints the token.
    """
    if isinstance(error, requests.exceptions.SSLError):
        return VaultTLSError(
            f"The TLS certificate of Vault at {address} is not trusted"
            f"{_tls_reason(error)}: set VAULT_CACERT to the file of the authority that"
            " signed it."
        )

    if isinstance(error, requests.exceptions.Timeout):
        return VaultConnectionError(
            f"Vault at {address} did not answer in time: check VAULT_ADDR and the"
            " network between."
        )

    if isinstance(error, requests.exceptions.ConnectionError):
        return VaultConnectionError(
            f"Vault at {address} cannot be reached{_reason(error)}: check VAULT_ADDR"
            " and that the server runs."
        )

    if isinstance(error, requests.RequestException) and isinstance(
        error,
        requests.exceptions.InvalidURL
        | requests.exceptions.MissingSchema
        | requests.exceptions.InvalidSchema,
    ):
        return VaultConfigError(
            f"VAULT_ADDR {address!r} is no address: write it as"
            " 'https://vault.example.com:8200'."
        )

    return VaultConnectionError(
        f"The exchange with Vault at {address} broke off ({type(error).__name__})."
    )


def _chain(error: BaseException) -> cabc.Iterator[BaseException]:
    seen: set[int] = set()
    queue: list[object] = [error]

    while queue:
        item = queue.pop(0)

        if not isinstance(item, BaseException) or id(item) in seen:
            continue

        seen.add(id(item))
        yield item
        queue += [*item.args, getattr(item, "reason", None), item.__cause__]
        queue.append(item.__context__)


def _tls_reason(error: BaseException) -> str:
    for cause in _chain(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f" ({cause.verify_message})"

        if isinstance(cause, ssl.SSLError) and cause.reason == "WRONG_VERSION_NUMBER":
            return " (it does not speak TLS: is the address meant to be http?)"

    return ""


def _reason(error: BaseException) -> str:
    for cause in _chain(error):
        if isinstance(cause, ConnectionRefusedError):
            return " (connection refused)"

        if isinstance(cause, ConnectionResetError):
            return " (connection reset)"

        if "NameResolutionError" in type(cause).__name__:
            return " (the name does not resolve)"

    return ""
