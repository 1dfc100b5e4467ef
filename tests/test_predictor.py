"""One ROI through one network: flips, sliding windows, and the order in which a method is told about a case."""

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dgbench.inference.predictor import Predictor
from dgbench.nets import Backbone

SIZE = (8, 16, 24)


class Slope(nn.Module):
    """Answers with the image weighted by the position of each voxel: no flip leaves it unchanged."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def begin_case(self, roi: Tensor) -> None:
        self.calls.append(f"begin {tuple(roi.shape)}")

    def end_case(self) -> None:
        self.calls.append("end")

    def predict(self, image: Tensor) -> Tensor:
        assert not self.training
        assert not torch.is_grad_enabled()
        self.calls.append(f"predict {len(image)}")
        for axis, power in ((2, 1.0), (3, 0.5), (4, 2.0)):
            ramp = torch.linspace(0.1, 1, image.shape[axis], dtype=image.dtype) ** power
            image = image * ramp.reshape([-1 if other == axis else 1 for other in range(5)])
        return image


class Pointwise(Slope):
    """Answers voxel by voxel."""

    def predict(self, image: Tensor) -> Tensor:
        self.calls.append(f"predict {tuple(image.shape[2:])}")
        return torch.sigmoid(3 * image - 1)


def predictor(method: Any, *, tta: bool = False, whole: int = 10**6, precision: str = "fp32") -> Predictor:
    return Predictor(method, (8, 8, 8), whole, 0.5, tta, torch.device("cpu"), precision)


@pytest.fixture
def roi() -> np.ndarray:
    return np.random.default_rng(1).random((1, *SIZE), dtype=np.float32)


def test_flip_tta_is_the_mean_over_the_eight_mirror_images(roi: np.ndarray) -> None:
    network = Slope().eval()
    singles = []
    with torch.no_grad():
        for choice in product((False, True), repeat=3):
            axes = tuple(axis + 1 for axis, on in enumerate(choice) if on)
            answer = network.predict(torch.from_numpy(np.flip(roi, axes).copy())[None])[0].numpy()
            singles.append(np.flip(answer, axes))
    answer = predictor(network, tta=True)(roi)
    np.testing.assert_allclose(answer.probability, np.mean(singles, axis=0), rtol=1e-6)
    assert np.abs(answer.probability - singles[0]).max() > 0.1
    assert not answer.windowed


def test_without_tta_the_image_is_seen_once_as_it_is(roi: np.ndarray) -> None:
    network = Slope().train()
    answer = predictor(network)(roi)
    assert network.calls == [f"begin {(1, 1, *SIZE)}", "predict 1", "end"]
    assert answer.probability.shape == (1, *SIZE)
    assert answer.probability.dtype == np.float32


@pytest.mark.parametrize(("at_once", "batches"), [(8, ["8"]), (3, ["3", "3", "2"]), (1, ["1"] * 8)])
def test_flips_share_a_batch_as_far_as_memory_goes(roi: np.ndarray, at_once: int, batches: list[str]) -> None:
    network = Slope()
    answer = predictor(network, tta=True, whole=at_once * roi.size)(roi)
    assert network.calls[1:-1] == [f"predict {count}" for count in batches]
    np.testing.assert_allclose(answer.probability, predictor(Slope(), tta=True)(roi).probability, rtol=1e-5)


@pytest.mark.parametrize("tta", [False, True])
@pytest.mark.parametrize("size", [(8, 16, 24), (7, 9, 20), (5, 30, 11)])
def test_windows_answer_as_the_whole_for_a_pointwise_network(size: tuple[int, ...], tta: bool) -> None:
    image = np.random.default_rng(2).random((1, *size), dtype=np.float32)
    voxels = int(np.prod(size))
    whole_network, network = Pointwise(), Pointwise()
    whole = predictor(whole_network, whole=voxels, tta=tta)(image)
    windows = predictor(network, whole=voxels - 1, tta=tta)(image)
    assert (whole.windowed, windows.windowed) == (False, True)
    np.testing.assert_allclose(windows.probability, whole.probability, atol=1e-6)
    assert set(network.calls[1:-1]) == {"predict (8, 8, 8)"}
    assert network.calls[0] == f"begin {(1, 1, *size)}", "global codes come from the whole ROI, once"
    assert network.calls.count("end") == 1


def test_a_case_ends_even_if_its_prediction_fails(roi: np.ndarray) -> None:
    class Broken(Slope):
        def predict(self, image: Tensor) -> Tensor:
            raise RuntimeError("no answer")

    network = Broken()
    with pytest.raises(RuntimeError, match="no answer"):
        predictor(network)(roi)
    assert network.calls[-1] == "end"


def test_bf16_runs_under_autocast(roi: np.ndarray) -> None:
    class Linear(Slope):
        def predict(self, image: Tensor) -> Tensor:
            answer = nn.functional.conv3d(image, torch.ones(1, 1, 1, 1, 1))
            self.calls.append(str(answer.dtype))
            return answer

    for precision, dtype in (("fp32", "torch.float32"), ("bf16", "torch.bfloat16")):
        network = Linear()
        answer = predictor(network, precision=precision)(roi)
        assert network.calls[1] == dtype
        assert answer.probability.dtype == np.float32


class Doubled(nn.Module):
    """Two small backbones, asked one after the other."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.nets = nn.ModuleList([Backbone(width=8), Backbone(width=8)])

    def begin_case(self, roi: Tensor) -> None: ...

    def end_case(self) -> None: ...

    def predict(self, image: Tensor) -> Tensor:
        return torch.stack([net(image) for net in self.nets]).mean(0)


def test_pooled_features_are_the_mean_of_the_decoders_last_feature_over_each_mask(roi: np.ndarray) -> None:
    method = Doubled().eval()
    masks = np.zeros((3, *SIZE), dtype=np.float32)
    masks[0, :4], masks[1, 2:, 5] = 1, 1
    pooled = predictor(method).pooled(roi, masks)
    with torch.no_grad():
        decoders = [net.features(torch.from_numpy(roi)[None]).decoder[0].numpy() for net in method.nets]  # type: ignore[operator]
    expected = np.concatenate(decoders)
    for mask, row in zip(masks[:2], pooled[:2], strict=True):
        np.testing.assert_allclose(row, expected[:, mask > 0].mean(1), rtol=1e-4, atol=1e-5)
    assert np.isnan(pooled[2]).all(), "nothing to average over"
    assert all(net.listener is None for net in method.nets), "the network is left as it was"


def test_pooled_features_of_a_large_roi_are_those_of_its_windows(roi: np.ndarray) -> None:
    method = Doubled().eval()
    masks = np.zeros((1, *SIZE), dtype=np.float32)
    masks[0, :, :8, :8] = 1
    windowed = predictor(method, whole=100).pooled(roi, masks)
    first, second = (
        predictor(method).pooled(roi[..., :8, cut], masks[..., :8, cut]) for cut in (slice(8), slice(4, 12))
    )
    below = predictor(method).pooled(roi[..., 4:12, :8], masks[..., 4:12, :8])
    corner = predictor(method).pooled(roi[..., 4:12, 4:12], masks[..., 4:12, 4:12])
    expected = (4 * first + 2 * second + 2 * below + corner) / 9
    np.testing.assert_allclose(windowed, expected, rtol=1e-4, atol=1e-5)
