"""Conditions whose null is something: in JSON, rounded to float16, and refused when it is wrong."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from fewstep.conditions import Sequence, Vector
from fewstep.contract import DataSpec
from fewstep.values import packed


def test_a_vector():
    value = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    one = Vector(shape=(2, 3)).with_null(value)
    again = Vector.model_validate_json(one.model_dump_json())
    assert again == one
    assert torch.equal(again.null("v")["v"], value.half().float())
    assert torch.equal(again.default("v", [4, 5])["v"][1], value.half().float())
    # The caller's tensor is his own.
    again.null("v")["v"].zero_()
    assert torch.equal(again.null("v")["v"], value.half().float())


def test_a_sequence_and_its_mask():
    tokens = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([True, True, False, True])
    one = Sequence(shape=(3,), length=4).with_null(tokens, mask)
    spec = DataSpec.model_validate_json(
        DataSpec(shape=(2,), conditions={"s": one}).model_dump_json()
    )
    assert torch.equal(spec.nulls["s"], tokens.half().float())
    assert torch.equal(spec.nulls["s_mask"], mask)


def test_without_one_it_is_zeros_as_before():
    old = Sequence.model_validate({"kind": "sequence", "shape": [3], "length": 4})
    assert not old.null("s")["s"].any()
    assert not old.null("s")["s_mask"].any()
    assert not Vector.model_validate({"kind": "vector", "shape": [3]}).null("v")["v"].any()


@pytest.mark.parametrize("empty", ["?", packed(torch.zeros(5)), packed(torch.zeros(7)), "AAAA"])
def test_numbers_that_do_not_fit(empty):
    with pytest.raises(ValidationError, match="packed numbers"):
        Vector(shape=(2, 3), empty=empty)


def test_numbers_that_float16_does_not_hold():
    with pytest.raises(ValueError, match="above 65,504"):
        Vector(shape=(1,)).with_null(torch.tensor([1e6]))
