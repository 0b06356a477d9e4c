"""Trying the way to the server, step by step: what works, what fails, and what to do.

    diagnosis = diagnose(config)
    for step in diagnosis.steps:
        print(step.name, step.outcome.value, step.text, step.remedy)

One real POST of the protocol's test message goes through the reader's own transport; every step is read off what libcurl says of
this one exchange, so what is tried is what the reader does, and nothing is resolved, connected or verified a second time. The test
message needs no queue, and none is touched.

The steps, in the order of the way; at most one of them failed, and what lies behind it is unknown:

    configuration   the token and its file, the certificate authorities, the client's certificate, the proxy's URL
    name            the server's name has an address; not needed through a proxy, which resolves it (a ``socks5`` one leaves that to us)
    proxy           it can be reached and lets us through
    connection      TCP to the server; not needed through a proxy, which makes it
    tls             the certificate: its chain, its host name, when it expires
    token           the server takes it
    answer          the server takes a message
"""

from __future__ import annotations

import uuid
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from ipaddress import ip_address
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from infi.ramen_protocol import Envelope, Verdict, compress, message_target, origin

from .delivery.failures import FailureKind
from .delivery.judging import judge, request_headers, say_unwelcome
from .delivery.route import proxy_place
from .delivery.transport import Answer, Failure, Request, Transport, route_of
from .errors import ValidationError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from infi.ramen_protocol import Judgement

    from .config import QueueReaderConfig
    from .delivery.exchange import Certificate, Trace
    from .delivery.judging import Headers
    from .delivery.route import Route


class Outcome(Enum):
    """What became of a step."""

    OK = "ok"
    FAILED = "failed"
    UNKNOWN = "unknown"
    """It was not come so far, or the answer does not tell."""
    NOT_NEEDED = "not needed"
    """There is no such part on this way."""


@dataclass(frozen=True, slots=True)
class DiagnosisStep:
    """One part of the way. Texts are one line each, without secrets."""

    name: str
    outcome: Outcome
    text: str
    """What was found; empty where the outcome is unknown because of an earlier step."""
    remedy: str = ""
    """What to do; given with ``FAILED`` alone, and maybe empty there."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What became of one attempt to send a message to ``server`` (``https://host:port``)."""

    server: str
    steps: tuple[DiagnosisStep, ...]

    @property
    def ok(self) -> bool:
        """Whether the server took the test message."""
        return self.failed is None

    @property
    def failed(self) -> DiagnosisStep | None:
        """The step that failed, if one did."""
        return next((step for step in self.steps if step.outcome is Outcome.FAILED), None)


_NAMES = ("configuration", "name", "proxy", "connection", "tls", "token", "answer")

_STEP_OF_KIND = {
    FailureKind.SETUP: "configuration",
    FailureKind.RESOLVE: "name",
    FailureKind.PROXY: "proxy",
    FailureKind.CONNECT: "connection",
    FailureKind.TLS: "tls",
    FailureKind.OVERSIZED: "answer",
}
"""Where these fail. Where a time-out or a broken connection fails depends on how far it had come."""


def diagnose(config: QueueReaderConfig) -> Diagnosis:
    """Try to send a test message with this configuration; it takes at most ``server_timeout`` seconds.

    Raises ``ValidationError`` for a configuration with wrong fields, and nothing for what network, server, token and files do.
    """
    config.validate()
    server = origin(config.hostname, ssl=config.ssl)
    route = route_of(config)
    try:
        headers = request_headers(config)
    except ValidationError as error:  # the token's file
        steps = [DiagnosisStep("configuration", Outcome.FAILED, str(error))]
    else:
        outcome = _post(server + message_target(_test_message(config)), headers, config, route)
        steps = list(_the_way(outcome.trace, config, route))
        if isinstance(outcome, Failure):
            steps = _end_with(outcome, steps)
        else:
            steps += _the_answer(outcome.status, judge(outcome, headers))
    steps += [_unknown(name) for name in _NAMES[len(steps) :]]
    return Diagnosis(server, tuple(steps))


def _test_message(config: QueueReaderConfig) -> Envelope:
    """What every server knows for a test (protocol section 1, "Connection test")."""
    return Envelope(
        "metrics",
        config.system_serial,
        config.sender,
        "test",
        "v1",
        config.system_version,
        uuid.uuid4().hex,
    )


def _post(url: str, headers: Headers, config: QueueReaderConfig, route: Route) -> Answer | Failure:
    request = Request(url, headers, compress(b"{}"), float(config.server_timeout), traced=True)
    transport = Transport(route)
    try:
        transport.start(0, request)
        outcomes = transport.wait(request.timeout_seconds)
        while not outcomes:
            outcomes = transport.wait(request.timeout_seconds)
    finally:
        transport.close()
    return outcomes[0][1]


def _the_way(trace: Trace | None, config: QueueReaderConfig, route: Route) -> Iterator[DiagnosisStep]:
    """What the trace shows of the steps before the token, in their order; unknown: it did not get so far."""
    yield _passed("configuration", _say_configuration(config, route))
    if trace is None:  # nothing was tried
        return
    yield _the_name(trace, config)
    connected = trace.connected_after
    if trace.through_proxy:
        proxy = proxy_place(route.proxy) if route.proxy else "the environment's proxy"
        # A tunnel and TLS inside it come after the connection to the proxy: only what lies behind them shows that they stand.
        through = connected is not None and (trace.secured_after is not None or not config.ssl)
        yield (
            _passed("proxy", f"{proxy} ({trace.address}) lets us through") if through else _unknown("proxy")
        )
        yield DiagnosisStep("connection", Outcome.NOT_NEEDED, "the proxy makes it")
    else:
        yield DiagnosisStep("proxy", Outcome.NOT_NEEDED, "none is configured, nor named by the environment")
        yield (
            _unknown("connection")
            if connected is None
            else _passed("connection", f"{trace.address} accepted after {_milliseconds(connected)}")
        )
    if not config.ssl:
        yield DiagnosisStep("tls", Outcome.NOT_NEEDED, "ssl is false: the token travels in the clear")
    elif trace.secured_after is None:
        yield _unknown("tls")
    else:
        yield _passed("tls", _say_certificate(trace.certificate, route))


def _the_name(trace: Trace, config: QueueReaderConfig) -> DiagnosisStep:
    host = urlsplit(origin(config.hostname, ssl=config.ssl)).hostname or ""
    if trace.through_proxy:
        return DiagnosisStep("name", Outcome.NOT_NEEDED, f"{host} is a matter of the proxy")
    with suppress(ValueError):
        ip_address(host)
        return DiagnosisStep("name", Outcome.NOT_NEEDED, f"{host} is an address")
    if trace.resolved_after is None:
        return _unknown("name")
    return _passed("name", f"{host} was resolved in {_milliseconds(trace.resolved_after)}")


def _end_with(failure: Failure, way: list[DiagnosisStep]) -> list[DiagnosisStep]:
    """The way as far as the failure, which stands at the step that its kind names, or at the first that was not passed."""
    failed = _STEP_OF_KIND.get(failure.kind)
    if failed is None:
        failed = next((step.name for step in way if step.outcome is Outcome.UNKNOWN), "answer")
    index = _NAMES.index(failed)
    steps = (way + [_unknown(name) for name in _NAMES[len(way) :]])[:index]
    return [*steps, DiagnosisStep(failed, Outcome.FAILED, failure.what, failure.remedy)]


def _the_answer(status: int, judgement: Judgement) -> list[DiagnosisStep]:
    taken = _passed("token", "the server takes it")
    if judgement.verdict is Verdict.ACCEPTED:
        return [taken, _passed("answer", f"{status} {judgement.code}: the test message was taken")]
    said = say_unwelcome(status, judgement)
    if judgement.verdict is Verdict.UNAUTHORISED:
        return [DiagnosisStep("token", Outcome.FAILED, said.what, said.remedy)]
    # A server looks at the token before it looks at the message; who answers without the protocol may be no server at all.
    about_the_message = judgement.explained and judgement.verdict in (Verdict.DROPPED, Verdict.REJECTED)
    token = taken if about_the_message else _unknown("token")
    return [token, DiagnosisStep("answer", Outcome.FAILED, said.what, said.remedy)]


def _passed(name: str, text: str) -> DiagnosisStep:
    return DiagnosisStep(name, Outcome.OK, text)


def _unknown(name: str) -> DiagnosisStep:
    return DiagnosisStep(name, Outcome.UNKNOWN, "")


def _say_configuration(config: QueueReaderConfig, route: Route) -> str:
    token = "the token was read from its file" if config.auth_token_file else "there is a token"
    if not config.ssl:
        return token
    identity = f"; client certificate: {route.client_certificate}" if route.client_certificate else ""
    return f"{token}; authorities: {route.ca_file}{identity}"


def _say_certificate(certificate: Certificate | None, route: Route) -> str:
    if certificate is None:
        return f"the certificate is good (authorities: {route.ca_file})"
    return (
        f"the certificate for {certificate.names or 'its host'} is good until {certificate.expires}; issued by "
        f"{certificate.issuer}, which {route.ca_file} vouches for"
    )


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"
