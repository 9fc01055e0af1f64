"""The ``VAULT_*`` keys: where each comes from, and what a wrong one gets."""

from __future__ import annotations

import json
import logging
import pathlib
import typing as t

import pytest
from flask import Flask

from flask_vault import VaultConfigError
from flask_vault.settings import DEV_FILE
from flask_vault.settings import Settings

ADDRESS = "https://vault.internal:8200"
CANARY = "canary-31f0"


def read(environ: dict[str, str] | None = None, **config: t.Any) -> Settings:
    return Settings.from_mapping({"VAULT_ADDR": ADDRESS, **config}, environ or {})


def error_for(environ: dict[str, str] | None = None, **config: t.Any) -> str:
    with pytest.raises(VaultConfigError) as caught:
        read(environ, **config)

    return str(caught.value)


@pytest.mark.parametrize(
    ("key", "attribute", "value"),
    [
        ("ADDR", "addresses", "https://other:8200"),
        ("TOKEN", "token", "t-1"),
        ("NAMESPACE", "namespace", "team"),
        ("CACERT", "cacert", __file__),
    ],
)
def test_config_goes_before_vault_goes_before_bao(
    key: str, attribute: str, value: str
) -> None:
    vault, bao, config = f"VAULT_{key}", f"BAO_{key}", {f"VAULT_{key}": value}
    other = "https://wrong:1" if key == "ADDR" else str(pathlib.Path(__file__).parent)

    def got(environ: dict[str, str], config: dict[str, str]) -> object:
        base = {} if key == "ADDR" else {"VAULT_ADDR": ADDRESS}
        found = getattr(Settings.from_mapping({**base, **config}, environ), attribute)
        return "".join(found) if key == "ADDR" else found

    assert got({bao: value}, {}) == value
    assert got({vault: value, bao: other}, {}) == value
    assert got({vault: other, bao: other}, config) == value
    # An empty variable is how a shell unsets one.
    assert got({vault: "", bao: value}, {}) == value


def test_the_name_of_the_environment_may_come_from_the_environment() -> None:
    prefix = "store-erp/{environment}"
    environ = {"VAULT_ENVIRONMENT": "prod"}

    assert read(environ, VAULT_PREFIX=prefix).prefix == "store-erp/prod"
    assert (
        read(environ, VAULT_PREFIX=prefix, VAULT_ENVIRONMENT="dev").prefix
        == "store-erp/dev"
    )


def test_nobody_guesses_the_name_of_the_environment() -> None:
    message = error_for(VAULT_PREFIX="store-erp/{environment}")

    assert "VAULT_PREFIX" in message
    assert "VAULT_ENVIRONMENT is unset: set it" in message


def test_an_image_is_built_without_the_name_of_an_environment() -> None:
    settings = Settings.from_mapping(
        {"VAULT_ENABLED": False, "VAULT_PREFIX": "store-erp/{environment}"}, {}
    )

    assert not settings.enabled


def test_values_that_flask_made_of_environment_variables(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {
        "ADDR": ADDRESS,
        "ENABLED": "true",
        "SKIP_VERIFY": "off",
        "NAMESPACE": "123",
        "KV_VERSION": "2",
        "CACHE_TTL": "1.5",
        "BACKUP_KEYS": "one, two",
        "BACKUP_DIR": "/var/backups",
        "HEALTH": "0",
    }.items():
        monkeypatch.setenv(f"FLASK_VAULT_{name}", value)

    app = Flask(__name__)
    app.config.from_prefixed_env()
    settings = Settings.from_mapping(app.config)

    assert settings == Settings(
        addresses=(ADDRESS,),
        namespace="123",
        kv_version=2,
        cache_ttl=1.5,
        backup_keys=("one", "two"),
        backup_dir=pathlib.Path("/var/backups"),
        health=False,
    )


@pytest.mark.parametrize(
    "address", [f" {ADDRESS}/ ", f"{ADDRESS}/v1", f"{ADDRESS}/v1/"]
)
def test_an_address_is_tidied(address: str) -> None:
    assert read(VAULT_ADDR=address).addresses == (ADDRESS,)


@pytest.mark.parametrize(
    "address",
    [
        "vault.internal:8200",
        "//vault.internal",
        "ftp://vault.internal",
        "https://",
        "https://[::1",
        "https://vault:99999",
        f"https://root:{CANARY}@vault.internal",
        f"https://vault.internal?token={CANARY}",
        f"https://vault.internal#{CANARY}",
    ],
)
def test_what_is_no_address_is_not_shown(address: str) -> None:
    message = error_for(VAULT_ADDR=address)

    assert "VAULT_ADDR is no address" in message
    assert "'https://vault.example.com:8200'" in message
    assert CANARY not in message


def test_without_an_address_both_ways_on_are_told() -> None:
    message = error_for(VAULT_ADDR=None)

    assert "VAULT_ADDR is unset: set it" in message
    assert "VAULT_ENABLED to False" in message


@pytest.mark.parametrize("token", [f"a\n{CANARY}", f"{CANARY}\x00", f"{CANARY}\u00fc"])
def test_a_token_that_no_header_can_hold_is_not_shown(token: str) -> None:
    message = error_for(VAULT_TOKEN=token)

    assert "VAULT_TOKEN holds" in message
    assert "one line of printable characters" in message
    assert CANARY not in message


def test_a_line_break_after_a_token_is_what_files_end_with() -> None:
    assert read(VAULT_TOKEN="t-1\n").token == "t-1"


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("VAULT_ENABLED", "perhaps", "true or false"),
        ("VAULT_SKIP_VERIFY", 2, "true or false"),
        ("VAULT_HEALTH", [], "true or false"),
        ("VAULT_TOKEN", b"x", "is text, not bytes"),
        ("VAULT_MOUNT", "a//b", "single slashes"),
        ("VAULT_MOUNT", "../sys", "write the path out"),
        ("VAULT_PREFIX", "a/../b", "write the path out"),
        ("VAULT_PREFIX", "a/{env}", "the only placeholder is {environment}"),
        ("VAULT_PREFIX", "a\nb", "printable characters"),
        ("VAULT_KV_VERSION", 3, "1 or 2"),
        ("VAULT_KV_VERSION", "v2", "1 or 2"),
        ("VAULT_CACHE_TTL", -1, "seconds of 0 or more"),
        ("VAULT_CACHE_TTL", "5m", "seconds of 0 or more"),
        ("VAULT_CACHE_TTL", "nan", "seconds of 0 or more"),
        ("VAULT_MAX_STALE", "inf", "seconds of 0 or more"),
        ("VAULT_MAX_STALE", True, "seconds of 0 or more"),
        ("VAULT_CONNECT_TIMEOUT", 0, "seconds above 0"),
        ("VAULT_READ_TIMEOUT", "", "seconds above 0"),
        ("VAULT_CACERT", "/no/such/file", "there is no file '/no/such/file'"),
        ("VAULT_BACKUP_KEYS", [1], "list of texts"),
        ("VAULT_BACKUP_KEYS", 5, "list of texts"),
        ("VAULT_HEALTH_URL_PREFIX", "vault", "begins with a slash"),
        ("VAULT_HEALTH_DETAILS", "all", "'never', 'token', 'always'"),
        ("VAULT_HEALTH_DETAILS", "token", "VAULT_HEALTH_TOKEN is unset: set it"),
        ("VAULT_ADDRR", "x", "did you mean VAULT_ADDR?"),
        ("VAULT_SECRET", {}, "did you mean VAULT_SECRETS?"),
        ("VAULT_CACHE_TLL", 5, "did you mean VAULT_CACHE_TTL?"),
    ],
)
def test_a_wrong_key_is_named_with_what_it_takes(
    key: str, value: t.Any, said: str
) -> None:
    message = error_for(**{key: value})

    assert message.startswith(key)
    assert said in message
    assert message.isprintable()


def test_the_environments_name_is_one_segment() -> None:
    def error(name: str) -> str:
        return error_for(VAULT_PREFIX="a/{environment}", VAULT_ENVIRONMENT=name)

    assert "VAULT_ENVIRONMENT holds no slash" in error("prod/x")
    assert "write the path out" in error("..")
    assert "brace" in error("{environment}")


def test_slashes_around_mount_and_prefix_mean_nothing() -> None:
    settings = read(VAULT_MOUNT="/team/kv/", VAULT_PREFIX="/store/")

    assert (settings.mount, settings.prefix) == ("team/kv", "store")


def test_none_is_unset() -> None:
    assert read(VAULT_READ_TIMEOUT=None, VAULT_ENABLED=None) == read()


def test_a_key_of_a_later_version_is_told_and_ignored(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert read(VAULT_OF_TOMORROW=60) == read()
    assert "VAULT_OF_TOMORROW is no key of this version" in caplog.text
    assert caplog.records[0].levelno == logging.WARNING


def test_the_settings_of_dynaconf_are_not_ours_to_judge(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It has 13 of them in ``app.config``, also when it leaves Vault alone."""
    assert read(VAULT_ENABLED_FOR_DYNACONF=False) == read()
    assert caplog.text == ""


def test_the_repr_hides_what_is_secret() -> None:
    settings = read(
        VAULT_TOKEN=CANARY,
        VAULT_AUTH={"method": "approle", "role_id": CANARY, "secret_id": CANARY},
        VAULT_BACKUP_KEYS=CANARY,
        VAULT_HEALTH_DETAILS="token",
        VAULT_HEALTH_TOKEN=CANARY,
    )

    assert CANARY not in repr(settings)


@pytest.mark.parametrize(
    ("address", "good"),
    [
        ("http://127.0.0.1:8200", True),
        ("http://[::1]:8200", True),
        ("http://10.0.0.1:8200", False),
        ("http://localhost.evil.example:8200", False),
    ],
)
def test_the_development_server_leads_an_app_to_this_host_only(
    address: str, good: bool, tmp_path: pathlib.Path
) -> None:
    file = tmp_path / "dev.json"
    file.write_text(json.dumps({"VAULT_ADDR": address}))

    if good:
        assert read({DEV_FILE: str(file)}).addresses == (address,)
    else:
        assert DEV_FILE in error_for({DEV_FILE: str(file)})


def test_a_development_server_that_is_gone_is_told() -> None:
    assert "start 'flask vault dev' again" in error_for({DEV_FILE: "/no/such/file"})
