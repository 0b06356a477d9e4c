"""Raw HTTP over a real socket: what is sent is what the test says, and the answers are read byte by byte."""

import json
import socket
import threading
from collections import namedtuple

from collector_kit import target

Answer = namedtuple("Answer", "status headers body")


class Wire:
    def __init__(self, server, tls=None, timeout=20):
        self.server = server
        raw = socket.create_connection((server.config.host, server.port), timeout=timeout)
        self.socket = raw if tls is None else tls.wrap_socket(raw, server_hostname=server.config.host)
        self.buffer = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, data):
        self.socket.sendall(data)
        return self

    def post(self, reqid, body=b"{}", headers=b"", path=None):
        return self.send(request(self.server.first_token, reqid, body, headers, path)).answer()

    def answer(self):
        """Read one answer; None when the connection ends first."""
        try:
            while b"\r\n\r\n" not in self.buffer:
                if not self._more():
                    return None
            head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
            first, *lines = head.decode("latin-1").split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
            length = int(headers.get("content-length", 0))
            while len(self.buffer) < length:
                if not self._more():
                    return None
        except ConnectionResetError:
            return None
        body, self.buffer = self.buffer[:length], self.buffer[length:]
        return Answer(int(first.split()[1]), headers, body)

    def is_closed(self):
        """Wait for the other side's end."""
        try:
            while self._more():
                pass
        except ConnectionResetError:
            pass
        return True

    def _more(self):
        data = self.socket.recv(65536)
        self.buffer += data
        return data


def request(token, reqid, body=b"{}", headers=b"", path=None):
    length = (
        b""
        if b"content-length" in headers.lower() or b"chunked" in headers
        else b"Content-Length: %d\r\n" % len(body)
    )
    return (
        f"POST {path or target(reqid)} HTTP/1.1\r\nHost: x\r\nX-API-Token: {token}\r\n".encode()
        + headers
        + length
        + b"\r\n"
        + body
    )


def code(answer):
    return json.loads(answer.body)["code"]


def packed(body, reqid):
    return reqid, body, b"Content-Encoding: gzip\r\n"


def post_at_once(collector, messages):
    """Post each over a connection of its own; returns the statuses."""
    statuses = []

    def post(reqid, body, headers):
        with Wire(collector) as wire:
            statuses.append(wire.post(reqid, body, headers).status)

    threads = [threading.Thread(target=post, args=message) for message in messages]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return sorted(statuses)
