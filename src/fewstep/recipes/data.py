"""The data of a recipe: what training sees, what it does not see, and how it is augmented."""

from __future__ import annotations

from pathlib import Path

from fewstep.contract import DataSpec
from fewstep.data import Dataset, EDMAugment, Flip
from fewstep.data.catalogue import entry, training_data, with_held_out
from fewstep.data.overlap import compared
from fewstep.data.parts import noted
from fewstep.data.prepared import SUFFIX
from fewstep.data.specs import check_alike, mirror_fault, spec_of
from fewstep.data.stored import is_stored
from fewstep.errors import UsageError
from fewstep.evaluation.report import HELD_OUT
from fewstep.recipes.method import MethodOptions
from fewstep.recipes.options import DataOptions
from fewstep.recipes.recipe import Recipe
from fewstep.training.config import Augment


def opened(options: DataOptions) -> tuple[Dataset, Dataset | None]:
    """The training data of a recipe, and the held-out data that its options ask for, if any.

    Raises:
        UsageError: either cannot be used, at least half of the held-out samples are training
            samples, or they are of another kind than these.
    """
    name, background = options.data, options.background
    stored = Path(name).suffix == SUFFIX and is_stored(name)
    if background is not None and (entry(name) is not None or stored):
        raise UsageError(
            f"--background is the colour behind transparent pixels of the images in a folder or "
            f"zip, which {name} is not; leave it out"
        )
    whole = training_data(
        name, resolution=options.resolution, labels=options.labels, background=background
    )
    if options.held_out is None:
        return whole, None
    train, unseen = with_held_out(whole, name, options.held_out, HELD_OUT, background)
    assert unseen is not None
    note = compared(train, unseen)
    check_alike(name, spec_of(train), str(options.held_out), spec_of(unseen))
    return train, unseen if note is None else noted(unseen, note)


def augmentation(recipe: Recipe[MethodOptions], spec: DataSpec) -> Augment | None:
    """What happens to each batch.

    Args:
        recipe: with its options.
        spec: of the data.

    Raises:
        UsageError: images are to be mirrored, and samples of this kind have no mirror image.
    """
    options = recipe.augment
    if options.augment:
        return EDMAugment(options.augment)
    if options.flip and (fault := mirror_fault(spec)) is not None:
        raise UsageError(f"--flip mirrors images, and {fault}; leave it out, or say --no-flip")
    return Flip() if options.flip else None
