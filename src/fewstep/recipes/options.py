"""The groups of options that every recipe has, as plain values: importing this imports no torch.

Field names are unique over all groups and methods, since the command line and run.json are flat.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, fields
from typing import Annotated, Literal

from fewstep.errors import UsageError
from fewstep.option_kinds import Names, Real, Reals, Whole, Wholes, optional

NONE = "none"
"""The name that stands for no teacher: training starts from new weights."""

Unseen = Annotated[float | str | None, optional("SHARE|PATH")]
Colour = Annotated[str | None, optional("COLOUR")]

NetworkName = Literal["mlp", "ddpmpp", "ncsnpp", "adm", "edm2", "dit", "unet1d"]
DistanceName = Literal["lpips", "l2", "l1", "pseudo-huber"]


def _shares(options: object, *names: str) -> None:
    """Refuse values of these options outside of [0, 1)."""
    for name in names:
        if not 0 <= (value := getattr(options, name)) < 1:
            raise UsageError(f"--{name.replace('_', '-')} must lie in [0, 1), got {value}")


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """What a model learns from."""

    data: str = ""
    """Name of a data set (digits, two-modes, cifar10, ...), or path of a folder, zip or file."""
    resolution: Whole = None
    """Height and width in pixels to which the images of a folder or zip are cropped."""
    labels: bool = True
    """Condition the model on the classes that the data has."""
    held_out: Unseen = None
    """What training does not see, for evaluations: a share of the data in (0, 0.5], such as 0.1, or
    the path of other such data."""
    background: Colour = None
    """Colour behind transparent pixels of the images of a folder or zip, such as black or #c0c0c0;
    white if not given."""

    def __post_init__(self) -> None:
        """Read a share that is given as a text as a number."""
        if isinstance(self.held_out, str):
            with suppress(ValueError):
                object.__setattr__(self, "held_out", float(self.held_out))


@dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """The network of new weights; a student that starts from a teacher has the teacher's.

    An option that is not given has the network's own default.
    """

    network: NetworkName = "ddpmpp"
    """Family of a new network; a student with a teacher begins as the teacher instead."""
    width: Whole = None
    """Width of an mlp or dit."""
    channels: Whole = None
    """Channels of a U-Net at full resolution."""
    multipliers: Wholes = None
    """Channels of each resolution of a U-Net, as multiples of --channels."""
    widths: Wholes = None
    """Channels of each resolution of a unet1d."""
    blocks: Whole = None
    """Residual blocks: in all for an mlp, in each resolution for a U-Net."""
    depth: Whole = None
    """Transformer blocks of a dit."""
    heads: Whole = None
    """Attention heads of a dit."""
    attention: Wholes = None
    """Heights in pixels at which the blocks of a U-Net attend."""
    patch: Whole = None
    """Side in pixels of the patches that the network sees as one."""
    fourier_scale: Real = None
    """Standard deviation of the frequencies of an mlp's time embedding; methods that differentiate
    in time need a small one."""
    double_norm: bool = False
    """Normalise the time embedding's scale and shift once more, as teachers of sCM do."""
    joined: bool = False
    """Give a unet1d's blocks the vectors that samples depend on beside the time embedding, as
    diffusion policies do, instead of adding them to it."""
    positional: bool = False
    """Embed the time of an edm2 by a ladder of frequencies, as teachers of sCM do."""

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            sizes = value if isinstance(value, tuple) else (value,)
            numbers = [n for n in sizes if isinstance(n, int | float) and not isinstance(n, bool)]
            if min(numbers, default=1) <= 0:
                raise UsageError(f"--{one.name.replace('_', '-')} must be above 0, got {value}")


@dataclass(frozen=True, kw_only=True)
class StartOptions:
    """The teacher, and what the student starts as."""

    teacher: str = NONE
    """A model folder, a run folder, a bundled name or hub:OWNER/NAME[@REVISION]; none starts from
    new weights."""
    init: str = NONE
    """A model of the same method, network and data, whose weights the student begins with, for a
    new training with other settings: named as the teacher is."""
    guidance: float = 1.0
    """Scale of classifier-free guidance of a teacher that is distilled; 1 is no guidance."""
    dropout: float = 0.0
    """Probability of dropout in the student, in [0, 1)."""
    lora: Whole = None
    """Rank of low-rank adapters (LoRA), which alone learn on the teacher's frozen weights; by
    default all weights learn."""
    lora_alpha: Real = None
    """The adapters' answers are multiplied by this over their rank; by default it is the rank."""
    lora_targets: Names = None
    """Ends of the names of the layers that have adapters, such as to_q to_v; by default all linear
    maps and convolutions, and in networks of diffusers those that are usual there."""
    condition_drop: float = 0.1
    """Share of the samples that the model sees without conditions, so that it can be guided; 0 for
    observations that are always there."""
    sigma_data: float = 0.5
    """Standard deviation of the data; an EDM teacher's own takes its place."""
    log_time_scale: float = 0.25
    """A new network with EDM's scalings reads the logarithm of the noise level times this: 0.25 in
    EDM, 250 for students that diffusers can sample. A teacher's own takes its place."""
    middle: float = 0.821
    """Noise level of the second call of a two-step sample."""

    def __post_init__(self) -> None:
        _shares(self, "dropout", "condition_drop")
        if self.lora is not None and self.lora < 1:
            raise UsageError(
                f"--lora is the rank of adapters, 1 or more, got {self.lora}; leave it out to "
                "train all weights"
            )
        if self.lora_alpha is not None and not self.lora_alpha > 0:
            raise UsageError(f"--lora-alpha must be above 0, got {self.lora_alpha}")
        for name, value in (("alpha", self.lora_alpha), ("targets", self.lora_targets)):
            if value is not None and self.lora is None:
                raise UsageError(f"--lora-{name} is of adapters; give their rank with --lora")
        if self.lora_targets is not None and not all(self.lora_targets or ("",)):
            raise UsageError(
                "--lora-targets names ends of the names of layers, such as to_q to_v; leave it out "
                "for the usual ones"
            )
        if not self.log_time_scale > 0:
            raise UsageError(f"--log-time-scale must be above 0, got {self.log_time_scale}")


@dataclass(frozen=True, kw_only=True)
class AverageOptions:
    """The averages of the weights; the first one becomes the run's model."""

    rates: Reals = (0.999,)
    """Rates of exponential averages, each in [0, 1); 0 is the student itself."""
    warm_averages: bool = True
    """Let these averages forget their first updates sooner; published runs do not."""
    half_life: float = 0.0
    """Half-life in samples of one more average; 0 makes none."""
    average_widths: Reals = ()
    """Relative widths of power-function averages (EDM2), e.g. 0.05 0.1; with
    --train.snapshot-every any other width can be made of them afterwards."""


@dataclass(frozen=True, kw_only=True)
class AugmentOptions:
    """The augmentation of images."""

    augment: float = 0.0
    """Probability of each of EDM's augmentations, whose labels the network must read."""
    flip: bool = False
    """Mirror half of the images, where they are not augmented otherwise."""

    def __post_init__(self) -> None:
        _shares(self, "augment")


@dataclass(frozen=True, kw_only=True)
class CardOptions:
    """What the card of the model says beside its training."""

    licence: str = ""
    """Licence of the model on its card, such as CC-BY-4.0; the data's own may limit which."""
