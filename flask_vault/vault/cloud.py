"""Login methods that ask a cloud's own library who we are. Extras, imported late."""

from __future__ import annotations

import abc
import importlib
import typing as t

from ..errors import VaultConfigError
from ..errors import VaultLoginError
from .auth import Credential
from .credentials import Options
from .methods import exchange
from .tokens import Token

if t.TYPE_CHECKING:
    import hvac


def _library(name: str, extra: str) -> t.Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise VaultConfigError(
            f"VAULT_AUTH has the method {extra!r}, which needs another library: pip"
            f" install 'flask-vault[{extra}]'."
        ) from None


class _CloudLogin(abc.ABC):
    """What the three have in common: the credential is asked for at each login."""

    name = ""
    makes_tokens = True

    def __init__(self, options: Options, *plain: str) -> None:
        options.check_names((), ("mount", "role", *plain))
        self._options = options
        self._mount = (options.text("mount") or self.name).strip("/")
        self._role = options.need("role")

    def credential(self) -> Credential:
        try:
            return self._ask()
        except VaultConfigError:
            raise
        except Exception as error:
            # Each library has its own tree, and their texts may hold a token.
            kind = type(error).__name__

        raise VaultLoginError(
            f"The credentials for the method {self.name!r} cannot be had from this host"
            f" ({kind}): check that it runs with an identity of its own."
        )

    @abc.abstractmethod
    def _ask(self) -> Credential:
        """Ask the cloud's library. May raise anything."""


class AwsLogin(_CloudLogin):
    """The IAM identity of the host, as boto3 finds it."""

    name = "aws"

    def __init__(self, options: Options) -> None:
        super().__init__(options, "region", "header_value")
        self._region = options.text("region") or "us-east-1"
        self._header_value = options.text("header_value")

    def _ask(self) -> Credential:
        found = _library("boto3", "aws").Session().get_credentials()

        if found is None:
            raise LookupError

        frozen = found.get_frozen_credentials()
        return frozen.access_key, frozen.secret_key, frozen.token or ""

    def login(self, client: hvac.Client, credential: Credential) -> Token:
        access_key, secret_key, session_token = credential
        return exchange(
            self._mount,
            "the role and the host's IAM identity",
            lambda: client.auth.aws.iam_login(
                access_key,
                secret_key,
                session_token or None,
                header_value=self._header_value,
                role=self._role,
                use_token=False,
                region=self._region,
                mount_point=self._mount,
            ),
            key=self._options.key,
        )


class AzureLogin(_CloudLogin):
    """The managed identity of the host, as azure-identity finds it."""

    name = "azure"
    _details: t.ClassVar = (
        "subscription_id",
        "resource_group_name",
        "vm_name",
        "vmss_name",
    )

    def __init__(self, options: Options) -> None:
        super().__init__(options, "resource", *self._details)
        self._resource = options.text("resource") or "https://management.azure.com/"

    def _ask(self) -> Credential:
        found = _library("azure.identity", "azure").DefaultAzureCredential()
        return (found.get_token(f"{self._resource.rstrip('/')}/.default").token,)

    def login(self, client: hvac.Client, credential: Credential) -> Token:
        details = {name: self._options.text(name) for name in self._details}
        return exchange(
            self._mount,
            "the role and the host's managed identity",
            lambda: client.auth.azure.login(
                self._role,
                credential[0],
                use_token=False,
                mount_point=self._mount,
                **t.cast("dict[str, t.Any]", details),
            ),
            key=self._options.key,
        )


class GcpLogin(_CloudLogin):
    """The service account of the host, as google-auth finds it."""

    name = "gcp"

    def _ask(self) -> Credential:
        requests_transport = _library("google.auth.transport.requests", "gcp")
        id_token = _library("google.oauth2.id_token", "gcp")
        # The audience that Vault's "iam" and "gce" roles expect.
        audience = f"vault/{self._role}"
        return (id_token.fetch_id_token(requests_transport.Request(), audience),)

    def login(self, client: hvac.Client, credential: Credential) -> Token:
        return exchange(
            self._mount,
            "the role and the host's service account",
            lambda: client.auth.gcp.login(
                self._role,
                credential[0],
                use_token=False,
                mount_point=self._mount,
            ),
            key=self._options.key,
        )
