"""The method, with torch as its only dependency.

Read in this order: schedules, denoisers, operators, constraints, solvers/moment_matching, transitions, sampling,
presets.
"""
