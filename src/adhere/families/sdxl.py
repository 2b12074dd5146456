"""Stable Diffusion XL (Podell et al., 2023).

    prompt --2 CLIPs--> hidden states, pooled;  z_t, t, hidden states, pooled, sizes --UNet2DConditionModel--> eps or v

The network is told that the picture was made at the size it has, uncropped. The published VAE overflows in float16: as
in diffusers it is float32 for the run, when its configuration asks for it (`force_upcast`).
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from torch import Tensor

from adhere.conditioning import UNTOLD, Conditioning
from adhere.core.denoise import Denoiser
from adhere.families.latent import LatentPipeline, Text


class SDXLPipeline(LatentPipeline, StableDiffusionXLPipeline):  # pyright: ignore[reportIncompatibleMethodOverride]
    """A constrained pipeline over Stable Diffusion XL's components. Default guidance_scale: 5."""

    def denoiser(self, conditioning: Conditioning = UNTOLD, size: tuple[int, int] | None = None) -> Denoiser:
        text, condition = Text.of(conditioning, 5.0).told_to(self)
        positive, negative, pooled, negative_pooled = self.encode_prompt(
            text.prompt,  # type: ignore[arg-type]  # diffusers' annotation leaves out lists
            device=self.execution_device,
            do_classifier_free_guidance=text.both,
            negative_prompt=text.negative_prompt,  # type: ignore[arg-type]
        )
        dtype, factor = self.unet.dtype, self.vae_scale_factor
        embeds, pooled = text.chosen(positive, negative, dtype), text.chosen(pooled, negative_pooled, dtype)

        def network(z_t: Tensor, t: float) -> Tensor:
            height, width = (side * factor for side in z_t.shape[-2:])
            ids = torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32, device=z_t.device)
            added = {"text_embeds": pooled, "time_ids": ids.repeat(len(z_t), 1)}
            return self.unet(z_t, t, embeds, timestep_cond=condition, added_cond_kwargs=added, return_dict=False)[0]

        return self.bound(network, size, text.guidance_scale)

    @contextmanager
    def running(self) -> Iterator[None]:
        if self.vae.dtype != torch.float16 or not self.vae.config.get("force_upcast"):
            yield
            return
        self.vae.to(torch.float32)
        try:
            yield
        finally:
            self.vae.to(torch.float16)
