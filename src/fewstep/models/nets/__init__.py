"""Networks, one file a family."""

from torch import nn

from fewstep.models.nets.ddpmpp import DDPMpp
from fewstep.models.nets.mlp import ResidualMLP

NETWORKS: dict[str, type[nn.Module]] = {"mlp": ResidualMLP, "ddpmpp": DDPMpp}

__all__ = ["NETWORKS", "DDPMpp", "ResidualMLP"]
