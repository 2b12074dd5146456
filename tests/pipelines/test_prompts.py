"""Prompts and guidance of a batch, and how the network's batch is put together from its embeddings."""

from typing import Any

import pytest
import torch

import adhere
from adhere import AdhereError
from adhere.pipelines.pixel import PixelPipeline
from adhere.pipelines.prompts import PromptInputs, TextConditioning
from tests.tiny_latent_models import tiny_ldm, tiny_sd
from tests.tiny_models import load


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan")])
def test_a_guidance_scale_must_be_above_zero(scale):
    with pytest.raises(AdhereError, match=r"guidance_scale = .*: it must be above 0"):
        PromptInputs(1, ["a"], guidance_scale=scale)


@pytest.mark.parametrize(("scale", "is_guided"), [(None, False), (0.5, False), (1.0, False), (1.5, True)])
def test_guidance_is_off_up_to_a_scale_of_one(scale, is_guided):
    assert PromptInputs(1, ["a"], guidance_scale=scale).is_guided is is_guided
    assert PromptInputs(1, ["a"], guidance_scale=scale).resolve(0.5).do_classifier_free_guidance is is_guided


def test_the_default_scale_is_used_where_there_is_a_prompt_and_no_scale():
    assert PromptInputs(1, ["a"]).resolve(7.5).guidance_scale == 7.5
    assert PromptInputs(1, ["a"], guidance_scale=2.0).resolve(7.5).guidance_scale == 2.0
    assert PromptInputs(1, negative_prompt=["a"]).resolve(7.5).guidance_scale == 7.5
    assert PromptInputs(2).resolve(7.5) == TextConditioning(PromptInputs(2), ["", ""], 1.0, is_unconditional=True)


def test_an_empty_prompt_is_a_prompt():
    assert PromptInputs(1, [""]).has_text
    assert not PromptInputs(1).has_text


def test_guidance_without_a_prompt_is_refused():
    with pytest.raises(AdhereError, match="guidance_scale = 3 without a prompt: give one"):
        PromptInputs(guidance_scale=3.0).resolve(7.5)


def test_some_samples_are_selected_by_index():
    embeds = torch.arange(3.0)[:, None]
    inputs = PromptInputs(3, ["a", "b", "c"], prompt_embeds=None, negative_prompt_embeds=embeds, guidance_scale=2.0)
    chosen = inputs.select([2, 0])
    assert (chosen.batch_size, chosen.prompt, chosen.guidance_scale) == (2, ["c", "a"], 2.0)
    assert chosen.negative_prompt is None
    assert chosen.negative_prompt_embeds is not None
    assert chosen.negative_prompt_embeds.tolist() == [[2.0], [0.0]]


def test_the_negative_half_of_the_batch_comes_first_and_only_with_guidance():
    positive, negative = torch.full((2, 1), 1.0), torch.full((2, 1), -1.0)
    for inputs, expected in (
        (PromptInputs(2, ["a", "b"], guidance_scale=2.0), [-1, -1, 1, 1]),
        (PromptInputs(2, ["a", "b"], guidance_scale=1.0), [1, 1]),
        (PromptInputs(2), [-1, -1]),  # without a prompt, the embedding of the empty text
    ):
        assert inputs.resolve(7.5).cat_for_cfg(positive, negative, torch.float32).flatten().tolist() == expected
    half = PromptInputs(2, ["a", "b"]).resolve(1.0).cat_for_cfg(positive, None, torch.float16)
    assert half.dtype == torch.float16
    assert half.tolist() == [[1.0], [1.0]]


class IgnoresPrompts(PixelPipeline):
    """A family whose author did not think of prompts."""

    def make_denoiser(self, prompts=None, size=None):
        return super().make_denoiser()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prompt": "a cat"}, "reads no text"),
        ({"negative_prompt": "a cat"}, "reads no text"),
        ({"prompt_embeds": torch.ones(1, 2, 3)}, "reads no text"),
        ({"guidance_scale": 3.0}, "reads no prompt"),
    ],
)
def test_families_without_encode_prompt_refuse_prompts(shared_model, given, message):
    pixels: Any = load(shared_model)
    families: list[Any] = [pixels, IgnoresPrompts.from_pipe(pixels), adhere.from_pipe(tiny_ldm())]
    for pipe in families:
        assert not pipe.reads_text
        with pytest.raises(AdhereError, match=message):
            pipe(adhere.Generate(), num_inference_steps=1, **given)


def test_families_with_encode_prompt_read_text(tmp_path):
    pipe: Any = adhere.from_pipe(tiny_sd(tmp_path))
    assert pipe.reads_text
