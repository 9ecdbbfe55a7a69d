"""What methods of distribution matching share: laws and calls of one path, statistics of masks."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fewstep.core import Batch, Rng, UsageError
from fewstep.data import Arrays
from fewstep.models import EDM, Denoiser, FeatureDiscriminator, Guided, Judge
from fewstep.models.nets import ResidualMLP
from fewstep.objectives.diff_instruct import DiffInstruct
from fewstep.objectives.dmd import DMD
from fewstep.objectives.dmd2 import DMD2
from fewstep.objectives.drifting import Drifting
from fewstep.objectives.f_distill import FDistill
from fewstep.objectives.kd import KnowledgeDistillation
from fewstep.objectives.ladd import LADD
from fewstep.objectives.shared.collapse import lag, statistics
from fewstep.objectives.shared.matching import FewSteps
from fewstep.objectives.shared.weights import unweighted
from fewstep.objectives.sid import SiD
from fewstep.paths import Linear, Path, VarianceExploding
from fewstep.times import LogNormal, Uniform
from fewstep.training.trainer import Trainer
from oracles import normal, path_id
from tiny import settings

VE = VarianceExploding()


def small(path: Path = VE) -> Denoiser:
    return Denoiser(ResidualMLP((2,), 8, 2), EDM(sigma_data=0.5)).on(path)


def three(path: Path) -> dict[str, Denoiser]:
    return {name: small(path) for name in ("student", "teacher", "fake")}


def example() -> Batch:
    return Batch(torch.zeros(2, 2))


LAWS = {"times": Uniform(0.1, 0.9), "critic_times": Uniform(0.1, 0.9)}
LEVELS = {"times": LogNormal(), "critic_times": LogNormal()}
MADE = {"weight": unweighted}
METHODS = {
    "dmd": lambda path, f, **o: DMD(**three(path), generate=f, **MADE, **{**LAWS, **o}),
    "dmd2": lambda path, f, **o: DMD2(**three(path), generate=f, **MADE, **{**LAWS, **o}),
    "diff-instruct": lambda path, f, **o: DiffInstruct(
        **three(path), generate=f, **MADE, **{**LAWS, **o}
    ),
    "sid": lambda path, f, **o: SiD(**{**three(path), **LAWS, **o}, generate=f),
    "f-distill": lambda path, f, **o: FDistill(
        **three(path),
        generate=f,
        **MADE,
        **{"judge": Judge(small(path), example(), width=4), **LAWS, **o},
    ),
    "ladd": lambda path, f, **o: LADD(
        small(path),
        FeatureDiscriminator(small(path), example(), width=4),
        generate=f,
        **{"times": Uniform(0.1, 0.9), **o},
    ),
    "drifting": lambda path, f: Drifting(small(path), generate=f),
    "kd": lambda path, f: KnowledgeDistillation(small(path), states=f.times),
}


# Laws.


@pytest.mark.parametrize(
    ("name", "law"),
    [
        *((m, n) for m in ("dmd", "dmd2", "diff-instruct", "sid", "f-distill") for n in LAWS),
        ("ladd", "times"),
        ("ladd", "teacher_times"),
    ],
)
def test_every_method_asks_for_laws_of_its_path(name, law):
    with pytest.raises(UsageError, match=r"Uniform.* from 0.5 to 1.5, and Linear"):
        METHODS[name](Linear(), FewSteps((1.0,)), **{law: Uniform(0.5, 1.5)})


# Calls.


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("times", [(1.5,), (0.1,)], ids=["above", "below"])
def test_calls_are_at_times_of_the_path(name, times):
    path = Linear(0.1, 1.0)
    METHODS[name](path, FewSteps((1.0,)))
    with pytest.raises(UsageError, match=r"must lie above 0\.1 and be at most 1, as .*Linear"):
        METHODS[name](path, FewSteps(times))


def test_calls_descend():
    for times in ((), (1.0, 2.0), (1.0, 1.0), (1.0, 0.0)):
        with pytest.raises(UsageError, match="one or more descending times above 0"):
            FewSteps(times)


# Weights.


@pytest.mark.parametrize("path", [VE, Linear(0.01, 1.0)], ids=path_id)
@pytest.mark.parametrize("name", ["dmd", "dmd2", "diff-instruct", "sid", "f-distill"])
def test_the_critics_weight_is_of_the_signal_to_noise_ratio(name, path):
    # Which is 1/t^2 on noise levels alone.
    objective = METHODS[name](path, FewSteps((path.t_max,)))
    batch = Batch(normal(6, 2).float())
    draws = objective.draw_critic(batch, 0, Rng(0, 0, "critic"))
    losses = []
    for weight in (unweighted, lambda snr: snr + 3 * snr.sqrt()):
        objective.weight = weight
        for i in range(len(batch)):
            one = rows(draws, slice(i, i + 1), len(batch))
            losses.append(objective.critic_loss(Batch(batch.x0[i : i + 1]), one).total().detach())
    plain, weighted = torch.stack(losses).chunk(2)
    t = draws.t if hasattr(draws, "t") else draws.noised.t
    snr = path.snr(t)
    wanted = (snr + 3 * snr.sqrt()).to(plain.dtype)
    torch.testing.assert_close(weighted / plain, wanted, rtol=1e-5, atol=0)


def rows(draws: Any, part: slice, b: int) -> Any:
    """Some rows of draws; noise of generators has the calls before the batch."""
    if isinstance(draws, tuple):
        return type(draws)(*(rows(each, part, b) for each in draws))
    if draws is None or draws.ndim == 0:
        return draws
    return draws[part] if len(draws) == b else draws[:, part]


# Masks.


def test_what_a_mask_leaves_out_is_in_no_statistic():
    x, x0, real, fake = normal(4, 6, 2, 5)
    mask = torch.zeros(6, 1, 5, dtype=x.dtype)
    mask[..., :3] = 1
    part = [v[..., :3] for v in (x, x0, real, fake)]
    found, wanted = statistics(x, Batch(x0, mask=mask)), statistics(part[0], Batch(part[1]))
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(lag(x, real, fake, mask), lag(part[0], *part[2:]))
    assert set(found) == {"brightness", "spread", "mean/0", "std/0", "mean/1", "std/1"}


def test_statistics_are_moments():
    x, x0 = normal(2, 6, 2, 5)
    found = statistics(x, Batch(x0))
    torch.testing.assert_close(found["brightness"], x.mean() - x0.mean())
    spreads = [v.std(0, correction=0).mean() for v in (x, x0)]
    torch.testing.assert_close(found["spread"], spreads[0] / spreads[1])
    torch.testing.assert_close(found["mean/1"], x[:, 1].mean())
    torch.testing.assert_close(found["std/1"], x[:, 1].std(correction=0))


def test_samples_of_different_lengths():
    x0 = torch.tensor([[[1.0, 3.0, 9.0]], [[3.0, 9.0, 9.0]]])
    mask = torch.tensor([[[1.0, 1.0, 0.0]], [[1.0, 0.0, 0.0]]])
    found = statistics(2 * x0, Batch(x0, mask=mask))
    assert float(found["brightness"]) == pytest.approx(7 / 3)
    assert float(found["spread"]) == pytest.approx(2.0)
    assert float(found["mean/0"]) == pytest.approx(14 / 3)


# Networks.


def test_a_guided_fake_is_refused():
    with pytest.raises(UsageError, match=r"without guidance .* got Guided"):
        METHODS["sid"](VE, FewSteps((2.5,)), **LEVELS, fake=Guided(small(), {}, 2.0))


@pytest.mark.parametrize("role", ["student", "fake"])
def test_what_is_to_stay_does_not_learn_elsewhere(role):
    objective = METHODS["sid"](VE, FewSteps((2.5,)), **LEVELS, **{role: (shared := small())})
    objective.teacher = shared
    data = Arrays(normal(16, 2).float().numpy())
    phase = {"student": "student", "fake": "critic"}[role]
    with pytest.raises(UsageError, match=f"SiD's teacher is to stay .* its {phase} learns"):
        Trainer(objective, data, settings(batch=4), {}, torch.device("cpu"))


def test_a_judge_without_weights_has_nothing_to_learn():
    objective = LADD(small(), nn.Identity(), generate=FewSteps((80.0,)), times=None, penalty=0.0)
    data = Arrays(normal(16, 2).float().numpy())
    with pytest.raises(UsageError, match="LADD has nothing to learn as its heads"):
        Trainer(objective, data, settings(batch=4), {}, torch.device("cpu"))


@pytest.mark.parametrize("name", ["dmd2", "sid", "f-distill"])
def test_a_judge_with_a_denoiser_of_its_own_is_refused(name):
    own = FeatureDiscriminator(small(), example(), width=4)
    with pytest.raises(UsageError, match="take a Judge, made of the fake denoiser"):
        METHODS[name](VE, FewSteps((2.5,)), **LEVELS, judge=own)


def test_ladd_gives_no_denoiser_to_judge_through():
    judge = Judge(small(), example(), width=4)
    with pytest.raises(UsageError, match="take a FeatureDiscriminator"):
        LADD(small(), judge, generate=FewSteps((2.5,)), times=LogNormal())


@pytest.mark.parametrize("part", ["network", "heads"])
def test_labels_that_a_table_has_not_are_told_before(part):
    data = Arrays(np.zeros((8, 2), dtype=np.float32), np.arange(8) % 4)

    def conditional(classes):
        return Denoiser(ResidualMLP((2,), 8, 2, classes=classes), EDM(sigma_data=0.5)).on(VE)

    classes, of_heads = (3, 4) if part == "network" else (4, 3)
    networks = [conditional(classes) for _ in range(3)]
    judge = Judge(networks[2], data.batch([0, 1]), width=4, classes=of_heads)
    objective = DMD2(*networks, judge=judge, generate=FewSteps((2.5,)), **LEVELS, **MADE)
    knows = {"network": "ResidualMLP", "heads": "Heads"}[part] + r" knows 3 label\(s\)"
    with pytest.raises(UsageError, match=f"{knows}, the data has 4; make it with classes=4"):
        Trainer(objective, data, settings(), {}, torch.device("cpu"))


# Samples that several losses share.


@pytest.mark.parametrize("name", ["dmd2", "sid", "f-distill"])
def test_the_critics_losses_learn_from_one_set_of_samples(name):
    f = FewSteps((2.5, 1.0))
    objective = METHODS[name](VE, f, **LEVELS, judge=Judge(small(), example(), width=4))
    phase = next(p for p in objective.phases() if p.name == "critic")
    batch, rng = Batch(normal(1, 6, 2)[0].float()), Rng(0, 0, "critic", 0, torch.device("cpu"))
    draws, calls = phase.draw(batch, 0, rng), []
    apart = [loss(batch, draws).terms for loss in phase.losses]
    objective.student.register_forward_hook(lambda *_: calls.append(1))
    shared = phase.prepared(batch, draws)
    together = [loss(batch, shared).terms for loss in phase.losses]
    assert len(calls) == int(draws.made.call) + 1
    torch.testing.assert_close(together, apart, rtol=0, atol=0)
    assert not shared.made.answer.requires_grad
