"""A stopwatch that keeps every piece of computing by itself: seconds and core seconds, batch by batch."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from actors.stretch import Stretch
from actors.times import Times
from orchestrator.chain_profile import Work


class _Flops(TorchDispatchMode):
    """Counts floating-point operations by torch's own formulas; its FlopCounterMode refuses autograd.grad."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if (count := flop_registry.get(func._overloadpacket)) is not None:
            self.count += count(*args, **(kwargs or {}), out_val=out)
        return out


class Inspection:
    """One batch that is looked at instead of timed: its operations, and what its passes keep for later."""

    def __init__(self) -> None:
        self.flops = 0
        self.kept: dict[int, int] = {}
        """Address of a storage -> its bytes."""
        self.own: set[int] = set()
        """Storages that are there anyway: parameters and buffers."""

    @contextmanager
    def looking(self, work: str) -> Iterator[None]:
        """Count the body of a `with`; an update keeps nothing."""
        counter = _Flops()
        with ExitStack() as stack:
            stack.enter_context(counter)
            if work != "update":
                stack.enter_context(torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor))
            yield
        self.flops += counter.count

    @property
    def kept_bytes(self) -> int:
        """Bytes that the passes of the batch have kept."""
        return sum(size for address, size in self.kept.items() if address not in self.own)

    def _keep(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self.kept[storage.data_ptr()] = storage.nbytes()
        return tensor


class MeasuredTimes(Times):
    """Keeps the pieces of every step.

    Args:
        inspected: step of the batch that is inspected; None: none is.
        num_threads: that compute; the core seconds of one are this thread's own.
        settle: waits until the device has done what it was told.
        stretch: of the actor, if its slowness is simulated.
    """

    def __init__(
        self, inspected: int | None, num_threads: int, settle: Callable[[], None], stretch: Stretch | None
    ) -> None:
        super().__init__()
        self.inspected, self.inspection = inspected, Inspection()
        self.stretch = stretch
        self.step = -1
        self.pieces: dict[str, dict[int, list[Work]]] = defaultdict(lambda: defaultdict(list))
        """Kind of work -> step -> its pieces."""
        self._cpu = time.thread_time if num_threads == 1 else time.process_time
        self._settle = settle

    def at(self, step: int, batch_id: int | None = None) -> None:
        """Say in the course of which batch the thread works."""
        self.step = step

    @contextmanager
    def within(self, share: str, work: str = "") -> Iterator[None]:
        """Count the body of a `with`, and keep it if it is computing."""
        with ExitStack() as stack:
            if share == "compute" and self.step == self.inspected:
                stack.enter_context(self.inspection.looking(work))
            wall, cpu = time.perf_counter(), self._cpu()
            with super().within(share, work):
                yield
                self._settle()
            if share == "compute":
                self.pieces[work][self.step].append(Work(time.perf_counter() - wall, self._cpu() - cpu))

    def typical(self, first: int, last: int, accumulate: int) -> tuple[dict[str, Work], dict[str, float]]:
        """Return one typical piece of each kind of work, and how often each comes in a step.

        Args:
            first: step of the first batch that counts.
            last: that of the last one.
            accumulate: batches per update: only every so many times does `update` do anything.
        """
        works, calls = {}, {}
        for kind, steps in self.pieces.items():
            starts = range(first, last - accumulate + 2, accumulate)
            groups = [[piece for t in range(s, s + accumulate) for piece in steps.get(t, ())] for s in starts]
            groups = [group for group in groups if group]
            if not groups:
                continue
            number = max(len(group) for group in groups)
            groups = [group for group in groups if len(group) == number]
            works[kind] = Work(_middle(groups, lambda w: w.wall_s), _middle(groups, lambda w: w.cpu_s))
            calls[kind] = number / accumulate
        return works, calls


def _middle(groups: Sequence[Sequence[Work]], of: Callable[[Work], float]) -> float:
    return median(sum(map(of, group)) / len(group) for group in groups)
