"""The samples in ``docs/deployment``, as far as they run without what they are for."""

from __future__ import annotations

import collections.abc as cabc
import contextlib
import datetime
import http.server
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import threading
import typing as t

import click
import jwt
import pytest
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from flask_vault.cli import vault_group
from flask_vault.settings import KEYS
from flask_vault.settings import Settings
from flask_vault.testing import DevServer
from tests.helpers import BACKUP_KEY

ROOT = pathlib.Path(__file__).parents[1]
SAMPLES = ROOT / "docs" / "deployment"
YAMLS = sorted(SAMPLES.glob("*.yaml"))
UNITS = sorted([*SAMPLES.glob("*.service"), *SAMPLES.glob("*.timer")])

APP = """\
from flask import Flask
from flask_vault import FlaskVault

vault = FlaskVault()

def create_app():
    app = Flask(__name__)
    app.config["VAULT_SECRETS"] = {
        "SECRET_KEY": {"ref": "flask#key", "rotate": "token"},
    }
    app.config.from_prefixed_env()
    vault.init_app(app)
    return app
"""


def read_yaml(name: str) -> t.Any:
    return yaml.safe_load((SAMPLES / name).read_text("utf-8"))


def startup_timeout() -> float:
    """The default of ``VAULT_STARTUP_TIMEOUT``, in seconds."""
    address = {"VAULT_ADDR": "https://vault.example.com"}
    return Settings.from_mapping(address, {}).startup_timeout


# --- all of them -------------------------------------------------------------------


@pytest.mark.parametrize("file", YAMLS, ids=lambda file: file.name)
def test_a_yaml_file_is_one(file: pathlib.Path) -> None:
    documents = list(yaml.safe_load_all(file.read_text("utf-8")))
    assert documents
    assert all(isinstance(document, dict) for document in documents)


def commands_in(text: str) -> set[str]:
    """Each ``flask vault`` command of a file, whatever the way it is written in."""
    # Lists of YAML: [flask, vault, rotate, --due].
    lists = re.sub(
        r"\[(flask, vault[^]]*)\]", lambda found: found[1].replace(",", ""), text
    )
    return set(re.findall(r"flask vault (?:[\w-]+ ?)+", lists))


def test_each_command_is_one_that_exists() -> None:
    found = {
        command
        for file in SAMPLES.iterdir()
        for command in commands_in(file.read_text("utf-8"))
    }
    assert {"flask vault init", "flask vault rotate --due"} <= {
        c.strip() for c in found
    }

    for line in found:
        name, *arguments = shlex.split(line)[2:]
        command = vault_group.commands[name]
        context = click.Context(command, info_name=name)
        command.parse_args(context, arguments)


def test_each_setting_is_one_that_exists() -> None:
    found = {
        name
        for file in SAMPLES.iterdir()
        for name in re.findall(r"FLASK_(VAULT_\w+?)(?:__\w+)?\b", file.read_text())
    }
    assert {"VAULT_ADDR", "VAULT_AUTH", "VAULT_BACKUP_KEYS"} <= found
    assert found <= {*KEYS}


def test_every_sample_is_on_the_page() -> None:
    page = (ROOT / "docs" / "deployment-samples.rst").read_text("utf-8")
    shown = set(re.findall(r"literalinclude:: deployment/(\S+)", page))
    assert shown == {file.name for file in SAMPLES.iterdir() if file.is_file()}


# --- systemd -----------------------------------------------------------------------


def read_unit(name: str) -> dict[str, dict[str, list[str]]]:
    """A unit's sections: of each setting all its values."""
    found: dict[str, dict[str, list[str]]] = {}
    section: dict[str, list[str]] = {}

    for line in (SAMPLES / name).read_text("utf-8").splitlines():
        if line.startswith("["):
            section = found.setdefault(line.strip("[]"), {})
        elif line and not line.startswith("#"):
            key, _, value = line.partition("=")
            section.setdefault(key, []).append(value)

    return found


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_finds_no_fault(unit: pathlib.Path, tmp_path: pathlib.Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")

    for file in UNITS:
        # It looks whether the program can be run.
        text = re.sub(r"/srv/shop/venv/bin/\S+", sys.executable, file.read_text())
        (tmp_path / file.name).write_text(text)

    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / unit.name)],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_unit_waits_longer_than_the_app_waits_for_vault() -> None:
    (seconds,) = read_unit("shop.service")["Service"]["TimeoutStartSec"]
    assert float(seconds) > startup_timeout()


def test_what_waiting_does_not_mend_is_not_tried_again() -> None:
    """A refused login is one of the five that lock a role."""
    service = read_unit("shop-rotate.service")["Service"]
    assert service["RestartPreventExitStatus"] == ["2 5 6 7"]
    assert service["SuccessExitStatus"] == ["3"]


# --- containers --------------------------------------------------------------------


def test_the_composed_hosts_wait_for_a_server_that_answers() -> None:
    services = read_yaml("compose.yaml")["services"]
    assert set(services) == {"vault", "init", "app1", "app2", "web"}
    assert services["init"]["depends_on"]["vault"]["condition"] == "service_healthy"
    once = {"init": {"condition": "service_completed_successfully"}}

    for name in ("app1", "app2"):
        assert services[name]["depends_on"] == once
        assert "/vault/health/live" in str(services[name]["healthcheck"]["test"])

    upstream = set(
        re.findall(r"server (\w+):8000", (SAMPLES / "nginx.conf").read_text())
    )
    assert upstream == {"app1", "app2"}
    assert "127.0.0.1:8081/vault/health" in str(services["web"]["healthcheck"]["test"])


@pytest.fixture
def objects() -> dict[tuple[str, str], t.Any]:
    """The objects for Kubernetes, by kind and name."""
    text = (SAMPLES / "kubernetes.yaml").read_text("utf-8")
    found = list(yaml.safe_load_all(text))
    assert all(o["metadata"]["namespace"] == "web" and o["apiVersion"] for o in found)
    return {(o["kind"], o["metadata"]["name"]): o for o in found}


Objects = dict[tuple[str, str], t.Any]


def pod_of(objects: Objects, kind: str, name: str) -> t.Any:
    spec = objects[kind, name]["spec"]
    return (spec["jobTemplate"]["spec"] if kind == "CronJob" else spec)["template"]


def test_the_probes_ask_the_routes_that_are_for_them(objects: Objects) -> None:
    (container,) = pod_of(objects, "Deployment", "shop")["spec"]["containers"]
    paths = {
        name: container[f"{name}Probe"]["httpGet"]["path"]
        for name in ("startup", "liveness", "readiness")
    }
    assert paths == {
        "startup": "/vault/health/live",
        "liveness": "/vault/health/live",
        "readiness": "/vault/health",
    }
    ports = {container[f"{name}Probe"]["httpGet"]["port"] for name in paths}
    assert ports == {port["name"] for port in container["ports"]} == {"http"}


def test_kubernetes_waits_longer_than_the_app_waits_for_vault(objects: Objects) -> None:
    (container,) = pod_of(objects, "Deployment", "shop")["spec"]["containers"]
    probe = container["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] > startup_timeout()


def test_what_an_object_names_is_there(objects: Objects) -> None:
    deployment = objects["Deployment", "shop"]["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    assert deployment["selector"]["matchLabels"] == labels
    assert objects["Service", "shop"]["spec"]["selector"] == labels

    for kind, name in (("Deployment", "shop"), ("CronJob", "shop-rotate")):
        spec = pod_of(objects, kind, name)["spec"]
        assert ("ServiceAccount", spec["serviceAccountName"]) in objects
        volumes = {volume["name"] for volume in spec["volumes"]}

        for container in spec["containers"]:
            assert {m["name"] for m in container["volumeMounts"]} <= volumes

            for source in container["envFrom"]:
                assert ("ConfigMap", source["configMapRef"]["name"]) in objects


def test_the_app_and_the_rotator_are_two_accounts(objects: Objects) -> None:
    """Who may write is not who answers requests."""
    names = {
        pod_of(objects, kind, name)["spec"]["serviceAccountName"]
        for kind, name in (("Deployment", "shop"), ("CronJob", "shop-rotate"))
    }
    assert len(names) == 2


def test_a_job_that_rotates_is_not_run_twice_nor_repeated_in_vain(
    objects: Objects,
) -> None:
    cron = objects["CronJob", "shop-rotate"]["spec"]
    assert cron["concurrencyPolicy"] == "Forbid"
    job = cron["jobTemplate"]["spec"]
    # A policy for failures goes with no other value.
    assert job["template"]["spec"]["restartPolicy"] == "Never"
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob"
    assert rule["onExitCodes"]["values"] == [2, 5, 6, 7]
    (container,) = job["template"]["spec"]["containers"]
    assert rule["onExitCodes"]["containerName"] == container["name"]


def test_no_value_stands_in_an_object(objects: Objects) -> None:
    for kind, name in (("Deployment", "shop"), ("CronJob", "shop-rotate")):
        for container in pod_of(objects, kind, name)["spec"]["containers"]:
            for variable in container["env"]:
                secret = re.search("KEY|TOKEN|PASSWORD", variable["name"])
                assert bool(secret) == ("valueFrom" in variable), variable["name"]


# --- jobs of a CI ------------------------------------------------------------------


@pytest.fixture
def issuer() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@pytest.fixture
def server(issuer: ec.EllipticCurvePrivateKey) -> cabc.Iterator[DevServer]:
    """It trusts the issuer, and lets the job of one project rotate."""
    public = issuer.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )

    with DevServer() as server:
        api = server._api
        token = server.root_token

        for path, body in (
            ("sys/auth/jwt", {"type": "jwt"}),
            ("auth/jwt/config", {"jwt_validation_pubkeys": [public.decode()]}),
            ("sys/policies/acl/rotate", {"policy": may_rotate()}),
            (
                "auth/jwt/role/shop-rotate",
                {
                    "role_type": "jwt",
                    "user_claim": "sub",
                    "bound_audiences": ["https://vault.example.com"],
                    "bound_claims": {"project": "shop"},
                    "token_policies": ["rotate"],
                },
            ),
            ("secret/data/flask", {"data": {"key": "k-1"}}),
        ):
            api.call("POST", path, t.cast(t.Any, body), token=token)

        yield server


def may_rotate() -> str:
    return 'path "secret/data/flask" { capabilities = ["read", "update"] }'


def sign(issuer: ec.EllipticCurvePrivateKey) -> str:
    now = datetime.datetime.now(datetime.timezone.utc)
    claims = {
        "sub": "repo:shop",
        "project": "shop",
        "aud": "https://vault.example.com",
        "iat": now,
        "exp": now + datetime.timedelta(minutes=5),
    }
    return jwt.encode(claims, issuer, algorithm="ES256")


def run_job(
    script: str,
    folder: pathlib.Path,
    server: DevServer,
    variables: cabc.Mapping[str, str],
) -> str:
    """Run what a job of a CI runs, in the checkout of an app."""
    (folder / "app.py").write_text(APP)
    bin_folder = pathlib.Path(sys.executable).parent
    # What is due is shown where `rotate` itself is tested.
    script = script.replace("--due", "--all")
    script = re.sub(r"^pip install .*\n", "", script, flags=re.M)
    environ = {
        "PATH": f"{bin_folder}:{os.environ['PATH']}",
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
        "FLASK_VAULT_BACKUP_KEYS": BACKUP_KEY,
    }

    for name, value in variables.items():
        # As the CI does: a variable may name another.
        environ[name] = re.sub(
            r"\$(\w+)", lambda found: environ[found[1]], str(value)
        ).replace("https://vault.example.com:8200", server.address)

    done = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", script],
        cwd=folder,
        env=environ,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def assert_rotated(server: DevServer, folder: pathlib.Path) -> None:
    found = server.client().secrets.kv.v2.read_secret_version(
        "flask", raise_on_deleted_version=True
    )
    assert found["data"]["metadata"]["version"] == 2
    assert list((folder / "backups").glob("*.json"))


def test_the_job_of_gitlab_logs_in_by_its_own_token_and_rotates(
    server: DevServer, issuer: ec.EllipticCurvePrivateKey, tmp_path: pathlib.Path
) -> None:
    job = read_yaml("gitlab-ci.yaml")["rotate"]
    given = {"CI_PROJECT_DIR": str(tmp_path), "VAULT_ID_TOKEN": sign(issuer)}
    assert job["id_tokens"]["VAULT_ID_TOKEN"]["aud"] == "https://vault.example.com"
    script = "\n".join(job["script"])
    run_job(script, tmp_path, server, {**given, **job["variables"]})

    assert_rotated(server, tmp_path)


def test_the_job_of_gitlab_logs_in_by_approle_and_rotates(
    server: DevServer, tmp_path: pathlib.Path
) -> None:
    jobs = read_yaml("gitlab-ci.yaml")
    role_id, secret_id = server.create_approle("rotate", may_rotate())
    given = {"CI_PROJECT_DIR": str(tmp_path)}

    for name, value in (("VAULT_ROLE_ID", role_id), ("VAULT_SECRET_ID", secret_id)):
        (tmp_path / name).write_text(value)
        given[name] = str(tmp_path / name)

    variables = {**given, **jobs["rotate-approle"]["variables"]}
    run_job("\n".join(jobs["rotate"]["script"]), tmp_path, server, variables)

    assert_rotated(server, tmp_path)


@contextlib.contextmanager
def token_service(token: str) -> cabc.Iterator[str]:
    """Gives a job its token, as GitHub does, when it shows that it is the job."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            good = self.headers["Authorization"] == "bearer request-token"
            good &= self.path.endswith("&audience=https://vault.example.com")
            self.send_response(200 if good else 401)
            self.end_headers()
            self.wfile.write(json.dumps({"value": token}).encode())

        def log_message(self, *args: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as service:
        thread = threading.Thread(target=service.serve_forever)
        thread.start()

        try:
            yield f"http://127.0.0.1:{service.server_port}/token?version=2"
        finally:
            service.shutdown()
            thread.join()


def test_the_job_of_github_logs_in_by_its_own_token_and_rotates(
    server: DevServer, issuer: ec.EllipticCurvePrivateKey, tmp_path: pathlib.Path
) -> None:
    for program in ("curl", "jq"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")

    workflow = read_yaml("github-actions.yaml")
    job = workflow["jobs"]["rotate"]
    assert workflow["permissions"]["id-token"] == "write"
    variables = {k: v for k, v in job["env"].items() if "secrets." not in v}
    script = "\n".join(step["run"] for step in job["steps"] if "run" in step)
    token = sign(issuer)

    with token_service(token) as url:
        given = {
            "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "request-token",
            "ACTIONS_ID_TOKEN_REQUEST_URL": url,
        }
        printed = run_job(script, tmp_path, server, {**given, **variables})

    # What is masked is printed once, for the mask.
    assert printed.count(token) == printed.count(f"::add-mask::{token}") == 1
    assert_rotated(server, tmp_path)
