"""Breaks promises in the demo's processes when this directory is on PYTHONPATH; SABOTAGE names them, each with its queue.

- unsent:QUEUE: the reader acknowledges every tenth message without sending it.
- nothing:QUEUE: acknowledging removes nothing; what was delivered stays.
- early:QUEUE: the collector answers a message of this queue a second before it stores it.
- uncounted:small: what is trimmed (only the small queue is) leaves it, and is in no book.
"""

import os
import sys
from dataclasses import replace

broken = dict(way.split(":") for way in os.environ["SABOTAGE"].split())


def break_reader():
    from infi.ramen_client.storage import ActiveReader, Fate, Settlement

    look, settle = ActiveReader.look_ahead, ActiveReader.settle

    def look_and_settle_some(self, *limits):
        found = look(self, *limits)
        unsent = found.messages[1::10] if self.place.sender == broken.get("unsent") else []
        if unsent:
            settle(self, [Settlement(message, Fate.ACCEPTED) for message in unsent])
        return replace(found, messages=[message for message in found.messages if message not in unsent])

    def settle_nothing(self, settlements, **others):
        if self.place.sender != broken.get("nothing"):
            settle(self, settlements, **others)

    ActiveReader.look_ahead, ActiveReader.settle = look_and_settle_some, settle_nothing


def break_collector():
    import asyncio

    from infi.ramen_server import Outcome
    from infi.ramen_server.commits import GroupCommit

    commit = GroupCommit.commit

    async def answer_and_commit_later(self, submission):
        if submission.messages[0].envelope.sender != broken.get("early"):
            return await commit(self, submission)
        asyncio.get_running_loop().call_later(1, asyncio.ensure_future, commit(self, submission))
        return (Outcome.STORED,) * len(submission.messages)

    GroupCommit.commit = answer_and_commit_later


def break_writer():
    from infi.ramen_client.storage import _statements

    if "uncounted" in broken:
        _statements.COUNT_TRIMMED = "UPDATE book SET waiting = waiting - ?1 WHERE id = 1"


match next((argument for argument in sys.orig_argv if argument.startswith("demo.")), ""):
    case "demo.reader":
        break_reader()
    case "demo.collector":
        break_collector()
    case "demo.writer":
        break_writer()
