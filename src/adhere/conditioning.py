"""What the network is told besides x_t: prompts and guidance."""

from collections.abc import Sequence
from dataclasses import dataclass

from adhere.errors import AdhereError


@dataclass(frozen=True)
class Conditioning:
    """A prompt for each sample, or none. guidance_scale: the family's own where it is None; none at all up to 1."""

    batch_size: int = 1
    prompt: list[str] | None = None
    negative_prompt: list[str] | None = None
    guidance_scale: float | None = None

    @classmethod
    def of(
        cls,
        prompt: str | Sequence[str] | None,
        negative_prompt: str | Sequence[str] | None,
        guidance_scale: float | None,
        batch_size: int,
    ) -> "Conditioning":
        """One prompt serves all samples; several are one for each, and their number is the number of samples.

        Raises ValueError where the numbers differ, AdhereError for a guidance_scale that is not above 0.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size = {batch_size}: at least 1 is needed")
        if guidance_scale is not None and not guidance_scale > 0:
            raise AdhereError(f"guidance_scale = {guidance_scale:g}: above 0; 1 is none, 3 to 8 are usual")
        counts = {len(text) for text in (prompt, negative_prompt) if text is not None and not isinstance(text, str)}
        if batch_size == 1 and len(counts) == 1:
            (batch_size,) = counts
        if counts - {batch_size} or batch_size < 1:
            raise ValueError(f"{batch_size} samples, but {sorted(counts)} prompts: give one, or one for each sample")
        each = lambda text: [text] * batch_size if isinstance(text, str) else text and list(text)  # noqa: E731
        return cls(batch_size, each(prompt), each(negative_prompt), guidance_scale)

    @property
    def asks_for_guidance(self) -> bool:
        """Whether a guidance_scale was given that guides."""
        return self.guidance_scale is not None and self.guidance_scale > 1

    def refuse_text(self) -> None:
        """For models that read none. Raises AdhereError."""
        if self.prompt is not None or self.negative_prompt is not None:
            raise AdhereError("this model reads no text: leave the prompt out, or give a text-to-image model")
        if self.asks_for_guidance:
            raise AdhereError(f"guidance_scale = {self.guidance_scale:g}: this model reads no prompt to be guided to")


UNTOLD = Conditioning()
