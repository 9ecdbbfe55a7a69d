"""Images per second of ``fewstep data encode`` beside those of the bare encoder.

python benchmarks/encode.py [--images 256] [--side 128] [--batch 16] [--repeats 3] [--codec kl]

Prints JSON, a line a codec. The bare encoder is called with images that are tensors already, in
batches of the same size; ``data encode`` also reads and decodes PNG files, checks latents, and
writes and checks shards. Both are timed in turn on the same images; the ratio is of the medians, by
the clock and by the processor time of this process. `load` is the load average of the system.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fewstep.data.captioned import opened
from fewstep.encoding import encode
from fewstep.frontends import Codec
from fewstep.frontends.taesd import TAESD


def kl() -> Codec:
    """Stable Diffusion's autoencoder at half its width, of random weights."""
    from fewstep.frontends.autoencoders import DiffusersAutoencoder

    blocks = 4
    config = {
        "block_out_channels": [64, 128, 256, 256],
        "down_block_types": ["DownEncoderBlock2D"] * blocks,
        "up_block_types": ["UpDecoderBlock2D"] * blocks,
        "layers_per_block": 2,
        "latent_channels": 4,
    }
    return Codec(DiffusersAutoencoder("AutoencoderKL", config), 0.0, 0.18215)


CODECS: dict[str, Callable[[], Codec]] = {"kl": kl, "taesd": lambda: Codec(TAESD(4))}


def write_images(folder: Path, count: int, side: int) -> None:
    """Smooth random pictures, which PNG compresses as it does photographs."""
    rng = np.random.default_rng(0)
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8))
        coarse.resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{i:05d}.png")


def timed(work: Callable[[], object]) -> tuple[float, float]:
    clock, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - clock, time.process_time() - cpu


def row(name: str, images: Path, side: int, batch: int, repeats: int) -> dict[str, object]:
    torch.manual_seed(0)
    codec = CODECS[name]()
    pictures = opened(str(images), captioned=False, resolution=side)
    ready: list[Tensor] = [s.x for shard in pictures.shards(1024, batch) for s in shard.batches]
    count, out = sum(len(x) for x in ready), images.parent / "encoded"

    def ours() -> None:
        encode(opened(str(images), captioned=False, resolution=side), out, codec=codec, batch=batch)

    @torch.no_grad()
    def bare() -> None:
        for x in ready:
            codec.net.encode(x.contiguous())

    bare()  # kernels are chosen at the first call
    times: list[tuple[tuple[float, float], tuple[float, float]]] = []
    before = os.getloadavg()[0]
    for _ in range(repeats):
        times.append((timed(ours), timed(bare)))
        shutil.rmtree(out)
    result: dict[str, object] = {"images": count, "side": side, "batch": batch}
    result["load"] = [round(before, 1), round(os.getloadavg()[0], 1)]
    for kind, i in (("clock", 0), ("cpu", 1)):
        mine, theirs = (statistics.median(pair[k][i] for pair in times) for k in (0, 1))
        result[kind] = {
            "encode_per_s": round(count / mine, 1),
            "bare_per_s": round(count / theirs, 1),
            "ratio": round(theirs / mine, 3),
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--codec", default=",".join(CODECS))
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or 1))
    with tempfile.TemporaryDirectory() as place:
        images = Path(place) / "images"
        images.mkdir()
        write_images(images, options.images, options.side)
        for name in options.codec.split(","):
            found = row(name, images, options.side, options.batch, options.repeats)
            print(json.dumps({name: found}), flush=True)


if __name__ == "__main__":
    main()
