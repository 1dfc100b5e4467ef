"""Past one machine Slurm is the engine: one readable sbatch script per job of the graph, chained by ``afterok``, and nothing else of ours.

A script runs ``dgbench job exec ID`` on the shared runs folder. Before the time limit Slurm sends USR1; the job saves its state and is
requeued, as it is by Slurm itself when a node fails, and goes on where it stopped. When a job fails, Slurm cancels those that wait for
it, and the failed job has told their runs the reason. How runs stand is read from their folders first and from ``squeue`` second;
``sacct`` is not used.
"""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, ValidationError

from dgbench.atomic import make_folder, read_json, replacing, write_json
from dgbench.errors import DgbenchError
from dgbench.frozen import Frozen, one_line
from dgbench.launch.graph import Graph
from dgbench.launch.jobs import Job, is_cancelled, prepare_folder
from dgbench.store.folder import Environment, RunFolder, read_status, write_status
from dgbench.yaml_text import read_yaml

CONFIG = Path("slurm.yaml")
FOLDER = "slurm"
"""In a run folder, for each job: its script (``.sh``), the number that Slurm gave it (``.json``), what the script printed (``.log``)."""


class SlurmConfig(Frozen):
    """What a cluster needs to know; every field has a default. ``prefix`` goes before the command (``apptainer exec --nv dgbench.sif``),
    ``setup`` are shell lines before it (``module load …``), ``options`` are further sbatch options, one a line without ``#SBATCH``."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    time: Annotated[str, Field(pattern=r"^(\d+-)?\d+(:\d+){0,2}$")] = "24:00:00"
    memory: Annotated[str, Field(pattern=r"^\d+[KMGT]?$")] = "16G"
    gres: str = "gpu"
    stop_before: Annotated[int, Field(ge=1)] = 120
    prefix: str = ""
    command: str | None = None
    setup: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    @classmethod
    def read(cls, path: Path | None) -> Self:
        """The configuration in ``path``; None: in ``slurm.yaml`` of the working directory if there is one, else the defaults."""
        if path is None and not CONFIG.is_file():
            return cls()
        place = path or CONFIG
        try:
            return cls.model_validate(read_yaml(place, "Slurm configuration") or {})
        except ValidationError as error:
            raise DgbenchError(f"Slurm configuration {place}: {one_line(error)}") from None


def script_of(job: Job, config: SlurmConfig, *, mirrored: bool) -> str:
    """The sbatch script of ``job``."""
    runs = job.plan.request.runs.absolute()
    return script(
        config,
        ["job", "exec", job.id, "--runs", str(runs), *([] if mirrored else ["--no-mlflow"])],
        name=f"{job.part.spec.method.name}-{job.plan.request.heldout}-{job.plan.request.seed}-{job.title}",
        log=_file(job.part.folder, job.title, "log"),
        environment=job.part.spec.environment,
        devices=job.plan.request.devices if job.training is not None else 1,
    )


def script(
    config: SlurmConfig, words: Sequence[str], *, name: str, log: Path, environment: Environment, devices: int
) -> str:
    """An sbatch script: options first, then ``dgbench`` with ``words``, with what happens on a signal and at the end."""
    command = " ".join(part for part in (config.prefix, config.command or _program(), shlex.join(words)) if part)
    settings = [
        f"--job-name={name}",
        f"--output={log.absolute()}",
        "--open-mode=append",
        "--requeue",
        f"--signal=B:USR1@{config.stop_before}",
        f"--time={config.time}",
        f"--mem={config.memory}",
        "--ntasks=1",
        f"--cpus-per-task={environment.threads}",
    ]
    if environment.device == "cuda":
        settings.append(f"--gres={config.gres}:{devices}")
    for option in ("partition", "account", "qos"):
        if (value := getattr(config, option)) is not None:
            settings.append(f"--{option}={value}")
    return "\n".join(
        [
            "#!/bin/bash",
            *(f"#SBATCH {setting}" for setting in (*settings, *config.options)),
            "set -u",
            *config.setup,
            "# USR1 comes before the time limit, and with `scancel --signal=USR1 --batch`: the job saves its state and is queued again",
            'again=""',
            "trap 'again=yes; kill -USR1 \"$job\" 2>/dev/null' USR1",
            "trap 'kill -TERM \"$job\" 2>/dev/null' TERM",
            f"{command} &",
            "job=$!",
            'while wait "$job"; code=$?; kill -0 "$job" 2>/dev/null; do :; done  # wait returns at every signal',
            'if [ "$code" -eq 130 ] && [ -n "$again" ]; then scontrol requeue "$SLURM_JOB_ID"; sleep 60; fi',
            'exit "$code"',
            "",
        ]
    )


def submit(graph: Graph, config: SlurmConfig, *, mirrored: bool) -> Iterator[str]:
    """Submit the jobs of ``graph`` that are neither done nor in the queue; gives a line for each. Raises DgbenchError where Slurm is not
    there or refuses a job (those before it stay submitted; the same call submits the rest)."""
    queued = queue()
    done = graph.done()
    numbers: dict[str, str] = {}
    for job in graph.jobs.values():
        if job.id in done or is_cancelled(job.part):
            continue
        number = submitted_as(job.part.folder, job.title)
        if number is not None and number in queued:
            numbers[job.id] = number
            yield f"{number}  {job.id}  {queued[number].lower()} already"
            continue
        prepare_folder(job)
        needs = [numbers[need] for need in job.needs if need in numbers]
        text = script_of(job, config, mirrored=mirrored)
        numbers[job.id] = number = _sbatch(text, job.part.folder, job.title, job.id, needs)
        if read_status(job.part.folder).state != "running":
            write_status(job.part.folder, "queued", f"Slurm job {number} and others")
        yield "  ".join([number, job.id, *(["after", *needs] if needs else [])])


def submit_command(
    config: SlurmConfig,
    words: Sequence[str],
    *,
    folder: Path,
    title: str,
    name: str,
    environment: Environment,
    devices: int,
) -> str:
    """Submit ``dgbench`` with ``words``, which goes on where it stopped when it is called again, as one job of its own, unless it is in
    the queue; gives a line. ``folder`` holds what the command works on, its status, and script, number and log as ``title``."""
    number = submitted_as(folder, title)
    if number is not None and (state := queue().get(number)) is not None:
        return f"{number}  {folder}  {state.lower()} already"
    log = _file(folder, title, "log")
    text = script(config, words, name=name, log=log, environment=environment, devices=devices)
    number = _sbatch(text, folder, title, str(folder), [])
    if read_status(folder).state != "running":
        write_status(folder, "queued", f"Slurm job {number}")
    return f"{number}  {folder}"


def _sbatch(text: str, folder: Path, title: str, what: str, needs: Sequence[str]) -> str:
    """Write a script, submit it after the jobs ``needs``, and note the number that Slurm gives it."""
    path = _file(folder, title, "sh")
    make_folder(path.parent)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    after = [f"--dependency=afterok:{':'.join(needs)}", "--kill-on-invalid-dep=yes"] if needs else []
    answer = _call(["sbatch", "--parsable", *after, str(path)], f"{what}: sbatch")
    number = answer.strip().partition(";")[0]
    write_json(path.with_suffix(".json"), {"number": number, "needs": list(needs)})
    return number


def submitted_as(folder: Path, title: str) -> str | None:
    """The number that Slurm gave the job ``title`` of the run in ``folder``; None if it was never submitted."""
    path = _file(folder, title, "json")
    number = read_json(path).get("number") if path.is_file() else None
    return number if isinstance(number, str) and re.fullmatch(r"\d+", number) else None


def queue() -> dict[str, str]:
    """State of this user's jobs in the queue by their number. Raises DgbenchError without Slurm."""
    answer = _call(["squeue", "--me", "--noheader", "--format=%i|%T"], "squeue")
    return {
        number: state for number, _, state in (line.strip().partition("|") for line in answer.splitlines()) if state
    }


def waiting_in_queue(runs: Sequence[RunFolder]) -> dict[str, str]:
    """The state in the queue of each of ``runs`` that has jobs there (of the first one), by its name; empty where there is no Slurm."""
    numbers = {run.relative: _numbers(run) for run in runs}
    if not any(numbers.values()) or shutil.which("squeue") is None:
        return {}
    queued = queue()
    there = {name: [queued[number] for number in mine if number in queued] for name, mine in numbers.items()}
    return {name: states[0].lower() for name, states in there.items() if states}


def cancel_submitted(run: RunFolder) -> list[str]:
    """Take the jobs of ``run`` that are in the queue from it; their numbers. Jobs that run save their state first."""
    numbers = _numbers(run)
    if not numbers or shutil.which("squeue") is None:
        return []
    queued = queue()
    wanted = [number for number in numbers if number in queued]
    if wanted:
        _call(["scancel", "--signal=TERM", "--batch", "--state=RUNNING", *wanted], "scancel")
        _call(["scancel", "--state=PENDING", *wanted], "scancel")
    return wanted


def _numbers(run: RunFolder) -> list[str]:
    titles = [*run.own_stages, run.evaluation.name]
    return [number for title in titles if (number := submitted_as(run.path, title)) is not None]


def _file(folder: Path, title: str, suffix: str) -> Path:
    return folder / FOLDER / f"{title}.{suffix}"


def _program() -> str:
    """The command of this installation, which the nodes see at the same path."""
    beside = Path(sys.executable).with_name("dgbench")
    return shlex.quote(str(beside)) if beside.is_file() else "dgbench"


def _call(words: list[str], what: str) -> str:
    try:
        made = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
    except FileNotFoundError:
        raise DgbenchError(
            f"{words[0]}: no such command — --launcher slurm needs a machine that can submit to Slurm"
        ) from None
    except subprocess.TimeoutExpired:
        raise DgbenchError(f"{what}: no answer for two minutes — is the controller up? `scontrol ping` tells") from None
    if made.returncode != 0:
        said = " ".join((made.stderr or made.stdout).split()) or f"exit status {made.returncode}"
        raise DgbenchError(f"{what}: {said}")
    return made.stdout
