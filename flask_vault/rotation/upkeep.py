"""Keeps a directory of backups small, and sealed with the newest keys."""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import dataclasses
import os

from ..errors import BackupError
from ..errors import VaultError
from ..errors import VaultUnavailableError
from . import files
from .backup import BackupInfo
from .backup import BackupStore
from .backup import not_asked
from .backup import stem_of
from .envelope import parse_envelope
from .envelope import Unusable


@dataclasses.dataclass(frozen=True)
class Plan:
    """What :meth:`Upkeep.prune` is to remove."""

    removed: tuple[BackupInfo, ...]
    kept: tuple[BackupInfo, ...]
    """Those that cannot be opened are among them."""


@dataclasses.dataclass(frozen=True)
class Rekeyed:
    """What became of one file in :meth:`Upkeep.rekey`."""

    name: str
    done: bool = False
    """``False`` with no ``problem``: it was sealed with the newest keys already."""

    problem: str | None = None
    failure: VaultError | None = None


class Upkeep:
    """What is done to the backups of a store, beside writing and reading them."""

    def __init__(self, store: BackupStore) -> None:
        self._store = store

    def plan(self, keep: int) -> Plan:
        """Choose the backups to remove.

        The newest ones of each path are kept, and the newest of each field, without
        which the field could not be brought back. Only backups that can be opened now
        are counted, and only those are removed.

        :param keep: how many of each path, at least 1.
        :raises BackupError: when there is no key, or the directory is not safe.
        :raises VaultError: when the transit engine fails, so that it is not known
            which can be opened.
        """
        if keep < 1:
            raise ValueError("'keep' must be 1 or more.")

        self._store.sealer.require_keys()
        infos = self._store.list(verify=True)

        for info in infos:
            if info.failure is not None and not info.verified:
                raise info.failure

        kept = _worth_keeping(infos, keep)
        return Plan(
            tuple(info for info in infos if info.name not in kept),
            tuple(info for info in infos if info.name in kept),
        )

    def prune(self, plan: Plan) -> None:
        """Remove what :meth:`plan` has chosen, and what interrupted runs left behind.

        :raises BackupError: when a file cannot be removed.
        """
        if not os.path.lexists(self._store.directory):
            return

        with files.opened(self._store.directory, create=False) as directory:
            try:
                for info in plan.removed:
                    # Another run may be faster.
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(info.name, dir_fd=directory)

                files.remove_leftovers(directory)
                os.fsync(directory)
            except OSError as error:
                raise BackupError(
                    f"A backup in {str(self._store.directory)!r} cannot be removed:"
                    f" {files.name_error(error)}. Give the right to write there."
                ) from error

    def rekey(self) -> cabc.Iterator[Rekeyed]:
        """Seal each backup anew, with the first key and the newest transit key.

        A file is replaced in one step, after the new one was read back. Interrupted, it
        goes on where it stopped.

        :raises BackupError: when there is no key, or the directory is not safe or not
            writable.
        :raises VaultError: when the transit engine makes no new key.
        """
        self._store.sealer.require_keys()

        if not os.path.lexists(self._store.directory):
            return

        newest = self._store.sealer.newest_version()
        oldest_first = reversed(self._store.list())

        with files.opened(self._store.directory, create=False) as directory:
            for info in oldest_first:
                try:
                    done = self._rekey(directory, info.name, newest)
                except OSError as error:
                    raise self._store.write_error(error) from error
                except Unusable as error:
                    yield Rekeyed(info.name, problem=str(error))
                except VaultUnavailableError:
                    raise
                except VaultError as error:
                    yield Rekeyed(info.name, problem=not_asked(error), failure=error)
                else:
                    yield Rekeyed(info.name, done)

    # --- parts -----------------------------------------------------------------------

    def _rekey(self, directory: int, name: str, newest: str | None) -> bool:
        """Seal one file anew, and put it in the place of the old one."""
        try:
            blob = files.read(directory, name)
        except FileNotFoundError:
            # Removed since it was listed.
            return False

        envelope = parse_envelope(blob)
        old = self._store.sealer.unseal(name, blob)

        if self._store.sealer.is_current(envelope, newest):
            return False

        payload = {"before": old.before, "after": old.after}
        temporary = files.write_temporary(
            directory, stem_of(name), self._store.sealer.seal(old.header, payload)
        )

        try:
            if self._store.sealer.unseal(name, files.read(directory, temporary)) != old:
                raise Unusable("could not be read back, and was left as it is")

            os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
        except BaseException:
            files.remove(directory, temporary)
            raise

        os.fsync(directory)
        return True


def _worth_keeping(infos: cabc.Sequence[BackupInfo], keep: int) -> set[str]:
    """The names of those that :meth:`Upkeep.plan` does not choose.

    :param infos: the newest first.
    """
    kept: set[str] = set()
    of_path: dict[tuple[str | None, str], int] = {}
    fields: set[tuple[str | None, str, str]] = set()

    for info in infos:
        # What cannot be opened may be opened by a key that somebody has elsewhere.
        if info.header is None or not info.verified:
            kept.add(info.name)
            continue

        header = info.header
        place = header.namespace, header.path
        of_path[place] = of_path.get(place, 0) + 1
        new = {(*place, field) for field in header.fields} - fields

        if of_path[place] <= keep or new:
            kept.add(info.name)

        fields |= new

    return kept
