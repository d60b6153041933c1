"""How a message moves from one actor to the next: one contract, several carriers.

outbox.py      the producer's end: bounded, numbered, kept until the consumer has received it
inbox.py       the consumer's end: keeps takes outstanding, puts replies in order, finds gaps
packet.py      header and payload as they travel
in_process.py  carrier: a direct call (tests, the parity reference)
same_process.py carrier: a direct call between threads
same_node.py   carrier: a socket between processes of one machine
ray_pull.py    carrier: a Ray actor call (the only file here that imports Ray)
faulty.py      wraps any carrier: drop, delay, duplicate, reorder or corrupt a named message
"""
