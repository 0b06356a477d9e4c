"""Breaks acknowledging in every process that starts with this directory on PYTHONPATH; SABOTAGE says how."""

import os

from infi.ramen_client.storage import ActiveReader, Fate, Settlement

claim, settle = ActiveReader.claim, ActiveReader.settle


def claim_and_settle_some(self, *limits):
    """Acknowledge every tenth message without sending it; the queue's books count it as accepted."""
    claimed = claim(self, *limits)
    if unsent := claimed[1::10]:
        settle(self, [Settlement(message, Fate.ACCEPTED) for message in unsent])
    return [message for message in claimed if message not in unsent]


def settle_nothing(self, settlements, **others):
    """Remove nothing: what was delivered stays, and is sent again and again."""


if os.environ["SABOTAGE"] == "unsent":
    ActiveReader.claim = claim_and_settle_some
else:
    ActiveReader.settle = settle_nothing
