"""What a model can be asked: the facts of its contract from which the page draws its forms."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from fewstep.conditions import Image, Label, Mask, Sequence, Text, Vector
from fewstep.image_grid import drawable
from fewstep.model import Model
from fewstep.sampling_options import SOLVERS
from fewstep.serving.served import Served

Task = Literal["inpaint", "strokes", "vary", "upscale", "colourise", "deblur", "denoise"]
"""What can be done with a picture."""

OF_PIXELS: tuple[Task, ...] = ("upscale", "deblur", "denoise")
"""Tasks for models without a codec."""


class ConditionForm(BaseModel):
    """A condition of a model's samples.

    ``shape`` is of one value: of a vector, of an image, or of one token of a sequence. ``length``
    is the most tokens, or the length of a sample that has its full length. ``classes`` and
    ``names`` are of labels.
    """

    name: str
    kind: Literal["label", "vector", "sequence", "text", "image", "mask"]
    shape: list[int] | None = None
    length: int | None = None
    classes: int | None = None
    names: list[str] | None = None


class GuidanceForm(BaseModel):
    """The scales of guidance that a model allows; 1 is none."""

    min: float
    max: float
    embedded: bool


class CodecForm(BaseModel):
    """The codec of a model that learned latents."""

    image_channels: int
    latent_shape: list[int]
    factor: int


class ModelForm(BaseModel):
    """A model, and what may be asked of it.

    ``shape`` is of one sample as the API returns it, without a batch; None is a free axis.
    ``times`` are those of each number of steps that the contract lists. A text field ``prompt``
    belongs to models with ``prompts``; ``image`` says whether samples are pictures of pixels.
    ``edits`` are the tasks that the model can do with pictures.
    """

    name: str
    digest: str
    method: str
    kind: Literal["renoise", "deterministic", "gamma", "ode"]
    engine: str
    parameters: int
    shape: list[int | None]
    image: bool
    drawable: bool
    steps: int
    times: dict[int, list[float]]
    any_times: bool
    guidance: GuidanceForm | None
    gamma: float | None
    solvers: list[str]
    prompts: bool
    conditions: list[ConditionForm]
    codec: CodecForm | None
    edits: list[Task]


def form(served: Served) -> ModelForm:
    """The facts of a model."""
    model, contract = served.model, served.model.contract
    sampling, data, codec = (
        contract.sampling,
        contract.data,
        model.frontend.images if len(contract.data.shape) == 3 else None,
    )
    reader = model.frontend.text
    read = {} if reader is None else reader.conditions
    allowed, shape = sampling.guidance, [*model.shape]
    return ModelForm(
        name=served.name,
        digest=served.digest,
        method=contract.method,
        kind=sampling.kind,
        engine=served.engine,
        parameters=sum(p.numel() for p in model.denoiser.parameters()),
        shape=shape,
        image=len(shape) == 3 and shape[0] in (1, 3) and None not in shape,
        drawable=drawable(shape),
        steps=len(model.times()),
        times={steps: [*times] for steps, times in sorted(sampling.times.items())},
        any_times=sampling.any_times,
        guidance=allowed
        and GuidanceForm(min=allowed.min, max=allowed.max, embedded=allowed.embedded),
        gamma=sampling.gamma,
        solvers=[*SOLVERS] if sampling.kind == "ode" else [],
        prompts=reader is not None,
        conditions=[
            _condition(name, one, data.shape)
            for name, one in data.conditions.items()
            if name not in read
        ],
        codec=codec
        and CodecForm(
            image_channels=codec.net.image_channels,
            latent_shape=[size for size in data.shape if size is not None],
            factor=codec.factor,
        ),
        edits=edits(served.model),
    )


def edits(model: Model) -> list[Task]:
    """The tasks that a model can do with pictures."""
    shape = model.shape
    if len(shape) != 3 or shape[0] not in (1, 3) or None in shape:
        return []
    own: list[Task] = ["inpaint", "strokes", "vary"]
    if model.frontend.codec is None:
        own += OF_PIXELS
        if shape[0] == 3:
            own.append("colourise")
    return own


def _condition(name: str, one: Any, shape: tuple[int | None, ...]) -> ConditionForm:
    made = ConditionForm(name=name, kind=one.kind)
    if isinstance(one, Label):
        made.classes, made.names = one.classes, [*one.names] if one.names else None
    if isinstance(one, Vector | Image | Sequence):
        made.shape = [*one.shape]
    if isinstance(one, Sequence | Text):
        made.length = one.length
    if isinstance(one, Mask):
        made.length = shape[-1] or one.length
    return made
