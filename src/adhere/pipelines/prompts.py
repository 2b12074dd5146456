"""Prompts and guidance: the inputs of the network besides x_t and t."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from adhere.errors import AdhereError


@dataclass(frozen=True)
class PromptInputs:
    """The prompts of a batch, one for each sample, or None.

    Attributes:
        batch_size: B.
        prompt, negative_prompt: B texts.
        prompt_embeds, negative_prompt_embeds, pooled_prompt_embeds, negative_pooled_prompt_embeds: (B, ...), as
            diffusers' `encode_prompt` returns them.
        guidance_scale: None is the default of the model; at most 1 turns guidance off.
    """

    batch_size: int = 1
    prompt: list[str] | None = None
    negative_prompt: list[str] | None = None
    prompt_embeds: Tensor | None = None
    negative_prompt_embeds: Tensor | None = None
    pooled_prompt_embeds: Tensor | None = None
    negative_pooled_prompt_embeds: Tensor | None = None
    guidance_scale: float | None = None

    def __post_init__(self) -> None:
        if self.guidance_scale is not None and not self.guidance_scale > 0:
            raise AdhereError(
                f"guidance_scale = {self.guidance_scale:g}: it must be above 0; 1 is off, 3 to 8 are usual"
            )

    def select(self, samples: Sequence[int]) -> "PromptInputs":
        """Return the prompts of some samples, by index."""
        chosen = {}
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, list):
                chosen[one.name] = [value[i] for i in samples]
            elif isinstance(value, Tensor):
                chosen[one.name] = value[list(samples)]
        return replace(self, batch_size=len(samples), **chosen)

    def as_arguments(self) -> dict[str, Any]:
        """Return the arguments of a pipeline's call with one task per sample."""
        return {one.name: getattr(self, one.name) for one in fields(self) if one.name != "batch_size"}

    @property
    def has_text(self) -> bool:
        """Whether a prompt or a negative prompt is given, as text or as embeddings."""
        texts = (self.prompt, self.negative_prompt, self.prompt_embeds, self.negative_prompt_embeds)
        return any(text is not None for text in texts)

    @property
    def is_guided(self) -> bool:
        """Whether a guidance_scale above 1 is given."""
        return self.guidance_scale is not None and self.guidance_scale > 1

    def refuse_text(self) -> None:
        """Raise AdhereError if there is a prompt or guidance, for models that read no text."""
        if self.has_text:
            raise AdhereError("this model reads no text: leave the prompt out, or use a text-to-image model")
        if self.is_guided:
            raise AdhereError(f"guidance_scale = {self.guidance_scale:g}: this model reads no prompt to be guided by")

    def check_pooled(self) -> None:
        """Raise AdhereError if embeddings are given without their pooled ones, for models that read both."""
        for name in ("prompt_embeds", "negative_prompt_embeds"):
            pooled = name.replace("prompt", "pooled_prompt")
            if (getattr(self, name) is None) != (getattr(self, pooled) is None):
                raise AdhereError(f"{name} and {pooled}: give both, as encode_prompt returns them")

    def resolve(self, default_guidance_scale: float) -> "TextConditioning":
        """Return the texts and the guidance that the text encoder needs.

        Raises:
            AdhereError: for guidance without a prompt.
        """
        if not self.has_text:
            if self.is_guided:
                raise AdhereError(f"guidance_scale = {self.guidance_scale:g} without a prompt: give one")
            return TextConditioning(self, [""] * self.batch_size, 1.0, is_unconditional=True)
        prompt = self.prompt if self.prompt_embeds is not None else self.prompt or [""] * self.batch_size
        scale = self.guidance_scale or default_guidance_scale
        return TextConditioning(self, prompt, scale, is_unconditional=False)


@dataclass(frozen=True)
class TextConditioning:
    """The text of a batch and its guidance.

    Attributes:
        inputs: the prompts that were given.
        prompt: B texts, or None where there are embeddings.
        guidance_scale: above 1, both halves of classifier-free guidance are needed.
        is_unconditional: whether only the embeddings of the empty text are used.
    """

    inputs: PromptInputs
    prompt: list[str] | None
    guidance_scale: float
    is_unconditional: bool

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the encoder must return negative embeddings too."""
        return self.guidance_scale > 1 or self.is_unconditional

    @property
    def _has_negative_text(self) -> bool:
        return any(self.inputs.negative_prompt or ())

    def check_encoders(self, pipe: Any, *encoders: str, use_cfg: bool = True) -> None:
        """Raise AdhereError if texts are to be encoded and the model was loaded without one of the encoders.

        Args:
            pipe: the pipeline.
            encoders: the names of its text encoders that are needed.
            use_cfg: whether negative embeddings are needed where `do_classifier_free_guidance` is true.
        """
        tokenizers = [name.replace("text_encoder", "tokenizer") for name in encoders]
        missing = [name for name in (*encoders, *tokenizers) if getattr(pipe, name, None) is None]
        given = self.inputs
        negative = given.negative_prompt_embeds is None and use_cfg and self.do_classifier_free_guidance
        if missing and (self.prompt is not None or given.negative_prompt is not None or negative):
            raise AdhereError(
                f"the model was loaded without {missing[0]}: load it with one, or give prompt_embeds, and "
                "negative_prompt_embeds for guidance, as encode_prompt returns them"
            )

    def guidance_embedding(self, pipe: Any) -> "tuple[TextConditioning, Tensor | None]":
        """Return (conditioning, timestep_cond) for a UNet that may be distilled to read the guidance scale.

        Such a UNet gets the scale as `timestep_cond`, and there is no classifier-free guidance. For others,
        timestep_cond is None.

        Source: Luo et al., *Latent consistency models* (2023).
        """
        width = pipe.unet.config.get("time_cond_proj_dim")
        if width is None:
            return self, None
        if self._has_negative_text:
            raise AdhereError("negative_prompt has no effect: this model is distilled to read the scale; leave it out")
        embedded = pipe.get_guidance_scale_embedding(
            torch.tensor([self.guidance_scale - 1], dtype=torch.float32, device="cpu"), width
        )
        return replace(self, guidance_scale=1.0), embedded.to(pipe.execution_device, pipe.unet.dtype)

    def cat_for_cfg(self, positive: Any, negative: Any, dtype: torch.dtype) -> Tensor:
        """Return the embeddings of the network's batch, in the order of `CFGDenoiser`: the negative half first.

        Both arguments are tensors (B, ...), although diffusers' annotations allow more. Without classifier-free
        guidance, `negative` is None or, if it was given to `encode_prompt`, not used.

        Raises:
            AdhereError: for NaN or infinity, or for a negative prompt that would have no effect.
        """
        if self._has_negative_text and not self.do_classifier_free_guidance:
            raise AdhereError(
                f"negative_prompt has no effect at guidance_scale = {self.guidance_scale:g}: leave it out, or give a "
                "scale above 1"
            )
        embeds = positive
        if negative is not None and self.do_classifier_free_guidance:
            embeds = negative if self.is_unconditional else torch.cat([negative, positive])
        if not embeds.isfinite().all():
            raise AdhereError("the embeddings of the prompt hold NaN or infinity: check them, or the text encoder")
        return embeds.to(dtype)
