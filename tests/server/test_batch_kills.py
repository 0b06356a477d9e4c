"""A real collector is killed while batches are under way; each is sent again as it is until it is answered."""

import http.client
import random
import signal
import threading
import time
from contextlib import closing

from batch_kit import PATH, head, record
from test_server import Process, reqids

from infi.ramen_protocol import BatchOutcome, Coding, compress_batch, judge_batch

WORKERS, RECORDS, ROUNDS = 4, 25, 4


class Sender(threading.Thread):
    """One lane: freezes a batch, sends it until it is answered, and then the next."""

    def __init__(self, lane, place, over):
        super().__init__(daemon=True)
        self.lane, self.place, self.over = lane, place, over
        self.answered, self.resent = [], 0

    def run(self):
        number = 0
        while not self.over.is_set():
            number += 1
            names = [f"{self.lane}-{number}-{one}" for one in range(RECORDS)]
            self.send(number, b"".join(map(record, names)))
            self.answered += names

    def send(self, number, plain):
        headers = {
            name.decode(): value.decode() for name, value in head(plain, lane=self.lane, number=number)
        }
        while True:
            port, token = self.place
            try:
                with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
                    connection.request(
                        "POST", PATH, compress_batch(plain, Coding.ZSTD), headers | {"X-API-Token": token}
                    )
                    answer = connection.getresponse()
                    found = {name.lower(): value for name, value in answer.getheaders()}
                    judgement = judge_batch(answer.status, found, answer.read(), RECORDS)
            except (OSError, http.client.HTTPException):
                self.resent += 1
                time.sleep(0.01)
                continue
            assert judgement.outcome is BatchOutcome.RESULTS, judgement
            assert {result.code for result in judgement.results} == {"ACCEPTED"}
            return


def test_killed_while_batches_are_under_way_it_has_each_message_once_and_in_the_order_of_its_lane(directory):
    dice, over, place = random.Random(11), threading.Event(), []
    process = Process(directory)
    place[:] = process.port, process.token
    senders = [Sender(f"lane{number}", place, over) for number in range(WORKERS)]
    for sender in senders:
        sender.start()
    for _ in range(ROUNDS):
        before = [len(sender.answered) for sender in senders]
        deadline = time.monotonic() + 30
        while any(len(sender.answered) == was for sender, was in zip(senders, before, strict=True)):
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(dice.uniform(0, 0.02))
        process.end(signal.SIGKILL)
        process = Process(directory, place[0])
    over.set()
    for sender in senders:
        sender.join(30)
        assert not sender.is_alive()
    process.end(signal.SIGTERM)

    stored = reqids(directory)
    for sender in senders:
        own = [reqid for reqid in stored if reqid.startswith(f"{sender.lane}-")]
        assert own == sender.answered, "each once, in order"
    assert sum(sender.resent for sender in senders) >= ROUNDS
