"""A bounded store of messages that a block trains on more than once, or not at all; every one is accounted for.

Pure: no torch, no threads. A message's version is its producer's when it was made; on one edge it only rises.
Belilovsky et al. 2020 (1901.08164, section 4) train from such buffers; the limiter on samples per insert is
that of Reverb (Cassirer et al. 2021, 2102.04736).
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

Item = TypeVar("Item")

Order = Literal["fifo", "lifo", "uniform", "least_used"]
_COUNTS = ("num_inserted", "trained", "num_bytes", "_newest_version", "_promised", "_owed")
OnFull = Literal["block", "drop_oldest", "drop_newest"]


@dataclass(frozen=True)
class ReplaySettings:
    """How a buffer keeps and gives out.

    Args:
        capacity: most messages.
        capacity_bytes: most bytes; None: no limit. One message may always be held.
        order: which message is trained on next. `least_used` takes the newest of those used least.
        max_reuse: uses after which a message is gone; None: no limit.
        on_full: whether a full buffer makes its producer wait, or drops its oldest or the new message.
        samples_per_insert: uses that go with one arrival on average; None: no limit.
        tolerance: how far uses and arrivals may be apart from that, in uses.
    """

    capacity: int = 10
    capacity_bytes: int | None = None
    order: Order = "least_used"
    max_reuse: int | None = 1
    on_full: OnFull = "block"
    samples_per_insert: float | None = None
    tolerance: float | None = None

    def __post_init__(self) -> None:
        if reason := cannot_progress(self):
            raise ValueError(reason)


def cannot_progress(settings: ReplaySettings, bound: int | None = None) -> str | None:
    """Return why a buffer with these settings and this staleness bound could stop for ever, None if it can't."""
    if bound is not None and settings.samples_per_insert is not None:
        return "samples_per_insert with a staleness bound: it may forbid the use that pacing waits for; leave one out"
    if settings.capacity < 1:
        return f"capacity {settings.capacity}, expected at least 1"
    if settings.max_reuse is not None and settings.max_reuse < 1:
        return f"max_reuse {settings.max_reuse}, expected at least 1"
    if settings.on_full == "block" and settings.max_reuse is None:
        return "on_full block without max_reuse: nothing would ever leave a full buffer; set max_reuse or drop_oldest"
    ratio = settings.samples_per_insert
    if ratio is None:
        return None
    if ratio <= 0:
        return f"samples_per_insert {ratio:g}, expected more than 0"
    if settings.tolerance is not None and settings.tolerance < max(1.0, ratio):
        least = max(1.0, ratio)
        return f"tolerance {settings.tolerance:g}, expected at least {least:g}, one use or one arrival more; raise it"
    if settings.max_reuse is not None and ratio > settings.max_reuse:
        return f"samples_per_insert {ratio:g} above max_reuse {settings.max_reuse}: uses would never catch up; lower it"
    if settings.on_full == "block" and ratio != settings.max_reuse:
        return (
            f"samples_per_insert {ratio:g} with on_full block and max_reuse {settings.max_reuse}: a full buffer waits "
            f"for max_reuse uses of every message; leave samples_per_insert out or drop_oldest"
        )
    return None


@dataclass
class Entry(Generic[Item]):
    """A message in the buffer."""

    item: Item
    version: int
    num_bytes: int
    num_uses: int = 0


class ReplayBuffer(Generic[Item]):
    """The buffer of one consumer on one edge.

    Args:
        settings: how it keeps and gives out.
        draw: returns a number in 0 <= x < n for the order `uniform`; must be deterministic.

    `trained`, `dropped` (by reason) and `len()` account for every message that was inserted.
    """

    def __init__(self, settings: ReplaySettings, draw: Callable[[int], int]) -> None:
        self.settings = settings
        self.draw = draw
        self.num_inserted = 0
        self.trained = 0
        self.dropped: Counter[str] = Counter()
        self.num_bytes = 0
        self._entries: OrderedDict[int, Entry[Item]] = OrderedDict()
        self._newest_version = -1
        self._promised = 0
        self._owed = 0.0
        """Uses that go with what has arrived, less those that there were; where the limiter looks at it."""

    def __len__(self) -> int:
        return len(self._entries)

    # ------------------------------------------------------------------ arrivals

    def takes(self) -> bool:
        """Whether the consumer should fetch another message now."""
        if self.settings.on_full == "block" and len(self._entries) >= self.settings.capacity:
            return False
        return self.settings.samples_per_insert is None or self._owed <= self._tolerance

    def fits(self, num_bytes: int) -> bool:
        """Whether a message that has been fetched can be inserted now; one that can't waits at the consumer."""
        return self.settings.on_full != "block" or not self._is_full(num_bytes)

    def is_old(self, version: int) -> bool:
        """Whether a message as new as this, or newer, has come before."""
        return version <= self._newest_version

    def insert(self, item: Item, version: int, num_bytes: int) -> None:
        """Add a message that has arrived; a full buffer drops what `on_full` says.

        Raises:
            ValueError: its version is not above that of the message before, or it does not fit.
        """
        if self.is_old(version):
            raise ValueError(f"version {version} after {self._newest_version}: versions on an edge rise")
        if not self.fits(num_bytes):
            raise ValueError(f"{num_bytes} bytes into a full buffer that blocks; ask `fits` first")
        self._newest_version = version
        key, self.num_inserted = self.num_inserted, self.num_inserted + 1
        while self._entries and self._is_full(num_bytes):
            if self.settings.on_full == "drop_newest":
                self.dropped["full"] += 1
                return
            self._remove(next(iter(self._entries)), "full")
        self._owed += self.settings.samples_per_insert or 0.0
        self._entries[key] = Entry(item, version, num_bytes)
        self.num_bytes += num_bytes

    def _is_full(self, more_bytes: int) -> bool:
        """One message may always be held, however large it is."""
        limit = self.settings.capacity_bytes
        too_large = limit is not None and self.num_bytes + more_bytes > limit
        return len(self._entries) >= self.settings.capacity or (bool(self._entries) and too_large)

    # ------------------------------------------------------------------ uses

    def can_sample(self) -> bool:
        """Whether there is something that may be trained on now."""
        if not self._entries:
            return False
        return self.settings.samples_per_insert is None or 1 - self._owed <= self._tolerance

    def sample(self, needed_below: int = 0) -> Entry[Item]:
        """Return the message to train on next; one that has been used often enough is gone from the buffer.

        Args:
            needed_below: an unused message of a lower version goes first: its producer waits for that.
        """
        key = self._choose(needed_below)
        entry = self._entries[key]
        entry.num_uses += 1
        if self.settings.samples_per_insert is not None:
            self._owed -= 1
        if self._is_used_up(entry):
            self._remove(key, "used up")
        return entry

    def _is_used_up(self, entry: Entry[Item]) -> bool:
        return self.settings.max_reuse is not None and entry.num_uses >= self.settings.max_reuse

    def _choose(self, needed_below: int) -> int:
        keys = list(self._entries)
        for key, entry in self._entries.items():
            if entry.num_uses == 0 and entry.version < needed_below:
                return key
        match self.settings.order:
            case "fifo":
                return keys[0]
            case "lifo":
                return keys[-1]
            case "uniform":
                return keys[self.draw(len(keys))]
            case _:
                return min(reversed(keys), key=lambda key: self._entries[key].num_uses)

    # ------------------------------------------------------------------ staleness

    def promise(self, producer_version: int, bound: int | None) -> int:
        """Return a version below which nothing will be trained on again, and let go of what is below it.

        It passes a message only once that has been trained on, so that pacing never discards; messages
        that have not arrived yet are newer than all that have.

        Args:
            producer_version: uses that the producer is known to have finished.
            bound: S; None: no message needs to be let go of.
        """
        unused = [entry.version for entry in self._entries.values() if entry.num_uses == 0]
        oldest = min(unused, default=self._newest_version + 1)
        if bound is None:
            promised = min([oldest, *(entry.version for entry in self._entries.values())])
        else:
            promised = min(oldest, producer_version + 1 - bound)
        self.retire(promised, "retired")
        return self._promised

    def retire(self, version: int, reason: str) -> None:
        """Train on nothing below a version any more, and let go of it."""
        self._promised = max(self._promised, version)
        for key in [key for key, entry in self._entries.items() if entry.version < self._promised]:
            self._remove(key, reason)

    def is_retired(self, version: int) -> bool:
        """Whether a message of this version may not be trained on any more."""
        return version < self._promised

    def resize(self, settings: ReplaySettings) -> None:
        """Go on with other settings; what was used often enough is gone, and what no longer fits, oldest first.

        The limiter begins anew: what was used and came before could forbid every use and every arrival for long,
        or for ever. Where a full buffer blocks, room comes from uses only, so those that its entries have left count.
        """
        self.settings = settings
        for key in [key for key, entry in self._entries.items() if self._is_used_up(entry)]:
            self._remove(key, "used up")
        while len(self._entries) > settings.capacity or (len(self._entries) > 1 and self._is_over_bytes()):
            self._remove(next(iter(self._entries)), "resized")
        left = [(settings.max_reuse or 0) - entry.num_uses for entry in self._entries.values()]
        self._owed = float(sum(left)) if settings.on_full == "block" else 0.0

    def discard(self, reason: str) -> None:
        """Drop everything that is left."""
        for key in list(self._entries):
            self._remove(key, reason)

    # ------------------------------------------------------------------ state

    def state(self, plain: Callable[[Item], Any]) -> dict[str, Any]:
        """Return the entries in their order, with their uses, and all counts; `plain` makes an item plain."""
        counts = {name: getattr(self, name) for name in _COUNTS}
        entries = [
            {"key": key, "item": plain(e.item), "version": e.version, "num_bytes": e.num_bytes, "num_uses": e.num_uses}
            for key, e in self._entries.items()
        ]
        return {"counts": counts, "dropped": dict(self.dropped), "entries": entries}

    def restore(self, state: Mapping[str, Any], item: Callable[[Any], Item]) -> None:
        """Go on as the buffer that `state` is of."""
        for name, count in state["counts"].items():
            setattr(self, name, count)
        self.dropped = Counter(state["dropped"])
        for kept in state["entries"]:
            entry = Entry(item(kept["item"]), kept["version"], kept["num_bytes"], kept["num_uses"])
            self._entries[kept["key"]] = entry

    @property
    def _tolerance(self) -> float:
        settings = self.settings
        assert settings.samples_per_insert is not None
        return settings.tolerance if settings.tolerance is not None else max(1.0, settings.samples_per_insert)

    def _is_over_bytes(self) -> bool:
        limit = self.settings.capacity_bytes
        return limit is not None and self.num_bytes > limit

    def _remove(self, key: int, reason: str) -> None:
        """A message that has been used counts as trained, whatever makes it leave."""
        entry = self._entries.pop(key)
        self.num_bytes -= entry.num_bytes
        if entry.num_uses:
            self.trained += 1
        else:
            self.dropped[reason] += 1
