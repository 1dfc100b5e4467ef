"""Trained models on the phantom as one shift axis grows: the held-out center is drawn at every strength of that axis, and judged.

A point is the evaluation of one run folder at one strength. It lives in ``shift/<axis>/<strength>/`` of that folder, under a key over the
weights, the recipe of the phantom and the way it is judged. The strength of training needs no point: it is the run's own evaluation.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgbench.atomic import read_json, write_json
from dgbench.data.case import Case, load_center
from dgbench.data.fingerprint import set_fingerprint
from dgbench.errors import DgbenchError, Interrupted, suggest
from dgbench.evaluation.metrics import NUMBERS
from dgbench.launch.jobs import EVALUATION, Say, empty_folder, is_judged, stored_key
from dgbench.launch.phantom import draw_once, ensure_data
from dgbench.launch.plan import (
    FolderPlan,
    RunPlan,
    RunRequest,
    judged_how,
    phantom_place,
    phantom_recipe,
    plan_run,
    resolve_request,
)
from dgbench.launch.worker import run_job
from dgbench.leaderboard import policies
from dgbench.leaderboard.notes import stamp_words, stamps_of
from dgbench.leaderboard.records import OFFICIAL
from dgbench.leaderboard.response import Response, gather
from dgbench.protocol import ResolvedProtocol
from dgbench.store.cases import read_cases
from dgbench.store.folder import RunSpec, read_status, write_status
from dgbench.store.keys import diff, key_of
from dgbench.store.lock import FolderLock

if TYPE_CHECKING:
    import pandas as pd

    from dgbench.data.phantom import PhantomRecipe

NEUTRAL = "phantom-neutral"
"""The protocol whose models are tried: its phantom has every axis at one low strength."""
STRONGEST = 10.0
"""Beyond it the axes, which are interpolated, mean nothing."""


def check_axis(name: str) -> str:
    """``name`` if it is an axis of the phantom. Raises DgbenchError with a suggestion where it is not."""
    from dgbench.data.phantom import AXES

    if name not in AXES:
        raise DgbenchError(f"--axis: unknown shift axis {name!r}{suggest(name, AXES)}")
    return name


def read_strengths(text: str) -> tuple[float, ...]:
    """The strengths of a comma-separated list, ascending, each once. Raises DgbenchError for what is none."""
    found = set()
    for word in filter(None, (part.strip() for part in text.split(","))):
        try:
            value = float(word)
        except ValueError:
            raise DgbenchError(
                f"--strengths: {word!r} is not a number — write them as in 0,0.5,1,1.5, separated by commas"
            ) from None
        if not (math.isfinite(value) and 0 <= value <= STRONGEST and round(value, 3) == value):
            raise DgbenchError(
                f"--strengths: {word} — a strength lies from 0 to {STRONGEST:g} (1: the full shift) and has at most three decimals"
            )
        found.add(abs(value))
    if not found:
        raise DgbenchError("--strengths: none is named — write them as in 0,0.5,1,1.5")
    return tuple(sorted(found))


def neutral_strength(resolved: ResolvedProtocol, axis: str) -> float:
    """The strength of ``axis`` in the phantom that the models are trained on."""
    return _training_recipe(resolved).strength(axis)


def shifted_recipe(resolved: ResolvedProtocol, heldout: str, axis: str, strength: float, cases: int) -> "PhantomRecipe":
    """The first ``cases`` of the held-out center at another strength of one axis: anatomy and seeds are those of training's phantom."""
    plain = _training_recipe(resolved)
    return replace(plain, cases={heldout: cases}, strengths={**plain.strengths, axis: strength})


def _training_recipe(resolved: ResolvedProtocol) -> "PhantomRecipe":
    if resolved.preset.phantom is None:
        raise DgbenchError(f"protocol {resolved.protocol.name!r} is not of a phantom: shift axes are the phantom's")
    recipe: PhantomRecipe = phantom_recipe(resolved.preset.phantom)
    return recipe


def require_run(request: RunRequest) -> RunPlan:
    """The finished run that ``request`` asks for. Raises DgbenchError where there is none, with the command that makes it."""
    resolved, info, _ = resolve_request(request)
    home = request.runs / resolved.protocol.name / request.heldout / info.name
    others = sorted(home.glob(f"seed{request.seed}-*"))
    hint = ""
    if others:  # else the phantom need not be drawn to know
        ensure_data(request)
        plan = plan_run(request)
        if all(is_judged(plan, folder) for folder in plan.folders):
            return plan
        hint = _difference(plan.own, others)
    raise DgbenchError(
        f"no finished run of {info.name}, held-out {request.heldout}, seed {request.seed}{hint} — make it with: {request.command()} "
        "(or add --train)"
    )


def _difference(wanted: FolderPlan, others: Sequence[Path]) -> str:
    """In what the first of the runs that are there is another one; nothing where the wanted one itself is there."""
    if wanted.folder in others:
        state = read_status(wanted.folder).state
        return f" ({wanted.folder} {'is to be evaluated again' if state == 'done' else f'is {state}'})"
    lines = diff(_told(RunSpec.read(others[0])), _told(wanted.spec))
    return f" ({others[0]} is another: {'; '.join(lines[:3])})"


def _told(spec: RunSpec) -> dict[str, Any]:
    """What of a run a user chooses or changes; its keys follow from it."""
    return spec.model_dump(mode="json", include={"protocol", "method", "data", "environment"})


@dataclass(frozen=True)
class Shifted:
    """Cases of the held-out center at one strength of one axis, drawn, and which phantom they are of."""

    axis: str
    strength: float
    cases: tuple[Case, ...]
    identity: str

    @property
    def place(self) -> Path:
        """Where its points are, relative to a run folder."""
        return Path("shift") / self.axis / f"{self.strength:g}"


def draw_shifted(plan: RunPlan, axis: str, strength: float, cases: int | None = None) -> Shifted:
    """The first ``cases`` (None: all) of the held-out center at ``strength``: drawn into the cache unless they are there. At the strength
    of training they are those of the run."""
    request, everyone = plan.request, plan.centers[plan.request.heldout].cases
    count = min(cases or len(everyone), len(everyone))
    if plan.identity is not None and strength == neutral_strength(plan.resolved, axis):
        return Shifted(axis, strength, everyone[:count], plan.identity)
    recipe = shifted_recipe(plan.resolved, request.heldout, axis, strength, count)
    folder, identity = phantom_place(recipe, request.cache)
    draw_once(recipe, folder)
    return Shifted(axis, strength, load_center(folder / request.heldout).cases, identity)


def annotation_ceiling(plan: RunPlan, shifted: Shifted) -> dict[str, float]:
    """By case, the DSC in [0, 1] of the true lesion against the annotated one; kept beside the volumes."""
    path = shifted.cases[0].image.parents[2] / f"ceiling-{plan.request.heldout}.json"
    known = read_json(path) if path.is_file() else {}
    if lacking := [case for case in shifted.cases if case.id not in known]:
        known |= {case.id: _true_dsc(case, plan.resolved) for case in lacking}
        write_json(path, known)
    return {case.id: float(known[case.id]) for case in shifted.cases}


def _true_dsc(case: Case, resolved: ResolvedProtocol) -> float:
    import numpy as np

    from dgbench.data.preparation import native_label

    protocol = resolved.protocol
    target = list(protocol.stages.values())[-1].target
    true = replace(case, label=case.label.parents[1] / "labelsTrue" / case.label.name)
    drawn, outline = (np.isin(native_label(one, protocol)[0], target) for one in (case, true))
    return 2 * float((drawn & outline).sum()) / max(1.0, float(drawn.sum() + outline.sum()))


def evaluate_point(plan: RunPlan, shifted: Shifted, say: Say) -> bool:
    """Judge the run of ``plan`` on the cases of ``shifted``, its shared stages first. Returns whether anything had to be done.

    Raises DgbenchError or Interrupted, and the point's status says so; the same call goes on after the last case.
    """
    brief = _official_only(plan.resolved)
    shared: Path | None = None
    worked = False
    for part in plan.folders:
        target = part.folder / shifted.place
        identity = _identity(plan, part, shifted, brief)
        if not _is_there(target, identity["key"]):
            with FolderLock(part.folder, wait=float("inf"), on_wait=say):
                if not _is_there(target, identity["key"]):
                    _evaluate(plan, part, shifted, brief, (shared, target, identity), say)
                    worked = True
        shared = target
    return worked


def point_cases(plan: RunPlan, shifted: Shifted) -> "pd.DataFrame":
    """The raw rows of a run on the cases of ``shifted``, in the official view: of its point, or of its own evaluation at the strength of
    training."""
    import numpy as np

    own = plan.own.folder
    rows = read_cases(own / "evaluation" if shifted.identity == plan.identity else own / shifted.place)
    chosen = (rows["setting"] == OFFICIAL.setting) & (rows["checkpoint"] == OFFICIAL.checkpoint)
    chosen &= np.isclose(rows["threshold"], float(OFFICIAL.threshold))
    chosen &= rows["case"].isin([case.id for case in shifted.cases])
    return rows[chosen].reset_index(drop=True)


def respond(
    plans: Sequence[RunPlan], axis: str, strengths: Sequence[float], *, cases: int | None = None, say: Say
) -> Response:
    """The curves of finished runs; the points that are missing are evaluated first, and nothing twice.

    Raises DgbenchError, or Interrupted: the same call then goes on.
    """
    import pandas as pd

    plans = list({plan.own.folder: plan for plan in plans}.values())
    resolved = plans[0].resolved
    neutral = neutral_strength(resolved, axis)
    tables: list[pd.DataFrame] = []
    ceilings: list[dict[str, Any]] = []
    worked = False
    for center in dict.fromkeys(plan.request.heldout for plan in plans):
        here = [plan for plan in plans if plan.request.heldout == center]
        for strength in sorted({*strengths, neutral}):
            shifted = draw_shifted(here[0], axis, strength, cases)
            told = annotation_ceiling(here[0], shifted).items()
            ceilings += [{"center": center, "case": case, "strength": strength, "ceiling": top} for case, top in told]
            for plan in here:
                worked |= strength != neutral and evaluate_point(plan, shifted, say)
                spec = plan.own.spec
                rows = point_cases(plan, shifted)
                tables.append(rows.assign(method=spec.method.name, seed=spec.seed, strength=strength))
    if not worked:
        say("every point is there already; showing the stored ones")
    return gather(
        pd.concat(tables, ignore_index=True),
        pd.DataFrame(ceilings),
        axis=axis,
        neutral=neutral,
        policy=policies.resolve(OFFICIAL.policy, resolved.protocol),
        heading=_heading(plans),
        notes=_notes(axis),
    )


def _heading(plans: Sequence[RunPlan]) -> list[str]:
    """What was run; then what must be said beside every number of it, and of which methods."""
    told = plans[0].own.spec.protocol
    lines = [
        f"protocol {told.name} version {told.version} ({told.content[:8]}), preset {told.preset}, setting {OFFICIAL.setting}, "
        f"threshold {OFFICIAL.threshold_text}, checkpoint {OFFICIAL.checkpoint}, policy {OFFICIAL.policy}"
    ]
    specs: dict[str, list[RunSpec]] = {}
    for plan in plans:
        specs.setdefault(plan.own.spec.method.name, []).append(plan.own.spec)
    words = stamp_words({method: stamps_of(own) for method, own in specs.items()})
    return [*lines, "; ".join([*words, *plans[0].request.overrides])]


def _notes(name: str) -> list[str]:
    from dgbench.data.phantom import AXES

    axis = AXES[name]
    lines = [f"axis {name} (kind: {axis.kind}; support: {axis.support}): {axis.note}"]
    if axis.kind == "annotation":
        lines.append("this axis changes the reference, not the image: the predictions are the same at every strength")
    if axis.kind == "content":
        lines.append(
            "this axis changes the types and sizes of the lesions: a patient's lesion is not the same at every strength"
        )
    return lines


def _official_only(resolved: ResolvedProtocol) -> ResolvedProtocol:
    """The protocol without the views that a curve does not show; flips and all else stay the preset's."""
    judged = {"thresholds": (float(OFFICIAL.threshold),), "checkpoints": (OFFICIAL.checkpoint,)}
    return resolved.model_copy(update={"preset": resolved.preset.model_copy(update=judged)})


def _identity(plan: RunPlan, part: FolderPlan, shifted: Shifted, brief: ResolvedProtocol) -> dict[str, Any]:
    """What a point is of; as for an evaluation (``jobs.evaluation_identity``), with the axis and its strength."""
    record = {
        "version": EVALUATION,
        "numbers": NUMBERS,
        "axis": shifted.axis,
        "strength": shifted.strength,
        "train_keys": {stage: link.key for stage, link in part.spec.stages.items()},
        "fingerprint": shifted.identity,
        "content": set_fingerprint(shifted.cases, plan.request.cache),
        "how": judged_how(brief),
    }
    return {**record, "key": key_of(record)}


def _is_there(target: Path, key: str) -> bool:
    if read_status(target).state != "done" or stored_key(target) != key:
        return False
    try:
        return len(read_cases(target)) > 0
    except DgbenchError:
        return False


def _evaluate(
    plan: RunPlan,
    part: FolderPlan,
    shifted: Shifted,
    brief: ResolvedProtocol,
    place: tuple[Path | None, Path, dict[str, Any]],
    say: Say,
) -> None:
    shared, target, identity = place
    if read_status(target).state == "done" or stored_key(target) != identity["key"]:
        empty_folder(target)
    write_json(target / "spec.json", identity)
    write_status(target, "running")
    cases, stages = shifted.cases, ", ".join(job.stage for job in part.training)
    say(
        f"evaluate {part.spec.method.name}, held-out {plan.request.heldout}, seed {plan.request.seed}: {stages} on {len(cases)} cases "
        f"at {shifted.axis} {shifted.strength:g}"
    )
    training = tuple(replace(job, resolved=brief) for job in part.training)
    try:
        run_job(_point_job, (training, cases, shared, target, identity["key"], True), "evaluation", target)
    except (Interrupted, KeyboardInterrupt) as stop:
        write_status(target, "interrupted", str(stop) or "Ctrl-C")
        raise
    except DgbenchError as error:
        write_status(target, "failed", str(error))
        raise
    write_status(target, "done")


def _point_job(content: tuple[Any, ...], report: Any) -> None:
    from dgbench.evaluation.job import EvaluationJob, clear_parts, evaluate

    job = EvaluationJob(*content)
    evaluate(job, report)
    clear_parts(job)
