import subprocess
import sys

from orchestrator import plan, profiling
from tests.runs import Replacing, config_of

CNN = {"name": "cnn", "channels": [4, 6], "pool_after": [1], "batch_norm": True, "blocks": 2}
WIDE = {"name": "mlp", "widths": [60_000, 60_000], "blocks": 2}


def plan_of(folder, network):
    data = {"name": "generated", "shape": [1, 8, 8]}
    return plan.make_plan(config_of(folder / "run", data=data, network=Replacing(network)))


def in_a_process_of_its_own(code):
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_shapes_of_small_blocks_are_found_without_torch_s_compiler(tmp_path):
    in_a_process_of_its_own(
        "import sys; from pathlib import Path; from tests.unit.test_plan import CNN, plan_of\n"
        f"assert plan_of(Path({str(tmp_path)!r}), CNN).shapes == ((1, 8, 8), (4, 4, 4))\n"
        "assert 'torch._dynamo' not in sys.modules and 'sympy' not in sys.modules"
    )


def test_blocks_too_large_to_be_made_have_the_same_shapes(tmp_path, monkeypatch):
    made = plan_of(tmp_path, CNN)
    monkeypatch.setattr(plan, "_PROBED_BYTES", 0)
    assert plan_of(tmp_path, CNN).shapes == made.shapes


def test_a_block_too_large_to_be_made_takes_no_memory_for_its_weights(tmp_path):
    in_a_process_of_its_own(  # getrusage would tell of the process that has started it, too
        "from pathlib import Path; from tests.unit.test_plan import WIDE, plan_of\n"
        f"assert plan_of(Path({str(tmp_path)!r}), WIDE).shapes[1] == (60_000,)\n"
        "status = dict(line.split(':', 1) for line in Path('/proc/self/status').read_text().splitlines())\n"
        "used = int(status['VmHWM'].split()[0]) / 1024\n"
        "assert used < 4000, f'{used:.0f} MB where weights would be 14,000'"
    )


def test_profiling_carries_feedback_down_a_deep_chain_in_one_round(tmp_path, monkeypatch):
    looks = []
    real = profiling._Profiling._advance
    monkeypatch.setattr(
        profiling._Profiling, "_advance", lambda self, actor: (looks.append(actor), real(self, actor))[1]
    )
    num_blocks = 20
    network = Replacing({"name": "mlp", "widths": [4] * (num_blocks - 1), "blocks": num_blocks})
    profile = profiling.measure(config_of(tmp_path / "run", network=network, rule={"name": "backprop"}), 0.0)
    num_rounds, num_batches = len(looks) / (num_blocks + 1), profile.num_batches + profiling.FEWEST
    assert num_rounds < 4 * num_batches
