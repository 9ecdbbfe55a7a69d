"""Methods side by side: same teacher, same trunk, same data order, same budget.

``study`` goes through methods and seeds, ``entry`` trains and judges one of them, ``report`` tells
of all, ``charts`` draws.
"""

from fewstep.compare.study import Budget, Study

__all__ = ["Budget", "Study"]
