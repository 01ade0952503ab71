"""Networks that are described outside timm: hf-hub:OWNER/NAME, and local-dir:FOLDER, as in timm."""

import functools
from pathlib import Path

import huggingface_hub
import timm
from huggingface_hub.errors import EntryNotFoundError
from timm.models import _hub
from torch import nn

from kd.system.errors import Problem
from kd.system.hub import HUB_FILES, answers_in_time, offline, quiet_hub
from kd.system.messages import first_line
from kd.system.timm_layouts import without_drawing

SOURCES = ("hf-hub", "hf_hub", "local-dir")
CONFIG = "config.json"
_PREFERRED = (*HUB_FILES, "pytorch_model.pth", "model.pth")
_SUFFIXES = (".safetensors", ".pth", ".pth.tar", ".bin")


def is_external(name: str) -> bool:
    """Return whether a network is named by its place, hf-hub:OWNER/NAME or local-dir:FOLDER."""
    source, colon, place = name.partition(":")
    return source.lower() in SOURCES and bool(colon)


@functools.cache
def architecture_in(name: str) -> str:
    """Return the architecture in the config.json of an external network.

    Raises Problem, within seconds, if there is none.
    """
    source, place = _parsed(name)
    try:
        if source == "local-dir":
            found = _hub.load_model_config_from_path(place)
        else:
            _require(name, place, (CONFIG,))
            with offline(_cached(place, (CONFIG,)) is not None):
                found = _hub.load_model_config_from_hf(place)
        architecture = found[1]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
        raise _unusable(name, error) from None
    if not isinstance(architecture, str) or not timm.is_model(architecture):
        raise Problem(
            f"Network '{name}' cannot be used: its {CONFIG} names the architecture"
            f" '{architecture}', which timm does not have. Use one of timm's networks."
        )
    return architecture


def create_external(name: str, options: dict) -> nn.Module:
    """Return an external network without its weights.

    Raises Problem if it is not exactly timm's architecture of that name, because model.pt can only
    be read as such.
    """
    architecture = architecture_in(name)
    source, place = _parsed(name)
    try:
        with offline(source != "local-dir" and _cached(place, (CONFIG,)) is not None):
            module = timm.create_model(name, **options)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, AssertionError) as error:
        raise _unusable(name, error) from None
    with without_drawing():
        plain = timm.create_model(architecture, **options)
    config = module.pretrained_cfg
    channels = [len(config[key]) for key in ("mean", "std")]
    shapes, expected = (
        {key: value.shape for key, value in one.state_dict().items()} for one in (module, plain)
    )
    if repr(module) != repr(plain) or shapes != expected or channels != [3, 3]:
        raise Problem(
            f"Network '{name}' cannot be used: its {CONFIG} describes another network than timm's"
            f" {architecture} for colour images. Download its weights, and use {architecture} with"
            " --weights FILE."
        )
    for key in ("classifier", "first_conv"):  # some configurations lack them
        config[key] = config.get(key) or plain.pretrained_cfg.get(key)
    return module


def require_external_weights(name: str) -> None:
    """Raise Problem, within seconds, if the weights of an external network are out of reach."""
    source, place = _parsed(name)
    if source == "local-dir":
        weights_of(name)
    else:
        _require(name, place, HUB_FILES)


def weights_of(name: str) -> Path:
    """Return the file of weights of an external network; it is downloaded if necessary."""
    source, place = _parsed(name)
    if source == "local-dir":
        return _file_in(name, Path(place))
    cached = _cached(place, HUB_FILES)
    if cached is not None:
        return cached
    _require(name, place, HUB_FILES)
    repository, _, revision = place.partition("@")
    quiet_hub()
    for file in HUB_FILES:
        try:
            return Path(
                huggingface_hub.hf_hub_download(repository, file, revision=revision or None)
            )
        except EntryNotFoundError:
            continue
        except (OSError, ValueError, RuntimeError) as error:
            raise _unusable(name, error) from None
    raise Problem(f"Network '{name}' has no file {' or '.join(HUB_FILES)}. Use --weights FILE.")


def _parsed(name: str) -> tuple[str, str]:
    """Return the source and the place. Raises Problem if the place is missing."""
    source, _, place = name.partition(":")
    if not place:
        raise Problem(f"Network '{name}' is incomplete. Use hf-hub:OWNER/NAME or local-dir:FOLDER.")
    return source.lower().replace("_", "-"), place


def _cached(place: str, files: tuple[str, ...]) -> Path | None:
    """Return the first of the files that is in the hub's cache on this disk, or None."""
    repository, _, revision = place.partition("@")
    for file in files:
        try:
            found = huggingface_hub.try_to_load_from_cache(
                repository, file, revision=revision or None
            )
        except ValueError:  # not the name of a repository; asking the hub says so
            return None
        if isinstance(found, str):
            return Path(found)
    return None


def _require(name: str, place: str, files: tuple[str, ...]) -> None:
    """Raise Problem if none of the files is in the cache or at an address that answers in time."""
    if _cached(place, files) is not None:
        return
    repository, _, revision = place.partition("@")
    addresses = [
        huggingface_hub.hf_hub_url(repository, file, revision=revision or None) for file in files
    ]
    if not any(answers_in_time(address) for address in addresses):
        raise Problem(
            f"Network '{name}' cannot be downloaded from {addresses[0]}. Check the name and the"
            " connection, or download it elsewhere and use local-dir:FOLDER."
        )


def _file_in(name: str, folder: Path) -> Path:
    """Return the file of weights in a folder, as timm chooses it."""
    for file in _PREFERRED:
        if (folder / file).is_file():
            return folder / file
    for suffix in _SUFFIXES:
        found = sorted(folder.glob(f"*{suffix}"))
        if found:
            return found[0]
    raise Problem(
        f"Network '{name}' has no file of weights in its folder (*{', *'.join(_SUFFIXES)}). Use"
        " --weights FILE or --no-pretrained."
    )


def _unusable(name: str, error: Exception) -> Problem:
    return Problem(
        f"Network '{name}' cannot be used ({type(error).__name__}: {first_line(error)}). Check the"
        f" name; a folder needs a {CONFIG} as timm writes it."
    )
