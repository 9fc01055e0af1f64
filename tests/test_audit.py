"""What ``make check`` makes of an answer of pip-audit's."""

from __future__ import annotations

import collections.abc as cabc
import json
import runpy
import typing as t

import pytest

from tests.test_deployment import ROOT

verdict = t.cast(
    "t.Callable[[int, str, str], tuple[int, str]]",
    runpy.run_path(str(ROOT / ".ci" / "audit.py"))["verdict"],
)


def report(*packages: cabc.Mapping[str, object]) -> str:
    return json.dumps({"dependencies": packages, "fixes": []})


GOOD = {"name": "flask", "version": "3.1.3", "vulns": []}
UNKNOWN = {"name": "jinja2", "skip_reason": "not found"}
BAD = {
    "name": "werkzeug",
    "version": "0.1",
    "vulns": [{"id": "CVE-2000-1", "fix_versions": ["0.2"], "aliases": []}],
}


def test_a_vulnerability_fails_the_check_and_is_named() -> None:
    code, sentence = verdict(1, report(GOOD, BAD), "")
    assert code == 1
    assert "werkzeug 0.1: CVE-2000-1, fixed in 0.2" in sentence


def test_a_list_that_is_good_passes_and_says_how_much_was_looked_up() -> None:
    assert verdict(0, report(GOOD, UNKNOWN), "") == (
        0,
        "1 packages without a known vulnerability, 1 could not be looked up.",
    )


@pytest.mark.parametrize(
    "said",
    [
        "ERROR:pip_audit._cli:Could not connect to the vulnerability feed",
        "requests.exceptions.ReadTimeout: Read timed out.",
        "pip_audit._service.interface.ServiceError",
    ],
)
def test_without_a_network_it_is_skipped_in_words_of_our_own(said: str) -> None:
    code, sentence = verdict(1, "", said)
    assert code == 0
    assert sentence.startswith("skipped")
    assert said not in sentence


def test_a_service_that_knows_no_package_is_not_taken_for_a_good_word() -> None:
    code, sentence = verdict(0, report(UNKNOWN), "No known vulnerabilities found")
    assert code == 0
    assert sentence.startswith("skipped")


def test_another_fault_fails_the_check() -> None:
    said = "ERROR:pip_audit._cli:invalid requirements input: constraints.txt"
    assert verdict(1, "", said) == (1, f"failed: {said}")
