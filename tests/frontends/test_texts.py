"""Tokenizers, and the condition of token numbers from data to a network."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest
import torch

from captioned import MERGES, tokenizer
from fewstep.conditions import Text
from fewstep.contract import DataSpec
from fewstep.core import UsageError
from fewstep.frontends import Frontend, open_text, read_frontend
from fewstep.frontends.tokens import from_file, restricted
from fewstep.models.nets import DiT
from fewstep.models.nets.conditions import TextEmbedding


def test_tokens_of_texts():
    reader = tokenizer()
    values = reader.encode(["Red  blue", "", "a" * 40])
    ids, mask = values["text"], values["text_mask"]
    red, blue = (reader.tokenizer.token_to_id(word) for word in ("red</w>", "blue</w>"))
    # Case and spaces have no meaning.
    assert ids[0, :4].tolist() == [reader.start, red, blue, reader.end]
    assert mask.sum(1).tolist() == [4, 2, 12]
    assert ids[2, -1] == reader.end
    assert reader.cut(["Red blue", "a" * 40, "x", "y" * 11]) == [1, 3]
    null = reader.conditions["text"].null("text")
    assert torch.equal(ids[1], null["text"])
    assert torch.equal(mask[1], null["text_mask"])


def test_a_folder_of_a_tokenizer_reads_alike(tmp_path):
    reader = tokenizer()
    Frontend(text=reader).write(tmp_path)
    frontend = read_frontend(tmp_path)
    assert frontend is not None
    again = frontend.text
    assert again is not None
    texts = ["a red square", "Übung, 3 naïve cafés", "日本 🎉"]
    for key, value in reader.encode(texts).items():
        assert torch.equal(again.encode(texts)[key], value)
    assert again.conditions == reader.conditions
    assert open_text(tmp_path).length == 12
    assert open_text(tmp_path / "text" / "tokenizer.json", 9).length == 9
    (tmp_path / "text" / "text.json").write_text("{}")
    with pytest.raises(UsageError, match="no readable reader of texts"):
        read_frontend(tmp_path)


def test_restricted_keeps_what_texts_use_and_reads_everything():
    whole = tokenizer()
    small = restricted(whole, ["red"])
    names = [
        [t.tokenizer.id_to_token(int(i)) for i in t.encode(["red"])["text"][0, :3]]
        for t in (whole, small)
    ]
    assert names[0] == names[1]
    # Two of the five merges make "red".
    assert small.vocabulary == 512 + 2 + 2
    assert len(MERGES) == 5
    pieces = small.tokenizer.encode("blue").tokens
    assert pieces == ["b", "l", "u", "e</w>"]


def test_files_that_are_no_tokenizer(tmp_path):
    for content in (b"{}", b"#version\na b\n", b"\xff\xfe", gzip.compress(b"nothing")):
        path = tmp_path / "t"
        path.write_bytes(content)
        with pytest.raises(UsageError, match=r"tokenizer|merges"):
            from_file(path, 12)
    with pytest.raises(UsageError, match="no reader of texts at"):
        open_text(tmp_path / "none")


@pytest.mark.skipif("FEWSTEP_DATA" not in os.environ, reason="FEWSTEP_DATA names no folder")
def test_clips_own_numbers():
    """Of "a photo of a cat": the numbers that every CLIP reads."""
    merges = Path(os.environ["FEWSTEP_DATA"]) / "clip_bpe" / "bpe_simple_vocab_16e6.txt.gz"
    reader = open_text(merges)
    assert (reader.vocabulary, reader.length) == (49408, 77)
    ids = reader.encode(["a photo of a cat"])["text"][0, :7]
    assert ids.tolist() == [49406, 320, 1125, 539, 320, 2368, 49407]


# The condition.


def test_text_is_a_condition_of_integers():
    one = Text(vocabulary=10, length=4, empty=(8, 9))
    null = one.null("text")
    assert null["text"].tolist() == [8, 9, 0, 0]
    assert null["text_mask"].tolist() == [True, True, False, False]
    values = one.convert("text", [1, 2, 3], 2)
    assert values["text"].tolist() == [[1, 2, 3, 0]] * 2
    assert values["text_mask"].tolist() == [[True, True, True, False]] * 2
    pair = one.convert("text", (torch.tensor([[1, 2], [3, 4]]), torch.tensor([[1, 1], [1, 0]])), 2)
    assert pair["text_mask"][:, :2].tolist() == [[True, True], [True, False]]
    for wrong in ([1.5], [10], [-1], [1, 2, 3, 4, 5], [[1], [2], [3]], []):
        with pytest.raises(UsageError, match="text"):
            one.convert("text", wrong, 2)
    with pytest.raises(UsageError, match="read by the model's tokenizer"):
        one.convert("text", "a red square", 2)
    for wrong in ({"empty": (10,)}, {"empty": (1,) * 5}, {"vocabulary": 0}):
        with pytest.raises(ValueError, match=r"empty text|greater than"):
            Text(**{"vocabulary": 10, "length": 4, **wrong})
    spec = DataSpec(shape=(1, 4, 4), conditions={"text": one})
    assert spec.keys == ("text", "text_mask")
    assert DataSpec.model_validate_json(spec.model_dump_json()) == spec
    assert "text 4" in spec.summary()


def embedding() -> TextEmbedding:
    torch.manual_seed(0)
    net = TextEmbedding(10, 6, 16)
    return net.double()


def test_padded_tokens_reach_no_answer():
    net = embedding()
    tokens = torch.tensor([[1, 2, 3, 0, 0, 0]])
    mask = torch.tensor([[True, True, True, False, False, False]])
    other = torch.tensor([[1, 2, 3, 7, 8, 9]])
    assert torch.equal(net(tokens, mask)[:, :3], net(other, mask)[:, :3])
    assert not torch.equal(net(tokens, mask)[:, :3], net(tokens, mask | True)[:, :3])
    # A text without any token is no number that is not one.
    assert net(tokens, mask & False).isfinite().all()
    # The order of the tokens counts.
    turned = torch.tensor([[2, 1, 3, 0, 0, 0]])
    assert not torch.allclose(net(tokens, mask)[:, 2], net(turned, mask)[:, 2])


def test_a_network_reads_texts_and_refuses_others():
    torch.manual_seed(0)
    net = DiT((1, 4, 4), patch=2, depth=2, width=16, heads=2, texts={"text": (10, 6)})
    assert net.cond_keys == ("text", "text_mask")
    assert net.options["texts"] == {"text": [10, 6]}
    for parameter in net.parameters():  # zero at first, so that a fresh block is the identity
        torch.nn.init.normal_(parameter, std=0.2)
    x, t = torch.randn(2, 1, 4, 4), torch.zeros(2)
    mask = torch.ones(2, 6, dtype=torch.bool)
    tokens = torch.arange(6).expand(2, 6)
    one = net(x, t, None, {"text": tokens, "text_mask": mask})
    two = net(x, t, None, {"text": tokens.flip(1), "text_mask": mask})
    assert not torch.allclose(one, two)
    for wrong in (tokens.float(), tokens[:1], torch.zeros(2, 7, dtype=torch.int64)):
        with pytest.raises(UsageError, match="int64 tensor"):
            net(x, t, None, {"text": wrong, "text_mask": mask})
    with pytest.raises(UsageError, match="text_mask"):
        net(x, t, None, {"text": tokens})
