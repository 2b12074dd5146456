"""The base of solvers, which do the work of one noise level."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from torch import Tensor

from adhere.core.constraints import Constraint
from adhere.core.covariance import StationaryCovariance
from adhere.core.denoisers import Denoiser
from adhere.core.noise import Generators
from adhere.errors import InvalidInput

_Memory = TypeVar("_Memory")


class Solver(ABC, Generic[_Memory]):
    """Base of solvers; the type parameter is that of `memory`, what is kept from one noise level to the next.

    A solver returns (x_t, x0) to the transition. Either it moves x_t, so that the denoised image x0 meets the
    constraint better, or it leaves x_t as it is and returns a conditional mean E[x0 | x_t, y] in place of x0. It keeps
    nothing between calls, so one object serves several runs at once.
    """

    @abstractmethod
    def __call__(
        self, denoiser: Denoiser, constraint: Constraint, x_t: Tensor, t: float, memory: _Memory | None
    ) -> tuple[Tensor, Tensor, _Memory | None]:
        """Return (x_t, x0, memory) at one noise level.

        Args:
            denoiser: D.
            constraint: a constraint that `supports` accepts.
            x_t: the state at time t, (B, ...).
            memory: the memory that the last call returned; None in the first call.
        """

    @abstractmethod
    def evaluations(self, log_snrs: Sequence[float], state_size: int = 0) -> int:
        """Return the number of network evaluations of a run, at most.

        Args:
            log_snrs: the noise levels of the run, in nats.
            state_size: the number of entries of one sample's state.
        """

    def backward_passes(self, log_snrs: Sequence[float]) -> int:
        """Return the number of backward passes through the network of a run."""
        return 0

    def _check_least(self, least: Mapping[str, float]) -> None:
        """Raise ValueError for a setting that is NaN, below its least value, or infinite if that value is finite.

        If the least value is an int, the setting must also be an int.
        """
        for name, bound in least.items():
            value = getattr(self, name)
            if isinstance(bound, int) and (type(value) is not int or value < bound):
                raise InvalidInput(f"{name} = {value!r}: it must be an integer of at least {bound}")
            if math.isnan(value) or (math.isfinite(bound) and not bound <= value < math.inf):
                raise InvalidInput(f"{name} = {value!r}: it must be a finite number of at least {bound:g}")

    def with_covariance(self, covariance: StationaryCovariance) -> "Solver[_Memory]":
        """Return the solver for a model whose prior has this covariance."""
        return self

    def prepare(self, log_snrs: Sequence[float]) -> "Solver[_Memory]":
        """Return the solver for a run over these noise levels; `trajectory` calls this once."""
        return self

    def supports(self, constraint: Constraint) -> bool:
        """Return whether the solver can be used with this constraint."""
        return True


@dataclass(frozen=True)
class StochasticSolver(Solver[_Memory]):
    """Base of solvers that draw noise, by `randn(x_t.shape, x_t, self.run_generators)` of `adhere.core.noise`.

    Attributes:
        generator: `trajectory` sets it to the generators of its run.
    """

    generator: Generators | None = field(default=None, kw_only=True)

    @property
    def run_generators(self) -> Generators:
        """The generators of the run: one for the batch, or one per sample.

        Raises:
            ValueError: outside of a run, if no generator was given.
        """
        if self.generator is None:
            raise InvalidInput(f"{type(self).__name__} draws noise: run it by trajectory, or give it a generator")
        return self.generator
