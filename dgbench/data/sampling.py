"""Which cases a step holds and what is cut out of them: pure functions of (run seed, step, slot), so that loader workers, restarts and
devices change nothing (protocol.md §1, §3)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional
from torch.utils.data import Dataset

from dgbench.data.augmentation import draw_rotation, mirror_and_noise, read_crop
from dgbench.data.preparation import PreparedCase
from dgbench.errors import DgbenchError, suggest
from dgbench.method import Sampling
from dgbench.protocol import Augmentation, Stage
from dgbench.seeds import derive_seed, numpy_generator


@lru_cache(maxsize=64)
def _permutation(seed: int, length: int) -> NDArray[np.int64]:
    return np.random.Generator(np.random.PCG64(seed)).permutation(length)


def _nth(seed: int, position: int, members: Sequence[int], *axes: str | int) -> int:
    """The ``position``-th draw without replacement from ``members``, reshuffled every pass."""
    epoch, index = divmod(position, len(members))
    return members[int(_permutation(derive_seed(seed, "sampling", *axes, epoch), len(members))[index])]


def check_sampling(sampling: Sampling, k: int, n_domains: int, what: str) -> None:
    """DgbenchError, beginning with ``what``, unless ``sampling`` is a name that is known or ``k`` rows of ``n_domains`` probabilities
    (at least 0, not all 0; they are divided by their sum)."""
    if isinstance(sampling, str):
        if sampling not in ("pooled", "per-center"):
            raise DgbenchError(f"{what} is {sampling!r}{suggest(sampling, ('pooled', 'per-center'))}")
        return
    if len(sampling) != k:
        raise DgbenchError(
            f"{what} has {len(sampling)} rows of probabilities, a step draws {k} cases — give a row for each"
        )
    for slot, weights in enumerate(sampling):
        row = [float(weight) for weight in weights]
        if len(row) != n_domains or min(row) < 0 or not 0 < sum(row) < float("inf"):
            raise DgbenchError(f"{what}: row {slot} is {row} — give {n_domains} probabilities, one per source center")


def draw_cases(seed: int, step: int, k: int, domains: Sequence[int], sampling: Sampling) -> list[int]:
    """Indices of the ``k`` training cases of ``step``; ``domains`` gives each case's domain index.

    ``pooled``: without replacement over all cases. ``per-center``: the slots go round the centers, a step going on where the one before it
    ended, without replacement in each center. A table of k rows of probabilities over domains: the domain of each slot is drawn, then a
    case of it.
    """
    if sampling == "pooled":
        return [_nth(seed, step * k + slot, range(len(domains)), "pooled") for slot in range(k)]
    n_domains = max(domains) + 1
    members = [[index for index, domain in enumerate(domains) if domain == wanted] for wanted in range(n_domains)]
    if sampling == "per-center":
        rounds = (divmod(step * k + slot, n_domains) for slot in range(k))
        return [_nth(seed, turn, members[domain], "center", domain) for turn, domain in rounds]
    drawn = []
    for slot, weights in enumerate(sampling):
        rng = numpy_generator(seed, "sampling", "mixture", step, slot)
        domain = int(rng.choice(n_domains, p=np.asarray(weights) / np.sum(weights)))
        drawn.append(int(rng.choice(members[domain])))
    return drawn


def crop_start(
    rng: np.random.Generator, box: tuple[Sequence[int], Sequence[int]], shape: Sequence[int], size: Sequence[int]
) -> list[int]:
    """First voxel of a crop around the ROI ``box`` (lo, hi): where the crop is longer than the box it holds the box, else it lies inside
    it; uniform among those; kept inside the volume where it fits."""
    start = []
    for low, high, length, extent in zip(*box, size, shape, strict=True):
        first, last = sorted((low, high - length))
        position = int(rng.integers(first, last + 1))
        start.append(min(max(position, 0), extent - length) if extent >= length else (extent - length) // 2)
    return start


def pool(image: torch.Tensor, label: torch.Tensor, factor: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Image (C, *size) averaged and target (*size) in {0, 1} by majority over blocks of ``factor`` voxels on each axis."""
    if factor == 1:
        return image, label
    mean = functional.avg_pool3d if label.ndim == 3 else functional.avg_pool2d
    return mean(image[None], factor)[0], (mean(label[None, None].float(), factor)[0, 0] >= 0.5).to(label.dtype)


@dataclass
class CropDataset(Dataset[dict[str, torch.Tensor]]):
    """Training batches of one stage by step index: ``dataset[step]`` is a dictionary of stacked tensors (see
    :class:`dgbench.method.Batch`).

    ``plan`` gives the sampling of a step; ``donors`` adds to each sample another source case, of another center where there is one.
    """

    cases: Sequence[PreparedCase]
    domains: Sequence[int]
    stage: Stage
    crop: tuple[int, ...]
    k: int
    seed: int
    augmentation: Augmentation
    plan: Sequence[Sampling]
    donors: bool = False

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
        indices = draw_cases(self.seed, step, self.k, self.domains, self.plan[step])
        samples = [self._sample(index, step, slot) for slot, index in enumerate(indices)]
        batch = {
            "image": torch.stack([image for image, _ in samples]),
            "label": torch.stack([label for _, label in samples]),
            "domain": torch.tensor([self.domains[index] for index in indices]),
        }
        if self.donors:
            batch["donor"] = torch.stack([self._donor(index, step, slot) for slot, index in enumerate(indices)])
        return batch

    def _sample(self, index: int, step: int, slot: int) -> tuple[torch.Tensor, torch.Tensor]:
        case = self.cases[index]
        size = [length * self.stage.downsample for length in self.crop]
        lo = self._place(case, size, numpy_generator(self.seed, "crop", step, slot))
        rng = numpy_generator(self.seed, "augmentation", step, slot)
        image, labels = read_crop(case, lo, size, draw_rotation(rng, self.augmentation, len(size)))
        image, target = pool(
            image, torch.isin(labels, torch.tensor(self.stage.target, dtype=torch.uint8)), self.stage.downsample
        )
        image, target = mirror_and_noise(image, target, rng, self.augmentation)
        return image.contiguous(), target[None].float().contiguous()

    def _donor(self, index: int, step: int, slot: int) -> torch.Tensor:
        rng = numpy_generator(self.seed, "donor", step, slot)
        foreign = [i for i, domain in enumerate(self.domains) if domain != self.domains[index]]
        case = self.cases[int(rng.choice(foreign or list(range(len(self.cases)))))]
        size = [length * self.stage.downsample for length in self.crop]
        image, labels = read_crop(case, self._place(case, size, rng), size, None)
        return pool(image, labels, self.stage.downsample)[0].contiguous()

    def _place(self, case: PreparedCase, size: Sequence[int], rng: np.random.Generator) -> list[int]:
        labels = self.stage.roi.labels if self.stage.roi else self.stage.target
        box = case.box(labels)
        if self.stage.roi is None or box is None:
            box = ((0,) * len(size), tuple(case.size))
        return crop_start(rng, box, case.size, size)
