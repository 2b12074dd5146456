"""Solvers that users choose: what is done at one noise level."""
