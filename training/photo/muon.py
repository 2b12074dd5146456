"""Muon (Jordan et al., 2024): momentum whose matrix updates are made orthogonal by a Newton-Schulz iteration.

`torch.optim.Muon` is for matrices only; here the kernel of a convolution is the matrix (O, I * 3 * 3).
"""

from collections.abc import Callable, Iterable
from typing import overload

import torch
from torch import Tensor
from torch.optim import Optimizer

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration, chosen by its authors for few iterations


def orthogonalize(matrix: Tensor, num_iterations: int = 5) -> Tensor:
    """Approximate U V^T for a matrix with the singular value decomposition U S V^T.

    Args:
        matrix: (M, N).
        num_iterations: Number of Newton-Schulz iterations; after 5 the singular values lie between about 0.7 and 1.2.

    Returns:
        The approximation, (M, N).
    """
    a, b, c = COEFFICIENTS
    x = matrix / (matrix.norm() + 1e-7)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    for _ in range(num_iterations):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


class Muon(Optimizer):
    """Muon with Nesterov momentum, without weight decay.

    Args:
        params: Parameters of at least two dimensions; all but the first are flattened.
        lr: Learning rate: the spectral norm of the change of a parameter in one step.
        momentum: Decay of the mean of the gradients, in [0, 1).
    """

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95):
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Change every parameter that has a gradient.

        Args:
            closure: Not supported.

        Raises:
            ValueError: If a closure is given.
        """
        if closure is not None:
            raise ValueError("Muon takes no closure: compute the gradients before step()")
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "mean" not in state:
                    state["mean"] = torch.zeros_like(parameter)
                mean = state["mean"].lerp_(parameter.grad, 1 - group["momentum"])
                update = orthogonalize(parameter.grad.lerp(mean, group["momentum"]).flatten(1))
                tallness = max(1.0, update.shape[0] / update.shape[1]) ** 0.5
                parameter.add_(update.view(parameter.shape), alpha=-group["lr"] * tallness)
        return None
