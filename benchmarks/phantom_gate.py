"""The phantom's gate (protocol.md §4): is the domain gap of the `bench` phantom large enough to be a benchmark, and is it made of
appearance?

erm alone, annotation axis at 0, one stage (tumor coarse in label ROIs, one pass, Dice on the task grid). Each seed judges another third
of every center. Arms, all with the same number of training cases and draws (the side studies with half the draws of `bench`):

- target: trained on the other two thirds of the judged center (minus validation);
- sources: trained on as many cases of the two other centers;
- ceiling: all source cases and the target arm's cases.

The gap is target minus sources. Its share owed to an axis is 1 - gap without that axis / gap. Records are appended as runs complete, and
the same call goes on where it stopped. Each run is claimed by a lock: start the same call once per core, and they share the work.

    python benchmarks/phantom_gate.py run [--parts base,appearance,convergence,ceiling,precision,axes]
    python benchmarks/phantom_gate.py lr        # the target arm at several learning rates, from which the protocol's was chosen
    python benchmarks/phantom_gate.py report
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dgbench.atomic import read_json, write_json
from dgbench.data.case import Case, Center, load_centers
from dgbench.data.phantom import AXES, PhantomRecipe, annotation_ceiling, fingerprint
from dgbench.data.preparation import prepare_case
from dgbench.data.splits import Split, order, validation_count
from dgbench.errors import DgbenchError
from dgbench.launch.phantom import draw_once
from dgbench.launch.worker import run_job
from dgbench.protocol import Protocol, ResolvedProtocol, load_protocol
from dgbench.registry import find_method
from dgbench.store.keys import key_of
from dgbench.store.lock import FolderLock
from dgbench.training.job import RECIPE, TrainJob

STAGE = "tumor-coarse"
FOLDS = 3
LEARNING_RATES = (3e-3, 1e-2, 3e-2)
HALF = 0.5
"""The side studies (shares of the axes, ceiling, precision, learning rate) have half the draws of `bench`."""
NEUTRAL = frozenset({"annotation"})
APPEARANCE = "appearance axes only (all but lesion)"
PARTS = ("base", "appearance", "convergence", "ceiling", "precision", "axes")
RECORDS = Path(__file__).parent / "results" / "phantom_gate.jsonl"
CACHE = Path.home() / ".cache" / "dgbench"


def phantom_recipe(protocol: Protocol, off: frozenset[str]) -> PhantomRecipe:
    """The recipe of the bench phantom with the axes in ``off`` at strength 0."""
    size = protocol.presets["bench"].phantom
    assert size is not None
    strengths = {**size.shift, **dict.fromkeys(off, 0.0)}
    return PhantomRecipe(size=size.size, cases=size.cases, seed=size.seed, strengths=strengths)


def phantom_identity(protocol: Protocol, off: frozenset[str]) -> str:
    """Its fingerprint: records of other tables are not this study's."""
    return fingerprint(phantom_recipe(protocol, off))


def phantom(protocol: Protocol, off: frozenset[str]) -> dict[str, Center]:
    """The bench phantom with the axes in ``off`` at strength 0, drawn once into the cache."""
    recipe = phantom_recipe(protocol, off)
    folder = CACHE / "phantom" / fingerprint(recipe)[:12]
    draw_once(recipe, folder)
    return load_centers(folder, protocol)


def splits(protocol: Protocol, centers: dict[str, Center], judged: str, seed: int) -> dict[str, Split]:
    """The three arms for one judged center; the test fold depends on the seed and is the same for all arms."""
    ordered = order(centers[judged].cases, "gate", protocol.name)
    test = ordered[seed % FOLDS :: FOLDS]
    own = [case for case in ordered if case not in test]
    n_validation = validation_count(len(own), protocol.validation_fraction)
    target_validation, target_train = own[:n_validation], own[n_validation:]
    sources = tuple(name for name in protocol.centers if name != judged)
    train: list[Case] = []
    validation: list[Case] = []
    pool: list[Case] = []
    for index, name in enumerate(sources):
        cases = order(centers[name].cases, "gate", protocol.name)
        n_own = validation_count(len(cases), protocol.validation_fraction)
        share = len(target_train) // 2 + (len(target_train) % 2 if index == 0 else 0)
        validation += cases[:n_own]
        train += cases[n_own : n_own + share]
        pool += cases[n_own:]
    ids = {
        name: tuple(case.id for case in cases)
        for name, cases in (("test", test), ("train", train), ("validation", validation))
    }
    both = {
        "train": (*(c.id for c in pool), *(c.id for c in target_train)),
        "validation": (*ids["validation"], *(c.id for c in target_validation)),
    }
    target = {"train": tuple(c.id for c in target_train), "validation": tuple(c.id for c in target_validation)}
    return {
        "target": Split(
            f"gate-target-{judged}-{seed}", (judged,), (), target["train"], target["validation"], ids["test"]
        ),
        "sources": Split(f"gate-sources-{judged}-{seed}", sources, (), ids["train"], ids["validation"], ids["test"]),
        "ceiling": Split(
            f"gate-ceiling-{judged}-{seed}", (*sources, judged), (), both["train"], both["validation"], ids["test"]
        ),
    }


def train_and_judge(content: tuple[TrainJob, tuple[Case, ...]], report: object) -> None:
    """In a process of its own: train, then Dice of every test case with the selected checkpoint."""
    import torch

    from dgbench.evaluation.job import load_trained
    from dgbench.training.loop import train
    from dgbench.training.validation import stage_predictor, validate

    job, test = content
    train(job, report)  # type: ignore[arg-type]
    device = torch.device(job.device)
    predictor = stage_predictor(
        load_trained(job, "source-val", device), STAGE, job.resolved, device, job.precision, tta=False
    )
    prepared = [prepare_case(case, job.resolved.protocol, job.cache) for case in test]
    scores = validate(prepared, STAGE, predictor, job.resolved)
    write_json(job.folder / "judged.json", {case.id: score for case, score in zip(test, scores, strict=True)})


@dataclass(frozen=True)
class Run:
    """One run of the study: which axes are off, whose cases are judged, and how the network was trained."""

    off: frozenset[str]
    judged: str
    seed: int
    arm: str
    times: float = 1
    lr: float | None = None
    precision: str | None = None

    def resolved(self) -> ResolvedProtocol:
        """The `bench` preset with ``times`` its draws, and this run's learning rate and precision where it has its own."""
        protocol = load_protocol("phantom")
        own = {f"stages.{STAGE}.lr": self.lr, "precision.cpu": self.precision}
        if self.times != 1:
            own[f"stages.{STAGE}.draws"] = round(self.times * protocol.presets["bench"].stages[STAGE].draws)
        return protocol.resolve("bench", {key: str(value) for key, value in own.items() if value})

    def name(self) -> dict[str, object]:
        """What identifies its record."""
        resolved = self.resolved()
        budget = resolved.preset.stages[STAGE]
        return {
            "off": sorted(self.off),
            "judged": self.judged,
            "seed": self.seed,
            "arm": self.arm,
            "spacing": list(resolved.protocol.task.spacing),
            "crop": list(budget.crop),
            "draws": budget.draws,
            "lr": budget.lr,
            "precision": resolved.preset.precision["cpu"],
            "recipe": RECIPE,
            "phantom": phantom_identity(resolved.protocol, self.off),
        }

    def record(self) -> dict[str, object] | None:
        """Its record, once it is finished."""
        name = self.name()
        return next((one for one in read_records() if all(one.get(key) == value for key, value in name.items())), None)


def execute(run: Run, threads: int) -> None:
    """Train and judge, unless the record exists or another process is at it."""
    if run.record() is not None:
        return
    resolved, name = run.resolved(), run.name()
    centers = phantom(resolved.protocol, run.off)
    split = splits(resolved.protocol, centers, run.judged, run.seed)[run.arm]
    cases = {case.id: case for center in centers.values() for case in center.cases}
    info = find_method("erm")
    identity = {**name, "protocol": resolved.identity(STAGE)}
    job = TrainJob(
        stage=STAGE,
        resolved=resolved,
        info=info,
        config=info.configure(),
        split=split,
        cases=tuple(cases[case_id] for case_id in (*split.train, *split.validation)),
        centers=tuple(centers.values()),
        seed=run.seed,
        cache=CACHE,
        folder=CACHE / "gate" / key_of(identity)[:16],
        key=key_of(identity),
        identity=identity,
        device="cpu",
        precision=resolved.preset.precision["cpu"],
        threads=threads,
    )
    title = f"{run.arm} {run.judged} seed {run.seed} off {','.join(sorted(run.off))}, {name['draws']} draws"
    with FolderLock(job.folder):
        if run.record() is not None:
            return
        test = tuple(cases[case_id] for case_id in split.test)
        run_job(train_and_judge, (job, test), title, job.folder)
        judged = read_json(job.folder / "judged.json")
        best = read_json(job.folder / "result.json")["best_dsc"]
        record = {**name, "train_cases": len(split.train), "best_dsc": best}
        scores = {case: round(score, 6) for case, score in judged.items()}
        RECORDS.parent.mkdir(parents=True, exist_ok=True)
        with RECORDS.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**record, "dsc": scores}) + "\n")


def read_records() -> list[dict[str, object]]:
    """All records so far."""
    return [json.loads(line) for line in RECORDS.read_text(encoding="utf-8").splitlines()] if RECORDS.is_file() else []


def mean_dsc(off: frozenset[str], arm: str, seeds: range = range(FOLDS), **other: object) -> dict[str, list[float]]:
    """Mean DSC (points) of each finished seed, by center; ``other`` are the fields of :class:`Run` that differ from the protocol's."""
    found: dict[str, list[float]] = {}
    for judged in load_protocol("phantom").centers:
        for seed in seeds:
            record = Run(off, judged, seed, arm, **other).record()  # type: ignore[arg-type]
            if record is not None:
                scores = record["dsc"]
                assert isinstance(scores, dict)
                found.setdefault(judged, []).append(100 * float(np.mean(list(scores.values()))))
    return found


def variants() -> dict[str, frozenset[str]]:
    """What is switched off in each part of the study, by name; the annotation axis always is."""
    content = frozenset(name for name, axis in AXES.items() if axis.kind == "content")
    appearance = NEUTRAL | content
    single = {f"all but {name}": NEUTRAL | {name} for name in AXES if name not in NEUTRAL}
    others = {name: off for name, off in single.items() if off != appearance}
    return {"all axes": NEUTRAL, APPEARANCE: appearance, **others}


def gap(off: frozenset[str], seeds: range, times: float = 1) -> float | None:
    """Mean over centers of (target - sources), in points, with ``times`` the draws of `bench`; None while a run is missing."""
    resolved = load_protocol("phantom")
    target, sources = (mean_dsc(off, arm, seeds, times=times) for arm in ("target", "sources"))
    if any(len(found.get(center, [])) < len(seeds) for found in (target, sources) for center in resolved.centers):
        return None
    return float(np.mean([np.mean(target[center]) - np.mean(sources[center]) for center in resolved.centers]))


def average(found: dict[str, list[float]]) -> float:
    """Equal-weight mean over the centers."""
    return float(np.mean([np.mean(values) for values in found.values()]))


def report_lines() -> list[str]:
    """The study as Markdown, from the records alone."""
    centers = load_protocol("phantom").centers
    lines = [f"| axes | arm | seeds | {' | '.join(centers)} | mean |", f"|---|---|---|{'---|' * (len(centers) + 1)}"]
    draws = load_protocol("phantom").presets["bench"].stages[STAGE].draws
    half: dict[str, object] = {"times": HALF}
    arms: list[tuple[str, str, dict[str, object]]] = [
        (f"target, {draws} draws", "target", {}),
        (f"sources, {draws} draws", "sources", {}),
        (f"sources, {2 * draws} draws", "sources", {"times": 2}),
        (f"target, {round(HALF * draws)} draws", "target", half),
        (f"sources, {round(HALF * draws)} draws", "sources", half),
        (f"sources, {round(HALF * draws)} draws, fp32", "sources", {"precision": "fp32", **half}),
        (f"ceiling, {round(HALF * draws)} draws", "ceiling", half),
    ]
    for name, off in variants().items():
        for title, arm, other in arms:
            means = mean_dsc(off, arm, **other)  # type: ignore[arg-type]
            if not means:
                continue
            cells = [f"{np.mean(means[c]):.1f}" if c in means else "not run" for c in centers]
            mean = f"{average(means):.1f}" if len(means) == len(centers) else ""
            n_seeds = "/".join(str(len(means.get(c, []))) for c in centers)
            lines.append(f"| {name} | {title} | {n_seeds} | {' | '.join(cells)} | {mean} |")
    rates = []
    for lr in LEARNING_RATES:
        means = mean_dsc(NEUTRAL, "target", range(1), lr=lr, times=HALF)
        if len(means) == len(centers):
            rates.append(f"{lr:g}: {average(means):.1f}")
    lines += [
        "",
        f"Learning rate, in-domain (target arm, seed 0), mean DSC over centers: {', '.join(rates) or 'not run'}.",
    ]
    recipe = PhantomRecipe(size="small", cases=10)
    ceilings = ", ".join(f"{center} {100 * annotation_ceiling(recipe, center, 10):.0f}" for center in centers)
    lines.append(
        f"Annotation ceiling, DSC of the annotated against the true lesion at full strength, 10 cases: {ceilings}."
    )
    gaps = []
    for times in (1, HALF):
        full = gap(NEUTRAL, range(FOLDS), times)
        gaps.append(f"{round(times * draws)} draws {'not complete yet' if full is None else f'{full:.1f} points'}")
    lines += ["", f"Gap (target minus sources, {FOLDS} seeds, mean over centers): {'; '.join(gaps)}."]
    one = gap(NEUTRAL, range(1), HALF)
    for name, off in list(variants().items())[1:]:
        without = gap(off, range(1), HALF)
        if one is not None and without is not None:
            share = without / one if name == APPEARANCE else 1 - without / one
            lines.append(f"- {name}: gap {without:.1f} of {one:.1f} points at seed 0, share {100 * share:.0f} %.")
    return lines


def write_report(document: Path) -> None:
    """Put the study between the markers of ``document``."""
    begin, end = "<!-- gate:begin -->", "<!-- gate:end -->"
    text = document.read_text(encoding="utf-8")
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    document.write_text("\n".join([before + begin, *report_lines(), end]) + after, encoding="utf-8")


def runs_of(part: str) -> Iterator[Run]:
    """The runs of one part of the study."""
    centers = load_protocol("phantom").centers
    pair = ("target", "sources")
    if part == "lr":
        yield from (Run(NEUTRAL, judged, 0, "target", HALF, lr) for lr in LEARNING_RATES for judged in centers)
    elif part == "base":
        yield from (Run(NEUTRAL, judged, seed, arm) for seed in range(FOLDS) for judged in centers for arm in pair)
    elif part == "convergence":
        yield from (Run(NEUTRAL, judged, seed, "sources", 2) for seed in range(FOLDS) for judged in centers)
    elif part == "ceiling":
        yield from (Run(NEUTRAL, judged, seed, "ceiling", HALF) for seed in range(FOLDS) for judged in centers)
    elif part == "precision":
        yield from (Run(NEUTRAL, judged, 0, "sources", HALF, precision="fp32") for judged in centers)
    elif part in ("appearance", "axes"):
        wanted = {name: off for name, off in variants().items() if (name == APPEARANCE) == (part == "appearance")}
        yield from (
            Run(off, judged, 0, arm, HALF)
            for off in wanted.values()
            if off != NEUTRAL
            for judged in centers
            for arm in pair
        )
    else:
        raise SystemExit(f"unknown part {part!r} — known: {', '.join(PARTS)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["run", "lr", "report"])
    parser.add_argument("--parts", default=",".join(PARTS), help="of `run`, in this order (default: all)")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if options.action == "report":
        write_report(Path(__file__).parent.parent / "docs" / "phantom.md")
        print("\n".join(report_lines()))
        return
    parts = ["lr"] if options.action == "lr" else options.parts.split(",")
    for run in (run for part in parts for run in runs_of(part)):
        try:
            execute(run, options.threads)
        except DgbenchError as error:
            if "another process" not in str(error):
                raise


if __name__ == "__main__":
    main()
