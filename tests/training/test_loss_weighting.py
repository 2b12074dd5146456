"""The distribution of training timesteps and the weights of the losses."""

import torch

from training.loss_weighting import TARGET_LOSS, LossWeighting


def make_weighting() -> LossWeighting:
    alphas_cumprod = (1 - torch.linspace(1e-4, 0.02, 1000)).cumprod(0)
    return LossWeighting(
        alphas_cumprod, mean_log_snr=-0.5, std_log_snr=1.0, uniform_fraction=0.25, log_snr_min=-4, log_snr_max=4
    )


def test_sampled_and_stratified_timesteps_have_the_mean_log_snr_of_the_mixture() -> None:
    weighting = make_weighting()
    torch.manual_seed(0)
    stratified = weighting.stratified_timesteps(20_000, torch.Generator().manual_seed(0))
    assert (stratified.diff() >= 0).all()
    for t in (weighting.sample_timesteps(20_000), stratified):
        assert abs(float(weighting.log_snr[t].mean()) - 0.75 * -0.5) < 0.05


def test_constant_losses_at_one_timestep_are_scaled_to_the_target() -> None:
    weighting = make_weighting()
    t = torch.tensor([500])
    for _ in range(500):
        weighted = weighting.weight_losses(t, torch.tensor([7.0]))
    torch.testing.assert_close(weighted, torch.tensor([TARGET_LOSS]), rtol=1e-3, atol=0)
