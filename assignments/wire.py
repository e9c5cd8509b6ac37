"""What passes between the grader and a submission's process: plain values, never code or pickles.

A value is a tree of None, bool, int, float, str, lists, tuples (which arrive as lists), dicts with
text keys, and tensors. The tree travels as JSON, the tensors beside it as safetensors, so reading
what a hostile process sent can build nothing but numbers and text.
"""

import json
import math
import socket
import struct
from typing import Any

import safetensors.torch
import torch

LARGEST = 64 * 2**20  # bytes of a message


def pack(value: Any) -> bytes:
    """Return the value as bytes.

    Raises:
        TypeError: it holds something else than plain values and tensors.
    """
    tensors: dict[str, torch.Tensor] = {}
    tree = json.dumps(_to_json(value, tensors)).encode()
    return struct.pack("<Q", len(tree)) + tree + safetensors.torch.save(tensors)


def unpack(message: bytes) -> Any:
    """Return the value.

    Raises:
        ValueError: these bytes are no value.
    """
    try:
        (length,) = struct.unpack_from("<Q", message)
        tree = json.loads(message[8 : 8 + length])
        return _from_json(tree, safetensors.torch.load(message[8 + length :]))
    except Exception as error:
        raise ValueError(f"bytes that are no value ({type(error).__name__})") from None


def _to_json(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        key = str(len(tensors))
        tensors[key] = value.detach().cpu().contiguous().clone()
        return {"tensor": key}
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, list | tuple):
        return [_to_json(item, tensors) for item in value]
    if isinstance(value, dict):
        return {"dict": {str(k): _to_json(item, tensors) for k, item in value.items()}}
    raise TypeError(f"expected numbers, text or tensors, got {type(value).__name__}")


def _from_json(tree: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(tree, list):
        return [_from_json(item, tensors) for item in tree]
    if isinstance(tree, dict):
        [(kind, content)] = tree.items()
        if kind == "dict":
            return {key: _from_json(item, tensors) for key, item in content.items()}
        return tensors[content] if kind == "tensor" else float(content)
    return tree


def send(connection: socket.socket, message: bytes) -> None:
    """Send one message."""
    connection.sendall(struct.pack("<Q", len(message)) + message)


def receive(connection: socket.socket) -> bytes:
    """Return the next message.

    Raises:
        EOFError: the other side is gone.
        ValueError: it announces more than `LARGEST` bytes.
    """
    (length,) = struct.unpack("<Q", _exactly(connection, 8))
    if length > LARGEST:
        raise ValueError(f"an answer of {length:,} bytes; at most {LARGEST:,} are read")
    return _exactly(connection, length)


def _exactly(connection: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = connection.recv(min(size - len(data), 2**20))
        if not piece:
            raise EOFError
        data += piece
    return bytes(data)
