"""Stable Diffusion 1.x and 2.x, and every model in its layout: `adhere-emoji`, and fine-tunes that predict a flow.

    prompt --CLIP--> hidden states;  z_t, t, hidden states --UNet2DConditionModel--> eps or v

Guidance is classifier-free (Ho & Salimans, 2022), both halves in one batch, as in diffusers.
"""

import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from torch import Tensor

from adhere.core.denoise import Denoiser, Prediction
from adhere.errors import AdhereError
from adhere.families.latent import LatentPipeline, prompts, with_guidance
from adhere.families.schedules import noise_schedule
from adhere.pipeline import Conditioning


class SDPipeline(LatentPipeline, StableDiffusionPipeline):  # pyright: ignore[reportIncompatibleMethodOverride]
    """A constrained pipeline over Stable Diffusion's components. Default guidance_scale: 7.5."""

    def denoiser(self, conditioning: Conditioning | None = None, size: tuple[int, int] | None = None) -> Denoiser:
        channels, latents = int(self.unet.config["in_channels"]), int(self.vae.config["latent_channels"])
        if channels != latents:
            raise AdhereError(f"the UNet takes {channels} channels, the latents have {latents}: give a base model")
        text, scale = prompts(conditioning, 7.5)
        device = self._execution_device
        embeds, negative = self.encode_prompt(text.prompt, device, 1, scale > 1, text.negative_prompt)
        if negative is not None:
            embeds = torch.cat([negative, embeds])

        def network(z_t: Tensor, t: float) -> Tensor:
            return self.unet(z_t, t, encoder_hidden_states=embeds, return_dict=False)[0]

        schedule, prediction = noise_schedule(self.scheduler)
        return Prediction(with_guidance(network, scale), schedule, prediction, self.unet.dtype)
