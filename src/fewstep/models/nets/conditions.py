"""The conditions that a network declares by name: vectors, sequences, texts and images.

A name is a key of ``cond``, and every condition has the batch first. A sequence or a text has
a second key, e.g. ``text`` and ``text_mask``. Shape suffixes: B batch, L tokens, W channels of a
token, E embedding.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.core import Cond, UsageError, normal

RESERVED = frozenset({"label", "guidance", "augment", "mask"})
"""Conditions that have a meaning of their own, so no declared one may have their name."""

MOST = 32
"""A network declares at most so many conditions of each kind."""

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")


class TwoLayers(nn.Module):
    """Two linear maps with a SiLU between them.

    Args:
        channels: numbers of the input.
        width: numbers of the result.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(channels, width), nn.Linear(width, width)

    def forward(self, x: Tensor, shift: Tensor | float = 0.0) -> Tensor:
        """``(..., width)``; the shift is added before the SiLU."""
        return self.last(F.silu(self.first(x) + shift))


class TokenEmbedding(nn.Module):
    """Tokens of the network's width that know their position, and a token that means "nothing".

    Args:
        length: the greatest number of tokens.
        channels: W, numbers of each token.
        width: E, numbers of each result.
    """

    def __init__(self, length: int, channels: int, width: int) -> None:
        super().__init__()
        self.map = TwoLayers(channels, width)
        self.position = nn.Parameter(normal(length, width, scale=0.02))
        self.null = nn.Parameter(normal(1, width, scale=0.02))

    def forward(self, tokens_BLW: Tensor) -> Tensor:
        """``(b, tokens, width)``."""
        return self.map(tokens_BLW, self.position[: tokens_BLW.shape[1]])


class TextEmbedding(nn.Module):
    """A transformer on a text's tokens, which learns with the network; and a null token.

    Args:
        vocabulary: number of tokens.
        length: the greatest number of tokens of a text.
        width: E, numbers of each result.
        layers: blocks of attention and MLP, in the order of Vaswani et al. 2017 with normalisation
            first.
    """

    def __init__(self, vocabulary: int, length: int, width: int, layers: int = 2) -> None:
        super().__init__()
        self.token = nn.Embedding(vocabulary, width)
        nn.init.normal_(self.token.weight, std=0.02)
        self.position = nn.Parameter(0.02 * torch.randn(length, width))
        self.null = nn.Parameter(0.02 * torch.randn(1, width))
        self.blocks = nn.ModuleList(TextBlock(width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens_BL: Tensor, mask_BL: Tensor) -> Tensor:
        """``(b, tokens, width)``; what is not there influences nothing that is."""
        h_BLE = self.token(tokens_BL) + self.position[: tokens_BL.shape[1]]
        # A row without any token attends to its first place; nobody reads the result.
        first = torch.arange(mask_BL.shape[1], device=mask_BL.device) == 0
        for block in self.blocks:
            h_BLE = block(h_BLE, mask_BL | (first & ~mask_BL.any(1, keepdim=True)))
        return self.norm(h_BLE)


class TextBlock(nn.Module):
    """Attention between the real tokens of a text, then an MLP.

    Args:
        width: channels of a token, a multiple of 64 or attended by one head.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // 64 if width % 64 == 0 else 1
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in "12")
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x_BLE: Tensor, mask_BL: Tensor) -> Tensor:
        """``(b, tokens, width)``; every row of the mask has a True."""
        qkv_BLXND = self.qkv(self.norms[0](x_BLE)).unflatten(2, (3, self.heads, -1))
        q_BNLD, k_BNLD, v_BNLD = qkv_BLXND.permute(2, 0, 3, 1, 4)
        a_BNLD = F.scaled_dot_product_attention(
            q_BNLD, k_BNLD, v_BNLD, attn_mask=mask_BL[:, None, None]
        )
        x_BLE = x_BLE + self.proj(a_BNLD.transpose(1, 2).flatten(2))
        return x_BLE + self.down(F.gelu(self.up(self.norms[1](x_BLE)), approximate="tanh"))


class Conditions(nn.Module):
    """What a network makes of its declared conditions; without any it has no parameters.

    The order in which conditions are given has no meaning: they are sorted by name.

    Args:
        network: the network's name, for errors.
        width: E, numbers of the embedding.
        vectors: the names of vectors, and how many numbers each has per sample.
        sequences: the names of sequences, and the greatest length and the width of each.
        images: the names of images, and how many channels each has.
        texts: the names of texts, and the vocabulary and the greatest length of each.
        plain: the network reads the vectors as they are, without layers of their own.

    Raises:
        UsageError: a name or a size cannot be used.
    """

    def __init__(
        self,
        network: str,
        width: int,
        vectors: Mapping[str, int] | None = None,
        sequences: Mapping[str, tuple[int, int]] | None = None,
        images: Mapping[str, int] | None = None,
        texts: Mapping[str, tuple[int, int]] | None = None,
        *,
        plain: bool = False,
    ) -> None:
        super().__init__()
        self.vector_sizes = _checked(network, "vectors", vectors or {})
        self.sequence_sizes = _checked(network, "sequences", sequences or {})
        self.image_channels = _checked(network, "images", images or {})
        self.text_sizes = _checked(network, "texts", texts or {})
        self.keys = (
            *self.vector_sizes,
            *(key for name in self.sequence_sizes for key in (name, f"{name}_mask")),
            *self.image_channels,
            *(key for name in self.text_sizes for key in (name, f"{name}_mask")),
        )
        twice = [key for key in self.keys if self.keys.count(key) > 1]
        if twice:
            raise UsageError(
                f"{network}: every condition needs a name of its own, and a sequence 'text' also "
                f"takes the name 'text_mask', got {twice[0]!r} twice"
            )
        # The prefix keeps a name such as "type" apart from the attributes of a module.
        layered = {} if plain else self.vector_sizes
        self.vectors = nn.ModuleDict(
            {f"for_{name}": TwoLayers(n, width) for name, n in layered.items()}
        )
        self.sequences = nn.ModuleDict(
            {
                f"for_{name}": TokenEmbedding(length, channels, width)
                for name, (length, channels) in self.sequence_sizes.items()
            }
        )
        self.texts = nn.ModuleDict(
            {
                f"for_{name}": TextEmbedding(vocabulary, length, width)
                for name, (vocabulary, length) in self.text_sizes.items()
            }
        )

    @property
    def options(self) -> dict[str, Any]:
        """The arguments as JSON values, without those that are empty."""
        options = {
            "vectors": dict(self.vector_sizes),
            "sequences": {name: [*size] for name, size in self.sequence_sizes.items()},
            "images": dict(self.image_channels),
            "texts": {name: [*size] for name, size in self.text_sizes.items()},
        }
        return {kind: value for kind, value in options.items() if value}

    @property
    def channels(self) -> int:
        """The number of channels that all images have together."""
        return sum(self.image_channels.values())

    def add_vectors(self, embedding_BE: Tensor, cond: Cond | None) -> Tensor:
        """The embedding plus what each vector says."""
        for name, vector_BW in self._plain_vectors(embedding_BE, cond).items():
            embedding_BE = embedding_BE + self.vectors[f"for_{name}"](vector_BW)
        return embedding_BE

    def plain_vectors(self, like_BE: Tensor, cond: Cond | None) -> list[Tensor]:
        """The numbers of each vector as they are given, ``(b, numbers)``, sorted by name."""
        return [*self._plain_vectors(like_BE, cond).values()]

    def _plain_vectors(self, like_BE: Tensor, cond: Cond | None) -> dict[str, Tensor]:
        vectors, b = {}, like_BE.shape[0]
        for name, n in self.vector_sizes.items():
            vector = _value(cond, name)
            if vector is None or vector.shape[:1] != (b,) or vector.numel() != b * n:
                raise _wrong(name, f"float tensor (b, ...) of {n} numbers per sample", vector)
            vectors[name] = vector.reshape(b, n).to(like_BE.dtype)
        return vectors

    def add_pooled(self, embedding_BE: Tensor, cond: Cond | None) -> Tensor:
        """The embedding plus the mean of the real tokens of each sequence and text.

        Where nothing of one is real, its null token is added.
        """
        for name in (*self.sequence_sizes, *self.text_sizes):
            tokens_BLE, mask_BL, null_1E = self._tokens(name, embedding_BE, cond)
            mask_BL1 = mask_BL[:, :, None]
            count_B1 = mask_BL1.sum(1).clamp(min=1).to(tokens_BLE.dtype)
            mean_BE = tokens_BLE.masked_fill(~mask_BL1, 0.0).sum(1) / count_B1
            mean_BE = torch.where(mask_BL.any(1, keepdim=True), mean_BE, null_1E)
            embedding_BE = embedding_BE + mean_BE
        return embedding_BE

    def tokens(self, like_BE: Tensor, cond: Cond | None) -> tuple[Tensor, ...]:
        """Tokens of all sequences and texts and a mask of the real ones; without any, nothing.

        The null token of each is first and always real, so attention never sees an empty row.
        """
        tokens: list[Tensor] = []
        masks: list[Tensor] = []
        for name in (*self.sequence_sizes, *self.text_sizes):
            tokens_BLE, mask_BL, null_1E = self._tokens(name, like_BE, cond)
            null_B1E = null_1E.to(tokens_BLE.dtype).expand(mask_BL.shape[0], 1, -1)
            tokens += [null_B1E, tokens_BLE]
            masks += [mask_BL.new_ones(mask_BL.shape[0], 1), mask_BL]
        return (torch.cat(tokens, dim=1), torch.cat(masks, dim=1)) if tokens else ()

    def add_images(self, x: Tensor, cond: Cond | None) -> Tensor:
        """``x`` with the images as further channels."""
        images = [x]
        for name, channels in self.image_channels.items():
            image = _value(cond, name)
            shape = (x.shape[0], channels, *x.shape[2:])
            if image is None or tuple(image.shape) != shape:
                raise _wrong(name, f"float tensor (b, c, *space) of shape {shape}", image)
            images.append(image.to(x.dtype))
        return torch.cat(images, dim=1) if len(images) > 1 else x

    def _tokens(
        self, name: str, like_BE: Tensor, cond: Cond | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The tokens of a sequence or a text, its mask and its null token."""
        if name in self.text_sizes:
            return self._read(name, like_BE, cond)
        length, channels = self.sequence_sizes[name]
        tokens, mask = _value(cond, name), _value(cond, f"{name}_mask")
        if (
            tokens is None
            or tokens.ndim != 3
            or tokens.shape[::2] != (like_BE.shape[0], channels)
            or tokens.shape[1] > length
        ):
            wanted = f"float tensor (b, length, {channels}) of a length of at most {length}"
            raise _wrong(name, wanted, tokens)
        mask = _mask(name, mask, tokens.shape[:2])
        embedding = self.sequences[f"for_{name}"]
        assert isinstance(embedding, TokenEmbedding)
        # Zeros in the padded places: not even an infinity there reaches an answer.
        tokens = tokens.to(like_BE.dtype).masked_fill(~mask[:, :, None], 0.0)
        return embedding(tokens), mask, embedding.null

    def _read(self, name: str, like_BE: Tensor, cond: Cond | None) -> tuple[Tensor, Tensor, Tensor]:
        """What the network's own encoder makes of a text, its mask and its null token."""
        _, length = self.text_sizes[name]
        tokens = _value(cond, name)
        if (
            tokens is None
            or tokens.is_floating_point()
            or tokens.ndim != 2
            or tokens.shape[0] != like_BE.shape[0]
            or tokens.shape[1] > length
        ):
            raise _wrong(name, f"int64 tensor (b, tokens) of at most {length} tokens", tokens)
        mask = _mask(name, _value(cond, f"{name}_mask"), tokens.shape)
        embedding = self.texts[f"for_{name}"]
        assert isinstance(embedding, TextEmbedding)
        return embedding(tokens, mask).to(like_BE.dtype), mask, embedding.null


def _mask(name: str, mask: Tensor | None, shape: torch.Size) -> Tensor:
    if mask is None or mask.dtype != torch.bool or mask.shape != shape:
        raise _wrong(
            f"{name}_mask", f"bool tensor of shape {tuple(shape)}, True where a token is real", mask
        )
    return mask


def mask_of(cond: Cond | None, x: Tensor) -> Tensor:
    """The mask of ragged data among the conditions: ``(b, 1, *space)``, 1 where ``x`` is real."""
    mask = _value(cond, "mask")
    shape = (x.shape[0], 1, *x.shape[2:])
    if mask is None or tuple(mask.shape) != shape:
        raise _wrong("mask", f"tensor (b, 1, *space) of shape {shape}, 1 where data is real", mask)
    return mask != 0


def _value(cond: Cond | None, key: str) -> Tensor | None:
    return None if cond is None else cond.get(key)


def _wrong(key: str, wanted: str, value: Tensor | None) -> UsageError:
    kind = "" if value is None else str(value.dtype).removeprefix("torch.")
    given = "none" if value is None else f"{kind} of shape {tuple(value.shape)}"
    return UsageError(f"this network needs cond={{{key!r}: {wanted}}}, got {given}")


def _checked(network: str, kind: str, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """The sizes sorted by name."""
    example = {"vectors": {"pose": 7}, "sequences": {"text": (77, 768)}, "images": {"sketch": 1}}
    example["texts"] = {"text": (49408, 77)}
    paired = kind in {"sequences", "texts"}
    if len(sizes) > MOST:
        raise UsageError(f"{network}: expected at most {MOST} {kind}, got {len(sizes)}")
    for name, size in sizes.items():
        if not _NAME.fullmatch(str(name)) or name in RESERVED:
            raise UsageError(
                f"{network}: names of {kind} have at most 64 letters, digits and underscores, "
                f"begin with a letter and are none of {sorted(RESERVED)}, got {str(name)[:80]!r}"
            )
        pair = paired and isinstance(size, tuple | list) and len(size) == 2
        numbers = size if pair else (None if paired else size,)
        if any(not isinstance(n, int) or isinstance(n, bool) or n < 1 for n in numbers):
            raise UsageError(
                f"{network}: expected {kind} with positive sizes, such as {example[kind]}, got "
                f"{{{name!r}: {size!r}}}"
            )
    return {n: tuple(s) if paired else s for n, s in sorted(sizes.items())}
