"""Nonlinear measurements y = f(x0) + noise."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from adhere.core.constraints import Constraint, Linearization, _backtrack
from adhere.core.derivatives import vjp
from adhere.core.operators import _check_measurement, _Jacobian
from adhere.errors import InvalidInput


@dataclass(frozen=True)
class Nonlinear(Constraint):
    """y = f(x0) + noise n with white n: C = |y - f(x0)|^2 / 2.

    Attributes:
        f: differentiable, maps x0 (B, ...) to measurements (B, ...), sample by sample.
        y: the measurement, (B or 1, ...).
        noise: the standard deviation of the measurement's noise, in units of y, at least 0.
        max_step_rms: solvers change x0 by at most this root mean square at once.

    Raises:
        ValueError: if noise < 0, or unless max_step_rms > 0.
    """

    f: Callable[[Tensor], Tensor]
    y: Tensor
    noise: float = 0.0
    max_step_rms: float = 0.3

    def __post_init__(self) -> None:
        _check_measurement(self.y, self.noise)
        if isinstance(self.noise, Tensor):
            raise InvalidInput(f"y is a {type(self.y).__name__}, noise a Tensor: give one number for a nonlinear f")
        if not self.max_step_rms > 0:
            raise InvalidInput(f"max_step_rms = {self.max_step_rms}: it must be above 0; 0.3 is usual")

    def neg_grad(self, x0: Tensor) -> Tensor:
        measured, transposed = vjp(self.f, x0)
        return transposed(self.y - measured)

    def residual_norm(self, x0: Tensor) -> Float[Tensor, " b"]:
        """Return the root mean square of y - f(x0)."""
        return (self.y - self.f(x0)).flatten(1).square().mean(1).sqrt()

    @property
    def is_nonlinear(self) -> bool:
        return True

    def linearize(self, x0: Tensor) -> Linearization:
        measured, transposed = vjp(self.f, x0, retain_graph=True)
        if measured.shape != (len(x0), *self.y.shape[1:]):
            raise InvalidInput(
                f"f of x0 {tuple(x0.shape)} has shape {tuple(measured.shape)}, y has {tuple(self.y.shape)}: they must "
                "agree but for the batch"
            )
        if not transposed(torch.ones_like(measured)).isfinite().all():
            raise InvalidInput("the gradient of f is not finite (as of a square root at 0): add a small constant")
        operator = _Jacobian(self.f, x0, measured, transposed)
        noise, residual = self.noise, (self.y - measured).detach()
        return Linearization(operator, residual, noise, origin=x0, max_step_rms=self.max_step_rms)

    def limit_step(self, x0: Tensor, step: Tensor) -> Tensor:
        return _backtrack(self, x0, step)
