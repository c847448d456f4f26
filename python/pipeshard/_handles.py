"""Devices and models."""

import ctypes
import dataclasses
import json
import os
import re
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional, Union

from . import _c

if TYPE_CHECKING:
    from ._session import Session

#: Bytes, or a text such as "4G", "1.5G" or "1500M" (units are powers of 1024).
Size = Union[int, str]

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def bytes_of(size: Size) -> int:
    """A size in bytes."""
    if isinstance(size, int):
        if not 0 <= size < 1 << 64:
            raise ValueError(f"{size} is not a size")
        return size
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?)(?:i?B)?\s*", size, re.IGNORECASE)
    if not match:
        raise ValueError(f"{size!r} is not a size; write 4G, 1500M or a number of bytes")
    return bytes_of(int(float(match[1]) * _UNITS[match[2].upper()]))


def version() -> str:
    """The version of the library."""
    found = _c.library().pipeshard_version()
    return f"{found >> 16}.{found & 0xFFFF}"


def build_id() -> str:
    """Which llama.cpp, and which patches: for reports of bugs."""
    return str(_c.library().pipeshard_build_id().decode())


def devices() -> List[Dict[str, Any]]:
    """The GPUs that can be used: "name", "description", "vram", "free" (bytes)."""
    return list(json.loads(_c.text_of(_c.library().pipeshard_devices()) or "[]"))


_log: Any = None


def set_log(log: Optional[Callable[[int, str], None]], level: int = 2) -> None:
    """Messages up to `level` (1 errors, 2 warnings, 3 information, 4 details) go to `log(level, text)`; None: nowhere.

    It may be called on any thread.
    """
    global _log
    function = _c.LogFn(lambda _, at, text: log(at, text.decode("utf-8", "replace"))) if log else _c.LogFn()
    _c.library().pipeshard_set_log(function, None, level)
    _log = function  # lives as long as the library calls it


@dataclasses.dataclass(frozen=True)
class Limits:
    """What is held, and what is possible, in bytes; `asleep`: sessions that sleep. pipeshard.h says what each is."""

    budget: int
    minimum: int
    everything: int
    held: int
    peak: int
    held_weights: int
    held_kv: int
    held_ring: int
    held_buffers: int
    held_vision: int
    held_other: int
    by_driver: int
    waited_ms: float
    moved_ms: float
    minimum_round_trip: int
    asleep: int

    @classmethod
    def _of(cls, found: _c.CLimits) -> "Limits":
        return cls(**{field.name: getattr(found, field.name) for field in dataclasses.fields(cls)})


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a model would do within a budget; pipeshard.h says what each number is."""

    measured: int
    budget: int
    minimum: int
    everything: int
    context: int
    ubatch: int
    prompt_tokens: int
    answer_tokens: int
    first_token_ms: float
    tokens_per_second: float


class Handle:
    """Something that is open until it is closed, or until its `with` block ends."""

    _close = ""

    def __init__(self) -> None:
        self._handle: Optional[int] = None

    def close(self) -> None:
        """Closes it. What was opened on it stays open until it is closed as well."""
        handle, self._handle = self._handle, None
        if handle is not None:
            getattr(_c.library(), self._close)(handle)

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None:
            self.close()


class Device(Handle):
    """The GPU of this process. There is one at a time.

    `budget`: what models, caches and buffers may take together; 0: what is free, less a margin. `simulated`: a simulated GPU, such as
    "vram=8G". `cache_dir`: where measurements and plans are kept; None: nowhere.
    """

    _close = "pipeshard_device_close"

    def __init__(
        self,
        budget: Size = 0,
        *,
        name: Optional[str] = None,
        simulated: Optional[str] = None,
        cache_dir: Optional[str] = None,
        profile: Optional[str] = None,
        threads: int = 0,
        page_lock: bool = True,
    ) -> None:
        super().__init__()
        config = _c.init(_c.DeviceConfig)
        config.flags = 0 if page_lock else _c.NO_PAGE_LOCK
        config.budget = bytes_of(budget)
        config.name = _c.encoded(name)
        config.simulated = _c.encoded(simulated)
        config.cache_dir = _c.encoded(cache_dir)
        config.profile = _c.encoded(profile)
        config.threads = threads
        opened = ctypes.c_void_p()
        _c.call("pipeshard_device_open", ctypes.byref(config), ctypes.byref(opened))
        self._handle = opened.value

    def __enter__(self) -> "Device":
        return self

    def open(self, path: Union[str, "os.PathLike[str]"], **options: Any) -> "Model":
        """Opens a model; options as for `Model`."""
        return Model(self, path, **options)

    def predict(
        self,
        path: Union[str, "os.PathLike[str]"],
        *,
        context: int = 0,
        budget: Size = 0,
        prompt_tokens: int = 0,
        answer_tokens: int = 0,
        type_k: Optional[str] = None,
        type_v: Optional[str] = None,
    ) -> Prediction:
        """What a model would do within a budget, before it is loaded; 0: what is usual, and the device's budget."""
        ask: Any = _c.init(_c.PredictionQuery)
        found: Any = _c.init(_c.CPrediction)
        ask.path, ask.context, ask.budget = os.fsencode(path), context, bytes_of(budget)
        ask.prompt_tokens, ask.answer_tokens = prompt_tokens, answer_tokens
        ask.type_k, ask.type_v = _c.encoded(type_k), _c.encoded(type_v)
        _c.call("pipeshard_predict", self._handle, ctypes.byref(ask), ctypes.byref(found))
        return Prediction(**{field.name: getattr(found, field.name) for field in dataclasses.fields(Prediction)})

    def set_budget(self, budget: Size, deadline_ms: int = 0, *, round_trip: bool = False, sleep: bool = False) -> Limits:
        """Changes the budget. A smaller one has given its memory back when this returns.

        Weights move. `round_trip`: where that is not enough, KV caches go to host memory too. `sleep`: where not even that is, everything
        goes. Raises BudgetTooSmall, whose `minimum` works; nothing has changed then.
        """
        request, now = _c.init(_c.BudgetRequest), _c.init(_c.CLimits)
        request.budget, request.deadline_ms = bytes_of(budget), deadline_ms
        request.allow = (_c.BUDGET_ROUND_TRIP if round_trip or sleep else 0) | (_c.BUDGET_SLEEP if sleep else 0)
        _c.call("pipeshard_set_budget", self._handle, ctypes.byref(request), ctypes.byref(now))
        return Limits._of(now)

    def sleep(self) -> None:
        """Gives all VRAM back. Conversations are kept in host memory; a session that is used wakes by itself."""
        _c.call("pipeshard_sleep", self._handle)

    def wake(self) -> None:
        """Takes the memory of all sleeping sessions again."""
        _c.call("pipeshard_wake", self._handle)

    @property
    def limits(self) -> Limits:
        """What is held, and what is possible now."""
        now = _c.init(_c.CLimits)
        _c.call("pipeshard_get_limits", self._handle, ctypes.byref(now))
        return Limits._of(now)

    @property
    def report(self) -> Dict[str, Any]:
        """All that was counted (docs/report.md)."""
        return dict(json.loads(_c.text_of(_c.library().pipeshard_report(self._handle)) or "{}"))

    @property
    def metrics(self) -> str:
        """The same for Prometheus."""
        return _c.text_of(_c.library().pipeshard_metrics(self._handle)) or ""


class Model(Handle):
    """A model that is loaded.

    `mmproj`: the encoder of images and sound. `chat_template`: Jinja, in place of the model's own. `progress(done)` is called with numbers
    from 0 to 1 while it loads; False ends it.
    """

    _close = "pipeshard_model_close"

    def __init__(
        self,
        device: Device,
        path: Union[str, "os.PathLike[str]"],
        *,
        mmproj: Union[None, str, "os.PathLike[str]"] = None,
        chat_template: Optional[str] = None,
        image_max_tokens: int = 0,
        progress: Optional[Callable[[float], Optional[bool]]] = None,
    ) -> None:
        super().__init__()
        config = _c.init(_c.ModelConfig)
        config.path = os.fsencode(path)
        config.mmproj = None if mmproj is None else os.fsencode(mmproj)
        config.chat_template = _c.encoded(chat_template)
        config.image_max_tokens = image_max_tokens
        if progress is not None:
            config.progress = _c.ProgressFn(lambda _, done: int(progress(done) is False))
        opened = ctypes.c_void_p()
        _c.call("pipeshard_model_open", device._handle, ctypes.byref(config), ctypes.byref(opened))
        self._handle = opened.value

    def __enter__(self) -> "Model":
        return self

    def session(self, **options: Any) -> "Session":
        """Opens a conversation; options as for `Session`."""
        from ._session import Session

        return Session(self, **options)

    @property
    def info(self) -> Dict[str, Any]:
        """Description, number of parameters, layers, and what it can do."""
        return dict(json.loads(_c.text_of(_c.library().pipeshard_model_info(self._handle)) or "{}"))
