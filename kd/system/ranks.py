"""Multiple processes (ranks) as one run, as started by torchrun.

In a single process these functions do nothing, or treat it as the only rank.
"""

import contextlib
import datetime
import os

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from kd.system.errors import Problem
from kd.system.messages import first_line

BACKENDS = {True: "cpu:gloo,cuda:nccl", False: "gloo"}


@contextlib.contextmanager
def process_group():
    """Join the process group of torchrun, if torchrun started this process.

    If a rank is lost, the others raise Problem (1).
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or dist.is_initialized():
        yield
        return
    # A lost rank is noticed by its closed connection. The timeout is long, because a rank that
    # decodes images for an hour while the others wait is not lost.
    dist.init_process_group(BACKENDS[torch.cuda.is_available()], timeout=datetime.timedelta(days=1))
    try:
        yield
    except RuntimeError as error:
        problem = lost_connection(error)
        if problem is None:
            raise
        raise problem from None
    finally:
        with contextlib.suppress(RuntimeError):
            dist.destroy_process_group()


def lost_connection(error: BaseException) -> Problem | None:
    """Return the problem (1) behind an error of torch if another rank is lost, otherwise None."""
    lost = isinstance(error, dist.DistError)
    if not lost and not (isinstance(error, RuntimeError) and "gloo" in str(error)):
        return None
    why = first_line(error, 120)
    return Problem(
        f"Rank {rank()} of {world_size()} lost the connection to the other ranks ({why})."
        " See their messages, then run the same command again to continue.",
        1,
    )


def world_size() -> int:
    """Return the number of processes: 1 without torchrun."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process, counted from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_main_rank() -> bool:
    """Return whether this is the process that writes files and prints messages."""
    return rank() == 0


def local_rank() -> int:
    """Return the number of this process on its machine, which is the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", 0)) if dist.is_initialized() else 0


def barrier() -> None:
    """Wait until all ranks have reached this call."""
    if world_size() > 1:
        maximum([0])


def maximum(values: list[int]) -> list[int]:
    """Return the maximum of each value over all ranks."""
    if world_size() == 1:
        return values
    found = torch.tensor(values, dtype=torch.int64)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return found.tolist()


def main_rank_says(answer: bool) -> bool:
    """Return the main rank's answer on all ranks.

    A shared file system may show a new file to one rank earlier than to another.
    """
    own = int(answer) if is_main_rank() else 0
    return bool(maximum([own])[0])


def gather_words(word: str) -> list[str]:
    """Return the strings of all ranks, in the order of the ranks."""
    words = [word] * world_size()
    if world_size() > 1:
        dist.all_gather_object(words, word)
    return words


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Return the sum of a tensor over all ranks, on the tensor's device."""
    if world_size() > 1:
        values = values.detach().clone()
        dist.all_reduce(values)
    return values


def keep_in_graph(values: torch.Tensor) -> torch.Tensor | float:
    """Return zero, to be added to a loss, so that unused outputs get a gradient of zero.

    With several ranks, DistributedDataParallel waits for the gradients of all outputs of a network.
    """
    return 0 * values.sum() if world_size() > 1 else 0.0


def part_of_batch(slots: np.ndarray, in_training: bool) -> tuple[np.ndarray, float]:
    """Return (this rank's slots of a batch, the weight of their mean in the mean over ranks).

    In training, BatchNorm needs two images on each rank. If a batch has fewer, the last ranks get
    no images of their own: they use the first two of the batch as placeholders, with weight 0.
    """
    taking = world_size()
    if in_training:
        taking = max(1, min(taking, len(slots) // 2))
    if rank() >= taking:
        return slots[:2], 0.0
    own = slots[rank() :: taking]
    return own, world_size() * len(own) / len(slots)


def gather_rows(slots: torch.Tensor, rows: torch.Tensor | None, size: int) -> torch.Tensor:
    """Return the rows of all ranks in the order of their slots: [size, K] on every rank.

    slots  int64 [n], the slots of this rank's rows
    rows   [n, K], or None if this rank has no rows

    Raises ValueError unless each of the slots 0 ... size - 1 occurs exactly once.
    """
    pairs = [(slots, rows)]
    if world_size() > 1:
        pairs = [None] * world_size()
        dist.all_gather_object(pairs, (slots, rows))
    pairs = [pair for pair in pairs if pair[1] is not None]
    all_slots = torch.cat([pair[0] for pair in pairs])
    all_rows = torch.cat([pair[1] for pair in pairs])
    if not torch.equal(all_slots.sort().values, torch.arange(size)):
        raise ValueError("some slots are repeated or missing")
    ordered = torch.empty_like(all_rows)
    ordered[all_slots] = all_rows
    return ordered


def broadcast_buffers(module: nn.Module) -> None:
    """Copy the main rank's buffers to all ranks.

    The running statistics of BatchNorm differ, because each rank sees other images.
    """
    if world_size() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, 0)


def average_gradients(module: nn.Module) -> None:
    """Average gradients over ranks, for a module outside DistributedDataParallel."""
    if world_size() > 1:
        for value in module.parameters():
            if value.grad is not None:
                dist.all_reduce(value.grad)
                value.grad /= world_size()
