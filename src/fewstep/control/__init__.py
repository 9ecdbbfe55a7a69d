"""Policies in closed loop: from observations to actions, environments, episodes and their score."""

from __future__ import annotations

from fewstep.control.environments import ENVIRONMENTS, FIRST_SEED, Environment, environment
from fewstep.control.judging import Rewards
from fewstep.control.policy import Policy
from fewstep.control.rollouts import Episode, Latency, film, latency, roll
from fewstep.control.scores import Score, bootstrap, score, wilson

__all__ = [
    "ENVIRONMENTS",
    "FIRST_SEED",
    "Environment",
    "Episode",
    "Latency",
    "Policy",
    "Rewards",
    "Score",
    "bootstrap",
    "environment",
    "film",
    "latency",
    "roll",
    "score",
    "wilson",
]
