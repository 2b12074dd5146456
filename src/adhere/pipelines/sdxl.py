"""Stable Diffusion XL (Podell et al., 2023).

    prompt --2 CLIPs--> hidden states, pooled;  z_t, t, hidden states, pooled, sizes --UNet2DConditionModel--> eps or v

The network also gets the size of the original picture and its crop: here, that of the sample, not cropped. The
published VAE overflows in float16: it computes in float32 during a run where its configuration asks for that
(`force_upcast`), as in diffusers.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from torch import Tensor

from adhere.core.denoisers import Denoiser
from adhere.pipelines.latent import LatentPipeline
from adhere.pipelines.prompts import PromptInputs


class SDXLPipeline(LatentPipeline, StableDiffusionXLPipeline):  # pyright: ignore[reportIncompatibleMethodOverride]
    """Stable Diffusion XL under constraints. Default guidance_scale: 5."""

    default_guidance_scale: float = 5.0

    def make_denoiser(self, prompts: PromptInputs | None = None, size: tuple[int, int] | None = None) -> Denoiser:
        inputs = prompts or PromptInputs()
        inputs.check_pooled()
        text, condition = inputs.resolve(self.default_guidance_scale).guidance_embedding(self)
        text.check_encoders(self, "text_encoder", "text_encoder_2")
        positive, negative, pooled, negative_pooled = self.encode_prompt(
            text.prompt,  # type: ignore[arg-type]  # diffusers' annotation leaves out lists
            device=self.execution_device,
            do_classifier_free_guidance=text.do_classifier_free_guidance,
            negative_prompt=inputs.negative_prompt,  # type: ignore[arg-type]
            prompt_embeds=inputs.prompt_embeds,  # type: ignore[arg-type]
            negative_prompt_embeds=inputs.negative_prompt_embeds,  # type: ignore[arg-type]
            pooled_prompt_embeds=inputs.pooled_prompt_embeds,  # type: ignore[arg-type]
            negative_pooled_prompt_embeds=inputs.negative_pooled_prompt_embeds,  # type: ignore[arg-type]
        )
        dtype, factor = self.unet.dtype, self.vae_scale_factor
        embeds = text.cat_for_cfg(positive, negative, dtype)
        pooled = text.cat_for_cfg(pooled, negative_pooled, dtype)

        def network(z_t: Tensor, t: Tensor) -> Tensor:
            height, width = (side * factor for side in z_t.shape[-2:])
            ids = torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32, device=z_t.device)
            added = {"text_embeds": pooled[-len(z_t) :], "time_ids": ids.repeat(len(z_t), 1)}
            return self.unet(
                z_t, t, embeds[-len(z_t) :], timestep_cond=condition, added_cond_kwargs=added, return_dict=False
            )[0]

        return self.wrap_network(network, size, text.guidance_scale)

    @contextmanager
    def vae_in_float32(self) -> Iterator[None]:
        if self.vae.dtype != torch.float16 or not self.vae.config.get("force_upcast"):
            yield
            return
        self.vae.to(torch.float32)
        try:
            yield
        finally:
            self.vae.to(torch.float16)
