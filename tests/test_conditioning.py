"""Prompts, one for each sample, and guidance."""

import pytest

from adhere import AdhereError
from adhere.conditioning import Conditioning


def told(prompt=None, negative=None, scale=None, batch=1) -> Conditioning:
    return Conditioning.of(prompt, negative, scale, batch)


def test_one_prompt_serves_every_sample_and_several_say_how_many_there_are():
    assert told("a", batch=3).prompt == ["a", "a", "a"]
    assert told(["a", "b"]) == Conditioning(2, ["a", "b"])
    assert told(("a", "b"), "c") == Conditioning(2, ["a", "b"], ["c", "c"])
    assert told("a", ["c", "d"]) == Conditioning(2, ["a", "a"], ["c", "d"])
    assert told(["a", "b"], ["c", "d"], batch=2) == Conditioning(2, ["a", "b"], ["c", "d"])
    assert told(["a"]) == told("a")
    assert told("") != told()  # an empty prompt is one


@pytest.mark.parametrize(
    ("prompt", "negative", "batch"),
    [(["a", "b"], None, 3), (["a", "b"], ["c"], 1), (["a", "b"], ["c", "d", "e"], 1), ([], None, 1), ("a", [], 2)],
)
def test_numbers_that_do_not_fit(prompt, negative, batch):
    with pytest.raises(ValueError, match=r"samples, but .* prompts: give one, or one for each sample"):
        told(prompt, negative, batch=batch)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan")])
def test_guidance_is_above_zero(scale):
    with pytest.raises(AdhereError, match=r"guidance_scale = .*: above 0"):
        told("a", scale=scale)


@pytest.mark.parametrize(("scale", "guides"), [(None, False), (0.5, False), (1.0, False), (1.5, True)])
def test_up_to_one_is_no_guidance(scale, guides):
    assert told("a", scale=scale).asks_for_guidance is guides
