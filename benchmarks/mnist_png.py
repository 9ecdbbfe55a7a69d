"""Write MNIST as folders of PNGs, train/LABEL/*.png and test/LABEL/*.png, for the image recipes.

    python benchmarks/mnist_png.py mnist.npz mnist-png

The .npz holds x_train (60000, 28, 28) uint8, y_train, x_test, y_test, under these or similar names.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image


def main(source: str, target: str) -> None:
    archive = np.load(source)
    for part in ("train", "test"):
        images = next(archive[k] for k in archive if part in k and archive[k].ndim == 3)
        labels = next(archive[k] for k in archive if part in k and archive[k].ndim == 1)
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            path = Path(target) / part / str(label) / f"{i:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
        print(f"wrote {len(images)} images to {Path(target) / part}")


if __name__ == "__main__":
    main(*sys.argv[1:])
