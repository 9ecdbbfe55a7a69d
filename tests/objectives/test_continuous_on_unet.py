"""Forward-mode derivatives pass through the U-Net with attention."""

import torch

from fewstep.core import Batch, Rng
from fewstep.models import ConsistencyBoundary, Denoiser
from fewstep.models.nets import DDPMpp
from fewstep.objectives.consistency_continuous import ContinuousConsistency
from fewstep.objectives.shared.distances import l2
from fewstep.times import KarrasUniform


def test_pseudo_loss_and_penalty_reach_the_weights():
    torch.manual_seed(0)
    net = DDPMpp((1, 8, 8), 16, (1, 2), 1, (8, 4), dropout=0.0)
    student = Denoiser(net, ConsistencyBoundary(sigma_data=0.5))
    batch = Batch(torch.randn(2, 1, 8, 8))
    for penalty in (None, l2):
        objective = ContinuousConsistency(student, times=KarrasUniform(), penalty=penalty)
        student.zero_grad()
        loss = objective.loss(batch, objective.draw(batch, 0, Rng(0, 0, "student")))
        loss.total().backward()
        assert all(p.grad.isfinite().all() for p in student.parameters() if p.grad is not None)
        assert net.last.weight.grad.abs().max() > 0
