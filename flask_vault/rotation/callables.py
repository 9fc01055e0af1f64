"""Rotators that are made of functions."""

from __future__ import annotations

import typing as t

from .generators import load
from .journal import Fields
from .rotators import Job
from .rotators import Rotator


class CallableRotator(Rotator):
    """The kind ``callable``: functions of the user's, by their dotted paths.

    :param create: called with the :class:`Job`, returns the new value.
    :param verify: called with the job; raises when the value does not work.
    :param revoke: called with the job, ends ``job.old``.
    :param find: called with the job, returns what ``create`` made for this operation,
        or ``None``.
    :param discard: called with the job, ends ``job.new`` of a rotation that is aborted.
    """

    def __init__(
        self,
        create: str,
        verify: str | None = None,
        revoke: str | None = None,
        find: str | None = None,
        discard: str | None = None,
    ) -> None:
        self._paths = {
            name: path
            for name, path in {
                "create": create,
                "verify": verify,
                "revoke": revoke,
                "find": find,
                "discard": discard,
            }.items()
            if path is not None
        }

    def check(self, job: Job) -> None:
        for path in self._paths.values():
            load(path)

    def create(self, job: Job) -> str | Fields:
        return t.cast("str | Fields", self._call("create", job))

    def find(self, job: Job) -> str | Fields | None:
        if "find" not in self._paths:
            raise NotImplementedError

        return t.cast("str | Fields | None", self._call("find", job))

    def verify(self, job: Job) -> None:
        if "verify" in self._paths:
            self._call("verify", job)

    def revoke(self, job: Job) -> None:
        if "revoke" in self._paths:
            self._call("revoke", job)

    def abort(self, job: Job) -> bool:
        if job.pending is None:
            if "find" not in self._paths:
                return False

            if self.find(job) is None:
                return True

        if "discard" not in self._paths:
            return False

        self._call("discard", job)
        return True

    def _call(self, name: str, job: Job) -> object:
        return load(self._paths[name])(job)
