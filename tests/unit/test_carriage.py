"""What a plan reckons for carrying a message."""

import pytest

from orchestrator.carriage import CALL_CPU_S, carriage, carriages
from orchestrator.chain_profile import NOTHING


@pytest.mark.parametrize("same_node", CALL_CPU_S)
def test_a_message_costs_a_call_and_its_bytes(same_node):
    small, large = carriage(0, same_node), carriage(16 * 2**20, same_node)
    assert CALL_CPU_S[same_node] <= small.carry.cpu_s < large.carry.cpu_s
    assert large.send.cpu_s > small.send.cpu_s and large.receive.cpu_s > small.receive.cpu_s


def test_over_a_socket_it_is_reckoned_cheaper_and_within_a_process_nothing_is_carried():
    sizes = {"a->b": 0}
    store, socket = (carriages(sizes, same_node=way)["a->b"] for way in ("object_store", "socket"))
    assert socket.carry.cpu_s < store.carry.cpu_s
    assert carriages(sizes, is_shared=True)["a->b"].carry == NOTHING
