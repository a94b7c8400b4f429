"""The tiers of parametrised tests; their markers are in pyproject.toml."""

import pytest


def full_but(cases, *kept):
    """Returns the cases as parameters, of which those not `kept` are of tier `full`.

    Args:
        cases: Values, or tuples of the values of several arguments.
        kept: Those of the default tier.
    """
    cases = list(cases)
    assert all(case in cases for case in kept)
    return [
        pytest.param(
            *(case if isinstance(case, tuple) else (case,)),
            marks=[] if case in kept else pytest.mark.full,
        )
        for case in cases
    ]


def slow_from(count, cases):
    """Returns the cases as parameters: so many of tier `full`, all others of `slow`.

    Args:
        count: How many are of tier `full`.
        cases: As in `full_but`.
    """
    return [
        pytest.param(
            *(case if isinstance(case, tuple) else (case,)),
            marks=pytest.mark.full if i < count else pytest.mark.slow,
        )
        for i, case in enumerate(cases)
    ]


def full_from(count, cases):
    """Returns the cases as parameters, of which all but the first are of tier `full`.

    Args:
        count: How many stay in the default tier.
        cases: As in `full_but`, which needs cases that can be compared.
    """
    return [
        pytest.param(
            *(case if isinstance(case, tuple) else (case,)),
            marks=[] if i < count else pytest.mark.full,
        )
        for i, case in enumerate(cases)
    ]
