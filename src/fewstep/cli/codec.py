"""``fewstep data codec``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import tyro

from fewstep.errors import UsageError
from fewstep.option_kinds import Text, Whole

MEASURED = 1024
"""Images by which the latents are scaled."""


def codec(
    source: Annotated[str, tyro.conf.arg(metavar="SOURCE")],
    /,
    *,
    out: Path,
    resolution: Whole = None,
    channels: int = 4,
    stages: int = 2,
    width: int = 32,
    blocks: int = 2,
    steps: int = 4000,
    batch: int = 16,
    lr: float = 1e-3,
    kl: float = 1e-3,
    seed: int = 0,
    held_out: float = 0.05,
    background: Text = None,
) -> None:
    """Fit a small autoencoder to images, for data that no published one fits.

    Args:
        source: a folder or zip of images, a prepared file, or the name of a data set.
        out: the folder of the codec.
        resolution: height and width to which the images of a folder are cropped and resized.
        channels: the number of channels of the latents.
        stages: halvings of the resolution, 1 or more.
        width: channels of the first stage.
        blocks: residual blocks in each stage.
        steps: the number of training steps.
        batch: images in a step.
        lr: the learning rate, which falls linearly to 0.
        kl: weight of the divergence of latents from a standard normal distribution.
        seed: the number from which weights, noise and order are drawn.
        held_out: the share of the images on which the error is measured.
        background: the colour behind transparent pixels, such as white or #ffffff.
    """

    def parts(n: int) -> Iterator[range]:
        return (range(i, min(i + 64, n)) for i in range(0, n, 64))

    for name, value in (("--steps", steps), ("--batch", batch)):
        if value < 1:
            raise UsageError(f"{name} must be at least 1, got {value}")
    if not lr > 0 or not kl >= 0:
        raise UsageError(f"--lr must be above 0 and --kl at least 0, got {lr} and {kl}")

    import torch

    from fewstep.data import positions, spec_of, split
    from fewstep.data.catalogue import training_data
    from fewstep.frontends import Frontend
    from fewstep.frontends.codec import normalised
    from fewstep.frontends.vae import train_vae
    from fewstep.system.bars import bar
    from fewstep.system.files import check_replaceable, whole_folder

    check_replaceable(out, {"codec"}, "codec")
    data = training_data(source, resolution=resolution, labels=False, background=background)
    shape = spec_of(data).shape
    sizes = {"channels": channels, "stages": stages, "width": width, "blocks": blocks}
    if len(shape) != 3 or not data.image or any((n or 1) % 2**stages for n in shape[1:]):
        raise UsageError(
            f"{source} has samples of shape {tuple(shape)}; expected images whose height and width "
            f"are multiples of {2**stages}, as {stages} stage(s) halve them"
        )
    train, unseen = split(data, held_out)
    with bar("fitting", "steps", steps) as advance:

        def images(step: int) -> torch.Tensor:
            advance(1)
            return train.batch(positions(seed, step, batch, len(train))).x0

        net = train_vae(
            images, steps=steps, lr=lr, kl=kl, seed=seed, image_channels=int(shape[0] or 1), **sizes
        )
    made = normalised(net, (train.batch(part).x0 for part in parts(min(len(train), MEASURED))))
    x = unseen.batch(range(min(len(unseen), 256))).x0
    error = ((made.decode(made.encode(x)) - x) / 2).square().flatten(1).mean(1)
    with whole_folder(out) as folder:
        Frontend(made).write(folder)
    latents = made.shape_of(shape)
    fewer = x[0].numel() / (latents[0] * latents[1] * latents[2])
    print(
        f"wrote {out}: {'x'.join(map(str, shape))} to {'x'.join(map(str, latents))} "
        f"({fewer:.1f} times fewer numbers)"
    )
    print(f"PSNR on {len(x)} held-out images: {float((-10 * error.log10()).mean()):.1f} dB")
