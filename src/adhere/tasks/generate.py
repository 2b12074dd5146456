"""New pictures: without a constraint, with any constraint, with a layout of colors, or with a silhouette."""

import math
import warnings
from dataclasses import dataclass, field
from numbers import Real

import numpy as np
import torch
from jaxtyping import Bool
from torch.nn.functional import interpolate

from adhere._hints import keyword_hints
from adhere.core.constraints import Constraint, Linear, Loss, Unconstrained
from adhere.core.filters import Downsample
from adhere.errors import AdhereError, AdhereWarning
from adhere.io.images import Picture, as_picture
from adhere.losses import SilhouetteLoss
from adhere.tasks.base import FullImageTask, ImageInput, ModelInfo


@dataclass(frozen=True)
class Custom(FullImageTask):
    """A picture that meets any constraint.

    Args:
        constraint: a constraint on pictures (B, 3, H, W) in [-1, 1], such as `Loss(fn)`.
        size: (height, width) in pixels, or the side of a square; the model's native size by default.
    """

    constraint: Constraint
    size: int | tuple[int, int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.constraint, Constraint):
            given = type(self.constraint).__name__
            raise AdhereError(f"constraint is a {given}: give a Constraint, such as adhere.Loss(fn)")

    def constraint_for(self, model: ModelInfo, size: tuple[int, int]) -> Constraint:
        return self.constraint


@keyword_hints(
    height="write Generate((height, width))",
    width="write Generate((height, width))",
    prompt="give it to the pipeline: pipe(task, prompt=...)",
)
@dataclass(frozen=True)
class Generate(FullImageTask):
    """A picture without a constraint: plain sampling.

    Args:
        size: (height, width) in pixels, or the side of a square; the model's native size by default.
    """

    size: int | tuple[int, int] | None = None

    def constraint_for(self, model: ModelInfo, size: tuple[int, int]) -> Constraint:
        return Unconstrained()


@dataclass(frozen=True, eq=False)
class Layout(FullImageTask):
    """A picture with the coarse colors of another: its means over coarse squares are about those of `image`.

    Args:
        image: a path, a PIL image or an array, resized to the requested size.
        cells: the number of squares along the shorter side, at least 1.
        noise: the standard deviation of the noise of the means, in [-1, 1] units, at least 0.
        size: (height, width) in pixels, or the side of a square; the model's native size by default.

    Raises:
        AdhereError: if the picture cannot be read, or for values out of range.
    """

    image: ImageInput = field(repr=False)
    cells: int = 8
    noise: float = 0.1
    size: int | tuple[int, int] | None = None
    picture: Picture = field(init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.cells, int) or self.cells < 1:
            raise AdhereError(f"cells = {self.cells!r}: at least 1 along the shorter side; 4 to 16 are usual")
        if not isinstance(self.noise, Real) or not self.noise >= 0:
            raise AdhereError(f"noise = {self.noise!r}: a standard deviation must be at least 0; 0.1 is usual")
        object.__setattr__(self, "picture", as_picture(self.image))

    def constraint_for(self, model: ModelInfo, size: tuple[int, int]) -> Constraint:
        """Return y = A x0 + noise with A the means over squares whose side divides height and width."""
        target = min(size) / self.cells
        common = math.gcd(*size)
        divisors = (d for d in range(1, common + 1) if common % d == 0)
        side = min(divisors, key=lambda d: abs(math.log(d / target)))
        x = self.picture.tensor().to(model.execution_device)
        y = interpolate(x, (size[0] // side, size[1] // side), mode="area")
        return Linear(Downsample(side), y, self.noise)


@dataclass(frozen=True, eq=False)
class Silhouette(FullImageTask):
    """A picture of an object that covers the mask, on a plain background.

    Args:
        mask: a path, a PIL image or an array, resized to the requested size. The object is its white part, its True
            part, or its opaque part if the mask has transparency.
        background: red, green and blue, 0 to 255.
        size: (height, width) in pixels, or the side of a square; the model's native size by default.

    Raises:
        AdhereError: if the mask cannot be read, if it covers everything or nothing, or for a color out of range.

    Warns:
        AdhereWarning: if most of the mask's border belongs to the object, as for a black shape on white.
    """

    mask: ImageInput = field(repr=False)
    background: tuple[int, int, int] = (255, 255, 255)
    size: int | tuple[int, int] | None = None
    object_mask: Bool[np.ndarray, "h w"] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        object_mask = _object_mask(self.mask)
        if object_mask.all() or not object_mask.any():
            covers = "everything" if object_mask.all() else "nothing"
            raise AdhereError(f"the silhouette covers {covers}; paint the object white (or leave it opaque)")
        values = self.background if isinstance(self.background, (tuple, list)) else ()
        if len(values) != 3 or not all(isinstance(value, Real) and 0 <= value <= 255 for value in values):
            raise AdhereError(f"background = {self.background!r}: red, green and blue must be from 0 to 255")
        border = np.concatenate([object_mask[0], object_mask[-1], object_mask[:, 0], object_mask[:, -1]])
        if border.mean() > 0.5:  # as if a black shape were on white
            message = "the white or opaque part is taken as the object; invert the reference if the other part is meant"
            warnings.warn(message, AdhereWarning, stacklevel=3)
        object.__setattr__(self, "object_mask", object_mask)

    @torch.inference_mode(False)  # the tensors take part in autograd
    def constraint_for(self, model: ModelInfo, size: tuple[int, int]) -> Constraint:
        device = model.execution_device
        mask = interpolate(torch.from_numpy(self.object_mask)[None, None].float(), size, mode="area")
        background = torch.tensor(self.background, dtype=torch.float32, device=device).view(1, 3, 1, 1) / 127.5 - 1
        return Loss(SilhouetteLoss(mask.to(device), background))


def _object_mask(mask: ImageInput) -> Bool[np.ndarray, "h w"]:
    if isinstance(mask, np.ndarray) and mask.dtype == bool:
        mask = mask.astype(np.uint8) * 255
    picture = as_picture(mask)
    if picture.alpha is not None and picture.alpha.min() < 128:
        return picture.alpha >= 128
    return (picture.tensor()[0].mean(0) > 0).numpy()
