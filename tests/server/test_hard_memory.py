"""Memory of a real collector process: bombs of 10 GB, bodies without an end (many large messages at once: tests/system)."""

import os
import zlib
from contextlib import suppress
from pathlib import Path

import pytest
from hard_kit import CollectorProcess
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from wire_kit import Wire, code, packed, post_at_once, request

from infi.ramen_protocol import BodyTooLarge, CodingError, decode_body
from infi.ramen_server.admission import is_json

MIB = 1024 * 1024
GIB = 1024 * MIB
MAX = 64 * MIB
END_OF_DEFLATE = b"\x03\x00"


def deflated(size):
    """A deflate stream of so many spaces (a multiple of a MiB), made in no time: one flushed block again and again."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(b" " * MIB) + packer.flush(zlib.Z_FULL_FLUSH)
    return block * (size // MIB) + END_OF_DEFLATE


def as_zlib(size):
    return b"\x78\x9c" + deflated(size) + bytes(4)  # the checksum is wrong; nobody gets so far


def as_gzip(size):
    spaces = b" " * min(size, 16 * MIB)
    trailer = zlib.crc32(spaces).to_bytes(4, "little") + (size % 2**32).to_bytes(4, "little")
    return b"\x1f\x8b\x08" + bytes(6) + b"\xff" + deflated(size) + trailer


BOMBS = {
    "zlib under the label gzip": (lambda: as_zlib(10 * GIB), b"gzip", 413),
    "gzip": (lambda: as_gzip(10 * GIB), b"gzip", 413),
    "x-gzip": (lambda: as_gzip(10 * GIB), b"x-gzip", 413),
    "deflate": (lambda: as_zlib(10 * GIB), b"deflate", 413),
    "1,024 members of 10 MiB": (lambda: as_gzip(10 * MIB) * 1024, b"gzip", 413),
    "one member too many": (lambda: as_gzip(0) * 1025, b"gzip", 400),
    "members in members": (lambda: as_gzip(0) * 1000 + as_gzip(10 * GIB), b"gzip", 413),
    "a bomb in a bomb": (lambda: zlib.compress(as_gzip(10 * GIB)), b"gzip", 400),
    "a bomb in a bomb, as said": (lambda: zlib.compress(as_gzip(10 * GIB)), b"gzip, gzip", 415),
}


@pytest.fixture(scope="module")
def collector(tmp_path_factory):
    with CollectorProcess(tmp_path_factory.mktemp("memory") / "data") as collector:
        with Wire(collector) as wire:
            assert wire.post("first").status == 202
        yield collector


def cpu_seconds(collector):
    fields = Path(f"/proc/{collector.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_of_10_gb_is_refused_early_in_little_memory(collector, name):
    make, label, status = BOMBS[name]
    body = make()
    assert len(body) < 12 * MIB
    collector.forget_peak()
    before, cpu_before = collector.memory("VmRSS"), cpu_seconds(collector)
    with Wire(collector) as wire:
        answer = wire.post("bomb", body, b"Content-Encoding: " + label + b"\r\n")
        assert answer.status == status
        assert code(answer) in ("PAYLOAD_TOO_LARGE", "BAD_REQUEST", "UNSUPPORTED_MEDIA_TYPE")
        assert wire.post(f"after {len(body)}".replace(" ", "-")).status == 202, "the connection goes on"
    # The body as it came, at most twice (in parts, and as one), and what may come out of it, once.
    assert collector.memory("VmHWM") - before < 2 * len(body) + MAX + 24 * MIB
    assert cpu_seconds(collector) - cpu_before < 5, "10 GB take several times as long to decode"


def test_bombs_at_once_stay_within_the_memory_for_bodies_and_hold_up_nobody(collector):
    bomb = as_zlib(10 * GIB)
    collector.forget_peak()
    statuses = post_at_once(collector, [packed(bomb, f"many-{number}") for number in range(12)])
    assert set(statuses) <= {413, 503}
    assert 413 in statuses
    assert collector.memory("VmHWM") < 400 * MIB
    with Wire(collector) as wire:
        assert wire.post("after-many").status == 202


def test_bodies_without_an_end_are_cut_off_at_their_bound(collector):
    collector.forget_peak()
    before = collector.memory("VmRSS")
    for headers in (b"Transfer-Encoding: chunked\r\n", b"Content-Length: %d\r\n" % MAX):
        with Wire(collector) as wire:
            wire.send(request(collector.first_token, "endless", b"", headers))
            chunk = (b"100000\r\n" + b" " * MIB + b"\r\n") if b"chunked" in headers else b" " * MIB
            with suppress(OSError):
                for _ in range(MAX // MIB + (2 if b"chunked" in headers else 0)):
                    wire.send(chunk)
            assert wire.answer().status in (400, 413)
    assert collector.memory("VmHWM") - before < 5 * MAX


def test_heads_and_pipelines_without_an_end_take_little(collector):
    collector.forget_peak()
    before = collector.memory("VmRSS")
    for begin, more in (
        (b"POST / HTTP/1.1\r\n", b"a: b\r\n"),
        (b"POST /", b"a"),
        (b"", b"\r\n"),
        (
            request(collector.first_token, "trailers", b"", b"Transfer-Encoding: chunked\r\n") + b"0\r\n",
            b"a: b\r\n",
        ),
        (
            request(collector.first_token, "extensions", b"", b"Transfer-Encoding: chunked\r\n"),
            b"1;" + b"x" * 4000 + b"\r\n \r\n",
        ),
        (b"", request("wrong", "pipelined", b"{}")),
    ):
        with Wire(collector) as wire, suppress(OSError):
            wire.socket.settimeout(2)  # where it does not cut us off, it stops reading
            wire.send(begin)
            for _ in range(64):
                wire.send(more * (MIB // len(more)))
    assert collector.memory("VmHWM") - before < 100 * MIB
    with Wire(collector) as wire:
        assert wire.post("after-heads").status == 202


# Decoder and check


@pytest.mark.parametrize("character", ["ä", "€", "\U0001f600"])
def test_text_is_utf_8_wherever_the_pieces_of_the_check_are_cut(character):
    text = character.encode()
    for lead in range(len(text)):
        payload = b'"' + b"x" * lead + text * (MIB // len(text)) + b'"'
        assert is_json(payload)
        assert not is_json(payload.replace(text, text[:-1], 1))
        assert not is_json(payload[: 256 * 1024] + b"\xff" + payload[256 * 1024 :])
    assert not is_json(payload[:-1] + text[:1] + b'"')
    assert not is_json(payload + text[:1])


@hypothesis_settings(max_examples=60)
@given(
    st.lists(st.integers(0, 3 * MIB), min_size=1, max_size=4),
    st.integers(-2, 2),
    st.sampled_from([b" ", b"0123456789", b"\x00\xff"]),
)
def test_members_of_any_size_are_put_together_and_the_bound_is_exact(sizes, off, pattern):
    plain = [(pattern * (size // len(pattern) + 1))[:size] for size in sizes]
    members = []
    for part in plain:
        packer = zlib.compressobj(1, zlib.DEFLATED, 31)
        members.append(packer.compress(part) + packer.flush())
    whole, body = b"".join(plain), b"".join(members)
    limit = max(len(whole) + off, 0)
    if limit < len(whole):
        with pytest.raises(BodyTooLarge):
            decode_body(body, "gzip", max_bytes=limit)
    else:
        assert decode_body(body, "gzip", max_bytes=limit) == whole
        with pytest.raises(CodingError, match="cut short"):
            decode_body(body[:-1], "gzip", max_bytes=limit)
