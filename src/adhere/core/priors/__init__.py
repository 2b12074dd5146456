"""Priors whose denoiser, density and posterior are known in closed form: what every sampler is judged against."""

from adhere.core.priors.factors import FactorMixture
from adhere.core.priors.mixture import ExactDenoiser, Gaussian, GaussianMixture

__all__ = ["ExactDenoiser", "FactorMixture", "Gaussian", "GaussianMixture"]
