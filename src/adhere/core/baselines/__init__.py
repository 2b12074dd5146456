"""Solvers from the literature that the benchmarks compare with."""
