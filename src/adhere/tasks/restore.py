"""Restoration from a linear measurement y = A x0 + noise, with any operator."""

import math
from dataclasses import dataclass, field
from numbers import Real

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from adhere._hints import keyword_hints
from adhere.core._checks import check_constraint, check_range, is_out_of_memory
from adhere.core.constraints import Linear
from adhere.core.operators import LinearOperator, Unpad
from adhere.errors import AdhereError
from adhere.io.images import as_picture
from adhere.tasks._pixels import check_sampled_size, rgb_image, to_unit_range
from adhere.tasks.base import Crop, ImageInput, ModelInfo, Task


@keyword_hints(sigma="call it noise", image="call it y, the measurement")
@dataclass(frozen=True, eq=False)
class Restore(Task):
    """Restore a picture from a measurement y = A x0 + noise.

    Args:
        y: the measurement, (1, ...) as A returns it for pictures (1, 3, H, W) in [-1, 1]; or a picture, which becomes
            (1, 3, H, W) in [-1, 1].
        operator: A. The picture has the size of A^T y. If the model needs a larger size, A sees the top left part, and
            the rest is unknown. In the 8 pixels beside it, three photographs with `Blur(2)` and noise 0.02 were 0.4 to
            1 dB worse than at sizes that the model takes; with `Blur(1.5)` and noise 0.01, they were within 0.3 dB.
        noise: the standard deviation of the measurement's noise, in units of y.

    Raises:
        AdhereError: if y and A do not fit together, A is not an operator on RGB pictures, or y is far larger than A
            can give for a picture in [-1, 1].
    """

    y: ImageInput | Tensor = field(repr=False)
    operator: LinearOperator
    noise: float = 0.0
    measurement: Tensor = field(init=False, repr=False)
    size: tuple[int, int] = field(init=False)

    def __post_init__(self) -> None:
        if not isinstance(self.operator, LinearOperator):
            given = type(self.operator).__name__
            raise AdhereError(f"operator is a {given}: give a LinearOperator, such as adhere.operator(fn, (3, H, W))")
        if not isinstance(self.noise, Real) or not self.noise >= 0:
            raise AdhereError(f"noise = {self.noise!r}: give one number, a standard deviation of at least 0")
        if isinstance(self.y, Tensor) and not self.y.is_floating_point():
            raise AdhereError(f"y has dtype {self.y.dtype}: give floating-point numbers; pictures are in [-1, 1]")
        y = self.y.float() if isinstance(self.y, Tensor) else as_picture(self.y).tensor()
        try:
            image = self.operator.adjoint(y)
        except (ValueError, RuntimeError, AttributeError, TypeError) as error:
            if is_out_of_memory(error):
                raise
            reason = str(error).partition("\n")[0]
            hint = "; add a batch dimension: y[None]" if y.ndim == 3 else ""
            raise AdhereError(f"A^T cannot be applied to y of shape {tuple(y.shape)}: {reason}{hint}") from error
        if image.ndim != 4 or image.shape[:2] != (1, 3):
            raise AdhereError(f"A^T y has shape {tuple(image.shape)}: y must measure one RGB picture, (1, 3, H, W)")
        check_sampled_size((image.shape[-2], image.shape[-1]))
        for check in (check_constraint, check_range):
            check(Linear(self.operator, y, self.noise), image.shape, y.dtype, y.device)
        object.__setattr__(self, "measurement", y)
        object.__setattr__(self, "size", (image.shape[-2], image.shape[-1]))

    def crops(self, model: ModelInfo, size: tuple[int, int] | None = None) -> list[Crop]:
        self._refuse_size(size)
        padded = (math.ceil(self.size[0] / model.multiple), math.ceil(self.size[1] / model.multiple))
        padded = (padded[0] * model.multiple, padded[1] * model.multiple)
        operator = self.operator if padded == self.size else self.operator @ Unpad(padded, self.size)
        return [Crop(padded, Linear(operator, self.measurement.to(model.execution_device), self.noise))]

    def postprocess_float(self, samples: list[Tensor], crops: list[Crop]) -> Float[Tensor, "3 H W"]:
        return to_unit_range(self._unpad(samples[0]))

    def postprocess(self, samples: list[Tensor], crops: list[Crop]) -> Image.Image:
        return rgb_image(self._unpad(samples[0]))

    def _unpad(self, x0: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 H W"]:
        return x0[:, : self.size[0], : self.size[1]]
