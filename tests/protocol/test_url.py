"""The URL of a message, built and parsed, and the origin that it is posted to."""

from __future__ import annotations

import string
from dataclasses import fields, replace
from urllib.parse import urlsplit

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from infi.ramen_protocol import (
    MAX_REQID_BYTES,
    Code,
    Envelope,
    RefusedRequest,
    message_path,
    message_target,
    origin,
    parse_target,
)
from infi.ramen_protocol.url import MAX_SYSTEM_SERIAL, MAX_TARGET_CHARS

NAMES = st.text(alphabet=string.ascii_letters + string.digits + "_-", min_size=1, max_size=40)
VERSIONS = st.text(alphabet=string.ascii_letters + string.digits + "._-", min_size=1, max_size=40)
REQIDS = st.text(min_size=1, max_size=300)
ENVELOPES = st.builds(
    Envelope, NAMES, st.integers(0, MAX_SYSTEM_SERIAL), NAMES, NAMES, NAMES, VERSIONS, REQIDS
)
EXAMPLE = Envelope("metrics", 1099, "imx", "san_totals", "v1", "3.0.0.1", "r1")
PATH = "/ramen/v1/metrics/1099/imx.san_totals.v1/"


def refusal(target: str) -> RefusedRequest:
    with pytest.raises(RefusedRequest) as caught:
        parse_target(target)
    assert len(caught.value.details) <= 500
    assert caught.value.details.isprintable()
    return caught.value


def test_the_target_is_the_one_that_1x_sends() -> None:
    assert message_path(EXAMPLE) == PATH
    assert message_target(EXAMPLE) == f"{PATH}?version=3.0.0.1&reqid=r1"


@given(ENVELOPES)
@example(replace(EXAMPLE, reqid="a&b"))
@example(replace(EXAMPLE, reqid="x&reqid=y"))
@example(replace(EXAMPLE, reqid="a+b c%20%"))
@example(replace(EXAMPLE, reqid="\x00\n\x7f#?/;="))
@example(replace(EXAMPLE, reqid="é😀\u2028"))
@example(replace(EXAMPLE, reqid="~._-"))
def test_a_target_is_parsed_to_the_envelope_that_it_was_built_from(envelope: Envelope) -> None:
    target = message_target(envelope)
    assert parse_target(target) == envelope
    assert target.startswith(message_path(envelope) + "?")
    assert set(target) <= set(string.ascii_letters + string.digits + "-._~%/?=&")


@given(ENVELOPES, st.text(min_size=1, max_size=20), st.sampled_from([f.name for f in fields(Envelope)]))
def test_no_text_in_a_message_can_add_a_segment_or_a_query_key(
    envelope: Envelope, text: str, field: str
) -> None:
    """Also where a name is none, as in a row of an old queue."""
    if field != "system_serial":
        envelope = replace(envelope, **{field: text})
    parts = urlsplit(message_target(envelope))
    assert parts.path.count("/") == 6
    assert parts.query.count("&") == 1
    assert parts.query.count("=") == 2
    assert not parts.fragment


def test_a_name_with_a_newline_from_an_old_queue_is_encoded_and_left_to_the_server() -> None:
    target = message_target(replace(EXAMPLE, category="metrics\n"))
    assert target == "/ramen/v1/metrics%0A/1099/imx.san_totals.v1/?version=3.0.0.1&reqid=r1"
    assert refusal(target).status == 400


def test_the_longest_reqid_with_every_byte_escaped_fits() -> None:
    envelope = replace(EXAMPLE, reqid="\x00" * MAX_REQID_BYTES)
    assert parse_target(message_target(envelope)) == envelope


def test_a_lone_surrogate_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="surrogates"):
        message_target(replace(EXAMPLE, reqid="\ud800"))


def test_the_order_of_the_query_does_not_matter() -> None:
    assert parse_target(f"{PATH}?reqid=r1&version=3.0.0.1") == EXAMPLE


def test_an_unescaped_plus_is_a_plus() -> None:
    assert parse_target(f"{PATH}?version=1&reqid=a+b").reqid == "a+b"


@pytest.mark.parametrize(
    "path",
    [
        "", "/", "*", "/ramen", "/ramen/v1/", "/ramen/v2/batch", "/ramen/v1/metrics/1099/imx.san_totals.v1",
        "/ramen/v1/metrics/1099/imx.san_totals.v1/x", "//ramen/v1/metrics/1099/imx.san_totals.v1/",
        "/ramen/v1/metrics/1099/imx.san_totals/", "/ramen/v1/metrics/1099/imx.san.totals.v1/",
        "/ramen/v1/a/b/1099/imx.san_totals.v1/", "/RAMEN/v1/metrics/1099/imx.san_totals.v1/",
        "http://h/ramen/v1/metrics/1099/imx.san_totals.v1/",
    ],
)  # fmt: skip
def test_a_path_of_another_shape_is_not_found(path: str) -> None:
    assert refusal(f"{path}?version=1&reqid=r").code is Code.NOT_FOUND


@pytest.mark.parametrize(
    "path",
    [
        "/ramen/v1//1099/imx.san_totals.v1/", "/ramen/v1/me%74rics/1099/imx.san_totals.v1/",
        "/ramen/v1/metrics/1099/.san_totals.v1/", "/ramen/v1/metrics/1099/imx..v1/", "/ramen/v1/metrics/1099/imx.x./",
        "/ramen/v1/metrics//imx.san_totals.v1/", "/ramen/v1/metrics/-1/imx.san_totals.v1/",
        "/ramen/v1/metrics/01099/imx.san_totals.v1/", "/ramen/v1/metrics/1_0/imx.san_totals.v1/",
        "/ramen/v1/metrics/+1/imx.san_totals.v1/", "/ramen/v1/metrics/1e3/imx.san_totals.v1/",
        "/ramen/v1/metrics/9223372036854775808/imx.san_totals.v1/", f"/ramen/v1/metrics/{'9' * 10000}/imx.x.v1/",
        "/ramen/v1/metrics/1099/imx.san_totals.v1\n/", "/ramen/v1/metrics/\u0663/imx.san_totals.v1/",
        "/ramen/v1/m\u00e4/1099/imx.san_totals.v1/", "/ramen/v1/m m/1099/imx.san_totals.v1/", "/ramen/v1/../1/a.b.c/",
    ],
)  # fmt: skip
def test_a_name_or_serial_that_breaks_its_rule_is_a_bad_request(path: str) -> None:
    assert refusal(f"{path}?version=1&reqid=r").code is Code.BAD_REQUEST


@pytest.mark.parametrize(
    "query",
    [
        "", "?", "?version=1", "?reqid=r", "?version=1&reqid=", "?version=&reqid=r", "?version=1&reqid",
        "?version=1&reqid=a&reqid=b", "?version=1&version=1&reqid=b", "?version=1&reqid=a&b", "?version=1&reqid=a&",
        "?version=1&reqid=a&x=y", "?Version=1&reqid=a", "?version=1&req%69d=a", "?version=1&reqid=%", "?version=1&reqid=%4",
        "?version=1&reqid=%zz", "?version=1&reqid=%C3", "?version=1&reqid=%ED%A0%80", "?version=1&reqid=\u00e9",
        "?version=1&reqid=a b", "?version=1&reqid=a\n", "?version=a%0A&reqid=r", "?version=a/b&reqid=r",
        "?version=1&reqid=" + "x" * (MAX_REQID_BYTES + 1), "?version=1&reqid=" + "%C3%A4" * (MAX_REQID_BYTES // 2 + 1),
    ],
)  # fmt: skip
def test_a_query_without_just_one_good_version_and_reqid_is_a_bad_request(query: str) -> None:
    assert refusal(PATH + query).code is Code.BAD_REQUEST


def test_a_target_beyond_the_limit_is_refused_before_it_is_looked_at() -> None:
    assert parse_target(f"/ramen/v1/{'m' * 8000}/1/a.b.c/?version=1&reqid=r").category == "m" * 8000
    assert "longer than" in refusal("/" + "x" * MAX_TARGET_CHARS).details


@given(
    st.text(max_size=200)
    | st.text(alphabet="/ramenv1.?&=%09+\n", max_size=60).map(lambda tail: PATH[:-1] + tail)
)
def test_any_text_is_parsed_or_refused(target: str) -> None:
    try:
        envelope = parse_target(target)
    except RefusedRequest:
        return
    assert message_path(envelope) == target.partition("?")[0]


@pytest.mark.parametrize(
    ("hostname", "expected"),
    [
        ("ramen.example.com", "https://ramen.example.com"),
        ("ramen.example.com:8443", "https://ramen.example.com:8443"),
        ("ramen.example.com.", "https://ramen.example.com."),
        ("localhost", "https://localhost"),
        ("ramen_server:80", "https://ramen_server:80"),
        ("127.0.0.1:65535", "https://127.0.0.1:65535"),
        ("[::1]", "https://[::1]"),
        ("[2001:db8::1]:443", "https://[2001:db8::1]:443"),
        ("xn--bcher-kva.example", "https://xn--bcher-kva.example"),
        ("host:00080", "https://host:80"),
    ],
)
def test_a_host_with_or_without_a_port_makes_an_origin(hostname: str, expected: str) -> None:
    assert origin(hostname, ssl=True) == expected
    assert origin(hostname, ssl=False) == expected.replace("https", "http")


@pytest.mark.parametrize(
    "hostname",
    [
        "", " ", "http://host", "https://host:1", "host/", "host/path", "user@host", "user:pw@host", "host:", "host:0",
        "host:65536", "host:-1", "host:+1", "host: 1", "host:1x", "host:999999", "host:" + "9" * 5000, "host:\u0663", "host:1:2",
        "::1", "[::1", "::1]", "[]", "[::1]x", "[::1]:", "[fe80::1%eth0]", "[1.2.3.4]", "[host]", "[::g]", "[[::1]]",
        "ho st", "host\n", "\nhost", "host\x00", "host\t", "h\u00f6st", "\u0261oogle", "host?x", "host#x", "a..b", ".host",
        "-host", "host-", "a" * 64, ".".join(["a" * 60] * 5), "host\\x", "host%41", "*", "host,other",
    ],
)  # fmt: skip
def test_anything_else_makes_no_origin(hostname: str) -> None:
    with pytest.raises(ValueError, match=r"must be") as caught:
        origin(hostname, ssl=True)
    assert "pw" not in str(caught.value), "what may be a password is not repeated"


@given(st.text(max_size=60))
def test_an_origin_never_holds_more_than_a_host_and_a_port(hostname: str) -> None:
    try:
        built = origin(hostname, ssl=True)
    except ValueError:
        return
    parts = urlsplit(built)
    assert parts.netloc == built.removeprefix("https://")
    assert (parts.path, parts.query, parts.fragment, parts.username) == ("", "", "", None)
    assert parts.hostname
    assert parts.port is None or 1 <= parts.port <= 65535
