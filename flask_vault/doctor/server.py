"""Checks of the server, which need no token."""

from __future__ import annotations

import collections.abc as cabc
import datetime
import ipaddress
import pathlib
import re
import socket
import ssl
import typing as t
import urllib.parse

from ..errors import VaultError
from ..errors import VaultTLSError
from ..vault.auth import parse_auth
from ..vault.endpoint import Endpoint
from ..vault.transport import Transport
from .case import Case
from .findings import Finding
from .findings import of_error

#: Days before its end at which a certificate should have been renewed.
_DAYS: t.Final = 14

#: Seconds between our clock and the server's from which on tokens with a time in them,
#: and certificates, are judged differently by the two.
_SKEW: t.Final = 10


def addresses(case: Case) -> cabc.Iterator[Finding]:
    settings = case.settings

    if not settings.enabled or not settings.addresses:
        yield Finding("address", "skip", "there is no address to ask")
        return

    failures: dict[str, VaultError] = {}

    for address in settings.addresses:
        try:
            case.health[address] = _health(case, address)
        except VaultError as error:
            failures[address] = error

    for address in settings.addresses:
        failure = failures.get(address)

        if failure is not None:
            check = "tls" if isinstance(failure, VaultTLSError) else "address"
            # As long as another one answers, the app is served.
            yield of_error(check, failure, "warn" if case.health else "fail")
        elif address.startswith("http:") and not _is_local(address):
            yield Finding(
                "address",
                "warn",
                f"{address} answers without TLS: token and secrets can be read on the"
                " way.",
                "Give the server a certificate, and VAULT_ADDR 'https'.",
            )
        else:
            yield Finding("address", "pass", f"{address} answers")


def _health(case: Case, address: str) -> dict[str, t.Any]:
    settings = case.settings
    pair = None

    if settings.client_cert is not None:
        pair = (settings.client_cert, settings.client_key or settings.client_cert)

    endpoint = Endpoint(
        (address,),
        verify=settings.verify,
        client_cert=pair,
        server_name=settings.server_name,
        proxy=settings.proxy,
        connect_timeout=settings.connect_timeout,
        read_timeout=settings.read_timeout,
    )
    return Transport(endpoint, parse_auth("none", None)).health()


def _is_local(address: str) -> bool:
    host = urllib.parse.urlsplit(address).hostname or ""

    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def tls(case: Case) -> cabc.Iterator[Finding]:
    settings = case.settings
    secure = [a for a in case.health if a.startswith("https:")]

    if secure and settings.skip_verify:
        yield Finding(
            "tls",
            "warn",
            "VAULT_SKIP_VERIFY is on: anybody on the network can pose as Vault.",
            "Set VAULT_CACERT to the file of the authority, and leave it out.",
        )

    for address in secure:
        if settings.proxy is not None:
            yield Finding("tls", "skip", f"{address} is asked through VAULT_PROXY")
            continue

        end = _end_of_server(address, settings.server_name, settings.connect_timeout)

        if end is None:
            yield Finding("tls", "skip", f"{address} did not show its certificate")
        else:
            what = f"the certificate of {address}"
            trusted = "not checked" if settings.skip_verify else "chain and name good"
            yield _of_end(case, what, end, trusted, "Renew it on the server.")

    if settings.client_cert is not None:
        certificate = _read(settings.client_cert)

        if certificate is None:
            yield Finding(
                "tls",
                "fail",
                "VAULT_CLIENT_CERT is no certificate in PEM.",
                "Set it to the file of the certificate that Vault knows.",
            )
        else:
            cure = "Have it renewed, and put the new one into VAULT_CLIENT_CERT."
            yield _of_end(case, "our own certificate", certificate, "in PEM", cure)


def _of_end(
    case: Case, what: str, end: datetime.datetime, good: str, cure: str
) -> Finding:
    left = (end - case.clock()).days

    if left < 0:
        return Finding("tls", "fail", f"{what} has expired.", cure)

    if left < _DAYS:
        return Finding("tls", "warn", f"{what} ends in {left} days.", cure)

    return Finding("tls", "pass", f"{what}: {good}, {left} days left")


def _end_of_server(
    address: str, server_name: str | None, timeout: float
) -> datetime.datetime | None:
    """When a server's certificate ends. It is looked at, and not relied on."""
    from cryptography import x509

    url = urllib.parse.urlsplit(address)
    host, port = url.hostname or "", url.port or 443
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE

    try:
        with (
            socket.create_connection((host, port), timeout) as plain,
            context.wrap_socket(plain, server_hostname=server_name or host) as secure,
        ):
            shown = secure.getpeercert(binary_form=True)
    except (OSError, ValueError):
        return None

    if shown is None:
        return None

    return x509.load_der_x509_certificate(shown).not_valid_after_utc


def _read(file: str) -> datetime.datetime | None:
    from cryptography import x509

    try:
        found = x509.load_pem_x509_certificate(pathlib.Path(file).read_bytes())
    except (OSError, ValueError):
        return None

    return found.not_valid_after_utc


def seal(case: Case) -> cabc.Iterator[Finding]:
    """Sealed or not, and what kind of server it is."""
    for address, said in case.health.items():
        if not said.get("initialized"):
            yield Finding(
                "seal",
                "fail",
                f"{address} is not initialized.",
                "Run 'bao operator init' or 'vault operator init', once.",
            )
        elif said.get("sealed"):
            yield Finding(
                "seal",
                "warn" if case.is_ready else "fail",
                f"{address} is sealed.",
                "Run 'bao operator unseal' or 'vault operator unseal'.",
            )
        else:
            place = "standby" if said.get("standby") else "active"
            yield Finding(
                "seal", "pass", f"{address} is unsealed, {_kind(said)}, {place}"
            )


def _kind(said: cabc.Mapping[str, t.Any]) -> str:
    version = str(said.get("version") or "of an unknown version")
    major = re.match(r"\d+", version)
    # OpenBao began with 2.0, and does not tell whether it is sold.
    ours = "enterprise" not in said and major is not None and int(major[0]) >= 2
    return f"{'OpenBao' if ours else 'Vault'} {version}"


def clock(case: Case) -> cabc.Iterator[Finding]:
    for address, said in case.health.items():
        told = said.get("server_time_utc")

        if not isinstance(told, int):
            continue

        ahead = round(case.clock().timestamp() - told)

        if abs(ahead) <= _SKEW:
            yield Finding("clock", "pass", f"the same as that of {address}")
        else:
            way = "ahead of" if ahead > 0 else "behind"
            yield Finding(
                "clock",
                "warn",
                f"this host's clock is {abs(ahead)} s {way} that of {address}: what has"
                " a time in it, such as a JWT, is judged differently.",
                "Let NTP set the clocks of this host and of the server.",
            )


def require(case: Case) -> str | None:
    """Why a check that needs a server cannot be made."""
    if not case.settings.enabled or not case.settings.addresses:
        return "there is no address to ask"

    if not case.health:
        return "no server answers"

    if not case.is_ready:
        return "no server is unsealed"

    return None
