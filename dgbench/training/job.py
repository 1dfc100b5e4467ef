"""One training job: a stage of a run, with everything it needs and nothing of the held-out center."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dgbench.data.case import Case, Center
from dgbench.data.preparation import VERSION as PREPARATION
from dgbench.data.splits import Split
from dgbench.info import MethodConfig, MethodInfo
from dgbench.protocol import ResolvedProtocol
from dgbench.store.folder import ProtocolRef
from dgbench.store.keys import key_of

RECIPE = 1
"""Raised when the harness's numerics change, so that no old result is taken for a new one (protocol.md §3)."""
RANK_TIMEOUT = 600.0
"""Seconds after which a device that does not answer is given up, unless the user says otherwise."""


@dataclass(frozen=True)
class TrainJob:
    """``cases`` are the source cases of ``split`` (training and validation) and no other; ``centers`` and ``runs`` (the runs folder: what
    other runs keep of held-out cases) only tell the read guard what exists; ``identity`` is what ``key`` was computed from. Each of the
    ``devices`` takes a batch in every step; one that is silent for ``rank_timeout`` seconds ends the job."""

    stage: str
    resolved: ResolvedProtocol
    info: MethodInfo
    config: MethodConfig
    split: Split
    cases: tuple[Case, ...]
    centers: tuple[Center, ...]
    seed: int
    cache: Path
    folder: Path
    key: str
    identity: dict[str, Any]
    device: str
    precision: str
    threads: int
    runs: Path | None = None
    devices: int = 1
    rank_timeout: float = RANK_TIMEOUT

    @property
    def steps(self) -> int:
        """Training steps, from the protocol's draws and the method's factor on them."""
        return self.resolved.steps(self.stage, self.info.draws_factor, self.devices)

    @property
    def cases_per_step(self) -> int:
        """Cases drawn in a step, by all devices together."""
        return self.devices * self.resolved.cases_per_step(self.stage)


def protocol_reference(resolved: ResolvedProtocol) -> ProtocolRef:
    """The protocol as a run names it. Its ``content`` is what must be equal in the protocol and the harness for two runs to share a table,
    overrides of the preset aside."""
    protocol, plain = resolved.protocol, resolved.protocol.resolve(resolved.preset_name)
    return ProtocolRef(
        name=protocol.name,
        version=protocol.version,
        content=key_of({"protocol": plain.identity(), "recipe": RECIPE, "preparation": PREPARATION}),
        kind=protocol.kind,
        preset=resolved.preset_name,
        ranked=resolved.ranked,
        modified=resolved.modified,
        converged=resolved.preset.converged,
    )
