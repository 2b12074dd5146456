"""Flux.1 (Black Forest Labs, 2024): a rectified-flow transformer, distilled to read the guidance scale.

    z_t (B, 16, h, w) --2x2 cells as one token--> (B, hw/4, 64) --FluxTransformer2DModel--> flow --> (B, 16, h, w)

guidance_scale is embedded, one pass an evaluation. With a negative prompt it is classifier-free guidance instead, two
passes, and the embedded one is 1; a model without embedded guidance (schnell) has only that.
"""

from dataclasses import replace

import torch
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline as DiffusersFluxPipeline
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from adhere.conditioning import UNTOLD, Conditioning
from adhere.core.denoise import Denoiser
from adhere.core.schedule import RectifiedFlow, Schedule
from adhere.errors import AdhereError
from adhere.families.latent import LatentPipeline, Text


class FluxPipeline(LatentPipeline, DiffusersFluxPipeline):  # pyright: ignore[reportIncompatibleMethodOverride]
    """A constrained pipeline over Flux's components. Default guidance_scale: 3.5."""

    network = "transformer"

    @property
    def patch(self) -> int:
        return 2

    @property
    def channels(self) -> int:
        return super().channels // 4

    @property
    def native_size(self) -> tuple[int, int]:
        side = self.default_sample_size * self.vae_scale_factor
        return side, side

    def schedule(self, size: tuple[int, int] | None = None) -> Schedule:
        schedule = super().schedule(size)
        return replace(schedule, last=None) if isinstance(schedule, RectifiedFlow) else schedule

    def denoiser(self, conditioning: Conditioning = UNTOLD, size: tuple[int, int] | None = None) -> Denoiser:
        text = Text.of(conditioning, 3.5)
        classifier_free = text.negative_prompt is not None and text.guidance_scale > 1
        distilled = bool(self.transformer.config["guidance_embeds"])
        if conditioning.asks_for_guidance and not distilled and not classifier_free:
            raise AdhereError(
                f"guidance_scale = {conditioning.guidance_scale:g}: this Flux embeds none; give a negative_prompt "
                "('' will do) for classifier-free guidance, or leave the scale out"
            )
        device, dtype = self.execution_device, self.transformer.dtype
        positive, pooled, text_ids = self.encode_prompt(text.prompt, device=device)
        negative, negative_pooled = None, None
        if classifier_free:
            negative, negative_pooled, _ = self.encode_prompt(text.negative_prompt or "", device=device)
        embeds, pooled = text.chosen(positive, negative, dtype), text.chosen(pooled, negative_pooled, dtype)
        embedded = 1.0 if classifier_free else text.guidance_scale

        def network(z_t: Tensor, t: float) -> Tensor:
            height, width = (side // 2 for side in z_t.shape[-2:])
            filled = lambda value: torch.full((len(z_t),), value, device=device)  # noqa: E731
            out = self.transformer(
                pixel_unshuffle(z_t, 2).flatten(2).mT,
                embeds,
                pooled,
                timestep=filled(t / 1000),
                img_ids=self._prepare_latent_image_ids(len(z_t), height, width, device, torch.float32),
                txt_ids=text_ids,
                guidance=filled(embedded) if distilled else None,
                return_dict=False,
            )[0]
            return pixel_shuffle(out.mT.unflatten(2, (height, width)), 2)

        return self.bound(network, size, text.guidance_scale if classifier_free else 1.0)
