"""Control a robot at 10 Hz by a policy that must decide within its deadline.

A decision that comes too late is not executed: the robot holds its last action for that step, and
the loop counts it. A one-call policy keeps a deadline that its teacher misses.
"""

import sys
import time
from collections.abc import Callable

import numpy as np

import fewstep
from fewstep.control import Environment, Policy, environment

DEADLINE = 0.1


def control(
    policy: Policy,
    place: Environment,
    seed: int,
    *,
    deadline: float = DEADLINE,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[float, int, int]:
    """One episode; the largest reward, the number of steps and of missed deadlines."""
    env = place.make()
    seen, _ = env.reset(seed=seed)
    policy.reset()
    best, steps, missed, over = 0.0, 0, 0, False
    last: np.ndarray | None = None
    while not over:
        began = clock()
        action = policy.select_action(place.observe(seen))
        late = clock() - began > deadline
        missed += late
        # Before the first action there is none to hold.
        last = action if last is None or not late else last
        seen, reward, ended, timeout, _ = env.step(place.clipped(last))
        best, steps, over = max(best, float(reward)), steps + 1, ended or timeout
    env.close()
    return best, steps, missed


def main(model: str, env: str = "pusht", seed: int = 100_000) -> None:
    policy = Policy(fewstep.load(model))
    best, steps, missed = control(policy, environment(env), seed)
    print(f"reward {best:.3f} in {steps} steps; {missed} deadlines of {DEADLINE} s missed")


if __name__ == "__main__":
    main(*sys.argv[1:2])
