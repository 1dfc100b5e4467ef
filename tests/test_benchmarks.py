"""Benchmarks still measure what they name: the small size of one whose parts live in several modules."""

import re
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "leaderboard_page.py"


def test_a_leaderboard_is_timed_by_part() -> None:
    size = ["--methods=3", "--seeds=3", "--cases=4", "--processes=1"]
    done = subprocess.run([sys.executable, str(SCRIPT), *size], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "3 methods × 5 centers × 3 seeds × 4 cases = 45 runs" in done.stdout
    parts = {name: float(seconds) for name, seconds in re.findall(r"^ *(\w+) +([0-9.]+) s", done.stdout, re.MULTILINE)}
    assert {"compile", "read_records", "table_statistics", "compare", "standings", "page"} <= parts.keys()
    within = sum(parts[name] for name in ("compare", "standings", "robustness", "score_table"))
    assert within <= parts["table_statistics"] + 0.05 < parts["compile"] + 0.1
