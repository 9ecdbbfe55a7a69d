r"""What is known of a picture: linear operators, and how a picture is made to agree with them.

Song et al. (2023, appendix D) choose an orthogonal basis $A$ and a mask $\Omega$ of coefficients.
In this library, as in the paper, **$\Omega$ is 1 where a coefficient is missing** (OpenAI's code
has masks that are 1 where it is known). A picture $x$ is made to agree with the reference $y$ by

$$x \leftarrow A^{-1}[(A y) \odot (1 - \Omega) + (A x) \odot \Omega].$$

For any other linear $A$ with a pseudo-inverse $A^+$, $y$ is the measurement and

$$x \leftarrow x + A^+ (y - A x),$$

which changes nothing that $A$ does not see (Wang et al. 2023, DDNM, eq. 10).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from fewstep.errors import UsageError

Map = Callable[[Tensor], Tensor]
"""A linear map of a batch of pictures; it keeps the precision of its argument."""

LUMINANCE = (0.2989, 0.587, 0.114)
"""The shares of red, green and blue in the luminance (Song et al. 2023, appendix D)."""

SMALLEST_KEPT = 0.1
"""Frequencies that a blur damps to less than this share count as lost."""


class Operator(Protocol):
    """Linear knowledge of a picture."""

    @property
    def name(self) -> str:
        """What it is, for metadata and messages."""
        ...

    def start(self, y: Tensor) -> Tensor:
        """The picture ``(b, c, h, w)`` that ``y`` alone determines; what is missing is 0."""
        ...

    def replace(self, x: Tensor, y: Tensor) -> Tensor:
        """The picture nearest to ``x`` that agrees with ``y``."""
        ...

    def residual(self, x: Tensor, y: Tensor) -> Tensor:
        """How ``x`` disagrees with ``y``, ``(b, ...)``: 0 where it agrees."""
        ...


@dataclass(frozen=True)
class Orthogonal:
    """An orthogonal basis and a mask of unknown coefficients.

    The reference ``y`` is a picture; its unknown coefficients are never read.

    Args:
        name: for metadata and messages.
        forward: from pictures ``(b, c, h, w)`` to coefficients.
        inverse: from coefficients to pictures.
        unknown: booleans that broadcast against coefficients; True is missing.
        fill: stands for missing coefficients in :meth:`start`.
    """

    name: str
    forward: Map
    inverse: Map
    unknown: Tensor
    fill: float = 0.0

    def start(self, y: Tensor) -> Tensor:
        """The reference with ``fill`` for the missing coefficients."""
        return self.inverse(self.forward(y).masked_fill(self.unknown.to(y.device), self.fill))

    def replace(self, x: Tensor, y: Tensor) -> Tensor:
        """The known coefficients of ``y`` and the unknown ones of ``x``."""
        unknown = self.unknown.to(x.device)
        return self.inverse(torch.where(unknown, self.forward(x), self.forward(y)))

    def residual(self, x: Tensor, y: Tensor) -> Tensor:
        """The difference of the known coefficients, and 0 for the unknown ones."""
        difference = self.forward(x) - self.forward(y)
        return difference.masked_fill(self.unknown.to(x.device), 0.0)


@dataclass(frozen=True)
class Linear:
    """Any linear map that the user gives with its pseudo-inverse.

    ``y`` is a measurement, shaped as ``forward`` returns it.

    Args:
        name: for metadata and messages.
        forward: A, from pictures ``(b, c, h, w)`` to measurements.
        pinv: A+, from measurements to pictures, with A A+ A = A.
    """

    name: str
    forward: Map
    pinv: Map

    def start(self, y: Tensor) -> Tensor:
        """A+ y."""
        return self.pinv(y)

    def replace(self, x: Tensor, y: Tensor) -> Tensor:
        """X + A+ (y - A x)."""
        return x + self.pinv(y - self.forward(x))

    def residual(self, x: Tensor, y: Tensor) -> Tensor:
        """A x - y."""
        return self.forward(x) - y


def rows(operator: Operator, some: slice) -> Operator:
    """The operator for some samples of a batch, where each has a mask of its own."""
    if isinstance(operator, Orthogonal) and operator.unknown.ndim > 3:
        own = operator.unknown
        return operator if len(own) == 1 else replace(operator, unknown=own[some])
    return operator


def _same(x: Tensor) -> Tensor:
    return x


def inpaint(unknown: Tensor, fill: float = 0.0) -> Orthogonal:
    """Known and missing pixels, in the basis of pixels; known ones stay equal to the bit.

    Args:
        unknown: ``(h, w)``, ``(c, h, w)`` or ``(b, c, h, w)``; booleans, or numbers that are all 0
            (known) or 1 (missing). Other samples than pictures may be masked likewise.
        fill: stands for missing pixels before the first call. It matters little, because the
            noise there is much larger: the paper has 0, OpenAI's code -1.

    Raises:
        UsageError: a value is neither 0 nor 1.
    """
    if unknown.dtype != torch.bool:
        soft = int(((unknown != 0) & (unknown != 1)).sum())
        if soft:
            raise UsageError(
                f"a mask is 1 where a pixel is missing and 0 where it is known, and {soft} of its "
                "values are neither; make it binary first, e.g. mask > 0.5"
            )
        unknown = unknown == 1
    return Orthogonal("inpaint", _same, _same, unknown, fill)


def first_column(vector: Sequence[float] | Tensor) -> Tensor:
    """An orthogonal matrix in float64 whose first column points along ``vector``.

    It is the Q of a QR decomposition of the identity with that first column, whose sign is chosen
    so that the first column sums to at least 0, as OpenAI's code has it.
    """
    v = torch.as_tensor(vector, dtype=torch.float64)
    basis = torch.eye(len(v), dtype=torch.float64)
    basis[:, 0] = v / v.norm()
    q, _ = torch.linalg.qr(basis)
    return -q if float(q[:, 0].sum()) < 0 else q


def colourise(luminance: Sequence[float] = LUMINANCE) -> Orthogonal:
    """The luminance is known and the colour is missing; of pictures of three channels.

    The reference is a picture ``(b, 3, h, w)``, of which the luminance is read only; of a grey
    picture, three equal channels.

    Args:
        luminance: the shares of red, green and blue.
    """
    q = first_column(luminance)

    def forward(x: Tensor) -> Tensor:
        _check_channels(x)
        return torch.einsum("bchw,cd->bdhw", x, q.to(x))

    def inverse(c: Tensor) -> Tensor:
        return torch.einsum("bdhw,cd->bchw", c, q.to(c))

    unknown = torch.tensor([False, True, True])[:, None, None]
    return Orthogonal("colourise", forward, inverse, unknown)


def upscale(factor: int) -> Orthogonal:
    """The mean of each patch of ``factor`` x ``factor`` pixels is known, and nothing else is.

    The reference is a large picture ``(b, c, h, w)``, of which the means of its patches are read
    only: :func:`enlarged` makes one of a small picture.

    Args:
        factor: at least 2; it must divide both sides of the pictures.

    Raises:
        UsageError: the factor is less than 2; later, that it does not divide a picture's sides.
    """
    if factor < 2:
        raise UsageError(f"the factor of upscale must be a whole number from 2, got {factor}")
    q = first_column(torch.ones(factor**2, dtype=torch.float64))

    def forward(x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        if h % factor or w % factor:
            raise UsageError(
                f"upscale by {factor} needs pictures whose sides are multiples of {factor}, got "
                f"{w} x {h} pixels; choose another factor, or cut the picture"
            )
        tiles = x.reshape(b, c, h // factor, factor, w // factor, factor)
        return tiles.transpose(3, 4).flatten(4) @ q.to(x)

    def inverse(coefficients: Tensor) -> Tensor:
        b, c, rows, columns, _ = coefficients.shape
        tiles = (coefficients @ q.to(coefficients).T).unflatten(4, (factor, factor))
        return tiles.transpose(3, 4).reshape(b, c, rows * factor, columns * factor)

    unknown = torch.arange(factor**2) > 0
    return Orthogonal(f"upscale by {factor}", forward, inverse, unknown)


def enlarged(small: Tensor, factor: int) -> Tensor:
    """A picture ``(b, c, h, w)`` with each pixel repeated ``factor`` times along both sides."""
    return small.repeat_interleave(factor, -2).repeat_interleave(factor, -1)


def deblur(width: float, shape: Sequence[int], smallest: float = SMALLEST_KEPT) -> Linear:
    """A circular Gaussian blur, and its inverse for the frequencies that survive it.

    The measurement is the blurred picture. The blur is circular: what leaves the picture on one
    side enters on the other.

    Args:
        width: standard deviation of the blur in pixels, above 0.
        shape: of the pictures, ``(..., h, w)``.
        smallest: frequencies that the blur damps to less than this share of their amplitude, in
            (0, 1), count as lost. All others are divided by that share, and so is the noise of the
            measurement: 0.1 multiplies it by at most 10.

    Raises:
        UsageError: the width or the share is out of its range.
    """
    if not (math.isfinite(width) and width > 0):
        raise UsageError(f"the width of a blur must be above 0 pixels, got {width}")
    if not 0 < smallest < 1:
        raise UsageError(f"the smallest share that is kept must be in (0, 1), got {smallest}")
    rows, columns = (
        torch.exp(-2 * (math.pi * width * frequencies.double()) ** 2)
        for frequencies in (torch.fft.fftfreq(shape[-2]), torch.fft.rfftfreq(shape[-1]))
    )
    gain = rows[:, None] * columns
    # Lost frequencies are no part of A: of what is below the cut, nothing is believed.
    gain = gain.where(gain >= smallest, 0.0)
    back = torch.where(gain > 0, 1 / gain, 0.0)

    def through(by: Tensor) -> Map:
        def run(x: Tensor) -> Tensor:
            wide = torch.fft.rfft2(x.double()) * by.to(x.device)
            return torch.fft.irfft2(wide, s=(x.shape[-2], x.shape[-1])).to(x.dtype)

        return run

    return Linear(f"deblur of width {width:g}", through(gain), through(back))


def _check_channels(x: Tensor) -> None:
    if x.ndim != 4 or x.shape[1] != 3:
        raise UsageError(
            f"colour is of pictures of three channels, got a batch of shape {tuple(x.shape)}; a "
            "model of grey pictures cannot colourise"
        )
