"""Every error that the client raises, in one tree.

Each message says what happened and what to do. No message ever holds the token.

    RamenError
    ├── ValidationError            a configuration field is wrong (also a ValueError)
    │   └── WrongConfig            … or is no configuration of its kind at all (also an AssertionError)
    ├── InvalidMessage             push() was given something that is no message (also AssertionError, ValueError)
    │   └── MessageTooLarge        … or one larger than max_message_bytes or the queue itself
    ├── AuthenticationError        the server refused the token (401, 403); 1.x spells it AutheticationError
    └── QueueError                 the queue on disk
        ├── QueueUnusable          cannot be opened: not ours to mend (permission, newer format, no directory)
        ├── QueueGone              the file is no longer at its path
        ├── QueueClosed            close() was called
        ├── QueueForked            the process was forked in a way no hook saw
        ├── QueueBusy              another process held the file for too long
        ├── QueueFull              the queue is at its limit and overflow is "reject"; nothing was stored
        ├── DiskFull               no space left; nothing was stored
        └── DurabilityError        stored, but not known to be on the platter; carries the reqid
"""

from __future__ import annotations


class RamenError(Exception):
    """The root of this package's errors."""


class ValidationError(RamenError, ValueError):
    """A configuration field has a value that is not allowed."""


class WrongConfig(ValidationError, AssertionError):
    """A writer or a reader was built with something that is no configuration of its kind.

    It is an ``AssertionError`` because 1.x raised one.
    """


class InvalidMessage(RamenError, AssertionError, ValueError):
    """What was pushed is no message; nothing was stored.

    It is an ``AssertionError`` because 1.x raised one.
    """


class MessageTooLarge(InvalidMessage):
    """The message is larger than ``max_message_bytes`` or than the whole queue may be; nothing was stored."""


class AuthenticationError(RamenError):
    """The server refused the token (401 or 403); the messages stay in the queue."""


AutheticationError = AuthenticationError
"""1.x's spelling of the name."""


class QueueError(RamenError):
    """The queue on disk cannot do what was asked; nothing was stored."""


class QueueUnusable(QueueError):
    """The queue cannot be opened, and mending it is not ours to do; the file stays untouched."""


class QueueGone(QueueError):
    """The queue's file was deleted, moved or replaced under a living object; build a new one."""


class QueueClosed(QueueError):
    """``close()`` was called on this object."""


class QueueForked(QueueError):
    """The process was forked without Python's fork hooks while the queue was open; nothing is written."""


class QueueBusy(QueueError):
    """Another process held the queue's file for longer than we wait; nothing was stored, try again."""


class QueueFull(QueueError):
    """The queue is at its limit (``max_queue_size``, ``min_free_disk``) and ``overflow`` is "reject"; nothing was stored.

    Push again when the reader has delivered some.
    """


class DiskFull(QueueError):
    """No space is left on the disk (or in the quota); nothing was stored."""


class DurabilityError(QueueError):
    """The message is in the queue, but the disk did not confirm it.

    Its outcome is unknown: it may be delivered, or lost in a power cut. Pushing it again with the same
    ``reqid`` is safe, since the server recognises it.
    """

    def __init__(self, message: str, reqid: str) -> None:
        super().__init__(message)
        self.reqid = reqid

    def __reduce__(self) -> tuple[type[DurabilityError], tuple[str, str]]:
        return type(self), (str(self), self.reqid)
