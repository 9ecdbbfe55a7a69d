"""``fewstep edit VERB``: zero-shot editing of files."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import tyro

from fewstep.cli.edit_options import (
    DEFAULT,
    By,
    Shared,
    channels_of,
    photo_of,
    refuse,
    run_edit,
    way,
)
from fewstep.cli.values import numbers
from fewstep.errors import UsageError
from fewstep.option_kinds import File, Real

Name = Annotated[str, tyro.conf.arg(metavar="MODEL")]
Photo = Annotated[Path, tyro.conf.arg(metavar="PHOTO")]


def inpaint(
    model: Name,
    photo: Photo,
    /,
    *,
    mask: File = None,
    alpha: bool = False,
    by: By = "replacement",
    options: Shared = DEFAULT,
) -> None:
    """Fill the missing parts of a picture; all other pixels stay as they are.

    Args:
        model: a model folder, a run folder, a bundled name or hub:OWNER/NAME[@REVISION].
        photo: a picture of any size.
        mask: a picture of the same size: white where the photo is missing, black where it is kept.
        alpha: take the photo's own alpha channel for the mask: what is not opaque is missing.
        by: replacement is algorithm 4 of the consistency models paper; search looks for noise whose
            picture fits, by gradient steps.
        options: what all verbs of fewstep edit share.
    """
    if (mask is None) != alpha:
        raise UsageError("say what is missing: --mask FILE or --alpha, one of them")

    def work(model: Any, asked: Any) -> Any:
        from fewstep.editing import canvas, files

        read = photo_of(model, photo)
        if mask is None and read.hidden is None:
            raise UsageError(f"{photo} has no alpha channel; give --mask FILE")
        unknown = read.hidden if mask is None else files.read_mask(mask)
        return canvas.inpaint_picture(model, read.x, unknown, search=by == "search", **asked)

    run_edit("inpaint", model, options, work, {"by": by}, **way(by, options))


def colourise(
    model: Name, photo: Photo, /, *, by: By = "replacement", options: Shared = DEFAULT
) -> None:
    """Colour a grey picture; its luminance stays as it is.

    Args:
        model: a model of pictures in colour.
        photo: a picture of any size; of one in colour the luminance is read only.
        by: see fewstep edit inpaint --help.
        options: what all verbs of fewstep edit share.
    """

    def work(model: Any, asked: Any) -> Any:
        from fewstep.editing import canvas

        return canvas.colourise_picture(
            model, photo_of(model, photo).x, search=by == "search", **asked
        )

    run_edit("colourise", model, options, work, {"by": by}, **way(by, options))


def upscale(
    model: Name,
    photo: Photo,
    /,
    *,
    factor: int = 2,
    by: By = "replacement",
    options: Shared = DEFAULT,
) -> None:
    """Enlarge a picture; the mean of each enlarged pixel stays as it is.

    Args:
        model: of pictures.
        photo: a small picture of any size.
        factor: a whole number from 2, along each side.
        by: see fewstep edit inpaint --help.
        options: what all verbs of fewstep edit share.
    """

    def work(model: Any, asked: Any) -> Any:
        from fewstep.editing import canvas

        return canvas.upscale_picture(
            model, photo_of(model, photo).x, factor, search=by == "search", **asked
        )

    run_edit("upscale", model, options, work, {"factor": factor, "by": by}, **way(by, options))


def deblur(
    model: Name,
    photo: Photo,
    /,
    *,
    width: float = 1.0,
    smallest: float = 0.1,
    by: By = "replacement",
    options: Shared = DEFAULT,
) -> None:
    """Sharpen a picture that a Gaussian blur of a known width has blurred.

    Args:
        model: of pictures.
        photo: a blurred picture of any size.
        width: standard deviation of the blur in pixels.
        smallest: frequencies that the blur damped to less than this share are drawn by the model;
            all others are restored exactly, and their noise grows by up to one over this share.
        by: see fewstep edit inpaint --help.
        options: what all verbs of fewstep edit share.
    """

    def work(model: Any, asked: Any) -> Any:
        from fewstep.editing import canvas

        x = photo_of(model, photo).x
        return canvas.deblur_picture(model, x, width, smallest, search=by == "search", **asked)

    facts = {"width": width, "smallest": smallest, "by": by}
    run_edit("deblur", model, options, work, facts, **way(by, options))


def strokes(model: Name, photo: Photo, /, *, options: Shared = DEFAULT) -> None:
    """Make a picture in the model's manner of a rough one, such as strokes of a brush.

    Args:
        model: of pictures.
        photo: the rough picture, of any size.
        options: of all verbs; the times are by default those of the noise levels 5.38 and 2.24.
    """

    def work(model: Any, asked: Any) -> Any:
        from fewstep.editing import canvas
        from fewstep.editing import strokes as edit

        return canvas.any_size(edit, model, photo_of(model, photo).x, **asked)

    def times_for(model: Any, times: list[float] | None, steps: int | None) -> list[float]:
        from fewstep.editing.renoising import stroke_times

        return stroke_times(model, times, steps)

    run_edit("strokes", model, options, work, {}, times_for=times_for)


def vary(model: Name, photo: Photo, /, *, sigma: float = 1.0, options: Shared = DEFAULT) -> None:
    """Draw variations of a picture.

    Args:
        model: of pictures.
        photo: of any size.
        sigma: the noise level that is added and removed, where values of pixels are in [-1, 1];
            small ones change details, large ones everything.
        options: what all verbs of fewstep edit share.
    """
    refuse("vary", times=options.times)
    facts: dict[str, Any] = {"sigma": sigma}

    def work(model: Any, asked: Any) -> Any:
        from fewstep.editing import canvas
        from fewstep.editing import vary as edit
        from fewstep.editing.renoising import varied_times

        facts["times"] = varied_times(model, sigma, options.steps)
        return canvas.any_size(edit, model, photo_of(model, photo).x, sigma=sigma, **asked)

    run_edit("vary", model, options, work, facts)


def denoise(model: Name, photo: Photo, /, *, sigma: Real = None, options: Shared = DEFAULT) -> None:
    """Remove Gaussian noise, in one network call.

    Args:
        model: of pictures; a diffusion model has the least squared error.
        photo: of any size.
        sigma: the noise's standard deviation, where values of pixels are in [-1, 1] (1 level of
            255 is 0.0078); by default it is estimated.
        options: what all verbs of fewstep edit share.
    """
    refuse("denoise", steps=options.steps, times=options.times, eta=options.eta)
    if options.n != 1:
        raise UsageError("fewstep edit denoise has one result of a picture; leave out -n")
    facts: dict[str, Any] = {}

    def work(model: Any, asked: Any) -> Any:
        from fewstep.editing import canvas, estimated_noise
        from fewstep.editing import denoise as edit

        x = photo_of(model, photo).x
        level = float(estimated_noise(x)) if sigma is None else sigma
        print(f"noise: {level:.4g}{' (estimated)' if sigma is None else ''}", file=sys.stderr)
        facts.update(sigma=level, estimated=sigma is None)
        if sigma is None and level == 0:
            return x
        return canvas.any_size(edit, model, x, sigma=level, **asked)

    run_edit("denoise", model, options, work, facts)


def interpolate(
    model: Name,
    /,
    *,
    seeds: str = "0,1",
    frames: int = 9,
    seconds: float = 0.1,
    options: Shared = DEFAULT,
) -> None:
    """Draw the pictures between the pictures of seeds, as a strip or an animation.

    Args:
        model: of pictures.
        seeds: at least two, which are visited in turn, e.g. 0,1,5.
        frames: pictures from one seed to the next, both included.
        seconds: how long a GIF shows each.
        options: of all verbs; --out is a .png or a .gif.
    """
    refuse("interpolate", eta=options.eta, **{"-n": None if options.n == 1 else options.n})
    chosen = numbers("--seeds", seeds, int)
    if not 0.01 <= seconds <= 60:
        raise UsageError(f"--seconds must be in [0.01, 60], got {seconds}")

    def work(model: Any, asked: Any) -> Any:
        from fewstep.editing import interpolate as edit

        channels_of(model)
        for name in ("n", "seed", "watch"):
            del asked[name]
        return edit(model, chosen, frames=frames, **asked)

    facts = {"seeds": chosen, "frames": frames}

    def times_for(model: Any, times: list[float] | None, steps: int | None) -> list[float]:
        from fewstep.schedule import given_times

        return model.times(steps) if times is None else given_times(model.contract, times)

    run_edit("interpolate", model, options, work, facts, times_for=times_for, strip=seconds)


VERBS: dict[str, Callable[..., None]] = {
    "inpaint": inpaint,
    "colourise": colourise,
    "upscale": upscale,
    "deblur": deblur,
    "strokes": strokes,
    "denoise": denoise,
    "interpolate": interpolate,
    "vary": vary,
}
