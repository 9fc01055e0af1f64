"""Asks pip-audit about what constraints.txt pins.

pip-audit ends with the same code for a package with a known vulnerability, for a
typing error, and for a network that is away; and with 0 when the service that it asks
has heard of none of the packages, as a mirror may not have. Here each of them is told
apart: no network is no failure, and no answer is no success.
"""

from __future__ import annotations

import json
import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parents[1]

#: What pip-audit says of a service that it cannot reach, or that answers with an error.
UNREACHABLE = re.compile(r"connect|timed? ?out|redirecting|ServiceError", re.I)


def verdict(code: int, report: str, said: str) -> tuple[int, str]:
    """What became of an audit.

    :param code: the exit code of pip-audit.
    :param report: what it printed, in JSON; nothing if it could not ask.
    :param said: what it told people.
    :return: the exit code for ``make``, and a sentence. The words of pip-audit are not
        passed on for a service that is away: they name an address that means nothing to
        the reader.
    """
    try:
        packages = json.loads(report)["dependencies"]
    except (ValueError, KeyError, TypeError):
        if code and UNREACHABLE.search(said):
            return 0, "skipped: the list of vulnerabilities cannot be reached."

        return code or 1, f"failed: {said.strip()}"

    known = [package for package in packages if "vulns" in package]
    found = [
        f"{package['name']} {package['version']}: {flaw['id']}, fixed in"
        f" {', '.join(flaw['fix_versions']) or 'no version yet'}"
        for package in known
        for flaw in package["vulns"]
    ]

    if found:
        return 1, "\n".join(["these have to be renewed.", *found])

    if not known:
        return 0, "skipped: the list that was asked has heard of none of the packages."

    unknown = len(packages) - len(known)
    rest = f", {unknown} could not be looked up" if unknown else ""
    return 0, f"{len(known)} packages without a known vulnerability{rest}."


def ask(pins: pathlib.Path) -> subprocess.CompletedProcess[str]:
    """Run pip-audit over a file of pins."""
    return subprocess.run(
        [
            *(sys.executable, "-m", "pip_audit", "--format", "json"),
            # What is pinned is all that is installed, so nothing has to be resolved.
            *("--requirement", str(pins), "--no-deps"),
            *("--disable-pip", "--progress-spinner", "off", "--timeout", "10"),
        ],
        capture_output=True,
        text=True,
    )


def main() -> int:
    pins = ROOT / "constraints.txt"

    with tempfile.TemporaryDirectory() as folder:
        # One first: a service that has not heard of Flask is not asked for the others.
        probe = pathlib.Path(folder, "probe.txt")
        lines = pins.read_text("utf-8").splitlines(keepends=True)
        probe.write_text("".join(x for x in lines if x.lower().startswith("flask==")))

        for file in (probe, pins):
            done = ask(file)
            code, sentence = verdict(done.returncode, done.stdout, done.stderr)

            if code or sentence.startswith("skipped"):
                break

    print(f"pip-audit: {sentence}")
    return code


if __name__ == "__main__":
    sys.exit(main())
