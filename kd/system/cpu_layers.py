"""Layers that torch computes slowly or wrongly on a CPU, and what is computed instead.

`adapt_to_cpu` replaces the `forward` of such modules. Parameters and their names stay the same.
"""

import functools
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

# oneDNN's gradient of a strided 1x1 convolution with fewer input channels than this, its block of
# vector registers, writes outside its memory: github.com/uxlfoundation/oneDNN/issues/6035.
ONEDNN_BLOCK = 16


def adapt_to_cpu(network: nn.Module) -> None:
    """Replace the `forward` of modules for which torch's own is slow or wrong on a CPU.

    - The gradients of depthwise convolutions and of attention take two to ten times as long in bf16
      as in float32. Under autocast, they run in float32 if a gradient is needed, and otherwise in
      bf16, which is faster then.
    - The gradient of a strided 1x1 convolution with few input channels, as in RepVGG, MobileOne and
      FastViT, overwrites foreign memory. The image is sampled first, then convolved with stride 1.
    """
    for module in network.modules():
        if "forward" in vars(module):
            continue
        if is_depthwise(module):
            module.forward = functools.partial(_float32_for_gradients, module.forward)
        elif has_fused_attention(module):
            module.forward = functools.partial(_float32_attention_for_gradients, module.forward)
        elif _samples_few_channels(module):
            module.forward = functools.partial(_sample_then_convolve, module)


def is_depthwise(module: nn.Module) -> bool:
    """Return whether a module is a 2D convolution with one input channel per group."""
    return isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1


def has_fused_attention(module: nn.Module) -> bool:
    """Return whether a module itself calls scaled_dot_product_attention, as timm marks it."""
    return bool(getattr(module, "fused_attn", False))


def arithmetic_intensity(network: nn.Module, image: torch.Tensor) -> float:
    """Return the multiply-adds of the dense layers per element that they read or write.

    Dense layers are linear layers and convolutions that are not depthwise. Their arithmetic is what
    bf16 makes faster; reading, writing and converting their elements is what it costs. From 64
    pixels on, the value hardly depends on the size of the image. The network is left in the mode
    that it was in.

    image  float32 [1, 3, S, S]
    """
    work, elements = 0, 0

    def count(module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        nonlocal work, elements
        work += output.numel() * module.weight[0].numel()
        elements += inputs[0].numel() + output.numel()

    dense = [module for module in network.modules() if _is_dense(module)]
    hooks = [module.register_forward_hook(count) for module in dense]
    was_training = network.training
    network.eval()
    try:
        with torch.inference_mode():
            network(image)
    finally:
        network.train(was_training)
        for hook in hooks:
            hook.remove()
    return work / max(1, elements)


def _is_dense(module: nn.Module) -> bool:
    return isinstance(module, (nn.Conv2d, nn.Linear)) and not is_depthwise(module)


def _trains_under_autocast() -> bool:
    return torch.is_grad_enabled() and torch.is_autocast_enabled("cpu")


def _float32_for_gradients(
    forward: Callable[[torch.Tensor], torch.Tensor], features: torch.Tensor
) -> torch.Tensor:
    """Call the `forward` of a convolution in float32 if a gradient is needed."""
    if not _trains_under_autocast():
        return forward(features)
    with torch.autocast("cpu", enabled=False):
        return forward(features.float())


class _AttentionInFloat32(TorchFunctionMode):
    """Computes each scaled_dot_product_attention inside it in float32, and nothing else."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is not functional.scaled_dot_product_attention:
            return function(*args, **kwargs)
        args = [_in_float32(value) for value in args]
        kwargs = {name: _in_float32(value) for name, value in kwargs.items()}
        with torch.autocast("cpu", enabled=False):
            return function(*args, **kwargs)


def _in_float32(value):
    """Return a tensor of reduced precision in float32, and any other value unchanged."""
    reduced = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.float() if reduced else value


def _float32_attention_for_gradients(forward: Callable[..., torch.Tensor], *args, **kwargs):
    """Call the `forward` of a module, with its attention in float32 if a gradient is needed."""
    if not _trains_under_autocast():
        return forward(*args, **kwargs)
    with _AttentionInFloat32():
        return forward(*args, **kwargs)


def _samples_few_channels(module: nn.Module) -> bool:
    """Return whether a module is a strided 1x1 convolution whose gradient oneDNN gets wrong."""
    if type(module) is not nn.Conv2d or module.groups > 1:
        return False
    point = module.kernel_size == (1, 1) and module.padding in ((0, 0), "valid")
    return point and module.stride != (1, 1) and module.in_channels < ONEDNN_BLOCK


def _sample_then_convolve(module: nn.Conv2d, features: torch.Tensor) -> torch.Tensor:
    rows, columns = module.stride
    sampled = features[:, :, ::rows, ::columns]
    return functional.conv2d(sampled, module.weight, module.bias)
