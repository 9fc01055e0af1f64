"""Whether the benchmarks that take minutes run, too."""

from __future__ import annotations

import os
import typing as t

IS_LONG: t.Final = os.environ.get("BENCH_LONG", "") not in ("", "0")
