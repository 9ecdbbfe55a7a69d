"""How well text-to-image models of emoji draw what they are asked for.

    python benchmarks/emoji_report.py emoji emoji-latents --out report \
        --model teacher:runs/emoji-teacher:18:1 --model teacher:runs/emoji-teacher:18:3 \
        --model lcm:runs/emoji-lcm:1:3

The first folder is what benchmarks/emoji.py wrote, the second its encoded data; a model is
NAME:FOLDER:STEPS:GUIDANCE, or NAME:FOLDER:STEPS:GUIDANCE:SOLVER. Half of the captions that are
asked for were held out of training, half were not; all pictures go through the codec. In features
of EfficientNet-Lite0, which no loss has seen, each row has the Frechet distance to as many real
pictures; the share of samples whose nearest real picture is of the asked group (99 groups such as
Flags/country-flag); and the share of samples whose own real picture is among the ten nearest of
all. Real pictures of other captions are the end of the scale that knows the data and not the
prompt. ``report.json`` has the numbers, ``grid.png`` a row of samples a model for ten prompts; the
last four name what no picture shows.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from fewstep.data import split
from fewstep.data.encoded import Encoded
from fewstep.evaluation.pictures import pixels
from fewstep.metrics import frechet_distance_of_samples, named_features
from fewstep.model import load
from fewstep.system.files import write_json

PROMPTS = (
    *("red heart", "smiling cat face with heart eyes", "flag: Japan", "woman firefighter"),
    *("pizza, slice of pizza", "sun with face"),
    *("blue apple", "green heart with a smiling face", "cat firefighter", "purple pizza"),
)
SEED = 3000
"""Of all samples; settings were chosen on others."""


def nearest(queries: np.ndarray, known: np.ndarray, count: int) -> np.ndarray:
    """Indices of the nearest known features of each query, ``(n, count)``."""
    squares = (queries**2).sum(1)[:, None] - 2 * queries @ known.T + (known**2).sum(1)
    return np.argsort(squares, axis=1)[:, :count]


def captions_on(canvas: Image.Image, texts: list[str], side: int, left: int) -> None:
    draw = ImageDraw.Draw(canvas)
    for i, text in enumerate(texts):
        words, line, lines = text.split(), "", []
        for word in words:
            if len(line) + len(word) > 10:
                lines, line = [*lines, line], ""
            line = f"{line} {word}".strip()
        for j, part in enumerate([*lines, line][:3]):
            draw.text((left + i * side + 2, 2 + 11 * j), part, fill="black", font_size=10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pictures", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", action="append", default=[])
    parser.add_argument("--held-out", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=SEED)
    given = parser.parse_args()

    rows = [
        json.loads(line) for line in (given.pictures / "metadata.jsonl").read_text().splitlines()
    ]
    texts, groups = [row["text"] for row in rows], np.array([row["category"] for row in rows])
    data = Encoded(given.data)
    codec = data.frontend.codec
    train, unseen = split(data, given.held_out)
    real = codec.decode(data.batch(range(len(data))).x0)
    judge = named_features("effnet-lite0")
    known = judge(real).double().numpy()
    rng = np.random.default_rng(given.seed)
    asked = np.concatenate([unseen.index, rng.choice(train.index, len(unseen), replace=False)])
    half = len(unseen)

    def row(features: np.ndarray, at: np.ndarray) -> dict[str, float]:
        ten = nearest(features, known, 10)
        group, own = groups[ten[:, 0]] == groups[at], (ten == at[:, None]).any(1)
        return {
            "frechet": frechet_distance_of_samples(
                torch.from_numpy(features), torch.from_numpy(known[asked])
            ),
            "group": float(group.mean()),
            "group_held_out": float(group[:half].mean()),
            "top10": float(own.mean()),
            "top10_held_out": float(own[:half].mean()),
        }

    others = rng.choice(np.setdiff1d(np.arange(len(data)), asked), len(asked), replace=False)
    # Real pictures of other captions know the data, and not what was asked for.
    table = {"real pictures of other captions": row(known[others], asked)}
    side, left = real.shape[-1] + 4, 190
    strips: list[tuple[str, torch.Tensor]] = []
    for name in given.model:
        title, folder, steps, guidance, *solver = name.split(":")
        model = load(folder, device="cpu")
        kind = {"steps": int(steps), "guidance": float(guidance), "batch": 64}
        kind |= {"solver": solver[0]} if solver else {}
        x = model.sample(len(asked), prompts=[texts[i] for i in asked], seed=given.seed, **kind)
        calls = model.calls(int(steps), float(guidance), *solver)
        label = f"{title}, {calls} calls, g {float(guidance):g}"
        table[label] = row(judge(x).double().numpy(), asked)
        print(label, {k: round(v, 3) for k, v in table[label].items()}, flush=True)
        strips.append((label, model.sample(len(PROMPTS), prompts=PROMPTS, seed=given.seed, **kind)))
    canvas = Image.new("RGB", (left + side * len(PROMPTS), 40 + side * len(strips)), "white")
    captions_on(canvas, list(PROMPTS), side, left)
    draw = ImageDraw.Draw(canvas)
    for i, (label, x) in enumerate(strips):
        draw.text((4, 40 + i * side + 24), label, fill="black", font_size=12)
        for j, one in enumerate(pixels(x).transpose(0, 2, 3, 1)):
            canvas.paste(Image.fromarray(one), (left + j * side, 40 + i * side))
    given.out.mkdir(parents=True, exist_ok=True)
    canvas.save(given.out / "grid.png")
    write_json(given.out / "report.json", {"captions": len(asked), "rows": table})
    names = ["frechet", "group", "group_held_out", "top10", "top10_held_out"]
    print(f"| | {' | '.join(names)} |\n| --- |{' --- |' * len(names)}")
    for label, values in table.items():
        print(f"| {label} | {' | '.join(f'{values[n]:.3g}' for n in names)} |")


if __name__ == "__main__":
    main()
