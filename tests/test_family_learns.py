"""Every method of the family, end to end in the plane: as near to the data as the exact map is."""

import pytest
import torch
from torch import Tensor

import fewstep
from fewstep.data.toys import two_modes
from fewstep.pairs import make
from fewstep.paths import VarianceExploding
from fewstep.recipes import METHODS, STUDENTS, recipe
from oracles import D, MixtureDenoiser, normal

N = 1000
DRAWS = 8


def energy_distance(a: Tensor, b: Tensor) -> float:
    """Of two sets of samples (Szekely & Rizzo 2013), biased as every finite sample's is."""
    across, within = torch.cdist(a, b).mean(), torch.cdist(a, a).mean() + torch.cdist(b, b).mean()
    return float((2 * across - within).clamp(min=0).sqrt())


def data(draw: int) -> Tensor:
    mixture, rng = two_modes(), torch.Generator().manual_seed(900 + draw)
    which = torch.multinomial(mixture.weights.double(), N, replacement=True, generator=rng)
    noise = torch.randn(N, mixture.means.shape[1], generator=rng, dtype=D)
    return mixture.means.double()[which] + mixture.stds.double()[which, None] * noise


@pytest.fixture(scope="module")
def exact() -> float:
    """The mean distance of the exact one-step map's samples."""
    path = VarianceExploding()
    model = MixtureDenoiser(path, two_modes())
    ends = (torch.full((N,), t, dtype=D) for t in (path.t_max, path.t_min))
    t, s = ends
    starts = [path.t_max * normal(N, 2, seed=draw) for draw in range(DRAWS)]
    found = [energy_distance(model.flow(x, t, s), data(i)) for i, x in enumerate(starts)]
    return sum(found) / DRAWS


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "teacher"
    fewstep.train(recipe("toy-edm"), out)
    return out


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDENTS)
def test_one_step_is_as_near_to_the_data_as_the_exact_map(name, teacher, exact, tmp_path):
    start = teacher
    if METHODS[name].after is not None:
        start = tmp_path / "first"
        fewstep.train(recipe(f"toy-{METHODS[name].after}", teacher=str(teacher)), start)
    options = {} if name == "ct" else {"teacher": str(start)}
    if recipe(f"toy-{name}").options.needs_pairs():
        make(fewstep.load(teacher), tmp_path / "pairs", 4096)
        options["pairs"] = str(tmp_path / "pairs")
    model = fewstep.train(recipe(f"toy-{name}", **options), tmp_path / name)
    fewest = len(model.times())
    found = [
        energy_distance(model.sample(N, steps=fewest, seed=draw).double(), data(draw))
        for draw in range(DRAWS)
    ]
    mean = sum(found) / DRAWS
    print(f"{name}, {fewest} step(s): {mean:.4f}, the exact map {exact:.4f}")
    assert mean < 1.5 * exact
