"""Tasks: what a person asks for, as frozen requests. A task states its constraint and turns samples into a picture.

    Inpaint("photo.jpg", "mask.png")        repaint a part
    Upscale("small.png", 4)                 a large picture whose area means are the small one
    Layout("sketch.png")                    colours where the sketch has them, roughly
    Silhouette("shape.png")                 something of this shape
    Style("painting.jpg")                   the colours and textures of a picture
    Satisfy(constraint, (512, 512))         any constraint on pictures, such as `Loss(fn)`
    Generate((512, 512))                    nothing asked: plain sampling

Pictures are files, PIL images or arrays. A task is checked when it is made, so bad input is refused before any model is
loaded. A newcomer adds a class with `windows` and `finish`.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from adhere.core.constraints import Constraint, Linear, Loss, Unconstrained
from adhere.core.operators import Downsample, Mask
from adhere.errors import AdhereError
from adhere.features import EfficientNetLite0
from adhere.images import Picture, pad_to_multiple, picture_from, with_metadata
from adhere.losses import Features, GramDistance, SilhouetteLoss
from adhere.masks import check_mask, keep_exactly, mask_from_alpha
from adhere.windows import Box, windows_around

Readable = str | Path | Image.Image | np.ndarray | Picture


@runtime_checkable
class Model(Protocol):
    """What a task must know of the model."""

    @property
    def multiple(self) -> int:
        """Heights and widths are multiples of this, in pixels."""
        ...

    @property
    def native_size(self) -> tuple[int, int]:
        """(height, width) in pixels that it was made for."""
        ...

    @property
    def execution_device(self) -> torch.device:
        """Where states live."""
        ...


@dataclass(frozen=True)
class Window:
    """A canvas to sample: (height, width) in pixels, multiples of the model's, and what is asked of the picture on it,
    a tensor (B, 3, height, width) in [-1, 1]; of a part of a larger picture, which."""

    size: tuple[int, int]
    constraint: Constraint
    box: Box | None = None


@runtime_checkable
class Task(Protocol):
    """A request, checked already."""

    def windows(self, model: Model) -> list[Window]:
        """What to sample: at least one window, sampled apart."""
        ...

    def finish(self, samples: list[Tensor], windows: list[Window]) -> Image.Image:
        """The picture, from one sample (3, H, W) in about [-1, 1] for each window."""
        ...


@dataclass(frozen=True, eq=False)
class Inpaint:
    """Repaint the white part of the mask, keep the rest bit for bit.

    image: a path, PIL image, uint8/uint16 array (H, W[, C]) or Picture. mask: the same size, white (or True) = repaint,
    or None when the picture's alpha channel says it (transparent = repaint). The network sees the holes and `context`
    pixels around each, not the whole of a large photograph; None: three eighths of the side of the pictures the model
    was made for, such as 192 of 512, and at least 96. Raises AdhereError on anything that cannot be repaired.
    """

    image: Readable = field(repr=False)
    mask: str | Path | Image.Image | np.ndarray | Tensor | None = field(default=None, repr=False)
    context: int | None = None
    picture: Picture = field(init=False, repr=False)
    repaint: Bool[np.ndarray, "h w"] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.context is not None and self.context < 1:  # at least one known pixel must be seen
            raise AdhereError(f"context = {self.context}: at least 1 pixel around the hole is needed")
        picture = picture_from(self.image)
        repaint = mask_from_alpha(picture) if self.mask is None else check_mask(self.mask, picture.size)
        object.__setattr__(self, "picture", picture)
        object.__setattr__(self, "repaint", repaint)

    def windows(self, model: Model) -> list[Window]:
        """y = known * x0 on each window, padded by reflection to the model's multiple."""
        picture = self.picture.tensor()
        context = self.context or max(96, 3 * min(model.native_size) // 8)
        found = []
        for rows, columns in windows_around(self.repaint, context):
            known = torch.from_numpy(~self.repaint[rows, columns])[None, None].float()  # (1, 1, H, W)
            x = pad_to_multiple(picture[..., rows, columns].to(model.execution_device), model.multiple)
            known = pad_to_multiple(known.to(model.execution_device), model.multiple)
            found.append(Window(_size(x), Linear(Mask(known), known * x), (rows, columns)))
        return found

    def finish(self, samples: list[Tensor], windows: list[Window]) -> Image.Image:
        """The repaired picture, of the input's size and kind."""
        result = self.picture.tensor()[0].clone()
        for window, x0 in zip(windows, samples, strict=True):
            assert window.box is not None
            rows, columns = window.box
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
        y = pad_to_multiple(
            self.picture.tensor().to(model.execution_device), model.multiple // math.gcd(model.multiple, self.factor)
        )
        height, width = _size(y)
        constraint = Linear(Downsample(self.factor), y, self.noise)
        return [Window((height * self.factor, width * self.factor), constraint)]

    def finish(self, samples: list[Tensor], windows: list[Window]) -> Image.Image:
        """The large picture: factor times the input's size, 8 bits a channel."""
        height, width = (side * self.factor for side in self.picture.size)
        image = _image(samples[0][:, :height, :width])
        if self.picture.pixels.shape[-1] == 1:
            image = image.convert("L")
        if self.picture.alpha is not None:
            image.putalpha(Image.fromarray(self.picture.alpha).resize(image.size, Image.Resampling.BICUBIC))
        return with_metadata(image, self.picture)


class Whole:
    """A task whose sample is the picture, all of it."""

    def finish(self, samples: list[Tensor], windows: list[Window]) -> Image.Image:
        """The sample, RGB, 8 bits a channel."""
        return _image(samples[0])


@dataclass(frozen=True, eq=False)
class Layout(Whole):
    """A picture whose colours lie where those of `image` do: its means over coarse squares, `cells` of them along the
    shorter side, are about the image's.

    image: brought to the size asked for, its aspect ratio too. noise: how far the means may be off, a standard
    deviation in [-1, 1] units. size: (height, width), the model's own by default. Raises AdhereError for fewer than
    one cell and a negative noise.
    """

    image: Readable = field(repr=False)
    cells: int = 8
    noise: float = 0.1
    size: tuple[int, int] | None = None
    picture: Picture = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.cells < 1:
            raise AdhereError(f"cells = {self.cells}: at least 1 along the shorter side; 4 to 16 are usual")
        if not self.noise >= 0:
            raise AdhereError(f"noise = {self.noise:g}: a standard deviation is at least 0; 0.1 is usual")
        object.__setattr__(self, "picture", picture_from(self.image))

    def windows(self, model: Model) -> list[Window]:
        """y = A x0 + noise, A the means over squares whose side divides the picture's height and width."""
        height, width = canvas(self.size, model)
        both = math.gcd(height, width)
        wanted = min(height, width) / self.cells
        side = min((d for d in range(1, both + 1) if both % d == 0), key=lambda d: abs(math.log(d / wanted)))
        x = self.picture.tensor().to(model.execution_device)
        y = interpolate(x, (height // side, width // side), mode="area")
        return [Window((height, width), Linear(Downsample(side), y, self.noise))]


@dataclass(frozen=True, eq=False)
class Silhouette(Whole):
    """A picture of something that stands out from a plain background just where the mask is white.

    mask: a picture, white (or True, or opaque where it has transparency) = inside; brought to the size asked for.
    background: its colour, 0 to 255. size: (height, width), the model's own by default. Raises AdhereError when
    nothing is inside, or everything.
    """

    mask: Readable = field(repr=False)
    background: tuple[int, int, int] = (255, 255, 255)
    size: tuple[int, int] | None = None
    inside: Bool[np.ndarray, "h w"] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        inside = _inside(self.mask)
        if inside.all() or not inside.any():
            what = "everything" if inside.all() else "nothing"
            raise AdhereError(f"the silhouette has {what} inside; paint white (or leave opaque) what is")
        if not all(0 <= value <= 255 for value in self.background):
            raise AdhereError(f"background = {self.background}: red, green and blue from 0 to 255")
        object.__setattr__(self, "inside", inside)

    @torch.inference_mode(False)  # gradients are taken with these tensors
    def windows(self, model: Model) -> list[Window]:
        size, device = canvas(self.size, model), model.execution_device
        mask = interpolate(torch.from_numpy(self.inside)[None, None].float(), size, mode="area")
        background = torch.tensor(self.background).view(1, 3, 1, 1) / 127.5 - 1
        return [Window(size, Loss(SilhouetteLoss(mask.to(device), background.to(device))))]


@dataclass(frozen=True, eq=False)
class Style(Whole):
    """A picture painted as the reference is: alike in what features occur together, wherever.

    reference: brought to the scale of the picture, their shorter sides alike. size: (height, width), the model's own by
    default. features: from a picture (B, 3, H, W) in [-1, 1] to a list of (B, C, N) or (B, C, h, w), differentiable;
    those of EfficientNet-Lite0's first three stages by default. The paper's are the tokens of an early block of CLIP:

        clip = CLIPVisionModel.from_pretrained("openai/clip-vit-base-patch16")
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))

        def tokens(x):
            x = interpolate(x, (224, 224), mode="bicubic", antialias=True)
            return [clip(((x + 1) / 2 - mean) / std, output_hidden_states=True).hidden_states[2].mT]

        Style("painting.jpg", features=tokens)

    Raises AdhereError without the packages of the extra `style`, unless features are given.
    """

    reference: Readable = field(repr=False)
    size: tuple[int, int] | None = None
    features: Features | None = field(default=None, repr=False)
    picture: Picture = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "picture", picture_from(self.reference))
        if self.features is None:
            with torch.inference_mode(False):  # gradients go through its weights
                object.__setattr__(self, "features", EfficientNetLite0(stages=3).features)

    @torch.inference_mode(False)
    def windows(self, model: Model) -> list[Window]:
        assert self.features is not None
        size = canvas(self.size, model)
        x = self.picture.tensor().to(model.execution_device)
        scale = min(size) / min(self.picture.size)
        sides = [max(min(size), round(side * scale)) for side in self.picture.size]
        reference = interpolate(x, sides, mode="bilinear", antialias=True)
        return [Window(size, Loss(GramDistance(self.features, reference)))]


@dataclass(frozen=True)
class Satisfy(Whole):
    """Any constraint on pictures (B, 3, H, W) in [-1, 1], such as `Loss(fn)`; size (height, width), the model's own
    by default, and a multiple of what the model takes. Raises AdhereError for another size."""

    constraint: Constraint
    size: tuple[int, int] | None = None

    def windows(self, model: Model) -> list[Window]:
        return [Window(canvas(self.size, model), self.constraint)]


@dataclass(frozen=True)
class Generate(Satisfy):
    """Nothing asked: plain sampling."""

    constraint: Constraint = field(default=Unconstrained(), init=False, repr=False)


def _inside(mask: Readable) -> Bool[np.ndarray, "h w"]:
    if isinstance(mask, np.ndarray) and mask.dtype == bool:
        mask = mask.astype(np.uint8) * 255
    picture = picture_from(mask)
    if picture.alpha is not None and picture.alpha.min() < 128:
        return picture.alpha >= 128
    return (picture.tensor()[0].mean(0) > 0).numpy()


def canvas(size: tuple[int, int] | None, model: Model) -> tuple[int, int]:
    """(height, width) to sample: the model's own unless told. Raises AdhereError for one that the model cannot take."""
    size = size or model.native_size
    if min(size) < 1 or any(side % model.multiple for side in size):
        height, width = (max(1, round(side / model.multiple)) * model.multiple for side in size)
        raise AdhereError(
            f"size {size[1]}x{size[0]} (width x height): this model takes multiples of {model.multiple}; "
            f"{width}x{height} is near"
        )
    return size


def _size(x: Tensor) -> tuple[int, int]:
    return x.shape[-2], x.shape[-1]


def _image(x: Float[Tensor, "3 h w"]) -> Image.Image:
    pixels = (x.clamp(-1, 1).to("cpu", torch.float32) * 127.5 + 127.5).round().byte()
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())
