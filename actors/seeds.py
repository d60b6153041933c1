"""Seeds named by what they are for: one pure function turns a path such as ("shuffle", 7, 3) into a seed.
It never reads or writes a generator's state."""

from __future__ import annotations

import operator
from hashlib import blake2b


def seed_of(*parts: int | str) -> int:
    """A seed in 0..2**63-1 that depends on every part, its type and its place, and on nothing else.

    The same parts give the same seed in every process and Python version; 1 and "1" differ, ("ab",) and
    ("a", "b") differ. Anything that is neither a string nor an integer raises TypeError.
    """
    digest = blake2b(digest_size=8)
    for part in parts:
        kind, text = ("s", part) if isinstance(part, str) else ("i", str(operator.index(part)))
        data = text.encode()
        digest.update(f"{kind}{len(data)}:".encode() + data)
    return int.from_bytes(digest.digest(), "big") >> 1
