"""Networks: timm by name, the thesis's names as short forms, weights from the hub, our checkpoints or files."""

import contextlib
import difflib
import functools
import logging
import threading
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
import safetensors.torch
import timm
import torch
from torch import nn

from kd import checkpoint
from kd.errors import BAD_CHECKPOINT, Problem, first_ten

# The weights that the packages named by the thesis offered; its SE nets came from `pretrainedmodels`.
ARCHITECTURES = {"vgg11": "vgg11.tv_in1k", "resnet18": "resnet18.tv_in1k", "resnet34": "resnet34.tv_in1k",
                 "resnet50": "resnet50.tv_in1k", "seresnet50": "legacy_seresnet50.in1k",
                 "seresnet101": "legacy_seresnet101.in1k"}
# VGG's paper (1409.1556) and torchvision use 0.5; timm's default is 0. The SE nets' 0.2 is timm's own default.
DROP_RATES = {"vgg11": 0.5}
CONNECT_SECONDS = 4
HUB_FILES = ("model.safetensors", "pytorch_model.bin")


@dataclass
class Classifier:
    """A network with what it needs to be used: call it with images in 0..1, get logits.

    name          as the user wrote it
    architecture  timm's name; `timm.create_model(architecture, num_classes=len(classes))` fits `module.state_dict()`
    mean, std     [1, 3, 1, 1], of the images that `module` expects
    """

    name: str
    architecture: str
    classes: tuple[str, ...]
    module: nn.Module
    mean: torch.Tensor
    std: torch.Tensor

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """images [B, 3, S, S] in 0..1 -> logits [B, K]."""
        return self.module((images - self.mean) / self.std)

    def to(self, device: torch.device) -> "Classifier":
        """Move to a device, weights in channels_last order; returns itself."""
        self.module = self.module.to(device, memory_format=torch.channels_last)
        self.mean, self.std = self.mean.to(device), self.std.to(device)
        return self


def architecture_of(name: str) -> str:
    """timm's name for a name of the thesis or of timm. Raises Problem, with the nearest names, where there is none."""
    architecture = ARCHITECTURES.get(name, name)
    body, _, weights = architecture.partition(".")
    if timm.is_model(body) and weights and weights not in _weights_of(body):
        raise Problem(f"network '{name}': timm has {body} but no weights '{weights}' for it; it has "
                      f"{', '.join(_weights_of(body)) or 'none'}")
    if not timm.is_model(body):
        near = [*difflib.get_close_matches(name, ARCHITECTURES, n=1), *difflib.get_close_matches(name, timm.list_models(), n=2)]
        raise Problem(f"network '{name}': neither of the thesis ({', '.join(ARCHITECTURES)}) nor of timm; "
                      + (f"did you mean {' or '.join(near)}?" if near else "see timm.list_models()"))
    return architecture


def _weights_of(body: str) -> list[str]:
    return [name.partition(".")[2] for name in timm.list_pretrained(f"{body}.*")]


def build(name: str, classes: tuple[str, ...], *, pretrained: bool = False, weights: str | None = None,
          drop_rate: float | None = None, seed: int = 0) -> Classifier:
    """A network for `classes`. The seed fixes what is drawn at random: all of it, or with pretrained weights its head.

    weights  a file to start from; its classifier is replaced where it has other classes. Wins over `pretrained`.
    Raises Problem for an unknown name, weights out of reach and a file that does not fit.
    """
    architecture = architecture_of(name)
    options = {"num_classes": len(classes)}
    drop_rate = DROP_RATES.get(name) if drop_rate is None else drop_rate
    if drop_rate is not None:
        options["drop_rate"] = drop_rate
    torch.manual_seed(seed)
    if pretrained and weights is None:
        module = _pretrained(name, architecture, options)
    else:
        module = timm.create_model(architecture, **options)
    if weights is not None:
        _load_backbone(module, Path(weights), architecture)
    config = module.pretrained_cfg
    mean, std = (torch.tensor(config[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    return Classifier(name, architecture, tuple(classes), module, mean, std)


@functools.cache
def require_weights(name: str) -> None:
    """Raise Problem, within seconds, where a network's pretrained weights are neither on this disk nor within reach."""
    config = timm.get_pretrained_cfg(architecture_of(name))
    if config is None or not (config.hf_hub_id or config.url):
        raise Problem(f"network '{name}': timm has no weights for it; give --weights FILE or --no-pretrained (a teacher takes its file in train_teacher.py)")
    address = _weights_out_of_reach(config)
    if address:
        raise Problem(f"weights of '{name}': cannot download {address}; give --weights FILE or --no-pretrained (a teacher takes its file in train_teacher.py)")


def _pretrained(name: str, architecture: str, options: dict) -> nn.Module:
    """The network with timm's weights."""
    require_weights(name)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it logs each of its retries
    try:
        with _offline(_in_hub_cache(timm.get_pretrained_cfg(architecture))):
            return timm.create_model(architecture, pretrained=True, **options)
    except (OSError, RuntimeError) as error:
        why = str(error).splitlines()[0][:160]
        raise Problem(f"weights of '{name}': cannot download them ({why}); give --weights FILE or --no-pretrained (a teacher takes its file in train_teacher.py)") from None


def _weights_out_of_reach(config) -> str:
    """The address of pretrained weights that are neither on this disk nor answered for in time; empty where all is well.

    Left alone, the hub's client tries for 50 seconds before it says so.
    """
    if _in_hub_cache(config):
        return ""
    if config.hf_hub_id:
        address = huggingface_hub.hf_hub_url(config.hf_hub_id, HUB_FILES[0])
    else:
        address = config.url
        if (Path(torch.hub.get_dir()) / "checkpoints" / address.rpartition("/")[2]).is_file():
            return ""
    reached = []
    # In a thread, because looking up a host's name has no time-out of its own.
    thread = threading.Thread(target=lambda: reached.append(_answers(address)), daemon=True)
    thread.start()
    thread.join(CONNECT_SECONDS)
    return "" if reached == [True] else address


def _in_hub_cache(config) -> bool:
    return bool(config.hf_hub_id) and any(
        isinstance(huggingface_hub.try_to_load_from_cache(config.hf_hub_id, file), str) for file in HUB_FILES)


@contextlib.contextmanager
def _offline(yes: bool):
    """Keep the hub's client from asking the network about a file that lies in its cache."""
    before = huggingface_hub.constants.HF_HUB_OFFLINE
    huggingface_hub.constants.HF_HUB_OFFLINE = yes or before
    try:
        yield
    finally:
        huggingface_hub.constants.HF_HUB_OFFLINE = before


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=CONNECT_SECONDS):
            return True
    except urllib.error.HTTPError as error:
        return error.code < 500 and error.code not in (404, 407)
    except (OSError, ValueError):
        return False


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a model.pt of ours, a timm state_dict (.pt, .pth) or a .safetensors file. Raises Problem (4)."""
    if path.suffix == ".safetensors":
        if not path.is_file():
            raise Problem(f"weights '{path}': no such file; give another", BAD_CHECKPOINT)
        try:
            return safetensors.torch.load_file(path)
        except Exception as error:
            raise Problem(f"weights '{path}': damaged, or no safetensors file ({error}); give another", BAD_CHECKPOINT) from None
    content = checkpoint.load(path, "weights")
    state = content.get("state_dict", content)
    if not isinstance(state, dict) or not state or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise Problem(f"weights '{path}': not a state_dict (names to tensors); save model.state_dict()", BAD_CHECKPOINT)
    return state


def load_state(module: nn.Module, state: dict[str, torch.Tensor], path: Path, architecture: str) -> None:
    """Load all of a state or raise Problem (4) naming what differs. A `module.` prefix (DDP's) is refused by name."""
    own = module.state_dict()
    wrong = [f"{key}: file has {tuple(state[key].shape)}, network {tuple(own[key].shape)}"
             for key in own if key in state and own[key].shape != state[key].shape]
    missing, extra = [key for key in own if key not in state], [key for key in state if key not in own]
    if extra and all(key.startswith("module.") for key in state):
        raise Problem(f"weights '{path}': its names begin with 'module.' (saved from DistributedDataParallel); save "
                      "model.module.state_dict()", BAD_CHECKPOINT)
    if wrong or missing or extra:
        parts = [f"{word} {first_ten(keys[:10])}" for word, keys in
                 (("other shapes:", wrong), ("missing:", missing), ("unknown:", extra)) if keys]
        raise Problem(f"weights '{path}': do not fit {architecture} ({'; '.join(parts)[:400]}); name the network they "
                      "belong to", BAD_CHECKPOINT)
    module.load_state_dict(state, strict=True)


def _load_backbone(module: nn.Module, path: Path, architecture: str) -> None:
    """Start from a file; a classifier of another number of classes keeps its fresh weights."""
    state, own = read_state(path), module.state_dict()
    head = module.pretrained_cfg.get("classifier", "")
    for name in (head if isinstance(head, (tuple, list)) else (head,)):
        for key in (f"{name}.weight", f"{name}.bias"):
            if key in state and key in own and state[key].shape != own[key].shape:
                state[key] = own[key]
    load_state(module, state, path, architecture)


def try_batch(network: Classifier, images: torch.Tensor) -> torch.Tensor:
    """Logits [B, K] of a network in training mode for images [B, 3, S, S]; its buffers stay as they were.

    Raises Problem where it cannot be trained on batches like this one.
    """
    buffers = [(buffer, buffer.clone()) for buffer in network.module.buffers()]
    network.module.train()
    try:
        with torch.no_grad():
            logits = network(images)
    except (RuntimeError, ValueError, AssertionError) as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        raise Problem(f"network '{network.name}': cannot be trained on {len(images)} images of {images.shape[-1]} pixels "
                      f"({why}); give another --image-size or a larger --batch-size") from None
    for buffer, value in buffers:
        buffer.copy_(value)
    if tuple(logits.shape) != (len(images), len(network.classes)):
        raise Problem(f"network '{network.name}': gives {tuple(logits.shape)} for {len(images)} images of "
                      f"{len(network.classes)} classes; choose a classifier")
    return logits


def parameters(module: nn.Module) -> int:
    """Number of trainable values."""
    return sum(value.numel() for value in module.parameters())


def state_on_cpu(module: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of all weights and buffers, detached from the network that goes on training."""
    return {key: value.detach().to("cpu", copy=True) for key, value in module.state_dict().items()}
