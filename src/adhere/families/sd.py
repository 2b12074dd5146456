"""Stable Diffusion 1.x and 2.x, every model in its layout such as `adhere-emoji`, and rectified flows made of it.

    prompt --CLIP--> hidden states;  z_t, t, hidden states --UNet2DConditionModel--> eps, v, or a flow

Guidance is classifier-free (Ho & Salimans, 2022), both halves in one batch, as in diffusers. The safety checker is not
run.
"""

from typing import ClassVar

from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from torch import Tensor

from adhere.conditioning import UNTOLD, Conditioning
from adhere.core.denoise import Denoiser
from adhere.core.schedule import PredictionType, RectifiedFlow, Schedule
from adhere.families.latent import LatentPipeline, Text


class SDPipeline(LatentPipeline, StableDiffusionPipeline):  # pyright: ignore[reportIncompatibleMethodOverride]
    """A constrained pipeline over Stable Diffusion's components. Default guidance_scale: 7.5."""

    default_guidance: ClassVar[float] = 7.5

    def denoiser(self, conditioning: Conditioning = UNTOLD, size: tuple[int, int] | None = None) -> Denoiser:
        text, condition = Text.of(conditioning, self.default_guidance).told_to(self)
        embeds = text.chosen(
            *self.encode_prompt(text.prompt, self.execution_device, 1, text.both, text.negative_prompt), self.unet.dtype
        )

        def network(z_t: Tensor, t: float) -> Tensor:
            return self.unet(z_t, t, embeds, timestep_cond=condition, return_dict=False)[0]

        return self.bound(network, size, text.guidance_scale)


class RectifiedFlowPipeline(SDPipeline):
    """InstaFlow and its 2-rectified flow (Liu et al., *InstaFlow*, 2024), as their authors save and run them.

    The network predicts x0 - eps at t = 1000 sigma, whatever the folder's scheduler says. Default guidance_scale: 1.5.
    """

    saved_as = "RectifiedFlowPipeline"
    default_guidance = 1.5

    def _noise_schedule(self, size: tuple[int, int] | None) -> tuple[Schedule, PredictionType]:
        return RectifiedFlow(1000.0), "reversed_flow"
