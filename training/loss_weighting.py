"""Timestep sampling and loss weighting for training a denoiser.

The log-SNR lambda = log(alpha_t / sigma_t) of a training example follows a mixture of a normal and a uniform
distribution:

    p(lambda) = (1 - uniform_fraction) N(mean_log_snr, std_log_snr^2) + uniform_fraction U(log_snr_min, log_snr_max)

Each loss is divided by the running mean of the losses at similar noise levels. Without this weighting, the irreducible
loss of nearly clean images dominates the noise levels at which the content of an image is determined.

Source: the weighting follows the idea of Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion
Models" (EDM2, 2024), section 2.2.
"""

import math

import torch
from torch import Tensor

BINS_PER_LOG_SNR_UNIT = 2  # of the running means
INITIAL_MEAN_LOSS = 0.3  # of every bin
MEAN_LOSS_UPDATE_RATE = 0.02  # weight of a new loss in the running mean of its bin
TARGET_LOSS = 0.1  # mean of the weighted losses


class LossWeighting:
    """Draws timesteps of a discrete schedule and weights the losses at these timesteps.

    Args:
        alphas_cumprod: alpha_t^2 of each timestep, shape (T,), in (0, 1), decreasing.
        mean_log_snr: Mean of the normal distribution of the log-SNR, in nats.
        std_log_snr: Standard deviation of the normal distribution, in nats.
        uniform_fraction: Fraction of timesteps drawn from the uniform distribution, in [0, 1].
        log_snr_min: Lower end of the uniform distribution, in nats.
        log_snr_max: Upper end of the uniform distribution, in nats.

    Attributes:
        alpha: alpha_t of each timestep, shape (T,).
        sigma: sigma_t of each timestep, shape (T,).
        log_snr: log(alpha_t / sigma_t) of each timestep, shape (T,), float64.
        mean_loss: Running mean of the loss of each log-SNR bin; updated in place.
    """

    def __init__(
        self,
        alphas_cumprod: Tensor,
        mean_log_snr: float,
        std_log_snr: float,
        uniform_fraction: float,
        log_snr_min: float,
        log_snr_max: float,
    ):
        self.alpha, self.sigma = alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt()
        self.log_snr = (self.alpha / self.sigma).log().double()
        normal = torch.exp(-0.5 * ((self.log_snr - mean_log_snr) / std_log_snr) ** 2)
        density = (1 - uniform_fraction) * normal / (std_log_snr * math.sqrt(2 * math.pi))
        inside = (self.log_snr > log_snr_min) & (self.log_snr < log_snr_max)
        density = density + uniform_fraction / (log_snr_max - log_snr_min) * inside
        self._weights = density * -torch.gradient(self.log_snr)[0]  # unnormalized probability of each timestep
        self._bins = (BINS_PER_LOG_SNR_UNIT * (self.log_snr - self.log_snr.min())).long()  # (T,)
        self.mean_loss = torch.full((int(self._bins.max()) + 1,), INITIAL_MEAN_LOSS)

    def sample_timesteps(self, count: int) -> Tensor:
        """Draw independent timesteps with PyTorch's global generator.

        Args:
            count: Number of timesteps.

        Returns:
            Timesteps of shape (count,), int64.
        """
        return torch.multinomial(self._weights, count, replacement=True)

    def stratified_timesteps(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw one timestep from each of `count` equally probable intervals.

        Args:
            count: Number of timesteps.
            generator: The generator of the random numbers.

        Returns:
            Timesteps of shape (count,), int64, increasing.
        """
        cumulative = self._weights.cumsum(0)
        u = (torch.arange(count) + torch.rand(count, generator=generator)) / count
        return torch.searchsorted(cumulative / cumulative[-1], u.double()).clamp(max=len(self.log_snr) - 1)

    def weight_losses(self, t: Tensor, losses: Tensor) -> Tensor:
        """Update the running means with the losses, then divide the losses by them.

        Args:
            t: Timesteps of shape (B,).
            losses: Loss of each example, shape (B,).

        Returns:
            The weighted losses of shape (B,), about `TARGET_LOSS` each.
        """
        for index, value in zip(self._bins[t].tolist(), losses.detach().tolist(), strict=True):
            self.mean_loss[index] += MEAN_LOSS_UPDATE_RATE * (value - self.mean_loss[index])
        return TARGET_LOSS * losses / self.mean_loss[self._bins[t]]
