"""Stable Diffusion 3 and 3.5 (Esser et al., *Scaling rectified flow transformers*, 2024).

    prompt --2 CLIPs, T5 or none--> hidden states, pooled;  z_t, t, hidden states, pooled --SD3Transformer2D--> flow

The T5 encoder may be left out (`text_encoder_3=None, tokenizer_3=None`): the model was trained to do without.
"""

import torch
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import StableDiffusion3Pipeline
from torch import Tensor

from adhere.conditioning import UNTOLD, Conditioning
from adhere.core.denoise import Denoiser
from adhere.families.latent import LatentPipeline, Text


class SD3Pipeline(LatentPipeline, StableDiffusion3Pipeline):  # pyright: ignore[reportIncompatibleMethodOverride]
    """A constrained pipeline over Stable Diffusion 3's components. Default guidance_scale: 7."""

    network = "transformer"

    @property
    def patch(self) -> int:
        return int(self.transformer.config["patch_size"])

    def denoiser(self, conditioning: Conditioning = UNTOLD, size: tuple[int, int] | None = None) -> Denoiser:
        text = Text.of(conditioning, 7.0)
        positive, negative, pooled, negative_pooled = self.encode_prompt(
            text.prompt,
            None,  # type: ignore[arg-type]  # diffusers' annotation leaves out None: all encoders read the same
            None,  # type: ignore[arg-type]
            device=self.execution_device,
            do_classifier_free_guidance=text.both,
            negative_prompt=text.negative_prompt,
        )
        dtype = self.transformer.dtype
        embeds, pooled = text.chosen(positive, negative, dtype), text.chosen(pooled, negative_pooled, dtype)

        def network(z_t: Tensor, t: float) -> Tensor:
            times = torch.full((len(z_t),), t, device=z_t.device)
            return self.transformer(z_t, embeds, pooled, times, return_dict=False)[0]

        return self.bound(network, size, text.guidance_scale)
