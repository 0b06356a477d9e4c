"""The randomness of a torture test: a seed that the test prints, and that RAMEN_TEST_SEED gives back to it."""

from __future__ import annotations

import os
import random
import secrets


def seeded() -> random.Random:
    seed = int(os.environ.get("RAMEN_TEST_SEED") or secrets.randbits(32))
    print(f"RAMEN_TEST_SEED={seed}")
    return random.Random(seed)
