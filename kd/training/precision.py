"""The precision in which a network is trained."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from kd.models import Classifier, refuse_batches
from kd.system.cpu_layers import arithmetic_intensity, has_fused_attention, is_depthwise
from kd.system.devices import FLOAT32, Precision, pick_precision

# On a CPU, networks with depthwise convolutions and a lower arithmetic intensity train as fast in
# float32 as in bf16, or faster: tests/benchmarks/README.md has the measurement.
FLOAT32_BELOW = 36.0


def training_precision(amp: str, network: Classifier, images: torch.Tensor) -> Precision:
    """Return the precision in which `network` is trained. It never depends on a timing.

    It is that of `pick_precision`, with two exceptions on a CPU. `auto` trains networks with
    depthwise convolutions and little other arithmetic in float32. Some layers always stay in
    float32 (see `system.cpu_layers`).

    amp     the value of --amp
    images  float32 [B, 3, S, S] in 0..1, on the device of the network

    Raises Problem if the network cannot process images of this size.
    """
    precision = pick_precision(amp, images.device)
    if precision.device != "cpu" or precision.name == FLOAT32:
        return precision
    if amp == "auto" and _has(network.module, is_depthwise):
        with refuse_batches(network, images):
            intensity = arithmetic_intensity(network.module, images[:1])
        if intensity < FLOAT32_BELOW:
            return replace(precision, name=FLOAT32)
    return replace(precision, in_float32=_layers_in_float32(network.module))


def _has(network: nn.Module, is_kind: Callable[[nn.Module], bool]) -> bool:
    return any(is_kind(module) for module in network.modules())


def _layers_in_float32(network: nn.Module) -> str:
    """Return the layers that `adapt_to_cpu` keeps in float32, in words; "" if there are none."""
    found = []
    if _has(network, is_depthwise):
        found.append("depthwise convolutions")
    if _has(network, has_fused_attention):
        found.append("attention")
    return " and ".join(found)
