import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from fewstep.core import UsageError
from fewstep.metrics import frechet_distance, moments_of
from fewstep.metrics.cifar_resnet import CifarResNet, cifar_resnet
from judges import images, scrambled


def by_hand(w, x):
    """ResNet-20 from its tensors; pixels already normalised."""

    def norm(name, h):
        return F.batch_norm(
            h,
            w[f"{name}.running_mean"],
            w[f"{name}.running_var"],
            w[f"{name}.weight"],
            w[f"{name}.bias"],
        )

    h = norm("bn1", F.conv2d(x, w["conv1.weight"], padding=1)).relu()
    for stage in (1, 2, 3):
        for block in range(3):
            at, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = F.conv2d(h, w[f"{at}.conv1.weight"], stride=stride, padding=1)
            y = F.conv2d(norm(f"{at}.bn1", y).relu(), w[f"{at}.conv2.weight"], padding=1)
            y = norm(f"{at}.bn2", y)
            if stride == 2:
                zeros = torch.zeros(len(h), h.shape[1] // 2, *y.shape[2:])
                h = torch.cat([zeros, h[:, :, ::2, ::2], zeros], 1)
            h = (y + h).relu()
    return F.avg_pool2d(h, 8)[:, :, 0, 0]


def test_the_architecture_by_hand():
    network, x = scrambled(CifarResNet(20)), images()
    mean, std = (
        torch.tensor(v)[:, None, None] for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    )
    w = network.state_dict()
    expected = by_hand(w, ((x + 1) / 2 - mean) / std)
    got = network(x)
    assert got.shape == (3, 64)
    assert got.std() > 0.1
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    logits = got @ w["linear.weight"].T + w["linear.bias"]
    torch.testing.assert_close(network.logits(x), logits)


def test_published_sizes():
    # He et al. 2015, table 6: 0.27 and 0.85 million parameters.
    for depth, millions in ((20, 0.27), (56, 0.85)):
        count = sum(p.numel() for p in CifarResNet(depth).parameters())
        assert round(count / 1e6, 2) == millions


def test_other_sizes_are_refused():
    with pytest.raises(UsageError, match=r"\(3, 3, 16, 16\).*\(b, 3, 32, 32\)"):
        CifarResNet(20)(images(side=16))


def test_where_weights_are_looked_for(tmp_path, monkeypatch):
    monkeypatch.delenv("FEWSTEP_DATA", raising=False)
    with pytest.raises(UsageError, match="no weights of resnet20: give a file"):
        cifar_resnet(20)
    monkeypatch.setenv("FEWSTEP_DATA", str(tmp_path))
    with pytest.raises(UsageError, match="no weights of resnet20"):
        cifar_resnet(20)
    network = scrambled(CifarResNet(20))
    file = tmp_path / "cifar10_resnets" / "resnet20-0123.th"
    file.parent.mkdir()
    state = {f"module.{k}": v for k, v in network.state_dict().items()}
    torch.save({"state_dict": state, "best_prec1": 1.0}, file)
    for found in (cifar_resnet(20), cifar_resnet(20, file)):
        assert torch.equal(found(images()), network(images()))
    with pytest.raises(UsageError, match=r"missing layer1\.3\.conv1\.weight"):
        cifar_resnet(56, file)


# On the real weights and images.


@pytest.fixture(scope="module")
def real():
    """The folder of real data."""
    if "FEWSTEP_DATA" not in os.environ:
        pytest.skip("needs real data: set FEWSTEP_DATA to a folder with cifar10, cifar10_resnets")
    return Path(os.environ["FEWSTEP_DATA"])


def cifar(real, file, key):
    """The 2,500 images of one mosaic, in [-1, 1]."""
    with np.load(real / "cifar10" / file) as archive:
        mosaic = Image.open(io.BytesIO(archive[key].tobytes())).convert("RGB")
    x = np.asarray(mosaic).reshape(50, 32, 50, 32, 3).transpose(0, 2, 4, 1, 3)
    return torch.from_numpy(x.reshape(2500, 3, 32, 32).astype(np.float32) / 127.5 - 1)


def test_accuracy_is_as_published_with_the_weights(real):
    network = cifar_resnet(20)
    with np.load(real / "cifar10" / "cifar10_b.npz") as archive:
        label = torch.from_numpy(archive["test_labels"][:1000].astype(np.int64))
    x = cifar(real, "cifar10_b.npz", "test_webp_00")[:1000]
    with torch.no_grad():
        right = (network.logits(x).argmax(1) == label).double().mean()
    # 0.9173 on all 10,000; three standard deviations of a binomial of 1,000.
    assert abs(float(right) - 0.9173) < 3 * (0.9173 * 0.0827 / 1000) ** 0.5


@pytest.mark.slow
def test_distances_of_images_and_of_noisy_ones(real):
    network = cifar_resnet(20)
    train = cifar(real, "cifar10_a.npz", "train_webp_00")
    test = cifar(real, "cifar10_b.npz", "test_webp_00")
    noise = torch.randn(test.shape, generator=torch.Generator().manual_seed(0))
    moments = [moments_of(x.split(250), network) for x in (train, test, test + noise * 16 / 255)]
    near, far = (frechet_distance(moments[i], moments[j]) for i, j in ((0, 1), (1, 2)))
    # 0.098 and 4.19 were found of 3,000 and 3,000 with noise of 8 grey levels; of fewer, a little
    # more of the first.
    assert 0.08 < near < 0.16
    assert far == pytest.approx(4.19, rel=0.1)
