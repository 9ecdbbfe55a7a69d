"""Networks, one file a family."""

from torch import nn

from fewstep.models.nets.adm import ADM
from fewstep.models.nets.ddpmpp import DDPMpp
from fewstep.models.nets.dit import DiT
from fewstep.models.nets.edm2 import EDM2
from fewstep.models.nets.mlp import ResidualMLP
from fewstep.models.nets.ncsnpp import NCSNpp
from fewstep.models.nets.stock import StockNetwork
from fewstep.models.nets.unet1d import UNet1d

NETWORKS: dict[str, type[nn.Module]] = {
    "mlp": ResidualMLP,
    "ddpmpp": DDPMpp,
    "ncsnpp": NCSNpp,
    "adm": ADM,
    "edm2": EDM2,
    "dit": DiT,
    "unet1d": UNet1d,
    "diffusers": StockNetwork,
}

__all__ = [
    "ADM",
    "EDM2",
    "NETWORKS",
    "DDPMpp",
    "DiT",
    "NCSNpp",
    "ResidualMLP",
    "StockNetwork",
    "UNet1d",
]
