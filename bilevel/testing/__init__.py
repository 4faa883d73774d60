"""For those who write methods: problems with closed forms, and the contract to pass.

from bilevel.testing import check_algorithm
check_algorithm(lambda problem: MyAlgorithm(problem, step_size=0.1))
"""

from bilevel.testing._cases import Case, logistic, quadratic, ridge
from bilevel.testing._contract import TraceCounter, check_algorithm, check_solver, standard_cases

__all__ = [
    "Case",
    "TraceCounter",
    "check_algorithm",
    "check_solver",
    "logistic",
    "quadratic",
    "ridge",
    "standard_cases",
]
