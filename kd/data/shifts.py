"""Shifted images, as from another machine or another hospital.

There are six shifts with five strengths each.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from kd.system.devices import to_device
from kd.system.seeds import random_stream

STRENGTHS = 5
_GRAIN = 3  # key of `random_stream` for the noise


def contrast(images: torch.Tensor, amount: float, slots: torch.Tensor) -> torch.Tensor:
    """Multiply the difference of each pixel from the image's mean grey by `amount`.

    An amount below 1 lowers the contrast. images [B, C, S, S].
    """
    return tv.adjust_contrast(images, amount)


def brightness(images: torch.Tensor, amount: float, slots: torch.Tensor) -> torch.Tensor:
    """Add `amount` of the full scale to every pixel, including black ones.

    `shifted` clips values above 1. images [B, C, S, S].
    """
    return images + amount


def noise(images: torch.Tensor, amount: float, slots: torch.Tensor) -> torch.Tensor:
    """Add Gaussian noise to each pixel, with a standard deviation of `amount` of the full scale.

    images [B, C, S, S]. The noise is a function of slot and amount, and does not depend on the
    batch: each slot has a grain of its own, which is scaled by the amount. All channels have the
    same grain, so that grey stays grey.
    """
    side = images.shape[-1]
    grain = []
    for slot in slots:
        random = random_stream(int(slot), _GRAIN)
        own = random.standard_normal((1, side, side), dtype="float32")
        grain.append(torch.from_numpy(own))
    return images + amount * to_device(torch.stack(grain), images.device)


def blur(images: torch.Tensor, amount: float, slots: torch.Tensor) -> torch.Tensor:
    """Blur with a Gaussian whose sigma is `amount` times the side.

    Images of any size are therefore blurred equally. images [B, C, S, S].
    """
    sigma = amount * images.shape[-1]
    taps = 2 * math.ceil(3 * sigma) + 1
    # Blurring first across and then down gives the same result as both at once, with 2 * taps
    # instead of taps^2 multiplications per pixel.
    across = tv.gaussian_blur(images, [taps, 1], [sigma, sigma])
    return tv.gaussian_blur(across, [1, taps], [sigma, sigma])


def resolution(images: torch.Tensor, amount: float, slots: torch.Tensor) -> torch.Tensor:
    """Shrink to `amount` of the side and enlarge again, both bilinearly. images [B, C, S, S]."""
    side = images.shape[-1]
    shrunk = max(1, round(amount * side))
    small = tv.resize(images, [shrunk, shrunk], antialias=True)
    return tv.resize(small, [side, side], antialias=True)


def rotation(images: torch.Tensor, amount: float, slots: torch.Tensor) -> torch.Tensor:
    """Rotate by `amount` degrees counter-clockwise about the centre.

    Interpolation is bilinear, and the corners are black. images [B, C, S, S].
    """
    return tv.rotate(images, amount, InterpolationMode.BILINEAR)


class Shift(NamedTuple):
    """A row of the table of shifts.

    apply    (images [B, C, S, S] in 0..1, amount, slots int64 [B]) -> images, which may exceed 0..1
    amounts  one amount for each of the strengths 1 to STRENGTHS
    unit     unit of the amounts, in words
    """

    apply: Callable[[torch.Tensor, float, torch.Tensor], torch.Tensor]
    amounts: tuple[float, ...]
    unit: str


SHIFTS = {
    "contrast": Shift(contrast, (0.8, 0.65, 0.5, 0.35, 0.2), "factor"),
    "brightness": Shift(brightness, (0.05, 0.1, 0.2, 0.3, 0.4), "added fraction of full scale"),
    "noise": Shift(noise, (0.02, 0.05, 0.1, 0.15, 0.2), "sd, fraction of full scale"),
    "blur": Shift(blur, (0.01, 0.015, 0.02, 0.03, 0.04), "sigma, fraction of side"),
    "resolution": Shift(resolution, (0.5, 0.35, 0.25, 0.15, 0.1), "fraction of side"),
    # Training views are rotated by up to 10 degrees, so a network trained with --augment light or
    # strong has seen the first two amounts.
    "rotation": Shift(rotation, (5.0, 10.0, 20.0, 30.0, 45.0), "degrees"),
}


def shifted(images: torch.Tensor, slots: torch.Tensor, name: str, strength: int) -> torch.Tensor:
    """Return the images of given slots with a shift of a given name and strength.

    The result is a pure function of image, slot, name and strength. Strength 0 does not change the
    images. images float32 [B, C, S, S] in 0..1 (grey images may have one channel in memory,
    expanded), slots int64 [B] -> the same shape, in 0..1.
    """
    if strength == 0:
        return images
    shift = SHIFTS[name]
    own = images
    if images.stride(1) == 0:  # grey: shift one channel, and expand it again
        own = images[:, :1]
    changed = shift.apply(own, shift.amounts[strength - 1], slots)
    return changed.clamp(0, 1).expand(images.shape)
