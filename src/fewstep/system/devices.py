"""Which device a name means, and whether it can be used here."""

from __future__ import annotations

import torch

from fewstep.errors import UsageError


def best_device() -> torch.device:
    """An accelerator if there is one, else the CPU."""
    accelerator = (
        torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    )
    return accelerator or torch.device("cpu")


def usable_device(name: str | torch.device | None) -> torch.device:
    """The device of that name; ``None`` or ``auto`` is the best there is.

    Raises:
        UsageError: it cannot hold tensors here.
    """
    if name is None or name == "auto":
        return best_device()
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        first = str(error).splitlines()[0]
        if "device" in first and "expected one of" in first.lower():  # a list of 20 names
            first = "it is none of cpu, cuda, cuda:1, mps, xpu or auto"
        raise UsageError(f"the device {str(name)!r} cannot be used: {first}") from error
    return device
