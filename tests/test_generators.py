from __future__ import annotations

import base64
import builtins
import re
import string
import sys
import traceback
import typing as t
import urllib.parse
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from flask_vault.errors import RotationError
from flask_vault.errors import VaultConfigError
from flask_vault.rotation.generators import check
from flask_vault.rotation.generators import GENERATORS
from flask_vault.rotation.generators import make

CANARY = "canary-5f2d"


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of the user's with generators, good and bad."""
    (tmp_path / "user_keys.py").write_text(
        f"""\
not_a_function = 1

def prefixed(prefix="sk", size=8):
    return prefix + "_" + "x" * size

class Keys:
    @staticmethod
    def named():
        return "from-a-class"

def raises():
    value = "{CANARY}"
    raise ValueError(f"cannot use {{value}}")

def raises_attribute_error():
    raise AttributeError("{CANARY}")

def returns_none():
    return None

def returns_bytes():
    return b"{CANARY}"

def returns_nothing():
    return ""

def returns_blanks():
    return " \\n"
"""
    )
    (tmp_path / "user_broken.py").write_text(f'raise RuntimeError("{CANARY}")\n')
    (tmp_path / "user_imports.py").write_text("import user_no_such_dependency\n")
    monkeypatch.syspath_prepend(tmp_path)
    # Python's cache of modules outlives the directory.
    for name in ("user_keys", "user_broken", "user_imports"):
        monkeypatch.delitem(sys.modules, name, raising=False)

    return "user_keys"


def test_the_names_of_the_builtin_generators() -> None:
    assert GENERATORS == (
        "token",
        "password",
        "hex",
        "fernet",
        "rsa",
        "ec",
        "ed25519",
    )


@pytest.mark.parametrize("generator", GENERATORS)
def test_every_value_is_a_new_one(generator: str) -> None:
    # An RSA key takes a tenth of a second.
    times = 3 if generator == "rsa" else 50

    assert len({make(generator, {}) for _ in range(times)}) == times


@pytest.mark.parametrize(("options", "size"), [({}, 32), ({"bytes": 48}, 48)])
def test_a_token_is_urlsafe_base64_of_so_many_bytes(
    options: dict[str, object], size: int
) -> None:
    value = make("token", options)

    assert re.fullmatch(r"[A-Za-z0-9_-]+", value)
    assert len(base64.urlsafe_b64decode(value + "=" * (-len(value) % 4))) == size


@pytest.mark.parametrize(("options", "size"), [({}, 32), ({"bytes": 16}, 16)])
def test_hex_is_so_many_bytes(options: dict[str, object], size: int) -> None:
    assert len(bytes.fromhex(make("hex", options))) == size


def test_a_fernet_key_encrypts() -> None:
    from cryptography.fernet import Fernet

    fernet = Fernet(make("fernet", {}))

    assert fernet.decrypt(fernet.encrypt(b"text")) == b"text"


@pytest.mark.parametrize(
    ("generator", "options", "kind", "bits"),
    [
        ("rsa", {}, rsa.RSAPrivateKey, 2048),
        ("rsa", {"bits": 3072}, rsa.RSAPrivateKey, 3072),
        ("ec", {}, ec.EllipticCurvePrivateKey, 256),
        ("ec", {"curve": "P-256"}, ec.EllipticCurvePrivateKey, 256),
        ("ec", {"curve": "P-384"}, ec.EllipticCurvePrivateKey, 384),
        ("ec", {"curve": "P-521"}, ec.EllipticCurvePrivateKey, 521),
        ("ed25519", {}, ed25519.Ed25519PrivateKey, None),
    ],
)
def test_a_key_pair_is_its_private_half_as_pkcs8_pem(
    generator: str, options: dict[str, object], kind: type, bits: int | None
) -> None:
    value = make(generator, options)
    key = load_pem_private_key(value.encode(), password=None)

    assert value.startswith("-----BEGIN PRIVATE KEY-----\n")
    assert value.endswith("\n-----END PRIVATE KEY-----\n")
    assert isinstance(key, kind)
    assert getattr(key, "key_size", None) == bits


@pytest.mark.parametrize("length", [16, 32, 200])
def test_a_password_has_its_length_and_one_character_of_each_class(length: int) -> None:
    for _ in range(200):
        value = make("password", {"length": length})

        assert len(value) == length
        assert set(value) & set(string.ascii_lowercase)
        assert set(value) & set(string.ascii_uppercase)
        assert set(value) & set(string.digits)
        assert set(value) & set("-._")


def test_a_password_needs_no_quotes_in_a_url_or_a_shell() -> None:
    for _ in range(200):
        value = make("password", {})

        assert urllib.parse.quote(value, safe="") == value
        assert re.fullmatch(r"[A-Za-z0-9._-]+", value)
        # "-x" would be an option.
        assert value[0].isalnum()


def test_a_password_is_32_characters_long_by_default() -> None:
    assert len(make("password", {})) == 32


@pytest.mark.parametrize("path", ["user_keys:prefixed", "user_keys.prefixed"])
def test_a_dotted_path_is_called_with_the_options(user_module: str, path: str) -> None:
    assert make(path, {}) == "sk_xxxxxxxx"
    assert make(path, {"prefix": "pk", "size": 2}) == "pk_xx"


def test_a_dotted_path_may_lead_into_a_class(user_module: str) -> None:
    assert make("user_keys:Keys.named", {}) == "from-a-class"


def test_check_imports_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_import(*args: object, **kwargs: object) -> t.NoReturn:
        raise AssertionError("imported")

    monkeypatch.setattr("importlib.import_module", no_import)
    monkeypatch.setattr(builtins, "__import__", no_import)

    check("no_such_package.module:function", {"any": "option"})
    check("no_such_package.module.function", {})
    check("fernet", {})
    check("token", {"bytes": 16})
    check("rsa", {"bits": 4096})
    check("ec", {"curve": "P-384"})


@pytest.mark.parametrize("function", [check, make])
@pytest.mark.parametrize(
    ("generator", "options", "message"),
    [
        ("tokn", {}, "There is no generator 'tokn'. Did you mean 'token'?"),
        ("xyzzy", {}, "It must be one of 'token', 'password', 'hex', 'fernet'"),
        ("", {}, "There is no generator ''"),
        ("a..b", {}, "There is no generator 'a..b'"),
        ("../a:b", {}, "There is no generator"),
        ("a:", {}, "There is no generator"),
        (":a", {}, "There is no generator"),
        ("a:b:c", {}, "There is no generator"),
        ("a b:c", {}, "There is no generator"),
        ("os.import", {}, "There is no generator"),
        ("token", {"byte": 32}, "no option 'byte'. Did you mean 'bytes'?"),
        ("token", {"length": 32}, "no option 'length'. It takes 'bytes'."),
        ("fernet", {"bytes": 32}, "no option 'bytes'. It takes no options."),
        ("token", {"bytes": 15}, "must be from 16 to 1024, not 15"),
        ("hex", {"bytes": 15}, "must be from 16 to 1024, not 15"),
        ("password", {"length": 15}, "must be from 16 to 1024, not 15"),
        ("password", {"length": -1}, "must be from 16 to 1024, not -1"),
        ("token", {"bytes": 10**9}, "must be from 16 to 1024"),
        ("token", {"bytes": "32"}, "must be a whole number, not a str"),
        ("token", {"bytes": 32.0}, "must be a whole number, not a float"),
        ("token", {"bytes": True}, "must be a whole number, not a bool"),
        ("token", {"bytes": None}, "must be a whole number, not a NoneType"),
        ("rsa", {"bits": 1024}, "must be from 2048 to 8192, not 1024"),
        ("rsa", {"bits": 16384}, "must be from 2048 to 8192, not 16384"),
        ("rsa", {"bits": 2049}, "must be a multiple of 8, not 2049"),
        ("rsa", {"bits": "2048"}, "must be a whole number, not a str"),
        ("rsa", {"curve": "P-256"}, "no option 'curve'. It takes 'bits'."),
        ("ec", {"curve": "P-224"}, "one of 'P-256', 'P-384', 'P-521', not 'P-224'"),
        ("ec", {"curve": 256}, "one of 'P-256', 'P-384', 'P-521', not int"),
        ("ec", {"curve": ["P-256"]}, "one of 'P-256', 'P-384', 'P-521', not list"),
        ("ec", {"curves": "P-256"}, "no option 'curves'. Did you mean 'curve'?"),
        ("ed25519", {"bits": 256}, "no option 'bits'. It takes no options."),
    ],
)
def test_a_wrong_name_or_option_is_told_before_a_value_is_made(
    function: t.Callable[[str, dict[str, object]], object],
    generator: str,
    options: dict[str, object],
    message: str,
) -> None:
    with pytest.raises(VaultConfigError, match=re.escape(message)):
        function(generator, options)


@pytest.mark.parametrize(
    ("generator", "options", "message"),
    [
        ("user_none:make", {}, "there is no module 'user_none'"),
        ("user_keys.none:make", {}, "there is no module 'user_keys.none'"),
        ("user_imports:make", {}, "there is no module 'user_no_such_dependency'"),
        ("user_keys:none", {}, "there is no 'none' in 'user_keys'"),
        ("user_keys:Keys.none", {}, "there is no 'Keys.none' in 'user_keys'"),
        ("user_keys:not_a_function", {}, "it is of type 'int', and not a function"),
        ("user_broken:make", {}, "importing 'user_broken' raised RuntimeError"),
        ("user_keys:prefixed", {"siz": 1}, "unexpected keyword argument 'siz'"),
    ],
)
def test_a_dotted_path_that_cannot_be_called(
    user_module: str, generator: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(VaultConfigError) as caught:
        make(generator, options)

    assert message in str(caught.value)
    assert repr(generator) in str(caught.value)
    assert CANARY not in _everything(caught.value)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("raises", "raised ValueError"),
        ("raises_attribute_error", "raised AttributeError"),
        ("returns_none", "returned 'NoneType', and not a str"),
        ("returns_bytes", "returned 'bytes', and not a str"),
        ("returns_nothing", "returned an empty str"),
        ("returns_blanks", "returned an empty str"),
    ],
)
def test_a_function_that_fails_is_named_without_what_it_said(
    user_module: str, function: str, message: str
) -> None:
    with pytest.raises(RotationError) as caught:
        make(f"user_keys:{function}", {})

    assert f"The generator 'user_keys:{function}' {message}" in str(caught.value)
    assert CANARY not in _everything(caught.value)


def test_a_function_that_raises_is_told_with_its_place(user_module: str) -> None:
    with pytest.raises(RotationError, match=r"user_keys\.py, line 13\)"):
        make("user_keys:raises", {})


def test_an_interrupt_is_not_wrapped(
    user_module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted() -> t.NoReturn:
        raise KeyboardInterrupt

    import user_keys  # type: ignore[import-not-found]

    monkeypatch.setattr(user_keys, "raises", interrupted)

    with pytest.raises(KeyboardInterrupt):
        make("user_keys:raises", {})


def _everything(error: BaseException) -> str:
    """All that a logger could print of an error, suppressed contexts included."""
    text = ""
    seen: list[BaseException | None] = [error]

    for item in seen:
        if item is not None:
            text += repr(item) + "".join(traceback.format_exception(item))
            seen += [item.__cause__, item.__context__]

    return text
