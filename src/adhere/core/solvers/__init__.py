"""Solvers that users choose. A solver does the work of one noise level."""
