"""Train the digit classifier whose hidden layer the metrics measure on, and write it as an asset.

The file is only a judge: it must be in no loss, directly or through pseudo-labels, or distances in
its features stop measuring quality. It sees the training split alone. Run on the CPU, on one
thread, it writes the same bytes on the same machine and versions:

    python benchmarks/digits_features.py
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy

import fewstep
from fewstep.data import digits
from fewstep.metrics import TanhFeatures

ASSET = Path(fewstep.__file__).parent / "assets" / "digits-features.safetensors"


def accuracy(model: TanhFeatures, x: torch.Tensor, label: torch.Tensor) -> float:
    return float((model.logits(x).argmax(1) == label).double().mean())


def main(steps: int = 2000, out: Path = ASSET) -> float:
    """Train for ``steps``, write ``out``, print both accuracies and return the held-out one."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    parts = {name: digits(name) for name in ("train", "held_out")}
    batches = {name: part.batch(range(len(part))) for name, part in parts.items()}
    x, label = batches["train"].x0, batches["train"].cond["label"]
    model = TanhFeatures()
    # Noise keeps tanh off its plateaus, where features are codes and no distances; little decay
    # leaves the differences within a class, without which a blurred class mean looks real.
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        index = torch.randint(len(x), (128,))
        noisy = x[index] + 0.5 * torch.randn(128, *x.shape[1:])
        optimizer.zero_grad()
        cross_entropy(model.logits(noisy), label[index]).backward()
        optimizer.step()
        schedule.step()
    result = {n: accuracy(model, b.x0, b.cond["label"]) for n, b in batches.items()}
    save_file(model.state_dict(), out)
    for name, value in result.items():
        print(f"{name} accuracy {value:.4f} ({len(parts[name])} samples)")
    print(f"wrote {out} ({out.stat().st_size} bytes)")
    return result["held_out"]


if __name__ == "__main__":
    main()
