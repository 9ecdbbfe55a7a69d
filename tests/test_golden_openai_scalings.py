"""Scalings, weights, grids and embeddings of openai/consistency_models."""

from __future__ import annotations

from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor

from fewstep.models import EDM, ConsistencyBoundary
from fewstep.models.nets.blocks import PositionalEmbedding
from fewstep.paths import VarianceExploding
from fewstep.solvers import ancestral_std
from fewstep.times import karras, to_zero
from golden_sets import Case, check, karras_denoiser, noise_levels, weighting

Values = Iterator[tuple[str, Tensor]]


def scalings(case: Case) -> Values:
    kind = ConsistencyBoundary if case["boundary"] else EDM
    scaling = kind(sigma_data=case["sigma_data"], path=noise_levels(case))
    found = scaling.coefficients(case.inputs["sigma"])
    for output in case.outputs:
        yield output, getattr(found, output)


def snr(case: Case) -> Values:
    yield "snr", VarianceExploding().snr(case.inputs["sigma"])


def weights(case: Case) -> Values:
    yield "weight", weighting(case["weighting"], case["sigma_data"])(case.inputs["snr"])


def karras_grid(case: Case) -> Values:
    grid = karras(case["n"], case["sigma_min"], case["sigma_max"], case["rho"])
    yield "sigmas", to_zero(grid) if case["append_zero"] else grid


def ancestral(case: Case) -> Values:
    t, s = case.inputs["sigma_from"], case.inputs["sigma_to"]
    down, up = ancestral_std(VarianceExploding(), t, s)
    yield "sigma_down", down
    yield "sigma_up", up


def embedding(case: Case) -> Values:
    # In float32, as there: large times lose digits in the angle. An odd width is padded there.
    embedded = PositionalEmbedding(case["dim"])(case.inputs["timesteps"].float())
    yield "embedding", F.pad(embedded, (0, case["dim"] - embedded.shape[1]))


def denoise(case: Case) -> Values:
    role = case["nets"]["model"]
    denoiser = karras_denoiser(case, role, boundary=case["distillation"])
    x_t, sigma = case.inputs["x_t"], case.inputs["sigma"]
    yield "model_output", denoiser.raw(x_t, sigma)
    yield "denoised", denoiser(x_t, sigma)


CALLS = {
    "get_scalings": scalings,
    "get_scalings_for_boundary_condition": scalings,
    "get_snr": snr,
    "get_weightings": weights,
    "get_sigmas_karras": karras_grid,
    "get_ancestral_step": ancestral,
    "timestep_embedding": embedding,
    "KarrasDenoiser.denoise": denoise,
}


def test_golden_openai_scalings(record_property) -> None:
    check("openai_scalings", CALLS, record_property)
