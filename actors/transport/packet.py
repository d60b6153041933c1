"""A message as it travels: a msgpack header with checksums beside raw numpy buffers.

Nothing is ever unpickled from a header; sizes are capped and everything is checked before a tensor
is made. Tensors cross as views of the producer's memory; the receiver must not write to them. Under a wire codec
activations and feedback cross in fewer bits; a header's table then says what they were and by what they are scaled.
Large tensors may cross beside the packet (`Referred`): the table then says what must come, and has no sum of its bytes.
"""

from __future__ import annotations

import math
import warnings
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np
import torch
from torch import Tensor

from actors.errors import CorruptMessage, EdgeError
from actors.messages import Flags, Kind, Message
from actors.transport.codec import CODECS, ENCODED, PLAIN, Encoded, encode

MAX_HEADER_BYTES = 64 * 1024
MAX_TENSOR_BYTES = 8 * 1024**3
FORMAT = 1
COPIED_BYTES = 64 * 1024
"""Tensors up to this size are copied out of a message that holds others: labels travel on and stay in the next outbox
long after the activation beside them is done with, and would keep its memory."""
ALIGNMENT = 64
"""Bytes at a multiple of which torch's own tensors begin; results of small products depend on it. Where the buffers of
several messages come in one reply, Ray puts them anywhere, and which ones do depends on the time."""
BESIDE = -1
"""In place of a checksum: the tensor comes beside the packet."""
CODED_KINDS = (Kind.ACTIVATION, Kind.FEEDBACK)
"""What a wire codec acts on; an evaluation is of the network as it will be used."""

_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float64, torch.float32, torch.float16, torch.bfloat16,
        torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
    )
}  # fmt: skip

_ORDERS = ("contiguous", "channels_last")
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}

# Buffers of shared memory are read-only on purpose; torch warns once per process that it can't say so.
warnings.filterwarnings("ignore", message="The given NumPy array is not writable", category=UserWarning)


@dataclass(frozen=True)
class Packet:
    """`header`: msgpack with a trailing CRC-32; `buffers`: one flat uint8 array per tensor."""

    header: bytes
    buffers: tuple[np.ndarray, ...]

    @property
    def num_bytes(self) -> int:
        """Payload size in bytes."""
        return sum(buffer.nbytes for buffer in self.buffers)


@dataclass(frozen=True)
class Referred(Packet):
    """Its large tensors stay where they are until its consumer fetches them by `reference`, of a list of them."""

    reference: Any


@dataclass(frozen=True)
class Fetched(Packet):
    """What a consumer has fetched the large tensors of, in the order of the header's table."""

    tensors: tuple[Tensor, ...]

    @property
    def num_bytes(self) -> int:
        """Payload size in bytes."""
        return super().num_bytes + sum(tensor.nbytes for tensor in self.tensors)


@dataclass(frozen=True)
class Opened(Packet):
    """What was opened in the thread that received it, with the fields of its header; its bytes were what was sent."""

    fields: Mapping[str, Any]
    message: Message


def checksum(buffer: np.ndarray) -> int:
    """Return a 64-bit sum of a flat uint8 buffer; finds any changed bit at about the speed of memory."""
    even = buffer.nbytes & ~7
    total = int(buffer[:even].view(np.uint64).sum(dtype=np.uint64)) if even else 0
    return (total * 31 + zlib.crc32(buffer[even:].tobytes()) + buffer.nbytes) & 0xFFFFFFFFFFFFFFFF


def check_dtypes(message: Message, edge: str) -> None:
    """Refuse a message with numbers of a kind that can't travel.

    Raises:
        EdgeError: names the tensor.
    """
    for name, tensor in message.tensors.items():
        if tensor.dtype not in _NAMES:
            raise EdgeError(f"edge {edge}: tensor {name!r} is {tensor.dtype}, expected one of {', '.join(_DTYPES)}")


def pack(message: Message, *, run: str, edge: str, codec: str = PLAIN, beside: Collection[str] = ()) -> Packet:
    """Lay a message out for its journey; tensors are moved to the CPU if they are elsewhere.

    Args:
        message: what travels.
        run, edge: written into the header.
        codec: what activations and feedback travel as.
        beside: names of tensors that travel beside the packet, as they are; see `laid_flat`.

    Raises:
        EdgeError: a tensor's dtype can't travel.
    """
    check_dtypes(message, edge)
    table, buffers = [], []
    for name, tensor in message.tensors.items():
        if name in beside:
            table.append([name, *_entry(tensor), BESIDE])
            continue
        coded = encode(tensor, codec) if message.kind in CODED_KINDS else None
        entry, buffer = _flatten(tensor if coded is None else coded.tensor)
        origin = [] if coded is None else [_name(coded.dtype), coded.scale]
        table.append([name, *entry, checksum(buffer), *origin])
        buffers.append(buffer)
    body = msgpack.packb(
        {
            "format": FORMAT,
            "run": run,
            "edge": edge,
            "incarnation": message.incarnation,
            "sequence": message.sequence,
            "kind": int(message.kind),
            "batch": message.batch_id,
            "version": message.version,
            "answers": message.answers,
            "flags": int(message.flags),
            "split": message.split,
            "tensors": table,
        }
    )
    assert body is not None
    return Packet(body + zlib.crc32(body).to_bytes(4, "little"), tuple(buffers))


def unpack(packet: Packet, *, run: str, edge: str, header: Mapping[str, Any] | None = None) -> Message:
    """Check a packet and give back its message; its large tensors are read-only views.

    Args:
        packet: what has arrived.
        run, edge: what its header must name.
        header: what `read_header` has returned for it, if it has been read.

    Raises:
        CorruptMessage: the header or a buffer is not what was sent, or belongs to another run or edge.
    """
    header = read_header(packet.header, edge) if header is None else header
    fetched = packet.tensors if isinstance(packet, Fetched) else ()
    if header["run"] != run or header["edge"] != edge:
        raise CorruptMessage(
            f"edge {edge}: expected a message of run {run!r}, got one of run {header['run']!r}, "
            f"edge {header['edge']!r}; it is refused"
        )
    if isinstance(packet, Opened):
        return packet.message
    table = header["tensors"]
    rows = [_check_row(edge, row) for row in table]
    num_beside = sum(row[4] == BESIDE for row in rows)
    if (num_beside, len(rows) - num_beside) != (len(fetched), len(packet.buffers)):
        raise CorruptMessage(
            f"edge {edge}: the header lists {len(rows)} tensors, {num_beside} of them beside the packet, "
            f"got {len(packet.buffers)} in it and {len(fetched)} beside it"
        )
    tensors: dict[str, Tensor] = {}
    in_packet, beside = iter(packet.buffers), iter(fetched)
    for name, dtype, shape, order, expected, *origin in rows:
        if expected == BESIDE:
            tensors[name] = _checked(edge, name, dtype, shape, order, next(beside))
            continue
        buffer = next(in_packet)
        if (got := checksum(buffer)) != expected:
            raise CorruptMessage(
                f"edge {edge}, message {header['sequence']}: tensor {name!r} has checksum {got}, "
                f"expected {expected}; it is not used"
            )
        tensor = _unflatten(edge, name, dtype, shape, order, buffer)
        if (len(table) > 1 and buffer.nbytes <= COPIED_BYTES) or buffer.ctypes.data % ALIGNMENT:
            tensor = tensor.clone()
        tensors[name] = Encoded(tensor, origin[1], _DTYPES[origin[0]]).decoded() if origin else tensor
    return Message(
        kind=Kind(header["kind"]),
        batch_id=header["batch"],
        version=header["version"],
        answers=header["answers"],
        flags=Flags(header["flags"]),
        tensors=tensors,
        split=header["split"],
        sequence=header["sequence"],
        incarnation=header["incarnation"],
    )


def opened(packet: Packet, edge: str) -> Packet:
    """Return it opened, for whoever is to `unpack` it; as it is if that fails, which `unpack` will say again."""
    try:
        fields = read_header(packet.header, edge)
        return Opened(
            packet.header, packet.buffers, fields, unpack(packet, run=fields["run"], edge=edge, header=fields)
        )
    except Exception:  # of whatever kind: it must reach the program, not the thread that received
        return packet


_FIELDS: Mapping[str, type] = {
    "run": str, "edge": str, "incarnation": int, "sequence": int, "kind": int, "batch": int,
    "version": int, "answers": int, "flags": int, "split": str, "tensors": list,
}  # fmt: skip


def read_header(header: bytes, edge: str) -> dict[str, Any]:
    """Check a header and return its fields.

    Raises:
        CorruptMessage: size, CRC-32, format or a field is not as `pack` writes it.
    """
    if not 4 < len(header) <= MAX_HEADER_BYTES:
        raise CorruptMessage(f"edge {edge}: header of {len(header)} bytes, expected 5 to {MAX_HEADER_BYTES}")
    body, crc = header[:-4], int.from_bytes(header[-4:], "little")
    if zlib.crc32(body) != crc:
        raise CorruptMessage(f"edge {edge}: the header's CRC-32 does not match its {len(body)} bytes")
    try:
        values = msgpack.unpackb(body, strict_map_key=True, max_ext_len=0)
    except ValueError as error:
        raise CorruptMessage(f"edge {edge}: the header is not msgpack ({error})") from None
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise CorruptMessage(f"edge {edge}: unknown header format, expected {FORMAT}")
    for name, kind in _FIELDS.items():
        if not isinstance(values.get(name), kind):
            raise CorruptMessage(f"edge {edge}: header field {name!r} is {values.get(name)!r}")
    if values["kind"] not in iter(Kind):
        raise CorruptMessage(f"edge {edge}: unknown message kind {values['kind']}")
    return values


def _check_row(edge: str, row: Any) -> list[Any]:
    """Return a row of the tensor table if its values have the types that `pack` writes."""
    kinds = (str, str, list, str, int, str, float)
    if (
        not isinstance(row, list)
        or len(row) not in (len(kinds) - 2, len(kinds))
        or not all(isinstance(value, kind) for value, kind in zip(row, kinds, strict=False))
        or (len(row) == len(kinds) and not _is_coded(row[1], row[5], row[6]))
    ):
        raise CorruptMessage(f"edge {edge}: the tensor table has a row {row!r}")
    return row


def _is_coded(dtype: str, origin: str, scale: float) -> bool:
    """Whether a codec may have turned numbers of `origin` into `dtype` with this scale."""
    coded = dtype in map(_name, CODECS.values()) and origin in map(_name, ENCODED)
    return coded and math.isfinite(scale) and scale > 0


def _name(dtype: torch.dtype) -> str:
    return _NAMES[dtype]


def laid_flat(tensor: Tensor) -> Tensor:
    """Return it in memory order, contiguous, without a copy where dense: [batch, height, width, channels] of images
    that are channels_last."""
    tensor = tensor.detach()
    return tensor.permute(0, 2, 3, 1) if _is_channels_last(tensor) else tensor.contiguous()


def _entry(tensor: Tensor) -> list[Any]:
    """Return [dtype, shape, dimension order]."""
    order = "channels_last" if _is_channels_last(tensor) else "contiguous"
    return [_name(tensor.dtype), list(tensor.shape), order]


def _flatten(tensor: Tensor) -> tuple[list[Any], np.ndarray]:
    """Return its entry and the bytes in memory order, without a copy where dense."""
    if tensor.device.type != "cpu":
        tensor = tensor.cpu()
    flat = laid_flat(tensor)
    # A lone element counts as contiguous whatever its stride is; bytes can only be seen at stride 1.
    bits = flat.reshape(-1).as_strided((flat.numel(),), (1,)).view(torch.uint8)
    return _entry(tensor), bits.numpy()


def _is_channels_last(tensor: Tensor) -> bool:
    return tensor.dim() == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)


def _checked(edge: str, name: str, dtype: str, shape: list[int], order: str, flat: Tensor) -> Tensor:
    """Return what was `laid_flat` as it was, if it is what the header's table says."""
    tensor = flat.permute(0, 3, 1, 2) if order == "channels_last" and flat.dim() == 4 else flat
    if [_NAMES.get(tensor.dtype), list(tensor.shape)] != [dtype, shape] or order not in _ORDERS:
        raise CorruptMessage(
            f"edge {edge}: tensor {name!r} came beside its packet as {tensor.dtype} of shape {list(tensor.shape)}, "
            f"expected {dtype} of shape {shape}, {order}; it is not used"
        )
    return tensor


def _unflatten(edge: str, name: str, dtype: str, shape: list[int], order: str, buffer: np.ndarray) -> Tensor:
    if dtype not in _DTYPES or order not in _ORDERS:
        raise CorruptMessage(f"edge {edge}: tensor {name!r} has unknown dtype {dtype!r} or order {order!r}")
    kind = _DTYPES[dtype]
    count = extent = 1
    for size in shape:
        if not isinstance(size, int) or size < 0 or (extent := extent * max(size, 1)) > MAX_TENSOR_BYTES:
            raise CorruptMessage(f"edge {edge}: tensor {name!r} has shape {shape}")
        count *= size
    if count * kind.itemsize != buffer.nbytes or buffer.nbytes > MAX_TENSOR_BYTES:
        raise CorruptMessage(
            f"edge {edge}: tensor {name!r} of shape {shape} and dtype {dtype} has {buffer.nbytes} bytes"
        )
    if order == "channels_last" and len(shape) != 4:
        raise CorruptMessage(f"edge {edge}: tensor {name!r} of shape {shape} can't be channels_last")
    flat = torch.from_numpy(buffer).view(kind) if count else torch.empty(0, dtype=kind)
    if order == "channels_last":
        batch, channels, height, width = shape
        return flat.reshape(batch, height, width, channels).permute(0, 3, 1, 2)
    return flat.reshape(shape)
