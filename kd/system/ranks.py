"""Several processes as one run, as torchrun starts them: who this one is, and what all share.

In a single process no function here does anything.
"""

import contextlib
import datetime
import os

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from kd.system.errors import Problem

BACKENDS = {True: "cpu:gloo,cuda:nccl", False: "gloo"}


@contextlib.contextmanager
def process_group():
    """Join the processes that torchrun started, if it started this one.

    A rank that is gone ends the others: they raise Problem.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or dist.is_initialized():
        yield
        return
    # A lost rank is noticed by its connection. One that decodes for an hour while others wait is
    # not lost, so the time-out is long.
    dist.init_process_group(BACKENDS[torch.cuda.is_available()], timeout=datetime.timedelta(days=1))
    try:
        yield
    except (dist.DistError, RuntimeError) as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            why = str(error).splitlines()[0][:120]
            raise Problem(
                f"rank {rank()} of {world_size()}: lost the others ({why});"
                " see their messages, then run the same command again to go on",
                1,
            ) from None
        raise
    finally:
        with contextlib.suppress(RuntimeError):
            dist.destroy_process_group()


def world_size() -> int:
    """Number of processes, 1 without torchrun."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_main_rank() -> bool:
    """Whether this is the process that writes files and prints messages."""
    return rank() == 0


def local_rank() -> int:
    """The number of this process on its machine, which is the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", 0)) if dist.is_initialized() else 0


def barrier() -> None:
    """Wait until all ranks have come here."""
    if world_size() > 1:
        maximum([0])


def maximum(values: list[int]) -> list[int]:
    """The maximum of each value over all ranks."""
    if world_size() == 1:
        return values
    found = torch.tensor(values, dtype=torch.int64)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return found.tolist()


def main_rank_says(answer: bool) -> bool:
    """The main rank's answer, on all ranks.

    A file system may already show one rank what it does not show another yet.
    """
    own = int(answer) if is_main_rank() else 0
    return bool(maximum([own])[0])


def gather_words(word: str) -> list[str]:
    """The words of all ranks, in the order of the ranks."""
    words = [word] * world_size()
    if world_size() > 1:
        dist.all_gather_object(words, word)
    return words


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """The sum of a tensor over all ranks, on the tensor's device."""
    if world_size() > 1:
        values = values.detach().clone()
        dist.all_reduce(values)
    return values


def keep_in_graph(values: torch.Tensor) -> torch.Tensor | float:
    """Zero, to be added to a loss, so that outputs the loss does not use get a gradient of zero.

    Several ranks wait for the gradient of everything that a network returned.
    """
    return 0 * values.sum() if world_size() > 1 else 0.0


def part_of_batch(slots: np.ndarray, in_training: bool) -> tuple[np.ndarray, float]:
    """(this rank's slots of a batch, the weight of their mean in the mean over ranks).

    In training, BatchNorm needs two images on each rank. Where a batch has fewer, the last ranks
    get none of them: two images stand in there, with a weight of 0.
    """
    taking = world_size()
    if in_training:
        taking = max(1, min(taking, len(slots) // 2))
    if rank() >= taking:
        return slots[:2], 0.0
    own = slots[rank() :: taking]
    return own, world_size() * len(own) / len(slots)


def gather_rows(slots: torch.Tensor, rows: torch.Tensor | None, size: int) -> torch.Tensor:
    """The rows of all ranks in the order of their slots: [size, K] on every rank.

    slots  int64 [n], of this rank's rows
    rows   [n, K]; None where this rank has none

    Raises ValueError unless each of the slots 0 ... size - 1 came exactly once.
    """
    pairs = [(slots, rows)]
    if world_size() > 1:
        pairs = [None] * world_size()
        dist.all_gather_object(pairs, (slots, rows))
    pairs = [pair for pair in pairs if pair[1] is not None]
    all_slots = torch.cat([pair[0] for pair in pairs])
    all_rows = torch.cat([pair[1] for pair in pairs])
    if not torch.equal(all_slots.sort().values, torch.arange(size)):
        raise ValueError("slots that came twice or not at all")
    ordered = torch.empty_like(all_rows)
    ordered[all_slots] = all_rows
    return ordered


def broadcast_buffers(module: nn.Module) -> None:
    """Copy the main rank's buffers to all: BatchNorm has seen other images on each rank."""
    if world_size() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, 0)


def average_gradients(module: nn.Module) -> None:
    """Average gradients over ranks, for a module that DistributedDataParallel does not know."""
    if world_size() > 1:
        for value in module.parameters():
            if value.grad is not None:
                dist.all_reduce(value.grad)
                value.grad /= world_size()
