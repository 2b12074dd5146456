"""Tasks: what a person asks for, as frozen requests. A task states its constraint and turns samples into a picture.

    Inpaint("photo.jpg", "mask.png")        repaint a part
    Upscale("small.png", 4)                 a large picture whose area means are the small one
    Satisfy(constraint, (512, 512))         any constraint on pictures, such as `Loss(fn)`
    Generate((512, 512))                    nothing asked: plain sampling

Pictures are files, PIL images or arrays. A task is checked when it is made, so bad input is refused before any model is
loaded. A newcomer adds a class with `windows` and `finish`.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from adhere.core.constraints import Constraint, Linear, Unconstrained
from adhere.core.operators import Downsample, Mask
from adhere.errors import AdhereError
from adhere.images import Picture, check_mask, keep_exactly, mask_from_alpha, pad_to_multiple, picture_from, read_mask
from adhere.windows import Box, windows_around

Readable = str | Path | Image.Image | np.ndarray | Picture


class Model(Protocol):
    """What a task must know of the model."""

    @property
    def multiple(self) -> int: ...

    @property
    def native_size(self) -> tuple[int, int]: ...

    @property
    def execution_device(self) -> torch.device: ...


@dataclass(frozen=True)
class Window:
    """A canvas to sample: (height, width) in pixels, multiples of the model's, and what is asked of the picture on it,
    a tensor (B, 3, height, width) in [-1, 1]."""

    size: tuple[int, int]
    constraint: Constraint


class Task(Protocol):
    """A request, checked already."""

    def windows(self, model: Model) -> list[Window]:
        """What to sample: at least one window, sampled apart."""
        ...

    def finish(self, samples: list[Tensor]) -> Image.Image:
        """The picture, from one sample (3, H, W) in about [-1, 1] for each window."""
        ...


@dataclass(frozen=True, eq=False)
class Inpaint:
    """Repaint the white part of the mask, keep the rest bit for bit.

    image: a path, PIL image, uint8/uint16 array (H, W[, C]) or Picture. mask: the same size, white (or True) = repaint,
    or None when the picture's alpha channel says it (transparent = repaint). The network sees the holes and `context`
    pixels around each, not the whole of a large photograph. Raises AdhereError on anything that cannot be repaired.
    """

    image: Readable = field(repr=False)
    mask: str | Path | Image.Image | np.ndarray | Tensor | None = field(default=None, repr=False)
    context: int = 96
    picture: Picture = field(init=False, repr=False)
    repaint: Bool[np.ndarray, "h w"] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.context < 1:  # at least one known pixel must be seen
            raise AdhereError(f"context = {self.context}: at least 1 pixel around the hole is needed")
        picture = picture_from(self.image)
        if self.mask is None:
            repaint = mask_from_alpha(picture)
        elif isinstance(self.mask, str | Path):
            repaint = read_mask(self.mask, picture.size)
        else:
            repaint = check_mask(self.mask, picture.size)
        object.__setattr__(self, "picture", picture)
        object.__setattr__(self, "repaint", repaint)

    def _boxes(self) -> list[Box]:
        return windows_around(self.repaint, self.context)

    def windows(self, model: Model) -> list[Window]:
        """y = known * x0 on each window, padded by reflection to the model's multiple."""
        found = []
        for rows, columns in self._boxes():
            known = torch.from_numpy(~self.repaint[rows, columns])[None, None].float()  # (1, 1, H, W)
            x, _ = pad_to_multiple(self.picture.tensor()[..., rows, columns].to(model.execution_device), model.multiple)
            known, _ = pad_to_multiple(known.to(model.execution_device), model.multiple)
            found.append(Window(_size(x), Linear(Mask(known), known * x)))
        return found

    def finish(self, samples: list[Tensor]) -> Image.Image:
        """The repaired picture, of the input's size and kind."""
        result = self.picture.tensor()[0].clone()
        for (rows, columns), x0 in zip(self._boxes(), samples, strict=True):
            height, width = result[:, rows, columns].shape[-2:]
            result[:, rows, columns] = x0[:, :height, :width].clamp(-1, 1).to("cpu", torch.float32)
        return keep_exactly(self.picture, result, self.repaint, opaque=self.mask is None)


@dataclass(frozen=True, eq=False)
class Upscale:
    """A picture `factor` times as large in both directions, whose means over factor x factor pixels are the input.

    noise: how much the input may be off, a standard deviation in [-1, 1] units. Gray stays gray; transparency is
    enlarged as it is. Raises AdhereError for a factor below 2.
    """

    image: Readable = field(repr=False)
    factor: int = 4
    noise: float = 0.0
    picture: Picture = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.factor < 2:
            raise AdhereError(f"factor = {self.factor}: a whole number of at least 2; 4 and 8 are usual")
        object.__setattr__(self, "picture", picture_from(self.image))

    def windows(self, model: Model) -> list[Window]:
        """y = A x0 + noise with A the area means, y padded by reflection so that x0 fits the model."""
        y, _ = pad_to_multiple(
            self.picture.tensor().to(model.execution_device), model.multiple // math.gcd(model.multiple, self.factor)
        )
        height, width = _size(y)
        constraint = Linear(Downsample(self.factor), y, self.noise)
        return [Window((height * self.factor, width * self.factor), constraint)]

    def finish(self, samples: list[Tensor]) -> Image.Image:
        """The large picture: factor times the input's size, 8 bits a channel."""
        height, width = (side * self.factor for side in self.picture.size)
        image = _image(samples[0][:, :height, :width])
        if self.picture.pixels.shape[-1] == 1:
            image = image.convert("L")
        if self.picture.alpha is not None:
            image.putalpha(Image.fromarray(self.picture.alpha).resize(image.size, Image.Resampling.BICUBIC))
        if self.picture.icc_profile:
            image.info["icc_profile"] = self.picture.icc_profile
        return image


@dataclass(frozen=True)
class Satisfy:
    """Any constraint on pictures (B, 3, H, W) in [-1, 1], such as `Loss(fn)`; size (height, width), the model's own
    by default, and a multiple of what the model takes. Raises AdhereError for another size."""

    constraint: Constraint
    size: tuple[int, int] | None = None

    def windows(self, model: Model) -> list[Window]:
        size = self.size or model.native_size
        if min(size) < 1 or any(side % model.multiple for side in size):
            height, width = (max(1, round(side / model.multiple)) * model.multiple for side in size)
            raise AdhereError(
                f"size {size[0]}x{size[1]} (height x width): this model takes multiples of {model.multiple}; "
                f"{height}x{width} is near"
            )
        return [Window(size, self.constraint)]

    def finish(self, samples: list[Tensor]) -> Image.Image:
        """The sample, RGB, 8 bits a channel."""
        return _image(samples[0])


@dataclass(frozen=True)
class Generate(Satisfy):
    """Nothing asked: plain sampling."""

    constraint: Constraint = field(default=Unconstrained(), init=False, repr=False)


def _size(x: Tensor) -> tuple[int, int]:
    return x.shape[-2], x.shape[-1]


def _image(x: Float[Tensor, "3 h w"]) -> Image.Image:
    pixels = (x.clamp(-1, 1).to("cpu", torch.float32) * 127.5 + 127.5).round().byte()
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())
