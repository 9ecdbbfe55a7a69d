"""The one model contract: ``x0_hat = D(x_t, t, s, cond)``, and wrappers that keep it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from fewstep.core import Cond, UsageError, expand, null_like, same_dropout
from fewstep.models.preconditioning import Preconditioning
from fewstep.paths import Event, Path, Time
from fewstep.weights import averageable


@runtime_checkable
class Network(Protocol):
    """What a denoiser needs of a network; any ``nn.Module`` of the user's can meet it.

    ``cond_keys`` names the conditions that ``cond`` will hold; ``two_time`` says whether the
    network reads ``s_noise``. ``forward`` maps ``(b, *event)`` to the same shape, or to twice the
    channels under :class:`~fewstep.models.predictions.DataAndNoisePrediction`.

    Three more attributes are read where a network has them: ``optional_keys`` names conditions that
    ``cond`` will hold if they are given, ``units`` the classes of its blocks, one of which is
    sharded or recomputed as a whole, and ``time_dtype`` the precision of its times, else that of
    its weights.
    """

    cond_keys: tuple[str, ...]
    two_time: bool

    def __call__(
        self, x: Tensor, c_noise: Tensor, s_noise: Tensor | None = None, cond: Cond | None = None
    ) -> Tensor:
        """The raw output F."""
        ...


class AbstractDenoiser(nn.Module, ABC):
    """A prediction of clean data on a path.

    ``calls`` is the number of network calls that one ``forward`` costs.
    """

    path: Path
    cond_keys: tuple[str, ...]
    two_time: bool
    calls: int = 1

    @abstractmethod
    def forward(self, x: Event, t: Time, s: Time | None = None, cond: Cond | None = None) -> Event:
        """x0_hat of ``x`` at ``t``; for a two-time model, what carries it to ``s``."""

    def jump(self, x: Event, t: Time, s: Time, cond: Cond | None = None) -> Event:
        """From ``t`` to ``s`` by the transport of this denoiser's answer."""
        return self.path.transport(x, self(x, t, s, cond), t, s)

    def on(self, path: Path) -> AbstractDenoiser:
        """The same model (shared, not copied) on another path, where its kind can be read there."""
        if path == self.path:
            return self
        raise UsageError(f"a {type(self).__name__} on {self.path} cannot be read on {path}")


class Denoiser(AbstractDenoiser):
    """A network under a preconditioning.

    A second time is read no cleaner than the ``t_min`` of the path that the preconditioning was
    derived on, see :meth:`~fewstep.models.scalings.Preconditioning.end_noise`; the jump
    itself goes all the way to ``s``.

    Args:
        net: the network; see :class:`Network`.
        preconditioning: its four scalars and the path they live on.
    """

    def __init__(self, net: nn.Module, preconditioning: Preconditioning) -> None:
        super().__init__()
        if not isinstance(net, Network):
            raise UsageError(
                f"{type(net).__name__} is no network: it needs the attributes cond_keys "
                "(a tuple of condition names) and two_time (True if it reads s_noise), and "
                "forward(x, c_noise, s_noise=None, cond=None)"
            )
        if any(isinstance(p, UninitializedParameter) for p in net.parameters()):
            raise UsageError(
                f"{type(net).__name__} has lazy layers, whose sizes are unknown yet; call it once "
                "on a sample before it is given here"
            )
        self.net = net
        self.preconditioning = preconditioning
        self.path = preconditioning.path
        self.cond_keys = tuple(net.cond_keys)
        self.optional_keys: tuple[str, ...] = tuple(getattr(net, "optional_keys", ()))
        self.two_time = net.two_time

    def forward(self, x: Event, t: Time, s: Time | None = None, cond: Cond | None = None) -> Event:
        """c_skip x + c_out F, in the precision of ``x`` whatever the network's."""
        c_skip, c_out, _, _ = self.preconditioning.coefficients(t)
        return expand(c_skip, x) * x + expand(c_out, x) * self.raw(x, t, s, cond)

    def raw(self, x: Event, t: Time, s: Time | None = None, cond: Cond | None = None) -> Event:
        """The network's prediction F, cast to the precision of ``x``."""
        dtype = next((p.dtype for p in self.net.parameters() if averageable(p)), x.dtype)
        times = getattr(self.net, "time_dtype", dtype)
        _, _, c_in, c_noise = self.preconditioning.coefficients(t)
        s_noise = None
        if self.two_time:
            s_noise = self.preconditioning.end_noise(t if s is None else s).to(times)
        out = self.net((expand(c_in, x) * x).to(dtype), c_noise.to(times), s_noise, self._own(cond))
        if not isinstance(out, Tensor):
            raise UsageError(
                f"{type(self.net).__name__} returned a {type(out).__name__}; expected one tensor"
            )
        prediction = self.preconditioning.prediction(out.to(x.dtype), t)
        if prediction.shape != x.shape:
            raise UsageError(
                f"{type(self.net).__name__} returned a tensor of shape {tuple(out.shape)} for "
                f"samples of shape {tuple(x.shape)}; expected the same shape"
            )
        return prediction

    def on(self, path: Path) -> Denoiser:
        """The same network (shared, not copied) as a denoiser on another path."""
        return Denoiser(self.net, self.preconditioning.on(path))

    def _own(self, cond: Cond | None) -> dict[str, Tensor]:
        """The declared conditions, the optional ones where they are given, and no others."""
        given = cond or {}
        missing = [key for key in self.cond_keys if key not in given]
        if missing:
            raise UsageError(
                f"the network needs the condition(s) {missing}, got {sorted(given)}; pass "
                f"cond={{{missing[0]!r}: tensor of shape (b, ...)}}"
            )
        return {key: given[key] for key in (*self.cond_keys, *self.optional_keys) if key in given}


class Guided(AbstractDenoiser):
    """Classifier-free guidance: uncond + w (cond - uncond); w = 1 is none.

    The two halves run as one batch, and count as two network calls. ``cond["guidance"]``, ``(b,)``,
    takes precedence over the constant where it is given.

    Args:
        denoiser: what is guided.
        null: what replaces conditions in the unconditional half, by key: tensors without a batch,
            as :attr:`fewstep.contract.DataSpec.nulls` has them, or numbers.
        scale: the constant w.
    """

    calls = 2

    def __init__(
        self, denoiser: AbstractDenoiser, null: Mapping[str, Tensor | float], scale: float = 1.0
    ) -> None:
        super().__init__()
        if "guidance" in denoiser.cond_keys:
            raise UsageError("this network reads its guidance scale itself; do not guide it again")
        self.denoiser = denoiser
        self.null = dict(null)
        self.scale = scale
        self.path = denoiser.path
        self.cond_keys = denoiser.cond_keys
        self.two_time = denoiser.two_time

    def on(self, path: Path) -> Guided:
        """The same, of the model read on another path."""
        return Guided(self.denoiser.on(path), self.null, self.scale)

    def forward(self, x: Event, t: Time, s: Time | None = None, cond: Cond | None = None) -> Event:
        """The guided x0_hat."""
        given = dict(cond or {})
        scale = given.pop("guidance", torch.full_like(t, self.scale))
        both = {
            key: torch.cat([value, null_like(value, self.null[key])])
            if key in self.null
            else torch.cat([value, value])
            for key, value in given.items()
        }
        two_s = None if s is None else torch.cat([s, s])
        answer = self.denoiser(torch.cat([x, x]), torch.cat([t, t]), two_s, both)
        conditional, unconditional = answer.chunk(2)
        return unconditional + expand(scale, x) * (conditional - unconditional)


class AtScale(AbstractDenoiser):
    """A network that reads a guidance scale itself, at a constant one; a sample costs one call.

    ``cond["guidance"]``, ``(b,)``, takes precedence over the constant where it is given.

    Args:
        denoiser: its network has the condition ``guidance``.
        scale: the constant.

    Raises:
        UsageError: the network reads no guidance scale.
    """

    def __init__(self, denoiser: AbstractDenoiser, scale: float) -> None:
        super().__init__()
        if "guidance" not in denoiser.cond_keys:
            raise UsageError(
                f"this network reads no guidance scale, only {denoiser.cond_keys}; take Guided"
            )
        self.denoiser, self.scale = denoiser, scale
        self.path, self.two_time = denoiser.path, denoiser.two_time
        self.cond_keys = tuple(key for key in denoiser.cond_keys if key != "guidance")
        self.calls = denoiser.calls

    def on(self, path: Path) -> AtScale:
        """The same, of the model read on another path."""
        return AtScale(self.denoiser.on(path), self.scale)

    def forward(self, x: Event, t: Time, s: Time | None = None, cond: Cond | None = None) -> Event:
        """x0_hat at the scale."""
        scale = torch.full((x.shape[0],), self.scale, dtype=x.dtype, device=x.device)
        return self.denoiser(x, t, s, {"guidance": scale, **(cond or {})})


class Autoguided(AbstractDenoiser):
    """Guidance by a worse model (Karras et al. 2024b): worse + w (good - worse); w = 1 is none.

    A smaller or less trained model of the same conditions sharpens without narrowing; an
    unconditional one is classifier-free guidance with a network of its own. ``cond["guidance"]``,
    ``(b,)``, takes precedence over the constant where it is given.

    Args:
        denoiser: what is guided.
        reference: the worse one, on the same path; its conditions are among the other's.
        scale: the constant w.

    Raises:
        UsageError: the two do not fit together.
    """

    def __init__(
        self, denoiser: AbstractDenoiser, reference: AbstractDenoiser, scale: float = 1.0
    ) -> None:
        super().__init__()
        if reference.path != denoiser.path:
            raise UsageError(
                f"the guiding model lives on {reference.path}, the guided one on {denoiser.path}; "
                "read it there with .on(path)"
            )
        extra = [key for key in reference.cond_keys if key not in denoiser.cond_keys]
        if extra or "guidance" in denoiser.cond_keys:
            raise UsageError(
                f"autoguidance is for networks that do not read a guidance scale, and needs a "
                f"reference without conditions of its own, got {denoiser.cond_keys} guided by "
                f"{reference.cond_keys}"
            )
        self.denoiser = denoiser
        self.reference = reference
        self.scale = scale
        self.path = denoiser.path
        self.cond_keys = denoiser.cond_keys
        self.two_time = denoiser.two_time
        self.calls = denoiser.calls + reference.calls

    def on(self, path: Path) -> Autoguided:
        """The same, of both models read on another path."""
        return Autoguided(self.denoiser.on(path), self.reference.on(path), self.scale)

    def forward(self, x: Event, t: Time, s: Time | None = None, cond: Cond | None = None) -> Event:
        """The guided x0_hat."""
        given = dict(cond or {})
        scale = given.pop("guidance", torch.full_like(t, self.scale))
        worse = self.reference(x, t, s, given)
        return worse + expand(scale, x) * (self.denoiser(x, t, s, given) - worse)


class Switched(AbstractDenoiser):
    """One denoiser for the times below ``at``, another from there on; both share dropout masks.

    Args:
        low: of the times below.
        high: of ``at`` and the times above, on the same path and of the same conditions.
        at: where they meet.

    Raises:
        UsageError: the two do not fit together.
    """

    def __init__(self, low: AbstractDenoiser, high: AbstractDenoiser, at: float) -> None:
        super().__init__()
        path = high.path
        if low.path != path or low.cond_keys != high.cond_keys or low.two_time or high.two_time:
            raise UsageError(
                "the two denoisers must be one-time networks of one path and of the same "
                f"conditions, got {low.path} {low.cond_keys} below and {path} {high.cond_keys}"
            )
        if not path.t_min < at < path.t_max:
            raise UsageError(f"they must meet between {path.t_min} and {path.t_max}, got at={at}")
        self.low, self.high, self.at = low, high, at
        self.path, self.cond_keys, self.two_time = path, high.cond_keys, False
        self.calls = max(low.calls, high.calls)

    def forward(self, x: Event, t: Time, s: Time | None = None, cond: Cond | None = None) -> Event:
        """Each sample's own denoiser's x0_hat."""
        above = t >= self.at
        if torch.compiler.is_exporting():  # a graph has no branches
            low = self.low(x, t, s, cond)
            return torch.where(expand(above, x), self.high(x, t, s, cond), low)
        if bool(above.all()):
            return self.high(x, t, s, cond)
        with same_dropout(x):
            below = self.low(x, t, s, cond)
        # Both in training: all processes of a sharded network must make the same calls.
        if not self.training and not bool(above.any()):
            return below
        return torch.where(expand(above, x), self.high(x, t, s, cond), below)


class Clamped(AbstractDenoiser):
    """Answers limited to ``[low, high]``, as official consistency samplers do at every call."""

    def __init__(self, denoiser: AbstractDenoiser, low: float = -1.0, high: float = 1.0) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.low, self.high = low, high
        self.path = denoiser.path
        self.cond_keys = denoiser.cond_keys
        self.two_time = denoiser.two_time
        self.calls = denoiser.calls

    def forward(self, x: Event, t: Time, s: Time | None = None, cond: Cond | None = None) -> Event:
        """The clamped x0_hat."""
        return self.denoiser(x, t, s, cond).clamp(self.low, self.high)
