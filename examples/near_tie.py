"""An environment of your own for studies: two responses that N comparisons barely separate."""

import numpy as np


def near_tie(seed, comparisons):
    """Return the tables of a bandit whose third response is rare, with a random reward."""
    third = np.random.default_rng(seed).uniform()
    return {
        "true_reward": [[0.0, comparisons**-0.5, third]],
        "behavior_policy": [[0.5, 0.49, 0.01]],
        "reward_max": 1.0,
    }
