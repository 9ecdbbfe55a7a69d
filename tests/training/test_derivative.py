"""A run whose loss takes directional derivatives looks at them before it starts."""

import numpy as np
import pytest
import torch
from torch import nn

import fewstep
from fewstep.core import UsageError
from fewstep.data import Arrays, toy
from fewstep.derivatives import finite_difference, jvp, jvp_apart
from fewstep.models import ConsistencyBoundary, Denoiser
from fewstep.models.nets import DDPMpp, ResidualMLP
from fewstep.objectives.consistency_continuous import ContinuousConsistency
from fewstep.objectives.shared.distances import l2
from fewstep.times import KarrasUniform
from fewstep.training.check import check_derivative
from fewstep.training.config import Run, TrainConfig
from fewstep.training.derivative import derivative_for
from fewstep.training.trainer import Trainer


class Sine(torch.autograd.Function):
    @staticmethod
    def forward(x):
        return x.sin()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0].cos()


class WrongSine(Sine):
    @staticmethod
    def jvp(ctx, tangent):
        return tangent


class Net(nn.Module):
    cond_keys = ()
    two_time = False

    def __init__(self, sine):
        super().__init__()
        self.sine = sine
        self.layer = nn.Linear(3, 2)

    def forward(self, x, c_noise, s_noise=None, cond=None):
        return self.sine(self.layer(torch.cat([x, c_noise[:, None]], 1)))


def objective(net, **options):
    student = Denoiser(net, ConsistencyBoundary(sigma_data=0.5))
    return ContinuousConsistency(student, times=KarrasUniform(), **options)


def run(net, **train):
    config = TrainConfig(steps=2, batch=8, sample_every=0, log_every=1, **train)
    return Run(
        recipe="mine", arguments={}, objective=objective(net), data=toy("two-modes"), config=config
    )


@pytest.mark.parametrize("net", [Net(torch.sin), ResidualMLP((2,), 16, 2, dropout=0.3)])
def test_right_derivatives_pass(net):
    check_derivative(objective(net), toy("two-modes"))


@pytest.mark.parametrize(
    ("sine", "told"), [(WrongSine, "differs from its finite"), (Sine, "no forward-mode")]
)
def test_wrong_or_missing_rules_stop_the_run_before_it_starts(sine, told, tmp_path):
    net = Net(sine.apply)
    with pytest.raises(UsageError, match=told) as error:
        fewstep.train(run(net), tmp_path / "run")
    assert "--train.derivative difference" in str(error.value)
    assert not (tmp_path / "run").exists()
    fewstep.train(run(net, derivative="difference"), tmp_path / "run")


def test_layers_that_begin_at_zero_do_not_hide_what_is_behind():
    net = Net(WrongSine.apply)
    nn.init.zeros_(net.layer.weight)
    nn.init.zeros_(net.layer.bias)
    with pytest.raises(UsageError, match="differs"):
        check_derivative(objective(net), toy("two-modes"))


def test_the_check_changes_nothing():
    net = ResidualMLP((2,), 16, 2)
    made = objective(net)
    before = {k: v.clone() for k, v in made.state_dict().items()}
    state = torch.get_rng_state()
    check_derivative(made, toy("two-modes"))
    assert torch.equal(torch.get_rng_state(), state)
    for key, value in made.state_dict().items():
        assert torch.equal(value, before[key])


def test_checkpointing_takes_the_value_apart_and_learns_the_same():
    weights = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        made = objective(ResidualMLP((2,), 16, 2))
        config = TrainConfig(steps=3, batch=8, checkpointing=checkpointing)
        trainer = Trainer(made, toy("two-modes"), config, {}, torch.device("cpu"))
        assert made.derivative is (jvp_apart if checkpointing else jvp)
        for _ in range(3):
            trainer.advance()
        weights.append(torch.cat([p.flatten() for p in made.student.parameters()]))
    torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("settings", [{"checkpointing": True}, {"derivative": "difference"}])
def test_a_penalty_needs_forward_mode(settings):
    made = objective(ResidualMLP((2,), 16, 2), penalty=l2)
    with pytest.raises(UsageError, match="gradient of a derivative"):
        Trainer(made, toy("two-modes"), TrainConfig(steps=1, **settings), {}, torch.device("cpu"))


@pytest.mark.parametrize(
    ("shape", "setting", "expected"),
    [
        ((2,), "forward", jvp),
        ((1, 8, 8), "forward", jvp),
        ((3, 16, 16), "forward", jvp_apart),
        ((4, None), "forward", jvp_apart),
        ((3, 16, 16), "joint", jvp),
        ((2,), "joint", jvp),
    ],
)
def test_the_value_has_a_pass_of_its_own_where_activations_are_large(shape, setting, expected):
    made = objective(ResidualMLP((2,), 16, 2))
    assert derivative_for(made, TrainConfig(steps=1, derivative=setting), shape) is expected
    again = TrainConfig(steps=1, derivative=setting, checkpointing=True)
    assert derivative_for(made, again, shape) is jvp_apart


def test_a_derivative_of_ones_own_is_kept():
    made = objective(ResidualMLP((2,), 16, 2))
    made.derivative = own = finite_difference(0.1)
    assert derivative_for(made, TrainConfig(steps=1), (3, 64, 64)) is own


def test_images_learn_the_same_either_way_and_forget_the_tangents():
    weights, kept = [], []
    for setting in ("joint", "forward"):
        torch.manual_seed(0)
        net = DDPMpp((3, 16, 16), 8, (1, 2), blocks=1, attention=(8,), dropout=0.1)
        made = objective(net)
        pixels = np.random.default_rng(0).integers(0, 256, (16, 3, 16, 16), np.uint8)
        config = TrainConfig(steps=2, batch=4, derivative=setting, lr=1e-4)
        trainer = Trainer(made, Arrays(pixels), config, {}, torch.device("cpu"))
        sizes = []

        def pack(x, sizes=sizes):
            sizes.append(x.nbytes)
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            trainer.advance()
        kept.append(sum(sizes))
        weights.append(torch.cat([p.flatten() for p in made.student.parameters()]))
    torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-6)
    assert kept[1] < 0.6 * kept[0]
