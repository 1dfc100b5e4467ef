"""The mixed precision of a run, and bfloat16 where the processor has no instructions for it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dgbench import processor
from dgbench.nets import Backbone
from dgbench.ops import precision
from dgbench.ops.precision import PRODUCTS, RoundedProducts, full_precision, mixed_precision

CPU = torch.device("cpu")
ULP = 2.0**-8
"""Half the distance of neighbouring bfloat16 numbers, relative."""


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def lower(x: Tensor) -> Tensor:
    return x.to(torch.bfloat16).double()


@pytest.fixture
def without_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "rounds_products", lambda: True)


CALLS: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "conv1d": (F.conv1d, (draw(2, 3, 9), draw(4, 3, 3))),
    "conv2d": (F.conv2d, (draw(2, 3, 9, 8), draw(4, 3, 3, 3), draw(4))),
    "conv3d": (F.conv3d, (draw(2, 3, 6, 8, 7), draw(4, 3, 3, 3, 3), draw(4), 2, 1)),
    "conv_transpose3d": (F.conv_transpose3d, (draw(2, 3, 4, 4, 4), draw(3, 4, 2, 2, 2), None, 2)),
    "linear": (F.linear, (draw(2, 5), draw(4, 5), draw(4))),
    "einsum": (torch.einsum, ("bi,ij->bj", draw(2, 5), draw(5, 4))),
    "matmul": (torch.matmul, (draw(2, 3, 5), draw(5, 4))),
    "@": (lambda a, b: a @ b, (draw(3, 5), draw(5, 4))),
    "method": (lambda a, b: a.bmm(b), (draw(2, 3, 5), draw(2, 5, 4))),
    "baddbmm": (torch.baddbmm, (draw(2, 3, 4), draw(2, 3, 5), draw(2, 5, 4))),
    "attention": (F.scaled_dot_product_attention, (draw(1, 2, 3, 4), draw(1, 2, 3, 4), draw(1, 2, 3, 4))),
}


@pytest.mark.usefixtures("without_instructions")
@pytest.mark.parametrize("name", CALLS)
def test_a_product_rounds_its_operands_sums_in_float32_and_is_rounded(name: str) -> None:
    call, arguments = CALLS[name]
    with mixed_precision(CPU, "bf16"):
        out = call(*arguments)
    exact = call(*(lower(a) if isinstance(a, Tensor) else a for a in arguments))
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.double(), exact, rtol=1.01 * ULP, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        library = call(*arguments)
    assert library.dtype == out.dtype
    torch.testing.assert_close(out, library, rtol=4 * ULP, atol=4 * ULP)


@pytest.mark.usefixtures("without_instructions")
def test_gradients_are_rounded_where_the_library_rounds_them() -> None:
    """The gradient of a weight is that of the rounded one, in bfloat16; a second derivative passes the same way."""
    x, weight, upstream = draw(2, 3, 6, 8, 7), draw(4, 3, 3, 3, 3), draw(2, 4, 4, 6, 5)

    def gradients(context: Any) -> list[Tensor]:
        inputs = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
        with context:
            out = F.conv3d(*inputs)
        first = torch.autograd.grad(out, inputs, upstream.to(torch.bfloat16), create_graph=True)
        second = torch.autograd.grad(first[1].square().sum(), inputs[0])
        return [gradient.detach() for gradient in (*first, *second)]

    ours = gradients(mixed_precision(CPU, "bf16"))
    library = gradients(torch.autocast("cpu", torch.bfloat16))
    for mine, reference in zip(ours, library, strict=True):
        torch.testing.assert_close(mine, reference, rtol=4 * ULP, atol=4 * ULP * float(reference.abs().max()))
    for gradient in ours[:2]:
        assert torch.equal(gradient, gradient.to(torch.bfloat16).float())
    exact = torch.nn.grad.conv3d_weight(lower(x), list(weight.shape), lower(upstream))
    torch.testing.assert_close(ours[1].double(), exact, rtol=1.01 * ULP, atol=1e-5)


@pytest.mark.usefixtures("without_instructions")
def test_the_backbone_computes_what_the_library_does() -> None:
    torch.manual_seed(0)
    net = Backbone(width=8)
    x, target = draw(2, 1, 16, 32, 32), (draw(2, 1, 16, 32, 32) > 1).float()

    def step(context: Any) -> tuple[Tensor, Tensor]:
        net.zero_grad()
        with context:
            logits = net(x)
        F.binary_cross_entropy_with_logits(logits.float(), target).backward()
        return logits.detach().float(), torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])

    logits, gradient = step(mixed_precision(CPU, "bf16"))
    reference, expected = step(torch.autocast("cpu", torch.bfloat16))
    full, plain = step(torch.autocast("cpu", enabled=False))
    assert (logits - full).norm() > 1e-4 * full.norm(), "nothing is rounded"
    assert (logits - reference).norm() < (reference - full).norm(), "as near as bfloat16 can be"
    assert (gradient - expected).norm() < 1.5 * (expected - plain).norm()


@pytest.mark.usefixtures("without_instructions")
def test_what_autocast_leaves_alone_is_left_alone() -> None:
    x, weight = draw(2, 3, 6, 8, 7), draw(4, 3, 3, 3, 3)
    plain = F.conv3d(x, weight)
    with mixed_precision(CPU, "fp32"):
        assert torch.equal(F.conv3d(x, weight), plain)
    with mixed_precision(CPU, "bf16"):
        with full_precision(x):
            assert torch.equal(F.conv3d(x, weight), plain)
        assert F.conv3d(x.double(), weight.double()).dtype == torch.float64
        assert F.conv3d(x.to("meta"), weight.to("meta")).device.type == "meta"
        assert torch.equal(x + x, 2 * x)
    assert torch.equal(F.conv3d(x, weight), plain)


KEPT: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "transposed": (torch.einsum, ("ij->ji", draw(3, 5))),
    "a sum": (torch.einsum, ("ij->i", draw(3, 5))),
    "an outer product": (torch.einsum, ("i,j->ij", draw(3), draw(5))),
    "an elementwise product": (torch.einsum, ("bi,bi->bi", draw(3, 5), draw(3, 5))),
    "implied output, nothing summed": (torch.einsum, ("ij,kl", draw(2, 3), draw(4, 5))),
    "bilinear": (F.bilinear, (draw(2, 3), draw(2, 4), draw(5, 3, 4))),
    "matrix and vector": (torch.mv, (draw(3, 5), draw(5))),
}


@pytest.mark.usefixtures("without_instructions")
@pytest.mark.parametrize("name", KEPT)
def test_what_autocast_does_not_lower_stays_in_float32(name: str) -> None:
    call, arguments = KEPT[name]
    with torch.autocast("cpu", torch.bfloat16):
        library = call(*arguments)
    with mixed_precision(CPU, "bf16"):
        out = call(*arguments)
    assert out.dtype == library.dtype == torch.float32
    assert torch.equal(out, library)


@pytest.mark.usefixtures("without_instructions")
def test_a_given_tensor_is_written_into() -> None:
    a, b, out = draw(3, 5), draw(5, 4), torch.zeros(3, 4)
    with mixed_precision(CPU, "bf16"):
        assert torch.mm(a, b, out=out) is out
    assert torch.equal(out, a @ b)


@pytest.mark.parametrize("lacking", [True, False])
def test_it_can_be_entered_again_and_inside_itself(lacking: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "rounds_products", lambda: lacking)
    context = mixed_precision(CPU, "bf16")
    a = draw(3, 3)
    for _ in range(2):
        with context:
            with mixed_precision(CPU, "bf16"):
                assert (a @ a).dtype == torch.bfloat16
            assert (a @ a).dtype == torch.bfloat16
        assert (a @ a).dtype == torch.float32
    assert context(lambda: (a @ a).dtype)() == torch.bfloat16  # type: ignore[operator]


def test_instructions_are_used_where_there_are_any(monkeypatch: pytest.MonkeyPatch) -> None:
    entered: list[bool] = []
    monkeypatch.setattr(RoundedProducts, "__enter__", lambda self: entered.append(True))
    monkeypatch.setattr(RoundedProducts, "__exit__", lambda *_: None)
    for lacking in (False, True):
        monkeypatch.setattr(precision, "rounds_products", lambda lacking=lacking: lacking)
        with mixed_precision(CPU, "bf16"), mixed_precision(CPU, "fp32"):
            pass
        assert entered == [True] * lacking
    assert torch.conv3d in PRODUCTS, "what nn.Conv3d calls"


@pytest.mark.parametrize(
    ("cpuinfo", "found"),
    [
        ("model name\t: A\nflags\t\t: fpu avx512_bf16 amx_bf16", True),
        ("model name\t: B\nflags\t\t: fpu avx2", False),
        ("Features\t: fp asimd bf16", True),
        ("processor\t: 0", None),
    ],
)
def test_bf16_instructions_are_read_from_the_system(
    cpuinfo: str, found: bool | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(cpuinfo + "\n")
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "cpuinfo")
    assert processor.has_bf16() is found
