"""Several processes as one run, as torchrun starts them: who this one is, what all share.

Alone, every function does nothing.
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
    """Join the processes that torchrun started, if it did.

    A rank that is gone ends the others. Raises Problem.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or dist.is_initialized():
        yield
        return
    # A rank that is gone is noticed by its connection; one that decodes for an hour while others
    # wait is not gone.
    dist.init_process_group(BACKENDS[torch.cuda.is_available()], timeout=datetime.timedelta(days=1))
    try:
        yield
    except (dist.DistError, RuntimeError) as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            raise Problem(
                f"rank {rank()} of {world_size()}: lost the others ({str(error).splitlines()[0][:120]});"
                " see their messages, then run the same command again to go on",
                1,
            ) from None
        raise
    finally:
        with contextlib.suppress(RuntimeError):
            dist.destroy_process_group()


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_main_rank() -> bool:
    """Whether this process writes files and speaks."""
    return rank() == 0


def local_rank() -> int:
    """The number of this process on its machine: which GPU it takes."""
    return int(os.environ.get("LOCAL_RANK", 0)) if dist.is_initialized() else 0


def barrier() -> None:
    """Until all are here."""
    if world_size() > 1:
        maximum([0])


def maximum(values: list[int]) -> list[int]:
    """The largest of each value over all ranks."""
    if world_size() == 1:
        return values
    found = torch.tensor(values, dtype=torch.int64)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return found.tolist()


def main_rank_says(answer: bool) -> bool:
    """The first rank's answer, on all: what a file system shows one rank it may not yet show
    another.
    """
    return bool(maximum([int(answer) if is_main_rank() else 0])[0])


def gather_words(word: str) -> list[str]:
    """Each rank's word, in their order."""
    words = [word] * world_size()
    if world_size() > 1:
        dist.all_gather_object(words, word)
    return words


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """The sum over all ranks, on the values' device."""
    if world_size() > 1:
        values = values.detach().clone()
        dist.all_reduce(values)
    return values


def keep_in_graph(values: torch.Tensor) -> torch.Tensor | float:
    """Nothing, with a gradient: of several ranks each waits for the gradients of all that a network
    gave.
    """
    return 0 * values.sum() if world_size() > 1 else 0.0


def part_of_batch(slots: np.ndarray, in_training: bool) -> tuple[np.ndarray, float]:
    """(this rank's part of a batch, what its mean counts for in the mean over ranks).

    In training BatchNorm needs two images: of a batch with fewer than two a rank the last ranks
    have none, and two that stand in for them count for nothing.
    """
    taking = max(1, min(world_size(), len(slots) // 2)) if in_training else world_size()
    if rank() >= taking:
        return slots[:2], 0.0
    own = slots[rank() :: taking]
    return own, world_size() * len(own) / len(slots)


def gather_rows(slots: torch.Tensor, rows: torch.Tensor | None, size: int) -> torch.Tensor:
    """All ranks' rows [n, K] at their slots int64 [n], as [size, K] on every rank. rows: None where
    this rank has none.

    Raises ValueError unless each of the slots 0 ... size - 1 came exactly once.
    """
    parts = [(slots, rows)]
    if world_size() > 1:
        parts = [None] * world_size()
        dist.all_gather_object(parts, (slots, rows))
    parts = [part for part in parts if part[1] is not None]
    places, values = (torch.cat(column) for column in zip(*parts))
    if not torch.equal(places.sort().values, torch.arange(size)):
        raise ValueError("slots that came twice or not at all")
    whole = torch.empty_like(values)
    whole[places] = values
    return whole


def broadcast_buffers(module: nn.Module) -> None:
    """Give every rank the first one's buffers: of BatchNorm each has seen images of its own."""
    if world_size() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, 0)


def average_gradients(module: nn.Module) -> None:
    """The mean over ranks of gradients that DistributedDataParallel does not know of."""
    if world_size() > 1:
        for value in module.parameters():
            if value.grad is not None:
                dist.all_reduce(value.grad)
                value.grad /= world_size()
