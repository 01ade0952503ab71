"""timm's pretrained weights: downloaded, or refused within seconds if that is impossible."""

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
from kd.system.messages import first_line

CONNECT_SECONDS = 4
CURE = "Use --weights FILE or --no-pretrained. For a teacher, set --weights in train_teacher.py."
HUB_FILES = ("model.safetensors", "pytorch_model.bin")


@functools.cache
def require_pretrained(name: str, architecture: str) -> None:
    """Raise Problem, within seconds, if the pretrained weights of a network are not available.

    They are available if they are on this disk or at an address that answers.
    """
    config = timm.get_pretrained_cfg(architecture)
    if config is None or not (config.hf_hub_id or config.url):
        raise Problem(f"Network '{name}' has no pretrained weights in timm. {CURE}")
    address = _unavailable(config)
    if address:
        raise Problem(f"Weights of '{name}' cannot be downloaded from {address}. {CURE}")


def create_pretrained(name: str, architecture: str, options: dict) -> nn.Module:
    """Return timm's network with its pretrained weights; `name` is what the user calls it.

    Raises Problem if the weights are not available.
    """
    require_pretrained(name, architecture)
    quiet_hub()
    try:
        with offline(_in_hub_cache(timm.get_pretrained_cfg(architecture))):
            return timm.create_model(architecture, pretrained=True, **options)
    except (OSError, RuntimeError) as error:
        raise Problem(
            f"Weights of '{name}' cannot be downloaded ({first_line(error)}). {CURE}"
        ) from None


def quiet_hub() -> None:
    """Keep the hub's client from logging each of its retries."""
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


def _unavailable(config) -> str:
    """Return the address of pretrained weights that are not available, otherwise an empty string.

    They are not available if they are not on this disk and the address does not answer in time.
    """
    if _in_hub_cache(config):
        return ""
    if config.hf_hub_id:
        address = huggingface_hub.hf_hub_url(config.hf_hub_id, HUB_FILES[0])
    else:
        address = config.url
        file = Path(torch.hub.get_dir()) / "checkpoints" / address.rpartition("/")[2]
        if file.is_file():
            return ""
    return "" if answers_in_time(address) else address


def _in_hub_cache(config) -> bool:
    if not config.hf_hub_id:
        return False
    for file in HUB_FILES:
        if isinstance(huggingface_hub.try_to_load_from_cache(config.hf_hub_id, file), str):
            return True
    return False


@contextlib.contextmanager
def offline(cached: bool):
    """Keep the hub's client from using the network for a file that is in its cache."""
    before = huggingface_hub.constants.HF_HUB_OFFLINE
    huggingface_hub.constants.HF_HUB_OFFLINE = cached or before
    try:
        yield
    finally:
        huggingface_hub.constants.HF_HUB_OFFLINE = before


def answers_in_time(address: str) -> bool:
    """Return whether an address answers within CONNECT_SECONDS.

    The hub's own client retries for 50 seconds before it gives up. The request is sent in a thread,
    because the lookup of a host name has no timeout of its own.
    """
    answers = []

    def ask():
        answers.append(_answers(address))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(CONNECT_SECONDS)
    return answers == [True]


def _answers(address: str) -> bool:
    request = urllib.request.Request(address, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=CONNECT_SECONDS):
            return True
    except urllib.error.HTTPError as error:
        return error.code < 500 and error.code not in (404, 407)
    except (OSError, ValueError):
        return False
