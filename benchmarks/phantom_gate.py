"""The phantom's gate (protocol.md §4): is the domain gap of the `bench` phantom large enough to be a benchmark, and is it made of
appearance?

erm alone, annotation axis at 0, one stage (tumor coarse in label ROIs, one pass, Dice on the task grid). Each seed judges another third
of every center. Arms, all with the same number of training cases and draws:

- target: trained on the other two thirds of the judged center (minus validation);
- sources: trained on as many cases of the two other centers;
- ceiling: all source cases and the target arm's cases.

The gap is target minus sources. Its share owed to an axis is 1 - gap without that axis / gap. Records are appended as runs complete, and
the same call goes on where it stopped:

    python benchmarks/phantom_gate.py run [--axes] [--convergence] [--threads 1]
    python benchmarks/phantom_gate.py lr        # the target arm at several learning rates, from which the protocol's was chosen
    python benchmarks/phantom_gate.py report
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from dgbench.data.case import Case, Center, load_centers
from dgbench.data.phantom import AXES, PhantomRecipe, annotation_ceiling, fingerprint, write_phantom
from dgbench.data.preparation import prepare_case
from dgbench.data.splits import Split, order, validation_count
from dgbench.launch.progress import progress
from dgbench.launch.worker import run_job
from dgbench.protocol import Protocol, ResolvedProtocol, load_protocol
from dgbench.registry import find_method
from dgbench.store.keys import key_of
from dgbench.training.job import RECIPE, TrainJob

STAGE = "tumor-coarse"
FOLDS = 3
LEARNING_RATES = (1e-3, 3e-3, 1e-2)
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
    total = sum(recipe.counts().values())
    folder = CACHE / "phantom" / fingerprint(recipe)[:12]
    if not (folder / "phantom.json").is_file():
        done = 0
        with progress(f"phantom without {', '.join(sorted(off))}") as report:

            def on_case(_center: str, _index: int) -> None:
                nonlocal done
                done += 1
                report(done, total)

            write_phantom(recipe, folder, on_case=on_case)
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
    from dgbench.store.atomic import write_json
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


def run_one(
    resolved: ResolvedProtocol, off: frozenset[str], judged: str, seed: int, arm: str, factor: int, threads: int
) -> None:
    """One run of the study, unless its record exists."""
    name = {
        "off": sorted(off),
        "judged": judged,
        "seed": seed,
        "arm": arm,
        "draws_factor": factor,
        "lr": resolved.preset.stages[STAGE].lr,
        "draws": resolved.preset.stages[STAGE].draws * factor,
        "recipe": RECIPE,
        "phantom": phantom_identity(resolved.protocol, off),
    }
    if any(all(record[key] == value for key, value in name.items()) for record in read_records()):
        return
    centers = phantom(resolved.protocol, off)
    split = splits(resolved.protocol, centers, judged, seed)[arm]
    cases = {case.id: case for center in centers.values() for case in center.cases}
    info = replace(find_method("erm"), draws_factor=factor)
    identity = {**name, "protocol": resolved.identity(STAGE)}
    job = TrainJob(
        stage=STAGE,
        resolved=resolved,
        info=info,
        config=info.configure(),
        split=split,
        cases=tuple(cases[case_id] for case_id in (*split.train, *split.validation)),
        centers=tuple(centers.values()),
        seed=seed,
        cache=CACHE,
        folder=CACHE / "gate" / key_of(identity)[:16],
        key=key_of(identity),
        identity=identity,
        device="cpu",
        precision="fp32",
        threads=threads,
    )
    title = f"{arm} {judged} seed {seed} off {','.join(sorted(off))} x{factor}"
    run_job(train_and_judge, (job, tuple(cases[case_id] for case_id in split.test)), title, job.folder / "crash.txt")
    judged_scores = json.loads((job.folder / "judged.json").read_text(encoding="utf-8"))
    result = json.loads((job.folder / "result.json").read_text(encoding="utf-8"))
    record = {**name, "train_cases": len(split.train), "best_dsc": result["best_dsc"]}
    RECORDS.parent.mkdir(parents=True, exist_ok=True)
    with RECORDS.open("a", encoding="utf-8") as file:
        file.write(
            json.dumps({**record, "dsc": {case: round(score, 6) for case, score in judged_scores.items()}}) + "\n"
        )


def read_records() -> list[dict[str, object]]:
    """All records so far."""
    return [json.loads(line) for line in RECORDS.read_text(encoding="utf-8").splitlines()] if RECORDS.is_file() else []


def mean_dsc(
    off: frozenset[str], arm: str, factor: int = 1, seeds: range = range(FOLDS), lr: float | None = None
) -> dict[str, list[float]]:
    """Mean DSC (points) of each finished seed, by center; at the protocol's learning rate unless another is given."""
    lr = lr or load_protocol("phantom").presets["bench"].stages[STAGE].lr
    found: dict[str, list[float]] = {}
    for record in read_records():
        part = (record["off"], record["arm"], record["draws_factor"], record["lr"], record["recipe"], record["phantom"])
        if (
            part == (sorted(off), arm, factor, lr, RECIPE, phantom_identity(load_protocol("phantom"), off))
            and record["seed"] in seeds
        ):
            scores = record["dsc"]
            assert isinstance(scores, dict)
            found.setdefault(str(record["judged"]), []).append(100 * float(np.mean(list(scores.values()))))
    return found


def variants() -> dict[str, frozenset[str]]:
    """What is switched off in each part of the study, by name; the annotation axis always is."""
    neutral = frozenset({"annotation"})
    content = frozenset(name for name, axis in AXES.items() if axis.kind == "content")
    single = {f"all but {name}": neutral | {name} for name in AXES if name not in neutral}
    return {"all axes": neutral, "appearance axes only": neutral | content, **single}


def gap(off: frozenset[str], seeds: range) -> float | None:
    """Mean over centers of (target - sources), in points; None while a run is missing."""
    resolved = load_protocol("phantom")
    target, sources = mean_dsc(off, "target", seeds=seeds), mean_dsc(off, "sources", seeds=seeds)
    if any(len(found.get(center, [])) < len(seeds) for found in (target, sources) for center in resolved.centers):
        return None
    return float(np.mean([np.mean(target[center]) - np.mean(sources[center]) for center in resolved.centers]))


def report_lines() -> list[str]:
    """The study as Markdown, from the records alone."""
    centers = load_protocol("phantom").centers
    lines = [f"| axes | arm | seeds | {' | '.join(centers)} | mean |", f"|---|---|---|{'---|' * (len(centers) + 1)}"]
    for name, off in variants().items():
        for arm, factor in (("target", 1), ("sources", 1), ("sources", 2), ("ceiling", 1)):
            means = mean_dsc(off, arm, factor)
            if not means:
                continue
            cells = [f"{np.mean(means[c]):.1f}" if c in means else "not run" for c in centers]
            mean = f"{np.mean([np.mean(means[c]) for c in centers]):.1f}" if len(means) == len(centers) else ""
            n_seeds = "/".join(str(len(means.get(c, []))) for c in centers)
            lines.append(
                f"| {name} | {arm}{' (draws doubled)' if factor == 2 else ''} | {n_seeds} | {' | '.join(cells)} | {mean} |"
            )
    rates = []
    for lr in LEARNING_RATES:
        means = mean_dsc(frozenset({"annotation"}), "target", seeds=range(1), lr=lr)
        if len(means) == len(centers):
            rates.append(f"{lr:g}: {np.mean([np.mean(values) for values in means.values()]):.1f}")
    lines += [
        "",
        f"Learning rate, in-domain (target arm, seed 0), mean DSC over centers: {', '.join(rates) or 'not run'}.",
    ]
    recipe = PhantomRecipe(size="small", cases=10)
    ceilings = ", ".join(f"{center} {100 * annotation_ceiling(recipe, center, 10):.0f}" for center in centers)
    lines.append(
        f"Annotation ceiling, DSC of the annotated against the true lesion at full strength, 10 cases: {ceilings}."
    )
    full = gap(frozenset({"annotation"}), range(FOLDS))
    lines += [
        "",
        f"Gap (target minus sources, {FOLDS} seeds, mean over centers): {'not complete yet' if full is None else f'{full:.1f} points'}.",
    ]
    one = gap(frozenset({"annotation"}), range(1))
    for name, off in list(variants().items())[1:]:
        without = gap(off, range(1))
        if one is not None and without is not None:
            share = without / one if name == "appearance axes only" else 1 - without / one
            lines.append(f"- {name}: gap {without:.1f} of {one:.1f} points at seed 0, share {100 * share:.0f} %.")
    return lines


def write_report(document: Path) -> None:
    """Put the study between the markers of ``document``."""
    begin, end = "<!-- gate:begin -->", "<!-- gate:end -->"
    text = document.read_text(encoding="utf-8")
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    document.write_text("\n".join([before + begin, *report_lines(), end]) + after, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["run", "lr", "report"])
    parser.add_argument(
        "--axes", action="store_true", help="also switch each axis off in turn, and all content axes at once"
    )
    parser.add_argument("--convergence", action="store_true", help="also the sources arm with twice the draws")
    parser.add_argument("--seeds", type=int, default=FOLDS)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if options.action == "report":
        write_report(Path(__file__).parent.parent / "docs" / "phantom.md")
        print("\n".join(report_lines()))
        return
    if options.action == "lr":
        for judged in load_protocol("phantom").centers:
            for lr in LEARNING_RATES:
                changed = load_protocol("phantom").resolve("bench", {f"stages.{STAGE}.lr": str(lr)})
                run_one(changed, frozenset({"annotation"}), judged, 0, "target", 1, options.threads)
        return
    resolved = load_protocol("phantom").resolve("bench")
    centers = resolved.protocol.centers
    neutral, *others = variants().values()
    runs = [
        (neutral, judged, seed, arm, 1)
        for seed in range(options.seeds)
        for judged in centers
        for arm in ("target", "sources")
    ]
    if options.convergence:
        runs += [(neutral, judged, 0, "sources", 2) for judged in centers]
    if options.axes:
        runs += [(off, judged, 0, arm, 1) for off in others for judged in centers for arm in ("target", "sources")]
    runs += [(neutral, judged, seed, "ceiling", 1) for seed in range(options.seeds) for judged in centers]
    for off, judged, seed, arm, factor in runs:
        run_one(resolved, off, judged, seed, arm, factor, options.threads)


if __name__ == "__main__":
    main()
