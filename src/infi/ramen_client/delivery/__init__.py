"""Delivery: the way of a message from the queue to the server.

This package holds the HTTP transport (``transport``, over libcurl), its network options (``route``), its
failures in words (``failures``) and the waiting between attempts (``backoff``). It knows nothing of queues
and of verdicts: it moves bytes, and says what became of them.
"""
