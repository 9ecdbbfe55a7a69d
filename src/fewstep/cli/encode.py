"""``fewstep data encode``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro

from fewstep.errors import UsageError
from fewstep.option_kinds import Text, Whole


def encode(
    source: Annotated[tuple[str, ...], tyro.conf.arg(metavar="SOURCE ...")],
    /,
    *,
    out: Path,
    codec: Text = None,
    text: Text = None,
    like: Text = None,
    captions: Text = None,
    length: Whole = None,
    restrict: bool = False,
    normalise: bool = False,
    resolution: Whole = None,
    labels: bool = True,
    background: Text = None,
    split: str = "train",
    stored: Literal["float32", "float16", "bfloat16"] = "float32",
    shard_size: int = 1024,
    batch: int = 16,
    device: Text = None,
) -> None:
    """Encode images into latents and captions into numbers, once, for training on them.

    A killed command goes on when it is repeated. Several processes (torchrun) share the work.

    Args:
        source: a folder or zip of images, a prepared file, or the name of a data set; or shards
            (.tar, .tar.gz, .parquet), a Hugging Face data set on the disk or hf:OWNER/NAME.
        out: the folder that is written.
        codec: the autoencoder: a codec folder, a model that holds one, a folder with the two files
            of a TAESD, or an autoencoder or a pipeline that diffusers wrote. Without it pixels are
            kept.
        text: what reads captions: a tokenizer.json or CLIP's list of merges (the network then
            learns to read them), or a folder with text encoders that transformers wrote. Without
            it captions are not read.
        like: a model or encoded data whose codec and reader of texts are taken.
        captions: a table of captions (.jsonl, .json, .csv, .parquet) with file_name and text in
            each row, or the column of shards; by default a text file beside each image, or
            metadata.jsonl.
        length: the largest number of tokens of a caption; longer captions lose their ends.
        restrict: keep only the tokens that the captions use, and the single bytes.
        normalise: scale each channel of the latents to the mean 0 and the standard deviation 0.5,
            for a teacher that is trained from new weights. Leave it out for a pretrained one.
        resolution: height and width to which images are cropped and resized.
        labels: keep the classes of a folder.
        background: the colour behind transparent pixels, such as white or #ffffff.
        split: the split of a Hugging Face data set, such as train.
        stored: the number format in which latents and embeddings are stored.
        shard_size: the number of samples in a file.
        batch: the number of images that are encoded at a time.
        device: where to run, such as cpu or cuda; by default an accelerator if there is one.
    """
    from fewstep.data.captioned import opened
    from fewstep.encoding import encode as write
    from fewstep.frontends import open_codec, open_text
    from fewstep.frontends.tokens import Tokenizer, restricted
    from fewstep.system.devices import usable_device
    from fewstep.system.processes import announced

    if like is not None and (codec is not None or text is not None):
        raise UsageError("--like takes both encoders of a model; leave out --codec and --text")
    if like is not None and (normalise or restrict or length is not None):
        raise UsageError("--like takes the encoders as they are; leave out what changes them")
    world, place = announced(), usable_device(device)
    if place.type == "cuda" and world.size > 1:
        place = f"cuda:{world.local}"
    if like is not None:
        from fewstep.data.encoded import is_encoded
        from fewstep.frontends import read_frontend
        from fewstep.model_files import find, frontend_of

        frontend = read_frontend(Path(like)) if is_encoded(like) else frontend_of(find(like))
        if frontend is None:
            raise UsageError(f"{like} has neither a codec nor a reader of texts")
        images, reader = frontend.images, frontend.text
    else:
        images = None if codec is None else open_codec(codec)
        reader = None if text is None else open_text(text, length)
    pictures = opened(
        source,
        captioned=reader is not None,
        resolution=resolution,
        captions=captions,
        labels=labels,
        background=background,
        split=split,
    )
    if restrict:
        if not isinstance(reader, Tokenizer):
            raise UsageError("--restrict chooses tokens of a tokenizer; give one with --text")
        reader = restricted(reader, [*pictures.texts()])
        print(f"{reader.vocabulary:,} tokens are kept", file=sys.stderr)
    made, kept, data = write(
        pictures,
        out,
        codec=images,
        text=reader,
        normalise=normalise,
        stored=stored,
        shard_size=shard_size,
        batch=batch,
        world=world,
        device=place,
    )
    outcome = f"made {made} shard(s), kept {kept}"
    if data is None:
        print(f"{outcome}; process {world.rank} of {world.size} is done, others are not")
        return
    print(f"{outcome}; wrote {len(data):,} sample(s) of {data.spec.summary()} to {out}")
    if data.sigma_data is not None:
        print(f"standard deviation of the latents: {data.sigma_data:.4g}")
    for note in data.notes:
        print(f"note: {note}")
