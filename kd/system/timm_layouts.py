"""Weights as other programs lay them out: what timm converts, and what neither can read."""

import contextlib

import timm
import torch
from timm.models import _builder
from torch import nn
from torch.overrides import TorchFunctionMode

# Names that wrappers of modules add: DistributedDataParallel and DataParallel, torch.compile, FSDP
# and checkpointed activations.
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# Buffers that the profiler thop leaves in every module.
_PROFILER = ("total_ops", "total_params")
# Checkpoints from before torch 0.4.1 have no count of batches. Evaluation does not use it.
COUNT = "num_batches_tracked"
# Names that only one library has, and the library.
_LIBRARIES = (
    ("encoder.layers.encoder_layer_0.", "torchvision's ViT"),
    ("features.0.0.weight", "torchvision"),
    ("_blocks.0._depthwise_conv.weight", "efficientnet_pytorch"),
    (".embeddings.patch_embeddings.", "Hugging Face's transformers"),
    ("embedder.embedder.convolution.weight", "Hugging Face's transformers"),
    ("class_layers.out.weight", "MONAI"),
    ("backbone.layer1.0.conv1.weight", "MMPretrain"),
    ("encoder.layer1.0.conv1.weight", "segmentation_models_pytorch"),
    ("logit_scale", "CLIP"),
)


class NoRandomWeights(TorchFunctionMode):
    """Leaves tensors as they are where they would be filled with random numbers.

    Drawing the 130 million weights of VGG11 takes longer than loading them.
    """

    FILLING = {
        torch.Tensor.normal_,
        torch.Tensor.uniform_,
        nn.init.normal_,
        nn.init.uniform_,
        nn.init.kaiming_uniform_,
    }

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in self.FILLING:
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)


@contextlib.contextmanager
def without_drawing():
    """Keep a network that is created in this context from drawing any random numbers."""
    with torch.random.fork_rng(devices=[]), NoRandomWeights():
        yield


def library_of(names) -> str:
    """Return the library whose names of weights these look like, or an empty string."""
    for sign, library in _LIBRARIES:
        if any(sign in name for name in names):
            return library
    return ""


def head_keys(module: nn.Module) -> list[str]:
    """Return the names of the classifier's weights and biases, as far as the network has them."""
    heads = getattr(module, "pretrained_cfg", {}).get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else heads
    own = module.state_dict()
    keys = [f"{head}.{what}" for head in heads for what in ("weight", "bias")]
    return [key for key in keys if key in own]


def adapted(module: nn.Module, state: dict) -> tuple[dict, list[str]] | None:
    """Return a state by the network's own names, with notes on its changes; None if it misfits.

    Names of wrappers are removed wherever they are, and a first convolution for grey images is
    spread over three channels. A classifier of another number of classes counts as fitting.
    """
    own, notes = module.state_dict(), []
    state, removed = without_wrappers(state, own)
    if removed:
        notes.append(f"'{removed}.' was removed inside the names")
    for key in own:
        if key.endswith(COUNT):
            state.setdefault(key, own[key])
    if state.keys() != own.keys():
        return None
    grey = _spread_grey(module, state, own)
    if grey:
        notes.append(grey)
    heads = head_keys(module)
    for key, value in own.items():
        if state[key].shape != value.shape and key not in heads:
            return None
    return state, notes


def without_wrappers(state: dict, own: dict) -> tuple[dict, str]:
    """Return a state without the names of wrappers and buffers of profilers, and which it had.

    It is returned as it is if two of its names would become equal.
    """
    ours = {part for key in own for part in key.split(".")}
    wrappers, found, cleaned = WRAPPERS - ours, set(), {}
    for key, value in state.items():
        parts = key.split(".")
        if parts[-1] in _PROFILER:
            continue
        found |= wrappers.intersection(parts)
        name = ".".join(part for part in parts if part not in wrappers)
        if name in cleaned:
            return dict(state), ""
        cleaned[name] = value
    return cleaned, "., '".join(sorted(found))


def _spread_grey(module: nn.Module, state: dict, own: dict) -> str:
    """Spread first convolutions of one channel over three in place; return a note, or "".

    A grey image has three equal channels here. A third of the weights for each of them gives the
    same sum, so the network's outputs are those for the grey image. This would not hold for layers
    that standardize their weights, which therefore misfit.
    """
    config = getattr(module, "pretrained_cfg", {})
    names = config.get("first_conv") or ()
    spread = []
    for name in (names,) if isinstance(names, str) else names:
        key = f"{name}.weight"
        if key not in own or own[key].ndim != 4 or not _is_plain(module.get_submodule(name)):
            continue
        outputs, channels, *kernel = own[key].shape
        if channels == 3 and tuple(state[key].shape) == (outputs, 1, *kernel):
            state[key] = timm.models.adapt_input_conv(3, state[key], base_chans=1)
            spread.append(key)
    if not spread:
        return ""
    # (grey - mean) / std, averaged over the channels, is one such formula for grey images.
    means, stds = torch.tensor(config["mean"]), torch.tensor(config["std"])
    std = 1 / (1 / stds).mean()
    mean = (means / stds).mean() * std
    return (
        f"{' and '.join(spread)} for grey images was spread over three channels, with images"
        f" normalized to (grey - {mean:.3f}) / {std:.3f}"
    )


def _is_plain(layer: nn.Module) -> bool:
    return type(layer) in (nn.Conv2d, timm.layers.Conv2dSame)


class _Found(Exception):
    """Ends the construction of a network when its filter is known."""


def timm_filter(architecture: str):
    """Return the function by which timm converts downloaded weights of a network, or None.

    timm hands it to `load_pretrained` when it builds a network, and nowhere else. So it is
    intercepted there, and nothing is downloaded.
    """
    original, filters = _builder.load_pretrained, []

    def intercept(*_, filter_fn=None, **__):
        filters.append(filter_fn)
        raise _Found

    _builder.load_pretrained = intercept
    try:
        with without_drawing():
            timm.create_model(architecture, pretrained=True, num_classes=2)
    except _Found:
        pass
    finally:
        _builder.load_pretrained = original
    return filters[0] if filters else None


def converted(module: nn.Module, state: dict, convert) -> tuple[dict, list[str]] | None:
    """Return what timm's filter `convert` makes of a state, as `adapted` does; None if it misfits.

    The filters are written for certain files and fail in many ways for others.
    """
    cleaned, _ = without_wrappers(state, module.state_dict())
    try:
        with torch.no_grad():
            try:
                result = convert(dict(cleaned), module)
            except TypeError:  # as timm does: some filters take the state only
                result = convert(dict(cleaned))
        fit = adapted(module, dict(result))
    except Exception:
        return None
    if fit is None:
        return None
    theirs = [key for key in cleaned if key not in fit[0]]
    ours = [key for key in fit[0] if key not in cleaned]
    names = f"timm converted the names ({(theirs or ['-'])[0]} to {(ours or ['-'])[0]})"
    for key, value in fit[0].items():  # position embeddings of another image size
        if key in cleaned and value.shape != cleaned[key].shape and value.ndim > 1:
            shapes = f"{tuple(cleaned[key].shape)} to {tuple(value.shape)}"
            names = f"timm converted the weights ({key}: {shapes})"
    return fit[0], [names, *fit[1]]
