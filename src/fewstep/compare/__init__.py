"""Methods side by side: same teacher, same trunk, same data order, same budget.

``plan`` is a comparison as a value, ``study`` goes through its methods and seeds, ``entry`` trains
and judges one of them, ``report`` writes the results, ``page`` is their HTML with the ``table``,
and ``charts`` draws.
"""

from fewstep.compare.plan import Budget, Plan
from fewstep.compare.study import Study

__all__ = ["Budget", "Plan", "Study"]
