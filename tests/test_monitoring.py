"""The dashboard and the alert rules of the documentation: what they ask for exists."""

from __future__ import annotations

import collections.abc as cabc
import json
import pathlib
import re
import shutil
import subprocess
import typing as t

import pytest

pytest.importorskip("prometheus_client")

import yaml
from prometheus_client import CollectorRegistry

from flask_vault.integrations.prometheus import Metrics

MONITORING = pathlib.Path(__file__).parents[1] / "docs" / "monitoring"
DASHBOARD: dict[str, t.Any] = json.loads((MONITORING / "dashboard.json").read_text())
ALERTS: dict[str, t.Any] = yaml.safe_load((MONITORING / "alerts.yaml").read_text())
RULES: list[dict[str, t.Any]] = [r for g in ALERTS["groups"] for r in g["rules"]]
SUFFIXES = {"counter": ["_total"], "gauge": [""], "histogram": ["_bucket", "_count"]}

#: What Grafana puts in before it asks.
VARIABLES = {"$app": ".*", "$instance": ".*", "$__rate_interval": "5m"}


def expressions() -> cabc.Iterator[tuple[str, str]]:
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]

    for rule in RULES:
        yield rule["alert"], rule["expr"]


ASKED = list(expressions())


def labels_by_name() -> dict[str, set[str]]:
    """The labels of each series that a scrape may have."""
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    return {
        f"{metric._name}{suffix}": {*metric._labelnames, "le", "instance", "job"}
        for metric in vars(metrics).values()
        for suffix in SUFFIXES[metric._type]
    }


SERIES = labels_by_name()


@pytest.mark.parametrize(("where", "expression"), ASKED, ids=[w for w, _ in ASKED])
def test_the_metrics_and_labels_that_are_asked_for_exist(
    where: str, expression: str
) -> None:
    names = set(re.findall(r"\bflask_vault_\w+", expression))
    assert names
    assert names <= SERIES.keys()
    known = set.union(*(SERIES[name] for name in names))
    selected = re.findall(r"(\w+)=~?\"|(?:by|on) \(([\w, ]+)\)", expression)
    asked = {name for pair in selected for name in re.findall(r"\w+", " ".join(pair))}
    assert asked <= known


def test_every_metric_is_on_the_dashboard_or_in_an_alert() -> None:
    asked = " ".join(expression for _, expression in ASKED)
    # Where an entry is from is joined to what one looks for.
    assert {n for n in SERIES if n not in asked} == {"flask_vault_entry_info"}


def test_a_rule_tells_who_and_what_to_do() -> None:
    for rule in RULES:
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert rule["annotations"]["summary"].endswith(".")
        assert rule["annotations"]["description"].endswith(".")
        shown = re.findall(r"\$labels\.(\w+)", str(rule["annotations"]))
        names = re.findall(r"\bflask_vault_\w+", rule["expr"])
        assert set(shown) <= set.union(*(SERIES[name] for name in names))


def test_the_page_has_every_alert_with_its_severity() -> None:
    page = MONITORING.with_suffix(".rst").read_text("utf-8")
    told = re.findall(r"^``(FlaskVault\w+)`` +(\w+) ", page, re.M)
    assert dict(told) == {r["alert"]: r["labels"]["severity"] for r in RULES}


def test_the_panels_of_the_dashboard_do_not_overlap() -> None:
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    taken = [
        (x, y)
        for place in places
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert max(x for x, _ in taken) < 24
    assert len(set(taken)) == len(taken)
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)


# --- with Prometheus' own program ----------------------------------------------------


def promtool(*arguments: str) -> str:
    program = shutil.which("promtool")

    if program is None:
        pytest.skip("promtool is not on PATH: it comes with Prometheus")

    done = subprocess.run([program, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_prometheus_reads_the_rules() -> None:
    output = promtool("check", "rules", str(MONITORING / "alerts.yaml"))
    assert f"{len(RULES)} rules found" in output


def test_prometheus_reads_what_the_dashboard_asks(tmp_path: pathlib.Path) -> None:
    rules = []

    for number, (_, expression) in enumerate(ASKED):
        for name, value in VARIABLES.items():
            expression = expression.replace(name, value)

        rules.append({"record": f"dashboard:{number}", "expr": expression})

    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    promtool("check", "rules", str(file))


def shop(**figures: str) -> dict[str, str]:
    """Series of one app, by the ends of their names."""
    return {f"flask_vault_{n}{{app='shop'}}": value for n, value in figures.items()}


#: A minute between two values, as promtool writes them.
STILL, GOES_ON = "0x20", "0+60x20"
REFRESHES = {
    "refresh_interval_seconds": "30x20",
    "propagation_window_seconds": "120x20",
    "refresh_last_fresh_timestamp_seconds": GOES_ON,
}
SUCCESS = "refresh_last_success_timestamp_seconds"
FRESH = "refresh_last_fresh_timestamp_seconds"
OFF = {"propagation_window_seconds": "120x20", SUCCESS: STILL}
ENDS = "token_expires_timestamp_seconds"


@pytest.mark.parametrize(
    ("alert", "series", "fires"),
    [
        ("FlaskVaultStale", shop(**REFRESHES, **{SUCCESS: GOES_ON}), False),
        ("FlaskVaultStale", shop(**REFRESHES, **{SUCCESS: STILL}), True),
        (
            "FlaskVaultStale",
            shop(**{**REFRESHES, SUCCESS: GOES_ON, FRESH: STILL}),
            True,
        ),
        # With VAULT_REFRESH_MODE "off" there is no interval.
        ("FlaskVaultStale", shop(**OFF), False),
        ("FlaskVaultRefreshFails", shop(refresh_failing="1x20"), True),
        ("FlaskVaultTokenEnded", shop(**REFRESHES, **{ENDS: "600x20"}), True),
        ("FlaskVaultTokenEnded", shop(**REFRESHES, **{ENDS: GOES_ON}), False),
        ("FlaskVaultTokenEnded", shop(**OFF, **{ENDS: "600x20"}), False),
        (
            "FlaskVaultWorkersDiffer",
            {
                "flask_vault_entry_version{key='KEY',instance='a'}": "2x20",
                "flask_vault_entry_version{key='KEY',instance='b'}": "1x20",
            },
            True,
        ),
        ("FlaskVaultReceiverFails", shop(receiver_errors_total="0x5 1x15"), True),
        ("FlaskVaultReceiverFails", shop(receiver_errors_total="1x20"), False),
    ],
)
def test_an_alert_fires_when_it_should(
    tmp_path: pathlib.Path, alert: str, series: dict[str, str], fires: bool
) -> None:
    query = f"count(ALERTS{{alertname='{alert}', alertstate='firing'}})"
    expected = [{"labels": "{}", "value": 1}] if fires else []
    case = {
        "interval": "1m",
        "input_series": [{"series": s, "values": v} for s, v in series.items()],
        "promql_expr_test": [
            {"expr": query, "eval_time": "15m", "exp_samples": expected}
        ],
    }
    file = tmp_path / "test.yaml"
    rules = [str(MONITORING / "alerts.yaml")]
    file.write_text(yaml.safe_dump({"rule_files": rules, "tests": [case]}))
    promtool("test", "rules", str(file))
