"""Networks: timm's networks by name, with the names of the thesis as short forms."""

import contextlib
import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import timm
import torch
from torch import nn

from kd.system import ranks
from kd.system import weights as weight_files
from kd.system.cpu_layers import adapt_to_cpu
from kd.system.devices import Precision
from kd.system.errors import BAD_CHECKPOINT, Problem, is_out_of_memory
from kd.system.hub import create_pretrained, require_pretrained
from kd.system.hub_networks import (
    architecture_in,
    create_external,
    is_external,
    require_external_weights,
    weights_of,
)
from kd.system.messages import first_line
from kd.system.timm_layouts import NoRandomWeights, head_keys

# The weights of the packages that the thesis used: torchvision, and `pretrainedmodels` for SE nets.
ARCHITECTURES = {
    "vgg11": "vgg11.tv_in1k",
    "resnet18": "resnet18.tv_in1k",
    "resnet34": "resnet34.tv_in1k",
    "resnet50": "resnet50.tv_in1k",
    "seresnet50": "legacy_seresnet50.in1k",
    "seresnet101": "legacy_seresnet101.in1k",
}
# VGG's paper (arXiv:1409.1556) and torchvision use 0.5, but timm's default is 0. For the SE nets,
# timm's default is 0.2 already.
DROP_RATES = {"vgg11": 0.5}


class Outputs(NamedTuple):
    """The outputs of a network for a batch.

    logits    [B, K]
    features  outputs of some layers, each [B, C, H, W] or [B, ...]
    """

    logits: torch.Tensor
    features: tuple[torch.Tensor, ...] = ()


@dataclass
class Classifier:
    """A network with everything that is needed to compute logits from images in 0..1.

    name          the name that the user wrote
    architecture  timm's name: `timm.create_model(architecture, num_classes=len(classes))` has the
                  keys and shapes of `module.state_dict()`
    classes       their names, in the order of the logits
    module        the timm network, which expects normalised images
    mean, std     [1, 3, 1, 1], for the normalisation
    compiled      replaces `module` in training, see `compile`
    parallel      replaces `module` in training on several ranks, see `wrap_ddp`
    notes         how the weights of another program's file were read, each a sentence without its
                  full stop
    """

    name: str
    architecture: str
    classes: tuple[str, ...]
    module: nn.Module
    mean: torch.Tensor
    std: torch.Tensor
    compiled: Callable[[torch.Tensor], torch.Tensor] | None = None
    parallel: nn.Module | None = None
    notes: tuple[str, ...] = ()

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits [B, K] of images, float32 [B, 3, S, S] in 0..1.

        Grey images may be a single channel that is expanded to three without a copy.
        """
        # (images - mean) / std in one pass over memory, which also converts to channels_last order.
        ready = torch.empty(
            images.shape,
            dtype=images.dtype,
            device=images.device,
            memory_format=torch.channels_last,
        )
        torch.addcmul(-self.mean / self.std, images, 1 / self.std, out=ready)
        forward = self.module
        # Not `self.compiled or self.parallel`: the truth value of a compiled network is its length.
        in_training = self.parallel if self.compiled is None else self.compiled
        if in_training is not None and self.module.training:
            forward = in_training
        return forward(ready)

    def wrap_ddp(self, sync_bn: bool = False) -> None:
        """Wrap the network for training on several ranks; do nothing on a single rank.

        The backward pass averages gradients over the ranks, and all ranks use the main rank's
        buffers. With `sync_bn`, BatchNorm takes mean and variance over the images of all ranks.
        """
        if ranks.world_size() == 1:
            return
        if sync_bn:
            self.module = timm.layers.convert_sync_batchnorm(self.module)
        device = self.mean.device
        device_ids = [device.index] if device.type == "cuda" else None
        self.parallel = nn.parallel.DistributedDataParallel(self.module, device_ids=device_ids)

    def outputs(self, images: torch.Tensor, layers: tuple[str, ...] = ()) -> Outputs:
        """Return the logits and the outputs of the modules named in `layers`, channels first.

        Raises Problem if the network does not have such a module, if a module does not return a
        tensor, or if a later module overwrites its output.
        """
        outputs = {}
        versions = {}
        modules = [self._module(name) for name in layers]  # may raise, so before any hook is added
        hooks = []
        for name, module in zip(layers, modules):
            hooks.append(module.register_forward_hook(_keeper(name, outputs, versions)))
        try:
            logits = self(images)
        finally:
            for hook in hooks:
                hook.remove()
        self._check_features(layers, outputs, versions)
        return Outputs(logits, tuple(self.channels_first(outputs[name]) for name in layers))

    def _check_features(self, layers: tuple[str, ...], outputs: dict, versions: dict) -> None:
        """Raise Problem if an output is not a tensor, or was overwritten by a later module."""
        for name in layers:
            if not isinstance(outputs.get(name), torch.Tensor):
                raise Problem(
                    f"Layer '{name}' of {self.name} does not return a feature map. Choose another"
                    " module with --layers."
                )
            if outputs[name]._version != versions[name]:
                raise Problem(
                    f"Layer '{name}' of {self.name} cannot be used: the module after it overwrites"
                    " its output. Choose that module with --layers."
                )

    def channels_first(self, features: torch.Tensor) -> torch.Tensor:
        # timm uses this attribute to mark networks with channels last, such as Swin.
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
            cure = "Set --layers to names of network.named_modules()."
            if near:
                cure = f"Did you mean {' or '.join(near)}?"
            raise Problem(
                f"Layer '{name}' of {self.name} does not exist: no module has that name. {cure}"
            ) from None

    def stages(self) -> tuple[str, ...]:
        """Return the names of the last four stages in timm, or of all stages if there are fewer.

        Raises Problem if timm does not name the stages of the network.
        """
        named = [stage["module"] for stage in getattr(self.module, "feature_info", ())]
        if not named:
            raise Problem(f"Network '{self.name}' has no named stages in timm. Set --layers.")
        return tuple(named[-4:])

    def compile(self) -> None:
        """Compile the network for training, once for each batch size.

        It uses CUDA graphs, because small batches wait for the launches of kernels. Evaluation is
        not compiled: the last batch of every split would need a compilation of its own.
        """
        module = self.module if self.parallel is None else self.parallel
        self.compiled = torch.compile(module, mode="reduce-overhead", dynamic=False)

    def to(self, device: torch.device) -> "Classifier":
        """Move to a device, with weights in channels_last order, and return the classifier."""
        self.module = self.module.to(device, memory_format=torch.channels_last)
        if device.type == "cpu":
            adapt_to_cpu(self.module)
        self.mean = self.mean.to(device)
        self.std = self.std.to(device)
        return self


def _keeper(name: str, outputs: dict, versions: dict):
    """Return a forward hook that stores a module's output and the version counter of that tensor.

    The counter increases with each in-place change, which shows whether the output was overwritten.
    """

    def hook(module, inputs, output):
        outputs[name] = output
        versions[name] = getattr(output, "_version", 0)

    return hook


def architecture_of(name: str) -> str:
    """Return timm's name for a name of the thesis, of timm, or of an external network.

    Raises Problem, with the nearest names, if the network or its weights are unknown.
    """
    if is_external(name):
        return architecture_in(name)
    architecture = ARCHITECTURES.get(name, name)
    body, _, weights = architecture.partition(".")
    if not timm.is_model(body):
        near = difflib.get_close_matches(name, ARCHITECTURES, n=1)
        near += difflib.get_close_matches(name, set(timm.list_models()) - set(near), n=2)
        cure = f"Did you mean {' or '.join(near)}?" if near else "See timm.list_models()."
        words = re.split(r"[,\s]+", name)
        if len(words) > 1:
            cure = f"Separate names with spaces, without commas or quotes: {' '.join(words)}."
        elif "/" in name:
            cure = (
                "Networks of the Hugging Face hub are hf-hub:OWNER/NAME, folders local-dir:FOLDER."
            )
        raise Problem(
            f"Network '{name}' is unknown: it is neither a network of the thesis"
            f" ({', '.join(ARCHITECTURES)}) nor of timm. {cure}"
        )
    if weights and weights not in _weights_of(body):
        raise Problem(
            f"Network '{name}' is unknown: timm has {body}, but no weights '{weights}' for it. Its"
            f" weights are: {', '.join(_weights_of(body)) or 'none'}."
        )
    return architecture


def _weights_of(body: str) -> list[str]:
    """Return the names of timm's pretrained weights for a network."""
    return [name.partition(".")[2] for name in timm.list_pretrained(f"{body}.*")]


def build(
    name: str,
    classes: tuple[str, ...],
    *,
    pretrained: bool = False,
    weights: str | None = None,
    drop_rate: float | None = None,
    seed: int = 0,
    empty: bool = False,
) -> Classifier:
    """Build a network for `classes`.

    pretrained  start from timm's pretrained weights, with a random classifier
    weights     file to start from, instead of `pretrained`; see `load_body`
    drop_rate   dropout before the classifier; None for the network's default
    seed        of the random weights: all, or those of the classifier if other weights are loaded
    empty       draw no random weights, because the caller loads a complete state

    Raises Problem if the name is unknown or the weights are out of reach, (4) if a file is refused.
    """
    architecture = architecture_of(name)
    options = {"num_classes": len(classes)}
    if drop_rate is None:
        drop_rate = DROP_RATES.get(name)
    if drop_rate is not None:
        options["drop_rate"] = drop_rate
    torch.manual_seed(seed)
    external = is_external(name)
    if pretrained and weights is None and external:
        weights = weights_of(name)
    if pretrained and weights is None:
        module = create_pretrained(name, architecture, options)
    else:
        with NoRandomWeights() if empty else contextlib.nullcontext():
            module = (
                create_external(name, options)
                if external
                else timm.create_model(architecture, **options)
            )
    notes = () if weights is None else load_body(module, Path(weights), architecture)
    config = module.pretrained_cfg
    mean = torch.tensor(config["mean"]).view(1, 3, 1, 1)
    std = torch.tensor(config["std"]).view(1, 3, 1, 1)
    return Classifier(name, architecture, tuple(classes), module, mean, std, notes=notes)


def require_weights(name: str) -> None:
    """Raise Problem, within seconds, if the pretrained weights of a network are out of reach."""
    if is_external(name):
        require_external_weights(name)
        return
    require_pretrained(name, architecture_of(name))


@contextlib.contextmanager
def refuse_batches(network: Classifier, images: torch.Tensor):
    """Return a context manager that turns an error of a forward pass for `images` into Problem.

    Running out of memory is not such an error: its cure is another one.
    """
    try:
        yield
    except (RuntimeError, ValueError, AssertionError) as error:
        if is_out_of_memory(error):
            raise
        why = first_line(error)
        raise Problem(
            f"Network '{network.name}' cannot be trained with batch size {len(images)} and image"
            f" size {images.shape[-1]} ({why}). Use another --image-size or a larger --batch-size."
        ) from None


def try_batch(
    network: Classifier, images: torch.Tensor, precision: Precision, layers: tuple[str, ...] = ()
) -> Outputs:
    """Return a network's outputs in training mode for images [B, 3, S, S], with float32 logits.

    Its buffers are restored afterwards. Raises Problem if it cannot be trained on such batches.
    """
    buffers = [(buffer, buffer.clone()) for buffer in network.module.buffers()]
    network.module.train()
    with refuse_batches(network, images), torch.no_grad(), precision.autocast():
        logits, features = network.outputs(images, layers)
    for buffer, value in buffers:
        buffer.copy_(value)
    if tuple(logits.shape) != (len(images), len(network.classes)):
        raise Problem(
            f"Network '{network.name}' is not a classifier: its output for {len(images)} images and"
            f" {len(network.classes)} classes has shape {tuple(logits.shape)}. Use another network."
        )
    return Outputs(logits.float(), features)


def parameters(module: nn.Module) -> int:
    """Return the number of trainable parameters."""
    return sum(value.numel() for value in module.parameters())


def state_on_cpu(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return a copy of all weights and buffers on the CPU, which training does not change."""
    return {key: value.detach().to("cpu", copy=True) for key, value in module.state_dict().items()}


def load_state(
    module: nn.Module, state: dict[str, torch.Tensor], path: Path, architecture: str
) -> None:
    """Load a complete state. Raises Problem (4), with the differences, if it does not fit."""
    differences = weight_files.differences(module, state)
    if differences:
        raise Problem(
            f"Weights '{path}' do not fit {architecture} ({'; '.join(differences)[:400]}). Choose"
            " the network that they belong to.",
            BAD_CHECKPOINT,
        )
    module.load_state_dict(state, strict=True)


def load_body(module: nn.Module, path: Path, architecture: str) -> tuple[str, ...]:
    """Load a file of weights, except for a classifier of another number of classes.

    Returns notes on what was taken from the file, see `weights.fitted`. Raises Problem (4) if the
    file is missing or damaged, or if anything else does not fit.
    """
    content = weight_files.read(path)
    state, notes = weight_files.fitted(module, content, path, architecture)
    own = module.state_dict()
    for key in head_keys(module):
        if state[key].shape != own[key].shape:
            state[key] = own[key]
    load_state(module, state, path, architecture)
    return weight_files.in_words(path, notes)
