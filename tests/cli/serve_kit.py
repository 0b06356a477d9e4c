"""A real ``ramen serve``, as a process of its own; its requests are made by the product's own client, or by hand."""

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import threading

from infi.ramen_client import QueueReader, QueueReaderConfig, QueueWriter

RAMEN = [sys.executable, "-m", "infi.ramen_cli"]


def environment(**more):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAMEN_")}
    return {**kept, "PYTHONUNBUFFERED": "", **more}


class Serve:
    """Started, and listening, once it is made."""

    def __init__(self, directory, *options, port=0, **more):
        self.directory = directory
        self.process = subprocess.Popen(
            [
                *RAMEN,
                "serve",
                "--data-dir",
                directory,
                "--port",
                str(port),
                "--min-free-bytes",
                "0",
                *options,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(**more),
        )
        self._log = []
        self._more = threading.Condition()
        self._reading = threading.Thread(target=self._read_log, daemon=True)
        self._reading.start()
        first = self.process.stdout.readline()
        assert first.startswith("Listening on "), self.log_after_end()
        self.url = first.removeprefix("Listening on ").strip()
        self.host, _, port = self.url.partition("://")[2].rpartition(":")
        self.port = int(port)
        self.wait_for_log("Started")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self._reading.join()
        self.process.stdout.close()
        self.process.stderr.close()

    def end(self, number=signal.SIGTERM):
        """The exit code."""
        self.process.send_signal(number)
        code = self.process.wait(60)
        self._reading.join()
        return code

    def rest_of_stdout(self):
        return self.process.stdout.read()

    @property
    def log(self):
        with self._more:
            return "".join(self._log)

    def log_after_end(self):
        self.process.wait(60)
        self._reading.join()
        return self.log

    def wait_for_log(self, text):
        with self._more:
            assert self._more.wait_for(lambda: text in "".join(self._log), 60), "".join(self._log)

    def _read_log(self):
        with contextlib.suppress(ValueError):
            for line in self.process.stderr:
                with self._more:
                    self._log.append(line)
                    self._more.notify_all()


def client_config(serve, token, queue_dir, **fields):
    return QueueReaderConfig(
        **{
            "sender": "imx",
            "system_serial": 1099,
            "system_version": "1.0",
            "queue_dir": str(queue_dir),
            "hostname": f"{serve.host}:{serve.port}",
            "auth_token": token,
            "ssl": serve.url.startswith("https"),
            "retry_delay": 0.05,
            **fields,
        }
    )


def deliver(config, *payloads):
    """Push them and deliver everything that waits; how many were delivered."""
    with QueueWriter(config) as writer, QueueReader(config) as reader:
        for payload in payloads:
            writer.push("metrics", "answer", 1, payload)
        return reader.run(blocking=False)


def post(connection, token, reqid):
    """The status of a message sent by hand."""
    target = f"/ramen/v1/metrics/1099/imx.answer.1/?version=1.0&reqid={reqid}"
    connection.request("POST", target, json.dumps({"n": reqid}), {"X-API-Token": token})
    answer = connection.getresponse()
    answer.read()
    return answer.status


def connect(serve, tls=None):
    if tls is None:
        return http.client.HTTPConnection(serve.host, serve.port, timeout=60)
    return http.client.HTTPSConnection(serve.host, serve.port, timeout=60, context=tls)
