"""What the machine gives: device, precision, random streams, stop signals, the lock of a folder."""

import contextlib
import errno
import fcntl
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from kd import errors, ranks
from kd.errors import BUSY, CANNOT_WRITE, INTERRUPTED, TERMINATED, Problem, Stopped, printable

# tqdm's own lock has a semaphore that all forked children share: one that is killed while it prints would stop the others.
tqdm.set_lock(threading.RLock())
DEVICES = ("cpu", "cuda", "mps", "xpu")
# No space, quota used up, larger than the file system or the shell's limit allows.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def pick_device(name: str) -> torch.device:
    """`auto` or a device's name -> device; of several GPUs every rank takes its own. Raises Problem where there is none."""
    if name == "auto":
        alone = ranks.world() == 1
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() and alone else "cpu"
    if name == "cuda" and ranks.world() > 1:
        name = f"cuda:{ranks.local()}"
    try:
        device = torch.device(name)
        if device.type not in DEVICES:
            raise RuntimeError(f"not one of {', '.join(DEVICES)}")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        why = str(error).splitlines()[0]
        raise Problem(f"device '{name}' in --device: cannot be used here ({why}); give --device cpu or auto") from None
    if ranks.world() > 1 and (device.type not in ("cpu", "cuda") or device.index not in (None, ranks.local())):
        raise Problem(f"device '{name}' in --device: one for {ranks.world()} ranks; give cpu, or cuda: each takes its own")
    if device.index is not None and device.type in ("cuda", "xpu"):
        torch.get_device_module(device).set_device(device)  # seeds and page-locked memory belong to the current one
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
    """What decides the last bits of a result on a device: torch's version, the processor, on a CPU the number of threads."""
    if device.type == "cpu":
        return f"{torch.__version__} {torch.backends.cpu.get_cpu_capability()} {torch.get_num_threads()}"
    return f"{torch.__version__} {torch.cuda.get_device_name(device) if device.type == 'cuda' else device.type}"


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor on the device, without waiting for it where that is safe: CUDA copies small or page-locked memory at once."""
    return tensor.to(device, non_blocking=device.type == "cuda")


def random_stream(*key: int) -> np.random.Generator:
    """A counter-based generator that is a pure function of a few small numbers."""
    entropy = np.random.SeedSequence(key).generate_state(2, np.uint64)
    return np.random.Generator(np.random.Philox(key=entropy))


def seed_step(device: torch.device, seed: int, epoch: int, step: int) -> None:
    """Seed the generators of CPU and device for one step, so that dropout needs no saved state and resuming is exact.

    Each rank has a stream of its own: the same one would drop the same units for other images.
    """
    own = (ranks.rank(),) if ranks.rank() else ()
    number = int(random_stream(seed, 2, epoch, step, *own).integers(2**62))
    # Not torch.manual_seed: where CUDA is compiled in but absent, it formats a stack trace for later at every call.
    torch.default_generator.manual_seed(number)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(number)


class StopSignals:
    """Asks a run to stop where nothing is half done: on SIGTERM, SIGHUP or Ctrl-C, or once a time budget is used up.

    A second Ctrl-C ends the process at once, without tidying up: threads and libraries may hide a KeyboardInterrupt, or hang on
    it. (Called from other Python code, not by a script, it is a KeyboardInterrupt.) The budget runs from here on and is looked
    at by `look_at_clock` alone, after a step: a run that is started again and again always gets further.
    """

    def __init__(self, minutes: float | None = None):
        self.code, self._why = None, "stopped"
        self._minutes, self._begun = minutes, time.monotonic()

    def __enter__(self):
        numbers = [signal.SIGTERM, signal.SIGINT]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # ignored under nohup
            numbers.append(signal.SIGHUP)
        self._old = {number: signal.signal(number, self._ask) for number in numbers}
        return self

    def __exit__(self, *_):
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def look_at_clock(self) -> None:
        """Ask for a stop where the time budget is used up."""
        if self._minutes is not None and self.code is None and time.monotonic() - self._begun >= 60 * self._minutes:
            self.code, self._why = TERMINATED, f"stopped: --max-minutes {self._minutes:g} are over"

    def leave(self) -> None:
        """`leave_alone`, but of several ranks none leaves alone: all do after a step, by `leave_together`."""
        if ranks.world() == 1:
            self.leave_alone()

    def leave_alone(self) -> None:
        """Raise Stopped (130 or 143) if a stop was asked for; called where nothing is half done and no other rank waits."""
        if self.code is not None:
            raise self.stopped("")

    def leave_together(self, due: bool = False) -> bool:
        """Raise Stopped on all ranks if any was asked to stop; else whether something is `due` on any. Called by all at once."""
        code, due = ranks.agree([self.code or 0, int(due)])
        if code:
            self.code = code
            raise self.stopped("")
        return bool(due)

    def stopped(self, saved: str) -> Stopped:
        """The one message of a stop; `saved` says what is safe."""
        return Stopped(f"{self._why}{saved}; run the same command again to go on", self.code)

    def _ask(self, number, _frame):
        if number == signal.SIGINT and self.code == INTERRUPTED:
            if errors.in_script:
                with contextlib.suppress(OSError, RuntimeError):
                    print(f"error: {errors.STOPPED_AT_ONCE}", file=sys.stderr, flush=True)
                os._exit(INTERRUPTED)
            raise KeyboardInterrupt
        self.code = INTERRUPTED if number == signal.SIGINT else TERMINATED
        with contextlib.suppress(OSError, RuntimeError):  # the terminal may be gone, or printing just now
            print("stopping: saving first (Ctrl-C again stops at once)", file=sys.stderr, flush=True)


@contextlib.contextmanager
def lock(folder: Path):
    """Hold `folder` for this process alone. Raises Problem (75) where another holds it, (74) where none can.

    The kernel drops the lock with the process, however it ends.
    """
    make_folder(folder)
    try:
        holder = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise cannot_write(folder, error) from None
    try:
        try:
            fcntl.flock(holder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if not isinstance(error, BlockingIOError):  # a file system without locks
                raise cannot_write(folder, error) from None
            owner = os.pread(holder, 100, 0).decode("ascii", "replace").strip() or "another process"
            raise Problem(f"run folder '{folder}' in --out: {owner} is working in it; wait for it",
                          BUSY) from None
        with contextlib.suppress(OSError):  # a full disk: the name is a courtesy, the lock holds without it
            os.ftruncate(holder, 0)
            os.pwrite(holder, f"process {os.getpid()} on {os.uname().nodename}\n".encode(), 0)
        yield
    finally:
        os.close(holder)


@contextlib.contextmanager
def turn(folder: Path, leave=lambda: None):
    """Wait until no other process holds `folder` this way, and hold it. `leave` may end the waiting by an exception."""
    holder = os.open(folder / ".turn", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        while True:
            try:
                fcntl.flock(holder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                leave()
                time.sleep(0.05)
            except OSError:  # a file system without locks: done twice, and the same
                break
        yield
    finally:
        os.close(holder)


def make_folder(folder: Path) -> Path:
    """Create a folder with its parents; raises Problem (74) where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from None
    return folder


def why_not(error: OSError) -> str:
    """Why something could not be written, in the words that a user knows."""
    return "disk full" if error.errno in DISK_FULL else error.strerror or str(error)


def cannot_write(path: Path, error: OSError) -> Problem:
    """The one message for a place that cannot be written."""
    return Problem(f"'{path}': cannot be written ({why_not(error)}); free space or choose another folder with --out or "
                   "--cache-dir, then run the same command again", CANNOT_WRITE)


def say(text: str) -> None:
    """Plain lines for the user, above a progress bar if there is one, by the first rank. A reader that is gone ends nothing."""
    if not ranks.first():
        return
    with contextlib.suppress(OSError):
        tqdm.write("\n".join(map(printable, text.split("\n"))), file=sys.stdout)
        sys.stdout.flush()


def watched() -> bool:
    """Whether a person looks at the output: progress bars then, plain lines else."""
    return sys.stderr.isatty() and ranks.first()
