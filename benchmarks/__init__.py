"""The tables and plots in the docs, each made by one command; `benchmarks.rows` is the format that all share."""
