import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from fewstep.core import UsageError
from fewstep.metrics import (
    NamedFeatures,
    Reference,
    References,
    TanhFeatures,
    flatten,
    frechet_distance,
    load_reference,
    moments_of,
    named_features,
    reference_distance,
)
from fewstep.metrics.reference import provenance_of
from judges import images, scrambled


def features(seed=0):
    return NamedFeatures("small", "FD-small", scrambled(TanhFeatures(), seed), "8-bit")


def digits(n=40, seed=0):
    return images(n, side=8, channels=1, seed=seed)


def made(x, judge, **changed):
    about = dataclasses.replace(provenance_of(x, judge), **changed)
    return Reference(moments_of([x], judge), about)


def test_saved_and_loaded(tmp_path):
    reference = made(digits(), features())
    reference.save(tmp_path / "new" / "r.safetensors")
    found = load_reference(tmp_path / "new" / "r.safetensors")
    assert found.provenance == reference.provenance
    assert found.moments.n == 40
    assert torch.equal(found.moments.mean, reference.moments.mean)
    assert torch.equal(found.moments.cov, reference.moments.cov)


def test_what_the_provenance_tells_apart():
    judge, x = features(), digits()
    about = provenance_of(x, judge)
    assert (about.count, about.resolution) == (40, (1, 8, 8))
    assert (about.features, about.resize, about.weights) == ("small", "8-bit", judge.weights)
    assert provenance_of(x.clone(), judge) == about
    other = x.clone()
    other[7, 0, 3, 3] += 0.01
    assert provenance_of(other, judge).data != about.data
    assert provenance_of(x.reshape(40, 1, 4, 16), judge).data != about.data
    assert provenance_of(x, features(seed=1)).weights != about.weights


def test_distance_of_like_statistics():
    judge, a, b = features(), digits(), digits(seed=1)
    got = reference_distance(made(a, judge), made(b, judge))
    expected = frechet_distance(moments_of([a], judge), moments_of([b], judge))
    assert got == expected > 0.01


@pytest.mark.parametrize(
    ("name", "value"),
    [("features", "other"), ("weights", "0" * 64), ("resize", "none"), ("resolution", (1, 4, 16))],
)
def test_unlike_statistics_are_not_compared(name, value):
    judge, x = features(), digits()
    with pytest.raises(UsageError, match="unlike judges") as caught:
        reference_distance(made(x, judge), made(x, judge, **{name: value}))
    message = str(caught.value)
    assert f"{name}: " in message
    assert str(value) in message
    assert message.count("\n") == 1


def test_other_data_and_versions_are_compared():
    judge, x = features(), digits()
    other = made(x, judge, data="0" * 64, version="0.0.1")
    assert reference_distance(made(x, judge), other) == pytest.approx(0, abs=1e-4)


def test_other_counts_are_warned_of():
    judge = features()
    with pytest.warns(UserWarning, match="of 40 and of 30 samples"):
        reference_distance(made(digits(), judge), made(digits(30), judge))


@pytest.mark.parametrize("damage", ["cut", "flipped", "foreign", "empty", "unnamed"])
def test_damaged_files(damage, tmp_path):
    path = tmp_path / "r.safetensors"
    made(digits(), features()).save(path)
    data = bytearray(path.read_bytes())
    if damage == "foreign":
        save_file({"mean": torch.zeros(2)}, path)
    elif damage == "unnamed":
        save_file(load_file(path), path, {"fewstep": json.dumps({"provenance": {}})})
    else:
        data[-5] ^= 1
        kept = {"cut": data[:-9], "flipped": data, "empty": b""}[damage]
        path.write_bytes(bytes(kept))
    with pytest.raises(UsageError, match=r"r\.safetensors: no reference statistics"):
        load_reference(path)


def test_a_folder_keeps_them(tmp_path):
    judge, x = features(), digits()
    first = References(judge, tmp_path)
    found = first(x)
    assert str(first) == f"0 cached, 1 computed, in {tmp_path}"
    direct = moments_of([x], judge)
    torch.testing.assert_close(found.moments.cov, direct.cov)
    again = References(judge, tmp_path)
    kept = again(x)
    assert torch.equal(kept.moments.cov, found.moments.cov)
    assert str(again) == f"1 cached, 0 computed, in {tmp_path}"
    # Other images, other weights: files of their own.
    again(digits(seed=1))
    References(features(seed=1), tmp_path)(x)
    assert again.computed == 1
    assert len(list(tmp_path.iterdir())) == 3


def test_a_damaged_file_is_computed_again(tmp_path):
    judge, x = features(), digits()
    References(judge, tmp_path)(x)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    again = References(judge, tmp_path)
    again(x)
    assert (again.cached, again.computed) == (0, 1)
    assert path.read_bytes() == whole


def test_a_file_under_anothers_name_is_computed_again(tmp_path):
    judge = features()
    References(judge, tmp_path)(digits())
    (path,) = tmp_path.iterdir()
    made(digits(seed=1), judge).save(path)
    again = References(judge, tmp_path)
    assert again(digits()).provenance == provenance_of(digits(), judge)
    assert again.computed == 1


def test_a_place_that_is_no_folder_is_done_without(tmp_path):
    (tmp_path / "file").touch()
    references = References(features(), tmp_path / "file" / "new")
    assert references(digits()).moments.n == 40
    assert "not kept (" in str(references)


def test_the_usual_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path))
    assert References(features()).folder == tmp_path / "references"
    monkeypatch.delenv("FEWSTEP_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert References(features()).folder == tmp_path / ".cache" / "fewstep" / "references"


def test_pixels_have_no_weights():
    about = provenance_of(digits(), named_features("pixels"))
    assert (about.features, about.weights) == ("pixels", "")
    assert torch.equal(named_features("pixels")(digits()), flatten(digits()))
