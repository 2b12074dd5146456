"""The mathematics: torch only (and jaxtyping, for shapes). Read schedule, denoise, constraints, sample, a solver."""
