"""A secret id that came wrapped: checked, and unwrapped once."""

from __future__ import annotations

import typing as t

from ..errors import SecretNotFoundError
from ..errors import VaultLoginError
from ..errors import VaultPermissionError
from ..errors import VaultResponseError
from ..errors import VaultUnavailableError

if t.TYPE_CHECKING:
    import hvac


def unwrap_secret_id(
    client: hvac.Client, wrapping_token: str, mount: str, role_name: str | None
) -> str:
    """Take a secret id out of its wrapping.

    Where the wrapping was made is looked up first: somebody who took the secret id out
    could put another into a wrapping of his own.

    :param client: one without a token.
    :param mount: of the AppRole method.
    :param role_name: the role that it must be for, when that is known.
    :raises VaultLoginError: when it was used before, or was made by another path.
    """
    failure: VaultLoginError

    try:
        looked_up = client.adapter.post(
            "/v1/sys/wrapping/lookup", json={"token": wrapping_token}
        )
        made_at = str(t.cast("dict[str, t.Any]", looked_up)["data"]["creation_path"])

        if _is_secret_id_path(made_at, mount, role_name):
            answer = client.adapter.post(
                "/v1/sys/wrapping/unwrap",
                headers={"X-Vault-Token": wrapping_token},
            )
            return str(t.cast("dict[str, t.Any]", answer)["data"]["secret_id"])

        failure = VaultLoginError(
            f"The wrapping token was made by {made_at!r}, not by"
            f" 'auth/{mount}/role/{role_name or '*'}/secret-id': it is not used. Find"
            " out who made it."
        )
    except VaultUnavailableError as error:
        # The lookup may be repeated; who knows about the unwrapping.
        if not error.maybe_done or "unwrap" not in (error.path or "unwrap"):
            raise

        failure = VaultLoginError(
            "The answer to our own unwrapping was lost, and a wrapping token works"
            " once: give the app a new one.",
            status=error.status,
        )
    except (
        VaultResponseError,
        VaultPermissionError,
        SecretNotFoundError,
        KeyError,
    ) as error:
        status = getattr(error, "status", None)
        failure = VaultLoginError(
            "The wrapping token cannot be unwrapped: it expired, or somebody has"
            " unwrapped it before. Unless that was another process of yours, take the"
            " secret id for stolen: revoke it, and make another.",
            status=status,
        )

    raise failure


def _is_secret_id_path(path: str, mount: str, role_name: str | None) -> bool:
    parts = path.split("/")
    head = f"auth/{mount}/role".split("/")
    role = parts[len(head) : len(head) + 1]
    return (
        parts[: len(head)] == head
        and parts[len(head) + 1 :] == ["secret-id"]
        and (role_name is None or role == [role_name])
    )
