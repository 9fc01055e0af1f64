"""The versions of a document, as KV v2's metadata tells of them."""

from __future__ import annotations

import typing as t

from ..errors import SecretNotFoundError
from ..errors import VaultConfigError
from ..errors import VaultPermissionError
from .documents import Location
from .documents import mapping
from .documents import Metadata
from .documents import parse_time
from .documents import Stamp
from .explanations import denied
from .explanations import missing
from .explanations import not_a_document
from .kv import KV
from .transport import Transport

#: What a mount keeps when nobody says otherwise (OpenBao and Vault, KV v2).
DEFAULT_LIMIT: t.Final = 10


class Versions:
    """Asks for the metadata of documents."""

    def __init__(self, transport: Transport, kv: KV) -> None:
        self._transport = transport
        self._kv = kv

    def of(self, location: Location, *, retry: bool = True) -> Metadata:
        """The versions of a document, and which of them are deleted or destroyed.

        :param retry: ``False`` takes the first failure for an answer.
        :raises VaultConfigError: on KV v1, which has none.
        :raises SecretNotFoundError: when there is no document, nor ever was.
        :raises VaultPermissionError: when the token may not read metadata.
        """
        mount, path = self._kv.split(location)

        if mount.version == 1:
            raise VaultConfigError(
                f"The mount {mount.name!r} is KV version 1, which keeps no versions, so"
                f" there is no key ring for {location.path!r}: remove 'keyring', or"
                " move the secret to a version 2 mount.",
                path=location.path,
            )

        try:
            answer = self._transport.call(
                lambda client: client.secrets.kv.v2.read_secret_metadata(
                    path, mount_point=mount.name
                ),
                retry=retry,
            )
        except SecretNotFoundError as error:
            raise missing(error, location, mount, None, None) from None
        except VaultPermissionError as error:
            route = f"{mount.name}/metadata/{path}"
            raise denied(error, location, route, "read") from None

        data = mapping(t.cast("dict[str, t.Any]", answer).get("data"))
        stamps = _stamps(data.get("versions"))

        if not stamps:
            raise not_a_document(location)

        limit = data.get("max_versions")
        return Metadata(stamps, limit if isinstance(limit, int) and limit else None)

    def limit_of(self, location: Location) -> int:
        """How many versions of a document are kept."""
        found = self.of(location).max_versions

        if found is not None:
            return found

        mount, _ = self._kv.split(location)

        try:
            answer = self._transport.call(
                lambda client: client.secrets.kv.v2.read_configuration(mount.name)
            )
        except VaultPermissionError:
            return DEFAULT_LIMIT

        limit = mapping(t.cast("dict[str, t.Any]", answer).get("data"))
        return limit.get("max_versions") or DEFAULT_LIMIT

    def raise_limit(self, location: Location, to: int) -> None:
        """Have more versions of a document kept.

        :raises VaultPermissionError: when the token may not say so.
        """
        mount, path = self._kv.split(location)

        try:
            self._transport.call(
                lambda client: client.secrets.kv.v2.update_metadata(
                    path, max_versions=to, mount_point=mount.name
                )
            )
        except VaultPermissionError as error:
            route = f"{mount.name}/metadata/{path}"
            raise denied(error, location, route, "update") from None

    def destroy(self, location: Location, numbers: t.Sequence[int]) -> None:
        """Destroy versions for good.

        :raises VaultPermissionError: when the token may not.
        """
        mount, path = self._kv.split(location)

        try:
            self._transport.call(
                lambda client: client.secrets.kv.v2.destroy_secret_versions(
                    path, list(numbers), mount_point=mount.name
                )
            )
        except VaultPermissionError as error:
            route = f"{mount.name}/destroy/{path}"
            raise denied(error, location, route, "update") from None


def _stamps(versions: object) -> tuple[Stamp, ...]:
    found: list[Stamp] = []

    for number, said in mapping(versions).items():
        created = parse_time(mapping(said))

        if not str(number).isdecimal() or created is None:
            return ()

        found.append(
            Stamp(
                int(number),
                created,
                parse_time(mapping(said), "deletion_time"),
                bool(mapping(said).get("destroyed")),
            )
        )

    return tuple(sorted(found, key=lambda stamp: stamp.number))
