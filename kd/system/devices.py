"""The device that computes, its precision, and what decides the last bits of its results."""

import contextlib
from dataclasses import dataclass

import torch

from kd.system import ranks
from kd.system.errors import Problem

DEVICES = ("cpu", "cuda", "mps", "xpu")


def pick_device(name: str) -> torch.device:
    """The device of a name, or the best one for `auto`; of several GPUs each rank takes its own.

    Raises Problem where the device cannot be used.
    """
    if name == "auto":
        name = _best_device()
    if name == "cuda" and ranks.world_size() > 1:
        name = f"cuda:{ranks.local_rank()}"
    device = _usable_device(name)
    _check_one_for_each_rank(name, device)
    if device.index is not None and device.type in ("cuda", "xpu"):
        # Seeds and page-locked memory belong to the current device.
        torch.get_device_module(device).set_device(device)
    if device.type == "cuda":
        # Evaluation promises float32, and TF32 keeps only ten bits of the mantissa.
        torch.backends.cudnn.allow_tf32 = False
    return device


def _best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    if torch.backends.mps.is_available() and ranks.world_size() == 1:
        return "mps"
    return "cpu"


def _usable_device(name: str) -> torch.device:
    """The device of that name, after a first allocation on it."""
    try:
        device = torch.device(name)
        if device.type not in DEVICES:
            raise RuntimeError(f"not one of {', '.join(DEVICES)}")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        why = str(error).splitlines()[0]
        raise Problem(
            f"device '{name}' in --device: cannot be used here ({why}); give --device cpu or auto"
        ) from None
    return device


def _check_one_for_each_rank(name: str, device: torch.device) -> None:
    """Refuse a single GPU, or a kind of device that only one rank can use, for several ranks."""
    if ranks.world_size() == 1:
        return
    if device.type not in ("cpu", "cuda") or device.index not in (None, ranks.local_rank()):
        raise Problem(
            f"device '{name}' in --device: one for {ranks.world_size()} ranks; give cpu, or cuda:"
            " each takes its own"
        )


@dataclass(frozen=True)
class Precision:
    """The precision of training: `name` is bf16, fp16 or off.

    `scaled` says whether the loss must be scaled, so that small gradients survive.
    """

    device: str
    name: str

    def autocast(self):
        """The context for a forward pass; in float32 it does nothing."""
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.name)
        if dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device, dtype)

    @property
    def scaled(self) -> bool:
        return self.name == "fp16"

    @property
    def words(self) -> str:
        return "float32" if self.name == "off" else self.name


def pick_precision(amp: str, device: torch.device) -> Precision:
    """The precision of a name, or the best one for `auto`.

    That is bf16 where the hardware computes it; otherwise fp16 on CUDA and float32 elsewhere.
    """
    if amp == "auto":
        amp = _best_precision(device)
    return Precision(device.type, amp)


def _best_precision(device: torch.device) -> str:
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    # Older versions of torch do not report what the processor computes in hardware: then float32.
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    native = device.type == "cpu" and capabilities.get("avx512_bf16", False)
    return "bf16" if native else "off"


def kind_of(device: torch.device) -> str:
    """What decides the last bits of a result on a device, as a text that can be compared.

    That is torch's version, the processor, and on a CPU the number of threads.
    """
    if device.type == "cpu":
        capability = torch.backends.cpu.get_cpu_capability()
        return f"{torch.__version__} {capability} {torch.get_num_threads()}"
    if device.type == "cuda":
        return f"{torch.__version__} {torch.cuda.get_device_name(device)}"
    return f"{torch.__version__} {device.type}"


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a tensor to the device, without waiting for the copy where that is safe.

    CUDA copies small or page-locked memory at once.
    """
    return tensor.to(device, non_blocking=device.type == "cuda")
