"""A real cluster for tests: what becomes of an app when the leader goes."""

from __future__ import annotations

import collections.abc as cabc
import concurrent.futures
import json
import os
import pathlib
import signal
import time
import typing as t

from ..errors import VaultConfigError
from ..errors import VaultConnectionError
from ..errors import VaultUnavailableError
from .api import Api
from .server import DevServer

if t.TYPE_CHECKING:
    import hvac

C = t.TypeVar("C", bound="DevCluster")

#: Of an active server, and of a standby that serves reads.
_ACTIVE: t.Final = 200
_STANDBY: t.Final = (429, 473)


class _Node(DevServer):
    """One server of a cluster."""

    def __init__(
        self,
        number: int,
        binary: str | os.PathLike[str] | None,
        timeout: float,
        multiplier: int,
    ) -> None:
        super().__init__(
            binary=binary, storage="raft", initialize=number == 0, timeout=timeout
        )
        self._raft = {
            "node_id": f"node-{number}",
            "performance_multiplier": multiplier,
            # How soon a server that has joined may vote. Ten seconds if not told.
            "autopilot_reconcile_interval": "200ms",
            "autopilot_update_interval": "100ms",
        }

    def _write_config(self) -> pathlib.Path:
        path = super()._write_config()
        config = json.loads(path.read_text())
        config["storage"]["raft"] |= self._raft
        path.write_text(json.dumps(config))
        return path

    def _await_service(self) -> None:
        # The first one is alone at its first start, and then has to lead.
        self._await_health(_ACTIVE, *(_STANDBY if self._started else ()))

    def join(self, leader: _Node) -> None:
        """Become a member of the leader's cluster."""
        self._api.call(
            "POST", "sys/storage/raft/join", {"leader_api_addr": leader.address}
        )
        self._root_token = leader._root_token
        self._unseal_keys = leader._unseal_keys
        self.unseal()

    def health(self, timeout: float) -> int | None:
        """The status code of its health, ``None`` when it does not answer in time."""
        try:
            return Api(self.address, timeout=timeout).ask("GET", "sys/health")[0]
        except VaultConnectionError:
            return None

    def takes_writes(self) -> bool:
        """Whether a write gets through, on a standby by way of the leader."""
        # What a token has in its cubbyhole, nobody else sees.
        status, _ = self._api.ask(
            "POST", "cubbyhole/test", {"key": "value"}, token=self.root_token
        )
        return status < 300


class DevCluster:
    """Runs several servers on loopback that hold the same data (raft), joined and
    unsealed, a KV version 2 engine at ``secret/``. Like :class:`DevServer`, they live
    for as long as this object and never longer than this process.

    .. code-block:: python

        with DevCluster() as cluster:
            app.config.from_mapping(cluster.environ())
            cluster.kill(cluster.leader())

    Servers are numbered from 0. What is done to one is done at once; what becomes of
    the others shows, :meth:`leader` waits for it.

    :param nodes: how many. Three go on when one is lost.
    :param binary: as for :class:`DevServer`.
    :param multiplier: raft's ``performance_multiplier``: how long a leader may be
        silent before there is another. A server's own default is 5; with 2, it takes
        some three seconds.
    :param timeout: how long anything that is waited for may take, in seconds.
    :raise VaultConfigError: when there is no program to run.
    """

    def __init__(
        self,
        nodes: int = 3,
        *,
        binary: str | os.PathLike[str] | None = None,
        multiplier: int = 2,
        timeout: float = 60.0,
    ) -> None:
        if nodes < 1:
            raise VaultConfigError(f"'nodes' is {nodes}. Give the number of servers.")

        self._timeout = timeout
        self._nodes = [
            _Node(number, binary, timeout, multiplier) for number in range(nodes)
        ]
        self._frozen: set[int] = set()

    # What a caller wants to know.

    @property
    def nodes(self) -> cabc.Sequence[DevServer]:
        """The servers, by number."""
        return tuple(self._nodes)

    @property
    def addresses(self) -> tuple[str, ...]:
        """Their addresses, by number. The same after a restart."""
        return tuple(node.address for node in self._nodes)

    @property
    def root_token(self) -> str:
        """A token that may do everything."""
        return self._nodes[0].root_token

    def environ(self) -> dict[str, str]:
        """The variables that point an app here: ``VAULT_ADDR`` with all addresses,
        and ``VAULT_TOKEN``."""
        return {"VAULT_ADDR": ",".join(self.addresses), "VAULT_TOKEN": self.root_token}

    def client(self, number: int) -> hvac.Client:
        """A new client of one server, with the root token."""
        return self._nodes[number].client()

    def leader(self) -> int:
        """The number of the server that leads. Waits until there is one.

        :raise VaultUnavailableError: when there is none in time.
        """
        found: list[int] = []

        def one_leads() -> bool:
            # Two say so for a moment after a frozen one was thawed.
            found[:] = self._with_health(_ACTIVE)
            return len(found) == 1

        self._wait_until(one_leads, "has one leader")
        return found[0]

    def standbys(self) -> list[int]:
        """The numbers of the servers that follow the leader now."""
        return self._with_health(*_STANDBY)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self._nodes)}>"

    # Its life.

    def __enter__(self: C) -> C:
        try:
            return self.start()
        except BaseException:
            self.close()  # Nobody else will.
            raise

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def start(self: C) -> C:
        """Start all servers and wait until each of them serves and can vote.

        :raise VaultUnavailableError: when one ends or is not ready in time.
        """
        first, *others = self._nodes

        if first._started:
            self.heal()
            return self

        with concurrent.futures.ThreadPoolExecutor(len(self._nodes)) as pool:
            list(pool.map(DevServer.start, self._nodes))

        first._call(
            "POST",
            "sys/storage/raft/autopilot/configuration",
            {"server_stabilization_time": "1ms"},
        )

        for node in others:
            node.join(first)

        self._wait_until(self._all_vote, "has as many voters as servers")
        self._wait_until(self._serves, "serves")
        return self

    def close(self) -> None:
        """Stop all servers and remove their data. They cannot be started again."""
        self._frozen.clear()

        for node in self._nodes:
            node.close()

    def heal(self) -> None:
        """Undo everything that was done to the servers: all of them run and serve
        afterwards. Which one leads is not foreseeable.

        :raise VaultUnavailableError: when that does not come about in time.
        """
        for number in sorted(self._frozen):
            self.thaw(number)

        for node in self._nodes:
            node.start()

            if node.health(self._timeout) == 503:
                node.unseal()

        self._wait_until(self._serves, "serves")

    # What can be done to them.

    def kill(self, number: int) -> None:
        """End one at once, with SIGKILL. Its data stays."""
        self._nodes[number].kill()
        self._frozen.discard(number)

    def restart(self, number: int, *, unseal: bool = True) -> None:
        """Stop one if it runs, and start it with its data on the same port.

        :param unseal: ``False`` leaves it sealed.
        """
        self._nodes[number].restart(unseal=unseal)
        self._frozen.discard(number)

    def freeze(self, number: int) -> None:
        """Stop one with SIGSTOP: it takes connections and says nothing more."""
        os.kill(self._nodes[number].pid, signal.SIGSTOP)
        self._frozen.add(number)

    def thaw(self, number: int) -> None:
        """Let a frozen one go on."""
        os.kill(self._nodes[number].pid, signal.SIGCONT)
        self._frozen.discard(number)

    def step_down(self) -> None:
        """Have the leader give up. It may become the leader again."""
        self._nodes[self.leader()]._call("PUT", "sys/step-down")

    def seal(self, number: int) -> None:
        """Seal one: it answers 503 until :meth:`unseal`."""
        self._nodes[number].seal()

    def unseal(self, number: int) -> None:
        """Unseal one and wait until it serves."""
        self._nodes[number].unseal()

    # Behind it.

    def _with_health(self, *wanted: int) -> list[int]:
        return [
            number
            for number, node in enumerate(self._nodes)
            if number not in self._frozen and node.health(1.0) in wanted
        ]

    def _all_vote(self) -> bool:
        answer = self._nodes[0]._call("GET", "sys/storage/raft/configuration")
        servers = answer["data"]["config"]["servers"]
        voters = [server for server in servers if server["voter"]]
        return len(voters) == len(self._nodes)

    def _serves(self) -> bool:
        """Whether one leads, the others follow, and they know whom."""
        try:
            return (
                len(self._with_health(_ACTIVE)) == 1
                and len(self.standbys()) == len(self._nodes) - 1
                and all(node.takes_writes() for node in self._nodes)
            )
        except VaultConnectionError:
            return False

    def _wait_until(self, condition: cabc.Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + self._timeout

        while not condition():
            if time.monotonic() > deadline:
                states = [node.health(1.0) for node in self._nodes]
                raise VaultUnavailableError(
                    f"After {self._timeout:g} seconds there is no cluster that {what};"
                    f" the health of its servers: {states}. See 'log()' of each of"
                    " 'nodes', or give a longer 'timeout'."
                )

            time.sleep(0.05)
