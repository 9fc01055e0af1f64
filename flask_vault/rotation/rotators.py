"""What puts a new value to work where it is used.

A rotator is named by an entry's ``rotate``, in ``kind``: ``database``, ``callable``, a
name that was given with :func:`register`, that of an entry point in the group
``flask_vault.rotators``, or the dotted path of a class, ``package.module:Class``.
"""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import difflib
import importlib.metadata
import inspect
import typing as t

from ..errors import RotationError
from ..errors import VaultConfigError
from . import generators
from .generators import describe
from .generators import load
from .journal import Fields
from .steps import reach

R = t.TypeVar("R", bound=type)

#: The group of entry points in which other packages offer rotators.
ENTRY_POINTS: t.Final = "flask_vault.rotators"


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
    #: To be called under a lock in the target, just before the target is changed. Raises
    #: when the operation is over; let that pass.
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


def _database() -> type:
    from .database import DatabaseRotator

    return DatabaseRotator


_BUILTINS: t.Final[cabc.Mapping[str, cabc.Callable[[], type]]] = {
    "database": _database,
    "callable": lambda: CallableRotator,
}

_registered: dict[str, type] = {}


def register(name: str) -> cabc.Callable[[R], R]:
    """A decorator that gives a rotator class a name for ``kind``.

    .. code-block:: python

        @vault.rotator("stripe")
        class StripeRotator(Rotator): ...

    The module has to be imported by the app, or the name is not known. A class with the
    name of one that was registered before takes its place, so that a module can be
    loaded anew.

    :raises VaultConfigError: when a built-in kind has that name.
    """
    if name in _BUILTINS or name in ("signing", "database-static"):
        raise VaultConfigError(
            f"The name {name!r} belongs to a rotator of Flask-Vault's own: choose"
            " another one."
        )

    def keep(rotator: R) -> R:
        _registered[name] = rotator
        return rotator

    return keep


def new_rotator(kind: str, options: cabc.Mapping[str, object]) -> Rotator:
    """Make the rotator for an entry.

    :param options: its keyword arguments.
    :raises VaultConfigError: when there is none of this kind, or it does not take these
        options.
    """
    found = _find(kind)

    try:
        inspect.signature(found).bind(**options)
    except TypeError as error:
        # Speaks of the names of arguments only.
        raise VaultConfigError(
            f"The rotator {kind!r} does not take these options: {error}."
        ) from None
    except ValueError:
        pass  # Some classes written in C have no signature.

    problem = ""

    try:
        return t.cast(Rotator, found(**options))
    except (VaultConfigError, RotationError):
        raise
    except Exception as error:
        problem = describe(error)

    raise VaultConfigError(f"The rotator {kind!r} cannot be made: {problem}.")


def _find(kind: str) -> cabc.Callable[..., object]:
    if kind in _BUILTINS:
        return _BUILTINS[kind]()

    if kind in _registered:
        return _registered[kind]

    for point in importlib.metadata.entry_points(group=ENTRY_POINTS, name=kind):
        return t.cast("cabc.Callable[..., object]", point.load())

    if ":" in kind or "." in kind:
        return generators.load(kind, "rotator")

    known = [
        *_BUILTINS,
        *_registered,
        *(point.name for point in importlib.metadata.entry_points(group=ENTRY_POINTS)),
    ]
    close = difflib.get_close_matches(kind, known, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    raise VaultConfigError(
        f"There is no rotator {kind!r}{hint}. There are {', '.join(known)}: import the"
        " module with @vault.rotator in your app's factory, or give the dotted path"
        " of the class as 'package.module:Class'."
    )
