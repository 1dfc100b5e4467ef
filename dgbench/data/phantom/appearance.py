"""From tissues to a CT image: HU per tissue, parenchymal texture, reconstruction kernel, noise and calibration."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter1d

from dgbench.data.phantom.recipe import PhantomRecipe, draw_axis, stream
from dgbench.data.phantom.shapes import Floats

AIR = -1000.0
_FIXED_HU = {
    "fat": -105.0,
    "muscle": 55.0,
    "cortex": 420.0,
    "marrow": 170.0,
    "disc": 85.0,
    "fluid": 14.0,
    "bile": 8.0,
    "lung": -840.0,
    "gas": -960.0,
    "stent": 1500.0,
}
_GRAIN = {  # standard deviation in HU of the texture that belongs to the tissue itself
    "fat": 6.0,
    "muscle": 6.0,
    "marrow": 25.0,
    "lung": 20.0,
    "liver": 4.0,
    "spleen": 4.0,
    "kidney": 10.0,
    "pancreas": 9.0,
    "content": 10.0,
    "PDA": 7.0,
    "IPMN": 5.0,
    "PNET": 9.0,
}


@dataclass(frozen=True)
class Style:
    """How one case looks: drawn from the appearance axes.

    Attributes:
        hu: HU per tissue before calibration.
        texture: standard deviation in HU of the tissue's own texture.
        blur: standard deviation in mm of the in-plane point spread.
        edge_gain: gain of the unsharp mask that stands for an edge-enhancing kernel, 0 for none.
        noise_sd: standard deviation of the noise in HU.
        grain: correlation length (Gaussian standard deviation) of the noise in mm.
        offset, scale: calibration, HU' = scale·HU + offset.
    """

    hu: Mapping[str, float]
    texture: Mapping[str, float]
    blur: float
    edge_gain: float
    noise_sd: float
    grain: float
    offset: float
    scale: float


def draw_style(recipe: PhantomRecipe, center: str, index: int) -> Style:
    """The style of one case."""
    kernel, noise, contrast, calibration = (
        draw_axis(recipe, center, index, name) for name in ("kernel", "noise", "contrast", "calibration")
    )
    gland = contrast["pancreas"]
    hu = _FIXED_HU | {
        key: contrast[key] for key in ("pancreas", "liver", "spleen", "kidney", "artery", "vein", "wall", "content")
    }
    hu |= {"PDA": gland + contrast["pda"], "IPMN": contrast["ipmn"], "PNET": gland + contrast["pnet"]}
    detail = recipe.spec().detail
    return Style(
        hu=hu,
        texture=_GRAIN,
        blur=kernel["blur"] * detail,
        edge_gain=kernel["edge_gain"],
        noise_sd=noise["sd"],
        grain=noise["grain"] * detail,
        offset=calibration["offset"],
        scale=calibration["scale"],
    )


def reconstruct(volume: Floats, style: Style, pixel: float) -> Floats:
    """Apply the kernel to slices (D,H,W) of true HU; ``pixel`` is the in-plane spacing in mm."""
    image = _blurred(volume, style.blur / pixel)
    if style.edge_gain > 0:
        image = image + np.float32(style.edge_gain) * (image - _blurred(image, (style.blur + pixel) / pixel))
    return image


def noise_slices(
    recipe: PhantomRecipe, center: str, index: int, style: Style, first: int, shape: tuple[int, int, int], pixel: float
) -> Floats:
    """Noise in HU of ``shape`` (D,H,W) slices from number ``first`` on.

    Every slice has a stream of its own, so that a slab does not depend on how a volume is cut. The in-plane correlation is Gaussian,
    neighbouring slices share a quarter of their amplitude, and the standard deviation is ``style.noise_sd``.
    """
    white = np.empty((shape[0] + 1, *shape[1:]), dtype=np.float32)
    for k in range(len(white)):
        stream(recipe, center, index, f"noise/{first + k}").standard_normal(dtype=np.float32, out=white[k])
    sigma = style.grain / pixel
    grains = _blurred(white, sigma)
    tie = np.float32(0.25)
    mixed: Floats = grains[:-1] + tie * grains[1:]
    gain = style.noise_sd / (_energy(sigma) * float(np.sqrt(1 + tie**2)))
    return mixed * np.float32(gain)


def calibrate(image: Floats, style: Style) -> Floats:
    """The scanner's own HU scale."""
    return image * np.float32(style.scale) + np.float32(style.offset)


def _blurred(image: Floats, sigma: float) -> Floats:
    """In-plane Gaussian of ``sigma`` pixels."""
    if sigma < 0.05:
        return image
    rows = gaussian_filter1d(image, sigma, axis=1, mode="nearest", truncate=3.0)
    return np.asarray(gaussian_filter1d(rows, sigma, axis=2, mode="nearest", truncate=3.0), dtype=np.float32)


def _energy(sigma: float) -> float:
    """Standard deviation of unit white noise after ``_blurred``."""
    if sigma < 0.05:
        return 1.0
    radius = int(3.0 * sigma + 0.5)
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    return float(((weights / weights.sum()) ** 2).sum())
