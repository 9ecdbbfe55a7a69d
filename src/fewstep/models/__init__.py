"""Denoisers: a network under a preconditioning on a path, and wrappers around one."""

from fewstep.models.denoiser import (
    AbstractDenoiser,
    AtScale,
    Autoguided,
    Clamped,
    Denoiser,
    Guided,
    Network,
    Switched,
)
from fewstep.models.discriminator import FeatureDiscriminator, Judge, features_of
from fewstep.models.growing import grown
from fewstep.models.halving import halved
from fewstep.models.lora import LowRank
from fewstep.models.low_rank import LCM_TARGETS, adapt, adapted_layers, merged
from fewstep.models.preconditioning import (
    EDM,
    PRECONDITIONINGS,
    Bounded,
    ConsistencyBoundary,
    DataAndNoisePrediction,
    DataPrediction,
    Flow,
    LatentBoundary,
    NearestStep,
    NoisePrediction,
    Preconditioning,
    ReversedFlow,
    ScoreMatching,
    TrigFlow,
    VPrediction,
)

__all__ = [
    "EDM",
    "LCM_TARGETS",
    "PRECONDITIONINGS",
    "AbstractDenoiser",
    "AtScale",
    "Autoguided",
    "Bounded",
    "Clamped",
    "ConsistencyBoundary",
    "DataAndNoisePrediction",
    "DataPrediction",
    "Denoiser",
    "FeatureDiscriminator",
    "Flow",
    "Guided",
    "Judge",
    "LatentBoundary",
    "LowRank",
    "NearestStep",
    "Network",
    "NoisePrediction",
    "Preconditioning",
    "ReversedFlow",
    "ScoreMatching",
    "Switched",
    "TrigFlow",
    "VPrediction",
    "adapt",
    "adapted_layers",
    "features_of",
    "grown",
    "halved",
    "merged",
]
