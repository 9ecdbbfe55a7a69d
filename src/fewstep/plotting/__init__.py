"""Pictures of how models sample and of how runs went."""

from fewstep.plotting.curves import curves
from fewstep.plotting.paths import animation, paths
from fewstep.plotting.strip import strip
from fewstep.plotting.walks import Walk, walk

__all__ = ["Walk", "animation", "curves", "paths", "strip", "walk"]
