"""What nobody would write, but somebody may send: each parser says no, or is right."""

from __future__ import annotations

import contextlib
import copy
import datetime
import json
import typing as t

import pytest
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
from flask_vault.rotation.envelope import Sealer
from flask_vault.rotation.envelope import Unusable
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
        "kind": mostly(*Rotation.KINDS),
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
        assert Rotation.parse(raw).kind in Rotation.KINDS


# --- backups -----------------------------------------------------------------------

SEALER = Sealer([BACKUP_KEY])
HEADER = BackupHeader(
    path="secret/shop/flask",
    namespace=None,
    fields=("secret_key",),
    from_version=3,
    kv_version=2,
    operation="0" * 32,
    created_at=datetime.datetime(2026, 11, 6, tzinfo=datetime.timezone.utc),
    key_id=SEALER.key_id,
)
BLOB = SEALER.seal(HEADER, {"before": {"secret_key": "k-1"}, "after": {}})
CONTENT: dict[str, t.Any] = json.loads(BLOB)
PLACES = [(name,) for name in CONTENT] + [("header", n) for n in CONTENT["header"]]

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


def test_the_backup_that_is_changed_below_is_a_good_one() -> None:
    assert encoded(CONTENT) == BLOB
    assert SEALER.unseal("b", BLOB).before == {"secret_key": "k-1"}


@fuzz
@given(st.binary() | st.text().map(str.encode) | json_values.map(encoded))
def test_a_file_that_is_anything_is_no_backup(blob: bytes) -> None:
    assert parsed(blob) is None


@fuzz
@given(st.sampled_from(PLACES), json_values | st.sampled_from(["\x1b[2J", "\u202e"]))
def test_a_header_that_was_changed_opens_nothing(
    place: tuple[str, ...], value: object
) -> None:
    content = copy.deepcopy(CONTENT)
    *above, name = place
    target = content[above[0]] if above else content

    if target[name] == value and type(target[name]) is type(value):
        return

    target[name] = value
    blob = encoded(content)
    found = parsed(blob)

    # What a listing prints before anything is proved.
    if found is not None:
        shown = f"{found.header.path}{found.header.namespace}{found.header.fields}"
        assert shown.isprintable() or not {"\x1b", "\u202e"} & set(shown)

    with pytest.raises(Unusable):
        SEALER.unseal("b", blob)


@fuzz
@given(st.integers(0, len(BLOB) - 1), st.integers(1, 255))
def test_one_byte_that_was_changed_opens_nothing(at: int, by: int) -> None:
    blob = bytearray(BLOB)
    blob[at] ^= by

    with pytest.raises(Unusable):
        SEALER.unseal("b", bytes(blob))
