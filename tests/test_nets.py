"""The shared backbone and its heads: the paper's layer table, exact upsampling, taps and clear errors."""

import time
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgbench.errors import DgbenchError
from dgbench.nets import Backbone, DistanceHead, ProjectionHead, SliceHead, cpu, upsample_linear, upsample_nearest
from dgbench.nets.blocks import ResBlock, WSConv2d, WSConv3d, standardise

STAGES = {
    "stem": 864,
    "layer0": 55_424,
    "down1": 55_360,
    "layer1": 442_880,
    "down2": 221_312,
    "layer2": 1_770_496,
    "down3": 884_992,
    "layer3": 7_079_936,
    "layer4": 7_079_936,
    "fusion": 885_248,
    "up3": 340_608,
    "up2": 85_312,
    "up1": 55_424,
    "head": 33,
}
MODES = {2: "bilinear", 3: "trilinear"}


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def small(ndim: int = 3, **options: object) -> Backbone:
    torch.manual_seed(0)
    return Backbone(ndim=ndim, width=8, **options)  # type: ignore[arg-type]


def test_layer_table_of_the_paper() -> None:
    with torch.device("meta"):
        net = Backbone()
    assert {name: parameters(stage) for name, stage in net.named_children()} == STAGES
    assert parameters(net) == sum(STAGES.values()) == 18_957_825
    assert sum(isinstance(m, WSConv3d) for m in net.modules()) == 31
    assert sum(isinstance(m, nn.GroupNorm) for m in net.modules()) == 30
    assert {m.num_groups for m in net.modules() if isinstance(m, nn.GroupNorm)} == {8}
    assert all(m.bias is None for m in net.modules() if isinstance(m, WSConv3d))
    assert [m.dilation for m in net.layer4.modules() if isinstance(m, WSConv3d)] == [(2, 2, 2)] * 4
    assert [m.p for m in net.modules() if isinstance(m, nn.Dropout3d)] == [0.1]


def test_heads_have_the_parameters_of_the_paper() -> None:
    assert [parameters(h) for h in (ProjectionHead(3, 32), DistanceHead(3, 32), SliceHead(3, 32))] == [
        8_224,
        33,
        33_537,
    ]


@pytest.mark.parametrize("conv", [WSConv2d, WSConv3d])
def test_convolution_uses_standardised_weights(conv: type[WSConv2d] | type[WSConv3d]) -> None:
    torch.manual_seed(0)
    layer = conv(3, 5, 3).double()
    flat = layer.weight.detach().flatten(1)
    expected = (flat - flat.mean(1, keepdim=True)) / (flat.std(1, correction=1, keepdim=True) ** 2 + 1e-12).sqrt()
    torch.testing.assert_close(standardise(layer.weight).detach().flatten(1), expected, rtol=1e-12, atol=1e-12)
    x = torch.randn(2, 3, *(5,) * (layer.weight.ndim - 2), dtype=torch.float64)
    plain = F.conv2d if conv is WSConv2d else F.conv3d
    torch.testing.assert_close(layer(x), plain(x, expected.view_as(layer.weight), padding=1), rtol=1e-12, atol=1e-12)
    scaled = conv(3, 5, 3).double()
    scaled.weight.data = 7 * layer.weight.data + 3
    torch.testing.assert_close(scaled(x), layer(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("cout", [8, 16])
def test_residual_block_in_plain_calls(cout: int) -> None:
    torch.manual_seed(0)
    block = ResBlock(3, 8, cout, dilation=2)
    for p in block.parameters():
        nn.init.normal_(p)
    x = torch.randn(2, 8, 6, 6, 6)
    n1, _, c1, n2, _, c2 = block.body

    def norm(x: Tensor, layer: nn.Module) -> Tensor:
        return F.relu(F.group_norm(x, 8, layer.weight, layer.bias, 1e-5))

    hidden = F.conv3d(norm(x, n1), standardise(c1.weight), padding=2, dilation=2)
    shortcut = x
    if cout != 8:
        n0, _, c0 = block.shortcut
        shortcut = F.conv3d(norm(x, n0), standardise(c0.weight))
    expected = F.conv3d(norm(hidden, n2), standardise(c2.weight), padding=2, dilation=2) + shortcut
    torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 4e-15)])
@pytest.mark.parametrize("shape", [(2, 3, 5, 4), (2, 3, 1, 4, 7)], ids=["2d", "3d"])
def test_linear_upsampling_equals_interpolate_with_gradient(
    shape: tuple[int, ...], dtype: torch.dtype, tolerance: float
) -> None:
    torch.manual_seed(0)
    x = torch.rand(shape, dtype=dtype, requires_grad=True)
    expected = F.interpolate(x, scale_factor=2, mode=MODES[len(shape) - 2], align_corners=False)
    out = upsample_linear(x)
    torch.testing.assert_close(out, expected, rtol=0, atol=tolerance)
    weight = torch.rand_like(out) / 8
    (gradient,) = torch.autograd.grad((out * weight).sum(), x)
    (reference,) = torch.autograd.grad((expected * weight).sum(), x)
    torch.testing.assert_close(gradient, reference, rtol=0, atol=tolerance)


@pytest.mark.parametrize("grid", [(1, 5, 4), (4, 6, 6), (7, 4, 6)])
@pytest.mark.parametrize(("kernel", "stride", "dilation"), [(3, 1, 1), (3, 2, 1), (3, 1, 2), (1, 1, 1)])
@pytest.mark.parametrize(("batch", "cin", "cout"), [(1, 1, 8), (1, 16, 16), (2, 8, 8), (2, 16, 16)])
def test_cpu_convolution_equals_the_library(
    grid: tuple[int, int, int], kernel: int, stride: int, dilation: int, batch: int, cin: int, cout: int
) -> None:
    torch.manual_seed(0)
    x = torch.randn(batch, cin, *grid, requires_grad=True)
    w = torch.randn(cout, cin, *(kernel,) * 3, requires_grad=True)
    expected = F.conv3d(x, w, None, stride, dilation * (kernel // 2), dilation)
    out = cpu.cpu_conv3d(x, w, stride=stride, dilation=dilation)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
    assert out.is_contiguous()
    weight = torch.randn_like(out)
    gradients = torch.autograd.grad((out * weight).sum(), (x, w))
    torch.testing.assert_close(gradients, torch.autograd.grad((expected * weight).sum(), (x, w)), rtol=1e-4, atol=1e-3)


def test_cpu_convolution_has_second_derivatives(monkeypatch: pytest.MonkeyPatch) -> None:
    """Meta-learning methods differentiate a gradient step; both detours, in double precision."""
    monkeypatch.setattr(cpu, "_leaves_onednn", lambda x: True)
    x = torch.randn(1, 2, 3, 3, 2, dtype=torch.float64, requires_grad=True)
    w = torch.randn(2, 2, 3, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x, w: cpu.cpu_conv3d(x, w, stride=1, dilation=1).square(), (x, w))


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("batch", [1, 3])
def test_cpu_convolution_in_bfloat16_has_true_gradients_at_every_depth(depth: int, batch: int) -> None:
    """oneDNN's own weight gradient of two planes is what the memory held before: seen here, as that is full of NaN."""
    for seed in range(5):
        torch.manual_seed(seed)
        x = torch.randn(batch, 32, depth, 6, 8).bfloat16()
        weight = (0.05 * torch.randn(32, 32, 3, 3, 3)).bfloat16()
        pull = torch.randn(batch, 32, depth, 6, 8).bfloat16()
        found = []
        for dtype in (torch.bfloat16, torch.float32):
            inputs = [tensor.to(dtype, copy=True).requires_grad_() for tensor in (x, weight)]
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
                out = cpu.cpu_conv3d(*inputs, stride=1, dilation=1)
            assert out.dtype == dtype
            dirt = [torch.full((1 << 16,), float("nan")) for _ in range(20)]
            del dirt
            found.append([out.detach(), *torch.autograd.grad(out, inputs, pull.to(dtype))])
        for lower, exact in zip(*found, strict=True):
            assert ((lower.float() - exact).norm() / exact.norm()).item() < 0.01


def test_one_sample_costs_no_more_than_two() -> None:
    """Without the detour of ``dgbench.nets.cpu`` one fp32 sample takes two to three times as long as two."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        net = small()
        times: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(3):
            for batch, seconds in times.items():
                start = time.process_time()
                net(torch.randn(batch, 1, 24, 48, 48)).mean().backward()
                seconds.append(time.process_time() - start)
    finally:
        torch.set_num_threads(threads)
    assert min(times[1]) <= min(times[2])


def test_nearest_upsampling_equals_interpolate() -> None:
    x = torch.rand(2, 3, 4, 5, 6)
    assert torch.equal(upsample_nearest(x), F.interpolate(x, scale_factor=2, mode="nearest"))


@pytest.mark.parametrize("upsample", [upsample_linear, upsample_nearest])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_upsampling_keeps_the_memory_format(upsample: type[upsample_linear], layout: torch.memory_format) -> None:
    x = torch.rand(2, 3, 4, 5, 6).contiguous(memory_format=layout)
    out = upsample(x)
    assert out.is_contiguous(memory_format=layout)
    assert torch.equal(out, upsample(x.contiguous()))


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("upsample", ["trilinear", "nearest"])
def test_shapes_and_taps(ndim: int, upsample: str) -> None:
    net = small(ndim, in_channels=2, out_channels=3, upsample=upsample).eval()
    grid = (16, 24, 8)[:ndim]
    x = torch.randn(2, 2, *grid)
    seen: dict[str, Tensor] = {}

    def tap(name: str, feature: Tensor) -> Tensor:
        seen[name] = feature
        return feature

    features = net.features(x, tap)
    assert tuple(seen) == net.TAPS == tuple(net.channels)
    strides = {
        "stem": 1,
        "layer0": 1,
        "layer1": 2,
        "layer2": 4,
        "layer3": 8,
        "layer4": 8,
        "fusion": 8,
        "up3": 4,
        "up2": 2,
        "up1": 1,
    }
    for name, feature in seen.items():
        assert feature.shape == (2, net.channels[name], *(side // strides[name] for side in grid))
    assert features.encoder is seen["layer4"]
    assert features.decoder is seen["up1"]
    logits = net(x)
    assert logits.shape == (2, 3, *grid)
    assert torch.equal(logits, net.head(features.decoder))


@pytest.mark.parametrize("name", Backbone.TAPS)
def test_a_tap_replaces_the_feature_everywhere(name: str) -> None:
    """With every later tap blind to its input the replaced tensor is all that the rest of the network can see."""
    net = small().eval()
    x, y = torch.randn(2, 1, 1, 16, 16, 16).unbind()

    def record(store: dict[str, Tensor]) -> Tensor:
        return net(x, lambda n, f: store.setdefault(n, f))

    here: dict[str, Tensor] = {}
    logits = record(here)
    before = net.TAPS[: net.TAPS.index(name) + 1]
    moved = net(y, lambda n, f: here[n] if n in before else f)
    torch.testing.assert_close(moved, logits, rtol=0, atol=0)
    assert not torch.equal(net(x, lambda n, f: f + 1 if n == name else f), logits)


def test_skips_are_added_after_upsampling() -> None:
    net = small().eval()
    x = torch.randn(1, 1, 16, 16, 16)
    seen: dict[str, Tensor] = {}
    decoder = net.features(x, lambda n, f: seen.setdefault(n, f)).decoder
    up = {}
    up["up3"] = net.up3(upsample_linear(net.fusion(seen["layer4"])) + seen["layer2"])
    up["up2"] = net.up2(upsample_linear(up["up3"]) + seen["layer1"])
    assert torch.equal(decoder, net.up1(upsample_linear(up["up2"]) + seen["layer0"]))


def test_every_parameter_learns_and_dropout_only_in_training() -> None:
    net = small()
    x = torch.randn(2, 1, 16, 16, 16)
    net(x).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())
    assert not torch.equal(net(x), net(x))
    net.eval()
    assert torch.equal(net(x), net(x))


@pytest.mark.parametrize("ndim", [2, 3])
def test_projection_and_distance_heads(ndim: int) -> None:
    encoder, decoder = torch.randn(2, 64, *(3,) * ndim), torch.randn(2, 8, *(24,) * ndim)
    embedding = ProjectionHead(ndim, 8)(encoder)
    assert embedding.shape == (2, 8, *(3,) * ndim)
    assert embedding.min() == 0
    distance = DistanceHead(ndim, 8)(decoder)
    assert distance.shape == (2, 1, *(24,) * ndim)
    assert distance.min() < 0 < distance.max()


def test_slice_head_gives_one_logit_per_slice_and_the_same_in_a_block() -> None:
    torch.manual_seed(0)
    head = SliceHead(3, 8)
    encoder = torch.randn(2, 64, 3, 4, 5)
    logits = head(encoder)
    assert logits.shape == (2, 24)
    blocks = logits.view(2, 3, 8)
    torch.testing.assert_close(blocks, blocks[..., :1].expand_as(blocks))
    pooled = F.relu(F.group_norm(encoder, 8)).mean((3, 4)).transpose(1, 2)
    first, _, second = head.classify
    expected = second(F.relu(first(pooled))).squeeze(2)
    torch.testing.assert_close(blocks[..., 0], expected)
    assert expected.std() > 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ndim": 4}, "ndim is 4 — choose 2 or 3"),
        ({"width": 12}, "width is 12 — choose a positive multiple of 8"),
        ({"width": 0}, "width is 0"),
        ({"out_channels": 0}, "both must be ≥ 1"),
        ({"upsample": "neerest"}, "did you mean 'nearest'"),
    ],
)
def test_wrong_settings_are_one_line(options: dict[str, object], message: str) -> None:
    with pytest.raises(DgbenchError, match=message):
        Backbone(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 1, 16, 20, 16), "input grid 16×20×16 — every side must be a multiple of 8"),
        ((1, 1, 0, 16, 16), "multiple of 8"),
        ((1, 2, 16, 16, 16), r"input is \(1, 2, 16, 16, 16\) — give \(batch, 1, D, H, W\)"),
        ((1, 16, 16, 16), "give"),
    ],
)
def test_wrong_inputs_are_one_line(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(DgbenchError, match=message):
        small()(torch.zeros(shape))


def test_slice_head_refuses_two_dimensions() -> None:
    with pytest.raises(DgbenchError, match="2D task has no slices"):
        SliceHead(2, 8)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_training_step_is_deterministic_on_cuda() -> None:
    def gradients() -> list[Tensor]:
        torch.manual_seed(0)
        net = Backbone(width=8).cuda()
        slices = SliceHead(3, 8).cuda()
        features = net.features(torch.randn(2, 1, 16, 32, 32, device="cuda"))
        (net.head(features.decoder).square().mean() + slices(features.encoder).square().mean()).backward()
        return [p.grad for p in (*net.parameters(), *slices.parameters()) if p.grad is not None]

    torch.use_deterministic_algorithms(True)
    try:
        first, second = gradients(), gradients()
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_backbone_can_be_copied() -> None:
    """Averages and branches are copies."""
    net = Backbone(width=8)
    other = deepcopy(net)
    assert other.channels == net.channels
    assert all(torch.equal(a, b) and a is not b for a, b in zip(net.parameters(), other.parameters(), strict=True))
