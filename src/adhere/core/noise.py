"""White noise from explicit generators, which is the same for a batch and for single runs."""

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from adhere.core.schedules import Schedule
from adhere.errors import InvalidInput

Generators = Generator | Sequence[Generator]  # one for the whole batch, or one per sample


def randn(shape: Sequence[int], like: Tensor, generator: Generators) -> Tensor:
    """Return white noise in the dtype and on the device of `like`, drawn on the generator's device.

    Args:
        shape: (B, ...).
        like: any tensor of the dtype and device to return.
        generator: one for the batch, or one per sample; with one per sample, a batch gets the noise of single runs.

    Raises:
        ValueError: if the number of generators is not B.
    """
    if isinstance(generator, Generator):
        return torch.randn(*shape, dtype=like.dtype, device=generator.device, generator=generator).to(like.device)
    if len(generator) != shape[0]:
        raise InvalidInput(f"{len(generator)} generators for a batch of {shape[0]}: give one, or one per sample")
    return torch.cat([randn((1, *shape[1:]), like, one) for one in generator])


def check_generator(generator: object, batch_size: int) -> Generators:
    """Return the generator or the list of generators of a batch; None gets a seed from torch's global generator.

    Raises:
        TypeError: for anything but generators.
        ValueError: for another number of generators than samples.
    """
    if generator is None:
        return Generator().manual_seed(int(torch.randint(2**62, (1,), device="cpu")))
    if isinstance(generator, Generator):
        return generator
    if isinstance(generator, int):
        raise InvalidInput(f"generator = {generator}: write generator=torch.Generator().manual_seed({generator})")
    if not isinstance(generator, Sequence) or not all(isinstance(one, Generator) for one in generator):
        raise InvalidInput(f"generator = {generator!r}: give a torch.Generator, or a list with one per sample")
    if len(generator) != batch_size:
        raise InvalidInput(f"{len(generator)} generators for a batch of {batch_size}: give one, or one per sample")
    return list(generator)


def initial_noise(schedule: Schedule, t: float, noise: Tensor) -> Tensor:
    """Return x_T for a run that begins at time t: white noise scaled to the variance of x_t for x0 of unit variance.

    The factor is sqrt(alpha_t^2 + sigma_t^2), which is 1 for a variance-preserving schedule.
    """
    alpha_t, sigma_t = schedule(t)
    return math.sqrt(alpha_t**2 + sigma_t**2) * noise
