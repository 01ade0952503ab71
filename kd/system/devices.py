"""The device of a run, its precision, and a fingerprint of what determines its rounding."""

import contextlib
import warnings
from dataclasses import dataclass

import torch

from kd.system import cpu_layers, ranks
from kd.system.errors import Problem
from kd.system.messages import first_line

DEVICES = ("cpu", "cuda", "mps", "xpu")
FLOAT32 = "off"  # the precision without autocast, as --amp names it


def pick_device(name: str) -> torch.device:
    """Return the device with the given name, or the best one for `auto`.

    With several GPUs, each rank uses its own. Raises Problem if the device cannot be used.
    """
    if name == "auto":
        name = _best_device()
    if name == "cuda" and ranks.world_size() > 1:
        name = f"cuda:{ranks.local_rank()}"
    device = _usable_device(name)
    _check_one_for_each_rank(name, device)
    if device.index is not None and device.type in ("cuda", "xpu"):
        # Seeds and page-locked memory apply to the current device.
        torch.get_device_module(device).set_device(device)
    if device.type == "cuda":
        _turn_off_tf32()
    return device


def _turn_off_tf32() -> None:
    """Keep float32 exact: TF32 has only ten bits of the mantissa, too few for evaluation.

    torch uses it in cuDNN by default; an environment variable of NVIDIA's containers also turns it
    on for matrix products.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some versions of torch recommend another interface
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False


def _best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    if torch.backends.mps.is_available() and ranks.world_size() == 1:
        return "mps"
    return "cpu"


def _usable_device(name: str) -> torch.device:
    """Return the device with the given name after a trial allocation on it."""
    try:
        device = torch.device(name)
        if device.type not in DEVICES:
            raise RuntimeError(f"not one of {', '.join(DEVICES)}")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise Problem(
            f"--device '{name}' cannot be used on this machine ({first_line(error)}). Use --device"
            " cpu or --device auto."
        ) from None
    return device


def _check_one_for_each_rank(name: str, device: torch.device) -> None:
    """Raise Problem if several ranks would have to share one device."""
    if ranks.world_size() == 1:
        return
    if device.type not in ("cpu", "cuda") or device.index not in (None, ranks.local_rank()):
        raise Problem(
            f"--device '{name}' cannot be shared by {ranks.world_size()} ranks. Use --device cpu,"
            " or --device cuda, where each rank uses a GPU of its own."
        )


@dataclass(frozen=True)
class Precision:
    """The precision of forward passes.

    name        bf16, fp16 or off
    in_float32  layers that are trained in float32 nevertheless, in words; "" for none
    scaled      whether the loss must be scaled, so that small gradients do not underflow
    """

    device: str
    name: str
    in_float32: str = ""

    def autocast(self):
        """Return the context manager for a forward pass; in float32 it does nothing."""
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.name)
        if dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device, dtype)

    @property
    def scaled(self) -> bool:
        return self.name == "fp16"

    @property
    def words(self) -> str:
        """The precision as it is printed and recorded."""
        if self.name == FLOAT32:
            return "float32"
        return f"{self.name}, {self.in_float32} in float32" if self.in_float32 else self.name


def pick_precision(amp: str, device: torch.device) -> Precision:
    """Return the precision of a forward pass with the given name, or the best one for `auto`.

    The best one is bf16 if the hardware supports it; otherwise fp16 on CUDA and float32 elsewhere.
    """
    if amp == "auto":
        amp = _best_precision(device)
    return Precision(device.type, amp)


def _best_precision(device: torch.device) -> str:
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    # Older versions of torch do not report the capabilities of the processor: float32 is used then.
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    native = device.type == "cpu" and capabilities.get("avx512_bf16", False)
    return "bf16" if native else FLOAT32


def kind_of(device: torch.device) -> str:
    """Return a string that identifies everything that affects rounding on a device.

    It contains the version of torch, the processor, and on a CPU also the number of threads and the
    version of the layers that are computed differently there.
    """
    if device.type == "cpu":
        capability = torch.backends.cpu.get_cpu_capability()
        return f"{torch.__version__} {capability} {torch.get_num_threads()} {cpu_layers.VERSION}"
    if device.type == "cuda":
        return f"{torch.__version__} {torch.cuda.get_device_name(device)}"
    return f"{torch.__version__} {device.type}"


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a tensor to the device, asynchronously where that is safe.

    On CUDA, copies of small tensors and of page-locked memory do not block the caller.
    """
    return tensor.to(device, non_blocking=device.type == "cuda")
