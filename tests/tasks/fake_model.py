"""A model without a network, for tests of tasks."""

from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class FakeModel:
    """What a task needs to know of a model, see `adhere.tasks.base.ModelInfo`."""

    multiple: int = 1
    native_size: tuple[int, int] = (64, 64)
    is_latent: bool = False
    execution_device: torch.device = field(default_factory=lambda: torch.device("cpu"))
