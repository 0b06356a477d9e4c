"""The sentences, for facts that are hard to bring about, and what must never stand in them."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from infi.ramen_client.delivery.exchange import Request, read_head
from infi.ramen_client.delivery.failures import Facts, FailureKind
from infi.ramen_client.delivery.route import Route
from infi.ramen_client.delivery.sayings import describe

REQUEST = Request("https://server.example:8443/ramen/", (("X-API-Token", "tell-nobody"),), b"body", 20)
ROUTE = Route("http://user:hunter2@proxy.example:3128", "/etc/ca.pem")


@given(
    st.builds(
        Facts,
        code=st.integers(0, 102),
        detail=st.text().filter(lambda text: "hunter2" not in text)
        | st.sampled_from(["x http://user:hunter2@h", "no user:hunter2@h", "'hunter2 @'"]),
        errno=st.sampled_from([0, 13, 101, 104, 110, 111, 113, 9999]),
        status=st.sampled_from([0, 200, 407]),
        resolved=st.booleans(),
        reached=st.booleans(),
        request_bytes=st.integers(0, 1000),
        body_bytes_sent=st.integers(0, 5),
        through_proxy=st.booleans(),
        tunnel_status=st.sampled_from([0, 200, 403, 407]),
        verify_result=st.integers(0, 70),
        proxy_verify_result=st.integers(0, 70),
    ),
    st.sampled_from([ROUTE, Route(None, None)]),
)
def test_every_failure_is_one_printable_bounded_sentence_without_secrets(facts: Facts, route: Route) -> None:
    failure = describe(facts, REQUEST, route)
    assert failure.text.isprintable()
    assert failure.text.isascii()
    assert 10 < len(failure.text) < 600
    assert "hunter2" not in failure.text
    assert "tell-nobody" not in failure.text
    assert failure.connected == (facts.request_bytes > 0)


def test_an_unreachable_network_is_named() -> None:
    failure = describe(Facts(7, "Failed to connect", errno=113), REQUEST, Route(None, None))
    assert failure.kind is FailureKind.CONNECT
    assert "server.example:8443 cannot be reached (No route to host)" in failure.text


def test_the_host_of_an_unresolved_name_stands_without_its_port() -> None:
    for url, host in (
        ("http://server.example:8443/", "the name server.example cannot"),
        ("http://server.example/", "the name server.example cannot"),
        ("http://[fe80::1]:80/", "the name [fe80::1] cannot"),
        ("http://[fe80::1]/", "the name [fe80::1] cannot"),
    ):
        assert host in describe(Facts(6, ""), Request(url, (), b"", 1), Route(None, None)).text


line = st.sampled_from(
    [
        b"HTTP/1.1 202 OK\r\n",
        b"HTTP/1.0 400\r\n",
        b"HTTP/1.1 100 C\r\n",
        b"\r\n",
        b"A: b\r\n",
        b"a:c\r\n",
        b"HTTP/2 202\r\n",
        b":\r\n",
    ]
) | st.binary(max_size=20)


@given(st.lists(line, max_size=12), st.sampled_from([0, 100, 202, 400]))
@example([b"HTTP/1.0 400\r\n", b""], 400)
def test_a_head_is_read_only_if_it_is_whole_and_of_the_status_that_libcurl_read(
    lines: list[bytes], status: int
) -> None:
    headers = read_head(lines, status)
    if headers is None:
        return
    blank = [index for index, one in enumerate(lines) if one in {b"\r\n", b"\n"}]
    status_lines = [
        index
        for index, one in enumerate(lines)
        if one.startswith((b"HTTP/1.1 %d" % status, b"HTTP/1.0 %d" % status))
    ]
    assert any(first < last for first in status_lines for last in blank)
    assert all(name == name.lower() for name in headers)
