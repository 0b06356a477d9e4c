"""``make demo``: the main job on this machine's real telemetry, with kills and an outage in the middle.

telemetry   what is measured
worker      the child processes: two writers, a reader, the test server
processes   how they are started, killed and stopped, so that none is left behind
drama       what happens when
ledger      the demo's own count of messages, and whether it balances
screen      what is seen meanwhile and at the end
__main__    the command
"""
