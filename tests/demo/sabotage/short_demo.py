"""The demo with no more than the acts in which a sabotage shows; a whole play takes four times as long."""

import sys

from demo import __main__ as demo
from demo.drama import Drama


class Short(Drama):
    def play(self):
        self.begin()
        self.kill_collector()
        self.end()
        return self.played()


demo.Drama = Short
sys.exit(demo.main())
