"""Writes a snapshot to an app's config, in the order that is safe for its readers."""

from __future__ import annotations

import collections.abc as cabc
import logging
import typing as t

from .entries import Entry
from .errors import place_of
from .errors import VaultConfigError
from .keyring import KeyRing

_log = logging.getLogger("flask_vault")

#: Gives config values that follow from a ring, such as a list of its values.
Follower = cabc.Callable[[KeyRing], cabc.Mapping[str, t.Any]]


class ConfigWriter:
    """The one place that writes ``app.config``.

    A request reads the config key by key while another thread writes. So the accepted
    values are written before the key, and the key that signs is always among them:
    whatever a reader meets, the old one and the new one are both accepted.

    :raises VaultConfigError: when the app's own fallbacks are no list.
    """

    def __init__(
        self, config: cabc.MutableMapping[str, t.Any], entries: cabc.Iterable[Entry]
    ) -> None:
        self._config = config
        self._followers: dict[str, list[Follower]] = {}

        for entry in entries:
            key = entry.fallbacks_key

            if key is not None:
                self.follow(entry.key, _accepted_in(key, config.get(key)))

    def follow(self, key: str, follower: Follower) -> None:
        """Have the values of a follower written whenever a ring changes.

        :param key: the config key of the ring's entry.
        """
        self._followers.setdefault(key, []).append(follower)

    def write(
        self, values: cabc.Mapping[str, t.Any], rings: cabc.Mapping[str, KeyRing]
    ) -> None:
        """Write what has changed.

        :param values: by config key, of entries without a ring.
        :param rings: by config key.
        """
        derived: dict[str, t.Any] = {}

        for key, ring in rings.items():
            for follower in self._followers.get(key, ()):
                try:
                    derived.update(follower(ring))
                except Exception as error:
                    # One of the user's must not keep the key from the others.
                    _log.error(
                        "What follows from %s could not be made: %s at %s.",
                        key,
                        type(error).__name__,
                        place_of(error),
                    )

        for key, value in derived.items():
            self._config[key] = value

        for key, ring in rings.items():
            # A follower may have a better form of it.
            if key not in derived:
                self._config[key] = ring.signing.value

        for key, value in values.items():
            self._config[key] = value


def _accepted_in(key: str, own: t.Any) -> Follower:
    """Write the accepted values as a list, after those that the app has of its own."""
    # Of a text Flask takes each letter for a key, which anybody guesses.
    if own is not None and not isinstance(own, list | tuple):
        raise VaultConfigError(
            f"{key} is {type(own).__name__} in the app's config, and must be a list of"
            " keys: of a text each letter would be a key. Write it as a list, or leave"
            " it out: the key ring fills it."
        )

    before = list(own or ())

    def follower(ring: KeyRing) -> dict[str, t.Any]:
        accepted = [k.value for k in reversed(ring.accepted)]
        return {key: [*(v for v in before if v not in accepted), *accepted]}

    return follower
