"""Handing a search over to a server that comes and goes; the real services are followed in test_live.py."""

import time

from conftest import begun, report

from tune.core.trials import PAUSE
from tune.monitor.loggers import HandOver


class Server:
    """A Service that fails while it is `down`."""

    def __init__(self):
        self.down, self.taken = False, []

    def make(self):
        if self.down:
            raise ConnectionError("no answer\nfrom there")
        return self

    def report(self, trial_id, config, event):
        self.make()
        self.taken.append((trial_id, config["x"], event["tokens_seen"]))

    def end(self, trial_id, status):
        self.make()
        self.taken.append((trial_id, status))


def told(hand_over, *events):
    """Hands the events over, and waits until they are worked off."""
    for event in events:
        hand_over(event)
    while not hand_over.queue.empty():
        time.sleep(0.01)
    time.sleep(0.05)


def test_what_a_server_misses_is_missing_there_and_said_once(capfd):
    server = Server()
    server.down = True
    follower = HandOver("--mlflow", server.make, {})
    told(follower, begun("00000", config={"x": 1}), report("00000", 100, 3.0), report("00000", 200, 2.0))
    server.down = False
    told(follower, report("00000", 300, 2.0), begun("00001", config={"x": 2}), report("00001", 100, 2.0, PAUSE))
    follower({"event": "session_end"})
    follower.close()
    assert server.taken == [("00000", 1, 300), ("00001", 2, 100), ("00001", "paused"), ("00000", "paused")]
    said = capfd.readouterr().err
    assert said == "warning: --mlflow: no answer from there; the search goes on, what fails is missing there\n"


def test_a_server_that_is_gone_does_not_hold_up_the_end(capfd):
    server = Server()
    follower = HandOver("--mlflow", server.make, {})
    told(follower, begun("00000", config={"x": 1}), report("00000", 100, 3.0))
    server.report = lambda *values: time.sleep(0.2) or 1 / 0
    for tokens in range(200, 3000, 100):
        follower(report("00000", tokens, 2.0))
    before = time.monotonic()
    follower.close()
    assert time.monotonic() - before < 2 and not follower.thread.is_alive()
    assert capfd.readouterr().err.count("\n") == 1
