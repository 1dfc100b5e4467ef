"""What many runs cost beside the runs themselves, and whether killing a sweep changes anything: every part ends with a line of figures.

The reference is ``dgbench sweep`` of 4 methods on 3 centers with 2 seeds at ``tiny``, one job at a time. Then, each in a runs folder of
its own below ``--folder`` (default: a temporary one)::

    python benchmarks/sweeps.py reference   # uninterrupted; share of the wall time that is spent outside of job processes
    python benchmarks/sweeps.py killed      # SIGKILL to the sweep and all its processes at three random instants, then to the end
    python benchmarks/sweeps.py two         # two jobs side by side: wall time against that of the reference
    python benchmarks/sweeps.py overhead    # the share outside of jobs with longer ones: erm at one center, preset demo
    python benchmarks/sweeps.py slurm       # through Slurm: any cluster, or SLURM_CONF of tests/slurm/cluster.sh

``killed``, ``two`` and ``slurm`` need the reference and compare all jobs with it: weights, states of optimisers, logs, results and case
rows, byte by byte. A timing means something on idle cores alone. Without a part: all but Slurm.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from dgbench.cli.sweep import requests_of
from dgbench.launch.graph import Graph, build_graph
from dgbench.launch.plan import RunRequest
from dgbench.store.folder import read_status

DGBENCH = str(Path(sys.executable).with_name("dgbench"))
SWEEP = {"method": "erm,randconv,mixstyle,dualtask", "heldout": "MSD,RENJI,RMYY", "seeds": 2, "preset": "tiny"}
MINUTES = {"method": "erm", "heldout": "RENJI", "seeds": 1, "preset": "demo"}
KILLS = 3

TIMED = """
import json, sys, time
from dgbench.cli import call
from dgbench.launch.worker import JobProcess
spans = []
run = JobProcess.run
def timed(self):
    start = time.monotonic()
    try:
        return run(self)
    finally:
        spans.append(time.monotonic() - start)
JobProcess.run = timed
start = time.monotonic()
code = call(json.loads(sys.argv[1]))
json.dump({"code": code, "wall": time.monotonic() - start, "jobs": spans}, open(sys.argv[2], "w"))
"""
"""A sweep that notes how long each job's process was there."""


def words(what: dict[str, Any], runs: Path, *more: str) -> list[str]:
    """The command line of a sweep."""
    named = [word for name, value in what.items() for word in (f"--{name}", str(value))]
    return ["sweep", *named, "--threads", "1", "--no-mlflow", "--runs", str(runs), *more]


def graph(what: dict[str, Any], runs: Path) -> Graph:
    """The jobs of a sweep."""
    every = RunRequest(method=what["method"], heldout=what["heldout"], preset=what["preset"], threads=1, runs=runs)
    return build_graph(requests_of(every, what["seeds"], ()))


def timed(what: dict[str, Any], runs: Path, *more: str) -> dict[str, Any]:
    """Seconds of a sweep in all and of its jobs."""
    answer = runs.with_suffix(".json")
    arguments = [sys.executable, "-c", TIMED, json.dumps(words(what, runs, *more)), str(answer)]
    subprocess.run(arguments, check=True, stderr=subprocess.DEVNULL)
    found: dict[str, Any] = json.loads(answer.read_text())
    assert found["code"] == 0
    return found


def compare(root: Path, name: str) -> str:
    """How many jobs of the sweep in ``root/name`` are those of the reference; raises where one is not."""
    pairs = list(
        zip(graph(SWEEP, root / "reference").jobs.values(), graph(SWEEP, root / name).jobs.values(), strict=True)
    )
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from training_fixtures import differences, outcome

    def told(folder: Path) -> dict[str, Any]:
        """What of a job must not depend on how it came about."""
        cases = folder / "cases.parquet"
        return {"cases": cases.read_bytes()} if cases.exists() else outcome(folder)

    for ours, theirs in pairs:
        differing = differences(told(ours.folder), told(theirs.folder))
        assert not differing, f"{theirs.id}: {', '.join(differing)} differ from the reference"
        assert read_status(theirs.part.folder).state == "done", theirs.id
    return f"{len(pairs)} jobs equal the uninterrupted sweep to the byte"


def share(found: dict[str, Any]) -> str:
    """The share of the wall time that no job was there."""
    inside = sum(found["jobs"])
    mean = inside / len(found["jobs"])
    return (
        f"{len(found['jobs'])} jobs of {mean:.1f} s on average, {found['wall']:.0f} s in all: "
        f"{100 * (1 - inside / found['wall']):.1f} % of the wall time outside of jobs"
    )


def reference(root: Path) -> str:
    """The uninterrupted sweep."""
    return share(timed(SWEEP, root / "reference"))


def overhead(root: Path) -> str:
    """Jobs of about a minute."""
    return share(timed(MINUTES, root / "overhead"))


def two(root: Path) -> str:
    """Two jobs side by side against one at a time."""
    found = timed(SWEEP, root / "two", "--jobs", "2")
    alone = json.loads((root / "reference.json").read_text())["wall"]
    times = (
        f"two at a time {found['wall']:.0f} s, one at a time {alone:.0f} s: {alone / found['wall']:.2f} times as fast"
    )
    return f"{times}; {compare(root, 'two')}"


def killed(root: Path, seed: int = 0) -> str:
    """Killed three times at random instants, wherever it then is."""
    rng = random.Random(seed)
    whole = json.loads((root / "reference.json").read_text())["wall"]
    done = []
    for _ in range(KILLS):
        process = subprocess.Popen(
            [DGBENCH, *words(SWEEP, root / "killed")], stderr=subprocess.DEVNULL, start_new_session=True
        )
        time.sleep(rng.uniform(0.1, 0.3) * whole)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        done.append(len(graph(SWEEP, root / "killed").done()))
    subprocess.run([DGBENCH, *words(SWEEP, root / "killed")], check=True, stderr=subprocess.DEVNULL)
    return f"killed when {', '.join(map(str, done))} jobs were done; {compare(root, 'killed')}"


def slurm(root: Path) -> str:
    """Submitted, and waited for."""
    config = root / "slurm.yaml"
    config.write_text("time: '60'\nmemory: 900M\n")
    start = time.monotonic()
    arguments = words(SWEEP, root / "slurm", "--launcher", "slurm", "--slurm", str(config))
    lines = subprocess.run([DGBENCH, *arguments], check=True, capture_output=True, text=True).stdout.splitlines()
    submitted = time.monotonic() - start
    while subprocess.run(["squeue", "--me", "--noheader"], check=True, capture_output=True, text=True).stdout.strip():
        time.sleep(1)
    took = time.monotonic() - start
    return f"{len(lines)} jobs submitted in {submitted:.0f} s, all done after {took:.0f} s; {compare(root, 'slurm')}"


PARTS = {"reference": reference, "killed": killed, "two": two, "slurm": slurm, "overhead": overhead}


def main() -> None:
    """Do the parts and print their lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.parts if name not in PARTS]:
        parser.error(f"unknown part {unknown[0]} — known: {', '.join(PARTS)}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for name in arguments.parts or [name for name in PARTS if name != "slurm"]:
            print(f"{name}: {PARTS[name](folder.absolute())}", flush=True)


if __name__ == "__main__":
    main()
