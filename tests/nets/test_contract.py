"""What every network owes to denoisers, objectives and checkpoints."""

import json

import pytest
import torch
from torch import Tensor, nn

from every_net import BUILDS, GUIDED, built, conditions
from fewstep.core import UsageError, same_dropout
from fewstep.derivatives import jvp
from fewstep.models import EDM, Denoiser, Network
from fewstep.models.nets import NETWORKS
from fewstep.models.spec import build_denoiser, denoiser_spec
from oracles import D, normal

DROPPING = [name for name in BUILDS if not name.startswith(("dit", "unet1d"))]
OPTIONS = [{}, {"two_time": True}, {"two_time": True, "guidance": True}]
each = pytest.mark.parametrize("name", BUILDS)
WITH_OPTIONS = [
    *((n, o) for n in BUILDS for o in OPTIONS if "guidance" not in o or n in GUIDED),
    ("edm2", {"two_time": True, "positional": True}),
    ("ddpmpp", {"double_norm": True}),
    ("adm", {"double_norm": True}),
    ("adm", {"two_time": True, "end": "separate"}),
    ("adm", {"groups": 32, "heads": 4, "eps": 1e-6, "embedding_multiplier": 2}),
    ("adm", {"convolutions": True, "asymmetric": True, "sin_first": True, "endpoint": True}),
    ("adm", {"head_channels": 16, "middle_attention": False, "attention": ()}),
    ("ddpmpp", {"two_time": True, "end": "separate"}),
    ("ddpmpp", {"two_time": True, "end": "joined"}),
    ("edm2", {"head_channels": 4, "noise_multiplier": 3, "embedding_multiplier": 5}),
    ("edm2", {"middle_attention": False, "balance": {"residual": 0.2, "limit": 8.0}}),
]
each_with_options = pytest.mark.parametrize(("name", "options"), WITH_OPTIONS)


def ask(network: nn.Module, t=0.3, s=None, x: Tensor | None = None, cond=None) -> Tensor:
    x = normal(3, *network.options["shape"]) if x is None else x
    times = [None if v is None else torch.full((3,), v, dtype=D) for v in (t, s)]
    return network(x, *times, cond or conditions(network))


def moved(a: Tensor, b: Tensor) -> Tensor:
    """Which samples differ."""
    return (a - b).abs().flatten(1).amax(1) > 1e-5


@each_with_options
def test_it_is_a_network_that_reads_its_inputs(name, options):
    network = built(name, **options)
    assert isinstance(network, Network)
    first = ask(network)
    assert first.shape == (3, *network.options["shape"])
    assert ask(network).equal(first)
    assert moved(ask(network, t=0.4), first).all()
    x = normal(3, *network.options["shape"])
    x[1] += 1
    assert moved(ask(network, x=x), first).tolist() == [False, True, False]
    for key, value in (conditions(network) or {}).items():
        other = {**(conditions(network) or {}), key: value.clone()}
        if value.dtype == torch.bool or key == "mask":
            other[key][1] = value[1] == 0
        else:
            other[key][1] += 2
        assert moved(ask(network, cond=other), first).tolist() == [False, True, False]
        if key in network.cond_keys:
            with pytest.raises(UsageError, match=key):
                network(
                    x, torch.zeros(3, dtype=D), None, {k: v for k, v in other.items() if k != key}
                )


@each
def test_the_last_weight_is_what_the_answer_is_made_by(name):
    network = built(name)
    weight = network.last_weight
    assert weight in set(network.parameters())
    with torch.no_grad():
        for p in network.last.parameters():
            p.zero_()
    assert not ask(network).any()


@pytest.mark.parametrize("name", [n for n in BUILDS if not n.startswith(("ddpmpp", "ncsnpp"))])
def test_a_fresh_network_answers_nothing(name):
    torch.manual_seed(0)
    assert not ask(BUILDS[name]().double()).any()


@each
def test_two_time_networks_start_as_one_time_ones(name):
    one, two = built(name), built(name, two_time=True)
    assert (one.two_time, two.two_time) == (False, True)
    assert moved(ask(two, s=0.1), ask(two, s=0.2)).all()
    torch.testing.assert_close(ask(two), ask(two, s=0.3))  # without s, s = t
    torch.manual_seed(0)
    fresh = BUILDS[name](two_time=True).double().eval()
    missing, unexpected = fresh.load_state_dict(one.state_dict(), strict=False)
    assert missing
    assert not unexpected
    torch.testing.assert_close(ask(fresh, s=0.1), ask(one), rtol=1e-12, atol=1e-12)
    # The second time can be learnt: something of it has a gradient at once.
    ask(fresh, s=0.1).square().sum().backward()
    assert any(
        fresh.get_parameter(n).grad.any() for n in missing if n in dict(fresh.named_parameters())
    )


@each_with_options
def test_gradients_reach_every_parameter(name, options):
    network = built(name, **options).train()
    ask(network, s=0.1).square().sum().backward()
    unreached = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert not unreached


@pytest.mark.parametrize(
    ("name", "options"),
    WITH_OPTIONS + [(name, {"two_time": True, "dropout": 0.3}) for name in DROPPING],
)
def test_derivatives_in_state_and_times(name, options):
    network = built(name, **options).train("dropout" in options)
    shape = network.options["shape"]
    x, v = normal(3, *shape), normal(3, *shape, seed=1)
    t, s = torch.full((3,), 0.3, dtype=D), torch.full((3,), 0.1, dtype=D)
    directions = (
        v,
        torch.tensor([1.0, -0.5, 0.3], dtype=D),
        torch.tensor([0.2, 1.0, -1.0], dtype=D),
    )

    def answer(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        with same_dropout(x):
            return network(x, t, s, conditions(network))

    value, tangent = jvp(answer, (x, t, s), directions)
    torch.testing.assert_close(value, answer(x, t, s))
    # Of fourth order, for the frequencies of NCSN++.
    h, difference = 5e-6, torch.zeros_like(value)
    for steps, weight in ((1, 8), (-1, -8), (2, -1), (-2, 1)):
        point = (p + steps * h * d for p, d in zip((x, t, s), directions, strict=True))
        difference = difference + weight * answer(*point).detach() / (12 * h)
    torch.testing.assert_close(tangent, difference, rtol=1e-5, atol=1e-6)
    assert value.requires_grad


@each
def test_derivatives_are_finite_under_autocast(name):
    network = built(name, two_time=True).float()
    x, t = normal(3, *network.options["shape"]).float(), torch.full((3,), 0.3)
    cond = {
        k: v.float() if v.is_floating_point() else v for k, v in (conditions(network) or {}).items()
    }

    def answer(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return network(x, t, s, cond)

    with torch.autocast("cpu", torch.bfloat16):
        value, tangent = jvp(answer, (x, t, t / 2), (x.flip(0), torch.ones(3), -torch.ones(3)))
        value.float().square().sum().backward()
    assert value.isfinite().all()
    assert tangent.isfinite().all()
    assert tangent.any()
    assert all(p.grad.isfinite().all() for p in network.parameters())


@each_with_options
def test_it_survives_its_spec(name, options):
    denoiser = Denoiser(built(name, **options), EDM(sigma_data=0.5))
    spec = json.loads(json.dumps(denoiser_spec(denoiser)))
    assert spec["network"]["kind"] in NETWORKS
    again = build_denoiser(spec).double().eval()
    assert denoiser_spec(again) == spec
    again.load_state_dict(denoiser.state_dict())
    assert ask(again.net, s=0.1).equal(ask(denoiser.net, s=0.1))


@each
def test_its_units_hold_most_of_it(name):
    """Classes that a trainer may shard or recompute one by one."""
    network = built(name)
    assert all(issubclass(unit, nn.Module) for unit in network.units)
    inside = [m for m in network.modules() if isinstance(m, network.units)]
    assert not any(a is not b and a in b.modules() for a in inside for b in inside)
    count = sum(p.numel() for m in inside for p in m.parameters())
    assert count > 0.5 * sum(p.numel() for p in network.parameters())


@each
def test_it_runs_in_half_precision(name):
    network = built(name).to(torch.bfloat16)
    out = Denoiser(network, EDM(sigma_data=0.5))(
        normal(3, *network.options["shape"]).float(),
        torch.full((3,), 0.4),
        None,
        {
            k: v.to(torch.bfloat16) if v.is_floating_point() else v
            for k, v in (conditions(network) or {}).items()
        }
        or None,
    )
    assert out.dtype == torch.float32
    assert out.isfinite().all()


@each
def test_every_parameter_has_rows_to_shard(name):
    # FSDP2 splits parameters by rows and refuses those without any dimension.
    assert all(p.ndim >= 1 for p in BUILDS[name]().parameters())
