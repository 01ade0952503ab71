"""Networks: timm by name, the thesis's names as short forms."""

import difflib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import timm
import torch
from torch import nn

from kd.system import checkpoint, ranks
from kd.system.devices import Precision
from kd.system.errors import BAD_CHECKPOINT, Problem, first_ten
from kd.system.hub import create_pretrained, require_pretrained

# The weights that the packages named by the thesis offered; its SE nets came from
# `pretrainedmodels`.
ARCHITECTURES = {
    "vgg11": "vgg11.tv_in1k",
    "resnet18": "resnet18.tv_in1k",
    "resnet34": "resnet34.tv_in1k",
    "resnet50": "resnet50.tv_in1k",
    "seresnet50": "legacy_seresnet50.in1k",
    "seresnet101": "legacy_seresnet101.in1k",
}
# VGG's paper (1409.1556) and torchvision use 0.5; timm's default is 0. The SE nets' 0.2 is timm's
# own default.
DROP_RATES = {"vgg11": 0.5}


class Outputs(NamedTuple):
    """What a network gives for a batch: logits [B, K], and the feature maps [B, C, H, W] (or [B,
    ...]) of some of its layers.
    """

    logits: torch.Tensor
    features: tuple[torch.Tensor, ...] = ()


@dataclass
class Classifier:
    """A network with what it needs to be used: call it with images in 0..1, get logits.

    name          as the user wrote it
    architecture  timm's name; `timm.create_model(architecture, num_classes=len(classes))` fits
                  `module.state_dict()`
    mean, std     [1, 3, 1, 1], of the images that `module` expects
    """

    name: str
    architecture: str
    classes: tuple[str, ...]
    module: nn.Module
    mean: torch.Tensor
    std: torch.Tensor
    compiled: Callable[[torch.Tensor], torch.Tensor] | None = None
    parallel: nn.Module | None = None

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """images float32 [B, 3, S, S] in 0..1 (grey ones may be one channel, expanded) -> logits
        [B, K].
        """
        # (images - mean) / std in one pass over memory, which also spreads the channels into
        # channels_last order.
        ready = torch.empty(
            images.shape,
            dtype=images.dtype,
            device=images.device,
            memory_format=torch.channels_last,
        )
        torch.addcmul(-self.mean / self.std, images, 1 / self.std, out=ready)
        in_training = self.compiled or self.parallel
        forward = in_training if in_training is not None and self.module.training else self.module
        return forward(ready)

    def spread(self, sync_bn: bool = False) -> None:
        """Train on all ranks: gradients are averaged as the backward pass goes, the first rank's
        buffers are everyone's.

        sync_bn: BatchNorm takes mean and variance over all ranks' images.
        """
        if ranks.world_size() > 1:
            if sync_bn:
                self.module = timm.layers.convert_sync_batchnorm(self.module)
            on = [self.mean.device.index] if self.mean.device.type == "cuda" else None
            self.parallel = nn.parallel.DistributedDataParallel(self.module, device_ids=on)

    def outputs(self, images: torch.Tensor, layers: tuple[str, ...] = ()) -> Outputs:
        """Logits, and what the modules named by `layers` give on the way to them, channels first.

        Raises Problem for a name that the network has not, for a module that gives no tensor, and
        for one whose output is overwritten by what follows it.
        """
        taken, versions = {}, {}

        def keep(name):
            def hook(module, inputs, output):
                taken[name], versions[name] = output, getattr(output, "_version", 0)

            return hook

        modules = [self._module(name) for name in layers]  # all of them, before any is hooked
        hooks = [module.register_forward_hook(keep(name)) for name, module in zip(layers, modules)]
        try:
            logits = self(images)
        finally:
            for hook in hooks:
                hook.remove()
        for name in layers:
            if not isinstance(taken.get(name), torch.Tensor):
                raise Problem(
                    f"layer '{name}' of {self.name}: gives no feature map; name other modules with"
                    " --layers"
                )
            if taken[name]._version != versions[name]:
                raise Problem(
                    f"layer '{name}' of {self.name}: what follows it overwrites its output; name"
                    " that module with --layers"
                )
        last = (
            getattr(self.module, "output_fmt", "NCHW") == "NHWC"
        )  # how timm tells it, of Swin and its kin
        return Outputs(
            logits,
            tuple(
                taken[name].permute(0, 3, 1, 2) if last and taken[name].ndim == 4 else taken[name]
                for name in layers
            ),
        )

    def _module(self, name: str) -> nn.Module:
        try:
            return self.module.get_submodule(name)
        except AttributeError:
            near = difflib.get_close_matches(
                name, [known for known, _ in self.module.named_modules() if known], n=3
            )
            raise Problem(
                f"layer '{name}' of {self.name}: no module has that name; "
                + (
                    f"did you mean {' or '.join(near)}?"
                    if near
                    else "give --layers (see network.named_modules())"
                )
            ) from None

    def stages(self) -> tuple[str, ...]:
        """The last four stage outputs that timm names, of fewer all.

        Raises Problem where it names none.
        """
        named = [stage["module"] for stage in getattr(self.module, "feature_info", ())]
        if not named:
            raise Problem(f"network '{self.name}': timm names no stages of it; give --layers")
        return tuple(named[-4:])

    def compile(self) -> None:
        """Compile what training calls, batches of each size for themselves; with CUDA graphs, as
        small batches wait for launches.

        Evaluation stays as it is: it would cost a compilation for every part's last batch.
        """
        self.compiled = torch.compile(
            self.parallel or self.module, mode="reduce-overhead", dynamic=False
        )

    def to(self, device: torch.device) -> "Classifier":
        """Move to a device, weights in channels_last order; returns itself."""
        self.module = self.module.to(device, memory_format=torch.channels_last)
        self.mean, self.std = self.mean.to(device), self.std.to(device)
        return self


def architecture_of(name: str) -> str:
    """timm's name for a name of the thesis or of timm.

    Raises Problem, with the nearest names, where there is none.
    """
    architecture = ARCHITECTURES.get(name, name)
    body, _, weights = architecture.partition(".")
    if timm.is_model(body) and weights and weights not in _weights_of(body):
        raise Problem(
            f"network '{name}': timm has {body} but no weights '{weights}' for it; it has "
            f"{', '.join(_weights_of(body)) or 'none'}"
        )
    if not timm.is_model(body):
        near = [
            *difflib.get_close_matches(name, ARCHITECTURES, n=1),
            *difflib.get_close_matches(name, timm.list_models(), n=2),
        ]
        raise Problem(
            f"network '{name}': neither of the thesis ({', '.join(ARCHITECTURES)}) nor of timm; "
            + (f"did you mean {' or '.join(near)}?" if near else "see timm.list_models()")
        )
    return architecture


def _weights_of(body: str) -> list[str]:
    return [name.partition(".")[2] for name in timm.list_pretrained(f"{body}.*")]


def build(
    name: str,
    classes: tuple[str, ...],
    *,
    pretrained: bool = False,
    weights: str | None = None,
    drop_rate: float | None = None,
    seed: int = 0,
) -> Classifier:
    """A network for `classes`.

    The seed fixes what is drawn at random: all of it, or with pretrained weights its head.

    weights  a file to start from; its classifier is replaced where it has other classes. Wins over
             `pretrained`.
    Raises Problem for an unknown name, weights out of reach and a file that does not fit.
    """
    architecture = architecture_of(name)
    options = {"num_classes": len(classes)}
    drop_rate = DROP_RATES.get(name) if drop_rate is None else drop_rate
    if drop_rate is not None:
        options["drop_rate"] = drop_rate
    torch.manual_seed(seed)
    if pretrained and weights is None:
        module = create_pretrained(name, architecture, options)
    else:
        module = timm.create_model(architecture, **options)
    if weights is not None:
        load_body(module, Path(weights), architecture)
    config = module.pretrained_cfg
    mean, std = (torch.tensor(config[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    return Classifier(name, architecture, tuple(classes), module, mean, std)


def require_weights(name: str) -> None:
    """Raise Problem, within seconds, where a network's pretrained weights are neither on this disk
    nor within reach.
    """
    require_pretrained(name, architecture_of(name))


def try_batch(
    network: Classifier, images: torch.Tensor, precision: Precision, layers: tuple[str, ...] = ()
) -> Outputs:
    """What a network in training mode gives for images [B, 3, S, S]: logits float32, features; its
    buffers stay as they were.

    Raises Problem where it cannot be trained on batches like this one.
    """
    buffers = [(buffer, buffer.clone()) for buffer in network.module.buffers()]
    network.module.train()
    try:
        with torch.no_grad(), precision.autocast():
            logits, features = network.outputs(images, layers)
    except (RuntimeError, ValueError, AssertionError) as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        raise Problem(
            f"network '{network.name}': cannot be trained on {len(images)} images of"
            f" {images.shape[-1]} pixels ({why}); give another --image-size or a larger"
            " --batch-size"
        ) from None
    for buffer, value in buffers:
        buffer.copy_(value)
    if tuple(logits.shape) != (len(images), len(network.classes)):
        raise Problem(
            f"network '{network.name}': gives {tuple(logits.shape)} for {len(images)} images of "
            f"{len(network.classes)} classes; choose a classifier"
        )
    return Outputs(logits.float(), features)


def parameters(module: nn.Module) -> int:
    """Number of trainable values."""
    return sum(value.numel() for value in module.parameters())


def state_on_cpu(module: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of all weights and buffers, detached from the network that goes on training."""
    return {key: value.detach().to("cpu", copy=True) for key, value in module.state_dict().items()}


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a model.pt of ours, a timm state_dict (.pt, .pth) or a .safetensors file.

    Raises Problem (4).
    """
    if path.suffix == ".safetensors":
        if not os.path.isfile(path):
            raise Problem(f"weights '{path}': no such file; give another", BAD_CHECKPOINT)
        try:
            return safetensors.torch.load_file(path)
        except Exception as error:
            raise Problem(
                f"weights '{path}': damaged, or no safetensors file ({error}); give another",
                BAD_CHECKPOINT,
            ) from None
    content = checkpoint.load(path, "weights")
    state = content.get("state_dict", content)
    if (
        not isinstance(state, dict)
        or not state
        or not all(isinstance(value, torch.Tensor) for value in state.values())
    ):
        raise Problem(
            f"weights '{path}': not a state_dict (names to tensors); save model.state_dict()",
            BAD_CHECKPOINT,
        )
    return state


def load_state(
    module: nn.Module, state: dict[str, torch.Tensor], path: Path, architecture: str
) -> None:
    """Load all of a state or raise Problem (4) naming what differs.

    A `module.` prefix (DDP's) is refused by name.
    """
    own = module.state_dict()
    wrong = [
        f"{key}: file has {tuple(state[key].shape)}, network {tuple(own[key].shape)}"
        for key in own
        if key in state and own[key].shape != state[key].shape
    ]
    missing, extra = (
        [key for key in own if key not in state],
        [key for key in state if key not in own],
    )
    if extra and all(key.startswith("module.") for key in state):
        raise Problem(
            f"weights '{path}': its names begin with 'module.' (saved from"
            " DistributedDataParallel); save model.module.state_dict()",
            BAD_CHECKPOINT,
        )
    if wrong or missing or extra:
        parts = [
            f"{word} {first_ten(keys[:10])}"
            for word, keys in (("other shapes:", wrong), ("missing:", missing), ("unknown:", extra))
            if keys
        ]
        raise Problem(
            f"weights '{path}': do not fit {architecture} ({'; '.join(parts)[:400]}); name the"
            " network they belong to",
            BAD_CHECKPOINT,
        )
    module.load_state_dict(state, strict=True)


def load_body(module: nn.Module, path: Path, architecture: str) -> None:
    """Start from a file; a classifier of another number of classes keeps its fresh weights."""
    state, own = read_state(path), module.state_dict()
    head = module.pretrained_cfg.get("classifier", "")
    for name in head if isinstance(head, (tuple, list)) else (head,):
        for key in (f"{name}.weight", f"{name}.bias"):
            if key in state and key in own and state[key].shape != own[key].shape:
                state[key] = own[key]
    load_state(module, state, path, architecture)
