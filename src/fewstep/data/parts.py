"""Parts of a data set: the samples that training sees, and the share that is held out."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from fewstep.core import Batch, UsageError
from fewstep.data.arrays import Indices
from fewstep.data.images import ImageFolder
from fewstep.data.specs import spec_of
from fewstep.frontends import Frontend

if TYPE_CHECKING:
    from fewstep.data import Dataset

MOST = 0.5
"""The largest share that may be held out."""
LEAST = 2
"""The fewest samples that may be held out."""


class Part:
    """Some samples of a data set, as a data set of their own.

    Args:
        whole: the data set.
        index: int64 ``(n,)``, which of its samples, in their order.
        notes: sentences on what a user has to notice.

    Attributes:
        shape: of a sample.
        labels: number of classes, 0 without labels; classes without samples here count too.
        image: whether the values are pictures in [-1, 1].
        spec: what a sample is and depends on.
    """

    def __init__(self, whole: Dataset, index: np.ndarray, notes: Sequence[str] = ()) -> None:
        if isinstance(whole, Part):
            whole, index = whole.whole, whole.index[index]
        self.whole, self.index, self.notes = whole, index, tuple(notes)
        self.shape, self.labels, self.image = whole.shape, whole.labels, whole.image
        self.spec = spec_of(whole)

    @property
    def frontend(self) -> Frontend | None:
        """The codec and the reader of texts that made the data, if any did."""
        return getattr(self.whole, "frontend", None)

    @property
    def sigma_data(self) -> float | None:
        """The standard deviation of the whole data, where it was measured."""
        return getattr(self.whole, "sigma_data", None)

    def __len__(self) -> int:
        return len(self.index)

    def batch(self, indices: Indices) -> Batch:
        """The samples at ``indices`` of this part."""
        return self.whole.batch(self.index[np.asarray(indices, dtype=np.int64)])

    @property
    def digest(self) -> str:
        """The sha256 of the numbers that the samples have in the whole."""
        return hashlib.sha256(self.index.astype("<i8").tobytes()).hexdigest()


def share_of(held_out: float | str | None) -> float | None:
    """The share of the data that is to be held out; None where other data is, or none.

    Args:
        held_out: a share, the path of other data, or None.

    Raises:
        UsageError: the share does not lie in (0, 0.5].
    """
    if held_out is None:
        return None
    try:
        share = float(held_out)
    except ValueError:
        return None
    if not 0 < share <= MOST:
        text = held_out if isinstance(held_out, str) else f"{held_out:g}"
        raise UsageError(
            f"the share of the data that is held out must be above 0 and at most {MOST}, got "
            f"{text}; a folder or file of that name is written --held-out ./{text}"
        )
    return share


def split(data: Dataset, share: float) -> tuple[Part, Part]:
    """A data set in two parts: what training sees, and a share that is held out.

    Which samples are held out is a function of their names (images in a folder or zip) or of their
    indices (all other data), by a hash. Every class gives its share: its samples with the lowest
    hashes. So a new sample moves at most a few of the others to the other part. A class never has
    more held-out samples than others. Data that does not know its labels without reading all
    samples is split as if it had none.

    Args:
        data: any data set.
        share: in (0, 0.5].

    Returns:
        The training part, and the held-out part.

    Raises:
        UsageError: the share does not lie in (0, 0.5], or it is less than two samples.
    """
    checked = share_of(share)
    if checked is None:
        raise UsageError(f"split takes a share in (0, {MOST}], got {share!r}")
    label = getattr(data, "given_labels", None)
    group = np.zeros(len(data), np.int64) if label is None else np.asarray(label)
    hashes = np.array([_hash(key) for key in _keys(data)], np.uint64)
    held = _lowest(hashes, group, checked)
    count = int(held.sum())
    if count < LEAST:
        enough = LEAST / len(data)
        advice = f"give a share of {enough:.2g} or more, or " if enough <= MOST else "give "
        raise UsageError(
            f"a share of {checked:g} of {len(data):,} sample(s) holds out {count}, and at least "
            f"{LEAST} are needed; {advice}other data, --held-out PATH"
        )
    notes = getattr(data, "notes", ())
    return Part(data, np.flatnonzero(~held), notes), Part(data, np.flatnonzero(held))


def noted(data: Dataset, note: str) -> Part:
    """The same samples, with one more note."""
    return Part(data, np.arange(len(data)), (*getattr(data, "notes", ()), note))


def _keys(data: Dataset) -> Sequence[str]:
    """What each sample is known by."""
    if not isinstance(data, ImageFolder):
        return [*map(str, range(len(data)))]
    names, top = data.names, data.names[0].split("/")[0] + "/"
    # A zip of a folder may hold the folder's own name, and is split as the folder is.
    if data.members.path.is_dir() or not all(name.startswith(top) for name in names):
        return names
    return [name.removeprefix(top) for name in names]


def _hash(key: str) -> int:
    digest = hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _lowest(hashes: np.ndarray, group: np.ndarray, share: float) -> np.ndarray:
    """Which samples are held out, bool ``(n,)``: those of the lowest hashes of each group.

    A group gives its share rounded down. What is then missing comes from the groups with the
    largest remainders; of equal ones, from those whose next sample has the lowest hash.
    """
    _, group, counts = np.unique(group, return_inverse=True, return_counts=True)
    order = np.lexsort((hashes, group))
    first = np.cumsum(counts) - counts
    takes = np.floor(counts * share + 1e-9).astype(np.int64)
    missing = int(np.floor(len(group) * share + 0.5)) - int(takes.sum())
    following = hashes[order][np.minimum(first + takes, len(group) - 1)]
    remainder = np.round(counts * share - takes, 9)
    able = takes + 1 <= counts // 2
    ranked = [k for k in np.lexsort((following, -remainder)) if able[k]]
    takes[ranked[: max(missing, 0)]] += 1
    place = np.empty(len(group), np.int64)
    place[order] = np.arange(len(group)) - np.repeat(first, counts)
    return place < takes[group]
