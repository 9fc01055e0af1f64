"""``VAULT_SECRETS``: what may stand in it, and every way to write it down."""

from __future__ import annotations

import collections.abc as cabc
import dataclasses
import json
import pathlib
import sys
import typing as t

import pytest
from flask import Flask

from flask_vault import Reference
from flask_vault import Rotation
from flask_vault import Secret
from flask_vault import VaultConfigError
from flask_vault.catalog import Catalog
from flask_vault.entries import parse_entries

SECRETS = {
    "SECRET_KEY": {
        "ref": "flask#secret_key",
        "rotate": {"generator": "token", "bytes": 48},
        "keyring": True,
        "env": "SECRET_KEY",
        "name": "session",
    },
    "STRIPE_KEY": "stripe#api_key",
    "WEB_PORT": {"ref": "web#port", "cast": "int", "default": 80, "required": False},
}

PYTHON_FILE = f"""\
from flask_vault import Secret

VAULT_SECRETS = {SECRETS!r}
VAULT_SECRETS["STRIPE_KEY"] = Secret("stripe#api_key")
"""

TOML_FILE = """\
[VAULT_SECRETS]
STRIPE_KEY = "stripe#api_key"
WEB_PORT = { ref = "web#port", cast = "int", default = 80, required = false }

[VAULT_SECRETS.SECRET_KEY]
ref = "flask#secret_key"
rotate = { generator = "token", bytes = 48 }
keyring = true
env = "SECRET_KEY"
name = "session"
"""

ENVIRONMENT = {
    "FLASK_VAULT_SECRETS__STRIPE_KEY": "stripe#api_key",
    "FLASK_VAULT_SECRETS__WEB_PORT__REF": "web#port",
    "FLASK_VAULT_SECRETS__WEB_PORT__CAST": "int",
    "FLASK_VAULT_SECRETS__WEB_PORT__DEFAULT": "80",
    "FLASK_VAULT_SECRETS__WEB_PORT__REQUIRED": "false",
    "FLASK_VAULT_SECRETS__SECRET_KEY__REF": "flask#secret_key",
    "FLASK_VAULT_SECRETS__SECRET_KEY__ROTATE__GENERATOR": "token",
    "FLASK_VAULT_SECRETS__SECRET_KEY__ROTATE__BYTES": "48",
    "FLASK_VAULT_SECRETS__SECRET_KEY__KEYRING": "true",
    "FLASK_VAULT_SECRETS__SECRET_KEY__ENV": "SECRET_KEY",
    "FLASK_VAULT_SECRETS__SECRET_KEY__NAME": "session",
}


def parse_one(raw: object) -> Secret:
    (entry,) = parse_entries({"KEY": raw})
    return entry.secret


@pytest.mark.parametrize(
    "raw",
    [
        "stripe#api_key",
        {"ref": "stripe#api_key"},
        {"REF": "stripe#api_key"},
        Secret("stripe#api_key"),
    ],
)
def test_an_entry_is_text_a_mapping_or_a_secret(raw: object) -> None:
    assert parse_one(raw) == Secret("stripe#api_key")


def from_python_file(app: Flask, folder: pathlib.Path) -> None:
    (folder / "config.py").write_text(PYTHON_FILE)
    app.config.from_pyfile(folder / "config.py")


def from_mapping(app: Flask, folder: pathlib.Path) -> None:
    app.config.from_mapping(VAULT_SECRETS=SECRETS)


def from_json(app: Flask, folder: pathlib.Path) -> None:
    (folder / "config.json").write_text(json.dumps({"VAULT_SECRETS": SECRETS}))
    app.config.from_file(folder / "config.json", load=json.load)


def from_toml(app: Flask, folder: pathlib.Path) -> None:
    name = "tomllib" if sys.version_info >= (3, 11) else "tomli"
    toml = pytest.importorskip(name, reason="Python 3.10 has no tomllib.")
    (folder / "config.toml").write_text(TOML_FILE)
    app.config.from_file(folder / "config.toml", load=toml.load, text=False)


def from_environment(app: Flask, folder: pathlib.Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)

        app.config.from_prefixed_env()


@pytest.mark.parametrize(
    "load", [from_python_file, from_mapping, from_json, from_toml, from_environment]
)
def test_every_way_to_load_config_gives_the_same_entries(
    load: cabc.Callable[[Flask, pathlib.Path], None], tmp_path: pathlib.Path
) -> None:
    app = Flask(__name__)
    load(app, tmp_path)
    entries = {e.key: e for e in parse_entries(app.config["VAULT_SECRETS"])}
    # Compared below, parsed: the environment spells its names in upper case.
    secrets = {
        key: dataclasses.replace(entry.secret, rotate=None)
        for key, entry in entries.items()
    }

    assert secrets == {
        "SECRET_KEY": Secret(
            "flask#secret_key", env="SECRET_KEY", name="session", keyring=True
        ),
        "STRIPE_KEY": Secret("stripe#api_key"),
        "WEB_PORT": Secret("web#port", cast="int", default=80, required=False),
    }
    assert {key: entry.rotation for key, entry in entries.items()} == {
        "SECRET_KEY": Rotation(generator="token", options={"bytes": 48}),
        "STRIPE_KEY": None,
        "WEB_PORT": None,
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("flask#key", Reference("flask", "key")),
        ("team/flask#key", Reference("team/flask", "key")),
        ("/kv/team/flask#key", Reference("kv/team/flask", "key", absolute=True)),
        ("flask", Reference("flask")),
        ("flask#key.with-marks", Reference("flask", "key.with-marks")),
        ("a b#c d", Reference("a b", "c d")),
    ],
)
def test_a_reference_is_path_and_field(text: str, expected: Reference) -> None:
    assert Reference.parse(text) == expected
    assert str(expected) == text


@pytest.mark.parametrize(
    ("ref", "cure"),
    [
        ("", "write 'path#field'"),
        ("flask#", "write 'flask#field'"),
        ("flask# ", "write 'flask#field'"),
        ("#", "write 'path#field'"),
        ("#x", "write 'path#field'"),
        ("/#x", "write 'path#field'"),
        ("a#b#c", "write 'path#field'"),
        ("a//b#x", "write single slashes"),
        ("//a#x", "write single slashes"),
        ("a/#x", "none at the end"),
        ("../x#y", "write the path out"),
        ("a/../../sys/mounts#y", "write the path out"),
        ("a/./b#y", "write the path out"),
        (" a#x", "remove it"),
        ("a /b#x", "remove it"),
        ("a\n#x", "printable characters"),
        ("a\x00b#x", "printable characters"),
        ("a#x\x7f", "printable characters"),
        ("a#x\u2028", "printable characters"),
        ("/kv#x", "write '/kv/path#field'"),
        (None, "text such as 'path#field'"),
        (7, "text such as 'path#field'"),
        ("stripe", "write 'stripe#field'"),
    ],
)
def test_a_bad_reference_names_the_key_and_the_cure(ref: object, cure: str) -> None:
    with pytest.raises(VaultConfigError) as caught:
        parse_entries({"STRIPE_KEY": {"ref": ref}})

    message = str(caught.value)
    assert message.startswith("VAULT_SECRETS['STRIPE_KEY']: ")
    assert cure in message
    # One line, whatever the reference holds.
    assert message.isprintable()


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({"ref": "a#b", "defualt": "x"}, "did you mean 'default'?"),
        ({"ref": "a#b", "Env": "x"}, "did you mean 'env'?"),
        ({"ref": "a#b", "zzz": "x"}, "the keys are ref, template, env"),
        ({"env": "x"}, "add 'ref': 'path#field'"),
        (["a#b"], "a mapping or a Secret, not list"),
        (None, "a mapping or a Secret, not NoneType"),
        ({"ref": "a#b", "cast": "integer"}, "did you mean 'int'?"),
        ({"ref": "a#b", "version": 0}, "whole number from 1"),
        ({"ref": "a#b", "version": True}, "whole number from 1"),
        ({"ref": "a#b", "version": "3"}, "whole number from 1"),
        ({"ref": "a#b", "required": "no"}, "true or false"),
        ({"ref": "a#b", "keyring": 1}, "true or false"),
        ({"ref": "a#b", "env": 5}, "'env' is text"),
        ({"ref": "a#b", "name": " "}, "'name' is text"),
        ({"ref": "a#b", "template": "{x}"}, "write 'ref': 'a' without '#b'"),
        ({"ref": "a", "template": "{x"}, "write {{ or }}"),
        ({"ref": "a", "cast": "int"}, "or 'cast': 'json' for the whole"),
        ({"ref": "a#b", "rotate": ["token"]}, "the name of a generator"),
        ({"ref": "a#b", "rotate": {"kind": "datbase"}}, "did you mean 'database'?"),
        ({"ref": "a#b", "rotate": {"generator": 5}}, "are text"),
        ({"ref": "a", "template": "{x}", "rotate": "token"}, "add 'field'"),
        ({"ref": "a#b", "rotate": "token", "version": 2}, "keep one"),
    ],
)
def test_a_bad_entry_names_the_key_and_the_cure(raw: object, said: str) -> None:
    with pytest.raises(VaultConfigError) as caught:
        parse_entries({"STRIPE_KEY": raw})

    assert str(caught.value).startswith("VAULT_SECRETS['STRIPE_KEY']: ")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (["a#b"], "VAULT_SECRETS is a mapping"),
        ("STRIPE_KEY=a#b", "VAULT_SECRETS is a mapping"),
        ({"stripe_key": "a#b"}, "upper case, such as 'STRIPE_KEY'"),
        ({3: "a#b"}, "upper case, such as 'STRIPE_KEY'"),
        ({"VAULT_TOKEN": "a#b"}, "VAULT_SECRETS['VAULT_TOKEN'] would take a setting"),
    ],
)
def test_bad_vault_secrets_say_what_is_wrong(raw: object, said: str) -> None:
    with pytest.raises(VaultConfigError) as caught:
        parse_entries(raw)

    assert said in str(caught.value)


def test_two_entries_may_not_share_a_name() -> None:
    secrets = {"A": {"ref": "a#x", "name": "n"}, "B": {"ref": "b#x", "name": "n"}}

    with pytest.raises(VaultConfigError) as caught:
        parse_entries(secrets)

    assert str(caught.value) == (
        "VAULT_SECRETS['A'] and VAULT_SECRETS['B'] share the name 'n': give one of them"
        " another 'name'."
    )


@pytest.mark.parametrize("raw", [None, {}])
def test_no_entries_are_no_error(raw: object) -> None:
    assert parse_entries(raw) == ()


@pytest.mark.parametrize(
    ("rotate", "expected"),
    [
        ("hex", Rotation(generator="hex")),
        (
            {"GENERATOR": "token", "BYTES": 48},
            Rotation(generator="token", options={"bytes": 48}),
        ),
        (
            {"kind": "database", "field": "password"},
            Rotation("database", "password", "password"),
        ),
        (Rotation(generator="fernet"), Rotation(generator="fernet")),
    ],
)
def test_rotate_is_a_generator_or_a_mapping(rotate: t.Any, expected: Rotation) -> None:
    (entry,) = parse_entries({"KEY": Secret("a#b", rotate=rotate)})

    assert entry.rotation == expected


def test_two_entries_of_one_field_must_agree_how_to_rotate_it() -> None:
    def catalog(first: str, second: str) -> Catalog:
        secrets = {
            "A": {"ref": "flask#key", "rotate": first},
            "B": {"ref": "/secret/flask#key", "rotate": second},
        }
        return Catalog("secret", "", parse_entries(secrets))

    with pytest.raises(VaultConfigError, match="give them the same 'rotate'"):
        catalog("token", "hex")

    assert len(catalog("token", "token").plan().targets) == 1


def test_a_generator_that_cannot_work_is_an_error_at_the_start() -> None:
    entries = parse_entries({"KEY": {"ref": "a#b", "rotate": "tokn"}})

    with pytest.raises(VaultConfigError) as caught:
        Catalog("secret", "", entries)

    assert str(caught.value).startswith("VAULT_SECRETS['KEY']: ")


def test_the_repr_of_an_entry_hides_its_default() -> None:
    (entry,) = parse_entries({"KEY": {"ref": "a#b", "default": "canary-1d5e"}})

    assert "canary-1d5e" not in repr(entry)
