"""The few calls that the test server needs of Vault's HTTP API, without hvac."""

from __future__ import annotations

import http.client
import json
import ssl
import typing as t
import urllib.parse

from ..errors import VaultConnectionError
from ..errors import VaultError


class Api:
    """Calls one server over a new connection each time. Knows no proxies, retries
    and redirects: the server is on loopback.

    :param address: such as ``http://127.0.0.1:8200``.
    :param ca_file: the certificate authority to trust, for ``https``.
    :param timeout: for connecting and for each read, in seconds.
    """

    def __init__(
        self, address: str, *, ca_file: str | None = None, timeout: float = 10.0
    ) -> None:
        self.address = address
        self._url = urllib.parse.urlsplit(address)
        self._ca_file = ca_file
        self._timeout = timeout

    def _connect(self) -> http.client.HTTPConnection:
        host, port = self._url.hostname or "127.0.0.1", self._url.port

        if self._url.scheme == "https":
            return http.client.HTTPSConnection(
                host,
                port,
                timeout=self._timeout,
                context=ssl.create_default_context(cafile=self._ca_file),
            )

        return http.client.HTTPConnection(host, port, timeout=self._timeout)

    def ask(
        self, method: str, path: str, body: object = None, *, token: str | None = None
    ) -> tuple[int, dict[str, t.Any]]:
        """Send one request.

        :return: the status code and the JSON object, empty when there is none.
        :raise VaultConnectionError: when no HTTP answer came.
        """
        connection = self._connect()

        try:
            connection.request(
                method,
                urllib.parse.quote(f"/v1/{path}", safe="/?=&"),
                None if body is None else json.dumps(body),
                {} if token is None else {"X-Vault-Token": token},
            )
            response = connection.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise VaultConnectionError(
                f"The server at {self.address} did not answer"
                f" ({type(error).__name__}). Is it running?"
            ) from error
        finally:
            connection.close()

        try:
            answer = json.loads(content or b"{}")
        except ValueError:
            answer = {}

        return response.status, answer if isinstance(answer, dict) else {}

    def call(
        self, method: str, path: str, body: object = None, *, token: str | None = None
    ) -> dict[str, t.Any]:
        """Send one request that has to succeed.

        :raise VaultError: when the server refuses it.
        """
        status, answer = self.ask(method, path, body, token=token)

        if status >= 400:
            errors = [str(error) for error in answer.get("errors") or ()]
            said = "; ".join(errors) or "no reason"
            raise VaultError(
                f"{method} {path} was refused with status {status}: {said}.",
                status=status,
                path=path,
                errors=errors,
            )

        return answer
