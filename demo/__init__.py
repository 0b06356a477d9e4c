"""``make demo``: the main job on this machine's real telemetry, hurt in every way that the field knows, and counted at the end.

plan        what there is: two queues, who pushes what into which, the rule that the operator will add
settings    the configuration of the queues
telemetry   what is measured
collector, gate, writer, reader
            the child processes; the gate stands between readers and collector: it passes bytes on, or is the fault
lifeline    what they have in common
processes   how they are started, killed and stopped, so that none is left behind
stage       waiting, with one eye on signals and children and one on the screen
drama       what happens when
ledger      the demo's own count of messages
books       whether it balances, in numbers and in words
screen      what is seen meanwhile and at the end
__main__    the command
"""
