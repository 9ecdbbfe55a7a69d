import pytest
import torch
from torch import Tensor, nn

from fewstep.core import UsageError
from fewstep.models import EDM, Autoguided, Clamped, Denoiser, Guided
from fewstep.paths import Linear, VarianceExploding
from oracles import D, GaussianDenoiser, Offset, Watched, full, normal


class Labelled(nn.Module):
    two_time = False

    def __init__(self, *cond_keys: str) -> None:
        super().__init__()
        self.cond_keys = cond_keys

    def forward(self, x, c_noise, s_noise=None, cond=None) -> Tensor:
        return torch.tanh(x) + sum(v[:, None] for v in cond.values())


def labelled(*cond_keys: str) -> Denoiser:
    return Denoiser(Labelled(*cond_keys), EDM(sigma_data=0.5))


def test_it_extrapolates_away_from_the_worse_model():
    good, bad = GaussianDenoiser(VarianceExploding()), Offset(GaussianDenoiser(VarianceExploding()))
    nn.init.constant_(bad.offset, 0.5)
    x = normal(3, 2)
    t = full(1.5, x)
    guided = Autoguided(good, bad, 3.0)
    torch.testing.assert_close(guided(x, t), good(x, t) - 2 * 0.5)
    torch.testing.assert_close(Autoguided(good, bad)(x, t), good(x, t))
    each = torch.tensor([0.0, 1.0, 2.0], dtype=D)
    found = guided(x, t, None, {"guidance": each})
    torch.testing.assert_close(found, good(x, t) + 0.5 * (1 - each)[:, None])


def test_both_see_the_same_call():
    inner = GaussianDenoiser(VarianceExploding())
    good, bad = Watched(inner), Watched(inner)
    x = normal(3, 2)
    t, s, cond = full(1.5, x), full(0.5, x), {"label": torch.arange(3)}
    Autoguided(good, bad, 3.0)(x, t, s, {**cond, "guidance": full(2.0, x)})
    for seen in (*good.seen, *bad.seen):
        assert all(a is b for a, b in zip(seen[:3], (x, t, s), strict=True))
        assert seen[3].keys() == cond.keys()


def test_calls_are_counted_and_attributes_passed_on():
    good, bad = labelled("label", "text"), labelled("label")
    guided = Autoguided(good, bad)
    assert (guided.calls, Autoguided(Guided(good, {}), bad).calls) == (2, 3)
    assert (guided.cond_keys, guided.two_time) == (("label", "text"), False)
    assert guided.path is good.path
    assert Clamped(guided).calls == 2


def test_an_unconditional_network_is_the_other_half_of_guidance():
    good, bad = labelled("label"), labelled("label")
    x, cond = normal(3, 2), {"label": torch.arange(3)}
    t = full(1.5, x)
    bad.net.cond_keys = bad.cond_keys = ()
    with_zero = Guided(good, {"label": 0}, 2.5)
    bad.net.forward = lambda x, c, s, cond: torch.tanh(x)
    torch.testing.assert_close(
        Autoguided(good, bad, 2.5)(x, t, None, cond), with_zero(x, t, None, cond)
    )


def test_models_that_do_not_fit():
    good = labelled("label")
    with pytest.raises(UsageError, match=r"Linear.*\.on\(path\)"):
        Autoguided(good, GaussianDenoiser(Linear()))
    with pytest.raises(UsageError, match=r"\('label',\) guided by \('text',\)"):
        Autoguided(good, labelled("text"))
    with pytest.raises(UsageError, match="guidance scale"):
        Autoguided(labelled("guidance"), GaussianDenoiser(good.path))
