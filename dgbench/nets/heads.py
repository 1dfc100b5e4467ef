"""Auxiliary heads of the dual-task framework, sized for a backbone of any width."""

from torch import Tensor, nn

from dgbench.errors import DgbenchError
from dgbench.nets.blocks import norm_relu, point_conv


class ProjectionHead(nn.Module):
    """Embeddings for the contrastive loss (paper Eq. 9): 1×1 convolution and ReLU on the encoder feature."""

    def __init__(self, ndim: int, width: int) -> None:
        super().__init__()
        self.project = nn.Sequential(point_conv(ndim, 8 * width, width), nn.ReLU(inplace=True))

    def forward(self, encoder: Tensor) -> Tensor:
        """(B, 8·width, *spatial) to embeddings ≥ 0 of (B, width, *spatial), not normalised."""
        embedding: Tensor = self.project(encoder)
        return embedding


class DistanceHead(nn.Module):
    """Signed distance regression (paper Eq. 4): 1×1 convolution on the decoder feature."""

    def __init__(self, ndim: int, width: int) -> None:
        super().__init__()
        self.regress = point_conv(ndim, width, 1)

    def forward(self, decoder: Tensor) -> Tensor:
        """(B, width, *spatial) to (B, 1, *spatial), unbounded: tanh maps it to the normalised distance."""
        distance: Tensor = self.regress(decoder)
        return distance


class InPlaneMean(nn.Module):
    """Average over the two in-plane axes, the adaptive pooling of the slice head without its CUDA nondeterminism."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, D, H, W) to (B, C, D)."""
        return x.mean((3, 4))


class SliceHead(nn.Module):
    """Tumor presence per axial slice (paper Eq. 3): GN-ReLU, replication along z, in-plane mean, FC-ReLU-FC.

    The slices of one block of ``STRIDE`` get the same logit, since replication precedes pooling. 3D only: a
    :class:`DgbenchError` for any other ``ndim``.
    """

    STRIDE = 8

    def __init__(self, ndim: int, width: int) -> None:
        super().__init__()
        if ndim != 3:
            raise DgbenchError(f"slice head: a {ndim}D task has no slices — switch slice classification off")
        self.norm_relu = norm_relu(8 * width)
        self.pool = InPlaneMean()
        self.classify = nn.Sequential(nn.Linear(8 * width, 4 * width), nn.ReLU(inplace=True), nn.Linear(4 * width, 1))

    def forward(self, encoder: Tensor) -> Tensor:
        """(B, 8·width, D/8, H/8, W/8) to one logit per slice of the input grid, (B, D)."""
        x = self.norm_relu(encoder)
        x = x.unsqueeze(3).expand(-1, -1, -1, self.STRIDE, -1, -1).flatten(2, 3)
        logits: Tensor = self.classify(self.pool(x).transpose(1, 2))
        return logits.squeeze(2)
