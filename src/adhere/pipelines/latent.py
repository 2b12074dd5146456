"""What the latent families share: states are the latents z of an autoencoder, scaled to about unit variance.

    z = (Enc(x) - shift) scale,     x = Dec(z / scale + shift)

A known part of a picture becomes a known part of the latents, as in the paper (Graikos et al., section 5.1): the cells
whose pixels are all known, with the latents of the picture. Where a masked region is wide, they are re-encoded during
the run (`KnownLatents`), which the paper does not do. Any other constraint on pictures, and a known part that is
scattered over most cells, is applied through the decoder (`DecodedConstraint`).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, max_pool2d
from torch.utils.checkpoint import checkpoint

from adhere.core._linalg import constants
from adhere.core._tiles import in_tiles
from adhere.core.constraints import Constraint, Linear, Unconstrained, mask_of
from adhere.core.covariance import StationaryCovariance
from adhere.core.denoisers import CFGDenoiser, Denoiser, NetworkDenoiser
from adhere.core.latents import DecodedConstraint, KnownLatents
from adhere.core.operators import Mask
from adhere.core.sampling import Sampler
from adhere.core.schedules import PredictionType, Schedule
from adhere.errors import AdhereError, InvalidInput
from adhere.pipelines.base import ConstrainedPipeline
from adhere.pipelines.schedulers import noise_schedule

_REENCODE_AT = (-2.0,)  # log-SNR in nats, measured on adhere-emoji (docs/experiments/adhere-emoji.md)


@dataclass(frozen=True)
class DiffusersVAE:
    """A diffusers autoencoder (`AutoencoderKL`, `AutoencoderTiny`, `VQModel`) for float32 pictures in [-1, 1].

    Encoding is deterministic: the mean of the VAE's Gaussian.

    Attributes:
        vae: the autoencoder.
        scale, shift: one number, or one per latent channel.
        decode_options: keyword arguments of `vae.decode`.
        record: called as record(part, given, returned) after each encoding and decoding.
        tiles: the side and the overlap of tiles in which larger pictures are encoded and decoded, in cells of the
            latents; None is without tiles.
        factor: the side of a cell in pixels.
    """

    vae: Any  # diffusers' autoencoders have no common type
    scale: tuple[float, ...] = (1.0,)
    shift: tuple[float, ...] = (0.0,)
    decode_options: dict[str, Any] = field(default_factory=dict)
    record: Callable[[str, Tensor, Tensor], None] | None = field(default=None, compare=False, repr=False)
    tiles: tuple[int, int] | None = None
    factor: int = 1

    @classmethod
    def from_config(
        cls, vae: Any, record: Callable[[str, Tensor, Tensor], None] | None = None, **decode_options: Any
    ) -> "DiffusersVAE":
        """Return the autoencoder with the scale and shift of its configuration, or those per channel (SDXL)."""
        config = vae.config
        stds = config.get("latents_std") or [1.0]
        means = config.get("latents_mean") or [config.get("shift_factor") or 0.0]
        scale = tuple(config["scaling_factor"] / std for std in stds)
        return cls(vae, scale, tuple(map(float, means)), decode_options, record)

    @property
    def dtype(self) -> torch.dtype:
        return self.vae.dtype

    def encode(self, x: Tensor) -> Tensor:
        z = self._whole_or_in_tiles(self._encode, x, self.factor, 1)
        z = (z - self._per_channel(self.shift, x)) * self._per_channel(self.scale, x)
        if self.record is not None:
            self.record("encoder of the VAE", x, z)
        return z

    def decode(self, z: Tensor) -> Tensor:
        z_vae = z / self._per_channel(self.scale, z) + self._per_channel(self.shift, z)
        x = self._whole_or_in_tiles(self._decode, z_vae, 1, self.factor)
        if self.record is not None:
            self.record("decoder of the VAE", z, x)
        return x

    def _encode(self, x: Tensor) -> Tensor:
        encoded = self.vae.encode(x.to(self.dtype))
        return (encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents).to(x.dtype)

    def _decode(self, z: Tensor) -> Tensor:
        return self.vae.decode(z.to(self.dtype), return_dict=False, **self.decode_options)[0].to(z.dtype)

    def _whole_or_in_tiles(
        self, function: Callable[[Tensor], Tensor], x: Tensor, cell_in: int, cell_out: int
    ) -> Tensor:
        """Return function(x), in tiles if x is larger than one; a backward pass then recomputes their activations.

        Args:
            function: maps (B, C, H, W) to a tensor with as many cells.
            x: (B, C, H, W).
            cell_in, cell_out: the side of a cell in x and in what is returned: 1 for latents, `factor` for pictures.
        """
        if self.tiles is None or max(x.shape[-2:]) <= self.tiles[0] * cell_in:
            return function(x)
        one = function
        if torch.is_grad_enabled() and x.requires_grad:
            one = partial(checkpoint, function, use_reentrant=False)
        return in_tiles(one, x, *self.tiles, cell_in, cell_out)

    def _per_channel(self, values: tuple[float, ...], like: Tensor) -> Tensor:
        return constants(values, like.dtype, like.device).view(1, -1, 1, 1)


class LatentPipeline(ConstrainedPipeline):
    """Base of the families whose states are the latents of `self.vae`."""

    vae: Any
    scheduler: Any
    vae_scale_factor: int
    _uses_default_tile_size: bool = True
    _chosen_tile_size: int | None = None  # unless the default is used; None is without tiles
    _coarse_max_log_snr: float = 1.0  # in nats; up to this, the network sees large pictures at a lower resolution
    guidance_max_log_snr: float = math.inf  # in nats; above this, guidance is off, which saves half of the passes
    _guidance_scale: float = 1.0  # of the current call, or of the last one

    @property
    def is_latent(self) -> bool:
        return True

    @property
    def autoencoder(self) -> DiffusersVAE:
        """The autoencoder that constraints use."""
        return self._tiled(DiffusersVAE.from_config(self.vae, self._record))

    def _tiled(self, vae: DiffusersVAE) -> DiffusersVAE:
        """Return the autoencoder, working in tiles of the same size as those of the network."""
        side = self.tile_size
        return vae if side is None else replace(vae, tiles=(side, side // 4), factor=self.vae_scale_factor)

    @property
    def tile_size(self) -> int | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The side of the tiles of network, encoder and decoder, in cells of the latents; None is without tiles.

        By default it is twice the longer native side: smaller tiles leave visible seams (docs/tasks.md).
        """
        return 2 * self._native_side if self._uses_default_tile_size else self._chosen_tile_size

    @tile_size.setter
    def tile_size(self, value: int | None) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        if value is not None and value < 1:
            raise InvalidInput(
                f"tile_size = {value}: give a side of at least 1 cell of the latents, or None for no tiles"
            )
        self._uses_default_tile_size, self._chosen_tile_size = False, value

    @property
    def _native_side(self) -> int:
        return max(self.native_size) // self.vae_scale_factor

    def _tiles(self, size: tuple[int, int]) -> tuple[int, int] | None:
        return None if self.tile_size is None else (self.tile_size, self.tile_size // 4)

    def _scales(self, size: tuple[int, int], sampler: Sampler) -> tuple[int, float, int | None] | None:
        """Return the scales at which the network sees pictures of at least twice the native side, at high noise."""
        ratio = max(size) / self.vae_scale_factor / self._native_side
        if ratio < 2 or self.tile_size is None:
            return None
        return round(math.log2(ratio)), self._coarse_max_log_snr, self.latent_multiple

    @property
    def _record(self) -> Callable[[str, Tensor, Tensor], None] | None:
        return None if self._checks is None else self._checks.record

    @property
    def latent_multiple(self) -> int:
        """Heights and widths of latents must be multiples of this, such as the side of a transformer's patches."""
        return 1

    @property
    def latent_channels(self) -> int:
        """The number of channels of the latents that the network takes."""
        return int(getattr(self, self.network).config["in_channels"])

    @property
    def _compiled_modules(self) -> list[torch.nn.Module]:
        """The modules that `compile` compiles: the network, the encoder and the decoder."""
        return [*super()._compiled_modules, self.vae.encoder, self.vae.decoder]

    @property
    def prior_covariance(self) -> StationaryCovariance:
        return self.prior_spectrum or StationaryCovariance.isotropic(int(self.vae.config["latent_channels"]))

    @property
    def multiple(self) -> int:
        return self.vae_scale_factor * self.latent_multiple

    @property
    def native_size(self) -> tuple[int, int]:
        size = getattr(self, self.network).config["sample_size"] or 64  # as in diffusers
        height, width = (size, size) if isinstance(size, int) else size
        return height * self.vae_scale_factor, width * self.vae_scale_factor

    def state_shape(self, size: tuple[int, int]) -> tuple[int, int, int]:
        factor = self.vae_scale_factor
        return int(self.vae.config["latent_channels"]), size[0] // factor, size[1] // factor

    def schedule(self, size: tuple[int, int] | None = None) -> Schedule:
        return self._schedule_and_type(size)[0]

    def _schedule_and_type(self, size: tuple[int, int] | None) -> tuple[Schedule, PredictionType]:
        height, width = size or self.native_size
        return noise_schedule(self.scheduler, height // self.multiple * (width // self.multiple))

    def check_network(self) -> None:
        channels = int(self.vae.config["latent_channels"])
        if self.latent_channels != channels:
            raise AdhereError(
                f"the network takes {self.latent_channels} channels, the latents have {channels}: use a base model "
                "with an autoencoder that was made for it"
            )

    def wrap_network(
        self,
        network: Callable[[Tensor, Tensor], Tensor],
        size: tuple[int, int] | None,
        guidance_scale: float = 1.0,
    ) -> Denoiser:
        """Return the denoiser of a network, with classifier-free guidance where the scale is above 1.

        Args:
            network: maps (z_t, t), t (B,), to its prediction; with guidance, for both halves as one batch, or for the
                conditional half alone.
            size: (height, width) of the pictures in pixels.
            guidance_scale: up to 1, there is no guidance.
        """
        if getattr(getattr(self, self.network), "encoder_hid_proj", None) is not None:
            raise AdhereError("an IP-Adapter is loaded, which is not supported: call pipe.unload_ip_adapter()")
        schedule, prediction_type = self.schedule(size), self._schedule_and_type(size)[1]
        denoiser = NetworkDenoiser(network, schedule, prediction_type, getattr(self, self.network).dtype)
        scale = self._current_scale(guidance_scale)
        return CFGDenoiser(denoiser, scale, self.guidance_max_log_snr) if guidance_scale > 1 else denoiser

    def _current_scale(self, guidance_scale: float) -> Callable[[], float]:
        """Return a function that returns the scale; during a call, callbacks may change it, as in diffusers."""
        if self._checks is None:
            return lambda: guidance_scale
        self._guidance_scale = guidance_scale
        return lambda: self._guidance_scale

    def decode(self, x0: Tensor) -> Tensor:
        return self.autoencoder.decode(x0)

    def to_latent_constraint(self, constraint: Constraint, backward: bool = False) -> Constraint:
        if isinstance(constraint, Unconstrained):
            return constraint
        known = mask_of(constraint)
        if isinstance(constraint, Linear) and known is not None:
            latents = self._known_latents(constraint, known)
            if latents is not None:
                return latents
        return DecodedConstraint(constraint, self.autoencoder, backward)

    def _known_latents(self, constraint: Linear, known: Tensor) -> KnownLatents | None:
        """Return the latents of the known pixels, or None if too few cells are known as a whole."""
        if known.ndim != 4 or known.shape[1] != 1 or not known.any():
            return None
        cells = _fully_known_cells(known, self.vae_scale_factor)
        if cells.mean() < known.mean() / 2:
            return None
        z = self.autoencoder.encode(_fill_unknown(constraint.y, known))
        return KnownLatents(
            operator=Mask(cells),
            y=cells * z,
            noise=_noise_of_cells(constraint.noise, self.vae_scale_factor),
            autoencoder=self.autoencoder,
            picture=constraint.y,
            known=known,
            reencode_at=_REENCODE_AT if _hole_wider_than(known, 2 * self.vae_scale_factor) else (),
        )


def _noise_of_cells(noise: float | Tensor, factor: int) -> float | Tensor:
    """Return the noise of the latents: for noise per pixel (B or 1, C or 1, H, W), the largest of the cell's pixels."""
    return max_pool2d(noise.amax(1, keepdim=True), factor) if isinstance(noise, Tensor) else noise


def _fully_known_cells(known: Tensor, factor: int) -> Tensor:
    """Return the cells of factor x factor pixels that are all known: (1, 1, H, W) -> (1, 1, H/factor, W/factor)."""
    return 1 - max_pool2d(1 - known, factor)


def _hole_wider_than(known: Tensor, distance: int) -> bool:
    """Return whether a pixel has no known pixel within `distance`, horizontally and vertically: (B or 1, 1, H, W).

    In a narrower hole, a smooth fill is closer to the picture than the decoded x0 at high noise.
    """
    near = max_pool2d(known, (2 * distance + 1, 1), stride=1, padding=(distance, 0))
    near = max_pool2d(near, (1, 2 * distance + 1), stride=1, padding=(0, distance))
    return bool((near == 0).any())


def _fill_unknown(y: Tensor, known: Tensor) -> Tensor:
    """Return the picture y = known * x with its unknown part filled smoothly: by means over growing squares.

    The encoder's receptive field is larger than a cell, so a black hole would change the latents around it. At least
    one pixel must be known.
    """
    means, weights = y, known.expand(len(y), 1, *y.shape[-2:])
    pyramid = [(means, weights)]
    while bool((pyramid[-1][1] == 0).any()):
        means, weights = pyramid[-1]
        means, weights = (avg_pool2d(part, 2, ceil_mode=True, count_include_pad=False) for part in (means, weights))
        pyramid.append((means, weights))
    means, weights = pyramid.pop()
    picture = means / weights
    for means, weights in reversed(pyramid):
        coarse = interpolate(picture, means.shape[-2:], mode="bilinear", align_corners=False)
        picture = torch.where(weights > 0, means / weights.clamp_min(1e-12), coarse)
    return picture
