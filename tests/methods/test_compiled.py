"""Layers that torch's own compiler has really compiled, into C++, train as plain ones do."""

import pytest

from actors.errors import UserError
from tests.methods.recorded_chain import assert_compiled_layers_follow_plain_ones, cnn_config

MLP = {"name": "mlp", "widths": [8], "blocks": 2}
CASES = {
    "local": ({"name": "local"}, {}),
    "late credit over stashed weights": ({"name": "backprop"}, {"delay_per_hop": 1, "late": "stash"}),
    "feedback alignment": ({"name": "feedback_alignment"}, {}),
}


@pytest.fixture
def compiled_graphs(monkeypatch, tmp_path):
    """The graphs that the compiler has got; nothing comes from its cache, nor does it start processes."""
    try:
        cnn_config(training={"epochs": 1, "compile": True})
    except UserError as refusal:
        pytest.skip(str(refusal))
    import torch._inductor.config
    from torch._inductor import compile_fx, cpu_vec_isa

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(cpu_vec_isa, "valid_vec_isa_list", list)  # to try each takes a compilation
    graphs, original = [], compile_fx.compile_fx

    def counted(graph, *arguments, **settings):
        graphs.append(graph)
        return original(graph, *arguments, **settings)

    monkeypatch.setattr(compile_fx, "compile_fx", counted)
    torch._dynamo.reset()
    with torch._inductor.config.patch(compile_threads=1, cpp_cache_precompile_headers=False):
        yield graphs
    torch._dynamo.reset()


@pytest.mark.hosts
@pytest.mark.timeout(400)
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.parametrize("case", CASES)
def test_layers_compiled_to_machine_code_train_as_plain_ones_do(compiled_graphs, case):
    rule, schedule = CASES[case]
    assert_compiled_layers_follow_plain_ones(compiled_graphs, 3, at_least=2, rule=rule, schedule=schedule, network=MLP)


def test_compiling_without_a_compiler_is_refused(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UserError, match=r"training\.compile: got true, but no C\+\+ compiler"):
        cnn_config(training={"epochs": 1, "compile": True})
