"""Which server is asked, what is believed of its name, and the way to it."""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import datetime
import hashlib
import ipaddress
import pathlib
import socket
import socketserver
import ssl
import threading
import typing as t
import urllib.parse

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from flask_vault import SecretNotFoundError
from flask_vault import VaultClient
from flask_vault import VaultConnectionError
from flask_vault import VaultError
from flask_vault import VaultSealedError
from flask_vault import VaultTLSError
from flask_vault.testing import DevServer
from flask_vault.testing import FaultProxy
from flask_vault.testing.api import Api
from flask_vault.testing.plugin import VaultMount
from flask_vault.testing.wire import ProtocolError
from flask_vault.testing.wire import Stream
from flask_vault.vault.documents import Location
from tests.helpers import approle
from tests.helpers import is_write
from tests.helpers import may_read
from tests.helpers import start_app

SEALED = {"errors": ["Vault is sealed"]}
UNINITIALIZED = {"errors": ["Vault is not initialized"]}


@pytest.fixture(autouse=True)
def _document(vault_mount: VaultMount) -> None:
    vault_mount.write("app", {"x": "v"})


def new_client(mount: VaultMount, address: object, **config: object) -> VaultClient:
    given = {"VAULT_ADDR": address, "VAULT_KV_VERSION": 2, "VAULT_READ_TIMEOUT": 0.4}
    return VaultClient.from_mapping(mount.config(**{**given, **config}))


def read(client: VaultClient) -> object:
    return client.get_secret("app", "x", use_cache=False)


# Several addresses.


class Three(t.NamedTuple):
    """Three addresses of one server."""

    proxies: list[FaultProxy]
    client: VaultClient

    @property
    def counts(self) -> list[int]:
        """How often each was asked since this was read."""
        found = [proxy.count for proxy in self.proxies]

        for proxy in self.proxies:
            proxy.reset()

        return found


@pytest.fixture
def three(vault_mount: VaultMount) -> cabc.Iterator[Three]:
    with contextlib.ExitStack() as stack:
        made = [FaultProxy(vault_mount.address) for _ in range(3)]
        proxies = [stack.enter_context(proxy) for proxy in made]
        yield Three(proxies, new_client(vault_mount, [p.address for p in proxies]))


def test_the_first_address_serves_while_it_can(three: Three) -> None:
    assert [read(three.client) for _ in range(3)] == ["v"] * 3
    assert three.counts == [3, 0, 0]


def test_a_list_may_come_as_one_text(
    three: Three, vault_mount: VaultMount, monkeypatch: pytest.MonkeyPatch
) -> None:
    three.proxies[0].cut()
    addresses = [proxy.address for proxy in three.proxies]
    monkeypatch.setenv("VAULT_ADDR", ", ".join(addresses))

    assert read(new_client(vault_mount, None)) == "v"
    assert three.counts == [0, 1, 0]


def break_address(proxy: FaultProxy, fault: str) -> None:
    if fault == "dead":
        proxy.cut()
    elif fault == "silent":
        proxy.hang()
    elif fault == "sealed":
        proxy.answer(503, SEALED)
    elif fault == "uninitialized":
        proxy.answer(501, UNINITIALIZED)
    else:
        proxy.answer(502)


FAULTS = ["dead", "silent", "sealed", "uninitialized", "broken"]


@pytest.mark.parametrize("fault", FAULTS)
def test_the_next_address_serves_and_is_kept(fault: str, three: Three) -> None:
    read(three.client)
    break_address(three.proxies[0], fault)
    assert read(three.client) == "v"

    three.proxies[0].heal()
    assert sum(three.counts[1:]) == 1
    assert [read(three.client) for _ in range(3)] == ["v"] * 3
    assert three.counts == [0, 3, 0]

    # It goes around: the first is the last to be tried.
    three.proxies[1].cut()
    three.proxies[2].cut()
    assert read(three.client) == "v"
    assert three.counts == [1, 0, 0]


@pytest.mark.parametrize("fault", FAULTS)
def test_an_app_starts_with_the_next_address(
    fault: str, three: Three, vault_server: DevServer, vault_mount: VaultMount
) -> None:
    break_address(three.proxies[0], fault)
    app = start_app(
        vault_mount.config(
            VAULT_TOKEN=None,
            VAULT_AUTH=approle(vault_server, may_read(vault_mount)),
            VAULT_ADDR=[proxy.address for proxy in three.proxies],
            VAULT_READ_TIMEOUT=0.4,
            VAULT_STARTUP_TIMEOUT=3,
        ),
        VAULT_SECRETS={"X": "app#x"},
    )

    assert app.config["X"] == "v"


def test_when_no_address_serves_the_first_fault_is_told(three: Three) -> None:
    three.proxies[0].answer(503, SEALED)
    three.proxies[1].cut()
    three.proxies[2].answer(502)

    with pytest.raises(VaultSealedError) as caught:
        read(three.client)

    assert three.proxies[0].address in str(caught.value)


def test_a_denial_is_an_answer_and_is_not_asked_for_elsewhere(three: Three) -> None:
    three.proxies[0].answer(403, match="/data/")

    with pytest.raises(VaultError):
        read(three.client)

    assert three.counts[1:] == [0, 0]


def test_a_write_that_may_be_done_is_not_sent_to_another_address(
    three: Three, vault_mount: VaultMount
) -> None:
    three.proxies[0].drop_reply(match=is_write)

    assert three.client.set_secret("app", {"x": "new"}) == 2
    assert sum(is_write(r) for p in three.proxies for r in p.requests) == 1


@pytest.mark.parametrize("fault", ["dead", "sealed"])
def test_a_write_that_cannot_be_done_is_sent_to_the_next_address(
    fault: str, three: Three, vault_mount: VaultMount
) -> None:
    break_address(three.proxies[0], fault)

    assert three.client.set_secret("app", {"x": "new"}) == 2


# A standby that names its leader.


def redirect(proxy: FaultProxy, to: FaultProxy) -> None:
    proxy.answer(307, headers={"Location": f"{to.address}/v1/anything"})


def test_a_standby_leads_to_a_configured_address(three: Three) -> None:
    redirect(three.proxies[0], three.proxies[2])

    assert [read(three.client) for _ in range(2)] == ["v"] * 2
    assert three.counts == [1, 0, 2]


def test_a_standby_leads_a_write_to_a_configured_address(
    three: Three, vault_mount: VaultMount
) -> None:
    redirect(three.proxies[0], three.proxies[2])
    place = Location(f"{vault_mount.name}/app", mount=vault_mount.name)

    assert three.client.kv.write(place, {"x": "new"}, cas=1) == 2
    assert three.counts == [1, 0, 1]


def test_a_standby_leads_a_login_to_a_configured_address(
    three: Three, vault_server: DevServer, vault_mount: VaultMount
) -> None:
    redirect(three.proxies[0], three.proxies[1])
    role = approle(vault_server, may_read(vault_mount))
    addresses = [proxy.address for proxy in three.proxies]
    auth = {"VAULT_TOKEN": None, "VAULT_AUTH": role}

    assert read(new_client(vault_mount, addresses, **auth)) == "v"


def test_standbys_that_name_each_other_are_asked_once_each(three: Three) -> None:
    redirect(three.proxies[0], three.proxies[1])
    redirect(three.proxies[1], three.proxies[0])
    three.proxies[2].cut()

    with pytest.raises(VaultError, match="not followed"):
        read(three.client)

    # And once more, a little later.
    assert three.counts == [2, 2, 0]


# What goes wrong on the way.


def test_a_name_that_does_not_resolve(vault_mount: VaultMount) -> None:
    with pytest.raises(VaultConnectionError, match="does not resolve"):
        read(new_client(vault_mount, "http://vault.invalid:8200"))


def test_a_port_where_nobody_listens(vault_mount: VaultMount) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{nobody.getsockname()[1]}"

        with pytest.raises(VaultConnectionError, match="connection refused"):
            read(new_client(vault_mount, address))


# TLS.


class Authority:
    """A certificate authority that lives as long as a test."""

    def __init__(self, folder: pathlib.Path, name: str = "authority") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._folder = folder
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._certificate = self._sign(
            self.name, self._key, x509.BasicConstraints(True, 0), []
        )
        self.file = str(folder / f"{name}.pem")
        pem = self._certificate.public_bytes(serialization.Encoding.PEM)
        pathlib.Path(self.file).write_bytes(pem)

    def issue(self, host: str = "127.0.0.1", *, days: int = 1) -> str:
        """Make a certificate.

        :param days: for which it is good from now; below 0 it was until then.
        :return: the file with it and its key.
        """
        try:
            name: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host))
        except ValueError:
            name = x509.DNSName(host)

        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
        leaf = x509.BasicConstraints(False, None)
        made = self._sign(subject, key, leaf, [name], days)
        pem = serialization.Encoding.PEM
        private = key.private_bytes(
            pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        file = self._folder / f"{made.serial_number}.pem"
        file.write_bytes(made.public_bytes(pem) + private)
        return str(file)

    def _sign(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        constraints: x509.BasicConstraints,
        names: list[x509.GeneralName],
        days: int = 1,
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.timezone.utc)
        public, own = key.public_key(), self._key.public_key()
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=30))
            .not_valid_after(now + datetime.timedelta(days=days))
            .add_extension(constraints, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), False)
            # Python 3.13 and later refuse a chain without it.
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(own), False
            )
        )

        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), False)

        return builder.sign(self._key, hashes.SHA256())


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True


@contextlib.contextmanager
def serving(handle: cabc.Callable[[socket.socket], None]) -> cabc.Iterator[str]:
    """Have each connection handled in a thread.

    :return: host and port.
    """

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError, ProtocolError):
                handle(self.request)

    with _Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def connect(address: str) -> socket.socket:
    url = urllib.parse.urlsplit(address if "//" in address else f"//{address}")
    return socket.create_connection((url.hostname, url.port or 0))


class Front(t.NamedTuple):
    address: str
    #: One for each connection.
    connections: list[None]


@contextlib.contextmanager
def tls_front(
    upstream: str, certificate: str, client_ca: str | None = None
) -> cabc.Iterator[Front]:
    """What stands before a server and speaks TLS with a certificate of our choice.

    :param client_ca: ask for a certificate of this authority.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    connections: list[None] = []

    if client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(client_ca)

    def relay(connection: socket.socket) -> None:
        connections.append(None)

        with (
            context.wrap_socket(connection, server_side=True) as wrapped,
            connect(upstream) as behind,
        ):
            client, server = Stream(wrapped), Stream(behind)

            while (request := client.read_request()) is not None:
                server.send(request.content)
                client.send(server.read_reply(request.start[0]).content)

    with serving(relay) as host:
        yield Front(f"https://{host}", connections)


@pytest.fixture
def authority(tmp_path: pathlib.Path) -> Authority:
    return Authority(tmp_path)


def hashed_folder(authority: Authority, folder: pathlib.Path) -> str:
    """A folder as ``c_rehash`` makes it."""
    folder.mkdir()
    # The DER of a name without its outer header; ours is in lower case already.
    digest = hashlib.sha1(authority.name.public_bytes()[2:], usedforsecurity=False)
    name = f"{int.from_bytes(digest.digest()[:4], 'little'):08x}.0"
    (folder / name).write_bytes(pathlib.Path(authority.file).read_bytes())
    return str(folder)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_the_authority_that_is_configured_is_believed(
    kind: str, authority: Authority, vault_mount: VaultMount, tmp_path: pathlib.Path
) -> None:
    folder = hashed_folder(authority, tmp_path / "folder")
    trusted = authority.file if kind == "file" else folder

    with tls_front(vault_mount.address, authority.issue()) as front:
        client = new_client(vault_mount, front.address, VAULT_CACERT=trusted)
        assert [read(client) for _ in range(3)] == ["v"] * 3

    assert len(front.connections) == 1, "it is not kept"


def test_a_folder_of_authorities_may_come_from_the_environment(
    authority: Authority,
    vault_mount: VaultMount,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = hashed_folder(authority, tmp_path / "folder")
    monkeypatch.setenv("VAULT_CAPATH", folder)

    with tls_front(vault_mount.address, authority.issue()) as front:
        assert read(new_client(vault_mount, front.address)) == "v"


def check_refused(front: Front, mount: VaultMount, said: str, **config: object) -> str:
    """Expect that a server is not believed, at the first look.

    :return: what was said about it.
    """
    with pytest.raises(VaultTLSError, match=said) as caught:
        start_app(
            mount.config(VAULT_ADDR=front.address, **config),
            VAULT_SECRETS={"X": "app#x"},
        )

    assert len(front.connections) == 1, "tried again"
    assert mount.token not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("trusted", ["nothing", "another"])
def test_an_authority_that_is_not_configured(
    trusted: str, authority: Authority, vault_mount: VaultMount, tmp_path: pathlib.Path
) -> None:
    other = Authority(tmp_path, "another")
    config = {"VAULT_CACERT": other.file} if trusted == "another" else {}

    with tls_front(vault_mount.address, authority.issue()) as front:
        check_refused(front, vault_mount, "set VAULT_CACERT", **config)


def test_a_certificate_that_expired(
    authority: Authority, vault_mount: VaultMount
) -> None:
    with tls_front(vault_mount.address, authority.issue(days=-1)) as front:
        said = check_refused(
            front, vault_mount, "has expired", VAULT_CACERT=authority.file
        )

    # That would not help.
    assert "set VAULT_CACERT" not in said


@pytest.mark.parametrize("expected", [None, "other.example"])
def test_a_certificate_for_another_name(
    expected: str | None, authority: Authority, vault_mount: VaultMount
) -> None:
    config = {"VAULT_CACERT": authority.file, "VAULT_TLS_SERVER_NAME": expected}

    with tls_front(vault_mount.address, authority.issue("vault.example")) as front:
        said = check_refused(front, vault_mount, "mismatch", **config)

    assert "VAULT_TLS_SERVER_NAME" in said


def test_the_name_in_the_certificate_can_be_given(
    authority: Authority, vault_mount: VaultMount
) -> None:
    config = {
        "VAULT_CACERT": authority.file,
        "VAULT_TLS_SERVER_NAME": "vault.example",
    }

    with tls_front(vault_mount.address, authority.issue("vault.example")) as front:
        assert read(new_client(vault_mount, front.address, **config)) == "v"


def test_no_certificate_is_checked_when_that_is_wanted(
    authority: Authority, vault_mount: VaultMount, caplog: pytest.LogCaptureFixture
) -> None:
    with tls_front(vault_mount.address, authority.issue("x", days=-1)) as front:
        app = start_app(
            vault_mount.config(VAULT_ADDR=front.address, VAULT_SKIP_VERIFY=True),
            VAULT_SECRETS={"X": "app#x"},
        )

    assert app.config["X"] == "v"
    assert "anybody on the network can pose as Vault" in caplog.text


def test_a_server_that_wants_to_see_a_certificate(
    authority: Authority, vault_mount: VaultMount, tmp_path: pathlib.Path
) -> None:
    clients = Authority(tmp_path, "clients")
    config: dict[str, object] = {"VAULT_CACERT": authority.file}

    with tls_front(vault_mount.address, authority.issue(), clients.file) as front:
        with pytest.raises(VaultError, match="VAULT_CLIENT_CERT"):
            read(new_client(vault_mount, front.address, **config))

        config["VAULT_CLIENT_CERT"] = clients.issue("web")
        assert read(new_client(vault_mount, front.address, **config)) == "v"


def test_the_wrong_scheme_is_told(
    authority: Authority, vault_mount: VaultMount
) -> None:
    with pytest.raises(VaultTLSError, match="meant to be http"):
        read(new_client(vault_mount, vault_mount.address.replace("http:", "https:")))

    with DevServer(tls=True) as server:
        address = server.address.replace("https:", "http:")

        with pytest.raises(VaultError, match="speaks https"):
            read(new_client(vault_mount, address))


# A proxy between.


@pytest.fixture
def meant_for_others(monkeypatch: pytest.MonkeyPatch) -> cabc.Iterator[None]:
    """Proxies in the environment, which must see nothing."""
    seen = []

    with serving(lambda connection: seen.append(connection)) as host:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy"):
            monkeypatch.setenv(name, f"http://{host}")

        monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/no/such/file")
        yield
        assert seen == []


@contextlib.contextmanager
def tunnel() -> cabc.Iterator[tuple[str, list[str]]]:
    """An HTTP proxy that knows ``CONNECT`` alone.

    :return: its address, and where it was asked to lead to.
    """
    asked: list[str] = []

    def copy(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)

            target.shutdown(socket.SHUT_WR)

    def lead(client: socket.socket) -> None:
        request = Stream(client).read_request()
        assert request is not None
        asked.append(" ".join(request.start[:2]))

        with connect(request.start[1]) as behind:
            client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            back = threading.Thread(target=copy, args=(behind, client))
            back.start()
            copy(client, behind)
            back.join()

    with serving(lead) as host:
        yield f"http://{host}", asked


@pytest.mark.usefixtures("meant_for_others")
def test_a_proxy_in_the_environment_is_not_for_us(
    vault_mount: VaultMount, authority: Authority
) -> None:
    assert read(new_client(vault_mount, vault_mount.address)) == "v"

    with tls_front(vault_mount.address, authority.issue()) as front:
        client = new_client(vault_mount, front.address, VAULT_CACERT=authority.file)
        assert read(client) == "v"


@pytest.mark.usefixtures("meant_for_others")
def test_a_proxy_that_is_configured_is_used(
    vault_mount: VaultMount, vault_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    client = new_client(
        vault_mount, vault_mount.address, VAULT_PROXY=vault_proxy.address
    )

    assert read(client) == "v"
    assert [r.path for r in vault_proxy.requests] == [
        f"{vault_mount.address}/v1/{vault_mount.name}/data/app"
    ]


@pytest.mark.usefixtures("meant_for_others")
@pytest.mark.parametrize("name", ["127.0.0.1", "vault.example"])
def test_a_proxy_sees_nothing_of_what_goes_through_tls(
    name: str, vault_mount: VaultMount, authority: Authority
) -> None:
    with (
        tls_front(vault_mount.address, authority.issue(name)) as front,
        tunnel() as (proxy, asked),
    ):
        client = new_client(
            vault_mount,
            front.address,
            VAULT_PROXY=proxy,
            VAULT_CACERT=authority.file,
            VAULT_TLS_SERVER_NAME=name,
        )
        assert read(client) == "v"

    assert asked == [f"CONNECT {front.address.removeprefix('https://')}"]


def test_a_proxy_that_is_away_is_named(vault_mount: VaultMount) -> None:
    with FaultProxy(vault_mount.address) as proxy:
        proxy.cut()
        config = {"VAULT_PROXY": proxy.address}

        with pytest.raises(VaultConnectionError, match="VAULT_PROXY"):
            read(new_client(vault_mount, vault_mount.address, **config))


# Namespaces.


@pytest.fixture
def team(vault_mount: VaultMount) -> str:
    """A namespace in a namespace, with a mount of the same name as the one outside."""
    name = f"team-{vault_mount.name}"
    api = Api(vault_mount.address)

    def call(path: str, body: object = None) -> None:
        api.call("POST", path, body, token=vault_mount.token)

    call(f"sys/namespaces/{name}")
    call(f"{name}/sys/namespaces/shop")
    mount = {"type": "kv", "options": {"version": "1"}}
    call(f"{name}/shop/sys/mounts/{vault_mount.name}", mount)
    call(f"{name}/shop/{vault_mount.name}/app", {"x": "of the team"})
    return f"{name}/shop"


def test_a_namespace_is_where_everything_is(
    team: str, vault_mount: VaultMount, vault_proxy: FaultProxy
) -> None:
    for name in (team, f"{team}/"):
        app = start_app(
            vault_mount.config(VAULT_ADDR=vault_proxy.address, VAULT_NAMESPACE=name),
            VAULT_SECRETS={"X": "app#x"},
        )
        assert app.config["X"] == "of the team"

    assert all("x-vault-namespace" in r.headers for r in vault_proxy.requests)
    assert vault_mount.read("app") == {"x": "v"}


@pytest.mark.parametrize("method", ["token", "approle"])
def test_a_namespace_that_does_not_exist(
    method: str, vault_server: DevServer, vault_mount: VaultMount
) -> None:
    config: dict[str, object] = {"VAULT_NAMESPACE": "no-such-team"}

    if method == "approle":
        config["VAULT_TOKEN"] = None
        config["VAULT_AUTH"] = approle(vault_server, may_read(vault_mount))

    with pytest.raises(VaultError, match="VAULT_NAMESPACE") as caught:
        start_app(vault_mount.config(**config), VAULT_SECRETS={"X": "app#x"})

    # An entry that may be missing must not hide it.
    assert not isinstance(caught.value, SecretNotFoundError)
