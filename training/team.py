"""Several processes that train one network: each on pictures of its own, all with the mean of their weights.

    torchrun --standalone --nproc-per-node 2 -m -- training.emoji.train ARGUMENTS

Started without torchrun, a process is a team of one and nothing is exchanged. On a CPU one process a core learns from
nearly twice the pictures that two threads of one process do, whose small operations wait for each other.
"""

import atexit
import os

import torch
import torch.distributed.nn  # before there is a group: its default arguments would keep one that is destroyed
from torch import Tensor, distributed


class Team:
    """This process' place among those that torchrun started: `rank` from 0, `size`."""

    def __init__(self) -> None:
        self.rank, self.size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        if self.size > 1 and not distributed.is_initialized():
            distributed.init_process_group("gloo")
            atexit.register(distributed.destroy_process_group)  # a thread of it may abort an ending process

    def mean(self, values: list[Tensor]) -> None:
        """Replace each tensor by its mean over the team, the same bits for all."""
        if self.size == 1:
            return
        flat = torch.cat([value.flatten() for value in values]) / self.size
        distributed.all_reduce(flat)
        for value, mean in zip(values, flat.split([value.numel() for value in values]), strict=True):
            value.copy_(mean.view_as(value))
