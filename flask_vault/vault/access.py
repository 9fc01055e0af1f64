"""Who may do what on the server: policies, roles, and what our token is."""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import typing as t
from urllib.parse import quote

from ..errors import SecretNotFoundError
from ..errors import VaultPermissionError
from ..errors import VaultResponseError
from .documents import mapping
from .transport import Transport

_ALL: t.Final = frozenset({"create", "read", "update", "delete", "list"})


@dataclasses.dataclass(frozen=True)
class Wrapped:
    """A secret id in its wrapping.

    :param token: unwraps it, once.
    :param ttl: seconds that the wrapping lives.
    """

    token: str = dataclasses.field(repr=False)
    ttl: int


@dataclasses.dataclass(frozen=True)
class TokenFacts:
    """What the server says of our token.

    :param ttl: seconds that it lives; ``None`` is for ever.
    """

    policies: tuple[str, ...]
    ttl: int | None
    renewable: bool
    kind: str


class Access:
    """Reads and writes policies and AppRoles."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    # --- our own token ---------------------------------------------------------------

    def token(self) -> TokenFacts:
        """Look our own token up.

        :raises VaultPermissionError: without the policy ``default``.
        """
        answer = self._transport.call(lambda client: client.auth.token.lookup_self())
        data = mapping(t.cast("dict[str, t.Any]", answer).get("data"))
        names = {*(data.get("policies") or ()), *(data.get("identity_policies") or ())}
        ttl = data.get("ttl")
        return TokenFacts(
            tuple(sorted(map(str, names))),
            ttl if isinstance(ttl, int) and ttl > 0 else None,
            bool(data.get("renewable")),
            str(data.get("type") or "service"),
        )

    def capabilities(self, paths: cabc.Sequence[str]) -> dict[str, frozenset[str]]:
        """What our token may do at each path; ``root`` is spelled out.

        :raises VaultPermissionError: without the policy ``default``.
        """
        if not paths:
            return {}

        answer = self._transport.call(
            lambda client: client.write_data(
                "sys/capabilities-self", data={"paths": list(paths)}
            )
        )
        said = mapping(t.cast("dict[str, t.Any]", answer).get("data"))
        has = {path: frozenset(map(str, said.get(path) or ())) for path in paths}
        return {path: _ALL if "root" in names else names for path, names in has.items()}

    # --- policies --------------------------------------------------------------------

    def policy(self, name: str) -> str | None:
        """The text of a policy; ``None`` when there is none, or we may not see it."""
        try:
            answer = self._transport.call(
                lambda client: client.read(f"sys/policies/acl/{quote(name)}")
            )
        except (SecretNotFoundError, VaultPermissionError):
            return None

        found = mapping(t.cast("dict[str, t.Any]", answer).get("data")).get("policy")
        return found if isinstance(found, str) else None

    def write_policy(self, name: str, text: str) -> None:
        """Make or replace a policy.

        :raises VaultPermissionError: when the token may not.
        """
        self._transport.call(
            lambda client: client.write_data(
                f"sys/policies/acl/{quote(name)}", data={"policy": text}
            )
        )

    # --- AppRoles --------------------------------------------------------------------

    def write_role(
        self, mount: str, name: str, options: cabc.Mapping[str, object]
    ) -> None:
        """Make or change a role, and mount the method where it is missing.

        :param mount: of the AppRole method.
        :raises VaultPermissionError: when the token may not.
        """

        def write() -> None:
            self._transport.call(
                lambda client: client.write_data(
                    f"auth/{quote(mount)}/role/{quote(name)}", data=dict(options)
                )
            )

        try:
            write()
        except SecretNotFoundError:
            self._enable(mount)
            write()

    def role_id(self, mount: str, name: str) -> str:
        """The role's id, which is no secret."""
        answer = self._transport.call(
            lambda client: client.read(
                f"auth/{quote(mount)}/role/{quote(name)}/role-id"
            )
        )
        found = mapping(t.cast("dict[str, t.Any]", answer).get("data")).get("role_id")

        if not isinstance(found, str):
            raise VaultResponseError(f"The role {name!r} has no role id.")

        return found

    def wrapped_secret_id(self, mount: str, name: str, seconds: int) -> Wrapped:
        """Have the server make a secret id that this process never sees.

        :param seconds: that the wrapping lives.
        """
        answer = self._transport.call(
            lambda client: client.adapter.post(
                f"/v1/auth/{quote(mount)}/role/{quote(name)}/secret-id",
                wrap_ttl=f"{seconds}s",
            ),
            repeatable=False,
        )
        wrap = mapping(t.cast("dict[str, t.Any]", answer).get("wrap_info"))

        if not isinstance(wrap.get("token"), str):
            raise VaultResponseError(
                f"The secret id of the role {name!r} did not come wrapped, and is not"
                " shown: check what stands between us and Vault."
            )

        return Wrapped(wrap["token"], int(wrap.get("ttl") or seconds))

    def _enable(self, mount: str) -> None:
        try:
            self._transport.call(
                lambda client: client.write_data(
                    f"sys/auth/{quote(mount)}", data={"type": "approle"}
                )
            )
        except VaultResponseError as error:
            # Somebody else was as fast.
            if not any("already in use" in said for said in error.errors):
                raise
