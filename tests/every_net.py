"""A small network of every kind and with every input, in float64, and conditions for it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fewstep.models.nets import EDM2, DDPMpp, DiT, ResidualMLP, UNet1d
from oracles import D, normal
from small_nets import NETWORKS, SMALL

SEQUENCE = {"widths": (8, 16, 8), "embedding": 8, "kernel": 3}
VECTORS = {"vectors": {"pose": 4}}
DECLARED = {**VECTORS, "sequences": {"text": (6, 5)}, "images": {"sketch": 2}}
BUILDS = {
    **NETWORKS,
    "edm2": lambda **o: EDM2(
        (2, 8, 8),
        **{"channels": 8, "multipliers": (1, 2), "blocks": 1, "attention": (4,), "classes": 3, **o},
    ),
    "edm2-wide": lambda **o: EDM2((1, 4, 8), channels=8, multipliers=(2, 1), blocks=1, **o),
    "dit": lambda **o: DiT((2, 8, 8), **{"depth": 2, "width": 8, "heads": 2, "classes": 3, **o}),
    "dit-wide": lambda **o: DiT((1, 4, 8), patch=4, depth=2, width=16, heads=1, **o),
    "unet1d": lambda **o: UNet1d((2, 8), **{**SEQUENCE, "classes": 3, **o}),
    "unet1d-observing": lambda **o: UNet1d((3, 4), **{**SEQUENCE, "observation": 4, **o}),
    "mlp-vectors": lambda **o: ResidualMLP((2,), width=16, blocks=2, **VECTORS, **o),
    "ncsnpp-vectors": lambda **o: NETWORKS["ncsnpp"](**VECTORS, **o),
    "adm-vectors": lambda **o: NETWORKS["adm"](**VECTORS, **o),
    "ddpmpp-declared": lambda **o: DDPMpp((2, 8, 8), **{**SMALL, **DECLARED, "patch": 2, **o}),
    "dit-declared": lambda **o: DiT(
        (2, 8, 8), **{"depth": 2, "width": 8, "heads": 2, **DECLARED, **o}
    ),
    "unet1d-declared": lambda **o: UNet1d((2, 8), **{**SEQUENCE, **DECLARED, "masked": True, **o}),
}
GUIDED = [name for name in BUILDS if not name.startswith(("ncsnpp", "unet1d"))]


def built(name: str, **options) -> nn.Module:
    """With no zero among its weights: fresh networks answer nothing."""
    torch.manual_seed(0)
    network = BUILDS[name](**options)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(torch.randn_like(p) * 0.2)
    return network.double().eval()


def conditions(network: nn.Module) -> dict[str, Tensor] | None:
    known = {
        "label": torch.tensor([0, 1, 2]),
        "observation": normal(3, 4, seed=9),
        "guidance": torch.tensor([1.0, 2.5, 7.0], dtype=D),
        "augment": normal(3, 5, seed=8),
        "pose": normal(3, 2, 2, seed=7),
        "text": normal(3, 4, 5, seed=6),
        # The last sample has no token.
        "text_mask": torch.tensor([[1, 1, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]], dtype=torch.bool),
        "sketch": normal(3, 2, *network.options["shape"][1:], seed=5),
        "mask": torch.ones(3, 1, *network.options["shape"][1:], dtype=D),
    }
    # The samples have lengths of 6, 5 and 8.
    known["mask"][0, ..., 6:], known["mask"][1, ..., 5:] = 0, 0
    keys = (*network.cond_keys, *getattr(network, "optional_keys", ()))
    return {key: known[key] for key in keys} or None
