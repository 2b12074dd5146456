"""Solvers from the literature, with which the benchmarks compare."""
