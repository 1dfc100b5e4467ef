"""Cost: the paper's Table VI to the last digit, an independent counter, and no silent zeros."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dgbench.errors import DgbenchError
from dgbench.evaluation.cost import FUNCTIONAL, Cost, count_cost
from dgbench.nets import Backbone, DistanceHead, ProjectionHead, SliceHead

COARSE = (1, 1, 64, 224, 224)
FINE = (1, 1, 32, 128, 128)


class Net(nn.Module):
    """Backbone with any of the paper's heads, in the order of its three network classes."""

    def __init__(self, *, proj: bool = False, dist: bool = False, cls: bool = False, width: int = 32) -> None:
        super().__init__()
        self.backbone = Backbone(width=width)
        self.encoder_heads = nn.ModuleList()
        self.decoder_heads = nn.ModuleList([self.backbone.head])
        if proj:
            self.encoder_heads.append(ProjectionHead(3, width))
        if dist:
            self.decoder_heads.append(DistanceHead(3, width))
        if cls:
            self.encoder_heads.append(SliceHead(3, width))

    def forward(self, x: Tensor) -> list[Tensor]:
        features = self.backbone.features(x)
        return [h(features.encoder) for h in self.encoder_heads] + [h(features.decoder) for h in self.decoder_heads]


def plain() -> nn.Module:
    return Backbone()


def p() -> nn.Module:
    return Net(proj=True)


def dt() -> nn.Module:
    return Net(proj=True, dist=True)


def ccls_rc() -> nn.Module:
    return Net(proj=True, dist=True, cls=True)


@pytest.mark.parametrize(
    ("build", "params", "macs", "table"),
    [
        (plain, 18_957_825, (808.724726, 132.036690), (812.570214, 132.664525)),
        (p, 18_966_049, (808.776106, 132.045079), (812.621595, 132.672913)),
        (dt, 18_966_082, (808.878866, 132.061856), (812.724355, 132.689691)),
        (ccls_rc, 18_999_619, (808.880972, 132.062908), (812.747334, 132.694151)),
    ],
)
def test_networks_of_table_vi(
    build: Callable[[], nn.Module], params: int, macs: tuple[float, float], table: tuple[float, float]
) -> None:
    with torch.device("meta"):
        model = build()
    for shape, gmacs, g in zip((COARSE, FINE), macs, table, strict=True):
        assert count_cost(model, shape, convention="macs").gflops == pytest.approx(gmacs, abs=1e-6)
        cost = count_cost(model, shape, convention="table-vi")
        assert cost.gflops == pytest.approx(g, abs=1e-6)
        assert cost.params == params
        assert sum(cost.by_module.values()) == pytest.approx(cost.gflops, rel=1e-12)


@pytest.mark.parametrize(
    ("build", "copies", "exact", "printed", "params"),
    [
        (plain, 1, 945.2347, "945.23", 37_915_650),
        (dt, 1, 945.4140, "945.41", 37_932_164),
        (ccls_rc, 1, 945.4415, "945.44", 37_999_238),
        (plain, 2, 1890.4695, "1890.47", 75_831_300),
    ],
    ids=["plain", "RandConv", "Ours", "DART"],
)
def test_rows_of_table_vi(build: Callable[[], nn.Module], copies: int, exact: float, printed: str, params: int) -> None:
    with torch.device("meta"):
        model = build()
    coarse, fine = (count_cost(model, shape, convention="table-vi") for shape in (COARSE, FINE))
    total = copies * (coarse.gflops + fine.gflops)
    assert total == pytest.approx(exact, abs=6e-5)
    assert f"{total:.2f}" == printed
    assert copies * (coarse.params + fine.params) == params


@pytest.mark.parametrize("ndim", [2, 3])
def test_flops_equal_the_flop_counter_of_torch(ndim: int) -> None:
    model = Backbone(ndim=ndim, in_channels=2, out_channels=3, width=8).eval()
    x = torch.zeros(2, 2, *(16,) * ndim)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(x)
    flops = count_cost(model, x.shape, convention="flops")
    assert flops.gflops * 1e9 == pytest.approx(counter.get_total_flops(), rel=1e-12)
    assert flops.gflops == pytest.approx(2 * count_cost(model, x.shape, convention="macs").gflops, rel=1e-12)
    assert FUNCTIONAL not in flops.by_module


def by_hand(model: nn.Module, shape: tuple[int, ...]) -> tuple[float, float]:
    table, macs = (count_cost(model, shape, convention=c).gflops * 1e9 for c in ("table-vi", "macs"))
    return table, macs


@pytest.mark.parametrize(
    ("layer", "shape", "macs", "other"),
    [
        (nn.Conv2d(4, 6, 3, padding=1, groups=2, bias=True), (2, 4, 5, 7), 2 * 35 * 6 * 2 * 9, 0),
        (nn.ConvTranspose3d(4, 6, 2, stride=2), (1, 4, 3, 3, 3), 27 * 4 * 6 * 8, 0),
        (nn.Linear(5, 3), (2, 7, 5), 2 * 7 * 15, 0),
        (nn.GroupNorm(2, 4), (1, 4, 3), 0, 60),
        (nn.GroupNorm(2, 4, affine=False), (1, 4, 3), 0, 48),
        (nn.InstanceNorm2d(4), (1, 4, 3, 3), 0, 144),
        (nn.BatchNorm2d(4), (1, 4, 3, 3), 0, 72),
        (nn.AdaptiveAvgPool3d(1), (1, 4, 3, 3, 3), 0, 108),
        (nn.Sequential(nn.PReLU(), nn.Upsample(scale_factor=2), nn.MaxPool2d(2)), (1, 4, 4, 4), 0, 0),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_each_rule_in_closed_form(layer: nn.Module, shape: tuple[int, ...], macs: int, other: int) -> None:
    assert by_hand(layer, shape) == pytest.approx((macs + other, macs), rel=1e-12)


def test_products_outside_layers_are_counted() -> None:
    class Dynamic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.controller = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            kernel = self.controller(x.mean((2, 3)))[0].view(1, 4, 1, 1)
            return nn.functional.conv2d(x, kernel)

    cost = count_cost(Dynamic(), (1, 4, 5, 5), convention="macs")
    assert cost.by_module == pytest.approx({"controller": 16e-9, FUNCTIONAL: 100e-9})


def test_an_unknown_layer_with_parameters_is_an_error() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor) -> Tensor:
            return self.gain * x

    with pytest.raises(DgbenchError, match=r"no counting rule for layer 1 \(Scale\)"):
        count_cost(nn.Sequential(nn.Conv2d(1, 1, 1), Scale()), (1, 1, 4, 4), convention="macs")
    idle = nn.Sequential(nn.Conv2d(1, 1, 1), Scale())
    assert count_cost(idle, (1, 1, 4, 4), convention="macs", call=lambda m, x: m.get_submodule("0")(x)).params == 3


def test_a_layer_that_skips_its_product_is_an_error() -> None:
    class Idle(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return input

    with pytest.raises(DgbenchError, match="16 products more than ran"):
        count_cost(Idle(4, 4), (1, 4), convention="macs")


def test_unknown_convention_is_an_error() -> None:
    with pytest.raises(DgbenchError, match="did you mean 'macs'"):
        count_cost(nn.Identity(), (1, 1), convention="mac")  # type: ignore[arg-type]


def test_the_model_is_left_as_it_was() -> None:
    model = Net(proj=True, dist=True, cls=True, width=8).train()
    model.backbone.fusion.eval()
    modes = [m.training for m in model.modules()]
    before = {name: t.clone() for name, t in model.state_dict().items()}
    whole = count_cost(model, (1, 1, 16, 16, 16), convention="table-vi")
    segment: Cost = count_cost(
        model, (1, 1, 16, 16, 16), convention="table-vi", call=lambda m, x: m.get_submodule("backbone")(x)
    )
    assert segment.gflops < whole.gflops
    assert segment.params == whole.params
    assert [m.training for m in model.modules()] == modes
    assert all(not m._forward_hooks for m in model.modules())
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)
