"""A provider of API keys, which are files in a folder, and the functions for it."""

from __future__ import annotations

import json
import os
import pathlib
import uuid

from flask_vault.rotation.rotators import Job
from flask_vault.rotation.rotators import NotYet

#: Environment variable with the folder.
FOLDER = "TEST_PROVIDER_FOLDER"


def folder() -> pathlib.Path:
    return pathlib.Path(os.environ[FOLDER])


def keys() -> dict[str, str | None]:
    """The keys that are good, and the operations that they were made for."""
    return {p.stem: json.loads(p.read_text()) for p in folder().glob("*.json")}


def made() -> list[str]:
    """All keys that were ever made."""
    log = folder() / "made"
    return log.read_text().split() if log.exists() else []


def make(operation: str | None = None) -> str:
    """Not idempotent: each call makes another key."""
    key = f"fake-key-{uuid.uuid4().hex}"
    (folder() / f"{key}.json").write_text(json.dumps(operation))

    with (folder() / "made").open("a") as log:
        log.write(f"{key}\n")

    return key


def create(job: Job) -> str:
    return make(job.operation)


def find(job: Job) -> str | None:
    return next(
        (k for k, operation in keys().items() if operation == job.operation), None
    )


def verify(job: Job) -> None:
    if job.new not in keys():
        raise NotYet("the provider does not know the new key")


def revoke(job: Job) -> None:
    (folder() / f"{job.old}.json").unlink(missing_ok=True)


def discard(job: Job) -> None:
    value = find(job) if job.pending is None else job.new
    (folder() / f"{value}.json").unlink(missing_ok=True)


ROTATE = {
    "kind": "callable",
    "create": "tests.apps.provider:create",
    "find": "tests.apps.provider:find",
    "verify": "tests.apps.provider:verify",
    "revoke": "tests.apps.provider:revoke",
    "discard": "tests.apps.provider:discard",
}
