"""Networks, one file a family."""

from torch import nn

from fewstep.models.nets.ddpmpp import DDPMpp
from fewstep.models.nets.edm2 import EDM2
from fewstep.models.nets.mlp import ResidualMLP

NETWORKS: dict[str, type[nn.Module]] = {"mlp": ResidualMLP, "ddpmpp": DDPMpp, "edm2": EDM2}

__all__ = ["EDM2", "NETWORKS", "DDPMpp", "ResidualMLP"]
