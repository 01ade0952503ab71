"""Shifted pictures: as another machine or another hospital might send them.

Six shifts, five strengths of each.
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
    """Each pixel's distance to its picture's mean grey times `amount`: below 1 flatter. images [B,
    C, S, S].
    """
    return tv.adjust_contrast(images, amount)


def brightness(images: torch.Tensor, amount: float, slots: torch.Tensor) -> torch.Tensor:
    """`amount` of the full scale added to every pixel, black ones too; what passes 1 is cut off.
    images [B, C, S, S].
    """
    return images + amount


def noise(images: torch.Tensor, amount: float, slots: torch.Tensor) -> torch.Tensor:
    """Gaussian noise with a standard deviation of `amount` of the full scale, in each pixel alone.
    images [B, C, S, S].

    A function of slot and amount, whatever the batch: each slot has its grain, which grows with the
    strength. All channels have the same, so that grey stays grey.
    """
    side = images.shape[-1]
    grain = torch.stack(
        [
            torch.from_numpy(
                random_stream(int(slot), _GRAIN).standard_normal((1, side, side), dtype="float32")
            )
            for slot in slots
        ]
    )
    return images + amount * to_device(grain, images.device)


def blur(images: torch.Tensor, amount: float, slots: torch.Tensor) -> torch.Tensor:
    """Gaussian blur whose sigma is `amount` times the side, so that pictures of any size blur
    alike. images [B, C, S, S].
    """
    sigma = amount * images.shape[-1]
    taps = 2 * math.ceil(3 * sigma) + 1
    # Across, then down: the same as at once, with `taps` and not taps^2 multiplications a pixel.
    return tv.gaussian_blur(
        tv.gaussian_blur(images, [taps, 1], [sigma, sigma]), [1, taps], [sigma, sigma]
    )


def resolution(images: torch.Tensor, amount: float, slots: torch.Tensor) -> torch.Tensor:
    """Shrunk to `amount` of the side and enlarged again, both bilinear. images [B, C, S, S]."""
    side = images.shape[-1]
    small = max(1, round(amount * side))
    return tv.resize(
        tv.resize(images, [small, small], antialias=True), [side, side], antialias=True
    )


def rotation(images: torch.Tensor, amount: float, slots: torch.Tensor) -> torch.Tensor:
    """Turned by `amount` degrees against the clock about the middle; bilinear, black corners.
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
    # Training views turn by up to 10 degrees: the first two are nothing new to a network trained
    # with --augment.
    "rotation": Shift(rotation, (5.0, 10.0, 20.0, 30.0, 45.0), "degrees"),
}


def shifted(images: torch.Tensor, slots: torch.Tensor, name: str, strength: int) -> torch.Tensor:
    """Pictures of given slots in one shift: a pure function of picture, slot and strength; strength
    0 leaves them as they are.

    images float32 [B, C, S, S] in 0..1 (grey ones may be one channel, expanded), slots int64 [B] ->
    the same shape, in 0..1.
    """
    if strength == 0:
        return images
    shift = SHIFTS[name]
    own = (
        images[:, :1] if images.stride(1) == 0 else images
    )  # grey: one channel's work, expanded again
    return shift.apply(own, shift.amounts[strength - 1], slots).clamp(0, 1).expand(images.shape)
