"""White noise from explicit generators."""

import math

import pytest
import torch

from adhere.core.noise import check_generator, initial_noise, randn
from adhere.core.schedules import CosineSchedule, FlowSchedule
from tests.core.exact import assert_close, normal, seeded


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_generator_per_sample_draws_what_single_runs_draw(dtype):
    like = torch.zeros(1, dtype=dtype)
    batch = randn((3, 2, 4), like, [seeded(i) for i in range(3)])
    assert batch.dtype == dtype and batch.shape == (3, 2, 4)
    assert batch.equal(torch.cat([randn((1, 2, 4), like, seeded(i)) for i in range(3)]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_generator_draws_what_torch_draws(dtype):
    expected = torch.randn(2, 4, generator=seeded(0), dtype=dtype)
    assert randn((2, 4), torch.zeros(1, dtype=dtype), seeded(0)).equal(expected)


@pytest.mark.parametrize("count", [0, 1, 4])
def test_a_wrong_number_of_generators_is_refused(count):
    generators = [seeded(i) for i in range(count)]
    with pytest.raises(ValueError, match=f"{count} generators for a batch of 3: give one, or one per sample"):
        randn((3, 2), torch.zeros(1), generators)


def test_generators_of_a_batch_are_checked():
    one = seeded(0)
    assert check_generator(one, 3) is one
    several = [seeded(i) for i in range(3)]
    assert check_generator(several, 3) == check_generator(tuple(several), 3) == several
    with pytest.raises(ValueError, match="3 generators for a batch of 4: give one, or one per sample"):
        check_generator(several, 4)
    with pytest.raises(TypeError, match=r"generator = 7: write generator=torch.Generator\(\).manual_seed\(7\)"):
        check_generator(7, 1)
    for wrong in ("7", [7], {one}):
        with pytest.raises(TypeError, match=r"give a torch\.Generator, or a list"):
            check_generator(wrong, 1)


def test_no_generator_is_one_with_a_seed_of_the_global_generator():
    seeds = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        seeds.append(check_generator(None, 1).initial_seed())
    assert seeds[0] == seeds[1] != seeds[2]
    assert check_generator(None, 1).initial_seed() != seeds[2]


def test_initial_noise_has_the_standard_deviation_of_x_t_for_data_of_unit_variance():
    white = normal(seeded(0), 3, 4)
    assert_close(initial_noise(CosineSchedule(), 0.9, white), white)
    assert_close(initial_noise(FlowSchedule(), 0.9, white), math.sqrt(0.1**2 + 0.9**2) * white)
