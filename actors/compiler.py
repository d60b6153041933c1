"""Torch's compiler stays out of processes that compile nothing: its import takes 1.5 s of CPU, in every block."""

from __future__ import annotations

import inspect
import os

import torch


def keep_compiler_away_from_optimizers() -> None:
    """Spare a process the import by which torch hides an optimizer's methods from the compiler; none is compiled here.

    A torch that does this another way imports it as before.
    """
    for name in ("add_param_group", "state_dict", "load_state_dict", "zero_grad"):
        method = inspect.unwrap(getattr(torch.optim.Optimizer, name))
        setattr(method, "__dynamo_disable", method)


def prefer_deterministic(is_deterministic: bool, *, compiles: bool) -> None:
    """Choose torch's deterministic algorithms or warn; its compiler is told, too, where it `compiles`."""
    if is_deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the first product on a GPU is computed
    if compiles:
        torch.use_deterministic_algorithms(is_deterministic, warn_only=True)
    else:
        torch.set_deterministic_debug_mode("warn" if is_deterministic else "default")
