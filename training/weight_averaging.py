"""Training of one network by several processes that average their weights.

    torchrun --standalone --nproc-per-node 2 -m -- training.emoji.train ARGUMENTS

Each process trains on its own batches. All processes regularly replace their weights by the mean over the processes.
On a CPU, one process per core trains on nearly twice as many images as one process with two threads, because the
threads of small operations wait for each other.
"""

import atexit
import os

import torch
import torch.distributed.nn  # imported before a process group exists: its default arguments would keep a reference
from torch import Tensor, distributed


class WeightAveraging:
    """Averages tensors over the processes that torchrun started.

    A process that was started without torchrun is the only one, and nothing is exchanged.

    Attributes:
        rank: Index of this process, from 0.
        world_size: Number of processes.
    """

    def __init__(self) -> None:
        self.rank, self.world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        if self.world_size > 1 and not distributed.is_initialized():
            distributed.init_process_group("gloo")
            atexit.register(distributed.destroy_process_group)  # its threads can abort a process that exits

    def average_(self, tensors: list[Tensor]) -> None:
        """Replace each tensor, in place, by its mean over the processes. The result is bitwise equal in all of them.

        Args:
            tensors: Tensors with the same shapes in every process.
        """
        if self.world_size == 1:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors]) / self.world_size
        distributed.all_reduce(flat)
        for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(mean.view_as(tensor))
