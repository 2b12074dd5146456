"""Flux.1 (Black Forest Labs, 2024): a rectified-flow transformer that is distilled to read the guidance scale.

    z_t (B, 16, h, w) --2x2 cells as one token--> (B, hw/4, 64) --FluxTransformer2DModel--> flow --> (B, 16, h, w)

guidance_scale is embedded and takes one pass per evaluation. With a negative prompt, classifier-free guidance is used
instead: two passes, and the embedded scale is 1. A model without embedded guidance (schnell) has only the latter.
"""

from dataclasses import replace

import torch
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline as DiffusersFluxPipeline
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from adhere.core.denoisers import Denoiser
from adhere.core.schedules import FlowSchedule, Schedule
from adhere.errors import AdhereError
from adhere.pipelines.latent import LatentPipeline
from adhere.pipelines.prompts import PromptInputs, TextConditioning


class FluxPipeline(LatentPipeline, DiffusersFluxPipeline):  # pyright: ignore[reportIncompatibleMethodOverride]
    """Flux under constraints. Default guidance_scale: 3.5."""

    network = "transformer"
    default_guidance_scale: float = 3.5

    @property
    def latent_multiple(self) -> int:
        return 2

    @property
    def latent_channels(self) -> int:
        return super().latent_channels // 4

    @property
    def native_size(self) -> tuple[int, int]:
        side = self.default_sample_size * self.vae_scale_factor
        return side, side

    def schedule(self, size: tuple[int, int] | None = None) -> Schedule:
        schedule = super().schedule(size)
        return replace(schedule, s_end=None) if isinstance(schedule, FlowSchedule) else schedule

    def make_denoiser(self, prompts: PromptInputs | None = None, size: tuple[int, int] | None = None) -> Denoiser:
        inputs = prompts or PromptInputs()
        inputs.check_pooled()
        text = inputs.resolve(self.default_guidance_scale)
        has_negative = inputs.negative_prompt is not None or inputs.negative_prompt_embeds is not None
        use_cfg = has_negative and text.guidance_scale > 1
        is_distilled = bool(self.transformer.config["guidance_embeds"])
        if inputs.is_guided and not is_distilled and not use_cfg:
            raise AdhereError(
                f"guidance_scale = {inputs.guidance_scale:g}: this Flux embeds no guidance; give a negative_prompt "
                "('' works) for classifier-free guidance, or leave the scale out"
            )
        text.check_encoders(self, "text_encoder", "text_encoder_2", use_cfg=use_cfg)
        embeds, pooled, text_ids = self._encode(text, use_cfg)
        device = self.execution_device

        def network(z_t: Tensor, t: Tensor) -> Tensor:
            height, width = (side // 2 for side in z_t.shape[-2:])
            guidance = z_t.new_full((len(z_t),), 1.0 if use_cfg else scale(), dtype=torch.float32)
            out = self.transformer(
                pixel_unshuffle(z_t, 2).flatten(2).mT,
                embeds[-len(z_t) :],
                pooled[-len(z_t) :],
                timestep=t / 1000,
                img_ids=self._prepare_latent_image_ids(len(z_t), height, width, device, torch.float32),
                txt_ids=text_ids,
                guidance=guidance if is_distilled else None,
                return_dict=False,
            )[0]
            return pixel_shuffle(out.mT.unflatten(2, (height, width)), 2)

        denoiser = self.wrap_network(network, size, text.guidance_scale if use_cfg else 1.0)
        scale = self._current_scale(text.guidance_scale)
        return denoiser

    def _encode(self, text: TextConditioning, use_cfg: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Return (embeddings, pooled embeddings, ids of the tokens), with both halves for classifier-free guidance."""
        inputs, device = text.inputs, self.execution_device
        positive, pooled, text_ids = self.encode_prompt(
            text.prompt,  # type: ignore[arg-type]
            device=device,
            prompt_embeds=inputs.prompt_embeds,  # type: ignore[arg-type]
            pooled_prompt_embeds=inputs.pooled_prompt_embeds,  # type: ignore[arg-type]
        )
        negative, negative_pooled = None, None
        if use_cfg:
            negative, negative_pooled, _ = self.encode_prompt(
                inputs.negative_prompt or "",
                device=device,
                prompt_embeds=inputs.negative_prompt_embeds,  # type: ignore[arg-type]
                pooled_prompt_embeds=inputs.negative_pooled_prompt_embeds,  # type: ignore[arg-type]
            )
        dtype = self.transformer.dtype
        return text.cat_for_cfg(positive, negative, dtype), text.cat_for_cfg(pooled, negative_pooled, dtype), text_ids
