"""What the latent families share: the state is the latents z of an autoencoder, scaled to about unit variance.

    z = (Enc(x) - shift) scale,     x = Dec(z / scale + shift)

A known part of a picture becomes a known part of the latents, as in the paper (Graikos et al., section 5.1): the cells
that are wholly known, with the values of the encoded picture; unlike there, where a hole reaches far, they are encoded
anew once it has taken shape (`adhere.core.latents.Recoded`). Any other constraint on pictures, also a known part that
is scattered over most cells, goes through the decoder (`adhere.core.latents.Through`), forward only unless autograd is
asked for.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, max_pool2d

from adhere.conditioning import Conditioning
from adhere.core.constraints import Constraint, Linear, Unconstrained
from adhere.core.denoise import Denoiser, Guided, Prediction
from adhere.core.latents import Recoded, Through
from adhere.core.operators import Mask
from adhere.core.schedule import PredictionType, Schedule
from adhere.errors import AdhereError
from adhere.families.schedules import noise_schedule
from adhere.pipeline import ConstrainedPipeline


@dataclass(frozen=True)
class Autoencoder:
    """A diffusers VAE (`AutoencoderKL`, `AutoencoderTiny`, `VQModel`) as a codec of float32 pictures in [-1, 1].

    scale, shift: one number, or one for each latent channel. options: keyword arguments of `vae.decode`. Encoding is
    deterministic: the mean of the VAE's Gaussian.
    """

    vae: Any  # diffusers' autoencoders have no common type
    scale: tuple[float, ...] = (1.0,)
    shift: tuple[float, ...] = (0.0,)
    options: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, vae: Any, **options: Any) -> "Autoencoder":
        """As its configuration says: one scale and shift, or SDXL's mean and standard deviation of each channel."""
        config = vae.config
        stds = config.get("latents_std") or [1.0]
        means = config.get("latents_mean") or [config.get("shift_factor") or 0.0]
        return cls(vae, tuple(config["scaling_factor"] / std for std in stds), tuple(map(float, means)), options)

    @property
    def dtype(self) -> torch.dtype:
        return self.vae.dtype

    def encode(self, x: Tensor) -> Tensor:
        encoded = self.vae.encode(x.to(self.dtype))
        z = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
        return (z.to(x.dtype) - self._channels(self.shift, x)) * self._channels(self.scale, x)

    def decode(self, z: Tensor) -> Tensor:
        z_vae = z / self._channels(self.scale, z) + self._channels(self.shift, z)
        return self.vae.decode(z_vae.to(self.dtype), return_dict=False, **self.options)[0].to(z.dtype)

    def _channels(self, values: tuple[float, ...], like: Tensor) -> Tensor:
        return like.new_tensor(values).view(1, -1, 1, 1)


REFRESH = (-2.0,)  # the log-SNRs at which a half-known picture is coded anew: docs/lab/adhere-emoji.md


class LatentPipeline(ConstrainedPipeline):
    """A family whose diffusion lives in the latents of `self.vae`."""

    vae: Any
    scheduler: Any
    vae_scale_factor: int

    @property
    def codec(self) -> Autoencoder:
        return Autoencoder.of(self.vae)

    @property
    def patch(self) -> int:
        """The side, in latents, of what the network takes as one."""
        return 1

    @property
    def channels(self) -> int:
        """Of the latents that the network takes."""
        return int(getattr(self, self.network).config["in_channels"])

    @property
    def multiple(self) -> int:
        return self.vae_scale_factor * self.patch

    @property
    def native_size(self) -> tuple[int, int]:
        size = getattr(self, self.network).config["sample_size"]
        height, width = (size, size) if isinstance(size, int) else size
        return height * self.vae_scale_factor, width * self.vae_scale_factor

    def state_shape(self, size: tuple[int, int]) -> tuple[int, int, int]:
        factor = self.vae_scale_factor
        return int(self.vae.config["latent_channels"]), size[0] // factor, size[1] // factor

    def schedule(self, size: tuple[int, int] | None = None) -> Schedule:
        return self._noise_schedule(size)[0]

    def _noise_schedule(self, size: tuple[int, int] | None) -> tuple[Schedule, PredictionType]:
        height, width = size or self.native_size
        return noise_schedule(self.scheduler, height // self.multiple * (width // self.multiple))

    def bound(
        self, network: Callable[[Tensor, float], Tensor], size: tuple[int, int] | None, guidance_scale: float = 1.0
    ) -> Denoiser:
        """The denoiser of a network bound to its text; above a scale of 1, to that of both halves of guidance.

        Raises AdhereError for a network that takes more than the latents: masks, or a second picture.
        """
        latents = int(self.vae.config["latent_channels"])
        if self.channels != latents:
            raise AdhereError(
                f"the network takes {self.channels} channels, the latents have {latents}: give a base model"
            )
        _, prediction = self._noise_schedule(size)
        denoiser = Prediction(network, self.schedule(size), prediction, getattr(self, self.network).dtype)
        return Guided(denoiser, guidance_scale) if guidance_scale > 1 else denoiser

    def decode(self, x0: Tensor) -> Tensor:
        return self.codec.decode(x0)

    def lift(self, constraint: Constraint, backward: bool = False) -> Constraint:
        if isinstance(constraint, Unconstrained):
            return constraint
        if isinstance(constraint, Linear) and isinstance(constraint.operator, Mask):
            pixels = constraint.operator.known
            if pixels.ndim == 4 and pixels.shape[1] == 1 and pixels.any():
                known = wholly_known(pixels, self.vae_scale_factor)
                if known.mean() >= pixels.mean() / 2:  # else cells say too little of what is known
                    z = self.codec.encode(filled(constraint.y, pixels))
                    return Recoded(
                        operator=Mask(known),
                        y=known * z,
                        noise=constraint.noise,
                        codec=self.codec,
                        picture=constraint.y,
                        known=pixels,
                        refresh=REFRESH if is_deep(pixels, 2 * self.vae_scale_factor) else (),
                    )
        return Through(constraint, self.codec, backward)


def wholly_known(known: Tensor, factor: int) -> Tensor:
    """The cells of factor x factor pixels without an unknown one: (1, 1, H, W) -> (1, 1, H/factor, W/factor)."""
    return 1 - max_pool2d(1 - known, factor)


def is_deep(known: Tensor, reach: int) -> bool:
    """Whether any pixel is more than `reach` pixels from all known ones, across and down: (B or 1, 1, H, W).

    Nearer ones a smooth fill tells better than the decoded x0 does where there is much noise.
    """
    near = max_pool2d(known, (2 * reach + 1, 1), stride=1, padding=(reach, 0))
    near = max_pool2d(near, (1, 2 * reach + 1), stride=1, padding=(0, reach))
    return bool((near == 0).any())


def filled(y: Tensor, known: Tensor) -> Tensor:
    """The picture y = known * x with its unknown part filled smoothly from the known: means over ever larger squares.

    The encoder sees beyond a cell: a black hole would colour the known cells around it. At least one pixel is known.
    """
    means, weights = y, known.expand(len(y), 1, *y.shape[-2:])
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


@dataclass(frozen=True)
class Text:
    """What to encode. guidance_scale: above 1, both halves are wanted. unconditional: the empty half alone."""

    prompt: list[str]
    negative_prompt: list[str] | None
    guidance_scale: float
    unconditional: bool

    @classmethod
    def of(cls, told: Conditioning, guidance_scale: float) -> "Text":
        """guidance_scale: the family's, unless told. Raises AdhereError for guidance towards no prompt."""
        empty, negative = [""] * told.batch_size, told.negative_prompt
        if told.prompt is None and negative is None:
            if told.asks_for_guidance:
                raise AdhereError(
                    f"guidance_scale = {told.guidance_scale:g} without a prompt: give one to be guided to"
                )
            return cls(empty, None, 1.0, unconditional=True)
        return cls(told.prompt or empty, negative, told.guidance_scale or guidance_scale, unconditional=False)

    @property
    def both(self) -> bool:
        """Whether the encoder must give the negative half too."""
        return self.guidance_scale > 1 or self.unconditional

    def told_to(self, pipe: Any) -> "tuple[Text, Tensor | None]":
        """For a UNet distilled to read the guidance scale (Luo et al., *Latent consistency models*, 2023): its
        `timestep_cond`, and the text with no guidance left to do."""
        width = pipe.unet.config.get("time_cond_proj_dim")
        if width is None:
            return self, None
        embedded = pipe.get_guidance_scale_embedding(torch.tensor([self.guidance_scale - 1]), width)
        return replace(self, guidance_scale=1.0), embedded.to(pipe.execution_device, pipe.unet.dtype)

    def chosen(self, positive: Any, negative: Any, dtype: torch.dtype) -> Tensor:
        """The embeddings of the network's batch, as `Guided` orders the halves; negative: None where there is no half.

        Both are tensors (B, ...), though diffusers' annotations say more.
        """
        if negative is None:
            return positive.to(dtype)
        return (negative if self.unconditional else torch.cat([negative, positive])).to(dtype)
