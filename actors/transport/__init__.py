"""How a message moves from one actor to the next: one contract, several carriers.

outbox.py      the producer's end: bounded, numbered, kept until the consumer has received it
inbox.py       the consumer's end: keeps takes outstanding, puts replies in order, finds gaps
packet.py      header and payload as they travel
in_process.py  carrier: a direct call (tests, the parity reference)
same_process.py carrier: a direct call between threads
same_node.py   carrier: a socket between processes of one machine (frames.py), and memory that the consumer lends
               (lent_memory.py, buffers.py)
ray_pull.py    carrier: a Ray actor call (only this file and the next import Ray)
direct.py      carrier: a Ray actor call, and large tensors straight from memory to memory (Ray Direct Transport)
faulty.py      wraps any carrier: drop, delay, duplicate, reorder or corrupt a named message
"""
