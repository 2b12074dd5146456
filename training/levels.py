"""Noise levels in training: how often each log-SNR lambda = log(alpha_t / sigma_t) is drawn, and what its loss counts.

    p(lambda) = (1 - even) N(mean, width^2) + even U(low, high)

Each level's loss is divided by its own running mean (the idea of Karras et al., EDM2, 2024, section 2.2): else the
irreducible loss of nearly clean pictures drowns the levels at which a picture is decided.
"""

import math

import torch
from torch import Tensor


class Levels:
    """The levels of a discrete schedule, alphas_cumprod (T,); mean, width, low and high in nats."""

    def __init__(self, alphas_cumprod: Tensor, mean: float, width: float, even: float, low: float, high: float):
        self.alpha, self.sigma = alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt()
        self.lam = (self.alpha / self.sigma).log().double()
        density = (1 - even) * torch.exp(-0.5 * ((self.lam - mean) / width) ** 2) / (width * math.sqrt(2 * math.pi))
        density = density + even / (high - low) * ((self.lam > low) & (self.lam < high))
        self.probability = density * -torch.gradient(self.lam)[0]  # of each time, but for a factor
        self.bin = (2 * (self.lam - self.lam.min())).long()  # half a unit of log-SNR each
        self.loss = torch.full((int(self.bin.max()) + 1,), 0.3)  # running mean of each bin

    def draw(self, count: int) -> Tensor:
        """Timesteps (count,), independent, by torch's own generator."""
        return torch.multinomial(self.probability, count, replacement=True)

    def spread(self, count: int, generator: torch.Generator) -> Tensor:
        """Timesteps (count,), one from each of `count` equally probable stretches."""
        cumulative = self.probability.cumsum(0)
        u = (torch.arange(count) + torch.rand(count, generator=generator)) / count
        return torch.searchsorted(cumulative / cumulative[-1], u.double()).clamp(max=len(self.lam) - 1)

    def balanced(self, t: Tensor, losses: Tensor) -> Tensor:
        """The losses (B,) at times t over the running means of their levels, which they update; about 0.1 each."""
        for index, value in zip(self.bin[t].tolist(), losses.detach().tolist(), strict=True):
            self.loss[index] += 0.02 * (value - self.loss[index])
        return 0.1 * losses / self.loss[self.bin[t]]
