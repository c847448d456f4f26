"""Small files for tests: adapters with weights of a fixed pattern."""

import struct
from pathlib import Path

FLOAT32, STRING = 6, 8
ALIGNMENT = 32


def text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def write_lora(path: Path, tensor: str, shape: tuple, layers: int, rank: int = 4, strength: float = 0.05) -> Path:
    """A LoRA adapter in GGUF for one tensor of each layer of a llama model, given the tensor's inputs and outputs."""
    strings = {"general.architecture": "llama", "general.type": "adapter", "adapter.type": "lora"}
    metadata = b"".join(text(k) + struct.pack("<I", STRING) + text(v) for k, v in strings.items())
    metadata += text("adapter.lora.alpha") + struct.pack("<If", FLOAT32, float(rank))

    # a pattern without structure that is the same everywhere
    inputs, outputs = shape
    values = [strength * (((i * 2654435761) >> 7) % 2001 - 1000) / 1000 for i in range(rank * (inputs + outputs))]
    halves = [struct.pack(f"<{len(part)}f", *part) for part in (values[: rank * inputs], values[rank * inputs :])]

    infos, data = b"", b""
    for layer in range(layers):
        for half, shape, values in zip("ab", [(inputs, rank), (rank, outputs)], halves):
            infos += text(f"blk.{layer}.{tensor}.weight.lora_{half}")
            infos += struct.pack("<IQQIQ", 2, *shape, 0, len(data))
            data += values + bytes(-len(values) % ALIGNMENT)
    head = b"GGUF" + struct.pack("<IQQ", 3, 2 * layers, len(strings) + 1) + metadata + infos
    path.write_bytes(head + bytes(-len(head) % ALIGNMENT) + data)
    return path
