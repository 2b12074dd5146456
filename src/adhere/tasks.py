"""Tasks: what a person asks for, as frozen requests. A task states its constraint and turns the sample into a picture.

    Inpaint("photo.jpg", "mask.png")        files, PIL images or arrays

A task is checked when it is made, so bad input is refused before any model is loaded.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from adhere.core.constraints import Linear
from adhere.core.operators import Mask
from adhere.errors import AdhereError
from adhere.images import Picture, check_mask, keep_exactly, mask_from_alpha, pad_to_multiple, picture_from, read_mask


@dataclass(frozen=True, eq=False)
class Inpaint:
    """Repaint the white part of the mask, keep the rest bit for bit.

    image: a path, PIL image, uint8/uint16 array (H, W[, C]) or Picture. mask: the same size, white (or True) = repaint,
    or None when the picture's alpha channel says it (transparent = repaint). The network sees the hole and `context`
    pixels around it, not the whole of a large photograph. Raises AdhereError on anything that cannot be repaired.
    """

    image: str | Path | Image.Image | np.ndarray | Picture
    mask: str | Path | Image.Image | np.ndarray | Tensor | None = None
    context: int = 96
    picture: Picture = field(init=False)
    repaint: Bool[np.ndarray, "h w"] = field(init=False)

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

    def _window(self) -> tuple[slice, slice]:
        """The part of the picture that is worked on: the hole and its context."""
        slices = []
        for axis, size in ((1, self.repaint.shape[0]), (0, self.repaint.shape[1])):
            inside = np.flatnonzero(self.repaint.any(axis))
            slices.append(slice(max(0, inside[0] - self.context), min(size, inside[-1] + 1 + self.context)))
        return slices[0], slices[1]

    def constraint(self, multiple: int, device: torch.device) -> Linear:
        """y = known * x0 on the window, padded by reflection to a multiple of `multiple`; y (1, 3, H, W) in [-1, 1]."""
        rows, columns = self._window()
        known = torch.from_numpy(~self.repaint[rows, columns])[None, None].float()  # (1, 1, H, W)
        x, _ = pad_to_multiple(self.picture.tensor()[..., rows, columns].to(device), multiple)
        known, _ = pad_to_multiple(known.to(device), multiple)
        return Linear(Mask(known), known * x)

    def finish(self, x0: Float[Tensor, "3 h w"]) -> Image.Image:
        """The repaired picture, of the input's size and kind, from a sample on the padded window in [-1, 1]."""
        rows, columns = self._window()
        result = self.picture.tensor()[0].clone()
        height, width = result[:, rows, columns].shape[-2:]
        result[:, rows, columns] = x0[:, :height, :width].clamp(-1, 1).to("cpu", torch.float32)
        return keep_exactly(self.picture, result, self.repaint, opaque=self.mask is None)
