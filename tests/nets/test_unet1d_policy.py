"""The U-Net as diffusion policies condition it: numbers and second time beside the time."""

from __future__ import annotations

import torch

from fewstep.models import EDM, Denoiser, grown
from fewstep.models.nets.unet1d import UNet1d
from fewstep.models.spec import build_network, network_spec

OPTIONS = {"widths": (8, 16), "embedding": 8, "vectors": {"observation": 6}, "joined": True}


def network(**options) -> UNet1d:
    torch.manual_seed(0)
    net = UNet1d((2, 8), **{**OPTIONS, **options}).double()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return net


def inputs():
    torch.manual_seed(1)
    x, t, s = torch.randn(3, 2, 8), torch.rand(3), torch.rand(3)
    return x.double(), t.double(), s.double(), {"observation": torch.randn(3, 2, 3).double()}


def test_the_blocks_read_time_and_vectors_side_by_side():
    net = network(two_time=True)
    seen = []
    block = net.middle.first
    block.register_forward_hook(lambda module, args, out: seen.append(args[1]))
    x, t, s, cond = inputs()
    net(x, t, s, cond)
    wanted = torch.cat([net.time(t), net.time(s), cond["observation"].flatten(1)], 1)
    torch.testing.assert_close(seen[0], wanted)
    assert block.modulate.in_features == 8 + 8 + 6
    assert not [name for name, _ in net.named_parameters() if name.startswith(("end", "cond"))]


def test_a_grown_network_answers_alike_whatever_the_second_time():
    old = Denoiser(network(), EDM(sigma_data=0.5))
    new = grown(old, two_time=True)
    x, t, s, cond = inputs()
    wanted = old(x, t, None, cond)
    assert wanted.abs().max() > 0.01
    for end in (None, s, 0 * s):
        torch.testing.assert_close(new(x, t, end, cond), wanted)
    new(x, t, s, cond).square().sum().backward()
    columns = new.net.middle.first.modulate.weight.grad[:, 8:16]
    assert columns.abs().max() > 0


def test_options_build_it_again():
    net = network(groups=4, two_time=True)
    again = build_network(network_spec(net)).double()
    again.load_state_dict(net.state_dict())
    x, t, s, cond = inputs()
    torch.testing.assert_close(again(x, t, s, cond), net(x, t, s, cond))
    assert net.middle.first.before.norm.num_groups == 4
    assert net.last_block.norm.num_groups == 8
