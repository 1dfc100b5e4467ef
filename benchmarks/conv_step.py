"""Time of a training step (forward, backward, Adam) of the shared backbone on the CPU, by convolution, layout, precision.

Usage: ``OMP_WAIT_POLICY=PASSIVE python benchmarks/conv_step.py [--threads 1] [--widths 8 16] [--batches 1 2 4]
[--crops 24x64x64 ...] [--repeats 3]``. "library" calls PyTorch's convolution as it is, "dgbench" goes through
``dgbench.nets.cpu`` and ``dgbench.ops.precision``; "cl" is channels-last memory for the whole network. Prints
milliseconds per step, the median over repeats that alternate between configurations, and the ratio to "library fp32" at
the same crop, width and batch; with one thread the clock is processor time, which other processes disturb less.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from dgbench.nets import Backbone, blocks
from dgbench.nets.cpu import cpu_conv3d
from dgbench.ops.precision import mixed_precision

CROPS = ("24x64x64", "32x64x64", "16x48x48", "24x56x56", "24x48x48")


def library_conv3d(x: Tensor, weight: Tensor, *, stride: int, dilation: int) -> Tensor:
    """The convolution of ``cpu_conv3d`` as PyTorch runs it unasked."""
    return F.conv3d(x, weight, None, stride, dilation * (weight.shape[2] // 2), dilation)


def library_precision(device: torch.device, precision: str) -> torch.autocast:
    """The precision of ``mixed_precision`` as PyTorch computes it unasked."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


class Configuration(NamedTuple):
    conv: Callable[..., Tensor]
    layout: torch.memory_format
    bf16: bool


CONFIGURATIONS = {
    "library fp32": Configuration(library_conv3d, torch.contiguous_format, False),
    "library fp32 cl": Configuration(library_conv3d, torch.channels_last_3d, False),
    "library bf16": Configuration(library_conv3d, torch.contiguous_format, True),
    "library bf16 cl": Configuration(library_conv3d, torch.channels_last_3d, True),
    "dgbench fp32": Configuration(cpu_conv3d, torch.contiguous_format, False),
    "dgbench bf16": Configuration(cpu_conv3d, torch.contiguous_format, True),
}


def make_step(
    crop: tuple[int, ...], width: int, batch: int, configuration: Configuration, clock: Callable[[], float]
) -> Callable[[], float]:
    """A function that runs one training step and returns its time in seconds."""
    conv, layout, bf16 = configuration
    cast = mixed_precision if conv is cpu_conv3d else library_precision
    torch.manual_seed(0)
    net = Backbone(width=width).to(memory_format=layout)  # type: ignore[call-overload]
    adam = torch.optim.Adam(net.parameters(), lr=1e-3)
    x = torch.rand(batch, 1, *crop).contiguous(memory_format=layout)
    y = (torch.rand_like(x) > 0.9).float()

    def step() -> float:
        start = clock()
        with patch.object(blocks, "cpu_conv3d", conv), cast(x.device, "bf16" if bf16 else "fp32"):
            logits = net(x)
        loss = F.binary_cross_entropy_with_logits(logits.float(), y)
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()
        return clock() - start

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--widths", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--crops", nargs="+", default=CROPS)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    clock = time.process_time if args.threads == 1 else time.perf_counter
    print(f"{args.threads} thread(s), torch {torch.__version__}; ms per step (ratio to library fp32)")
    print(f"{'crop':>10} {'width':>5} {'batch':>5}" + "".join(f" {name:>16}" for name in CONFIGURATIONS))
    for width, crop, batch in itertools.product(args.widths, args.crops, args.batches):
        grid = tuple(map(int, crop.split("x")))
        steps = {name: make_step(grid, width, batch, c, clock) for name, c in CONFIGURATIONS.items()}
        rounds = [{name: step() for name, step in steps.items()} for _ in range(args.repeats + 1)][1:]
        times = {name: statistics.median(r[name] for r in rounds) for name in steps}
        cells = (f"{1e3 * t:.0f} ({t / times['library fp32']:.2f})" for t in times.values())
        print(f"{crop:>10} {width:>5} {batch:>5}" + "".join(f" {cell:>16}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
