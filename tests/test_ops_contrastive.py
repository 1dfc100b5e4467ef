"""InfoNCE against closed forms, its definition and an independent library; the sampler against geometry and the sheet."""

import math

import pytest
import torch
from torch import Tensor

from dgbench.ops.contrastive import Denominator, features_at, info_nce, sample_positions


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def embeddings(n: int, channels: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(n, channels, generator=generator(seed), dtype=torch.float64)


LABELS = torch.tensor([1, 0, 1, 0, 0, 1, 0])


def definition(features: Tensor, labels: Tensor, temperature: float, denominator: Denominator) -> float:
    """The formulas, pair by pair."""
    n = len(labels)
    cosine = [[float(a @ b / (a.norm() * b.norm())) for b in features] for a in features]
    terms = []
    for i in range(n):
        against = sum(math.exp(cosine[i][k] / temperature) for k in range(n) if labels[k] != labels[i])
        for j in range(n):
            if j == i or labels[j] != labels[i] or (denominator == "paper" and j < i):
                continue
            score = math.exp(cosine[i][j] / temperature)
            terms.append(-math.log(score / (against + (score if denominator == "release" else 0))))
    return sum(terms) / (len(terms) * (2 if denominator == "paper" else 1))


@pytest.mark.parametrize("temperature", [0.05, 0.5])
def test_closed_form(temperature: float) -> None:
    """Two tumor cells on one axis, two normal cells on another: each pair has score 1/t against two zeros."""
    features = torch.tensor([[1.0, 0], [3, 0], [0, 2], [0, 1]], dtype=torch.float64)
    labels = torch.tensor([1, 1, 0, 0])
    release = info_nce(features, labels, temperature=temperature, denominator="release")
    assert release.item() == pytest.approx(math.log1p(2 * math.exp(-1 / temperature)), rel=1e-9)
    paper = info_nce(features, labels, temperature=temperature, denominator="paper")
    assert paper.item() == pytest.approx((math.log(2) - 1 / temperature) / 2, rel=1e-9)


def test_closed_form_of_indistinct_features() -> None:
    """All embeddings equal: every pair competes with the cells of the other class on equal terms."""
    features, labels = torch.ones(5, 4), torch.tensor([0, 0, 1, 1, 1])
    release = info_nce(features, labels, temperature=0.05, denominator="release")
    assert release.item() == pytest.approx((2 * math.log(4) + 6 * math.log(3)) / 8, rel=1e-5)
    paper = info_nce(features, labels, temperature=0.05, denominator="paper")
    assert paper.item() == pytest.approx((math.log(3) + 3 * math.log(2)) / 8, rel=1e-5)


@pytest.mark.parametrize("denominator", ["release", "paper"])
@pytest.mark.parametrize("temperature", [0.05, 0.07, 1.0])
def test_equals_the_definition(denominator: Denominator, temperature: float) -> None:
    for seed, labels in [(0, LABELS), (1, torch.tensor([0, 1, 2, 2, 1, 0, 2])), (2, torch.tensor([0, 1, 1]))]:
        features = embeddings(len(labels), seed=seed)
        loss = info_nce(features, labels, temperature=temperature, denominator=denominator)
        assert loss.item() == pytest.approx(definition(features, labels, temperature, denominator), rel=1e-9)


@pytest.mark.parametrize("temperature", [0.05, 0.5])
def test_release_form_equals_pytorch_metric_learning(temperature: float) -> None:
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    ours, theirs = embeddings(7).requires_grad_(), embeddings(7).requires_grad_()
    loss = info_nce(ours, LABELS, temperature=temperature, denominator="release")
    expected = losses.NTXentLoss(temperature=temperature)(theirs, LABELS)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_cosine_ignores_length_and_release_ignores_order() -> None:
    features = embeddings(7)
    loss = info_nce(features, LABELS, temperature=0.05, denominator="release")
    lengths = torch.linspace(0.1, 9, 7, dtype=torch.float64)[:, None]
    torch.testing.assert_close(info_nce(lengths * features, LABELS, temperature=0.05, denominator="release"), loss)
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    torch.testing.assert_close(info_nce(features[order], LABELS[order], temperature=0.05, denominator="release"), loss)


@pytest.mark.parametrize("denominator", ["release", "paper"])
@pytest.mark.parametrize("labels", [[1, 1, 1], [0, 1, 2], [1], []])
def test_nothing_to_contrast_gives_zero(denominator: Denominator, labels: list[int]) -> None:
    features = torch.randn(len(labels), 4, generator=generator(), requires_grad=True)
    loss = info_nce(features, torch.tensor(labels, dtype=torch.int64), temperature=0.05, denominator=denominator)
    loss.backward()
    assert loss.item() == 0
    assert features.grad is not None
    assert torch.equal(features.grad, torch.zeros_like(features))


@pytest.mark.parametrize("denominator", ["release", "paper"])
def test_dead_embeddings_stay_finite(denominator: Denominator) -> None:
    """A ReLU projection can return exact zeros; their gradient must stay of ordinary size."""
    features = embeddings(7)
    features[2:4] = 0
    features.requires_grad_()
    loss = info_nce(features, LABELS, temperature=0.05, denominator=denominator)
    loss.backward()
    assert torch.isfinite(loss)
    assert features.grad is not None
    assert features.grad.abs().max() < 100


def test_half_precision_is_computed_in_float32() -> None:
    features = embeddings(7).half()
    loss = info_nce(features, LABELS, temperature=0.05, denominator="release")
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, info_nce(features.float(), LABELS, temperature=0.05, denominator="release"))


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"'simclr'.*release, paper"):
        info_nce(embeddings(7), LABELS, temperature=0.05, denominator="simclr")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="temperature 0"):
        info_nce(embeddings(7), LABELS, temperature=0, denominator="paper")
    with pytest.raises(ValueError, match="do not fit"):
        info_nce(embeddings(6), LABELS, temperature=0.05, denominator="paper")


def ellipsoid(shape: tuple[int, ...], radius: float, shift: float = 0.0) -> Tensor:
    """A lesion near the center, flattened along z as pancreatic tumors are on such grids."""
    depth = (max(3.0, 0.6 * radius), radius, radius)[3 - len(shape) :]
    axes = torch.meshgrid(*(torch.arange(n) - n / 2 + 0.5 + shift for n in shape), indexing="ij")
    return (sum((a / r) ** 2 for a, r in zip(axes, depth, strict=True)) <= 1).float()


def corner_share(shape: tuple[int, int, int], release_bug: bool) -> float:
    corners = total = 0
    for seed in range(3):
        for radius in (10, 18, 30):
            mask = ellipsoid(shape, radius, shift=seed - 1)
            negative = sample_positions(mask, generator(seed), release_bug=release_bug).negative
            corners += int((negative[:, 1:] == 0).all(1).sum())
            total += len(negative)
    return corners / total


@pytest.mark.parametrize(
    ("shape", "low", "high"),
    [((32, 128, 128), 0.96, 1.0), ((48, 128, 128), 0.67, 1.0), ((64, 160, 160), 0.58, 1.0), ((120, 128, 128), 0, 0)],
)
def test_release_bug_draws_corners_on_flat_crops(shape: tuple[int, int, int], low: float, high: float) -> None:
    """The sheet's shares of (0, 0) cells among the released code's negatives, none of which is perilesional."""
    assert low <= corner_share(shape, release_bug=True) <= high
    assert corner_share(shape, release_bug=False) == 0


@pytest.mark.parametrize("shape", [(32, 128, 128), (64, 96, 160), (24, 64, 64), (64, 64)])
@pytest.mark.parametrize("radius", [9, 15, 24])
def test_positives_lie_in_the_tumor_and_negatives_around_it(shape: tuple[int, ...], radius: float) -> None:
    mask = ellipsoid(shape, radius)
    inside = mask.nonzero().float()
    for seed in range(10):
        positive, negative = sample_positions(mask, generator(seed))
        assert len(positive) > 0
        assert len(negative) > 0
        for cells in (positive, negative):
            assert cells.dtype == torch.int64
            assert cells.shape[1] == len(shape)
        assert (mask[tuple((8 * positive).T)] == 1).all()
        assert (mask[tuple((8 * negative).T)] == 0).all()
        gap = (8 * negative.float()[:, None] - inside).abs().amax(2).amin(1)
        assert gap.max() <= 10  # half of the largest dilating box


def test_at_most_one_cell_of_each_kind_per_slice() -> None:
    mask = torch.zeros(64, 96, 96)
    mask[8:56, 24:56, 40:48] = 1
    for seed in range(5):
        for cells in sample_positions(mask, generator(seed)):
            assert len(set(cells[:, 0].tolist())) == len(cells)


def test_enough_cells_come_first_then_the_threshold_relaxes() -> None:
    """Slice 1 holds six tumor cells, slice 4 two: only the first qualifies, unless it is alone."""
    mask = torch.zeros(48, 64, 64)
    mask[8, 8:32, 8:24] = 1
    mask[32, 40:56, 40:48] = 1
    for seed in range(5):
        assert sample_positions(mask, generator(seed)).positive[:, 0].tolist() == [1]
        assert sample_positions(mask, generator(seed), positive_min_cells=2).positive[:, 0].tolist() == [1, 4]
    mask[8] = 0
    assert sample_positions(mask, generator()).positive[:, 0].tolist() == [4]


@pytest.mark.parametrize("cells", [(1, 1, 1), (1, 2, 2), (2, 2, 2), (1, 4, 4), (3, 3, 3)])
def test_small_crops_always_give_a_pair(cells: tuple[int, int, int]) -> None:
    """On 3×8×8 feature cells a lesion has few of them; thinning erases blocks of 2×2×2 and 4×4 altogether."""
    d, h, w = (8 * n for n in cells)
    mask = torch.zeros(24, 64, 64)
    mask[:d, 16 : 16 + h, 24 : 24 + w] = 1
    for seed in range(10):
        positive, negative = sample_positions(mask, generator(seed))
        assert len(positive) > 0
        assert len(negative) > 0


def test_few_ring_cells_relax_the_negative_threshold() -> None:
    """Only one column of cells is left beside the lesion: three rows, fewer than the five asked for."""
    mask = torch.ones(8, 24, 24)
    mask[:, :, 16:] = 0
    _, negative = sample_positions(mask, generator())
    assert negative[:, (0, 2)].tolist() == [[0, 2]]


def test_empty_and_full_masks() -> None:
    positive, negative = sample_positions(torch.zeros(24, 64, 64), generator())
    assert positive.shape == negative.shape == (0, 3)
    positive, negative = sample_positions(torch.ones(24, 64, 64), generator())
    assert len(positive) > 0
    assert negative.shape == (0, 3)


def test_lesion_between_the_grid_points_has_no_positive() -> None:
    mask = torch.zeros(24, 64, 64)
    mask[9:15, 17:23, 25:31] = 1
    assert sample_positions(mask, generator()).positive.shape == (0, 3)


def test_stride_and_axes() -> None:
    """A bar along each axis: its cells come back at the right axis, whatever the stride."""
    for stride in (4, 8):
        mask = torch.zeros(32, 48, 64)
        mask[16, 8, 24:] = 1
        positive, _ = sample_positions(mask, generator(), stride=stride)
        assert positive[:, :2].tolist() == [[16 // stride, 8 // stride]]
        assert positive[0, 2] >= 24 // stride


def test_draws_depend_on_the_generator_alone() -> None:
    mask = ellipsoid((48, 128, 128), 24)
    before = torch.get_rng_state()
    first = sample_positions(mask, generator(1))
    assert torch.equal(before, torch.get_rng_state())
    again = sample_positions(mask, generator(1))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    others = [sample_positions(mask, generator(seed)).negative.tolist() for seed in range(2, 6)]
    assert any(other != first.negative.tolist() for other in others)


@pytest.mark.parametrize("shape", [(3, 5, 6), (5, 6)])
def test_features_at_reads_cells_with_gradient(shape: tuple[int, ...]) -> None:
    features = torch.randn(4, *shape, generator=generator(), requires_grad=True)
    positions = torch.tensor([[0] * len(shape), [n - 1 for n in shape], [n // 2 for n in shape]])
    read = features_at(features, positions)
    expected = torch.stack([features[(slice(None), *position)] for position in positions.tolist()])
    assert torch.equal(read, expected)
    read.sum().backward()
    assert features.grad is not None
    assert features.grad.sum() == 12
    assert features_at(features, positions[:0]).shape == (0, 4)


def test_mask_of_wrong_rank() -> None:
    with pytest.raises(ValueError, match=r"\(D, H, W\) or \(H, W\)"):
        sample_positions(torch.zeros(1, 1, 8, 8, 8), generator())
