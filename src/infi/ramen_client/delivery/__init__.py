"""Delivery: the way of a message from the queue to the server.

``transport`` (over libcurl) with ``route`` (its network options), ``exchange`` (a POST and its answer), ``failures``
(why no answer came, in words) and ``backoff`` know nothing of queues and of verdicts: they move bytes, wait, and say
what became of it. ``judging`` says what an answer means, ``courier`` decides what is sent and what becomes of the message.
"""
