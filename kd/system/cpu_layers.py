"""Layers that torch computes slowly or wrongly on a CPU, and what is computed instead.

`adapt_to_cpu` replaces the `forward` of such modules. Parameters and their names stay the same.
"""

import functools
import operator
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

# Part of what identifies the rounding on a CPU. To be increased with each change of a result.
VERSION = 1
# oneDNN's gradient of a strided 1x1 convolution with fewer input channels than this, its block of
# vector registers, writes outside its memory: github.com/uxlfoundation/oneDNN/issues/6035.
ONEDNN_BLOCK = 16
# Measured with torch 2.14: convolutions of patches of at least 4 x 4 pixels are wrong in bf16 for
# some numbers of input channels in this range.
PATCH_CHANNELS = range(4, 32)


def adapt_to_cpu(network: nn.Module) -> None:
    """Replace the `forward` of modules for which torch's own is slow or wrong on a CPU.

    - The gradients of depthwise convolutions and of attention take two to ten times as long in bf16
      as in float32. Under autocast, they run in float32 if a gradient is needed, and otherwise in
      bf16, which is faster then.
    - The gradient of a strided 1x1 convolution with few input channels, as in RepVGG, MobileOne and
      FastViT, overwrites foreign memory. The image is sampled first, then convolved with stride 1.
    - The gradient in bf16 of a strided convolution whose map is smaller than its kernel is not
      initialised, as in the last stage of ResNet at 16 pixels. It is computed in float32.
    - In bf16, convolutions of patches with few input channels, as in Visformer, are wrong. They run
      in float32.
    - A convolution whose kernel covers the whole map, as in the head of VGG and in
      squeeze-and-excitation, takes two to nine times as long as the same product of matrices.
    """
    for module in network.modules():
        if "forward" not in vars(module):
            replacement = _replacement(module)
            if replacement is not None:
                module.forward = replacement


def _replacement(module: nn.Module) -> Callable[..., torch.Tensor] | None:
    """Return the function that replaces `module.forward`; None if torch's own is right and fast."""
    if is_depthwise(module):
        return functools.partial(_float32_for_gradients, module.forward)
    if has_fused_attention(module):
        return functools.partial(_float32_attention_for_gradients, module.forward)
    if not isinstance(module, nn.Conv2d):
        return None
    large = module.kernel_size != (1, 1)
    if large and module.kernel_size == module.stride and module.in_channels in PATCH_CHANNELS:
        return functools.partial(_float32, module.forward)
    if _has_no_border(module):
        forward = module.forward
        if not large and module.stride != (1, 1) and module.in_channels < ONEDNN_BLOCK:
            forward = functools.partial(_sample_then_convolve, module)
        return functools.partial(_multiply_if_kernel_covers_map, module, forward)
    if large and module.stride != (1, 1):
        return functools.partial(_float32_for_small_maps, module, module.forward)
    return None


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
    return _float32(forward, features)


def _float32(
    forward: Callable[[torch.Tensor], torch.Tensor], features: torch.Tensor
) -> torch.Tensor:
    with torch.autocast("cpu", enabled=False):
        return forward(features.float())


def _float32_for_small_maps(
    module: nn.Conv2d, forward: Callable[[torch.Tensor], torch.Tensor], features: torch.Tensor
) -> torch.Tensor:
    """Call the `forward` of a convolution in float32 if its map is smaller than its kernel."""
    small = any(map(operator.lt, features.shape[-2:], module.kernel_size))
    if small and _trains_under_autocast():
        return _float32(forward, features)
    return forward(features)


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
    """Return a floating-point tensor in float32, and any other value unchanged."""
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value.float()
    return value


def _float32_attention_for_gradients(forward: Callable[..., torch.Tensor], *args, **kwargs):
    """Call the `forward` of a module, with its attention in float32 if a gradient is needed."""
    if not _trains_under_autocast():
        return forward(*args, **kwargs)
    with _AttentionInFloat32():
        return forward(*args, **kwargs)


def _has_no_border(module: nn.Conv2d) -> bool:
    """Return whether a module is a plain dense convolution without padding."""
    plain = type(module) is nn.Conv2d and module.groups == 1 and module.dilation == (1, 1)
    return plain and module.padding in ((0, 0), "valid")


def _multiply_if_kernel_covers_map(
    module: nn.Conv2d, forward: Callable[[torch.Tensor], torch.Tensor], features: torch.Tensor
) -> torch.Tensor:
    """Convolve features [B, C, H, W] as a product of matrices if the kernel is H x W as well."""
    if features.shape[-2:] != module.kernel_size:
        return forward(features)
    # In channels_last order, both are views.
    rows = features.permute(0, 2, 3, 1).flatten(1)
    weight = module.weight.permute(0, 2, 3, 1).flatten(1)
    return functional.linear(rows, weight, module.bias)[:, :, None, None]


def _sample_then_convolve(module: nn.Conv2d, features: torch.Tensor) -> torch.Tensor:
    rows, columns = module.stride
    sampled = features[:, :, ::rows, ::columns]
    return functional.conv2d(sampled, module.weight, module.bias)
