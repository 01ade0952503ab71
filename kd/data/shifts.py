"""Shifted images, as another machine or another hospital might send them.

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
_GRAIN = 3  # of `random_stream`: a purpose of its own


def contrast(images: torch.Tensor, amount: float, slots: torch.Tensor) -> torch.Tensor:
    """Multiply each pixel's distance to the image's mean grey by `amount`; below 1 it is flatter.

    images [B, C, S, S].
    """
    return tv.adjust_contrast(images, amount)


def brightness(images: torch.Tensor, amount: float, slots: torch.Tensor) -> torch.Tensor:
    """Add `amount` of the full scale to every pixel, black ones too; `shifted` cuts off above 1.

    images [B, C, S, S].
    """
    return images + amount


def noise(images: torch.Tensor, amount: float, slots: torch.Tensor) -> torch.Tensor:
    """Add Gaussian noise to each pixel, with a standard deviation of `amount` of the full scale.

    images [B, C, S, S]. The noise is a function of slot and amount, whatever the batch: each slot
    has a grain of its own, which grows with the strength. All channels have the same grain, so that
    grey stays grey.
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

    So images of any size blur alike. images [B, C, S, S].
    """
    sigma = amount * images.shape[-1]
    taps = 2 * math.ceil(3 * sigma) + 1
    # Across, then down: the result of both at once, with 2 * taps instead of taps^2 multiplications
    # a pixel.
    across = tv.gaussian_blur(images, [taps, 1], [sigma, sigma])
    return tv.gaussian_blur(across, [1, taps], [sigma, sigma])


def resolution(images: torch.Tensor, amount: float, slots: torch.Tensor) -> torch.Tensor:
    """Shrink to `amount` of the side and enlarge again, both bilinear. images [B, C, S, S]."""
    side = images.shape[-1]
    shrunk = max(1, round(amount * side))
    small = tv.resize(images, [shrunk, shrunk], antialias=True)
    return tv.resize(small, [side, side], antialias=True)


def rotation(images: torch.Tensor, amount: float, slots: torch.Tensor) -> torch.Tensor:
    """Turn by `amount` degrees counter-clockwise about the middle; bilinear, black corners.

    images [B, C, S, S].
    """
    return tv.rotate(images, amount, InterpolationMode.BILINEAR)


class Shift(NamedTuple):
    """A row of the table of shifts.

    apply    (images [B, C, S, S] in 0..1, amount, slots int64 [B]) -> images, which may pass 0..1
    amounts  of the strengths 1 to STRENGTHS
    unit     of the amounts, in words
    """

    apply: Callable[[torch.Tensor, float, torch.Tensor], torch.Tensor]
    amounts: tuple[float, ...]
    unit: str


SHIFTS = {
    "contrast": Shift(contrast, (0.8, 0.65, 0.5, 0.35, 0.2), "factor"),
    "brightness": Shift(brightness, (0.05, 0.1, 0.2, 0.3, 0.4), "added, of full scale"),
    "noise": Shift(noise, (0.02, 0.05, 0.1, 0.15, 0.2), "sd, of full scale"),
    "blur": Shift(blur, (0.01, 0.015, 0.02, 0.03, 0.04), "sigma, of the side"),
    "resolution": Shift(resolution, (0.5, 0.35, 0.25, 0.15, 0.1), "of the side"),
    # Training views turn by up to 10 degrees: to a network trained with --augment the first two
    # amounts are nothing new.
    "rotation": Shift(rotation, (5.0, 10.0, 20.0, 30.0, 45.0), "degrees"),
}


def shifted(images: torch.Tensor, slots: torch.Tensor, name: str, strength: int) -> torch.Tensor:
    """Images of given slots in one shift: a pure function of image, slot and strength.

    Strength 0 leaves them as they are. images float32 [B, C, S, S] in 0..1 (grey ones may have one
    channel in memory, expanded), slots int64 [B] -> the same shape, in 0..1.
    """
    if strength == 0:
        return images
    shift = SHIFTS[name]
    own = images
    if images.stride(1) == 0:  # grey: shift one channel, and expand it again
        own = images[:, :1]
    changed = shift.apply(own, shift.amounts[strength - 1], slots)
    return changed.clamp(0, 1).expand(images.shape)
