"""numpy's SeedSequence, for many entropies at once.

The hash is O'Neill's ``seed_seq_fe`` (2015) with numpy's constants, which numpy promises to keep:
a pool of four 32-bit words takes up the entropy word by word, and the state is drawn from the pool.
All arithmetic is modulo 2**32.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

POOL = 4
XSHIFT = np.uint32(16)
INIT_A, MULT_A = 0x43B0D7E5, 0x931E8875
INIT_B, MULT_B = 0x8B51F9DD, 0x58F38DED
MIX_L, MIX_R = np.uint32(0xCA01F9DD), np.uint32(0x4973F715)
WORD = 2**32

Words = NDArray[np.uint32]


def entropies(keys: Sequence[Sequence[int]]) -> list[int]:
    """``SeedSequence(key).generate_state(1, uint64)`` of each key.

    Args:
        keys: integers of at least 0, of any size.
    """
    numbers = [number for key in keys for number in key]
    if numbers and not 0 <= min(numbers) <= max(numbers) < WORD:
        keys = [[word for number in key for word in _words(number)] for key in keys]
    result = np.zeros(len(keys), dtype=np.uint64)
    lengths = np.array([len(key) for key in keys])
    for length in np.unique(lengths):
        which = np.flatnonzero(lengths == length)
        words = np.array([keys[i] for i in which.tolist()], dtype=np.uint32).reshape(
            len(which), length
        )
        low, high = _states(_pool(words.T))
        result[which] = low.astype(np.uint64) | high.astype(np.uint64) << np.uint64(32)
    return result.tolist()


def _words(number: int) -> list[int]:
    """The number in base 2**32, lowest digit first; 0 has one."""
    if 0 <= number < WORD:
        return [number]
    if number < 0:
        raise ValueError(f"expected an integer of at least 0, got {number}")
    words = []
    while number:
        number, word = divmod(number, WORD)
        words.append(word)
    return words


def _pool(words: Words) -> list[Words]:
    """The mixed pool of entropies ``(words, n)``."""
    step = _Hash(INIT_A, MULT_A)
    zeros = np.zeros(words.shape[1], dtype=np.uint32)
    pool = [step(words[i] if i < len(words) else zeros) for i in range(POOL)]
    for source in range(POOL):
        for target in range(POOL):
            if source != target:
                pool[target] = _mix(pool[target], step(pool[source]))
    for word in words[POOL:]:
        pool = [_mix(there, step(word)) for there in pool]
    return pool


def _states(pool: list[Words]) -> list[Words]:
    """The first two words drawn from a pool."""
    step = _Hash(INIT_B, MULT_B)
    return [step(word) for word in pool[:2]]


class _Hash:
    """Hashes words; its constant moves on with every call, whatever the words."""

    def __init__(self, constant: int, factor: int) -> None:
        self.constant, self.factor = constant, factor

    def __call__(self, value: Words) -> Words:
        value = value ^ np.uint32(self.constant)
        self.constant = self.constant * self.factor % WORD
        value = value * np.uint32(self.constant)
        return value ^ value >> XSHIFT


def _mix(x: Words, y: Words) -> Words:
    result = x * MIX_L - y * MIX_R
    return result ^ result >> XSHIFT
