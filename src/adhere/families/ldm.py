"""Unconditional latent diffusion (Rombach et al., 2022): `LDMPipeline`, whose autoencoder is called `vqvae`.

Where that is a `VQModel`, constraints meet the decoder before its code book, whose jumps have no derivative; finished
pictures pass through it.
"""

from typing import Any

from diffusers import LDMPipeline  # pyright: ignore[reportPrivateImportUsage]  # where it lies changes
from diffusers.models.autoencoders.vq_model import VQModel
from torch import Tensor

from adhere.conditioning import UNTOLD, Conditioning
from adhere.core.denoise import Denoiser
from adhere.families.latent import Autoencoder, LatentPipeline


class UnconditionalLatentPipeline(LatentPipeline, LDMPipeline):  # pyright: ignore[reportIncompatibleMethodOverride]
    """A constrained pipeline over an unconditional `UNet2DModel` in the latents of `self.vqvae`."""

    @property
    def vae(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.vqvae

    @property
    def vae_scale_factor(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return 2 ** (len(self.vqvae.config["block_out_channels"]) - 1)

    @property
    def patch(self) -> int:
        return 2 ** (len(self.unet.config["block_out_channels"]) - 1)

    @property
    def codec(self) -> Autoencoder:
        return Autoencoder.of(self.vqvae, **({"force_not_quantize": True} if isinstance(self.vqvae, VQModel) else {}))

    def decode(self, x0: Tensor) -> Tensor:
        return Autoencoder.of(self.vqvae).decode(x0)

    def denoiser(self, conditioning: Conditioning = UNTOLD, size: tuple[int, int] | None = None) -> Denoiser:
        conditioning.refuse_text()

        def network(z_t: Tensor, t: float) -> Tensor:
            return self.unet(z_t, t, return_dict=False)[0]

        return self.bound(network, size)
