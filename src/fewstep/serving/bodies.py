"""The requests and the answers of the API; unknown fields are refused."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from fewstep.serving.forms import ModelForm, Task

Seed = Annotated[int, Field(ge=0, lt=2**53)]
"""A seed that a page's numbers hold exactly."""


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Common(_Asked):
    """What every verb is asked.

    Args:
        model: by its name.
        steps: of the sampler; by default the model's fewest.
        label: the class, by number or name; by default the classes take turns.
        prompt: of a model that reads texts.
        cond: further conditions by name: numbers, lists of numbers, names of classes, and pictures
            as base64 of a file.
        guidance: scale of guidance; 1 is none.
    """

    model: str = Field(max_length=300)
    steps: int | None = Field(default=None, ge=1)
    label: int | Annotated[str, Field(max_length=300)] | None = None
    prompt: str | None = Field(default=None, max_length=4000)
    cond: dict[str, Any] = Field(default_factory=dict, max_length=50)
    guidance: float | None = None


class SampleAsked(Common):
    """Samples.

    Args:
        n: number of samples; sample i is a function of (seed, first + i).
        seed: of all samples.
        first: number of the first sample.
        length: of samples that differ in length.
        gamma: share of fresh noise, of models that have one.
        solver: of a diffusion model's ODE.
        values: whether the answer has the numbers of the samples, too.
        format: ``json``, or ``png`` for one picture.
    """

    n: int = Field(default=1, ge=1)
    seed: Seed = 0
    first: int = Field(default=0, ge=0, lt=2**31)
    length: int | None = Field(default=None, ge=1)
    gamma: float | None = None
    solver: str | None = Field(default=None, max_length=30)
    values: bool = False
    format: Literal["json", "png"] = "json"


class EditAsked(Common):
    """Edits of a picture.

    Args:
        task: what to do with it.
        image: base64 of a PNG, JPEG, WEBP or BMP file, of any size.
        mask: of ``inpaint``: base64 of a picture of the same size, white where the model draws.
        n: number of results; result i is a function of (seed, first + i).
        seed: of all results.
        first: number of the first result.
        factor: of ``upscale``.
        width: of ``deblur``: standard deviation of the blur in pixels.
        sigma: of ``vary`` and ``denoise``: the noise level.
        search: whether the noise of a few-step model of pixels is searched by gradient steps, whose
            number is then ``steps``, in the tasks that keep something of the picture exactly; it
            follows the picture better and takes longer.
    """

    task: Task
    image: str
    mask: str | None = None
    n: int = Field(default=1, ge=1)
    seed: Seed = 0
    first: int = Field(default=0, ge=0, lt=2**31)
    factor: int | None = Field(default=None, ge=2, le=16)
    width: float | None = Field(default=None, gt=0, le=100)
    sigma: float | None = Field(default=None, gt=0)
    search: bool = False


class InterpolateAsked(Common):
    """Pictures on the way between those of two or more seeds.

    Args:
        seeds: that are visited in turn.
        frames: from one seed to the next, both included.
    """

    seeds: list[Seed] = Field(min_length=2, max_length=16)
    frames: int = Field(default=9, ge=2)


class Picture(BaseModel):
    """A PNG in base64, and what made it; the file says the same in its text ``fewstep``."""

    png: str
    made: dict[str, Any]


class Answer(BaseModel):
    """The pictures of a request.

    ``seconds`` were measured around the computation of all of them, ``waited`` seconds passed
    before it, and ``ahead`` requests were there first. ``calls`` are network calls of one
    sample, or of all results of an edit.
    ``values`` are the samples as numbers, where they were asked for or have no picture.
    """

    model: str
    pictures: list[Picture]
    values: list[Any] | None = None
    calls: int
    seconds: float
    waited: float = 0.0
    ahead: int = 0
    notes: list[str] = Field(default_factory=list)


class Models(BaseModel):
    """The models of a server, and what one request may cost."""

    version: str
    models: list[ModelForm]
    limits: dict[str, int]


class Refusal(BaseModel):
    """Why there is no answer, in one sentence."""

    error: str
