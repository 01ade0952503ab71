"""Networks: those of timm by name, with the thesis's names as short forms."""

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
# VGG's paper (1409.1556) and torchvision use 0.5, where timm's default is 0. The SE nets' 0.2 is
# timm's own default.
DROP_RATES = {"vgg11": 0.5}


class Outputs(NamedTuple):
    """What a network returns for a batch.

    logits    [B, K]
    features  of some of its layers, [B, C, H, W] or [B, ...]
    """

    logits: torch.Tensor
    features: tuple[torch.Tensor, ...] = ()


@dataclass
class Classifier:
    """A network with all that is needed to use it: images in 0..1 go in, logits come out.

    name          as the user wrote it
    architecture  timm's name; `timm.create_model(architecture, num_classes=len(classes))` fits
                  `module.state_dict()`
    mean, std     [1, 3, 1, 1], of the images that `module` expects
    compiled      what training calls instead of `module`, see `compile`
    parallel      what training calls on several ranks, see `wrap_ddp`
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
        """Compute logits [B, K] of images float32 [B, 3, S, S] in 0..1.

        Grey images may have one channel in memory, expanded.
        """
        # (images - mean) / std in one pass over memory, which also brings the channels into
        # channels_last order.
        ready = torch.empty(
            images.shape,
            dtype=images.dtype,
            device=images.device,
            memory_format=torch.channels_last,
        )
        torch.addcmul(-self.mean / self.std, images, 1 / self.std, out=ready)
        forward = self.module
        in_training = self.compiled or self.parallel
        if in_training is not None and self.module.training:
            forward = in_training
        return forward(ready)

    def wrap_ddp(self, sync_bn: bool = False) -> None:
        """Train on all ranks.

        Gradients are averaged in the backward pass, and all ranks take the main rank's buffers.
        sync_bn: BatchNorm takes mean and variance over the images of all ranks.
        """
        if ranks.world_size() == 1:
            return
        if sync_bn:
            self.module = timm.layers.convert_sync_batchnorm(self.module)
        device = self.mean.device
        device_ids = [device.index] if device.type == "cuda" else None
        self.parallel = nn.parallel.DistributedDataParallel(self.module, device_ids=device_ids)

    def outputs(self, images: torch.Tensor, layers: tuple[str, ...] = ()) -> Outputs:
        """Logits, and the outputs of the modules that `layers` names, channels first.

        Raises Problem for a name that the network does not have, for a module that returns no
        tensor, and for one whose output is overwritten by what follows it.
        """
        outputs = {}
        versions = {}
        modules = [self._module(name) for name in layers]  # all of them, before any is hooked
        hooks = []
        for name, module in zip(layers, modules):
            hooks.append(module.register_forward_hook(_keeper(name, outputs, versions)))
        try:
            logits = self(images)
        finally:
            for hook in hooks:
                hook.remove()
        self._check_features(layers, outputs, versions)
        return Outputs(logits, tuple(self._channels_first(outputs[name]) for name in layers))

    def _check_features(self, layers: tuple[str, ...], outputs: dict, versions: dict) -> None:
        """Raise Problem for outputs that are no tensors, or were overwritten after their layer."""
        for name in layers:
            if not isinstance(outputs.get(name), torch.Tensor):
                raise Problem(
                    f"layer '{name}' of {self.name}: gives no feature map; name other modules with"
                    " --layers"
                )
            if outputs[name]._version != versions[name]:
                raise Problem(
                    f"layer '{name}' of {self.name}: what follows it overwrites its output; name"
                    " that module with --layers"
                )

    def _channels_first(self, features: torch.Tensor) -> torch.Tensor:
        # timm marks networks with channels last (Swin and its relatives) by this attribute.
        channels_last = getattr(self.module, "output_fmt", "NCHW") == "NHWC"
        if channels_last and features.ndim == 4:
            return features.permute(0, 3, 1, 2)
        return features

    def _module(self, name: str) -> nn.Module:
        try:
            return self.module.get_submodule(name)
        except AttributeError:
            known = [own for own, _ in self.module.named_modules() if own]
            near = difflib.get_close_matches(name, known, n=3)
            cure = "give --layers (see network.named_modules())"
            if near:
                cure = f"did you mean {' or '.join(near)}?"
            raise Problem(
                f"layer '{name}' of {self.name}: no module has that name; {cure}"
            ) from None

    def stages(self) -> tuple[str, ...]:
        """The last four of the stage outputs that timm names, or all if there are fewer.

        Raises Problem where it names none.
        """
        named = [stage["module"] for stage in getattr(self.module, "feature_info", ())]
        if not named:
            raise Problem(f"network '{self.name}': timm names no stages of it; give --layers")
        return tuple(named[-4:])

    def compile(self) -> None:
        """Compile what training calls, once for each size of a batch.

        It uses CUDA graphs, because small batches wait for the launches of kernels. Evaluation is
        not compiled: that would cost a compilation for the last batch of every split.
        """
        module = self.parallel or self.module
        self.compiled = torch.compile(module, mode="reduce-overhead", dynamic=False)

    def to(self, device: torch.device) -> "Classifier":
        """Move to a device, with weights in channels_last order; returns itself."""
        self.module = self.module.to(device, memory_format=torch.channels_last)
        self.mean = self.mean.to(device)
        self.std = self.std.to(device)
        return self


def _keeper(name: str, outputs: dict, versions: dict):
    """A forward hook that keeps a module's output and the version counter of that tensor.

    The counter grows with each change in place.
    """

    def hook(module, inputs, output):
        outputs[name] = output
        versions[name] = getattr(output, "_version", 0)

    return hook


def architecture_of(name: str) -> str:
    """timm's name for a name of the thesis or of timm.

    Raises Problem, with the nearest names, where there is none.
    """
    architecture = ARCHITECTURES.get(name, name)
    body, _, weights = architecture.partition(".")
    if not timm.is_model(body):
        near = difflib.get_close_matches(name, ARCHITECTURES, n=1)
        near += difflib.get_close_matches(name, timm.list_models(), n=2)
        cure = f"did you mean {' or '.join(near)}?" if near else "see timm.list_models()"
        raise Problem(
            f"network '{name}': neither of the thesis ({', '.join(ARCHITECTURES)}) nor of timm; "
            + cure
        )
    if weights and weights not in _weights_of(body):
        raise Problem(
            f"network '{name}': timm has {body} but no weights '{weights}' for it; it has "
            f"{', '.join(_weights_of(body)) or 'none'}"
        )
    return architecture


def _weights_of(body: str) -> list[str]:
    """The names of timm's pretrained weights for a network."""
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

    The seed decides the random weights: all of them, or with pretrained weights those of the head.

    weights  a file to start from; its classifier is replaced where it has other classes. It takes
             precedence over `pretrained`.

    Raises Problem for an unknown name, for weights out of reach and for a file that does not fit.
    """
    architecture = architecture_of(name)
    options = {"num_classes": len(classes)}
    if drop_rate is None:
        drop_rate = DROP_RATES.get(name)
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
    mean = torch.tensor(config["mean"]).view(1, 3, 1, 1)
    std = torch.tensor(config["std"]).view(1, 3, 1, 1)
    return Classifier(name, architecture, tuple(classes), module, mean, std)


def require_weights(name: str) -> None:
    """Raise Problem, within seconds, where a network's pretrained weights are out of reach."""
    require_pretrained(name, architecture_of(name))


def try_batch(
    network: Classifier, images: torch.Tensor, precision: Precision, layers: tuple[str, ...] = ()
) -> Outputs:
    """Outputs of a network in training mode for images [B, 3, S, S], with float32 logits.

    Its buffers stay as they were. Raises Problem where it cannot be trained on batches like this
    one.
    """
    buffers = [(buffer, buffer.clone()) for buffer in network.module.buffers()]
    network.module.train()
    try:
        with torch.no_grad(), precision.autocast():
            logits, features = network.outputs(images, layers)
    except (RuntimeError, ValueError, AssertionError) as error:
        text = str(error).strip() or type(error).__name__
        why = text.splitlines()[0][:160]
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
    """Number of trainable parameters."""
    return sum(value.numel() for value in module.parameters())


def state_on_cpu(module: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of all weights and buffers, which further training does not change."""
    return {key: value.detach().to("cpu", copy=True) for key, value in module.state_dict().items()}


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a model.pt of ours, a timm state_dict (.pt, .pth) or a .safetensors file.

    Raises Problem (4) for a file that is missing, damaged or of another kind.
    """
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    content = checkpoint.load(path, "weights")
    state = content.get("state_dict", content)
    if not _is_state(state):
        raise Problem(
            f"weights '{path}': not a state_dict (names to tensors); save model.state_dict()",
            BAD_CHECKPOINT,
        )
    return state


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    if not os.path.isfile(path):
        raise Problem(f"weights '{path}': no such file; give another", BAD_CHECKPOINT)
    try:
        return safetensors.torch.load_file(path)
    except Exception as error:
        raise Problem(
            f"weights '{path}': damaged, or no safetensors file ({error}); give another",
            BAD_CHECKPOINT,
        ) from None


def _is_state(value) -> bool:
    """Whether a value is a dictionary of tensors that is not empty."""
    if not isinstance(value, dict) or not value:
        return False
    return all(isinstance(tensor, torch.Tensor) for tensor in value.values())


def load_state(
    module: nn.Module, state: dict[str, torch.Tensor], path: Path, architecture: str
) -> None:
    """Load all of a state, or raise Problem (4) that names what differs.

    A `module.` prefix (DistributedDataParallel's) has a message of its own.
    """
    own = module.state_dict()
    extra = [key for key in state if key not in own]
    if extra and all(key.startswith("module.") for key in state):
        raise Problem(
            f"weights '{path}': its names begin with 'module.' (saved from"
            " DistributedDataParallel); save model.module.state_dict()",
            BAD_CHECKPOINT,
        )
    differences = _differences(own, state)
    if differences:
        raise Problem(
            f"weights '{path}': do not fit {architecture} ({'; '.join(differences)[:400]}); name"
            " the network they belong to",
            BAD_CHECKPOINT,
        )
    module.load_state_dict(state, strict=True)


def _differences(own: dict[str, torch.Tensor], state: dict[str, torch.Tensor]) -> list[str]:
    """How a state differs from a network's own in shapes and names; empty where it fits."""
    wrong = []
    missing = []
    for key, value in own.items():
        if key not in state:
            missing.append(key)
        elif value.shape != state[key].shape:
            found = tuple(state[key].shape)
            expected = tuple(value.shape)
            wrong.append(f"{key}: file has {found}, network {expected}")
    extra = [key for key in state if key not in own]
    differences = []
    for what, keys in (("other shapes:", wrong), ("missing:", missing), ("unknown:", extra)):
        if keys:
            differences.append(f"{what} {first_ten(keys[:10])}")
    return differences


def load_body(module: nn.Module, path: Path, architecture: str) -> None:
    """Start from a file; a classifier for another number of classes keeps its random weights."""
    state = read_state(path)
    own = module.state_dict()
    heads = module.pretrained_cfg.get("classifier", "")
    if not isinstance(heads, (tuple, list)):
        heads = (heads,)
    for name in heads:
        for key in (f"{name}.weight", f"{name}.bias"):
            if key in state and key in own and state[key].shape != own[key].shape:
                state[key] = own[key]
    load_state(module, state, path, architecture)
