"""Zero-shot editing of openai/consistency_models."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fewstep.editing.loops import replacement
from fewstep.editing.operators import Operator, colourise, inpaint, upscale
from fewstep.editing.operators import first_column as orthogonal
from fewstep.paths import VarianceExploding
from fewstep.times import karras
from golden_sets import Case, check, closed_form

Values = Iterator[tuple[str, Tensor]]


def inpainting(case: Case) -> Operator:
    """The rectangle in the place of the glyph: known outside for one half of the sets of seven
    samples, inside for the other half."""
    x = case.inputs["x"]
    left, top, right, bottom = case["mask_rect_xyxy_inclusive"]
    inside = torch.zeros(x.shape[-2:], dtype=torch.bool)
    inside[top : bottom + 1, left : right + 1] = True
    unknown = torch.zeros(x.shape, dtype=torch.bool).reshape(case["mask_reshape"])
    unknown[::2] = inside
    unknown[1::2] = ~inside
    return inpaint(unknown.reshape(x.shape), fill=case["fill"])


def edit(case: Case, operator: Operator) -> Values:
    """The official loop noises the last answer too, to the last time: t_min in practice."""
    path = VarianceExploding(case["t_min"], case["t_max"])
    denoiser = closed_form(case["nets"]["distiller"], path)
    levels = karras(case["steps"], case["t_min"], case["t_max"], case["rho"])[case["ts"]]
    x, noise = case.inputs["x"], case.inputs["noise"]
    out = replacement(
        denoiser,
        x,
        levels[:-1].tolist(),
        noise.__getitem__,
        operator=operator,
        y=case.inputs["images"],
        bounds=tuple(case["x0_clamp"]),
    )
    end = path.renoise(out, noise[len(levels) - 2], levels[-1:].expand(len(x)))
    for output in case.outputs:
        yield output, {"x": end, "images": operator.start(case.inputs["images"])}[output]


def matrix(case: Case) -> Values:
    """The golden file records the columns; ours have the same signs."""
    yield "Q", orthogonal(case["vector"])


CALLS = {
    "obtain_orthogonal_matrix": matrix,
    "iterative_inpainting": lambda case: edit(case, inpainting(case)),
    "iterative_colorization": lambda case: edit(case, colourise()),
    "iterative_superres": lambda case: edit(case, upscale(case["patch"])),
}


@torch.no_grad()
def test_golden_openai_editing(record_property) -> None:
    check("openai_editing", CALLS, record_property)
