"""What messages travel through, and which choices exclude each other. Pure."""

from __future__ import annotations

from actors.errors import UserError
from orchestrator.config.sections import RunConfig


def check_transports(config: RunConfig) -> None:
    """Refuse a direct transport where nothing would travel by it, or not as it says.

    Whether the nodes have what it needs is seen when the actors are built there.

    Raises:
        UserError: names the key.
    """
    placement, wire = config.placement, config.wire
    if placement.device_transport == "host":
        return
    got = "placement.device_transport: got 'rdt' with"
    if placement.backend != "ray":
        raise UserError(
            f"{got} placement.backend {placement.backend!r}, whose actors share their memory, expected 'ray'; set "
            f"placement.device_transport=host"
        )
    if placement.same_node != "object_store":
        raise UserError(
            f"{got} placement.same_node {placement.same_node!r}, expected 'object_store': each says what messages of a "
            f"node travel through; leave one of them out"
        )
    codecs = wire.values() if isinstance(wire, dict) else [wire or "fp32"]
    coded = [codec for codec in codecs if codec != "fp32"]
    if coded:
        raise UserError(
            f"{got} wire {coded[0]!r}, expected 'fp32': tensors are read as they lie on their device; set wire=fp32 or "
            f"placement.device_transport=host"
        )
