"""Stable Diffusion 3 and 3.5 (Esser et al., *Scaling rectified flow transformers*, 2024).

    prompt --2 CLIPs, T5 or none--> hidden states, pooled;  z_t, t, hidden states, pooled --SD3Transformer2D--> flow

The T5 encoder may be left out (`text_encoder_3=None, tokenizer_3=None`), since the model was also trained without it.
"""

from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import StableDiffusion3Pipeline
from torch import Tensor

from adhere.core.denoisers import Denoiser
from adhere.pipelines.latent import LatentPipeline
from adhere.pipelines.prompts import PromptInputs


class SD3Pipeline(LatentPipeline, StableDiffusion3Pipeline):  # pyright: ignore[reportIncompatibleMethodOverride]
    """Stable Diffusion 3 under constraints. Default guidance_scale: 7."""

    network = "transformer"
    default_guidance_scale: float = 7.0

    @property
    def latent_multiple(self) -> int:
        return int(self.transformer.config["patch_size"])

    def make_denoiser(self, prompts: PromptInputs | None = None, size: tuple[int, int] | None = None) -> Denoiser:
        inputs = prompts or PromptInputs()
        inputs.check_pooled()
        text = inputs.resolve(self.default_guidance_scale)
        text.check_encoders(self, "text_encoder", "text_encoder_2")
        positive, negative, pooled, negative_pooled = self.encode_prompt(
            text.prompt,  # type: ignore[arg-type]  # diffusers' annotation leaves out None
            None,  # type: ignore[arg-type]  # all encoders read the same prompt
            None,  # type: ignore[arg-type]
            device=self.execution_device,
            do_classifier_free_guidance=text.do_classifier_free_guidance,
            negative_prompt=inputs.negative_prompt,
            prompt_embeds=inputs.prompt_embeds,  # type: ignore[arg-type]
            negative_prompt_embeds=inputs.negative_prompt_embeds,  # type: ignore[arg-type]
            pooled_prompt_embeds=inputs.pooled_prompt_embeds,  # type: ignore[arg-type]
            negative_pooled_prompt_embeds=inputs.negative_pooled_prompt_embeds,  # type: ignore[arg-type]
        )
        dtype = self.transformer.dtype
        embeds = text.cat_for_cfg(positive, negative, dtype)
        pooled = text.cat_for_cfg(pooled, negative_pooled, dtype)

        def network(z_t: Tensor, t: Tensor) -> Tensor:
            return self.transformer(z_t, embeds[-len(z_t) :], pooled[-len(z_t) :], t, return_dict=False)[0]

        return self.wrap_network(network, size, text.guidance_scale)
