"""How a call is divided: prompts and tasks into samples, samples into runs."""

import pytest
import torch

from adhere import Generate, Linear, Loss, Mask
from adhere.core.constraints import Constraint, Unconstrained
from adhere.pipelines._runs import Batch, plan_runs, requested_size
from adhere.tasks.base import Crop

NO_EMBEDS = (None, None, None, None)


def batch(task=None, prompt=None, negative_prompt=None, num_images=1, embeds=NO_EMBEDS) -> Batch:
    return Batch.of(task or Generate(), prompt, negative_prompt, embeds, None, num_images)


def texts(one: Batch) -> tuple:
    return one.size, one.prompts.prompt, one.prompts.negative_prompt


def test_one_prompt_serves_every_sample_and_several_give_one_picture_each():
    assert texts(batch(prompt="a", num_images=3)) == (3, ["a", "a", "a"], None)
    assert texts(batch(prompt=["a", "b"])) == (2, ["a", "b"], None)
    assert texts(batch(prompt=("a", "b"), negative_prompt="c")) == (2, ["a", "b"], ["c", "c"])
    assert texts(batch(prompt="a", negative_prompt=["c", "d"])) == (2, ["a", "a"], ["c", "d"])
    assert texts(batch(prompt=["a", "b"], negative_prompt=["c", "d"])) == (2, ["a", "b"], ["c", "d"])
    assert texts(batch(prompt=["a"])) == texts(batch(prompt="a"))
    assert texts(batch(prompt="")) != texts(batch())  # an empty prompt is a prompt


def test_several_prompts_have_several_samples_each_as_in_diffusers():
    assert texts(batch(prompt=["a", "b"], num_images=2)) == (4, ["a", "a", "b", "b"], None)
    tasks = [Generate((8, 8)), Generate((16, 16))]
    one = batch(tasks, ["a", "b"], num_images=2)
    assert texts(one) == (4, ["a", "a", "b", "b"], None)
    assert one.tasks == tasks
    assert texts(batch(tasks, "a")) == (2, ["a", "a"], None)


def test_embeddings_are_repeated_as_prompts_are():
    embeds = torch.arange(2.0)[:, None]
    assert batch(embeds=(embeds, None, None, None), num_images=2).prompts.prompt_embeds.tolist() == [
        [0.0],
        [0.0],
        [1.0],
        [1.0],
    ]
    assert batch([Generate()] * 3, embeds=(embeds[1:], None, None, None)).prompts.prompt_embeds.tolist() == [[1.0]] * 3


@pytest.mark.parametrize(
    ("num_tasks", "prompt", "negative_prompt"),
    [(1, ["a", "b"], ["c", "d", "e"]), (3, ["a", "b"], None), (2, "a", ["c", "d", "e"]), (1, [], None), (2, "a", [])],
)
def test_numbers_of_tasks_and_prompts_that_do_not_agree_are_refused(num_tasks, prompt, negative_prompt):
    with pytest.raises(ValueError, match="give one prompt, or one per task"):
        batch([Generate()] * num_tasks, prompt, negative_prompt)


def known_left(size: int = 4, noise: float = 0.0) -> Linear:
    known = torch.zeros(1, 1, size, size)
    known[..., : size // 2] = 1
    return Linear(Mask(known), known.expand(1, 3, -1, -1), noise)


def plan(*crops: list[Constraint]) -> list[list[tuple[int, int]]]:
    """Return the (request, crop) pairs of each run, for constraints on pictures of 4x4 pixels."""
    return [run.parts for run in plan_runs([[Crop((4, 4), c) for c in parts] for parts in crops], lambda c: c, 2)]


def test_requests_share_a_run_if_size_and_kind_of_constraint_agree():
    assert plan([known_left()], [known_left()]) == [[(0, 0), (1, 0)]]
    assert plan([Unconstrained()], [Unconstrained()]) == [[(0, 0), (1, 0)]]
    assert plan([known_left()], [Unconstrained()], [known_left()]) == [[(0, 0), (2, 0)], [(1, 0)]]
    assert plan([known_left()], [known_left(noise=0.1)]) == [[(0, 0)], [(1, 0)]]
    loss = Loss(lambda x: x.square().mean((1, 2, 3)))
    assert plan([loss], [loss]) == [[(0, 0)], [(1, 0)]]


def test_crops_of_one_request_never_share_a_run():
    assert plan([known_left(), known_left()], [known_left()]) == [[(0, 0), (1, 0)], [(0, 1)]]


def test_the_samples_of_a_run_are_those_of_its_requests():
    crops = [[Crop((4, 4), known_left())], [Crop((8, 8), known_left(8))], [Crop((4, 4), known_left())]]
    first, second = plan_runs(crops, lambda c: c, 2)
    assert first.samples == [0, 1, 4, 5]
    assert second.samples == [2, 3]
    assert first.constraint.neg_grad(torch.zeros(4, 3, 4, 4)).shape == (4, 3, 4, 4)


@pytest.mark.parametrize(
    ("height", "width", "expected"), [(None, None, None), (8, None, (8, 64)), (None, 8, (32, 8)), (8, 16, (8, 16))]
)
def test_a_missing_side_is_that_of_the_model(height, width, expected):
    class Model:
        multiple, native_size, execution_device, is_latent = 8, (32, 64), torch.device("cpu"), False

    assert requested_size(Model(), height, width) == expected
