"""Weights: timm's pretrained ones, within reach or told soon that they are not; those of a file, all or refused."""

import contextlib
import functools
import logging
import os
import threading
import urllib.error
import urllib.request
from pathlib import Path

import huggingface_hub
import safetensors.torch
import timm
import torch
from torch import nn

from kd import checkpoint
from kd.errors import BAD_CHECKPOINT, Problem, first_ten

CONNECT_SECONDS = 4
CURE = "give --weights FILE or --no-pretrained (a teacher takes its file in train_teacher.py)"
HUB_FILES = ("model.safetensors", "pytorch_model.bin")


@functools.cache
def require(name: str, architecture: str) -> None:
    """Raise Problem, within seconds, where a network's pretrained weights are neither on this disk nor within reach."""
    config = timm.get_pretrained_cfg(architecture)
    if config is None or not (config.hf_hub_id or config.url):
        raise Problem(f"network '{name}': timm has no weights for it; {CURE}")
    address = _out_of_reach(config)
    if address:
        raise Problem(f"weights of '{name}': cannot download {address}; {CURE}")


def create_pretrained(name: str, architecture: str, options: dict) -> nn.Module:
    """timm's network with its weights; `name` is what the user calls it. Raises Problem where they are out of reach."""
    require(name, architecture)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it logs each of its retries
    try:
        with _offline(_in_hub_cache(timm.get_pretrained_cfg(architecture))):
            return timm.create_model(architecture, pretrained=True, **options)
    except (OSError, RuntimeError) as error:
        why = str(error).splitlines()[0][:160]
        raise Problem(f"weights of '{name}': cannot download them ({why}); {CURE}") from None


def _out_of_reach(config) -> str:
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
        if not os.path.isfile(path):
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


def load_body(module: nn.Module, path: Path, architecture: str) -> None:
    """Start from a file; a classifier of another number of classes keeps its fresh weights."""
    state, own = read_state(path), module.state_dict()
    head = module.pretrained_cfg.get("classifier", "")
    for name in (head if isinstance(head, (tuple, list)) else (head,)):
        for key in (f"{name}.weight", f"{name}.bias"):
            if key in state and key in own and state[key].shape != own[key].shape:
                state[key] = own[key]
    load_state(module, state, path, architecture)
