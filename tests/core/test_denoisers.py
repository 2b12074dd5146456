"""Networks as denoisers (time, dtype, prediction type), and the denoisers that wrap them: guidance and counting."""

from dataclasses import dataclass

import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from adhere.core.denoisers import (
    CFGDenoiser,
    CountingDenoiser,
    Denoiser,
    ExpertDenoiser,
    NetworkDenoiser,
    _check_prediction_type,
)
from adhere.core.derivatives import jvp, vjp
from adhere.core.schedules import CosineSchedule, DDPMSchedule, FlowSchedule, Schedule, log_snr
from tests.core.exact import assert_close, normal, random_gaussian, seeded


class Recorder:
    """A network that returns its input and keeps what it was called with."""

    def __init__(self):
        self.calls = []

    def __call__(self, x_t, t):
        self.calls.append((x_t, t))
        return x_t


# Networks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_network_gets_its_dtype_and_the_state_keeps_its_own(dtype):
    network, x_t = Recorder(), torch.randn(2, 1, 4, 4, generator=seeded(0))
    x0 = NetworkDenoiser(network, CosineSchedule(), "epsilon", dtype)(x_t, 0.5)
    ((seen, _),) = network.calls
    assert seen.dtype == dtype
    assert x0.dtype == torch.float32
    alpha_t, sigma_t = CosineSchedule()(0.5)
    torch.testing.assert_close(x0, (x_t - sigma_t * x_t.to(dtype).float()) / alpha_t)


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("t_dtype", [torch.float32, torch.float64, torch.long])
def test_the_network_gets_one_time_per_sample(batch_size, t_dtype):
    network = Recorder()
    denoiser = NetworkDenoiser(network, DDPMSchedule.from_betas(), t_dtype=t_dtype)
    denoiser(torch.zeros(batch_size, 1, 2, 2), 500.0)
    ((_, t),) = network.calls
    assert t.shape == (batch_size,) and t.dtype == t_dtype
    assert t.tolist() == [500] * batch_size


def test_the_default_time_is_float32():
    network = Recorder()
    NetworkDenoiser(network, FlowSchedule())(torch.zeros(2, 1, 2, 2), 0.3)
    assert network.calls[0][1].equal(torch.tensor([0.3, 0.3]))


@pytest.mark.parametrize("as_list", [False, True])
def test_from_alphas_cumprod_passes_integer_times_under_that_table(as_list):
    table = DDPMScheduler().alphas_cumprod
    network = Recorder()
    denoiser = NetworkDenoiser.from_alphas_cumprod(
        network, table.tolist() if as_list else table, prediction_type="v_prediction", dtype=torch.float16
    )
    denoiser(torch.zeros(2, 1, 2, 2), 999.0)
    ((x_t, t),) = network.calls
    assert t.equal(torch.tensor([999, 999])) and t.dtype == torch.long
    assert x_t.dtype == denoiser.dtype == torch.float16
    assert denoiser.prediction_type == "v_prediction"
    alpha_t, sigma_t = denoiser.schedule(500.0)
    assert alpha_t**2 == pytest.approx(float(table[500])) and alpha_t**2 + sigma_t**2 == pytest.approx(1)
    assert len(denoiser.schedule.timesteps(1000)) == 1000


def test_a_unet_of_diffusers_works_unchanged_from_alphas_cumprod():
    """The same x0 as diffusers' scheduler predicts, for a batch of two."""
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    unet = UNet2DModel(8, 3, 3, **blocks, block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1).eval()
    scheduler = DDPMScheduler(clip_sample=False)
    denoiser = NetworkDenoiser.from_alphas_cumprod(lambda x, t: unet(x, t).sample, scheduler.alphas_cumprod)
    x_t = torch.randn(2, 3, 8, 8, generator=seeded(0))
    with torch.no_grad():
        theirs = scheduler.step(unet(x_t, 300).sample, 300, x_t).pred_original_sample
        torch.testing.assert_close(denoiser(x_t, 300.0), theirs, rtol=1e-4, atol=1e-4)


def test_an_unknown_prediction_type_is_refused_with_all_that_are_known():
    with pytest.raises(ValueError, match=r"prediction_type = 'eps'.*'epsilon', 'sample', 'v_prediction'"):
        _check_prediction_type("eps")  # `NetworkDenoiser` calls it; here the type checker of the tests would be first


@pytest.mark.parametrize("make", [NetworkDenoiser, NetworkDenoiser.from_alphas_cumprod])
@pytest.mark.parametrize(("keyword", "hint"), [("prediction", "prediction_type"), ("model", "network")])
def test_keywords_of_other_libraries_are_refused_with_the_right_ones(make, keyword, hint):
    with pytest.raises(TypeError, match=f"has no argument '{keyword}': call it {hint}"):
        make(**{keyword: Recorder()})


# Denoisers that wrap denoisers ---------------------------------------------------------------------------------------


def test_guidance_extrapolates_from_unconditional_to_conditional():
    g = seeded(0)
    schedule = FlowSchedule()
    conditional, unconditional = (random_gaussian(g).denoiser(schedule) for _ in range(2))
    x_t, t = normal(g, 2, 1, 2, 2), 0.4

    def network(x, times):
        first, second = x.chunk(2)
        return torch.cat([unconditional(first, t), conditional(second, t)])

    both = NetworkDenoiser(network, schedule, "sample", torch.float64)
    guided = {scale: CFGDenoiser(both, scale) for scale in (0.0, 0.5, 1.0, 7.5)}
    with_prompt, without = conditional(x_t, t), unconditional(x_t, t)
    assert_close(guided[0.0](x_t, t), without)
    assert_close(guided[1.0](x_t, t), with_prompt)
    assert_close(guided[0.5](x_t, t), (with_prompt + without) / 2)
    assert_close(guided[7.5](x_t, t), without + 7.5 * (with_prompt - without))
    assert guided[7.5].schedule is schedule and guided[7.5].dtype == torch.float64


def test_above_its_limit_guidance_is_off_and_takes_one_half():
    schedule, sizes = FlowSchedule(), []

    def network(x, times):
        sizes.append(len(x))
        return x + torch.arange(float(len(x))).view(-1, 1, 1, 1)  # tells the samples of the batch apart

    denoiser = CFGDenoiser(NetworkDenoiser(network, schedule, "sample", torch.float64), 3.0, max_log_snr=1.0)
    x_t = normal(seeded(0), 2, 1, 2, 2)
    low, high = (schedule.t_from_log_snr(value) for value in (1.5, 0.5))
    assert_close(denoiser(x_t, low), x_t + torch.arange(2.0).view(2, 1, 1, 1))
    denoiser(x_t, high)
    assert sizes == [2, 4]


def test_evaluations_and_backward_passes_are_counted_once_per_batch():
    denoiser = random_gaussian(seeded(0)).denoiser(FlowSchedule())
    counting = CountingDenoiser(denoiser)
    x_t = normal(seeded(1), 5, 1, 2, 2)
    assert (counting.nfe, counting.num_backward) == (0, 0)
    x0 = counting(x_t, 0.5)
    assert (counting.nfe, counting.num_backward) == (1, 0)
    assert x0.equal(denoiser(x_t, 0.5))
    jvp(counting, x_t, 0.5, x0, x_t)
    assert (counting.nfe, counting.num_backward) == (2, 0)
    _, transposed = vjp(lambda x: counting(x, 0.5), x_t, retain_graph=True)
    transposed(x_t)
    transposed(x_t)
    assert (counting.nfe, counting.num_backward) == (3, 2)
    assert counting.schedule is denoiser.schedule and counting.dtype == denoiser.dtype


def test_networks_and_wrappers_follow_the_denoiser_protocol():
    network = NetworkDenoiser(Recorder(), FlowSchedule())
    assert all(isinstance(one, Denoiser) for one in (network, CFGDenoiser(network, 2.0), CountingDenoiser(network)))


def test_betas_in_place_of_alphas_cumprod_are_refused():
    with pytest.raises(ValueError, match=r"of betas, give torch.cumprod\(1 - betas, 0\)"):
        NetworkDenoiser.from_alphas_cumprod(lambda x_t, t: x_t, torch.linspace(1e-4, 0.02, 10))


def test_a_network_that_returns_no_tensor_is_answered_with_what_to_give():
    denoiser = NetworkDenoiser(lambda x_t, t: {"sample": x_t}, DDPMSchedule.from_betas())  # pyright: ignore
    with pytest.raises(TypeError, match=r"returned a dict, not a tensor: give lambda x, t: net\(x, t\).sample"):
        denoiser(torch.zeros(1, 3, 4, 4), 10.0)


def test_the_length_of_a_schedule_does_not_fill_its_repr():
    assert len(repr(NetworkDenoiser(lambda x_t, t: x_t, DDPMSchedule.from_betas()))) < 300


# A second denoiser at low noise --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Constant:
    """Returns the same value everywhere."""

    schedule: Schedule
    value: float
    dtype: torch.dtype = torch.float32

    def __call__(self, x_t, t):
        return torch.full_like(x_t, self.value)


def test_the_expert_is_evaluated_at_the_boundary_and_above_it():
    schedule = CosineSchedule()
    boundary = log_snr(schedule, 0.4)
    denoiser = ExpertDenoiser(Constant(schedule, 1.0), Constant(schedule, 2.0), boundary)
    values = [float(denoiser(torch.zeros(1, 1), t)) for t in (0.9, 0.41, 0.4, 0.1)]
    assert values == [1.0, 1.0, 2.0, 2.0]
    assert denoiser.schedule is schedule and denoiser.dtype == torch.float32


def test_an_expert_with_another_schedule_is_refused():
    with pytest.raises(ValueError, match="the schedule of the expert differs"):
        ExpertDenoiser(Constant(CosineSchedule(), 1.0), Constant(FlowSchedule(), 2.0), 0.0)
