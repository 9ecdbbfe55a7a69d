"""U-Nets: published sizes, blocks against plain statements of what was published, wiring."""

from __future__ import annotations

import pytest
import torch

from fewstep.core import UsageError
from fewstep.models import EDM, Denoiser
from fewstep.models.nets import DDPMpp
from oracles import normal
from small_nets import NETWORKS, ask, shaken


def parameters(build, *args, **options) -> int:
    """How many there are, without making them."""
    with torch.device("meta"):
        return sum(p.numel() for p in build(*args, **options).parameters())


# Ten classes add a map from 10 to 128 and its bias; nine augmentation labels a map without one.
@pytest.mark.parametrize(
    ("classes", "augment", "count"),
    [(0, 0, 55_732_739), (10, 0, 55_734_147), (0, 9, 55_733_891), (10, 9, 55_735_299)],
)
def test_parameters_of_edm_s_ddpmpp(classes, augment, count):
    assert parameters(DDPMpp, (3, 32, 32), classes=classes, augment=augment) == count


# Every family.


@pytest.mark.parametrize("name", NETWORKS)
def test_units_are_the_blocks_that_hold_most_weights(name):
    network = NETWORKS[name]()
    units = [m for m in network.modules() if isinstance(m, network.units)]
    assert len(units) >= 2
    inside = sum(p.numel() for unit in units for p in unit.parameters())
    assert inside > 0.7 * sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("name", [n for n in NETWORKS if not n.startswith("mlp")])
def test_augmentation_labels_are_optional_and_zero_means_none(name):
    network = shaken(NETWORKS[name](augment=5)).eval()
    assert network.optional_keys == ("augment",)
    assert network.map_augment.bias is None
    plain = ask(network)
    assert ask(network, augment=torch.zeros(3, 5)).equal(plain)
    one = torch.eye(3, 5, dtype=torch.float64)
    moved = (ask(network, augment=one) - plain).abs().flatten(1).amax(1)
    assert moved.min() > 1e-4
    only = (ask(network, augment=one[:, :1] * one) - plain).abs().flatten(1).amax(1)
    assert (only > 0).tolist() == [True, False, False]
    denoiser = Denoiser(network, EDM(sigma_data=0.5))
    x, t = normal(3, *network.options["shape"]).float(), torch.full((3,), 2.0)
    cond = {"label": torch.arange(3), "augment": one}
    assert not denoiser(x, t, None, cond).equal(denoiser(x, t, None, {"label": cond["label"]}))


@pytest.mark.parametrize("shape", [(3,), (3, 8), (1, 6, 8), (1, 8, 6)])
@pytest.mark.parametrize("build", [DDPMpp])
def test_images_must_halve(build, shape):
    with pytest.raises(UsageError, match="divisible by 4"):
        build(shape, channels=64, multipliers=(1, 1, 1))


@pytest.mark.parametrize(("channels", "multipliers"), [(7, (1, 1)), (64, ()), (64, (1, 0))])
@pytest.mark.parametrize("build", [DDPMpp])
def test_widths_must_be_buildable(build, channels, multipliers):
    with pytest.raises(UsageError, match=f"{build.__name__}: expected an even number"):
        build((1, 8, 8), channels=channels, multipliers=multipliers)
