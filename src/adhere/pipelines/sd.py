"""Stable Diffusion 1.x and 2.x, models in its layout such as `adhere-emoji`, and rectified flows made from it.

    prompt --CLIP--> hidden states;  z_t, t, hidden states --UNet2DConditionModel--> eps, v, or a flow

Guidance is classifier-free, both halves in one batch, as in diffusers. The safety checker is not run.
"""

from typing import ClassVar

from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from torch import Tensor

from adhere.core.denoisers import Denoiser
from adhere.core.schedules import FlowSchedule, PredictionType, Schedule
from adhere.pipelines.latent import LatentPipeline
from adhere.pipelines.prompts import PromptInputs


class SDPipeline(LatentPipeline, StableDiffusionPipeline):  # pyright: ignore[reportIncompatibleMethodOverride]
    """Stable Diffusion under constraints. Default guidance_scale: 7.5."""

    default_guidance_scale: float = 7.5

    def make_denoiser(self, prompts: PromptInputs | None = None, size: tuple[int, int] | None = None) -> Denoiser:
        inputs = prompts or PromptInputs()
        text, condition = inputs.resolve(self.default_guidance_scale).guidance_embedding(self)
        text.check_encoders(self, "text_encoder")
        positive, negative = self.encode_prompt(
            text.prompt,
            self.execution_device,
            1,
            text.do_classifier_free_guidance,
            inputs.negative_prompt,
            prompt_embeds=inputs.prompt_embeds,  # type: ignore[arg-type]
            negative_prompt_embeds=inputs.negative_prompt_embeds,  # type: ignore[arg-type]
        )
        embeds = text.cat_for_cfg(positive, negative, self.unet.dtype)

        def network(z_t: Tensor, t: Tensor) -> Tensor:
            return self.unet(z_t, t, embeds[-len(z_t) :], timestep_cond=condition, return_dict=False)[0]

        return self.wrap_network(network, size, text.guidance_scale)


class RectifiedFlowPipeline(SDPipeline):
    """InstaFlow and its 2-rectified flow, as their authors save and run them. Default guidance_scale: 1.5.

    The network predicts x0 - eps at t = 1000 sigma, whatever the scheduler in the folder is.

    Source: Liu et al., *InstaFlow* (2024).
    """

    saved_as: ClassVar[str | None] = "RectifiedFlowPipeline"
    default_guidance_scale = 1.5

    def _schedule_and_type(self, size: tuple[int, int] | None) -> tuple[Schedule, PredictionType]:
        return FlowSchedule(1000.0), "reversed_flow_prediction"
