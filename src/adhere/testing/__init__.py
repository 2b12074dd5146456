"""For authors of operators, constraints and solvers: checks of their contracts, and priors with exact posteriors.

    check_operator(MyOperator(), shape=(3, 16, 16))
    check_solver(MySolver())

Each raises AssertionError with one line that names the law that does not hold, and by how much it fails. The priors are
in `adhere.testing.priors`.
"""

from adhere.testing._checks import check_operator, check_solver

__all__ = ["check_operator", "check_solver"]
