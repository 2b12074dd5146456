"""Measurements for the tables and figures of the docs, one command each; `benchmarks.tables` is the common format."""
