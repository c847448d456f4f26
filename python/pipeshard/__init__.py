"""Language and vision models of llama.cpp inside a VRAM budget that can be changed at any time.

    with pipeshard.Device(budget="4G") as gpu, gpu.open("model.gguf") as model, model.session() as chat:
        chat.add("user", "Who goes there?")
        for piece in chat.generate(max_tokens=200):
            print(piece, end="", flush=True)

The library is libpipeshard.so.0: the file that the environment variable PIPESHARD_LIBRARY names, else the one next to this package, else
the one that the system's loader finds.
"""

from ._errors import (
    BUDGET_TOO_SMALL,
    BUSY,
    CANCELLED,
    CONTEXT_FULL,
    DEADLINE,
    DEVICE_LOST,
    FILE,
    FORKED,
    INTERNAL,
    INVALID,
    NO_DEVICE,
    NO_MEMORY,
    TIMEOUT,
    UNSUPPORTED,
    VERSION,
    BudgetTooSmall,
    Error,
)
from ._handles import Device, Limits, Model, Prediction, build_id, devices, set_log, version
from ._llama_cpp import attach_llama_cpp
from ._session import Answer, Session, State

__all__ = [
    "Answer",
    "BUDGET_TOO_SMALL",
    "BUSY",
    "BudgetTooSmall",
    "CANCELLED",
    "CONTEXT_FULL",
    "DEADLINE",
    "DEVICE_LOST",
    "Device",
    "Error",
    "FILE",
    "FORKED",
    "INTERNAL",
    "INVALID",
    "Limits",
    "Model",
    "NO_DEVICE",
    "NO_MEMORY",
    "Prediction",
    "Session",
    "State",
    "TIMEOUT",
    "UNSUPPORTED",
    "VERSION",
    "attach_llama_cpp",
    "build_id",
    "devices",
    "set_log",
    "version",
]
