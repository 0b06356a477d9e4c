"""The protocol page is true: its exchanges are run against the collector, its table of codes is that of the code."""

import re
import socket
from pathlib import Path

import pytest

from infi.ramen_protocol import BatchOffer, Code, Rule, status_of
from infi.ramen_server import CollectorServer, Limits, ServerConfig, Settings

PAGE = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()
EXCHANGES = re.findall(r"^```http\n(.*?)\n```", PAGE, re.DOTALL | re.MULTILINE)
REQUEST, ACCEPTED, DROPPED, BATCH, RESULTS = EXCHANGES


@pytest.fixture
def exchange(tmp_path):
    """Send the bytes of a request; the answer's bytes, without the time."""
    directory = tmp_path / "data"
    with CollectorServer(ServerConfig(directory, port=0, limits=Limits(min_free_bytes=0))) as server:
        with Settings(directory) as settings:
            settings.add_rule(Rule(category="events", data_type="debug"))

        def send(text):
            head, _, body = text.replace("TOKEN", server.first_token).partition("\n\n")
            head = re.sub(r"Content-Length: \d+", f"Content-Length: {len(body)}\r\nConnection: close", head)
            with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
                connection.sendall("\r\n".join(head.splitlines()).encode() + b"\r\n\r\n" + body.encode())
                answer = b"".join(iter(lambda: connection.recv(4096), b"")).decode()
            return re.sub(r"^(date|connection): .*\n", "", answer.replace("\r\n", "\n"), flags=re.MULTILINE)

        yield send


def test_the_request_of_the_page_is_answered_as_the_page_says(exchange):
    assert exchange(REQUEST) == ACCEPTED


def test_a_message_under_a_rule_is_answered_as_the_page_says(exchange):
    assert exchange(REQUEST.replace("/metrics/", "/events/").replace("san_totals", "debug")) == DROPPED


def test_the_batch_of_the_page_is_answered_as_the_page_says(exchange):
    assert exchange(BATCH + "\n") == RESULTS


@pytest.mark.parametrize("request_text", [REQUEST, BATCH + "\n"])
def test_a_request_s_length_is_that_of_its_body(request_text):
    head, _, body = request_text.partition("\n\n")
    assert f"Content-Length: {len(body)}\n" in head + "\n"


def test_the_offer_of_the_page_is_the_one_of_its_answers():
    (shown,) = re.findall(r"^    Ramen-Batch: (.*)$", PAGE, re.MULTILINE)
    assert f"ramen-batch: {shown}\n" in ACCEPTED
    assert BatchOffer.parse(shown).header() == shown


def test_the_codes_of_the_page_are_those_of_the_protocol():
    named = re.findall(r"^\| (\d{3}) \| `([A-Z_]+)`", PAGE, re.MULTILINE)
    assert {name: int(status) for status, name in named} == {code.value: status_of(code) for code in Code}
