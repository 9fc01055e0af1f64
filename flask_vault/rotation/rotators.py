"""What puts a new value to work where it is used: the base of rotators, and what it is
told. :doc:`/rotators` is the guide to it."""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import typing as t

from .journal import Fields
from .steps import reach


class Rejected(Exception):
    """The target refused the new value for good, and goes on with the old one.

    Raised by :meth:`Rotator.apply`. Another value is made then, twice. The text is
    shown, so it must not hold the value.
    """


class NotYet(Exception):
    """The target cannot be asked now, or does not take the new value yet.

    Raised by any method of a rotator. The method is called again, for a minute. The
    text is shown, so it must not hold the value.
    """


@dataclasses.dataclass(frozen=True)
class Job:
    """What a rotator is told. It may be told the same several times, by several hosts.

    :param operation: the rotation's id, 32 hexadecimal digits: the same in every try.
        Good for an idempotency key, or for the name of what is made.
    :param field: the field of the document that is rotated.
    :param label: the reference's path, for messages.
    :param document: the document's fields as they are now.
    :param pending: the fields that the new value is made of, once there is one.
    :param previous: the fields that were replaced, once they are.
    :param compromised: the old value is known to others and must end at once.
    """

    operation: str
    field: str
    label: str
    document: Fields = dataclasses.field(repr=False)
    pending: Fields | None = dataclasses.field(default=None, repr=False)
    previous: Fields | None = dataclasses.field(default=None, repr=False)
    compromised: bool = False
    #: Claims the operation: no other process goes on with it, unless it claims it, too.
    #: To be called under a lock in the target, just before the target is changed. It
    #: raises when the operation is over; let that pass.
    claim: cabc.Callable[[], None] = dataclasses.field(
        default=lambda: None, repr=False, compare=False
    )
    #: The config value that the entry makes of a document, such as a URL.
    render: cabc.Callable[[Fields], str] = dataclasses.field(
        default=lambda data: "", repr=False, compare=False
    )
    #: The value of another config key or reference, read now.
    lookup: cabc.Callable[[str], str] = dataclasses.field(
        default=lambda name: "", repr=False, compare=False
    )

    @property
    def old(self) -> t.Any:
        """The value that is replaced."""
        source = self.document if self.previous is None else self.previous
        return source.get(self.field)

    @property
    def new(self) -> t.Any:
        """The value that replaces it; ``None`` before it was made."""
        if self.previous is not None:
            return self.document.get(self.field)

        return (self.pending or {}).get(self.field)

    def reach(self, step: str) -> None:
        """Say that a step is done, for tests that let it fail there.

        :meta private:
        """
        reach(step)


class Rotator:
    """The base of rotators. Each method may be called again at any time, also by
    another host and at the same time, so each must be idempotent.

    The instance is made anew for each rotation, with what else ``rotate`` holds as
    keyword arguments.
    """

    #: Whether :meth:`create` makes the value elsewhere, such as a provider's API key.
    #: Then the intent is written down first, so that no key is made and forgotten.
    #: ``False`` is for a value that means nothing before :meth:`apply`.
    creates_elsewhere: t.ClassVar[bool] = True

    def check(self, job: Job) -> None:
        """See whether the rotation can work, before anything is done.

        :raises RotationError: when it cannot.
        """

    def create(self, job: Job) -> str | Fields:
        """Make the new value.

        :return: the value; or several fields of the document that change together, the
            rotated one among them.
        """
        raise NotImplementedError

    def find(self, job: Job) -> str | Fields | None:
        """Look for a value that :meth:`create` made in a run that was cut off.

        :return: as :meth:`create`, or ``None`` when there is none for sure.
        :raises NotImplementedError: when that cannot be known. Then a person has to
            look.
        """
        raise NotImplementedError

    def apply(self, job: Job) -> None:
        """Have the target take ``job.new``.

        Call ``job.claim()`` just before the change.

        :raises Rejected: when the target refuses it, and did not change.
        :raises NotYet: when the target could not be asked. It may have changed.
        """

    def verify(self, job: Job) -> None:
        """Prove that the target takes ``job.new``.

        :raises NotYet: when it does not, so far.
        """

    def revoke(self, job: Job) -> None:
        """Have the target refuse ``job.old``, when nobody needs it any more."""

    def abort(self, job: Job) -> bool:
        """Take back what was done for ``job.new``, which nothing depends on yet.

        :return: whether it is proven that the target takes ``job.old`` and will not
            take ``job.new``. When in doubt, ``False``: the rotation stays open.
        """
        return False
