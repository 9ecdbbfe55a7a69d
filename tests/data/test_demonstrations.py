"""Demonstrations as windows: edges, the normaliser, what is refused, and where files come from."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from fewstep.core import UsageError
from fewstep.data.catalogue import training_data, with_held_out
from fewstep.data.demonstration_files import read_demonstrations, write_demonstrations
from fewstep.data.demonstrations import Chunks, Demonstrations
from fewstep.data.fingerprint import fingerprint
from fewstep.data.pusht import EVERY, pusht, seen_state
from fewstep.frontends import Frontend, open_codec, read_frontend
from fewstep.frontends.chunks import ChunkCodec, limits
from made_demonstrations import demonstrations, made_pusht


def test_windows_repeat_the_first_and_the_last_step():
    found = demonstrations((4, 6)).windows(4, 2, 2)
    # By hand: one step before an episode, one behind it, and no window over two episodes.
    first = [[0, 0, 1, 2], [0, 1, 2, 3], [1, 2, 3, 3]]
    second = [[4, 4, 5, 6], [4, 5, 6, 7], [5, 6, 7, 8], [6, 7, 8, 9], [7, 8, 9, 9]]
    assert found.tolist() == first + second


def test_a_sample_is_the_window_s_actions_and_its_first_observations():
    whole = demonstrations()
    data = Chunks(whole)
    codec, windows = data.frontend.codec, whole.windows(16, 2, 8)
    assert isinstance(codec, ChunkCodec)
    assert len(data) == len(windows) == (12 - 7) + (20 - 7)
    batch = data.batch([0, 7])
    action = torch.from_numpy(whole.action[windows[[0, 7]]]).transpose(1, 2)
    torch.testing.assert_close(codec.decode(batch.x0), action, rtol=1e-5, atol=1e-3)
    observed = torch.from_numpy(whole.observation[windows[[0, 7]][:, :2]])
    torch.testing.assert_close(batch.cond["observation"], codec.observe(observed))
    assert data.spec.conditions["observation"].shape == (2, 3)
    assert batch.x0.abs().max() <= 1


def test_the_normaliser_reaches_both_ends_and_leaves_constants_alone():
    x = torch.tensor([[0.0, 7.0, 1.0], [10.0, 7.0, 3.0], [4.0, 7.0, 2.0]])
    shift, scale = limits(x)
    z = (x - shift) * scale
    assert z[:, 0].tolist() == pytest.approx([-1, 1, -0.2])
    assert z[:, 1].tolist() == [0, 0, 0]
    assert z[:, 2].tolist() == [-1, 1, 0]
    assert scale[1] == 1


def test_the_codec_travels_with_a_model(tmp_path):
    codec = Chunks(demonstrations()).frontend.codec
    Frontend(codec).write(tmp_path)
    read = read_frontend(tmp_path)
    assert read is not None
    assert read.digests == Frontend(codec).digests
    z = torch.rand(3, 2, 16) * 2 - 1
    assert read.codec.decode(z).equal(codec.decode(z))
    observed = torch.randn(4, 2, 3)
    assert read.codec.observe(observed).equal(codec.observe(observed))
    assert read.shape_of((2, 16)) == (2, 16)


@pytest.mark.parametrize("given", [(3, 16), (2, 16, 1)])
def test_chunks_of_another_dimension_are_refused(given):
    codec = Chunks(demonstrations()).frontend.codec
    with pytest.raises(UsageError, match=r"chunks \(2, horizon\) of actions"):
        codec.encode(torch.zeros(1, *given))
    with pytest.raises(UsageError, match="observes 3 numbers, got 4"):
        codec.observe(torch.zeros(1, 2, 4))


def test_images_are_not_encoded_by_the_codec_of_chunks(tmp_path):
    frontend = Chunks(demonstrations()).frontend
    frontend.write(tmp_path)
    with pytest.raises(UsageError, match="one of images is needed"):
        open_codec(tmp_path)


def test_what_is_refused():
    whole = demonstrations()
    other = Chunks(demonstrations(actions=3)).frontend.codec
    with pytest.raises(UsageError, match="have 2 actions and observe 3 numbers a step, expected"):
        Chunks(whole, other)
    with pytest.raises(UsageError, match=r"episode 1 has 6 step\(s\), and a window of 16 needs 8"):
        Chunks(demonstrations((12, 6, 20)))
    bad = whole.observation.copy()
    bad[17, 1] = np.nan
    with pytest.raises(UsageError, match=r"observations hold values that are not finite, .* 17;"):
        Demonstrations(whole.action, bad, whole.ends)
    with pytest.raises(UsageError, match="same number of steps"):
        Demonstrations(whole.action[:-1], whole.observation, whole.ends)
    with pytest.raises(UsageError, match="must ascend to the number of steps, 32"):
        Demonstrations(whole.action, whole.observation, whole.ends[::-1])


def test_files(tmp_path):
    whole = demonstrations()
    path = write_demonstrations(tmp_path / "demos.safetensors", whole)
    np.savez(
        tmp_path / "d.npz", action=whole.action, state=whole.observation, episode_ends=whole.ends
    )
    for place in (path, tmp_path / "d.npz"):
        read = read_demonstrations(place)
        assert (read.action == whole.action).all()
        assert (read.observation == whole.observation).all()
        assert read.ends.tolist() == [12, 32]
    data = training_data(str(path))
    assert fingerprint(data) == fingerprint(Chunks(whole))
    assert fingerprint(data) != fingerprint(Chunks(demonstrations((13, 20))))
    save_file({"action": whole.action, "episode_ends": whole.ends}, tmp_path / "half.safetensors")
    with pytest.raises(UsageError, match="holds no observation or state"):
        training_data(str(tmp_path / "half.safetensors"))
    (tmp_path / "bad.npz").write_bytes(b"no archive")
    with pytest.raises(UsageError, match=r"bad.npz holds no demonstrations"):
        read_demonstrations(tmp_path / "bad.npz")
    with pytest.raises(UsageError, match=r"must end in \.safetensors"):
        write_demonstrations(tmp_path / "demos.npz", whole)


def test_zarr(tmp_path, monkeypatch):
    zarr = pytest.importorskip("zarr")
    whole = demonstrations()
    store = zarr.open_group(tmp_path / "replay.zarr", mode="w")
    arrays = {"data/action": whole.action, "data/state": whole.observation}
    for name, array in {**arrays, "meta/episode_ends": whole.ends}.items():
        store.create_array(name, data=array)
    assert (read_demonstrations(tmp_path / "replay.zarr").action == whole.action).all()


def test_zarr_that_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(UsageError, match=r"fewstep\[robots\]"):
        read_demonstrations(tmp_path)


def test_push_t_is_normalised_over_all_of_its_episodes(tmp_path, monkeypatch):
    whole = made_pusht(tmp_path)
    monkeypatch.setenv("FEWSTEP_DATA", str(tmp_path))
    train = training_data("pusht")
    _, unseen = with_held_out(train, "pusht", None, 2000)
    assert (len(train), len(unseen)) == (EVERY * 3, 3)
    assert train.frontend.digests == unseen.frontend.digests == pusht("train").frontend.digests
    shift, scale = limits(torch.from_numpy(whole.action))
    assert train.frontend.codec.scaling["shift"] == pytest.approx(shift.tolist())
    assert train.frontend.codec.scaling["scale"] == pytest.approx(scale.tolist())
    assert train.spec.conditions["observation"].shape == (2, 6)


def test_an_angle_has_no_jump():
    both = seen_state(np.array([[1, 2, 3, 4, 0.0], [1, 2, 3, 4, 2 * np.pi]]))
    assert both[0].tolist() == [1, 2, 3, 4, 0, 1]
    np.testing.assert_allclose(both[1], both[0], atol=1e-6)


def test_push_t_that_is_not_there_or_is_something_else(tmp_path, monkeypatch):
    monkeypatch.setenv("FEWSTEP_DATA", str(tmp_path))
    with pytest.raises(UsageError, match=r"pusht was not found: put pusht_lowdim\.npz or"):
        training_data("pusht")
    made_pusht(tmp_path, observed=4)
    with pytest.raises(UsageError, match=r"5 numbers a state, got \(260, 4\)"):
        training_data("pusht")
