"""What a block's process does not import: it would pay for it at its first step."""

import subprocess
import sys

import pytest

STEP = """
import sys
import torch
from tests.runs import run
run({folder!r}, rule={{"name": {rule!r}}}, training={{"epochs": 1}})
print(sorted(name for name in {names!r} if name in sys.modules))
"""
SLOW = ("sympy", "torch.fx.experimental.symbolic_shapes", "torch._dynamo", "torch._inductor")


@pytest.mark.parametrize("rule", ["local", "backprop"])
def test_a_run_imports_neither_torch_s_compiler_nor_its_symbolic_shapes(tmp_path, rule):
    script = STEP.format(folder=str(tmp_path / "run"), rule=rule, names=SLOW)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
