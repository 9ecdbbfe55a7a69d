"""A trained denoiser with a second time or a guidance scale: at first it is what it was."""

import json

import pytest
import torch
from torch import Tensor, nn

from every_net import BUILDS, GUIDED, built, conditions
from fewstep.contract import Contract, DataSpec, Sampling, Start
from fewstep.core import UsageError
from fewstep.derivatives import jvp
from fewstep.model import Model, load
from fewstep.models import EDM, Clamped, ConsistencyBoundary, Denoiser, Flow, TrigFlow, grown
from fewstep.models.nets import NETWORKS
from fewstep.models.spec import build_denoiser, denoiser_spec
from fewstep.paths import Linear, Trig, VarianceExploding, VariancePreserving
from oracles import D, normal
from small_nets import shaken

each = pytest.mark.parametrize("name", BUILDS)
EDM_ = EDM(sigma_data=0.5)


def denoiser(name: str, **options) -> Denoiser:
    return Denoiser(built(name, **options).float(), EDM_)


def ask(model: Denoiser, t: float = 2.0, s: float | None = None, **cond: Tensor) -> Tensor:
    x = normal(3, *model.net.options["shape"]).float()
    times = [None if v is None else torch.full((3,), v, dtype=D) for v in (t, s)]
    return model(x, *times, {**(conditions(model.net) or {}), **cond})


# Growing.


@each
def test_the_grown_one_answers_alike_at_every_second_time_and_scale(name):
    old = denoiser(name)
    new = grown(old, two_time=True, guidance=name in GUIDED)
    assert (old.two_time, new.two_time) == (False, True)
    assert ("guidance" in new.cond_keys) == (name in GUIDED)
    wanted = ask(old)
    assert wanted.abs().max() > 0.01
    for s in (None, 0.0, 0.5, 2.0):
        assert ask(new, s=s).equal(wanted)
    for scale in (0.0, 1.0, 7.5):
        assert ask(new, guidance=torch.full((3,), scale)).equal(wanted)


@each
def test_what_is_new_can_be_learnt(name):
    new = grown(denoiser(name), two_time=True, guidance=name in GUIDED)
    ask(new, s=0.5).square().sum().backward()
    before = set(denoiser(name).state_dict())
    fresh = {k: p for k, p in new.named_parameters() if k not in before}
    for part in ("end", "guidance")[: 1 + (name in GUIDED)]:
        assert any(p.grad.any() for k, p in fresh.items() if part in k), part
    torch.manual_seed(1)
    with torch.no_grad():
        for p in fresh.values():
            p.add_(torch.randn_like(p) * 0.2)
    one = ask(new, s=0.5)
    assert not torch.allclose(ask(new, s=0.1), one)
    if name in GUIDED:
        assert not torch.allclose(ask(new, s=0.5, guidance=torch.full((3,), 3.3)), one)


@each
def test_nothing_is_shared(name):
    old = denoiser(name)
    for new in (grown(old), grown(old, two_time=True)):
        assert new is not old
        old_storage = {p.data_ptr() for p in old.state_dict().values()}
        assert old_storage.isdisjoint(p.data_ptr() for p in new.state_dict().values())
    again = grown(new, two_time=True)
    assert denoiser_spec(again) == denoiser_spec(new)
    assert ask(again).equal(ask(new))


def test_growth_keeps_precision_mode_and_preconditioning():
    old = Denoiser(built("mlp").double().train(), EDM_).on(Linear())
    new = grown(old, two_time=True)
    assert new.path == Linear()
    assert new.preconditioning == old.preconditioning
    assert new.net.training
    assert {p.dtype for p in new.parameters()} == {D}
    assert not grown(Denoiser(built("mlp").eval(), EDM_), guidance=True).net.training


def test_one_input_after_the_other_is_both_at_once():
    old = denoiser("adm")
    one = grown(grown(old, guidance=True), two_time=True)
    assert denoiser_spec(one) == denoiser_spec(grown(old, two_time=True, guidance=True))
    assert ask(one, s=0.3).equal(ask(old))


@pytest.mark.parametrize("name", ["mlp", "ddpmpp", "adm", "edm2", "dit"])
def test_a_grown_model_is_saved_and_loaded(name, tmp_path):
    new = grown(denoiser(name), two_time=True, guidance=True)
    shaken(new.net)
    sampling = Sampling(start=Start(t=80.0, std=80.0), kind="renoise", times={1: (80.0,)})
    data = DataSpec(shape=tuple(new.net.options["shape"]))
    Model(new, Contract(method="ctm", data=data, sampling=sampling)).save(tmp_path / "m")
    again = load(tmp_path / "m", device="cpu").denoiser
    assert again.two_time
    assert "guidance" in again.cond_keys
    assert ask(again, s=0.3).equal(ask(new, s=0.3))
    # A model from before these options is one without them.
    spec = json.loads(json.dumps(denoiser_spec(denoiser(name))))
    del spec["network"]["two_time"], spec["network"]["guidance"]
    assert not build_denoiser(spec).two_time


class Own(nn.Module):
    cond_keys = ()

    def __init__(self, two_time: bool) -> None:
        super().__init__()
        self.two_time = two_time

    def forward(self, x, c_noise, s_noise=None, cond=None):
        return x


def test_what_cannot_grow_says_what_to_do():
    own = Denoiser(Own(two_time=False), EDM_)
    with pytest.raises(UsageError, match=r"Own is a network of your own.*two_time.*strict=False"):
        grown(own, two_time=True)
    assert isinstance(grown(own), Denoiser)
    assert grown(Denoiser(Own(two_time=True), EDM_), two_time=True).two_time
    with pytest.raises(UsageError, match=r"NCSNpp has no input for a guidance scale.*EDM2"):
        grown(denoiser("ncsnpp"), two_time=True, guidance=True)
    with pytest.raises(UsageError, match="got Clamped"):
        grown(Clamped(denoiser("mlp")), two_time=True)
    assert {*NETWORKS} - {"ncsnpp", "unet1d", "diffusers"} == {n.split("-")[0] for n in GUIDED}


# The second time near clean data.


def linear_or_trig(name: str, path) -> Denoiser:
    return grown(Denoiser(built(name), EDM_), two_time=True).on(path)


@pytest.mark.parametrize("path", [Linear(), Trig(), VariancePreserving()])
@pytest.mark.parametrize("name", ["mlp", "edm2"])
def test_jumps_to_clean_data_are_finite_with_their_derivatives(path, name):
    model = linear_or_trig(name, path)
    shaken(model.net)
    shape = model.net.options["shape"]
    x, v = normal(3, *shape), normal(3, *shape, seed=1)
    t, s = torch.full((3,), 0.6, dtype=D), torch.zeros(3, dtype=D)
    cond = conditions(model.net)

    def answer(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return model(x, t, s, cond)

    one = torch.ones(3, dtype=D)
    value, tangent = jvp(answer, (x, t, s), (v, one, one))
    assert value.isfinite().all()
    assert tangent.isfinite().all()
    # In s it is constant there, so the derivative is that in x and t.
    torch.testing.assert_close(tangent, jvp(answer, (x, t, s), (v, one, 0 * one))[1])
    t.requires_grad_(), s.requires_grad_()
    model.jump(x, t, s, cond).square().sum().backward()
    for grad in (t.grad, *(p.grad for p in model.parameters())):
        assert grad is not None
        assert grad.isfinite().all()


@pytest.mark.parametrize("path", [Linear(), Trig(), VarianceExploding(0.0, 80.0)])
def test_the_second_time_is_read_no_cleaner_than_the_network_s_own(path):
    model = linear_or_trig("mlp", path)
    seen: list[Tensor] = []
    model.net.register_forward_pre_hook(lambda m, args: seen.append(args[2]))
    x, ratios = normal(4, 2), torch.tensor([0.0, 0.001, 0.002, 0.7], dtype=D)
    cond = {"label": torch.zeros(4, dtype=torch.int64)}
    model(x, torch.full((4,), 0.6, dtype=D), path.time(ratios), cond)
    model(x, path.time(ratios), None, cond)  # s = t
    wanted = torch.tensor([0.002, 0.002, 0.002, 0.7], dtype=D).log() / 4
    for found in seen:
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


def test_networks_of_other_paths_have_their_own_floor():
    s = torch.tensor([0.0, 0.005, 0.5], dtype=D)
    boundary = ConsistencyBoundary(sigma_data=0.5, path=VarianceExploding(0.01, 80.0))
    assert boundary.end_noise(s)[:2].equal(boundary.coefficients(s.new_tensor([0.01, 0.01]))[3])
    assert Flow(path=Linear()).end_noise(s).equal(s)
    assert TrigFlow().end_noise(s).equal(s)
    early = Flow(path=Linear(t_min=0.01)).on(Trig())
    torch.testing.assert_close(early.end_noise(s)[0], torch.tensor(0.01, dtype=D))


def test_derivatives_in_the_second_time_are_those_of_the_network():
    model = linear_or_trig("mlp", Linear())
    shaken(model.net)
    x, t = normal(3, 2), torch.full((3,), 0.6, dtype=D)
    # The last is the edge itself, from above.
    edge = Linear().time(torch.tensor([0.002], dtype=D))
    s = torch.cat([torch.tensor([0.001, 0.3], dtype=D), edge])
    cond, h = conditions(model.net), 1e-7
    tangent = jvp(lambda s: model(x, t, s, cond), (s,), (torch.ones(3, dtype=D),))[1]
    forward = (model(x, t, s + h, cond) - model(x, t, s, cond)).detach() / h
    torch.testing.assert_close(tangent, forward, rtol=1e-3, atol=1e-6)
    assert not tangent[0].any()
    assert tangent[1:].any(1).all()
