"""A run as a graph of jobs: which stages are trained where, under which key. Planning opens no image and imports no torch."""

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dgbench import __version__
from dgbench.data.case import Case, Center, load_centers
from dgbench.data.fingerprint import center_fingerprint, set_fingerprint
from dgbench.data.preparation import VERSION as PREPARATION
from dgbench.data.splits import Split, check_heldout, heldout_parts, make_split
from dgbench.errors import DgbenchError, NotApplicable
from dgbench.info import MethodConfig, MethodInfo
from dgbench.launch.machine import Machine, this_machine
from dgbench.launch.settings import Settings, check_data, resolve_settings
from dgbench.protocol import PhantomSize, ResolvedProtocol, load_protocol
from dgbench.registry import find_method
from dgbench.store.folder import SHARED_METHOD, RunSpec, TunedRef, read_status, run_folder
from dgbench.store.keys import key_of
from dgbench.training.job import RANK_TIMEOUT, RECIPE, TrainJob, protocol_reference


@dataclass(frozen=True)
class RunRequest:
    """What a user asked for; see ``dgbench run --help``."""

    method: str
    heldout: str
    protocol: str = "phantom"
    preset: str = "demo"
    data: Path | None = None
    seed: int = 0
    devices: int = 1
    rank_timeout: float | None = None
    device: str | None = None
    threads: int | None = None
    overrides: tuple[str, ...] = ()
    config: Path | None = None
    runs: Path = Path("runs")
    cache: Path = Path.home() / ".cache" / "dgbench"

    def command(self, verb: str = "run") -> str:
        """The command line that asks for this run, or with another ``verb`` for something else with the same options."""
        parts = ["dgbench", verb, "--method", self.method, "--heldout", self.heldout]
        defaults = RunRequest(self.method, self.heldout)
        for name in ("protocol", "preset", "data", "seed", "devices", "device", "threads", "config", "runs"):
            if getattr(self, name) != getattr(defaults, name):
                parts += [f"--{name}", str(getattr(self, name))]
        return shlex.join([*parts, *(word for override in self.overrides for word in ("--set", override))])


@dataclass(frozen=True)
class FolderPlan:
    """One run folder and the training jobs whose results live in it."""

    folder: Path
    spec: RunSpec
    training: tuple[TrainJob, ...]


@dataclass(frozen=True)
class RunPlan:
    """The jobs of one run: shared stages (None where the protocol has none), the method's own stages, and the cases evaluated
    afterwards."""

    request: RunRequest
    resolved: ResolvedProtocol
    centers: Mapping[str, Center]
    split: Split
    identity: str | None
    shared: FolderPlan | None
    own: FolderPlan

    @property
    def folders(self) -> tuple[FolderPlan, ...]:
        """In the order in which they must be evaluated."""
        return (self.own,) if self.shared is None else (self.shared, self.own)

    def evaluated(self, folder: FolderPlan) -> tuple[Case, ...]:
        """Source-validation and held-out cases, then those without a lesion: validation cases of the support centers, on which the stages
        under test never train and the shared ones have answered already."""
        validation = folder.training[-1].split.validation
        seen = self.shared.training[-1].split.validation if self.shared is not None else ()
        wanted = [*validation, *self.split.test, *(case_id for case_id in seen if case_id not in validation)]
        cases = self._cases()
        return tuple(cases[case_id] for case_id in wanted)

    def heldout_identity(self) -> dict[str, str]:
        """The held-out center, or fold, by the name and hash that runs state in ``data`` which may train on it; nothing of the cached
        phantom, whose recipe is all. Reads the held-out files."""
        if self.identity is not None:
            return {}
        cases = self._cases()
        held_out = (cases[case_id] for case_id in self.split.test)
        return {self.request.heldout: set_fingerprint(held_out, self.request.cache)}

    def _cases(self) -> dict[str, Case]:
        return {case.id: case for center in self.centers.values() for case in center.cases}


def data_folder(data: Path | None, cache: Path, resolved: ResolvedProtocol) -> tuple[Path, str | None]:
    """Where the data is and, for the cached phantom, its identity: the recipe's fingerprint.

    Raises:
        DgbenchError: ``data`` is a phantom and the protocol not for one, or the other way round; or the protocol needs it and it is None.
    """
    phantom = resolved.preset.phantom
    if data is not None:
        is_phantom = (data / "phantom.json").is_file()
        if is_phantom != (resolved.protocol.kind == "phantom"):
            found, wanted = ("a phantom", "patient data") if is_phantom else ("not a phantom", "a phantom")
            raise DgbenchError(
                f"data folder {data} is {found}, protocol {resolved.protocol.name!r} is for {wanted} "
                "— name another with --protocol"
            )
        return data, None
    if phantom is None:
        raise DgbenchError(
            f"protocol {resolved.protocol.name!r} needs --data DIR with one folder per center ({', '.join(resolved.protocol.centers)})"
        )
    return phantom_place(phantom_recipe(phantom), cache)


def phantom_place(recipe: Any, cache: Path) -> tuple[Path, str]:
    """Where ``cache`` keeps the phantom of ``recipe`` (:class:`dgbench.data.phantom.PhantomRecipe`), and its fingerprint."""
    from dgbench.data.phantom import fingerprint

    identity = fingerprint(recipe)
    return cache / "phantom" / identity[:12], identity


def phantom_recipe(size: PhantomSize) -> Any:
    """The phantom of a preset as a :class:`dgbench.data.phantom.PhantomRecipe`."""
    from dgbench.data.phantom import PhantomRecipe

    return PhantomRecipe(size=size.size, cases=size.cases, seed=size.seed, strengths=size.shift)


def resolve_request(request: RunRequest) -> tuple[ResolvedProtocol, MethodInfo, MethodConfig]:
    """Protocol, method and configuration of a request, all validated (and its device too), before anything is read or written."""
    info, settings = _resolve(request)
    return settings.resolved, info, settings.config


def _resolve(request: RunRequest) -> tuple[MethodInfo, Settings]:
    protocol = load_protocol(request.protocol)
    check_heldout(protocol, request.heldout)
    if request.seed < 0:
        raise DgbenchError(f"--seed {request.seed}: a seed is a whole number from 0 up")
    info = find_method(request.method)
    info.check_dims(protocol.task.ndim, f"protocol {protocol.name}")
    if request.devices > 1 and info.one_device is not None:
        raise NotApplicable(f"method {info.name} runs on one device: {info.one_device}")
    settings = resolve_settings(protocol, request.preset, info, request.heldout, request.overrides, request.config)
    _machine(request, settings.resolved)
    return info, settings


def _machine(request: RunRequest, resolved: ResolvedProtocol) -> Machine:
    precision = resolved.preset.precision
    return this_machine(precision, device=request.device, threads=request.threads, devices=request.devices)


def plan_run(request: RunRequest) -> RunPlan:
    """The graph of one run. The data folder must exist; only source files are read, to fingerprint them."""
    info, (resolved, config, tuned) = _resolve(request)
    protocol = resolved.protocol
    folder, identity = data_folder(request.data, request.cache, resolved)
    centers = load_centers(folder, protocol)
    split = make_split(protocol, centers, request.heldout)
    info.check_sources(len(split.sources) - len(split.support), f"{request.heldout} held out")
    builder = _Builder(request, resolved, centers, split, _machine(request, resolved), identity)
    shared_names = protocol.shared_stages
    own_names = [name for name in protocol.stages if name not in shared_names]
    shared = None
    if shared_names:
        recipe = find_method(str(protocol.stages[shared_names[0]].recipe))
        shared = builder.folder_plan(SHARED_METHOD, recipe, recipe.configure(), shared_names, {})
    own = builder.folder_plan(info.name, info, config, own_names, dict(shared.spec.stages) if shared else {}, tuned)
    if tuned is not None and request.config is not None:
        check_data(request.config, own.spec.data)
    return RunPlan(request, resolved, centers, split, identity, shared, own)


def plan_without(run: RunPlan, source: str) -> FolderPlan:
    """The method's own stages of ``run``, trained without the source center ``source`` (and without the held-out one, as ever).

    Raises:
        DgbenchError: no center for validation is left.
        NotApplicable: the method needs more source centers.
    """
    request, first, split = run.request, run.own.training[0], run.split.without(source)
    n_sources = len(split.sources) - len(split.support)
    first.info.check_sources(n_sources, f"{request.heldout} held out and without {source}")
    builder = _Builder(request, run.resolved, run.centers, split, _machine(request, run.resolved), run.identity)
    stages = [job.stage for job in run.own.training]
    return builder.folder_plan(first.info.name, first.info, first.config, stages, {})


def run_key(
    resolved: ResolvedProtocol, stages: Mapping[str, str], shared: Mapping[str, str], tuned: TunedRef | None = None
) -> str:
    """The key of a run from the train keys of its own and its shared stages. A tuned run is another one than a run with the same
    configuration that nothing selected: it belongs to another row."""
    preset = resolved.preset
    judged = {"tta": preset.tta, "thresholds": preset.thresholds, "checkpoints": preset.checkpoints}
    study = {} if tuned is None else {"tuned": tuned.model_dump(mode="json")}
    return key_of({"evaluation": judged, "stages": stages, "shared": shared, **study})


def judged_how(resolved: ResolvedProtocol) -> dict[str, Any]:
    """How cases are evaluated, as an evaluation's ``spec.json`` tells; plain JSON."""
    protocol, preset = resolved.protocol, resolved.preset
    return {
        "inference": protocol.inference.model_dump(mode="json"),
        "metrics": protocol.metrics.model_dump(mode="json"),
        "stages": {name: stage.model_dump(mode="json") for name, stage in protocol.stages.items()},
        "tta": preset.tta,
        "thresholds": list(preset.thresholds),
        "checkpoints": list(preset.checkpoints),
    }


@dataclass(frozen=True)
class _Builder:
    request: RunRequest
    resolved: ResolvedProtocol
    centers: Mapping[str, Center]
    split: Split
    machine: Machine
    identity: str | None

    def folder_plan(
        self,
        name: str,
        info: MethodInfo,
        config: MethodConfig,
        stages: Sequence[str],
        earlier: dict[str, Any],
        tuned: TunedRef | None = None,
    ) -> FolderPlan:
        jobs = [self.train_job(stage, info, config) for stage in stages]
        keys = {job.stage: job.key for job in jobs}
        key = run_key(self.resolved, keys, {stage: link.key for stage, link in earlier.items()}, tuned)
        protocol = self.resolved.protocol
        folder = run_folder(self.request.runs, protocol.name, self.request.heldout, name, self.request.seed, key)
        own = {
            job.stage: {"key": job.key, "folder": str((folder / job.stage).relative_to(self.request.runs))}
            for job in jobs
        }
        sources = jobs[-1].split
        spec = RunSpec.model_validate(
            {
                "schema": 1,
                "dgbench": __version__,
                "key": key,
                "protocol": protocol_reference(self.resolved).model_dump(),
                "heldout": self.request.heldout,
                "sources": list(sources.sources),
                "support": list(sources.support),
                "seed": self.request.seed,
                "method": {
                    "name": name,
                    "version": info.version,
                    "title": info.title,
                    "config": config.model_dump(mode="json"),
                    "draws_factor": info.draws_factor,
                },
                "stages": {**{stage: link.model_dump() for stage, link in earlier.items()}, **own},
                "data": {"centers": self.data_identity()},
                "environment": self.machine.identity(),
                "command": self.request.command(),
                "tuned": tuned,
            }
        )
        return FolderPlan(folder, spec, tuple(replace(job, folder=folder / job.stage) for job in jobs))

    def data_identity(self) -> dict[str, str]:
        """What must be equal for two runs to share a table: the phantom's recipe, or the cases of each center, or each fold, that may be a
        source."""
        protocol = self.resolved.protocol
        if self.identity is not None:
            return {"phantom": self.identity}
        heldout, cache, centers = self.request.heldout, self.request.cache, self.centers
        if protocol.folds:
            cases = {case.id: case for case in centers[protocol.center_of(heldout)].cases}
            folds = heldout_parts(protocol, protocol.center_of(heldout), cases)
            own = {
                name: set_fingerprint((cases[case_id] for case_id in ids), cache)
                for name, ids in folds.items()
                if name != heldout
            }
            wanted = protocol.support_centers
        else:
            own, wanted = {}, tuple(name for name in (*protocol.centers, *protocol.support_centers) if name != heldout)
        whole = {name: center_fingerprint(centers[name], cache) if name in centers else "absent" for name in wanted}
        return {**own, **whole}

    def train_job(self, stage: str, info: MethodInfo, config: MethodConfig) -> TrainJob:
        """The training of one stage. Its key knows the cached phantom by its recipe (protocol.md §4): the last bits of its volumes differ
        between processors, and a key is the same question everywhere. Other data are known by their bytes."""
        resolved = self.resolved
        split = self.split.for_stage(support_centers=resolved.protocol.stages[stage].support_centers)
        wanted = {*split.train, *split.validation}
        cases = tuple(case for name in split.sources for case in self.centers[name].cases if case.id in wanted)
        surplus = resolved.cases_per_step(stage) % len(split.sources)
        identity = {
            "recipe": RECIPE,
            "stage": stage,
            "steps": resolved.steps(stage, info.draws_factor, self.machine.devices),
            "preparation": PREPARATION,
            "protocol": resolved.identity(stage),
            "method": {
                "name": info.name,
                "version": info.version,
                "target": info.target,
                "config": config.model_dump(mode="json"),
            },
            "seed": self.request.seed,
            "data": self.identity or set_fingerprint(cases, self.request.cache),
            "split": {"id": split.id, "sources": split.sources, "train": split.train, "validation": split.validation},
            "environment": self.machine.identity(),
            # where a step holds more cases of one center than of another, they took turns only later than the first keys
            **({"surplus": "in turn"} if surplus else {}),
        }
        return TrainJob(
            stage=stage,
            resolved=resolved,
            info=info,
            config=config,
            split=split,
            cases=cases,
            centers=tuple(self.centers.values()),
            seed=self.request.seed,
            cache=self.request.cache,
            folder=Path(os.devnull),
            key=key_of(identity),
            identity=identity,
            device=self.machine.device,
            precision=self.machine.precision,
            threads=self.machine.threads,
            runs=self.request.runs,
            devices=self.machine.devices,
            rank_timeout=self.request.rank_timeout or RANK_TIMEOUT,
        )


def describe_plan(request: RunRequest) -> list[str]:
    """What :func:`plan_run` would do, in lines for people; where the phantom is not drawn yet, without keys."""
    resolved, info, config = resolve_request(request)
    folder, identity = data_folder(request.data, request.cache, resolved)
    lines = [
        f"protocol  {resolved.protocol.name} v{resolved.protocol.version}, preset {resolved.preset_name}"
        + ("" if resolved.ranked else " (not ranked)"),
        f"method    {info.name} v{info.version} {config.model_dump_json()}",
        f"held out  {request.heldout}, seed {request.seed}",
        f"data      {folder}",
    ]
    if identity is not None and not (folder / "phantom.json").is_file():
        return [*lines, "the phantom is not drawn yet: `dgbench run` draws it first"]
    plan = plan_run(request)
    devices = f" on {request.devices} devices" if request.devices > 1 else ""
    for part in plan.folders:
        lines.append(f"folder    {part.folder}")
        for job in part.training:
            state = read_status(job.folder).state
            lines.append(
                f"  train   {job.stage}: {job.steps} steps{devices}, key {job.key[:8]}, {len(job.split.train)} cases, {state}"
            )
        lines.append(f"  judge   {len(plan.evaluated(part))} cases, {read_status(part.folder / 'evaluation').state}")
    return lines
