"""Unconditional latent diffusion (Rombach et al., 2022): `LDMPipeline`, whose autoencoder is called `vqvae`.

A `VQModel` quantizes latents to its code book, which has no derivative: constraints use the decoder without it, and
only the final pictures are quantized.
"""

from typing import Any

from diffusers import LDMPipeline  # pyright: ignore[reportPrivateImportUsage]  # its module has moved between versions
from diffusers.models.autoencoders.vq_model import VQModel
from torch import Tensor

from adhere.core.denoisers import Denoiser
from adhere.pipelines.latent import DiffusersVAE, LatentPipeline
from adhere.pipelines.prompts import PromptInputs


class UnconditionalLatentPipeline(LatentPipeline, LDMPipeline):  # pyright: ignore[reportIncompatibleMethodOverride]
    """An unconditional `UNet2DModel` in the latents of `self.vqvae`, under constraints."""

    @property
    def vae(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.vqvae

    @property
    def vae_scale_factor(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return 2 ** (len(self.vqvae.config["block_out_channels"]) - 1)

    @property
    def latent_multiple(self) -> int:
        return 2 ** (len(self.unet.config["block_out_channels"]) - 1)

    @property
    def autoencoder(self) -> DiffusersVAE:
        options = {"force_not_quantize": True} if isinstance(self.vqvae, VQModel) else {}
        return self._tiled(DiffusersVAE.from_config(self.vqvae, self._record, **options))

    def decode(self, x0: Tensor) -> Tensor:
        return self._tiled(DiffusersVAE.from_config(self.vqvae, self._record)).decode(x0)

    def make_denoiser(self, prompts: PromptInputs | None = None, size: tuple[int, int] | None = None) -> Denoiser:
        def network(z_t: Tensor, t: Tensor) -> Tensor:
            return self.unet(z_t, t, return_dict=False)[0]

        return self.wrap_network(network, size)
