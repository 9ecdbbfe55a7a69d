"""Noise that belongs to the sample, whatever draws it."""

import itertools
import random

import numpy as np
import pytest
import torch

from fewstep import noise as noises
from fewstep.hashing import entropies
from fewstep.noise import SampleNoise


def seed_sequence(key):
    return int(np.random.SeedSequence(tuple(key)).generate_state(1, np.uint64)[0])


def test_hashes_are_those_of_numpy():
    rng = random.Random(0)
    sizes = (0, 1, 8, 31, 32, 33, 63, 64, 65, 96, 200, 1000)
    numbers = [n for bits in sizes for n in (2**bits - 1, 2**bits, rng.getrandbits(bits + 1))]
    keys = [
        [rng.choice(numbers) for _ in range(length)] for length in range(1, 9) for _ in "x" * 99
    ]
    rng.shuffle(keys)
    assert entropies(keys) == [seed_sequence(key) for key in keys]


def test_hashes_of_many_indices():
    keys = list(itertools.product((0, 7, 2**40), range(300)))
    got = entropies(keys)
    assert got == [seed_sequence(key) for key in keys]
    assert all(isinstance(value, int) for value in got)
    assert entropies([]) == []


def test_a_negative_number_has_no_hash():
    with pytest.raises(ValueError, match="at least 0, got -1"):
        entropies([(0, -1)])


def each_alone(seeds, shape, lengths, calls):
    """A generator for each sample, whose stream goes on from step to step."""
    rows = []
    for n, pair in enumerate(seeds):
        rng = torch.Generator().manual_seed(seed_sequence(pair))
        own = shape if lengths is None else (*shape[:-1], lengths[n])
        drawn = [torch.randn(own, generator=rng) for _ in range(calls)]
        rows.append([torch.nn.functional.pad(x, (0, shape[-1] - own[-1])) for x in drawn])
    return [torch.stack(step) for step in zip(*rows, strict=True)]


@pytest.mark.parametrize("lengths", [None, [7, 1, 5, 3]])
@pytest.mark.parametrize("shape", [(7,), (3, 7), (1, 4, 7), (2, 16, 7)])
@pytest.mark.parametrize("calls", [None, 1, 3])
def test_every_way_draws_the_same(monkeypatch, shape, lengths, calls):
    seeds = [(0, 0), (0, 1), (9, 0), (2**35, 4)]
    expected = each_alone(seeds, shape, lengths, 3)
    for most in (2**26, 1):
        monkeypatch.setattr(noises, "AHEAD", most)
        noise = SampleNoise(seeds, shape, lengths, calls)
        for i in range(calls or 3):
            assert noise(i).equal(expected[i])
    part = SampleNoise(seeds[2:], shape, None if lengths is None else lengths[2:], calls)
    assert part(0).equal(expected[0][2:])


def test_no_generator_is_kept_where_steps_are_known(monkeypatch):
    made, usual = [], torch.Generator
    monkeypatch.setattr(torch, "Generator", lambda: made.append(0) or usual())
    SampleNoise([(0, i) for i in range(50)], (2,), calls=2)(0)
    assert len(made) == 1
