"""The augmentation of training images, whose parts are pure functions of (seed, epoch, slot).

All geometry of a view is one affine transformation, and all changes of its intensity are one curve
of grey levels. Every part draws its random numbers whether it is switched on or not, so that the
others stay the same.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from kd.config.training_settings import AUGMENTATIONS
from kd.system.devices import to_device
from kd.system.seeds import random_stream

TURN = 10.0  # degrees
# Light views.
SCALE = 0.1
SHIFT = 0.05  # of the side
# Strong views. The crop is that of torchvision's RandomResizedCrop and of Beyer et al. 2022.
AREA = (0.25, 1.0)  # of the image
ASPECT = 4 / 3  # width over height is between 1 / ASPECT and ASPECT
TRIES = 10  # draws of a crop until one fits into the image; otherwise it is the whole image
# The contrast and the brightness of a strong view are those of another window, as a workstation
# sets its width and centre. The gamma is that of another exposure or detector curve.
CONTRAST = 4 / 3  # factor around mid-grey, between 1 / CONTRAST and CONTRAST
BRIGHTNESS = 0.1  # of full scale
GAMMA = 4 / 3  # exponent, between 1 / GAMMA and GAMMA
# Increase the number when a change makes the same (seed, epoch, slot) give other pixels.
_RECIPES = {"light": "views 1", "strong": "strong views 1"}
_MIXUP = "mixup 1"
# Keys of `random_stream`, one for each purpose; `kd.data.views` and `kd.system.seeds` have others.
_VIEW = 1
_SHARE = 4
_PARTNER = 5
_OTHER_VIEW = 6


class Recipe(NamedTuple):
    """The geometry and the intensity of views, with one row for each.

    matrices  float32 [n, 2, 3]: affine matrices from output to input coordinates (-1..1); None if
              the geometry does not change
    tones     float64 [n, 3]: gamma, contrast and brightness; None if the intensity does not change
    cropped   whether the matrices are those of crops
    """

    matrices: np.ndarray | None
    tones: np.ndarray | None = None
    cropped: bool = False

    def of(self, slots: np.ndarray) -> "Recipe":
        """Return the rows of some slots."""
        matrices = None if self.matrices is None else self.matrices[slots]
        tones = None if self.tones is None else self.tones[slots]
        return Recipe(matrices, tones, self.cropped)


class Mixing(NamedTuple):
    """The partner of each slot in an epoch, and the slot's own share in the mixed image.

    shares    float32 [slots]
    partners  int64 [slots]
    """

    shares: np.ndarray
    partners: np.ndarray

    def with_partners(self, slots: np.ndarray) -> np.ndarray:
        """Return slots [B] and their partners: [2 * B]."""
        return np.concatenate([slots, self.partners[slots]])

    def mix(self, values: torch.Tensor, slots: np.ndarray) -> torch.Tensor:
        """Return lam * x_i + (1 - lam) * x_j of values [2 * B, ...] of `with_partners(slots)`.

        Source: Zhang et al. 2018, arXiv:1710.09412, eq. 1 (mixup).
        """
        own, partner = values.chunk(2)
        shape = (-1, *[1] * (values.ndim - 1))
        share = to_device(torch.from_numpy(self.shares[slots]), values.device).view(shape)
        return share * own + (1 - share) * partner


@dataclass(frozen=True)
class Augmentation:
    """How training images are augmented.

    strength  a key of AUGMENTATIONS
    without   parts of it that are switched off
    mixup     P of the distribution Beta(P, P) of the shares in a mixed image; 0: no mixing
    apart     whether the views have random numbers of their own, so that a slot has a second view
    """

    strength: str = "none"
    without: tuple[str, ...] = ()
    mixup: float = 0.0
    apart: bool = False

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts that are switched on."""
        return tuple(part for part in AUGMENTATIONS[self.strength] if part not in self.without)

    @property
    def changes(self) -> bool:
        """Whether an image differs from epoch to epoch."""
        return bool(self.parts) or self.mixup > 0

    def recipe(self, seed: int, epoch: int, slots: int) -> Recipe | None:
        """Return the recipe of each slot in an epoch, or None if images stay as they are.

        A row depends only on (seed, epoch, slot), not on the number of slots.
        """
        if not self.parts:
            return None
        random = random_stream(seed, _OTHER_VIEW if self.apart else _VIEW, epoch)
        return _MAKERS[self.strength](self.parts, random, slots)

    def mixing(self, seed: int, epoch: int, order: np.ndarray, slots: int) -> Mixing:
        """Return the partner and the share of each slot in an epoch, for `mixup` above 0.

        order  the slots that the epoch shows, from which partners are drawn
        """
        shares = random_stream(seed, _SHARE, epoch).beta(self.mixup, self.mixup, slots)
        drawn = random_stream(seed, _PARTNER, epoch).random(slots)
        return Mixing(shares.astype(np.float32), order[(drawn * len(order)).astype(np.int64)])

    def identity(self, seed: int, order: str) -> str:
        """Return a text that differs for every augmentation that gives other pixels.

        order  what the partners in an epoch depend on beside the seed
        """
        words = ["as they are"]
        if self.parts:
            ranges = {"light": (TURN, SCALE, SHIFT)}
            ranges["strong"] = (TURN, AREA, ASPECT, TRIES, CONTRAST, BRIGHTNESS, GAMMA)
            words = [_RECIPES[self.strength], *map(str, ranges[self.strength]), str(seed)]
            off = [part for part in AUGMENTATIONS[self.strength] if part in self.without]
            words += ["without", *off] if off else []
            words += ["apart"] if self.apart else []
        if self.mixup:
            words += [_MIXUP, f"{self.mixup!r} {seed} {order}"]
        return " ".join(words)


def _light(parts: tuple[str, ...], random: np.random.Generator, slots: int) -> Recipe:
    """Return the recipe of light views.

    Images are mirrored with probability 1/2, rotated by up to 10 degrees, scaled by up to 10 %, and
    shifted by up to 5 % of the side.
    """
    numbers = random.random((slots, 5))
    centred = 2 * numbers - 1
    mirror = _mirror(parts, numbers[:, 0])
    angle = np.deg2rad(TURN) * centred[:, 1] * ("rotation" in parts)
    scale = 1 / (1 + SCALE * centred[:, 2] * ("scale" in parts))
    cos = np.cos(angle) * scale
    sin = np.sin(angle) * scale
    shift = 2 * SHIFT * centred[:, 3:] * ("shift" in parts)
    across = np.stack([cos * mirror, -sin, shift[:, 0]], 1)
    down = np.stack([sin * mirror, cos, shift[:, 1]], 1)
    return Recipe(np.stack([across, down], 1).astype(np.float32))


def _strong(parts: tuple[str, ...], random: np.random.Generator, slots: int) -> Recipe:
    """Return the recipe of strong views.

    Images are rotated by up to 10 degrees about their centre, cropped, and mirrored with
    probability 1/2. Grey levels get another gamma, contrast and brightness.
    """
    numbers = random.random((slots, 7 + 2 * TRIES))
    centred = 2 * numbers - 1
    mirror = _mirror(parts, numbers[:, 0])
    angle = np.deg2rad(TURN) * centred[:, 1] * ("rotation" in parts)
    width, height, x, y = crops(numbers[:, 5:])
    if "crop" not in parts:
        width, height, x, y = np.ones_like(x), np.ones_like(x), np.zeros_like(x), np.zeros_like(x)
    cos = np.cos(angle)
    sin = np.sin(angle)
    across = np.stack([cos * width * mirror, -sin * height, cos * x - sin * y], 1)
    down = np.stack([sin * width * mirror, cos * height, sin * x + cos * y], 1)
    matrices = np.stack([across, down], 1).astype(np.float32)
    gamma = GAMMA ** centred[:, 2]
    contrast = CONTRAST ** centred[:, 3]
    tones = np.stack([gamma, contrast, BRIGHTNESS * centred[:, 4]], 1)
    return Recipe(
        matrices=None if parts == ("intensity",) else matrices,
        tones=tones if "intensity" in parts else None,
        cropped="crop" in parts,
    )


_MAKERS = {"light": _light, "strong": _strong}


def _mirror(parts: tuple[str, ...], numbers: np.ndarray) -> np.ndarray:
    """Return -1 for the images to mirror, and 1 for the others."""
    return np.where((numbers < 0.5) | ("mirror" not in parts), 1.0, -1.0)


def crops(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return (width, height, x, y) of crops, each [n], from numbers in 0..1 [n, 2 + 2 * TRIES].

    The sizes are fractions of the side. The centres are in coordinates of -1..1, in which no crop
    reaches beyond the image. As in torchvision, the first draw of an area and an aspect that fits
    into the image is taken.
    """
    areas = AREA[0] + (AREA[1] - AREA[0]) * numbers[:, 2 : 2 + TRIES]
    aspects = ASPECT ** (2 * numbers[:, 2 + TRIES :] - 1)
    widths = np.sqrt(areas * aspects)
    heights = np.sqrt(areas / aspects)
    fits = (widths <= 1) & (heights <= 1)
    first = np.arange(len(numbers)), fits.argmax(1)
    width = np.where(fits.any(1), widths[first], 1.0)
    height = np.where(fits.any(1), heights[first], 1.0)
    x = (1 - width) * (2 * numbers[:, 0] - 1)
    y = (1 - height) * (2 * numbers[:, 1] - 1)
    return width, height, x, y


def tone_curves(tones: np.ndarray) -> np.ndarray:
    """Return the new value of each of the 256 grey levels: float32 [n, 256] in 0..1.

    It is contrast * (level^gamma - 0.5) + 0.5 + brightness, clipped to 0..1. A curve is computed in
    float64 on the CPU: powers of the pixels of a batch would depend on its size in the last bit.

    tones  float64 [n, 3]: gamma, contrast and brightness
    """
    gamma, contrast, brightness = tones[:, :, None].transpose(1, 0, 2)
    levels = np.arange(256) / 255
    curves = contrast * (levels**gamma - 0.5) + 0.5 + brightness
    return curves.clip(0, 1).astype(np.float32)


def augmented(stored: torch.Tensor, recipe: Recipe | None) -> torch.Tensor:
    """Return views, float32 [B, C, S, S] in 0..1, of stored images, uint8 [B, C, S, S].

    recipe  has one row for each image; None: the images stay as they are
    """
    if recipe is None or recipe.tones is None:
        images = stored.to(torch.float32).div_(255)
    else:
        curves = torch.from_numpy(tone_curves(recipe.tones))
        if stored.is_cuda:  # from other memory, a copy of more than 64 kB waits for the GPU
            curves = curves.pin_memory()
        images = _toned(stored, to_device(curves, stored.device))
    if recipe is None or recipe.matrices is None:
        return images
    matrices = recipe.matrices
    if recipe.cropped:
        matrices = _onto_centres(matrices, stored.shape[-1])
    return warp(images, to_device(torch.from_numpy(matrices), stored.device))


def _onto_centres(matrices: np.ndarray, side: int) -> np.ndarray:
    """Return the matrices of crops [n, 2, 3], moved inwards by less than half a pixel.

    A magnified crop at the border of an image of `side` pixels would have points between the border
    and the centres of the outermost pixels, which the black around the image would darken.
    """
    moved = matrices.copy()
    moved[:, :, 2] *= 1 - 1 / side
    return moved


def _toned(stored: torch.Tensor, curves: torch.Tensor) -> torch.Tensor:
    """Return float32 [B, C, S, S]: each grey level replaced by its value in curves [B, 256].

    All channels of an image have the same curve.
    """
    starts = 256 * torch.arange(len(stored), dtype=torch.int32, device=stored.device)
    places = stored.to(torch.int32).add_(starts.view(-1, 1, 1, 1))
    return curves.view(-1).index_select(0, places.view(-1)).view(stored.shape)


def warp(images: torch.Tensor, recipe: torch.Tensor) -> torch.Tensor:
    """Transform images [B, C, S, S] by affine matrices [B, 2, 3].

    Interpolation is bilinear, and pixels outside the image are black.
    """
    side = images.shape[-1]
    centres = (2 * torch.arange(side, dtype=torch.float32, device=images.device) + 1) / side - 1
    # This computes the grid of F.affine_grid as a sum of rows and columns, with x and y as planes.
    # It takes a quarter of the time and gives the same bits for a batch of any size.
    across = recipe[:, :, 0, None, None] * centres.view(1, 1, 1, side)
    down = recipe[:, :, 1, None, None] * centres.view(1, 1, side, 1) + recipe[:, :, 2, None, None]
    grid = (across + down).permute(0, 2, 3, 1)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
