"""What ``flask vault doctor`` does and says."""

from __future__ import annotations

import collections
import dataclasses
import json
import logging
import pathlib
import traceback
import typing as t

import click
from flask import Flask
from flask.cli import ScriptInfo

from .console import say
from .console import table
from .doctor.case import case_of
from .doctor.checks import CHECKS
from .doctor.checks import run
from .doctor.checks import WITHOUT_APP
from .doctor.findings import Finding
from .doctor.findings import Status
from .doctor.findings import worst
from .errors import place_of
from .invocation import loading
from .loading import Examined

_ORDER: t.Final[tuple[Status, ...]] = ("pass", "warn", "fail", "skip")

_CODES: t.Final = {"pass": 0, "warn": 1, "fail": 2}


def examine(info: ScriptInfo, *, as_json: bool) -> t.NoReturn:
    """Look at the app, print what was found, and end with 0, 1 (warn) or 2 (fail)."""
    before = logging.root.manager.disable
    # The report says it, and what comes from below may not keep to our rules.
    logging.disable(logging.CRITICAL)

    try:
        found = _examine(info)
    finally:
        logging.disable(before)

    status = worst(found)

    if as_json:
        checks = [dataclasses.asdict(finding) for finding in found]
        click.echo(json.dumps({"status": status, "checks": checks}, indent=2))
    else:
        _show(found)

    raise click.exceptions.Exit(_CODES[status])


def _examine(info: ScriptInfo) -> list[Finding]:
    try:
        with loading("examine"):
            info.load_app()
    except Examined as examined:
        return run(case_of(examined.app), CHECKS)
    except (click.ClickException, click.exceptions.Exit):
        raise
    except Exception as error:
        trouble = _of_break(error)
    else:
        trouble = Finding(
            "app",
            "fail",
            "the app has no FlaskVault.",
            "Call vault.init_app(app) in its factory, or check --app.",
        )

    # What the environment says is known all the same.
    app = Flask("flask_vault")
    app.config.from_prefixed_env()
    return [trouble, *run(case_of(app), WITHOUT_APP)]


def _of_break(error: Exception) -> Finding:
    """Why there is no app. The error's text may hold a value."""
    what = f"{type(error).__name__} at {place_of(error)}"
    # Most likely an extension that came too early, and misses its secret.
    early = [
        pathlib.Path(frame.filename).parent.name
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.name == "init_app"
    ]

    if early:
        return Finding(
            "order",
            "fail",
            f"{early[-1]} is initialized before FlaskVault, and breaks: {what}.",
            "If it needs a secret, call vault.init_app(app) before it; 'flask routes'"
            " shows the whole of it.",
        )

    return Finding(
        "app",
        "fail",
        f"the app cannot be made: {what}.",
        "Mend that first: 'flask routes' shows the whole of it.",
    )


def _show(found: list[Finding]) -> None:
    rows = (
        (
            finding.check,
            finding.status,
            "\n".join(filter(None, (finding.found, finding.cure))),
        )
        for finding in found
    )
    click.echo(table(("check", "status", "finding"), rows, show_header=False))

    counts = collections.Counter(finding.status for finding in found)
    told = ", ".join(f"{counts[s]} {s}" for s in _ORDER if counts[s])
    say(f"{len(found)} findings: {told}.")
