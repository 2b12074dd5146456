"""The keyword arguments of a pipeline's call."""

from collections.abc import Callable, Sequence
from typing import Any, TypedDict

from torch import Generator, Tensor

from adhere.core.sampling import Sampler
from adhere.core.solvers.base import Solver


class CallOptions(TypedDict, total=False):
    """The keyword arguments of `ConstrainedPipeline.__call__`, for type checkers."""

    height: int | None
    width: int | None
    num_inference_steps: int | None
    guidance_scale: float | None
    num_images_per_prompt: int
    generator: Generator | Sequence[Generator] | None
    latents: Tensor | None
    prompt_embeds: Tensor | None
    negative_prompt_embeds: Tensor | None
    pooled_prompt_embeds: Tensor | None
    negative_pooled_prompt_embeds: Tensor | None
    solver: str | Solver | Sampler | None
    decoder_backward: bool
    output_type: str
    callback_on_step_end: Callable[[Any, int, float, dict[str, Tensor]], dict[str, Tensor] | None] | None
    callback_on_step_end_tensor_inputs: Sequence[str]
