"""Methods side by side: same teacher, same trunk, same data order, same budget.

``study`` trains and judges, ``report`` tells, ``charts`` draws.
"""

from fewstep.compare.study import Budget, Study

__all__ = ["Budget", "Study"]
