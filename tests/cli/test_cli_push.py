"""`ramen push`: documents and lines, what is wrong with them, and exactly how many were stored."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infi.ramen_cli._json_input import BadInput, Document, read_document, read_either, read_lines
from infi.ramen_cli.main import run
from infi.ramen_client.config import QueueWriterConfig
from infi.ramen_client.queue_writer import QueueWriter
from infi.ramen_protocol import decompress_zlib

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

NAMES = ["metrics", "x", "v1"]


@pytest.fixture
def where(tmp_path: Path) -> list[str]:
    """The options that name the queue."""
    file = tmp_path / "ramen.toml"
    file.write_text(
        f'[ramen]\nsystem_version = "1"\nqueue_dir = "{tmp_path / "queue"}"\nmax_message_bytes = 1000\n'
    )
    return ["--config", str(file), "--sender", "imx", "--system-serial", "7"]


@pytest.fixture
def queued(tmp_path: Path) -> Callable[[], list[tuple[str, bytes]]]:
    """Take all that waits: reqid (of the caller, or empty) and text."""

    def take() -> list[tuple[str, bytes]]:
        fields: dict[str, Any] = {"sender": "imx", "system_serial": 7, "system_version": "1"}
        with QueueWriter(
            QueueWriterConfig(fields, queue_dir=str(tmp_path / "queue"), durability="normal")
        ) as writer:
            items = iter(writer._queue.pop, None)
            return [(item["reqid"] or "", decompress_zlib(item["data"], max_bytes=10**6)) for item in items]

    return take


@pytest.fixture
def push(
    where: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run the command on this input; exit code, stdout, stderr."""

    def call(text: str | bytes, *options: str, names: list[str] = NAMES) -> tuple[int, str, str]:
        given = text.encode() if isinstance(text, str) else text
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given)))
        code = run(["push", *where, *options, *names])
        return code, *capsys.readouterr()

    return call


def test_one_document_is_one_message_as_it_is_written(push: Any, queued: Any) -> None:
    text = '{"big": 123456789012345678901234567890, "exact": 0.1000000000000000055511151231257827021, "e": 1E400}'
    assert push(text + "\n") == (0, "1 message pushed\n", "")
    assert queued() == [("", text.encode())]


def test_a_document_over_several_lines_is_one_message(push: Any, queued: Any) -> None:
    text = '[\n  {"a": 1},\n\n  {"b": 2}\n]'
    for options in ([], ["--json"]):
        assert push(f"\n{text}\n\n", *options) == (0, "1 message pushed\n", "")
        assert queued() == [("", text.encode())]


def test_lines_are_messages_in_their_order_and_blank_ones_are_passed_over(push: Any, queued: Any) -> None:
    for options in ([], ["--ndjson"]):
        assert push('\n{"a": 1}\r\n\n 2 \n"three"', *options)[:2] == (0, "3 messages pushed\n")
        assert [text for _, text in queued()] == [b'{"a": 1}', b"2", b'"three"']


def test_a_file_is_read_and_a_dash_is_stdin(push: Any, queued: Any, tmp_path: Path) -> None:
    (tmp_path / "data.ndjson").write_text("1\n2\n")
    assert push("", names=[*NAMES, str(tmp_path / "data.ndjson")])[0] == 0
    assert push("3", names=[*NAMES, "-"])[0] == 0
    assert [text for _, text in queued()] == [b"1", b"2", b"3"]
    assert push("", names=[*NAMES, str(tmp_path / "none")])[0] == 3


def test_nothing_is_nothing(push: Any, queued: Any) -> None:
    assert push("\n \n") == (0, "0 messages pushed\n", "")
    assert push("", "--ndjson") == (0, "0 messages pushed\n", "")
    assert push("", "--json")[0] == 1
    assert queued() == []


def test_a_byte_order_mark_and_lone_surrogates_pass(push: Any, queued: Any) -> None:
    assert push(b"\xef\xbb\xbf" + rb'"\ud800"')[0] == 0
    assert push(b"\xef\xbb\xbf1\n2\n")[0] == 0
    assert [text for _, text in queued()] == [rb'"\ud800"', b"1", b"2"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": 1}\n{"b": }\n{"c": 3}', "line 2, column 7: this is no JSON: Expecting value"),
        ('1\n\n  {"x": NaN}\n3', "line 3, column 9: JSON has no NaN and no infinities"),
        ('1\n{"NaN": -Infinity}', "line 2, column 9: JSON has no NaN and no infinities"),
        (b'1\n"\xc3\xa4\xff"', "line 2, column 3: this is not UTF-8 text"),
        ("1\n2 3", "line 2, column 3: this is no JSON: Extra data"),
        ('1\n"' + "x" * 1000 + '"\n2', "line 2: the line is longer than the largest message that the queue takes (1000 bytes)"),
        ("1\n" + "[" * 990, "line 2: this nests too deeply"),
    ],
)  # fmt: skip
def test_before_a_bad_line_all_is_pushed_and_after_it_nothing(
    push: Any, queued: Any, text: str | bytes, said: str
) -> None:
    code, out, err = push(text)
    assert (code, out) == (1, "")
    assert err == f"ramen: {said}\n1 message pushed\n"
    assert len(queued()) == 1


def test_a_bad_document_names_line_and_column_and_nothing_is_pushed(push: Any, queued: Any) -> None:
    code, _, err = push('{\n  "a": 1,\n  "b" 2\n}')
    assert code == 1
    assert err == "ramen: line 3, column 7: this is no JSON: Expecting ':' delimiter\n0 messages pushed\n"
    code, _, err = push("[1,\n" + "2,\n" * 1000)
    assert code == 1
    assert "line 1, column" in err, "too long for one document, so the first line is at fault"
    code, _, err = push('"' + "x" * 1000, "--json")
    assert "the document is longer than the largest message" in err
    assert queued() == []


def test_bad_lines_are_passed_over_when_asked_and_counted(push: Any, queued: Any) -> None:
    bad = "".join(f"x{n}\n" for n in range(30))
    code, out, err = push('1\n"' + "y" * 5000 + f'"\n2\n{bad}3\n', "--skip-bad")
    assert (code, out) == (1, "")
    assert "line 2: the line is longer" in err
    assert len(re.findall("^ramen: line", err, re.MULTILINE)) == 20
    assert err.endswith("3 messages pushed (11 more bad lines are not shown)\n")
    assert [text for _, text in queued()] == [b"1", b"2", b"3"]


def test_reqids_are_the_caller_s_or_printed(push: Any, queued: Any) -> None:
    assert push('{\n"a": 1}', "--reqid", "a&b")[0] == 0
    code, out, err = push("1\n2\n", "--print-reqid")
    assert (code, err) == (0, "2 messages pushed\n")
    assert len(set(out.split())) == 2
    assert [reqid for reqid, _ in queued()] == ["a&b", "", ""]


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["--reqid", "1", "--ndjson"], NAMES),
        (["--json", "--skip-bad"], NAMES),
        (["--reqid", "x" * 3000], NAMES),
        ([], ["met rics", "x", "v1"]),
        ([], ["metrics", "x", "v1\n"]),
        ([], ["metrics", "x"]),
        (["--sender", "not a name"], NAMES),
    ],
)
def test_a_wrong_command_line_is_2_and_reads_nothing(
    push: Any, queued: Any, options: list[str], names: list[str]
) -> None:
    assert push("1", *options, names=names)[0] == 2
    assert queued() == []


def test_more_than_a_read_is_pushed_in_order(push: Any, queued: Any) -> None:
    lines = [json.dumps({"n": n, "pad": "p" * (n % 300)}) for n in range(5000)]
    assert push("\n".join(lines)) == (0, "5000 messages pushed\n", "")
    assert [text.decode() for _, text in queued()] == lines


def test_a_queue_that_takes_no_more_says_how_many_it_took(
    push: Any, queued: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from infi.ramen_client.errors import DiskFull

    whole = QueueWriter.push_many
    calls = iter([whole, None])

    def fail_later(self: QueueWriter, messages: Any) -> list[str]:
        if (act := next(calls)) is None:
            raise DiskFull("the disk is full. Free some space.")
        return act(self, messages)

    monkeypatch.setattr(QueueWriter, "push_many", fail_later)
    code, out, err = push("\n".join("1" * 100 for _ in range(700)))
    assert (code, out) == (1, "")
    assert err == "ramen: the disk is full. Free some space.\n500 messages pushed\n"
    monkeypatch.undo()
    assert len(queued()) == 500


def test_ctrl_c_between_a_commit_and_its_count_waits_for_the_count(
    push: Any, queued: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = QueueWriter.push_many

    def interrupted(self: QueueWriter, messages: Any) -> list[str]:
        reqids = whole(self, messages)
        signal.raise_signal(signal.SIGINT)
        return reqids

    monkeypatch.setattr(QueueWriter, "push_many", interrupted)
    former = signal.getsignal(signal.SIGINT)
    assert push("1\n2\n3\n") == (130, "", "3 messages pushed\nInterrupted.\n")
    assert signal.getsignal(signal.SIGINT) is former
    monkeypatch.undo()
    assert len(queued()) == 3


def test_an_input_that_breaks_says_how_many_were_stored(
    where: list[str], queued: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Breaks(io.BytesIO):
        def read1(self, size: int | None = -1, /) -> bytes:
            if piece := super().read1(size):
                return piece
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(Breaks(b"1\n2\n3")))
    assert run(["push", *where, *NAMES]) == 1
    assert (
        capsys.readouterr().err == "ramen: the input cannot be read: Input/output error\n2 messages pushed\n"
    )
    assert len(queued()) == 2


# Processes


@pytest.fixture
def process(where: list[str]) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "infi.ramen_cli", "push", *where, "--print-reqid", *NAMES]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, bufsize=1) as started:
        yield started
        started.kill()


def test_lines_are_stored_as_they_come_and_ctrl_c_says_how_many(
    process: subprocess.Popen[str], queued: Any
) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    for line in ("1\n", "2\n"):
        process.stdin.write(line)
        assert process.stdout.readline(), "stored before the next line comes"
    process.stdin.write("[3")  # not a whole line
    process.stdin.flush()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err == "2 messages pushed\nInterrupted.\n"
    assert len(queued()) == 2


def test_ctrl_c_in_the_middle_of_a_stream_counts_exactly(process: subprocess.Popen[str], queued: Any) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    os.set_blocking(process.stdin.fileno(), False)
    lines = b'{"a": 1}\n' * 5000
    sent = os.write(process.stdin.fileno(), lines)
    assert process.stdout.readline()
    process.send_signal(signal.SIGINT)
    while process.poll() is None:
        try:
            sent += os.write(process.stdin.fileno(), lines)
        except (BlockingIOError, BrokenPipeError):
            process.stdout.readline()
    assert process.returncode == 130
    assert process.stderr is not None
    stored = len(queued())
    assert process.stderr.read() == f"{stored} messages pushed\nInterrupted.\n"
    assert 1 <= stored <= sent // 9


# The reader of the input, by itself


class Pieces:
    """A source that gives its bytes in pieces of these sizes."""

    def __init__(self, data: bytes, sizes: list[int]) -> None:
        self._stream = io.BytesIO(data)
        self._sizes = iter(sizes)

    def read1(self, size: int, /) -> bytes:
        return self._stream.read(min(size, next(self._sizes, size)))


PIECES = st.lists(st.integers(1, 9), max_size=200)


@given(st.lists(st.binary(max_size=12), max_size=20), PIECES, st.sampled_from([read_lines, read_either]))
def test_whatever_comes_each_line_is_a_document_or_named_as_bad(
    lines: list[bytes], sizes: list[int], read: Any
) -> None:
    data = b"\n".join(line.replace(b"\n", b" ") for line in lines)
    found = [one for some in read(Pieces(data, sizes), 10) for one in some]
    for one in found:
        if isinstance(one, Document):
            json.loads(one.text)
            assert one.text in data
            assert len(one.text) <= 10
        else:
            assert isinstance(one, BadInput)
            assert str(one)
    if read is read_lines:
        assert len(found) == sum(
            bool(line.strip()) for line in data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
        )


@given(st.lists(st.recursive(st.none() | st.integers() | st.text(max_size=5), lambda d: st.lists(d, max_size=3)), min_size=1, max_size=8),
       PIECES, st.booleans())  # fmt: skip
def test_what_was_written_is_what_is_read(values: list[Any], sizes: list[int], crlf: bool) -> None:
    texts = [json.dumps(value) for value in values]
    data = ("\r\n" if crlf else "\n").join(texts).encode()
    for read in (read_lines, read_either):
        found = [one for some in read(Pieces(data, sizes), 10**6) for one in some]
        assert [(one.line, one.text.decode()) for one in found if isinstance(one, Document)] == list(
            enumerate(texts, 1)
        )
    indented = json.dumps(values, indent=1)
    for whole in (
        read_document(Pieces(indented.encode(), sizes), 10**6),
        *next(read_either(Pieces(indented.encode(), sizes), 10**6)),
    ):
        assert isinstance(whole, Document)
        assert whole.text.decode() == indented


def test_an_endless_line_takes_no_memory() -> None:
    class Endless:
        reads = 0

        def read1(self, size: int, /) -> bytes:
            self.reads += 1
            return b"x" * size if self.reads <= 100 else b"\n1\n" if self.reads == 101 else b""

    import tracemalloc

    for read in (read_lines, read_either, lambda source, most: [[read_document(source, most)]]):
        tracemalloc.start()
        found = [one for some in read(Endless(), 100_000) for one in some]
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert isinstance(found[0], BadInput)
        assert peak < 4_000_000, "of 25 MB"
