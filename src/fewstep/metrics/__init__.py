"""How far two sets of samples are apart: over any feature callable, in float64, block by block.

A number means something only beside the feature, the sample counts and the reference set it was
taken with: the Frechet distance and precision/recall are biased in the number of samples, so
compare equal counts only. ``kid`` is unbiased and may be negative.
"""

from __future__ import annotations

from fewstep.metrics.coverage import (
    DensityCoverage,
    PrecisionRecall,
    density_coverage,
    precision_recall,
)
from fewstep.metrics.features import Features, TanhFeatures, digits_features, flatten
from fewstep.metrics.frechet import (
    Moments,
    StreamingMoments,
    frechet_distance,
    frechet_distance_of_samples,
    moments_of,
    reduce_moments,
)
from fewstep.metrics.kernel import KidEstimate, kid, kid_subsets
from fewstep.metrics.named import FEATURES, NamedFeatures, named_features
from fewstep.metrics.neighbours import nearest_distance, neighbour_ratio
from fewstep.metrics.reference import (
    Provenance,
    Reference,
    References,
    load_reference,
    reference_distance,
)
from fewstep.metrics.sliced import sliced_wasserstein

__all__ = [
    "FEATURES",
    "DensityCoverage",
    "Features",
    "KidEstimate",
    "Moments",
    "NamedFeatures",
    "PrecisionRecall",
    "Provenance",
    "Reference",
    "References",
    "StreamingMoments",
    "TanhFeatures",
    "density_coverage",
    "digits_features",
    "flatten",
    "frechet_distance",
    "frechet_distance_of_samples",
    "kid",
    "kid_subsets",
    "load_reference",
    "moments_of",
    "named_features",
    "nearest_distance",
    "neighbour_ratio",
    "precision_recall",
    "reduce_moments",
    "reference_distance",
    "sliced_wasserstein",
]
