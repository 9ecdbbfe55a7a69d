"""Networks, one file a family."""

from torch import nn

from fewstep.models.nets.adm import ADM
from fewstep.models.nets.ddpmpp import DDPMpp
from fewstep.models.nets.edm2 import EDM2
from fewstep.models.nets.mlp import ResidualMLP
from fewstep.models.nets.ncsnpp import NCSNpp

NETWORKS: dict[str, type[nn.Module]] = {
    "mlp": ResidualMLP,
    "ddpmpp": DDPMpp,
    "ncsnpp": NCSNpp,
    "adm": ADM,
    "edm2": EDM2,
}

__all__ = ["ADM", "EDM2", "NETWORKS", "DDPMpp", "NCSNpp", "ResidualMLP"]
