"""Networks that lose, swallow, cut and mislead: every message arrives, once, and a reader stops whatever hangs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.system

RUN = Path(__file__).with_name("network_run.py")
STOPS_WITHIN_SECONDS = 2.0
"""The promise is 0.1 s; a busy machine is no finding."""


@pytest.fixture
def play(need_program: Callable[[str], None], tmp_path: Path) -> Callable[[str], dict[str, Any]]:
    for name in ("unshare", "ip", "nft", "mount"):
        need_program(name)

    def play(scenario: str) -> dict[str, Any]:
        """Play a scenario in a network of its own; its outcome, in which nothing may be lost or twice."""
        environment = {
            name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")
        }
        done = subprocess.run(
            ["unshare", "--net", "--mount", sys.executable, RUN, scenario, tmp_path],
            capture_output=True,
            text=True,
            timeout=100,
            env=environment,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        outcome: dict[str, Any] = json.loads(done.stdout)
        print(scenario, "stops:", outcome["stops"])
        assert outcome["arrived_in_order"]
        assert outcome["books"] == {"pushed": outcome["pushed"], "accepted": outcome["pushed"]}
        assert max(outcome["stops"]) < STOPS_WITHIN_SECONDS
        return outcome

    return play


def test_lost_packets_cost_time_and_nothing_else(play: Callable[[str], dict[str, Any]]) -> None:
    assert play("loss")["pushed"] == 30


def test_a_black_hole_is_a_time_out_and_not_the_end(play: Callable[[str], dict[str, Any]]) -> None:
    (said,) = play("black_hole")["said"]
    assert "within 1 s" in said


def test_a_reset_in_the_middle_of_a_request_keeps_its_message(play: Callable[[str], dict[str, Any]]) -> None:
    outcome = play("reset_in_mid_body")
    assert outcome["duplicates"] == 0
    (said,) = outcome["said"]
    assert "reset" in said or "refused the connection" in said


def test_what_is_sent_again_because_the_answer_was_lost_is_stored_once(
    play: Callable[[str], dict[str, Any]],
) -> None:
    outcome = play("answers_lost")
    assert outcome["duplicates"] > 0
    assert "did not answer within 1 s" in outcome["said"][0] or "no connection" in outcome["said"][0]


def test_a_connection_to_nobody_is_replaced(play: Callable[[str], dict[str, Any]]) -> None:
    assert play("half_open")["duplicates"] == 0


def test_a_resolver_that_hangs_holds_up_neither_a_stop_nor_what_comes_after(
    play: Callable[[str], dict[str, Any]],
) -> None:
    outcome = play("hanging_resolver")
    assert "the name ramen.example was not resolved within 1 s" in outcome["said"][0]
    assert outcome["duplicates"] == 0


def test_a_server_that_moved_to_another_address_is_found_without_a_restart(
    play: Callable[[str], dict[str, Any]],
) -> None:
    assert play("moved_server")["duplicates"] == 0


def test_an_address_of_ipv6_that_swallows_everything_is_passed_over(
    play: Callable[[str], dict[str, Any]],
) -> None:
    outcome = play("only_one_kind")
    assert outcome["duplicates"] == 0
