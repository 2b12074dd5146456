"""The base of tasks: requests that are checked when they are made, state constraints and turn samples into pictures."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from adhere.core.constraints import Constraint
from adhere.core.sampling import Sampler
from adhere.errors import AdhereError
from adhere.io._crops import Box
from adhere.io.images import Picture
from adhere.tasks._pixels import check_sampled_size, rgb_image, to_unit_range

ImageInput = str | Path | Image.Image | np.ndarray | Tensor | Picture


@runtime_checkable
class ModelInfo(Protocol):
    """The properties of a model that tasks need."""

    @property
    def multiple(self) -> int:
        """Heights and widths must be multiples of this, in pixels."""
        ...

    @property
    def native_size(self) -> tuple[int, int]:
        """(height, width) in pixels of the pictures the model was trained on."""
        ...

    @property
    def execution_device(self) -> torch.device:
        """The device of the states."""
        ...

    @property
    def is_latent(self) -> bool:
        """Whether the states are the latents of an autoencoder, and not pixels."""
        ...


@dataclass(frozen=True)
class Crop:
    """One sample that a task needs: a whole picture, or a part of a larger one.

    Attributes:
        size: (height, width) in pixels, multiples of the model's `multiple`.
        constraint: a constraint on pictures (B, 3, height, width) in [-1, 1].
        box: (rows, columns) of the part in the larger picture, None for a whole picture.
        sampler: the sampler that is used if the call names no solver; None is the default for the constraint.
    """

    size: tuple[int, int]
    constraint: Constraint
    box: Box | None = None
    sampler: Sampler | None = None


class Task(ABC):
    """Base of tasks. Bad input raises `AdhereError` in the constructor, before a model is loaded."""

    @abstractmethod
    def crops(self, model: ModelInfo, size: tuple[int, int] | None = None) -> list[Crop]:
        """Return the crops to sample, at least one. Crops are sampled separately.

        Args:
            model: the model that is going to be used.
            size: (height, width) in pixels instead of the task's own.

        Raises:
            AdhereError: if the task or the model cannot have this size.
        """

    def _plain_numbers(self, *names: str) -> None:
        """Convert attributes of a frozen task: numbers of NumPy become int and float, and lists become tuples."""
        for name in names:
            object.__setattr__(self, name, _plain(getattr(self, name)))

    def _refuse_size(self, size: tuple[int, int] | None) -> None:
        """Raise AdhereError if a size is given, for tasks whose size follows from their input."""
        if size is not None:
            raise AdhereError(f"{type(self).__name__} has the size of its input: leave out height and width")

    def written(self, samples: Float[Tensor, "B 3 H W"], crop: Crop) -> Float[Tensor, "B 3 H W"]:
        """Return the samples of a crop for the residual that is reported; by default, `samples` unchanged.

        A task that adapts its samples to the measurement before it writes them returns the adapted samples.
        """
        return samples

    def next_pass(self, model: ModelInfo, image: Image.Image) -> "Task | None":
        """Return the task that is sampled next, given the picture of this one; None (the default) if it is complete."""
        return None

    @abstractmethod
    def postprocess_float(self, samples: list[Tensor], crops: list[Crop]) -> Float[Tensor, "C H W"]:
        """Return the picture as float32 in [0, 1] on the CPU, C = 1 or 3, from one sample (3, H, W) per crop.

        Samples are in about [-1, 1]. Pixels are not rounded to integers.
        """

    @abstractmethod
    def postprocess(self, samples: list[Tensor], crops: list[Crop]) -> Image.Image:
        """Return the picture from one sample (3, H, W) per crop, in about [-1, 1]."""


def _plain(value: object) -> object:
    if isinstance(value, (list, tuple)):
        return tuple(_plain(one) for one in value)
    if isinstance(value, bool):
        return value
    if isinstance(value, Integral):
        return int(value)
    return float(value) if isinstance(value, Real) else value


class FullImageTask(Task):
    """Base of tasks whose sample is the whole picture, of the requested size (height, width)."""

    size: int | tuple[int, int] | None

    def __post_init__(self) -> None:
        self._plain_numbers("size")
        size = (self.size, self.size) if isinstance(self.size, int) else self.size
        is_pair = isinstance(size, (tuple, list)) and len(size) == 2 and all(isinstance(side, int) for side in size)
        if size is not None and not is_pair:
            raise AdhereError(f"size = {self.size!r}: give (height, width) in pixels, such as (512, 512)")
        if size is not None:
            check_sampled_size(size)
        object.__setattr__(self, "size", size)

    @abstractmethod
    def constraint_for(self, model: ModelInfo, size: tuple[int, int]) -> Constraint:
        """Return the constraint on pictures of (height, width), with tensors on the model's device."""

    def crops(self, model: ModelInfo, size: tuple[int, int] | None = None) -> list[Crop]:
        assert not isinstance(self.size, int)  # see __post_init__
        size = size or self.size or model.native_size
        if min(size) < 1 or any(side % model.multiple for side in size):
            height, width = (max(1, round(side / model.multiple)) * model.multiple for side in size)
            raise AdhereError(
                f"size {size[1]}x{size[0]} (width x height): this model needs multiples of {model.multiple}; "
                f"{width}x{height} is near"
            )
        check_sampled_size(size)
        return [Crop(size, self.constraint_for(model, size))]

    def postprocess_float(self, samples: list[Tensor], crops: list[Crop]) -> Float[Tensor, "3 H W"]:
        return to_unit_range(samples[0])

    def postprocess(self, samples: list[Tensor], crops: list[Crop]) -> Image.Image:
        return rgb_image(samples[0])
