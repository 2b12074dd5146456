"""What the latent families share: the state is the latents z of an autoencoder, scaled to about unit variance.

    z = (Enc(x) - shift) scale,     x = Dec(z / scale + shift)

A known part of a picture becomes a known part of the latents, as in the paper (Graikos et al., section 5.1): the cells
that are wholly known, with the values of the encoded picture. Any other constraint on pictures goes through the
decoder (`adhere.core.latents.Through`), forward only unless autograd is asked for.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, max_pool2d

from adhere.core.constraints import Constraint, Linear, Unconstrained
from adhere.core.latents import Through
from adhere.core.operators import Mask
from adhere.pipeline import Conditioning, ConstrainedPipeline


@dataclass(frozen=True)
class Autoencoder:
    """A diffusers VAE (`AutoencoderKL`, `AutoencoderTiny`, `VQModel`) as a codec of float32 pictures in [-1, 1].

    Encoding is deterministic: the mean of the VAE's Gaussian.
    """

    vae: Any  # diffusers' autoencoders have no common type
    scale: float
    shift: float = 0.0

    @classmethod
    def of(cls, vae: Any) -> "Autoencoder":
        config = vae.config
        return cls(vae, float(config["scaling_factor"]), float(config.get("shift_factor") or 0.0))

    @property
    def dtype(self) -> torch.dtype:
        return self.vae.dtype

    def encode(self, x: Tensor) -> Tensor:
        encoded = self.vae.encode(x.to(self.dtype))
        z = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
        return (z.to(x.dtype) - self.shift) * self.scale

    def decode(self, z: Tensor) -> Tensor:
        return self.vae.decode((z / self.scale + self.shift).to(self.dtype), return_dict=False)[0].to(z.dtype)


class LatentPipeline(ConstrainedPipeline):
    """A family whose diffusion lives in the latents of `self.vae`."""

    vae: Any
    scheduler: Any
    vae_scale_factor: int

    @property
    def codec(self) -> Autoencoder:
        return Autoencoder.of(self.vae)

    @property
    def multiple(self) -> int:
        return self.vae_scale_factor

    @property
    def native_size(self) -> tuple[int, int]:
        side = int(getattr(self, self.network).config["sample_size"]) * self.vae_scale_factor
        return side, side

    def state_shape(self, size: tuple[int, int]) -> tuple[int, int, int]:
        factor = self.vae_scale_factor
        return int(self.vae.config["latent_channels"]), size[0] // factor, size[1] // factor

    def decode(self, x0: Tensor) -> Tensor:
        return self.codec.decode(x0)

    def lift(self, constraint: Constraint, backward: bool = False) -> Constraint:
        if isinstance(constraint, Unconstrained):
            return constraint
        if isinstance(constraint, Linear) and isinstance(constraint.operator, Mask):
            known = wholly_known(constraint.operator.known, self.vae_scale_factor)
            z = self.codec.encode(filled(constraint.y, constraint.operator.known))
            return Linear(Mask(known), known * z, constraint.noise)
        return Through(constraint, self.codec, backward)


def wholly_known(known: Tensor, factor: int) -> Tensor:
    """The cells of factor x factor pixels without an unknown one: (1, 1, H, W) -> (1, 1, H/factor, W/factor)."""
    return 1 - max_pool2d(1 - known, factor)


def filled(y: Tensor, known: Tensor) -> Tensor:
    """The picture y = known * x with its unknown part filled smoothly from the known: means over ever larger squares.

    The encoder sees beyond a cell: a black hole would colour the known cells around it.
    """
    means, weights = y, known.expand(len(y), 1, *y.shape[-2:])
    if not bool(weights.any()):
        return y
    levels = [(means, weights)]
    while bool((levels[-1][1] == 0).any()):
        means, weights = levels[-1]
        means, weights = (avg_pool2d(part, 2, ceil_mode=True, count_include_pad=False) for part in (means, weights))
        levels.append((means, weights))
    means, weights = levels.pop()
    picture = means / weights
    for means, weights in reversed(levels):
        coarse = interpolate(picture, means.shape[-2:], mode="bilinear", align_corners=False)
        picture = torch.where(weights > 0, means / weights.clamp_min(1e-12), coarse)
    return picture


def prompts(conditioning: Conditioning | None, guidance_scale: float) -> tuple[Conditioning, float]:
    """What to encode, and the guidance scale: the family's, unless told; 1, no guidance, when there is no prompt."""
    if conditioning is None or conditioning.prompt is None:
        count = 1 if conditioning is None else conditioning.batch_size
        return Conditioning(count, [""] * count), 1.0
    return conditioning, conditioning.guidance_scale or guidance_scale


def with_guidance(network: Callable[[Tensor, float], Tensor], scale: float) -> Callable[[Tensor, float], Tensor]:
    """uncond + scale (cond - uncond), of a network bound to [negative prompts, prompts]; as it is for scale <= 1."""
    if scale <= 1:
        return network

    def guided(x_t: Tensor, t: float) -> Tensor:
        unconditional, conditional = network(torch.cat([x_t, x_t]), t).chunk(2)
        return unconditional + scale * (conditional - unconditional)

    return guided
