"""A Ramen server for tests: in the test's own process (``RamenServer``) or as one of its own (``python -m``).

::

    from infi.ramen_client.testing import RamenServer, Status

    with RamenServer() as server:
        server.answer_with(Status(503))     # the first attempt fails, all later ones are accepted
        ...                                 # push to server.hostname with server.token
        server.wait_for(1)

It answers as the protocol says and, on request, as nobody should: see ``replies``. Standard library only, besides the
protocol; nothing in it is meant to face a network.
"""

from infi.ramen_client.testing._reading import MAX_MESSAGE_BYTES
from infi.ramen_client.testing._received import Received, ReceivedBatch, Refused
from infi.ramen_client.testing.replies import (
    Accept,
    BatchReply,
    Drop,
    Endless,
    Hang,
    Raw,
    Redirect,
    Refuse,
    Reply,
    Reset,
    Results,
    SlowDrip,
    Status,
    StoreThen,
    StoreThenReset,
    Truncated,
)
from infi.ramen_client.testing.server import DEFAULT_TOKEN, RamenServer, ReplyFunction

__all__ = [
    "DEFAULT_TOKEN",
    "MAX_MESSAGE_BYTES",
    "Accept",
    "BatchReply",
    "Drop",
    "Endless",
    "Hang",
    "RamenServer",
    "Raw",
    "Received",
    "ReceivedBatch",
    "Redirect",
    "Refuse",
    "Refused",
    "Reply",
    "ReplyFunction",
    "Reset",
    "Results",
    "SlowDrip",
    "Status",
    "StoreThen",
    "StoreThenReset",
    "Truncated",
]
