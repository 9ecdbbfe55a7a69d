"""Models that others start from: which may be teachers, and how their weights are read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from fewstep.contract import DataSpec
from fewstep.errors import UsageError
from fewstep.model import Model, load
from fewstep.models import EDM, AbstractDenoiser, ConsistencyBoundary, Denoiser, Guided
from fewstep.paths import VarianceExploding
from fewstep.weights import assign_weights

EDM_LEVELS = VarianceExploding()

LARGEST_ERROR = 1e4
"""Factor from a network's error to its answer's above which a reading says nothing."""


def teacher_of(
    spec: DataSpec, name: str, trained_by: str, method: str | None = None, kind: str = "ode"
) -> Model:
    """A diffusion model, or one of a ``method``, of the same kind of data, on the CPU.

    Args:
        spec: of the data.
        name: of the model.
        trained_by: a recipe of such models, for messages.
        method: that made it, where one method alone will do.
        kind: how it is sampled, where any method will do: ``ode``, or ``renoise``.

    Raises:
        UsageError: there is none of that name, or it is a model of another kind or of other data.
    """
    model = load(name, device="cpu")
    made = model.contract.data
    if not made.agrees(spec):
        raise UsageError(
            f"the teacher {name} generates {made.summary()}, the data is {spec.summary()}; choose "
            "the teacher's resolution and conditions, or train one with: fewstep train "
            f"{trained_by}"
        )
    if method is not None and model.contract.method != method:
        raise UsageError(
            f"{name} is a {model.contract.method} model; this starts from one of {method}, "
            f"e.g. of: fewstep train {trained_by}"
        )
    if method is None and model.contract.sampling.kind != kind:
        wanted = "a teacher is a diffusion model, e.g. of the recipe edm"
        if kind != "ode":
            wanted = f"tuning goes on with a consistency model, e.g. of the recipe {trained_by}"
        raise UsageError(f"{name} is a {model.contract.method} model; {wanted}")
    return model


def begin_with(net: nn.Module, model: Model, name: str) -> None:
    """Give a network the weights of a model.

    Args:
        net: the network that is to learn.
        model: whose weights it gets; :func:`check_same` says whether they mean the same there.
        name: of the model, for messages.

    Raises:
        UsageError: the model has another network, or several.
    """
    if not isinstance(model.denoiser, Denoiser):
        raise UsageError(f"--init {name} is a model of several networks; give one of one network")
    assign_weights(net, model.denoiser.net.state_dict(), Path(name))


def check_same(delivered: AbstractDenoiser, model: Model, name: str) -> None:
    """Refuse first weights of a model that reads its network in another way.

    Args:
        delivered: what users will get of the training that begins with them.
        model: whose weights they are.
        name: of the model, for messages.

    Raises:
        UsageError: the scalings differ.
    """
    own = getattr(model.denoiser, "preconditioning", None)
    if getattr(delivered, "preconditioning", None) != own:
        raise UsageError(
            f"--init {name} is a {model.contract.method} model whose network is read in another "
            "way than this method reads it; give a model of the same method and settings, or "
            "begin with the teacher's weights"
        )


def read(model: Model, name: str) -> Denoiser:
    """A model as a source of weights, in whatever parametrisation; its network is shared.

    A consistency model is read as the EDM model that it began as. Noise prediction says nothing
    where no signal is left, so its path ends at EDM's highest noise level there.

    Raises:
        UsageError: it consists of several networks.
    """
    source = model.denoiser
    if not isinstance(source, Denoiser):
        raise UsageError(
            f"{name} is a {type(source).__name__} of several networks; start from one of them"
        )
    scalings = source.preconditioning
    if isinstance(scalings, ConsistencyBoundary):
        path = replace(scalings.path, t_min=EDM_LEVELS.t_min)
        scalings = EDM(sigma_data=scalings.sigma_data, time_scale=scalings.time_scale, path=path)
    end = torch.tensor([scalings.path.t_max], dtype=torch.float64)
    if not scalings.coefficients(end).c_out.abs() < LARGEST_ERROR:
        highest = scalings.path.time(torch.tensor([EDM_LEVELS.t_max], dtype=torch.float64))
        path = replace(scalings.path, t_max=float(highest))
        scalings = replace(scalings, path=path)
    return source if scalings is source.preconditioning else Denoiser(source.net, scalings)


def levels(source: Denoiser) -> VarianceExploding:
    """The noise levels that a source knows, as a path; EDM's where it knows more."""
    path = source.path
    if isinstance(path, VarianceExploding):
        return path
    ends = torch.tensor([path.t_min, path.t_max], dtype=torch.float64)
    low, high = path.ratio(ends).tolist()
    return VarianceExploding(max(low, EDM_LEVELS.t_min), min(high, EDM_LEVELS.t_max))


def guided(model: Model, source: Denoiser, scale: float) -> AbstractDenoiser:
    """The teacher under classifier-free guidance; 1 is none."""
    if scale == 1.0:
        return source
    allowed = model.contract.sampling.guidance
    if allowed is None or not allowed.min <= scale <= allowed.max:
        raise UsageError(
            f"guidance={scale} cannot be had of this teacher, which allows {allowed or 'none'}; "
            "guidance needs labels, dropped for a share of the samples"
        )
    dropped = model.contract.data.nulls if allowed.keys is None else allowed.keys
    nulls = {k: v for k, v in model.contract.data.nulls.items() if k in dropped}
    return Guided(source, nulls, scale)
