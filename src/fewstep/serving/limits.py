"""What one request may cost, and how many there may be."""

from __future__ import annotations

from dataclasses import dataclass, fields

from fewstep.errors import UsageError


@dataclass(frozen=True)
class Limits:
    """What a server accepts; every value is at least 1.

    Args:
        body: the largest request, in MiB.
        pixels: the most pixels, in thousands, of an uploaded picture, and of all results of a
            request.
        samples: the most samples of a request.
        steps: the most steps of a sample.
        seconds: how long a request may compute, in seconds.
        queue: how many requests may wait for their turn; more are answered with 429.
        requests: how many requests may be open at once; more are answered with 503.
        patience: how long a request may take to arrive, in seconds.
    """

    body: int = 8
    pixels: int = 4096
    samples: int = 64
    steps: int = 100
    seconds: int = 60
    queue: int = 16
    requests: int = 64
    patience: int = 10

    def __post_init__(self) -> None:
        for field in fields(self):
            if (value := getattr(self, field.name)) < 1:
                raise UsageError(f"the limit {field.name} must be at least 1, got {value}")

    @property
    def values(self) -> int:
        """The most values of all samples of a request: each pixel may have three."""
        return 3000 * self.pixels
