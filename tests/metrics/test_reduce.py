"""Two processes that each saw a part of the data find the moments of the whole."""

import os

import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing

from fewstep.metrics import StreamingMoments, reduce_moments

SIZES = (7, 23)
"""Samples of each rank in the first round; in the second, rank 0 has seen none."""


def features():
    rng = torch.Generator().manual_seed(0)
    return 1000 + torch.randn(sum(SIZES), 4, generator=rng, dtype=torch.float64)


def seen(x):
    moments = StreamingMoments(4)
    for part in x.split(5):
        if len(part):
            moments.update(part)
    return moments


def rank_of_two(rank, folder):
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    own = features().split(SIZES)[rank]
    for name, part in (("both", own), ("one", own if rank else own[:0])):
        moments = seen(part)
        before = moments.scatter.clone()
        found = reduce_moments(moments)
        assert torch.equal(moments.scatter, before)
        torch.save((found.n, found.mean, found.scatter), f"{folder}/{name}{rank}")
    dist.destroy_process_group()


def test_two_ranks(tmp_path):
    multiprocessing.spawn(rank_of_two, (str(tmp_path),), nprocs=2)
    for name, x in (("both", features()), ("one", features()[SIZES[0] :])):
        found = [torch.load(tmp_path / f"{name}{rank}", weights_only=True) for rank in (0, 1)]
        expected = seen(x)
        for n, mean, scatter in found:
            assert n == len(x)
            # Relative to means of 1000: sums of squares would keep 1e-10 of the scatter at best.
            assert float((mean - expected.mean).abs().max()) < 1e-10
            assert float((scatter - expected.scatter).abs().max()) < 1e-10
        assert torch.equal(found[0][2], found[1][2])


def test_alone_it_changes_nothing():
    moments = seen(features())
    assert reduce_moments(moments) is moments


def test_moments_of_merged_parts_are_those_of_the_whole():
    left, right = map(seen, features().split(SIZES))
    left.merge(right)
    whole = seen(features()).moments()
    assert left.moments().mean == pytest.approx(whole.mean, abs=1e-10)
    assert left.moments().cov == pytest.approx(whole.cov, abs=1e-10)
