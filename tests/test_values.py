"""From a stored value to the type that an entry asks for."""

from __future__ import annotations

import typing as t

import pytest

from flask_vault import SecretFieldError
from flask_vault import SecretValueError
from flask_vault.entries import parse_entries
from flask_vault.values import resolve

CANARY = "canary-77aa"


def value_of(data: dict[str, t.Any], **secret: object) -> t.Any:
    (entry,) = parse_entries({"KEY": {"ref": "app#v", **secret}})
    return resolve(entry, data, "secret/app")


@pytest.mark.parametrize(
    ("cast", "stored", "expected"),
    [
        (None, "text", "text"),
        (None, "", ""),
        (None, 5432, "5432"),
        (None, True, "true"),
        ("str", 2.5, "2.5"),
        ("int", "5432", 5432),
        ("int", 5432, 5432),
        ("int", 3.0, 3),
        ("float", "2.5", 2.5),
        ("float", 2, 2.0),
        ("bool", "yes", True),
        ("bool", "OFF", False),
        ("bool", True, True),
        ("bool", 0, False),
        ("json", '{"a": [1]}', {"a": [1]}),
        ("json", {"a": [1]}, {"a": [1]}),
        ("json", "null", None),
        ("bytes", "AP8=", b"\x00\xff"),
        ("bytes", "AP-_", b"\x00\xff\xbf"),
        ("bytes", "AP8", b"\x00\xff"),
    ],
)
def test_cast(cast: str | None, stored: object, expected: object) -> None:
    value = value_of({"v": stored}, cast=cast)

    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("cast", "stored", "said"),
    [
        (None, None, "is null: write one to Vault"),
        ("json", None, "is null: write one to Vault"),
        (None, {"a": CANARY}, "is a nested object: add 'cast': 'json'"),
        ("int", [CANARY], "is a nested list: add 'cast': 'json'"),
        ("int", CANARY, "is no int: correct it in Vault, or the 'cast'"),
        ("int", 2.5, "is no int"),
        ("int", "9" * 5000, "is no int"),
        ("float", CANARY, "is no float"),
        ("bool", CANARY, "is no bool"),
        ("bool", 2, "is no bool"),
        ("bytes", f"{CANARY}!", "is no bytes"),
        ("bytes", "\u00fc", "is no bytes"),
        ("bytes", 5, "is no bytes"),
        ("json", f"{{{CANARY}", "is not JSON"),
        ("json", "[" * 100_000, "is not JSON"),
    ],
)
def test_a_value_that_cannot_be_used_says_why_and_is_not_shown(
    cast: str | None, stored: object, said: str
) -> None:
    with pytest.raises(SecretValueError) as caught:
        value_of({"v": stored}, cast=cast)

    assert said in str(caught.value)
    assert "'secret/app#v'" in str(caught.value)
    assert CANARY not in str(caught.value)


def test_a_missing_field_is_told_with_those_that_there_are() -> None:
    with pytest.raises(SecretFieldError) as caught:
        value_of({"b": CANARY, "a": CANARY, "_rotation": {}})

    assert str(caught.value) == (
        "The document 'secret/app' has no field 'v'; it has a, b:"
        " correct the reference, or add it with 'flask vault set'."
    )


def test_the_whole_document_comes_without_what_is_ours() -> None:
    data = {"a": 1, "b": None, "_rotation": {"v": 1}}

    assert value_of(data, ref="app", cast="json") == {"a": 1, "b": None}


def test_our_own_field_is_no_secret_of_the_apps() -> None:
    with pytest.raises(SecretFieldError):
        value_of({"_rotation": {}}, ref="app#_rotation", cast="json")


def test_a_template_takes_numbers_and_escapes_text() -> None:
    data = {"user": "a@b", "port": 5432}

    assert (
        value_of(data, ref="app", template="x://{user}@db:{port}/")
        == "x://a%40b@db:5432/"
    )


@pytest.mark.parametrize(
    ("data", "kind", "said"),
    [
        ({"usr": "x"}, SecretFieldError, "no field 'user'; it has usr"),
        ({"user": None}, SecretValueError, "'secret/app#user' is null"),
        ({"user": {"a": CANARY}}, SecretValueError, "nested object"),
    ],
)
def test_a_template_over_a_bad_document_says_which_field(
    data: dict[str, t.Any], kind: type[Exception], said: str
) -> None:
    with pytest.raises(kind) as caught:
        value_of(data, ref="app", template="x://{user}@db")

    assert said in str(caught.value)
    assert CANARY not in str(caught.value)
