"""What is compared. Each module here is an adapter to one way of queueing messages.

An adapter may be run by another environment's interpreter, and its import is itself measured (see
``footprint``), so at its top it imports what it measures and nothing else. It holds

    open_writer(directory, **options) -> push         push(sample: dict) stores one message durably
    open_bulk_writer(directory, **options) -> push_all  push_all(samples) stores many durably, at once if it can
    open_reader(directory, port, **options) -> drain  drain() -> int delivers all that is queued to 127.0.0.1:port
    open_forwarder(directory, port, **options) -> forward  forward(wait) -> int delivers beside those who push, until wait() returns
    versions() -> dict[str, str]                      the libraries that make the difference

To add a variant: write an adapter (leave out what the peer cannot do), and name it in ``catalogue``.
"""
