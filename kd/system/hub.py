"""timm's pretrained weights: within reach, or refused within seconds."""

import contextlib
import functools
import logging
import threading
import urllib.error
import urllib.request
from pathlib import Path

import huggingface_hub
import timm
import torch
from torch import nn

from kd.system.errors import Problem

CONNECT_SECONDS = 4
CURE = "give --weights FILE or --no-pretrained (a teacher takes its file in train_teacher.py)"
HUB_FILES = ("model.safetensors", "pytorch_model.bin")


@functools.cache
def require_pretrained(name: str, architecture: str) -> None:
    """Raise Problem, within seconds, where a network's pretrained weights are neither on this disk
    nor within reach.
    """
    config = timm.get_pretrained_cfg(architecture)
    if config is None or not (config.hf_hub_id or config.url):
        raise Problem(f"network '{name}': timm has no weights for it; {CURE}")
    address = _out_of_reach(config)
    if address:
        raise Problem(f"weights of '{name}': cannot download {address}; {CURE}")


def create_pretrained(name: str, architecture: str, options: dict) -> nn.Module:
    """timm's network with its weights; `name` is what the user calls it.

    Raises Problem where they are out of reach.
    """
    require_pretrained(name, architecture)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it logs each of its retries
    try:
        with _offline(_in_hub_cache(timm.get_pretrained_cfg(architecture))):
            return timm.create_model(architecture, pretrained=True, **options)
    except (OSError, RuntimeError) as error:
        why = str(error).splitlines()[0][:160]
        raise Problem(f"weights of '{name}': cannot download them ({why}); {CURE}") from None


def _out_of_reach(config) -> str:
    """The address of pretrained weights that are neither on this disk nor answered for in time;
    empty where all is well.

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
        isinstance(huggingface_hub.try_to_load_from_cache(config.hf_hub_id, file), str)
        for file in HUB_FILES
    )


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
        with urllib.request.urlopen(
            urllib.request.Request(address, method="HEAD"), timeout=CONNECT_SECONDS
        ):
            return True
    except urllib.error.HTTPError as error:
        return error.code < 500 and error.code not in (404, 407)
    except (OSError, ValueError):
        return False
