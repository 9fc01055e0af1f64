"""``flask vault import``: what goes where, and that nothing is lost or shown."""

from __future__ import annotations

import collections.abc as cabc
import json
import pathlib
import sys
import typing as t

import pytest
from click.testing import CliRunner
from click.testing import Result
from flask import Flask
from flask.cli import ScriptInfo

from flask_vault import FlaskVault
from flask_vault import VaultConfigError
from flask_vault.cli import vault_group
from flask_vault.entries import parse_entries
from flask_vault.import_plan import assign
from flask_vault.import_plan import read_dotenv
from flask_vault.testing import FaultProxy
from flask_vault.testing.plugin import VaultMount
from tests.helpers import approle
from tests.helpers import before_each_write
from tests.helpers import is_write
from tests.helpers import may_read

CANARY = "canary-b1d4"
DOTENV = f"""\
# The app.
FLASK_APP=shop
DEBUG=1
VAULT_TOKEN=t
export SECRET_KEY='{CANARY} with blanks # and a sign'
STRIPE_API_KEY={CANARY}-stripe
STRIPE_WEBHOOK="{CANARY}-hook\\nsecond line"
EMPTY=
"""

Run = cabc.Callable[..., Result]


@pytest.fixture
def file(tmp_path: pathlib.Path) -> pathlib.Path:
    file = tmp_path / ".env"
    file.write_text(DOTENV)
    return file


@pytest.fixture
def run(vault_mount: VaultMount, file: pathlib.Path) -> Run:
    """Run the command on an app that declares this."""

    def run(
        *arguments: str, secrets: object = None, stdin: str = "", **config: object
    ) -> Result:
        def create_app() -> Flask:
            app = Flask("shop")
            app.config.from_mapping(
                {**vault_mount.config(), "VAULT_SECRETS": secrets or {}, **config}
            )
            FlaskVault(app)
            return app

        result = CliRunner().invoke(
            vault_group,
            ["import", str(file), *arguments],
            obj=ScriptInfo(create_app=create_app),
            input=stdin,
        )
        assert CANARY not in result.output

        if not isinstance(result.exception, SystemExit | None):
            raise result.exception

        return result

    return run


def report(result: Result) -> t.Any:
    return json.loads(result.stdout)


def test_what_nobody_declared_goes_to_a_document_of_its_first_word(
    run: Run, vault_mount: VaultMount
) -> None:
    assert run().exit_code == 0

    assert vault_mount.read("flask") == {
        "secret_key": f"{CANARY} with blanks # and a sign"
    }
    assert vault_mount.read("stripe") == {
        "api_key": f"{CANARY}-stripe",
        "webhook": f"{CANARY}-hook\nsecond line",
    }


def test_what_is_declared_goes_where_that_says(
    run: Run, vault_mount: VaultMount
) -> None:
    secrets = {
        "PAYMENT_KEY": {"ref": "pay#key", "env": "STRIPE_API_KEY"},
        "STRIPE_WEBHOOK": f"/{vault_mount.name}/elsewhere/hooks#stripe",
    }
    result = run(secrets=secrets, VAULT_PREFIX="shop/prod")

    assert vault_mount.read("shop/prod/pay") == {"key": f"{CANARY}-stripe"}
    assert "stripe" in vault_mount.read("elsewhere/hooks")
    # What is to be pasted is what is not there yet.
    assert '"SECRET_KEY": "flask#secret_key",' in result.stdout
    assert '"PAYMENT_KEY"' not in result.stdout


def test_what_it_prints_to_paste_starts_the_app(
    run: Run, vault_mount: VaultMount
) -> None:
    (block,) = run().stdout.split("VAULT_SECRETS = ")[1:]
    namespace: dict[str, t.Any] = {}
    exec(f"entries = {block[: block.index('}') + 1]}", namespace)  # noqa: S102
    app = Flask("shop")
    app.config.from_mapping(vault_mount.config(VAULT_SECRETS=namespace["entries"]))
    FlaskVault(app)

    assert app.config["STRIPE_API_KEY"] == f"{CANARY}-stripe"
    assert app.config["SECRET_KEY"] == f"{CANARY} with blanks # and a sign"


def test_settings_stay_in_the_file(run: Run) -> None:
    stay = report(run("--dry-run", "--json"))["skipped"]

    assert stay == {
        "FLASK_APP": "a setting",
        "DEBUG": "a setting",
        "VAULT_TOKEN": "a setting",
        "EMPTY": "empty",
    }


def test_a_dry_run_writes_nothing(run: Run, vault_proxy: FaultProxy) -> None:
    result = run("--dry-run", VAULT_ADDR=vault_proxy.address)

    assert result.exit_code == 0
    assert "Nothing was written" in result.stdout
    assert "stripe#webhook" in result.stdout
    assert not any(is_write(request) for request in vault_proxy.requests)


def test_a_document_is_written_once(run: Run, vault_proxy: FaultProxy) -> None:
    run(VAULT_ADDR=vault_proxy.address)

    written = [r.path for r in vault_proxy.requests if is_write(r)]
    assert sorted(path.rpartition("/")[2] for path in written) == ["flask", "stripe"]


def test_what_is_there_stays_unless_it_is_to_be_replaced(
    run: Run, vault_mount: VaultMount
) -> None:
    vault_mount.write("stripe", {"api_key": "by-hand", "other": "field"})
    result = run()

    assert result.exit_code == 0
    assert "another value is there, which stays" in result.stdout
    assert vault_mount.read("stripe") == {
        "api_key": "by-hand",
        "other": "field",
        "webhook": f"{CANARY}-hook\nsecond line",
    }

    run("--replace")
    assert vault_mount.read("stripe")["api_key"] == f"{CANARY}-stripe"
    assert vault_mount.read("stripe")["other"] == "field"


def test_a_second_import_writes_nothing(run: Run, vault_proxy: FaultProxy) -> None:
    run()
    result = run("--replace", "--json", VAULT_ADDR=vault_proxy.address)

    assert {v["action"] for v in report(result)["variables"]} == {"same"}
    assert not any(is_write(request) for request in vault_proxy.requests)


def test_who_writes_meanwhile_is_not_overwritten(
    run: Run, vault_mount: VaultMount, vault_proxy: FaultProxy
) -> None:
    before_each_write(
        vault_proxy, lambda: vault_mount.write("flask", {"secret_key": "theirs"})
    )
    result = run("--only", "SECRET_KEY", VAULT_ADDR=vault_proxy.address)

    assert result.exit_code == 3
    assert "run the command again" in result.stderr
    assert vault_mount.read("flask") == {"secret_key": "theirs"}


def test_a_denial_of_one_document_does_not_keep_the_others(
    run: Run, vault_mount: VaultMount, vault_server: t.Any
) -> None:
    rights = '{ capabilities = ["create", "read", "update"] }'
    policy = may_read(vault_mount) + f'path "{vault_mount.name}/data/stripe" {rights}'
    config = {"VAULT_TOKEN": None, "VAULT_AUTH": approle(vault_server, policy)}
    result = run(**config)

    assert result.exit_code == 7
    assert f"{vault_mount.name}/flask: not written." in result.stderr
    assert "api_key" in vault_mount.read("stripe")


def test_names_choose(run: Run, vault_mount: VaultMount) -> None:
    run("--only", "STRIPE_API_KEY", "--only", "DEBUG")
    assert vault_mount.read("app") == {"debug": "1"}
    assert set(vault_mount.read("stripe")) == {"api_key"}

    found = report(run("--except", "SECRET_KEY", "--dry-run", "--json"))
    assert found["skipped"]["SECRET_KEY"] == "left out"

    result = run("--only", "STRIPE_KEY")
    assert result.exit_code == 2
    assert "no variable 'STRIPE_KEY'" in result.stderr


def test_a_line_that_cannot_be_read_stops_it(run: Run, file: pathlib.Path) -> None:
    """python-dotenv alone would go on without the variable."""
    file.write_text(f"GOOD=1\nBAD='{CANARY}\n")
    result = run()

    assert result.exit_code == 2
    assert "Line 2" in result.stderr


def test_it_says_how_to_get_what_reads_the_file(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "dotenv", None)
    result = run()

    assert result.exit_code == 2
    assert "flask-vault[dotenv]" in result.stderr


def test_a_file_is_read_as_flask_reads_it(file: pathlib.Path) -> None:
    file.write_bytes(
        b"\xef\xbb\xbfA_B=one\r\nexport C='t\xc3\xbc # o' # said\nD=${A_B}-two\nE\n"
    )

    assert read_dotenv(file) == {
        "A_B": "one", "C": "tü # o", "D": "one-two", "E": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("SECRET_KEY", "flask#secret_key"),
        ("FLASK_SECRET_KEY", "flask#secret_key"),
        ("DATABASE_URL", "database#url"),
        ("FLASK_SQLALCHEMY_DATABASE_URI", "sqlalchemy#database_uri"),
        ("PASSWORD", "app#password"),
    ],
)
def test_a_name_is_a_place(name: str, reference: str) -> None:
    ((item,), _) = assign({name: "x"}, ())

    assert str(item.reference) == reference
    assert item.key == name.removeprefix("FLASK_")


@pytest.mark.parametrize(
    ("name", "raw", "reason"),
    [
        ("URL", {"ref": "db", "template": "x://{a}"}, "a template"),
        ("URL", {"ref": "db#url", "version": 2}, "pins a version"),
        ("URL", {"ref": "db", "cast": "json"}, "a whole document"),
    ],
)
def test_an_entry_that_one_text_cannot_fill_is_left(
    name: str, raw: object, reason: str
) -> None:
    assigned, (skipped,) = assign({name: "x"}, parse_entries({name: raw}))

    assert not assigned
    assert reason in skipped.reason


@pytest.mark.parametrize(
    "name", ["FLASK_A__B", "lower", "A-B", "SESSION_COOKIE_NAME", "BAO_ADDR"]
)
def test_what_is_no_secret_of_the_app_is_left(name: str) -> None:
    assert assign({name: "x"}, ())[0] == []


def test_two_variables_for_one_secret_must_agree() -> None:
    same = {"SECRET_KEY": "x", "FLASK_SECRET_KEY": "x"}
    assert len(assign(same, ())[0]) == 2

    with pytest.raises(VaultConfigError, match="--except FLASK_SECRET_KEY"):
        assign({**same, "FLASK_SECRET_KEY": "y"}, ())
