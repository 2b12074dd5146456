"""Priors whose denoiser, density and posterior are known in closed form."""

from adhere.testing.priors._factors import FactorMixture
from adhere.testing.priors._mixture import ExactDenoiser, Gaussian, GaussianMixture

__all__ = ["ExactDenoiser", "FactorMixture", "Gaussian", "GaussianMixture"]
