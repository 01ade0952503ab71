"""Grad-CAM: which positions of a feature map speak for a class.

Selvaraju et al. 2017, arXiv:1610.02391, equations 1 and 2. With the feature map A [C, h, w] of a
layer and the logit y of a class,

    weight_k = mean over positions of dy / dA_k
    map      = ReLU(sum over k of weight_k A_k)          [h, w]

The layer is the last stage of the network with several positions, through which the logit depends
on the image.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from kd import losses
from kd.data.views import Views
from kd.models import Classifier
from kd.system.console import progress
from kd.system.errors import Problem

TRIED = 8  # images on which the layer is chosen


class NoMap(Problem):
    """A network has no feature map with several positions."""


@dataclass(frozen=True)
class Looked:
    """The maps of one network.

    layer   the module whose output they are of
    maps    float32 [N, h, w], each with the maximum 1; 0 everywhere where nothing speaks for the
            class
    logits  float32 [N, K]
    """

    layer: str
    maps: np.ndarray
    logits: np.ndarray


@dataclass(frozen=True)
class Together:
    """The maps of one network, or of several teachers: the weighted mean of their maps.

    shares  the weight of each, with sum 1
    """

    members: Sequence[Looked]
    shares: Sequence[float]

    def maps(self, side: int, rows: np.ndarray) -> np.ndarray:
        """Return the maps of some images, enlarged to the side of the image: [n, side, side]."""
        found = np.zeros((len(rows), side, side), np.float32)
        for one, share in zip(self.members, self.shares):
            found += np.float32(share) * enlarged(one.maps[rows], side)
        return found

    @property
    def logits(self) -> np.ndarray:
        """The logits of the mean probabilities at T = 1: [N, K]."""
        stacked = torch.from_numpy(np.stack([one.logits for one in self.members]))
        return losses.mixture(stacked, torch.tensor(self.shares), 1.0).numpy()

    @property
    def empty(self) -> np.ndarray:
        """Whether the map is 0 everywhere: bool [N]."""
        return np.all([~one.maps.any((1, 2)) for one in self.members], axis=0)


def enlarged(maps: np.ndarray, side: int) -> np.ndarray:
    """Return maps [n, h, w] as [n, side, side], with bilinear interpolation between positions."""
    stacked = torch.from_numpy(maps)[:, None]
    return F.interpolate(stacked, (side, side), mode="bilinear")[:, 0].numpy()


def look(network: Classifier, views: Views, layer: str | None = None) -> Looked:
    """Return the maps of a network for the label's class of every image of a split, in order.

    `layer` is by default what `find_layer` finds. Raises NoMap if there is none. The network is
    left in evaluation mode, without gradients of its weights.
    """
    network.module.eval().requires_grad_(False)
    maps = []
    logits = []
    with progress(len(views), "explaining", "images", short=True) as shown:
        for batch in views.epoch(0):
            if layer is None:
                layer = find_layer(network, batch.images[:TRIED], batch.labels[:TRIED])
            features, gradient, own = through(network, layer, batch.images, batch.labels)
            maps.append(normalized(grad_cam(features, gradient)).float().cpu())
            logits.append(own.float().cpu())
            shown.update(len(batch.slots))
    return Looked(layer, torch.cat(maps).numpy(), torch.cat(logits).numpy())


def find_layer(network: Classifier, images: torch.Tensor, classes: torch.Tensor) -> str:
    """Return the last stage with several positions from which a gradient comes.

    The last block of a transformer that classifies by a token of its own has no gradient at the
    positions of the image: its block before the last is taken. images [B, 3, S, S], classes [B].
    Raises NoMap if there is no such stage.
    """
    seen = []
    for layer in reversed(_stages(network)):
        found = through(network, layer, images, classes)
        if found is None:
            seen.append(f"{layer} has no map")
            continue
        features, gradient, _ = found
        height, width = features.shape[2:]
        if height * width > 1 and gradient.any():
            return layer
        seen.append(f"{layer} has {height} x {width}{'' if gradient.any() else ', no gradient'}")
    raise NoMap(
        f"Network '{network.name}' has no feature map with several positions for images of"
        f" {images.shape[-1]} pixels ({'; '.join(seen)}). Train it with a larger --image-size, or"
        " leave it out of --look."
    )


def _stages(network: Classifier) -> tuple[str, ...]:
    """Return the stages that timm names. Raises NoMap if it names none."""
    if not getattr(network.module, "feature_info", ()):
        raise NoMap(
            f"Network '{network.name}' has no named stages in timm, so its feature maps are not"
            " known. Leave it out of --look."
        )
    return network.stages()


def through(
    network: Classifier, layer: str, images: torch.Tensor, classes: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
    """Return (output of a layer, gradient of the logits of `classes` with respect to it, logits).

    The first two are [B, C, h, w], the logits [B, K]. None if the output has no positions. The
    graph begins at the layer, so that the part before it costs a forward pass only.

    images [B, 3, S, S] in 0..1, classes int64 [B]
    """
    kept = []

    def cut(module, inputs, output):
        if not isinstance(output, torch.Tensor) or not output.is_floating_point():
            return None
        kept.append(output.detach().requires_grad_())
        return kept[-1].clone()  # the next module may overwrite it

    hook = network.module.get_submodule(layer).register_forward_hook(cut)
    try:
        with torch.enable_grad():
            logits = network(images)
    finally:
        hook.remove()
    grid = _grid(network, kept[-1]) if kept else None
    if grid is None:
        return None
    gradient = torch.zeros_like(kept[-1])
    if logits.requires_grad:
        score = logits.gather(1, classes[:, None]).sum()  # images do not depend on each other
        [gradient] = torch.autograd.grad(score, kept[-1])
    return grid.detach(), _grid(network, gradient), logits.detach()


def _grid(network: Classifier, features: torch.Tensor) -> torch.Tensor | None:
    """Return features as [B, C, h, w]; None if they have no positions.

    Tokens [B, N, C] are those of the patches, row by row, behind `num_prefix_tokens` others, as
    timm has them.
    """
    if features.ndim == 4:
        return network.channels_first(features)
    if features.ndim != 3:
        return None
    tokens = features[:, getattr(network.module, "num_prefix_tokens", 0) :]
    count = tokens.shape[1]
    sides = getattr(getattr(network.module, "patch_embed", None), "grid_size", None)
    if sides is None or math.prod(sides) != count:
        sides = (math.isqrt(count),) * 2
    if count == 0 or math.prod(sides) != count:
        return None
    return tokens.transpose(1, 2).unflatten(2, tuple(sides))


def grad_cam(features: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """Return the maps of feature maps and gradients, both [B, C, h, w]: [B, h, w], at least 0."""
    weights = gradient.mean((2, 3), keepdim=True)
    return F.relu((weights * features).sum(1))


def normalized(maps: torch.Tensor) -> torch.Tensor:
    """Return maps [B, h, w] divided by their maxima. A map of zeros stays one."""
    highest = maps.amax((1, 2), keepdim=True)
    return torch.where(highest > 0, maps / highest, torch.zeros_like(maps))
