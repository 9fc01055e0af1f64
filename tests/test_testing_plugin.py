from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import pytest

from flask_vault.errors import VaultError
from flask_vault.testing import binary
from flask_vault.testing import DevServer
from flask_vault.testing import FaultProxy
from flask_vault.testing import plugin
from flask_vault.testing.plugin import VaultMount

pytest_plugins = ["pytester"]


def run(pytester: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    """Run a user's suite, with every plugin that is installed here."""
    return pytester.runpytest_subprocess(
        "-W", "error", "-p", "no:cacheprovider", *arguments
    )


def test_a_mount_is_written_and_read(vault_mount: VaultMount) -> None:
    assert vault_mount.write("flask/app", {"key": "one"}) == 1
    assert vault_mount.write("flask/app", {"key": "two"}) == 2
    assert vault_mount.read("flask/app") == {"key": "two"}
    assert vault_mount.read("flask/app", version=1) == {"key": "one"}

    with pytest.raises(VaultError) as caught:
        vault_mount.read("missing")

    assert caught.value.status == 404


def test_a_mount_gives_the_config_to_use_it(
    vault_mount: VaultMount, vault_proxy: FaultProxy, vault_server: DevServer
) -> None:
    assert vault_mount.config(VAULT_PREFIX="shop", VAULT_ADDR=vault_proxy.address) == {
        "VAULT_ADDR": vault_proxy.address,
        "VAULT_TOKEN": vault_server.root_token,
        "VAULT_MOUNT": vault_mount.name,
        "VAULT_STARTUP_TIMEOUT": 0,
        "VAULT_PREFIX": "shop",
    }
    assert vault_mount.config()["VAULT_ADDR"] == vault_server.address


def test_a_mount_does_not_show_its_token(vault_mount: VaultMount) -> None:
    assert vault_mount.token not in repr(vault_mount)
    assert vault_mount.name in repr(vault_mount)

    with pytest.raises(dataclasses.FrozenInstanceError):
        vault_mount.token = "another"  # type: ignore[misc]


def test_the_fixtures_work_in_a_users_suite(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import json
        import urllib.request

        import pytest

        mounts = []

        @pytest.mark.parametrize("run", range(2))
        def test_each_test_has_a_mount_of_its_own(vault_mount, run):
            assert vault_mount.write("app", {"run": run}) == 1
            mounts.append(vault_mount)

        def test_a_mount_is_removed_after_its_test(vault_server):
            assert mounts[0].name != mounts[1].name
            left = vault_server.client().sys.list_mounted_secrets_engines()["data"]
            assert not {f"{mount.name}/" for mount in mounts} & set(left)

        def test_the_proxy_is_before_the_server(vault_proxy):
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

            with opener.open(f"{vault_proxy.address}/v1/sys/health") as response:
                assert json.load(response)["sealed"] is False

            assert vault_proxy.count == 1

        def test_the_mount_may_be_gone_afterwards(vault_server, vault_mount):
            vault_server.disable_mount(vault_mount.name)

        def test_the_server_may_be_gone_afterwards(vault_server, vault_mount):
            vault_server.kill()
        """
    )
    run(pytester).assert_outcomes(passed=6)


def test_each_worker_of_xdist_has_a_server_of_its_own(
    pytester: pytest.Pytester,
) -> None:
    pytest.importorskip("xdist")
    pytester.makepyfile(
        """
        import pathlib
        import time

        import pytest

        @pytest.mark.parametrize("number", range(2))
        def test_both_run_at_once(vault_server, vault_mount, number):
            met = pathlib.Path("met")
            met.mkdir(exist_ok=True)
            (met / str(number)).write_text(vault_server.address)
            deadline = time.monotonic() + 30

            while len([p for p in met.iterdir() if p.read_text()]) < 2:
                assert time.monotonic() < deadline
                time.sleep(0.01)

            assert len({path.read_text() for path in met.iterdir()}) == 2
            assert vault_mount.write("app", {}) == 1
        """
    )
    run(pytester, "-n", "2").assert_outcomes(passed=2)


def test_it_gets_along_with_pytest_flask(pytester: pytest.Pytester) -> None:
    pytest.importorskip("pytest_flask")
    pytester.makepyfile(
        """
        import flask
        import pytest

        @pytest.fixture
        def app(vault_mount):
            vault_mount.write("flask", {"secret_key": "from vault"})
            app = flask.Flask(__name__)
            app.config.from_mapping(vault_mount.config())
            app.secret_key = vault_mount.read("flask")["secret_key"]
            app.add_url_rule("/", view_func=lambda: app.config["VAULT_MOUNT"])
            return app

        def test_client(client, vault_mount):
            assert client.get("/").text == vault_mount.name

        def test_config(config, vault_mount):
            assert config["SECRET_KEY"] == "from vault"
        """
    )
    run(pytester).assert_outcomes(passed=2)


MISSING = """
    def test_with_server(vault_mount):
        pass

    def test_with_proxy(vault_proxy):
        pass

    def test_without():
        pass
"""


def test_without_a_program_the_tests_fail_with_the_cure(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(binary.VARIABLE, "no-such-program")
    pytester.makepyfile(MISSING)
    result = run(pytester)
    result.assert_outcomes(passed=1, errors=2)
    result.stdout.fnmatch_lines(
        [f"*{binary.VARIABLE}*names*no-such-program*set {plugin.SKIP_VARIABLE}=1*"]
    )
    result.stdout.no_fnmatch_line("*Traceback*")


def test_without_a_program_the_tests_are_skipped_if_asked(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(binary.VARIABLE, "no-such-program")
    monkeypatch.setenv(plugin.SKIP_VARIABLE, "1")
    pytester.makepyfile(MISSING)
    result = run(pytester, "-rs")
    result.assert_outcomes(passed=1, skipped=2)
    result.stdout.fnmatch_lines(["SKIPPED*no-such-program*"])


def test_the_plugin_costs_other_suites_nothing() -> None:
    """It is loaded in every run of pytest where Flask-Vault is installed."""
    code = """
import json, sys
import flask_vault
before = set(sys.modules)
import flask_vault.testing.plugin
print(json.dumps(sorted(set(sys.modules) - before)))
"""
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    new = {name.partition(".")[0] for name in json.loads(output)}
    assert not new & {"cryptography", "flask", "hvac", "requests", "ssl"}
    assert "flask_vault.testing.server" not in json.loads(output)


def test_the_names_of_the_package_are_imported_on_use() -> None:
    import flask_vault.testing as package

    assert package.DevServer is DevServer
    assert package.FaultProxy is FaultProxy

    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        _ = package.Nothing
