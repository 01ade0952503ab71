"""The device that computes, its precision, and what decides the last bits of its results."""

import contextlib
from dataclasses import dataclass

import torch

from kd.system import ranks
from kd.system.errors import Problem

DEVICES = ("cpu", "cuda", "mps", "xpu")


def pick_device(name: str) -> torch.device:
    """`auto` or a device's name -> device; of several GPUs every rank takes its own.

    Raises Problem where there is none.
    """
    if name == "auto":
        alone = ranks.world_size() == 1
        name = (
            "cuda"
            if torch.cuda.is_available()
            else "mps"
            if torch.backends.mps.is_available() and alone
            else "cpu"
        )
    if name == "cuda" and ranks.world_size() > 1:
        name = f"cuda:{ranks.local_rank()}"
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
    if ranks.world_size() > 1 and (
        device.type not in ("cpu", "cuda") or device.index not in (None, ranks.local_rank())
    ):
        raise Problem(
            f"device '{name}' in --device: one for {ranks.world_size()} ranks; give cpu, or cuda:"
            " each takes its own"
        )
    if device.index is not None and device.type in ("cuda", "xpu"):
        torch.get_device_module(device).set_device(
            device
        )  # seeds and page-locked memory belong to the current one
    if device.type == "cuda":
        # Evaluation is float32 by promise: TF32 keeps ten bits of the mantissa only.
        torch.backends.cudnn.allow_tf32 = False
    return device


@dataclass(frozen=True)
class Precision:
    """Of training: `name` is bf16, fp16 or off; `scaled` says that gradients need a loss scale."""

    device: str
    name: str

    def autocast(self):
        """The context for a forward pass; null in float32."""
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.name)
        return torch.autocast(self.device, dtype) if dtype else contextlib.nullcontext()

    @property
    def scaled(self) -> bool:
        return self.name == "fp16"

    @property
    def words(self) -> str:
        return "float32" if self.name == "off" else self.name


def pick_precision(amp: str, device: torch.device) -> Precision:
    """`auto` is bf16 where the hardware computes it, else fp16 on CUDA, else float32."""
    if amp == "auto":
        if device.type == "cuda":
            amp = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
        else:
            # Older torch cannot tell what the processor does in hardware: float32 then.
            capabilities = getattr(torch.cpu, "get_capabilities", dict)()
            native = device.type == "cpu" and capabilities.get("avx512_bf16", False)
            amp = "bf16" if native else "off"
    return Precision(device.type, amp)


def kind_of(device: torch.device) -> str:
    """What decides the last bits of a result on a device: torch's version, the processor, on a CPU
    the number of threads.
    """
    if device.type == "cpu":
        return (
            f"{torch.__version__} {torch.backends.cpu.get_cpu_capability()}"
            f" {torch.get_num_threads()}"
        )
    return (
        f"{torch.__version__}"
        f" {torch.cuda.get_device_name(device) if device.type == 'cuda' else device.type}"
    )


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor on the device, without waiting for it where that is safe:

    CUDA copies small or page-locked memory at once.
    """
    return tensor.to(device, non_blocking=device.type == "cuda")
