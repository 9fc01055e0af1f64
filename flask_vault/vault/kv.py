"""The key-value engines, version 1 and 2."""

from __future__ import annotations

import collections.abc as cabc
import copy
import datetime
import json
import time
import typing as t
from urllib.parse import quote

from ..errors import SecretNotFoundError
from ..errors import VaultConfigError
from ..errors import VaultError
from ..errors import VaultPermissionError
from ..errors import VaultResponseError
from ..errors import VaultUnavailableError
from .documents import Document
from .documents import Location
from .documents import mapping
from .documents import Mount
from .documents import parse_time
from .explanations import denied
from .explanations import lost_race
from .explanations import missing
from .explanations import not_a_document
from .process import PerProcess
from .process import SingleFlight
from .transport import Transport

if t.TYPE_CHECKING:
    import hvac


#: Seconds that a new KV v2 mount may take to prepare itself.
_UPGRADE_LIMIT: t.Final = 10.0


#: What tells a reference to a static role of the database engine.
_ROLE: t.Final = "/static-creds/"


class KV:
    """Reads and writes documents.

    :param version: ``VAULT_KV_VERSION``; ``None`` asks the server, once per mount. When
        the question is denied, version 2 is assumed.
    """

    def __init__(self, transport: Transport, version: int | None = None) -> None:
        self._transport = transport
        self._version = version
        self._namespace = transport.endpoint.namespace
        self._mounts: dict[str, Mount] = {}
        self._flights: PerProcess[SingleFlight] = PerProcess(SingleFlight)
        #: Of the last write to a version 2 engine, as in the server's audit log.
        self.request_id: str | None = None

    def read(self, location: Location, *, retry: bool = True) -> Document:
        """Read a document.

        :param retry: ``False`` takes the first failure for an answer.

        :raises SecretNotFoundError: when there is none.
        :raises SecretVersionError: when the version was deleted or destroyed.
        :raises VaultPermissionError: when the token may not read it.
        :raises VaultUnavailableError: when nobody could answer.
        """
        mount, path = self.split(location)

        if mount.engine == "database":
            return self._read_static(location, retry)

        if mount.version == 1:
            return self._read_v1(mount, path, location, retry)

        try:
            answer = self._transport.call(
                lambda client: client.secrets.kv.v2.read_secret_version(
                    path,
                    version=location.version,
                    mount_point=mount.name,
                    raise_on_deleted_version=True,
                ),
                retry=retry,
            )
        except SecretNotFoundError as error:
            failure: VaultError = missing(
                error, location, mount, self._version, self._namespace
            )
        except VaultPermissionError as error:
            failure = denied(error, location, f"{mount.name}/data/{path}", "read")
        else:
            return _document_v2(t.cast("dict[str, t.Any]", answer), location)

        raise failure

    def write(
        self,
        location: Location,
        data: cabc.Mapping[str, t.Any],
        cas: int | None,
    ) -> int | None:
        """Write a document as a new version.

        :param cas: the version that it replaces, 0 for a document that does not exist
            yet. KV v1 has no check-and-set, so ``None`` is all that it takes.
        :return: the new version; ``None`` on KV v1.
        :raises CheckAndSetError: when another version is there.
        """
        _check_json(location, data)
        mount, path = self.split(location)

        if mount.engine != "kv":
            raise VaultConfigError(
                f"{location.path!r} belongs to the engine {mount.engine!r}, which makes"
                " its values itself: 'flask vault rotate' asks it for a new one.",
                path=location.path,
            )

        if mount.version == 1:
            self._write_v1(mount, path, location, data, cas)
            return None

        try:
            return self._write_v2(mount, path, data, cas)
        except VaultUnavailableError as error:
            if not error.maybe_done:
                raise

            failure: VaultError = error
        except VaultPermissionError as error:
            raise denied(
                error, location, f"{mount.name}/data/{path}", "create, update"
            ) from None
        except VaultResponseError as error:
            self._transport.distrust(f"{mount.name}/data/{path}")
            raise lost_race(error, location, cas) from None

        # The answer was lost. Only a read tells whether the write was done, and
        # check-and-set makes it harmless to send it again when it was not.
        written = self._read_back(location)

        if written is not None and written.version != cas and written.data == data:
            return written.version

        if written is not None and (written.version or 0) == cas:
            try:
                return self._write_v2(mount, path, data, cas)
            except VaultResponseError:
                # The first one landed late, or somebody else was between.
                written = self._read_back(location)

                if written is not None and written.data == data:
                    return written.version
            except VaultError:
                pass

        raise _unknown_outcome(failure, location)

    def _write_v2(
        self,
        mount: Mount,
        path: str,
        data: cabc.Mapping[str, t.Any],
        cas: int | None,
    ) -> int:
        answer = self._transport.call(
            lambda client: client.secrets.kv.v2.create_or_update_secret(
                path, dict(data), cas=cas, mount_point=mount.name
            ),
            repeatable=False,
        )
        self.request_id = t.cast("dict[str, t.Any]", answer).get("request_id")
        written = t.cast("dict[str, t.Any]", answer).get("data")
        version = written.get("version") if isinstance(written, dict) else None

        if not isinstance(version, int):
            raise VaultResponseError(
                f"The answer to the write of {path!r} names no version: check that"
                " VAULT_ADDR is Vault's address."
            )

        return version

    def _read_back(self, location: Location) -> Document | None:
        try:
            return self.newest(location)
        except VaultError:
            return None

    def now(self) -> datetime.datetime:
        """The server's time."""
        return self._transport.now()

    @property
    def transport(self) -> Transport:
        """The way to the server."""
        return self._transport

    def list(self, location: Location) -> list[str]:
        """The names below a path; folders end with a slash.

        :raises SecretNotFoundError: when there are none.
        """
        mount, path = self.split(location)
        kv = "metadata/" if mount.version == 2 else ""

        route = f"{mount.name}/{kv}{path}".rstrip("/")

        try:
            answer = self._transport.call(lambda client: client.list(quote(route)))
        except SecretNotFoundError as error:
            failure: VaultError = SecretNotFoundError(
                f"There is nothing below {location.path!r}: check VAULT_MOUNT,"
                " VAULT_PREFIX and the path.",
                status=error.status,
                path=location.path,
                errors=error.errors,
            )
        except VaultPermissionError as error:
            failure = denied(error, location, route, "list")
        else:
            data = t.cast("dict[str, t.Any]", answer).get("data")
            names = data.get("keys") if isinstance(data, dict) else None

            if not isinstance(names, list):
                raise not_a_document(location)

            return [str(name) for name in names]

        raise failure

    def newest(self, location: Location) -> Document:
        """The document as it is now; where there is none, an empty one.

        Its version is what a check-and-set write must name: 0 for a path that was never
        written, the last version for one that was deleted, ``None`` on KV v1.
        """
        try:
            return self.read(location.newest())
        except SecretNotFoundError as error:
            if self.mount_of(location).version == 1:
                return Document(location.path, {})

            version = (error.metadata or {}).get("version", 0)
            return Document(location.path, {}, int(version))

    def describe_token(self) -> dict[str, object]:
        """The accessor and the display name of the token in use, when it may know."""
        try:
            answer = self._transport.call(
                lambda client: client.auth.token.lookup_self()
            )
        except VaultError:
            return {}

        data = mapping(t.cast("dict[str, t.Any]", answer).get("data"))
        return {name: data.get(name) for name in ("accessor", "display_name")}

    def make_mount(self, location: Location) -> None:
        """Mount a key-value engine where a location needs one.

        It is version 2, unless ``VAULT_KV_VERSION`` says otherwise. A mount that
        somebody else makes meanwhile is as good.

        :raises VaultPermissionError: when the token may not.
        """
        name = location.mount or location.path.partition("/")[0]
        version = self._version or 2

        try:
            self._transport.call(
                lambda client: client.sys.enable_secrets_engine(
                    "kv", path=name, options={"version": str(version)}
                )
            )
        except VaultResponseError as error:
            if not any("already in use" in said for said in error.errors):
                raise

        self._mounts.pop(name, None)

        if self.mount_of(location).version == 1:
            return

        deadline = time.monotonic() + _UPGRADE_LIMIT

        while True:
            try:
                self._transport.call(
                    lambda client: client.secrets.kv.v2.read_configuration(name)
                )
            except VaultUnavailableError:
                if time.monotonic() > deadline:
                    raise

                time.sleep(0.05)
            else:
                return

    def mount_of(self, location: Location) -> Mount:
        """The mount that a location is in."""
        hint = location.mount

        if self._version is not None and _ROLE not in location.path:
            return Mount(hint or location.path.partition("/")[0], self._version)

        for mount in tuple(self._mounts.values()):
            if hint == mount.name or (
                hint is None and location.path.startswith(f"{mount.name}/")
            ):
                return mount

        asked = hint or location.path
        key = hint or location.path.partition("/")[0]
        mount = self._flights.get().do(key, lambda: self._ask_mount(asked, hint))
        self._mounts[mount.name] = mount

        # Another path below the same first segment may lie in another mount.
        if hint is None and not location.path.startswith(f"{mount.name}/"):
            mount = self._ask_mount(location.path, None)
            self._mounts[mount.name] = mount

        return mount

    def split(self, location: Location) -> tuple[Mount, str]:
        """The mount that a location is in, and the path below it."""
        mount = self.mount_of(location)
        return mount, location.path[len(mount.name) :].strip("/")

    # --- parts -----------------------------------------------------------------------

    def _ask_mount(self, path: str, hint: str | None) -> Mount:
        assumed = Mount(hint or path.partition("/")[0], 2, assumed=True)

        try:
            answer = self._transport.call(
                lambda client: client.read(f"sys/internal/ui/mounts/{quote(path)}")
            )
        except VaultPermissionError:
            # So it is for a mount that does not exist, too. The read that follows tells
            # the two apart.
            return assumed
        except SecretNotFoundError as error:
            if self._namespace is None:
                return assumed

            missing_namespace = VaultConfigError(
                f"There is no namespace {self._namespace!r}: correct VAULT_NAMESPACE.",
                status=error.status,
                path=path,
                errors=error.errors,
            )
            raise missing_namespace from None

        data = mapping(t.cast("dict[str, t.Any]", answer).get("data"))
        name = str(data.get("path") or "").strip("/") or assumed.name
        kind = data.get("type")

        if kind == "database" and _ROLE in path:
            return Mount(name, 0, engine="database")

        if kind not in {"kv", "generic"}:
            raise VaultConfigError(
                f"The mount {name!r} is no key-value engine but {kind!r}: set"
                " VAULT_MOUNT to one that is.",
                path=path,
            )

        version = mapping(data.get("options")).get("version")
        return Mount(name, 2 if str(version) == "2" else 1)

    def rotate_role(self, location: Location) -> None:
        """Have the database engine make a new password for a static role, now.

        Needs the capability ``update`` on ``rotate-role/``.

        :param location: of its credentials, ``database/static-creds/app``.
        """
        route = location.path.replace(_ROLE, "/rotate-role/", 1)

        try:
            self._transport.call(
                lambda client: client.write_data(quote(route), data={}),
                repeatable=False,
            )
        except VaultPermissionError as error:
            raise denied(error, location, route, "update") from None

    def _read_static(self, location: Location, retry: bool) -> Document:
        """The user and the password of a static role. It has no versions."""
        path = location.path

        try:
            answer = self._transport.call(
                lambda client: client.read(quote(path)), retry=retry
            )
        except VaultPermissionError as error:
            raise denied(error, location, path, "read") from None
        except VaultResponseError as error:
            if error.status != 400:
                raise

            answer = None

        data = mapping(t.cast("dict[str, t.Any]", answer or {}).get("data"))

        if "password" not in data:
            raise SecretNotFoundError(
                f"There is no static role for {path!r}: make it with 'vault write"
                f" {path.replace(_ROLE, '/static-roles/', 1)}', or correct the"
                " reference.",
                path=path,
            )

        fields = {name: data[name] for name in ("username", "password")}
        return Document(path, fields, None, parse_time(data, "last_vault_rotation"))

    def _read_v1(
        self, mount: Mount, path: str, location: Location, retry: bool
    ) -> Document:
        if location.version is not None:
            raise VaultConfigError(
                f"The mount {mount.name!r} is KV version 1, which keeps no versions:"
                f" remove 'version' from the entry for {location.path!r}.",
                path=location.path,
            )

        try:
            answer = self._transport.call(
                lambda client: client.secrets.kv.v1.read_secret(
                    path, mount_point=mount.name
                ),
                retry=retry,
            )
        except SecretNotFoundError as error:
            failure: VaultError = missing(
                error, location, mount, self._version, self._namespace
            )
        except VaultPermissionError as error:
            failure = denied(error, location, f"{mount.name}/{path}", "read")
        else:
            data = t.cast("dict[str, t.Any]", answer).get("data")

            if not isinstance(data, dict):
                raise not_a_document(location)

            return Document(location.path, data)

        raise failure

    def _write_v1(
        self,
        mount: Mount,
        path: str,
        location: Location,
        data: cabc.Mapping[str, t.Any],
        cas: int | None,
    ) -> None:
        if cas is not None:
            raise VaultConfigError(
                f"The mount {mount.name!r} is KV version 1, which has no check-and-set:"
                " call without 'cas', or move the secrets to a version 2 mount.",
                path=location.path,
            )

        def write(client: hvac.Client) -> object:
            return client.write_data(quote(f"{mount.name}/{path}"), data=dict(data))

        try:
            self._transport.call(write, repeatable=False)
        except VaultUnavailableError as error:
            found = self._read_back(location) if error.maybe_done else None

            if found is None or found.data != data:
                raise

            return
        except VaultPermissionError as error:
            failure = denied(error, location, f"{mount.name}/{path}", "create, update")
        else:
            return

        raise failure


def _document_v2(answer: dict[str, t.Any], location: Location) -> Document:
    outer = answer.get("data")
    data = outer.get("data") if isinstance(outer, dict) else None
    metadata = outer.get("metadata") if isinstance(outer, dict) else None

    if not isinstance(data, dict) or not isinstance(metadata, dict):
        raise not_a_document(location)

    version = metadata.get("version")

    if not isinstance(version, int):
        raise not_a_document(location)

    return Document(location.path, data, version, parse_time(metadata))


def _unknown_outcome(failure: VaultError, location: Location) -> VaultError:
    unknown = copy.copy(failure)
    unknown.message = (
        f"{failure} The document {location.path!r} may have been written all the same:"
        " look before you write again."
    )
    unknown.args = (unknown.message,)
    return unknown


def _check_json(location: Location, data: cabc.Mapping[str, t.Any]) -> None:
    for name, value in data.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError, RecursionError):
            # The original's text holds the value.
            bad = name
            break
    else:
        return

    raise VaultConfigError(
        f"The value of {bad!r} for {location.path!r} cannot be expressed in JSON: use"
        " text, a number, a list or a mapping; bytes as base64.",
        path=location.path,
    )
