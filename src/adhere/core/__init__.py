"""The method, on torch alone.

Read in this order: schedules, denoisers, operators, constraints, solvers/moment_matching, transitions, sampling,
presets.
"""
