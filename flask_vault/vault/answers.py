"""What an answer, or none, means: HTTP to exceptions."""

from __future__ import annotations

import collections.abc as cabc
import ssl
import typing as t

import requests

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

#: After these the request was not carried out: the server, or what stands before it,
#: says that it is not ready. After another 5xx nobody knows.
_NOT_DONE: t.Final = frozenset({412, 429, 472, 473, 501, 503})


def json_object(response: requests.Response) -> Json | None:
    """The body when it is a JSON object; an empty one for 204."""
    if response.status_code == 204:
        return {}

    try:
        body = response.json()
    except (ValueError, RecursionError):
        return None

    return body if isinstance(body, dict) else None


def refusal(
    response: requests.Response, path: str, address: str, body: Json | None
) -> VaultError:
    """The exception for an answer that is not the one that was hoped for.

    :param path: the API path, for the message.
    :param body: as :func:`json_object` gives it.
    """
    status = response.status_code
    told = (body or {}).get("errors")
    errors = [str(e) for e in told] if isinstance(told, list) else []
    said = " ".join("; ".join(errors).split())
    what: dict[str, t.Any] = {"status": status, "path": path, "errors": errors}
    quoted = f" ({status}: {said})" if said else f" ({status})"

    unavailable = _unavailable(status, address, said, quoted, what)

    if unavailable is not None:
        unavailable.maybe_done = status not in _NOT_DONE and status != 400
        unavailable.retry_after = _retry_after(response)
        return unavailable

    if body is None and not 300 <= status < 400:
        return VaultResponseError(
            f"{address} does not answer like Vault{_guess(response)}: check"
            " VAULT_ADDR.",
            **what,
        )

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

    if 300 <= status < 400:
        return VaultResponseError(
            f"Vault at {address} answers with a redirect ({status}), which is not"
            " followed: the token goes to no other host. Set VAULT_ADDR to the address"
            " of the server itself.",
            **what,
        )

    return VaultResponseError(f"Vault refuses {path!r}{quoted}.", **what)


def _unavailable(
    status: int, address: str, said: str, quoted: str, what: dict[str, t.Any]
) -> VaultUnavailableError | None:
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

    # A standby names its leader, which may be the one that has just died.
    if status == 307:
        return VaultUnavailableError(
            f"Vault at {address} is a standby and answers with a redirect (307), which"
            " is not followed: the token goes to no address that is not configured, and"
            " to none that does not answer. Add the addresses of all servers to"
            " VAULT_ADDR.",
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

    return None


def _retry_after(response: requests.Response) -> float | None:
    try:
        return max(0.0, float(response.headers["Retry-After"]))
    except (KeyError, ValueError):
        # A date is allowed, too, and would need both clocks to agree.
        return None


def _guess(response: requests.Response) -> str:
    start = response.content[:200].lstrip().lower()

    if b"http request to an https server" in start:
        return " (the server speaks https, the address says http)"

    if start.startswith((b"<!doctype", b"<html", b"<")):
        return f" ({response.status_code}, an HTML page)"

    return f" ({response.status_code}, not JSON)"


def no_answer(error: Exception, address: str) -> VaultError:
    """The exception for a request that got no answer, without the original's text.

    Only some of requests' messages are safe: ``InvalidHeader`` prints the token.
    """
    if isinstance(error, requests.exceptions.SSLError):
        return VaultTLSError(_tls_sentence(error, address))

    if isinstance(error, requests.exceptions.ProxyError):
        proxied = VaultConnectionError(
            f"Vault at {address} cannot be reached through the proxy in VAULT_PROXY:"
            " check that the proxy runs and lets the address through."
        )
        proxied.maybe_done = not _never_connected(error)
        return proxied

    if isinstance(error, RecursionError):
        return VaultConfigError(
            "gevent was patched in after the modules for TLS were imported, and no TLS"
            " works then: call gevent.monkey.patch_all() in gunicorn.conf.py, or start"
            " gunicorn without --preload."
        )

    if isinstance(
        error,
        requests.exceptions.InvalidURL
        | requests.exceptions.MissingSchema
        | requests.exceptions.InvalidSchema,
    ):
        return VaultConfigError(
            f"VAULT_ADDR {address!r} is no address: write it as"
            " 'https://vault.example.com:8200'."
        )

    if isinstance(error, requests.exceptions.ConnectTimeout):
        failure = VaultConnectionError(
            f"Vault at {address} cannot be reached in time: check VAULT_ADDR and the"
            " network between."
        )
    elif isinstance(error, requests.exceptions.Timeout):
        failure = VaultConnectionError(
            f"Vault at {address} did not answer in time: check VAULT_ADDR and the"
            " network between."
        )
    elif isinstance(error, requests.exceptions.ConnectionError):
        failure = VaultConnectionError(
            f"Vault at {address} cannot be reached{_reason(error)}: check VAULT_ADDR"
            " and that the server runs."
        )
    else:
        failure = VaultConnectionError(
            f"The exchange with Vault at {address} broke off ({type(error).__name__})."
        )

    failure.maybe_done = not _never_connected(error)
    return failure


def _never_connected(error: BaseException) -> bool:
    """Whether not a byte can have reached the server."""
    names = {"NewConnectionError", "NameResolutionError", "ConnectTimeoutError"}
    return any(
        type(cause).__name__ in names or isinstance(cause, ConnectionRefusedError)
        for cause in _chain(error)
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


def _other_name(address: str, said: str) -> str:
    return (
        f"The TLS certificate of Vault at {address} is for another name ({said}): write"
        " the name that is in it into VAULT_ADDR, or into VAULT_TLS_SERVER_NAME."
    )


def _tls_sentence(error: BaseException, address: str) -> str:
    """What is wrong with the certificates, and which of the keys is the cure."""
    trusted = f"The TLS certificate of Vault at {address} is not trusted"

    for cause in _chain(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            said = cause.verify_message.rstrip(".")

            if "mismatch" in said:
                return _other_name(address, said)

            if "expired" in said or "not yet valid" in said:
                return (
                    f"{trusted} ({said}): renew it on the server, or set this host's"
                    " clock right."
                )

            return (
                f"{trusted} ({said}): set VAULT_CACERT to the file of the authority"
                " that signed it."
            )

        # urllib3's own word, for a name that is asked for in VAULT_TLS_SERVER_NAME.
        if type(cause).__name__ == "CertificateError":
            return _other_name(address, "hostname mismatch")

        if not isinstance(cause, ssl.SSLError):
            continue

        reason = cause.reason or ""

        if reason == "WRONG_VERSION_NUMBER":
            return (
                f"Vault at {address} does not speak TLS (is the address meant to be"
                " http?): correct VAULT_ADDR."
            )

        if "CERTIFICATE_REQUIRED" in reason or "ALERT_BAD_CERTIFICATE" in reason:
            return (
                f"Vault at {address} wants a client certificate: set VAULT_CLIENT_CERT"
                " and VAULT_CLIENT_KEY to one that it knows."
            )

    return (
        f"{trusted}: set VAULT_CACERT to the file of the authority that signed it, and"
        " check that the files in VAULT_CACERT, VAULT_CLIENT_CERT and VAULT_CLIENT_KEY"
        " are what they should be."
    )


def _reason(error: BaseException) -> str:
    for cause in _chain(error):
        if isinstance(cause, ConnectionRefusedError):
            return " (connection refused)"

        if isinstance(cause, ConnectionResetError):
            return " (connection reset)"

        if "NameResolutionError" in type(cause).__name__:
            return " (the name does not resolve)"

    return ""
