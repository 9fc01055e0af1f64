"""What nobody would write, but somebody may send: each parser says no, or is right."""

from __future__ import annotations

import contextlib
import datetime
import json
import typing as t

import pytest
from hypothesis import assume
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from flask_vault import VaultConfigError
from flask_vault.entries import CASTS
from flask_vault.entries import parse_entries
from flask_vault.entries import Reference
from flask_vault.entries import Rotation
from flask_vault.entries import Secret
from flask_vault.rotation.envelope import BackupHeader
from flask_vault.rotation.envelope import Envelope
from flask_vault.rotation.envelope import parse_envelope
from flask_vault.rotation.envelope import Unusable
from flask_vault.rotation.sealer import Sealer
from tests.helpers import BACKUP_KEY

#: The machine of a CI may be slow; that is no fault of a parser.
fuzz = settings(max_examples=500, deadline=None)

# --- references --------------------------------------------------------------------

#: Text that is dense with what means something in a path.
path_like = (
    st.text(st.sampled_from("abc/.#%~?é"))
    | st.text(st.sampled_from("ab/# \\*\0\n\x7f\u2028\u202e"))
    | st.text()
)


@fuzz
@given(path_like)
def test_a_reference_is_refused_or_says_the_same_again(text: str) -> None:
    try:
        reference = Reference.parse(text)
    except VaultConfigError:
        return

    assert Reference.parse(str(reference)) == reference
    assert str(reference) == text


@fuzz
@given(path_like)
def test_a_reference_leads_nowhere_but_down(text: str) -> None:
    """HTTP clients resolve ``..``, and drop what comes after ``#``."""
    try:
        reference = Reference.parse(text)
    except VaultConfigError:
        return

    segments = reference.path.split("/")
    assert not {"", ".", ".."} & {segment.strip() for segment in segments}
    assert not any(ord(char) < 32 or ord(char) == 127 for char in text)
    assert "#" not in reference.path
    assert reference.field is None or "#" not in reference.field


# --- VAULT_SECRETS -----------------------------------------------------------------

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=4)
    | st.timedeltas()
    | st.sampled_from(["flask#key", "flask", "{key}", "x://{key}", "token", *CASTS])
)
names = st.sampled_from(
    ["ref", "REF", "kind", "generator", "field", "bytes", *Secret.__dataclass_fields__]
)
anything = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            names | st.text(max_size=4) | st.integers(), inner, max_size=6
        )
    ),
    max_leaves=8,
)


def mostly(*good: object) -> st.SearchStrategy[t.Any]:
    """One of these, and now and then what nobody would write."""
    return st.integers(0, 15).flatmap(
        lambda n: scalars if n == 15 else st.sampled_from(good)
    )


rotations = st.fixed_dictionaries(
    {},
    optional={
        "kind": mostly(*Rotation.KINDS, "mine"),
        "generator": mostly("token", "password", "rsa"),
        "field": mostly("key", None),
        "bytes": mostly(32, 48),
    },
)
#: What is nearly an entry, so that more than the first check is reached.
entries = st.fixed_dictionaries(
    {"ref": mostly("flask#key", "flask", "/kv/flask#key")},
    optional={
        "template": mostly(None, "{key}", "x://{a!s}"),
        "env": mostly("KEY"),
        "default": anything,
        "required": mostly(True, False),
        "cast": mostly(*CASTS),
        "version": mostly(1, None),
        "name": mostly("key"),
        "rotate": mostly("token", None) | rotations,
        "keyring": mostly(True, False),
        "retire_after": mostly(3600, 0.5, datetime.timedelta(days=1)),
        "fallbacks_key": mostly("SECRET_KEY_FALLBACKS", "OLD_KEYS"),
    },
)
keys = mostly("A", "B", "SECRET_KEY", "SECRET_KEY_FALLBACKS", "OLD_KEYS")
nearly = st.dictionaries(keys, entries, min_size=1, max_size=3)


@fuzz
@given(anything)
def test_what_is_no_mapping_of_secrets_is_refused_in_words(raw: t.Any) -> None:
    try:
        assert len(parse_entries(raw)) == len(raw or ())
    except VaultConfigError as error:
        assert str(error).startswith("VAULT_SECRETS")


@fuzz
@given(nearly)
def test_a_mapping_of_secrets_is_refused_in_words_or_is_right(raw: t.Any) -> None:
    before = repr(raw)

    try:
        parsed = parse_entries(raw)
    except VaultConfigError as error:
        assert str(error).startswith("VAULT_SECRETS")
    else:
        written = [entry.key for entry in parsed]
        written += [e.fallbacks_key for e in parsed if e.fallbacks_key is not None]
        assert len(parsed) == len(raw or ())
        # No two of them write the same config key.
        assert len(set(written)) == len(written)
        assert not any(key.startswith("VAULT_") for key in written)

        for entry in parsed:
            assert isinstance(entry.secret.required, bool)
            assert entry.rotation is None or entry.rotated_field is not None

    assert repr(raw) == before


@fuzz
@given(rotations | anything)
def test_a_rotation_is_refused_in_words_or_is_right(raw: t.Any) -> None:
    with contextlib.suppress(VaultConfigError):
        rotation = Rotation.parse(raw)
        # A rotator of the user's own has another name than these.
        assert rotation.kind in Rotation.KINDS or rotation.kind.isprintable()
        assert isinstance(rotation.generator, str)


# --- backups -----------------------------------------------------------------------

HEADER = BackupHeader(
    path="secret/shop/flask",
    namespace=None,
    fields=("secret_key",),
    from_version=3,
    kv_version=2,
    operation="0" * 32,
    created_at=datetime.datetime(2026, 11, 6, tzinfo=datetime.timezone.utc),
)


class Engine:
    """Wraps keys as Vault's transit engine does, and knows one."""

    name = "transit/backups"

    def new_key(self) -> tuple[bytes, str]:
        return b"k" * 32, "vault:v1:" + "w" * 64

    def unwrap(self, wrapped: str) -> bytes | None:
        return b"k" * 32 if wrapped == self.new_key()[1] else None

    def newest_version(self) -> str | None:
        return "v1"


#: One for each form of a file.
SEALERS = (Sealer([BACKUP_KEY], None), Sealer([BACKUP_KEY], Engine()))
BLOBS = [
    s.seal(HEADER, {"before": {"secret_key": "k-1"}, "after": {}}) for s in SEALERS
]


def places_in(content: t.Any, above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The way to each value of a file."""
    if not isinstance(content, dict):
        return [above]

    inner = [places_in(value, (*above, name)) for name, value in content.items()]
    return [above, *(place for places in inner for place in places)]


#: A form, and a value in it.
places = st.sampled_from(
    [
        (number, place)
        for number, blob in enumerate(BLOBS)
        for place in places_in(json.loads(blob))
        if place
    ]
)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


def parsed(blob: bytes) -> Envelope | None:
    """Nothing but :exc:`Unusable` may come out of it: a folder is listed with it."""
    try:
        return parse_envelope(blob)
    except Unusable:
        return None


def encoded(content: object) -> bytes:
    return f"{json.dumps(content, indent=2)}\n".encode("ascii")


@pytest.mark.parametrize("number", [0, 1])
def test_the_backups_that_are_changed_below_are_good_ones(number: int) -> None:
    assert encoded(json.loads(BLOBS[number])) == BLOBS[number]
    assert SEALERS[number].unseal("b", BLOBS[number]).before == {"secret_key": "k-1"}


@fuzz
@given(st.binary() | st.text().map(str.encode) | json_values.map(encoded))
def test_a_file_that_is_anything_is_no_backup(blob: bytes) -> None:
    assert parsed(blob) is None


@fuzz
@given(places, json_values | st.sampled_from(["\x1b[2J", "\u202e"]))
def test_a_file_in_which_a_value_was_changed_is_refused(
    place: tuple[int, tuple[str, ...]], value: object
) -> None:
    number, (*above, name) = place
    content = target = json.loads(BLOBS[number])

    for part in above:
        target = target[part]

    assume(target[name] != value)
    target[name] = value
    blob = encoded(content)
    found = parsed(blob)

    # A listing prints it before anything is proved.
    if found is not None:
        header = found.header
        shown = f"{header.path}{header.namespace}{header.fields}{found.key_id}"
        assert not {"\x1b", "\u202e"} & set(shown)

    with pytest.raises(Unusable):
        SEALERS[number].unseal("b", blob)


@fuzz
@given(st.sampled_from([0, 1]), st.integers(0), st.integers(1, 255))
def test_a_file_in_which_a_byte_was_changed_is_refused(
    number: int, at: int, by: int
) -> None:
    blob = bytearray(BLOBS[number])
    blob[at % len(blob)] ^= by

    with pytest.raises(Unusable):
        SEALERS[number].unseal("b", bytes(blob))
