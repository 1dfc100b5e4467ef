"""What is the same for every row of a leaderboard: task, centers, stages, budget, inference and metrics, typed and versioned.

A protocol is a YAML file (``protocols/*.yaml``). :meth:`Protocol.resolve` picks one preset and applies overrides; what comes out
enters every key, so nothing that could change a number is left outside.
"""

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PrivateAttr, ValidationError, model_validator

from dgbench.errors import DgbenchError, suggest
from dgbench.frozen import Frozen, check_name, one_line
from dgbench.task import Task
from dgbench.yaml_text import assign, merged, read_yaml

PROBABILITY = Annotated[float, Field(ge=0, le=1)]
Checkpoint = Literal["source-val", "last-step"]
STANDING = ("ranked", "converged")
"""Fields of a preset that say what its rows count for; they belong to the protocol and no override reaches them."""
CHECKPOINTS: tuple[Checkpoint, ...] = ("source-val", "last-step")
"""Selected on source validation (official), or simply the last."""


class Roi(Frozen):
    """Where a stage looks: a box around ``labels`` of the reference (training, validation, `Mask` chain) or around the prediction of stage
    ``source`` (`Seg` chain and every later stage), widened by a margin in mm (z, y, x)."""

    source: str
    labels: tuple[int, ...]
    margin_mm: tuple[Annotated[float, Field(ge=0)], ...]
    mask_margin_mm: tuple[Annotated[float, Field(ge=0)], ...]


class Stage(Frozen):
    """One network of the cascade. ``code`` names its settings in tables (a stage under test gives ``<code>-Seg`` and ``<code>-Mask``).
    ``recipe`` names the method that trains it whatever the method under test (the pancreas stages);
    ``support_centers`` adds the centers that carry no tumor labels; ``downsample`` is an integer factor on every axis."""

    code: str
    target: tuple[int, ...]
    roi: Roi | None = None
    downsample: Annotated[int, Field(ge=1)] = 1
    recipe: str | None = None
    support_centers: bool = False


class Augmentation(Frozen):
    """The augmentation that every method trains under (paper IV.C: rotation, mirroring, noise)."""

    rotation_degrees: Annotated[float, Field(ge=0, le=180)] = 15.0
    rotation_p: PROBABILITY = 0.5
    flip_p: PROBABILITY = 0.5
    noise_sd: Annotated[float, Field(ge=0)] = 0.1
    noise_p: PROBABILITY = 0.5


class FineRounds(Frozen):
    """At most how often the last stage looks again around its own answer, by chain (the paper's code: 4 in `Seg`, 5 in `Mask`)."""

    seg: Annotated[int, Field(ge=1)] = 1
    mask: Annotated[int, Field(ge=1)] = 1


class Inference(Frozen):
    """How a stage is applied to a case (protocol.md §2, dual-task sheet §4)."""

    whole_roi_voxels: Annotated[int, Field(gt=0)]
    window_overlap: Annotated[float, Field(ge=0, lt=1)] = 0.5
    component_fraction: PROBABILITY | None = 0.5
    minimum_voxels: Annotated[int, Field(ge=1)] = 10
    fine_rounds: FineRounds = FineRounds()
    round_minimum_voxels: Annotated[int, Field(ge=1)] = 80
    round_stop_dice: PROBABILITY = 0.92


class Metrics(Frozen):
    """Constants of the case metrics: distances in mm; a lesion counts as found at ``detection_overlap``."""

    nsd_tolerance_mm: Annotated[float, Field(gt=0)] = 2.0
    assd_constant_mm: Annotated[float, Field(gt=0)] = 40.0
    hd95_constant_mm: Annotated[float, Field(gt=0)] = 100.0
    detection_overlap: PROBABILITY = 0.1


class StageBudget(Frozen):
    """Training of one stage: crop in voxels, number of source-case draws, initial learning rate. ``weight_decay`` takes the place of the
    preset's; ``augmentation`` multiplies the size of rotation and noise. At their defaults both are left out of every identity."""

    crop: tuple[Annotated[int, Field(gt=0, multiple_of=8)], ...]
    draws: Annotated[int, Field(gt=0)]
    lr: Annotated[float, Field(gt=0)]
    weight_decay: Annotated[float, Field(ge=0)] | None = None
    augmentation: Annotated[float, Field(ge=0)] = 1.0


class PhantomSize(Frozen):
    """Which phantom a preset trains on (``dgbench.data.phantom.PhantomRecipe``)."""

    size: Literal["tiny", "small", "full"] = "small"
    cases: Annotated[int, Field(gt=0)]
    seed: int = 0
    shift: dict[str, float] = Field(default_factory=dict)


class Preset(Frozen):
    """One size of a protocol. Only ranked presets enter a ranking; a preset with overrides never does. ``converged`` is set once doubling
    erm's draws was shown to change its held-out DSC by less than 2 points; until then every row is stamped."""

    ranked: bool
    converged: bool = False
    width: Annotated[int, Field(gt=0, multiple_of=8)]
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    validations: Annotated[int, Field(ge=1)]
    checkpoint_every: Annotated[int, Field(ge=1)] = 100
    tta: bool = True
    thresholds: tuple[PROBABILITY, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    checkpoints: tuple[Checkpoint, ...] = CHECKPOINTS
    precision: dict[Literal["cpu", "cuda"], Literal["fp32", "bf16"]] = Field(default={"cpu": "fp32", "cuda": "bf16"})
    workers: Annotated[int, Field(ge=0)] = 0
    phantom: PhantomSize | None = None
    stages: dict[str, StageBudget]

    @model_validator(mode="after")
    def _official_view(self) -> Self:
        if 0.5 not in self.thresholds or "source-val" not in self.checkpoints:
            raise ValueError("thresholds must hold 0.5 and checkpoints source-val: the official ranking is of these")
        return self


class Protocol(Frozen):
    """The scientific contract of one leaderboard. ``centers`` are held out in turn, or with ``folds`` (in-domain) each fold of a center,
    with its other folds as the source; ``support_centers`` (no tumor labels) are only ever sources, and only of stages that ask for them.
    Stages are listed in the order of inference. ``paper_thresholds`` by held-out center are for an oracle view of tables and enter no key.
    What the file does not say is taken from the protocol ``base``."""

    name: str
    version: Annotated[int, Field(ge=1)]
    title: str
    kind: Literal["phantom", "patient"]
    base: str | None = None
    centers: tuple[str, ...]
    support_centers: tuple[str, ...] = ()
    folds: Annotated[int, Field(ge=2)] | None = None
    labels: dict[str, int]
    task: Task
    upsample: Literal["trilinear", "nearest"] = "trilinear"
    stages: dict[str, Stage]
    validation_fraction: PROBABILITY = 0.15
    augmentation: Augmentation = Augmentation()
    inference: Inference
    metrics: Metrics = Metrics()
    paper_thresholds: dict[str, PROBABILITY] = Field(default_factory=dict)
    presets: dict[str, Preset]
    _file: str | None = PrivateAttr(default=None)

    @property
    def word(self) -> str:
        """What ``--protocol`` takes for this one: its name, or the file that it was read from."""
        return self._file or self.name

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name in (self.name, *self.centers, *self.support_centers, *self.stages):
            check_name(name, "name")
        self._check_task()
        self._check_centers()
        known = set(self.labels.values())
        for name, stage in self.stages.items():
            labels = set(stage.target) | set(stage.roi.labels if stage.roi else ())
            if not labels <= known:
                raise ValueError(
                    f"stage {name!r} names labels {sorted(labels - known)} that the protocol does not define"
                )
            earlier = list(self.stages)[: list(self.stages).index(name)]
            if stage.roi and stage.roi.source not in earlier:
                raise ValueError(
                    f"stage {name!r} takes its ROI from {stage.roi.source!r}, which is not an earlier stage"
                )
            for margin in (stage.roi.margin_mm, stage.roi.mask_margin_mm) if stage.roi else ():
                if len(margin) != self.task.ndim:
                    raise ValueError(
                        f"stage {name!r}: margin {list(margin)} has {len(margin)} entries for {self.task.ndim} dimensions"
                    )
        codes = [stage.code for stage in self.stages.values()]
        if codes[-1:] != ["F"]:
            raise ValueError(
                f"stages have the codes {codes}: the last one must be 'F', F-Seg is the setting that is ranked"
            )
        recipes = {name: self.stages[name].recipe for name in self.shared_stages}
        if len(set(recipes.values())) > 1:
            given = ", ".join(f"{name} {recipe}" for name, recipe in recipes.items())
            raise ValueError(f"shared stages have different recipes ({given}): one recipe trains all of them")
        for name, preset in self.presets.items():
            if set(preset.stages) != set(self.stages):
                raise ValueError(f"preset {name!r} must give a budget for exactly the stages {list(self.stages)}")
            for stage_name, budget in preset.stages.items():
                if len(budget.crop) != self.task.ndim:
                    raise ValueError(
                        f"preset {name!r}, stage {stage_name!r}: crop has {len(budget.crop)} entries for {self.task.ndim} dimensions"
                    )
        return self

    def _check_task(self) -> None:
        """What a network can be built for, but nothing here reads, trains or judges."""
        if self.task.in_channels != 1:
            raise ValueError(f"task.in_channels is {self.task.in_channels}, but an image file holds one channel")
        if self.task.out_channels != 1:
            raise ValueError(
                f"task.out_channels is {self.task.out_channels}, but a stage answers one question: use a stage per structure"
            )
        values = list(self.labels.values())
        if len(set(values)) != len(values) or not all(1 <= value <= 255 for value in values):
            raise ValueError(f"labels {self.labels} must be different numbers from 1 to 255 (0 is background)")

    def _check_centers(self) -> None:
        names = (*self.centers, *self.support_centers)
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(
                f"named more than once among centers and support_centers: {', '.join(twice)} — it would be source and held out at once"
            )

    @property
    def n_sources(self) -> int:
        """The source centers of a split, support centers aside."""
        return 1 if self.folds else len(self.centers) - 1

    @property
    def heldouts(self) -> tuple[str, ...]:
        """What can be held out, in order: every center, or in-domain every fold of every center, such as ``RENJI-fold0``."""
        return tuple(heldout for center in self.centers for heldout in self.heldouts_of(center))

    def heldouts_of(self, center: str) -> tuple[str, ...]:
        """What is held out in turn until every case of ``center`` was judged once."""
        return tuple(f"{center}-fold{fold}" for fold in range(self.folds)) if self.folds else (center,)

    def center_of(self, heldout: str) -> str:
        """The center whose cases are judged where ``heldout`` is held out; a name that is not of this protocol is its own."""
        return next((center for center in self.centers if heldout in self.heldouts_of(center)), heldout)

    @property
    def settings(self) -> tuple[str, ...]:
        """The settings in which the stages of the method under test are judged, such as ``F-Seg``; those in `Mask` use an oracle ROI."""
        own = [stage.code for stage in self.stages.values() if stage.recipe is None]
        return tuple(f"{code}-{chain}" for chain in ("Seg", "Mask") for code in own)

    @property
    def shared_stages(self) -> tuple[str, ...]:
        """The stages that a fixed recipe trains, whatever the method under test, in order of inference."""
        return tuple(name for name, stage in self.stages.items() if stage.recipe is not None)

    def resolve(self, preset: str, overrides: Mapping[str, str] | None = None) -> "ResolvedProtocol":
        """This protocol with one preset and ``overrides`` (dotted paths below the preset, values in YAML) applied.

        Raises DgbenchError for an unknown preset or key or an unfit value.
        """
        if preset not in self.presets:
            raise DgbenchError(f"unknown preset {preset!r} for protocol {self.name!r}{suggest(preset, self.presets)}")
        raw = self.presets[preset].model_dump(mode="json")
        for path, text in (overrides or {}).items():
            if path in STANDING:
                raise DgbenchError(f"--set preset.{path}: what the rows of a preset count for is the protocol's to say")
            assign(raw, path, text)
        fields = self.model_dump(mode="json", exclude={"presets"})
        try:
            chosen = Preset.model_validate(raw)
            self.model_validate({**fields, "presets": {preset: raw}})
        except ValidationError as error:
            raise DgbenchError(f"--set preset.…: {one_line(error)}") from None
        return ResolvedProtocol(
            protocol=self,
            preset_name=preset,
            preset=chosen,
            modified=_numeric(chosen) != _numeric(self.presets[preset]),
        )


class ResolvedProtocol(Frozen):
    """A protocol, one of its presets after overrides, and whether the overrides changed it (then it is never ranked)."""

    protocol: Protocol
    preset_name: str
    preset: Preset
    modified: bool

    @property
    def ranked(self) -> bool:
        """Whether runs of this preset may be ranked; in-domain ones never are."""
        return self.preset.ranked and not self.modified and self.protocol.folds is None

    def cases_per_step(self, stage: str) -> int:
        """K of protocol.md §1: the source centers of a leave-one-center-out split, for every split of this protocol, in-domain too."""
        support = len(self.protocol.support_centers) if self.protocol.stages[stage].support_centers else 0
        return max(1, len(self.protocol.centers) - 1) + support

    def steps(self, stage: str, draws_factor: int = 1, devices: int = 1) -> int:
        """Training steps of ``stage``: its draws divided by the cases of a step, of which each of ``devices`` draws its K."""
        return max(1, self.preset.stages[stage].draws * draws_factor // (devices * self.cases_per_step(stage)))

    def weight_decay(self, stage: str) -> float:
        """The weight decay of ``stage``: its own, or the preset's."""
        return self.preset.weight_decay if (own := self.preset.stages[stage].weight_decay) is None else own

    def margin(self, stage: str, *, oracle: bool) -> tuple[int, ...]:
        """ROI margin of ``stage`` in voxels: the `Mask` margin with ``oracle``, else the `Seg` one; zeros without a ROI rule."""
        roi = self.protocol.stages[stage].roi
        if roi is None:
            return (0,) * self.protocol.task.ndim
        return self.protocol.task.voxels(roi.mask_margin_mm if oracle else roi.margin_mm)

    def rounds(self, stage: str, *, oracle: bool) -> int:
        """Most passes of ``stage``: only the last one is iterated."""
        if stage != list(self.protocol.stages)[-1]:
            return 1
        limits = self.protocol.inference.fine_rounds
        return limits.mask if oracle else limits.seg

    def identity(self, stage: str | None = None) -> dict[str, Any]:
        """Everything of the resolved protocol that can change the numbers of a run, or of the training of one ``stage``; plain JSON."""
        silent = {"presets", "title", "paper_thresholds", "base"} | (set() if self.protocol.folds else {"folds"})
        fields = self.protocol.model_dump(mode="json", exclude=silent)
        preset = {**_numeric(self.preset), "phantom": None}
        if stage is not None:
            del fields["metrics"]
            validated_with = ("whole_roi_voxels", "window_overlap")  # of inference, all that source validation uses
            fields["inference"] = {key: fields["inference"][key] for key in validated_with}
            roi = self.protocol.stages[stage].roi
            fields["roi_target"] = list(self.protocol.stages[roi.source].target) if roi else None
            fields["stages"] = {stage: fields["stages"][stage]}
            preset = {key: value for key, value in preset.items() if key not in {"tta", "thresholds", "checkpoints"}}
            preset["stages"] = {stage: preset["stages"][stage]}
        return {**fields, "preset": preset}


def _numeric(preset: Preset) -> dict[str, Any]:
    """What of a preset can change a number on a given machine, as plain JSON. The precision belongs to the machine: it is in every key, and
    tables say where rows differ in it."""
    content = preset.model_dump(mode="json", exclude={"workers", "checkpoint_every", "precision", *STANDING})
    later = {
        "weight_decay": None,
        "augmentation": 1.0,
    }  # younger than the first records: no part of a key at their defaults
    for name, budget in content["stages"].items():
        content["stages"][name] = {key: value for key, value in budget.items() if later.get(key, ...) != value}
    return content


def protocol_folder() -> Path:
    """Where the protocol files are: inside the installed package, else in the checkout."""
    packaged = Path(str(resources.files("dgbench"))) / "_protocols"
    return packaged if packaged.is_dir() else Path(__file__).parent.parent / "protocols"


def protocol_names() -> list[str]:
    """Names of the shipped protocols, sorted."""
    return sorted(path.stem for path in protocol_folder().glob("*.yaml"))


def load_protocol(name_or_path: str) -> Protocol:
    """A shipped protocol by name, or any YAML file by path (ending in .yaml or .yml). Raises DgbenchError when there is none or it is
    invalid."""
    path = _protocol_file(name_or_path)
    what = f"protocol {path.name}"
    content = read_yaml(path, what)
    try:
        if isinstance(content, dict) and content.get("base") is not None:
            base = load_protocol(str(content["base"])).model_dump(mode="json")
            content = merged(base, content)
        protocol = Protocol.model_validate(content)
    except ValidationError as error:
        raise DgbenchError(f"{what}: {one_line(error)}") from None
    if path.parent != protocol_folder():
        protocol._file = name_or_path
    return protocol


def _protocol_file(name_or_path: str) -> Path:
    if name_or_path.endswith((".yaml", ".yml")):
        if not (path := Path(name_or_path)).is_file():
            raise DgbenchError(f"protocol file {path} does not exist")
        return path
    if name_or_path not in protocol_names():
        raise DgbenchError(f"unknown protocol {name_or_path!r}{suggest(name_or_path, protocol_names())}")
    return protocol_folder() / f"{name_or_path}.yaml"
