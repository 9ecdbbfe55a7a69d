"""EDM2 networks as state dicts: training states of EDM2 and FastGen, and converted files.

They have the weights of the network and of its averages by name, and no options. FastGen's
``EDM2Precond`` has EDM2's names and numbers; only its gains are rows of one number.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fewstep.errors import UsageError
from fewstep.importing.architectures.edm2 import edm2_unet
from fewstep.importing.archives import Archive
from fewstep.importing.choice import chosen
from fewstep.importing.formats import Format, edm2
from fewstep.importing.formats.edm import RAW
from fewstep.importing.options import ImportOptions
from fewstep.importing.parts import Part, plain_state
from fewstep.importing.result import Imported
from fewstep.importing.storages import Lazy

FIRST = "unet.out_gain"
SIGMA_DATA = 0.5
"""EDM2's own, where the state has no loss that says it."""
WHOLE = "the file"
"""The network of a file that holds one only."""
SECOND = "unet.emb_noise_r.weight"
FREQUENCIES = "unet.emb_fourier.freqs"
QKV = ".attn_qkv.weight"
DEFAULTS = (
    "the file has no options of the network; its dropout and its shares of sums are those of "
    "EDM2's code"
)


def recognise(archive: Archive) -> bool:
    """Whether it is a training state of EDM2."""
    return bool(_networks(archive.content))


def read(archive: Archive, options: ImportOptions) -> Imported:
    """The model."""
    networks = _networks(archive.content)
    name = WHOLE if [*networks] == [WHOLE] and options.weights is None else None
    name = name or chosen([*networks], options, archive.source)
    tensors = networks[name]
    _check(tensors, archive, options)
    inner = {k.removeprefix("unet."): v for k, v in tensors.items() if k.startswith("unet.")}
    unet = _unet(inner, archive, options)
    loss = archive.content.get("loss_fn")
    said = loss.get("sigma_data") if isinstance(loss, dict) else None
    whole = Part(
        kind="Precond",
        attributes={"sigma_data": SIGMA_DATA if said is None else said},
        tensors={},
        children={"unet": unet},
    )
    notes = (DEFAULTS, *((RAW,) if name == "net" else ()))
    latent = edm2_unet(inner, dict(unet.walk())).spec["shape"][0] == 4
    return edm2.imported(archive, whole, tensors, options, f"{name}", notes, latent=latent)


def _check(tensors: Mapping[str, Lazy], archive: Archive, options: ImportOptions) -> None:
    """Refuse what the library's network does not compute, and what only the user can say."""
    if SECOND in tensors or FREQUENCIES not in tensors:
        kind = "reads two times" if SECOND in tensors else "has sinusoids of fixed frequencies"
        raise UsageError(
            f"{archive.source} holds a network of FastGen's on EDM2's U-Net that {kind}; of these "
            "networks only those of one time with random frequencies can be imported"
        )
    if options.reading is None and "ema" not in archive.content:
        raise UsageError(
            f"{archive.source} does not say how its network was trained; give --as edm (a "
            "diffusion model, such as the teacher) or --as consistency-plain (a consistency model, "
            "or any student that is sampled by noising and denoising)"
        )


def _unet(tensors: Mapping[str, Lazy], archive: Archive, options: ImportOptions) -> Part:
    """The network as a module, whose blocks have as many heads as the user says."""
    blocks: dict[str, Part] = {}
    for name, tensor in tensors.items():
        if not name.endswith(QKV) or not tensor.shape:
            continue
        channels = tensor.shape[0] // 3
        heads = options.heads or channels // (options.head_channels or channels + 1)
        if not heads:
            raise UsageError(
                f"{archive.source} has attention of {channels} channels and does not say in how "
                "many heads; give --head-channels (64 in EDM2's published networks) or --heads"
            )
        qkv = Part("", {}, {"weight": tensor}, {})
        blocks[name.removesuffix(QKV)] = Part("", {"num_heads": heads}, {}, {"attn_qkv": qkv})
    others = {name: tensor for name, tensor in tensors.items() if not name.endswith(QKV)}
    return Part("UNet", {}, others, blocks)


def _networks(content: Any) -> dict[str, Mapping[str, Lazy]]:
    if (whole := plain_state(content)) is not None:
        return {WHOLE: whole} if FIRST in whole else {}
    if not isinstance(content, dict):
        return {}
    inner = content.get("model")  # of FastGen, whose networks lie beside each other
    states = {str(k): plain_state(v) for k, v in inner.items()} if isinstance(inner, dict) else {}
    states |= {"net": plain_state(content.get("net"))} if "net" in content else {}
    ema = content.get("ema")
    if isinstance(ema, dict):
        stds, emas = ema.get("stds"), ema.get("emas")
        if isinstance(stds, list) and isinstance(emas, list) and len(stds) == len(emas):
            numbers = all(isinstance(std, float) for std in stds)
            pairs = zip(stds, emas, strict=True) if numbers else ()
            states |= {f"ema-{std:.3f}": plain_state(each) for std, each in pairs}
    return {name: state for name, state in states.items() if state is not None and FIRST in state}


FORMAT = Format("EDM2 networks as state dicts", recognise, read)
