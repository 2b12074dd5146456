"""Style: a picture with the colors and textures of a reference."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from adhere.core.constraints import Constraint, Loss
from adhere.features import EfficientNetLite0
from adhere.io.images import Picture, as_picture
from adhere.losses import GramDistance
from adhere.tasks.base import FullImageTask, ImageInput, ModelInfo


@dataclass(frozen=True, eq=False)
class Style(FullImageTask):
    """A picture in the style of the reference: the Gram matrices of its features are close to the reference's.

    The features of the paper are the tokens of an early block of CLIP:

        clip = CLIPVisionModel.from_pretrained("openai/clip-vit-base-patch16")
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))

        def tokens(x):
            x = interpolate(x, (224, 224), mode="bicubic", antialias=True)
            return [clip(((x + 1) / 2 - mean) / std, output_hidden_states=True).hidden_states[2].mT]

        Style("painting.jpg", features=tokens)

    Args:
        reference: a path, a PIL image or an array. It is resized so that its shorter side is that of the result.
        size: (height, width) in pixels, or the side of a square; the model's native size by default.
        features: a differentiable function from pictures (B, 3, H, W) in [-1, 1] to a list of (B, C, N) or
            (B, C, h, w); by default, the first three stages of EfficientNet-Lite0.

    Raises:
        AdhereError: if the reference cannot be read, or if `features` is None and the extra `style` is not installed.
    """

    reference: ImageInput = field(repr=False)
    size: int | tuple[int, int] | None = None
    features: Callable[[Tensor], Sequence[Tensor]] | None = field(default=None, repr=False)
    picture: Picture = field(init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "picture", as_picture(self.reference))
        if self.features is None:
            with torch.inference_mode(False):  # gradients pass through its weights
                object.__setattr__(self, "features", EfficientNetLite0(stages=3).features)

    @torch.inference_mode(False)
    def constraint_for(self, model: ModelInfo, size: tuple[int, int]) -> Constraint:
        assert self.features is not None
        x = self.picture.tensor().to(model.execution_device)
        scale = min(size) / min(self.picture.size)
        sides = [max(min(size), round(side * scale)) for side in self.picture.size]
        return Loss(GramDistance(self.features, interpolate(x, sides, mode="bilinear", antialias=True)))
