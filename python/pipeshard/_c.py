"""The declarations of pipeshard.h. tests/test_layout.py compares them with what a C compiler makes of the header."""

import ctypes
import functools
import os
from ctypes import POINTER, c_char_p, c_double, c_float, c_int, c_int32, c_int64, c_size_t, c_uint32, c_uint64, c_void_p
from pathlib import Path
from typing import Any, List, Optional, Tuple, Type, TypeVar

from ._errors import BUDGET_TOO_SMALL, BudgetTooSmall, Error

#: The version of the header that is declared here: major << 16 | minor.
VERSION = 0x00000002

NAME = "libpipeshard.so.0"

NO_PAGE_LOCK = 1

BUDGET_ROUND_TRIP = 1
BUDGET_SLEEP = 2

EVENT_TEXT = 1
EVENT_DONE = 2
EVENT_ENDED = 3

LogFn = ctypes.CFUNCTYPE(None, c_void_p, c_int, c_char_p)
ProgressFn = ctypes.CFUNCTYPE(c_int, c_void_p, c_float)
PieceFn = ctypes.CFUNCTYPE(c_int, c_void_p, c_void_p, c_size_t)
WakeupFn = ctypes.CFUNCTYPE(None, c_void_p)
AllocateFn = ctypes.CFUNCTYPE(c_void_p, c_void_p, c_int, c_size_t, c_size_t)
ReleaseFn = ctypes.CFUNCTYPE(None, c_void_p, c_int, c_void_p, c_size_t)
SizeFn = ctypes.CFUNCTYPE(c_int64, c_void_p, c_char_p)
ReadFn = ctypes.CFUNCTYPE(c_int64, c_void_p, c_char_p, c_uint64, c_void_p, c_uint64)
ThreadFn = ctypes.CFUNCTYPE(None, c_void_p, c_char_p)


class DeviceConfig(ctypes.Structure):
    _fields_ = [
        ("size", c_uint32),
        ("flags", c_uint32),
        ("budget", c_uint64),
        ("name", c_char_p),
        ("simulated", c_char_p),
        ("cache_dir", c_char_p),
        ("profile", c_char_p),
        ("threads", c_int32),
        ("reserved", c_int32),
        ("allocate", AllocateFn),
        ("release", ReleaseFn),
        ("allocate_host", AllocateFn),
        ("release_host", ReleaseFn),
        ("memory_user", c_void_p),
        ("cuda_context", c_void_p),
    ]


class BudgetRequest(ctypes.Structure):
    _fields_ = [
        ("size", c_uint32),
        ("deadline_ms", c_uint32),
        ("budget", c_uint64),
        ("allow", c_uint32),
        ("reserved", c_uint32),
    ]


class CLimits(ctypes.Structure):
    _fields_ = [
        ("size", c_uint32),
        ("asleep", c_uint32),
        ("budget", c_uint64),
        ("minimum", c_uint64),
        ("everything", c_uint64),
        ("held", c_uint64),
        ("peak", c_uint64),
        ("held_weights", c_uint64),
        ("held_kv", c_uint64),
        ("held_ring", c_uint64),
        ("held_buffers", c_uint64),
        ("held_vision", c_uint64),
        ("held_other", c_uint64),
        ("by_driver", c_uint64),
        ("waited_ms", c_double),
        ("moved_ms", c_double),
        ("minimum_round_trip", c_uint64),
    ]


class PredictionQuery(ctypes.Structure):
    _fields_ = [
        ("size", c_uint32),
        ("context", c_uint32),
        ("path", c_char_p),
        ("type_k", c_char_p),
        ("type_v", c_char_p),
        ("budget", c_uint64),
        ("prompt_tokens", c_uint32),
        ("answer_tokens", c_uint32),
    ]


class CPrediction(ctypes.Structure):
    _fields_ = [
        ("size", c_uint32),
        ("measured", c_uint32),
        ("budget", c_uint64),
        ("minimum", c_uint64),
        ("everything", c_uint64),
        ("context", c_uint32),
        ("ubatch", c_uint32),
        ("prompt_tokens", c_uint32),
        ("answer_tokens", c_uint32),
        ("first_token_ms", c_double),
        ("tokens_per_second", c_double),
    ]


class ModelConfig(ctypes.Structure):
    _fields_ = [
        ("size", c_uint32),
        ("flags", c_uint32),
        ("path", c_char_p),
        ("mmproj", c_char_p),
        ("chat_template", c_char_p),
        ("progress", ProgressFn),
        ("progress_user", c_void_p),
        ("image_max_tokens", c_int32),
        ("reserved", c_int32),
        ("file_size", SizeFn),
        ("read_file", ReadFn),
        ("files_user", c_void_p),
    ]


class SessionConfig(ctypes.Structure):
    _fields_ = [
        ("size", c_uint32),
        ("context", c_uint32),
        ("ubatch", c_uint32),
        ("flags", c_uint32),
        ("type_k", c_char_p),
        ("type_v", c_char_p),
    ]


class Media(ctypes.Structure):
    _fields_ = [
        ("size", c_uint32),
        ("width", c_uint32),
        ("height", c_uint32),
        ("stride", c_uint32),
        ("rgb", c_void_p),
        ("file", c_void_p),
        ("file_size", c_size_t),
    ]


class CState(ctypes.Structure):
    _fields_ = [
        ("size", c_uint32),
        ("context", c_uint32),
        ("used", c_uint32),
        ("ubatch", c_uint32),
        ("messages", c_uint32),
        ("busy", c_uint32),
        ("prompt_tokens", c_uint32),
        ("reused_tokens", c_uint32),
        ("generated_tokens", c_uint32),
        ("evaluated_again", c_uint32),
        ("prompt_ms", c_double),
        ("generate_ms", c_double),
    ]


class GenerateConfig(ctypes.Structure):
    _fields_ = [
        ("size", c_uint32),
        ("max_tokens", c_uint32),
        ("temperature", c_float),
        ("top_k", c_int32),
        ("top_p", c_float),
        ("min_p", c_float),
        ("repeat_penalty", c_float),
        ("seed", c_uint32),
        ("grammar", c_char_p),
        ("json_schema", c_char_p),
        ("stop", POINTER(c_char_p)),
        ("stop_count", c_size_t),
        ("tokens_per_second", c_float),
        ("reserved", c_uint32),
    ]


class Event(ctypes.Structure):
    _fields_ = [
        ("size", c_uint32),
        ("kind", c_int32),
        ("code", c_int32),
        ("reserved", c_uint32),
        ("text", c_void_p),
        ("length", c_size_t),
    ]


#: The structs, by their names in C.
STRUCTS = {
    "pipeshard_device_config": DeviceConfig,
    "pipeshard_budget_request": BudgetRequest,
    "pipeshard_limits": CLimits,
    "pipeshard_prediction_query": PredictionQuery,
    "pipeshard_prediction": CPrediction,
    "pipeshard_model_config": ModelConfig,
    "pipeshard_session_config": SessionConfig,
    "pipeshard_media": Media,
    "pipeshard_state": CState,
    "pipeshard_generate_config": GenerateConfig,
    "pipeshard_event": Event,
}

_ERROR = POINTER(c_void_p)
_HANDLE = POINTER(c_void_p)

#: Functions by their names: what they return, and what they are given. Texts that the caller frees are addresses.
FUNCTIONS: List[Tuple[str, Any, List[Any]]] = [
    ("pipeshard_result_name", c_char_p, [c_int]),
    ("pipeshard_error_code", c_int, [c_void_p]),
    ("pipeshard_error_text", c_char_p, [c_void_p]),
    ("pipeshard_error_minimum", c_uint64, [c_void_p]),
    ("pipeshard_error_free", None, [c_void_p]),
    ("pipeshard_version", c_uint32, []),
    ("pipeshard_build_id", c_char_p, []),
    ("pipeshard_free", None, [c_void_p]),
    ("pipeshard_set_log", None, [LogFn, c_void_p, c_int]),
    ("pipeshard_set_thread_hooks", None, [ThreadFn, ThreadFn, c_void_p]),
    ("pipeshard_devices", c_void_p, []),
    ("pipeshard_device_open", c_int, [POINTER(DeviceConfig), _HANDLE, _ERROR]),
    ("pipeshard_device_close", None, [c_void_p]),
    ("pipeshard_streams", c_int, [c_void_p, POINTER(c_void_p), c_size_t, POINTER(c_size_t), _ERROR]),
    ("pipeshard_set_budget", c_int, [c_void_p, POINTER(BudgetRequest), POINTER(CLimits), _ERROR]),
    ("pipeshard_get_limits", c_int, [c_void_p, POINTER(CLimits), _ERROR]),
    ("pipeshard_sleep", c_int, [c_void_p, _ERROR]),
    ("pipeshard_wake", c_int, [c_void_p, _ERROR]),
    ("pipeshard_report", c_void_p, [c_void_p]),
    ("pipeshard_metrics", c_void_p, [c_void_p]),
    ("pipeshard_predict", c_int, [c_void_p, POINTER(PredictionQuery), POINTER(CPrediction), _ERROR]),
    ("pipeshard_model_open", c_int, [c_void_p, POINTER(ModelConfig), _HANDLE, _ERROR]),
    ("pipeshard_model_close", None, [c_void_p]),
    ("pipeshard_model_info", c_void_p, [c_void_p]),
    ("pipeshard_session_open", c_int, [c_void_p, POINTER(SessionConfig), _HANDLE, _ERROR]),
    ("pipeshard_session_close", None, [c_void_p]),
    ("pipeshard_session_add", c_int, [c_void_p, c_char_p, c_char_p, _ERROR]),
    ("pipeshard_session_add_media", c_int, [c_void_p, POINTER(Media), _ERROR]),
    ("pipeshard_session_clear", c_int, [c_void_p, _ERROR]),
    ("pipeshard_session_truncate", c_int, [c_void_p, c_uint32, _ERROR]),
    ("pipeshard_session_save", c_int, [c_void_p, POINTER(c_void_p), POINTER(c_size_t), _ERROR]),
    ("pipeshard_session_restore", c_int, [c_void_p, c_char_p, c_size_t, _ERROR]),
    ("pipeshard_session_get_state", c_int, [c_void_p, POINTER(CState), _ERROR]),
    ("pipeshard_generate", c_int, [c_void_p, POINTER(GenerateConfig), PieceFn, c_void_p, _ERROR]),
    ("pipeshard_submit", c_int, [c_void_p, POINTER(GenerateConfig), _ERROR]),
    ("pipeshard_wait", c_int, [c_void_p, c_uint32, POINTER(Event), _ERROR]),
    ("pipeshard_set_wakeup", c_int, [c_void_p, WakeupFn, c_void_p, _ERROR]),
    ("pipeshard_cancel", c_int, [c_void_p]),
]

_Struct = TypeVar("_Struct", bound=ctypes.Structure)


def init(struct: Type[_Struct]) -> _Struct:
    """PIPESHARD_INIT: the size is set, and everything else is zero."""
    made = struct()
    made.size = ctypes.sizeof(struct)
    return made


def _file() -> str:
    named = os.environ.get("PIPESHARD_LIBRARY")
    if named:
        return named
    here = Path(__file__).resolve().parent / NAME
    return str(here) if here.exists() else NAME


@functools.lru_cache(maxsize=None)
def library() -> ctypes.CDLL:
    """The library, loaded when it is first needed.

    Raises ImportError where there is none, or one that does not fit.
    """
    file = _file()
    try:
        loaded = ctypes.CDLL(file)
    except OSError as why:
        raise ImportError(
            f"{file} cannot be loaded: {why}. Install it (make host-library install), put {NAME} next to {Path(__file__).parent}, "
            "or name the file in PIPESHARD_LIBRARY"
        ) from why
    try:
        for name, result, arguments in FUNCTIONS:
            function = getattr(loaded, name)
            function.restype, function.argtypes = result, arguments
    except AttributeError as why:
        raise ImportError(
            f"{file} is not {NAME}, or an older one: {why}. The plug-in for llama.cpp's own tools has the name libpipeshard.so, and is "
            "another library"
        ) from why
    if loaded.pipeshard_version() != VERSION:
        found = loaded.pipeshard_version()
        raise ImportError(f"{file} is version {found >> 16}.{found & 0xFFFF}; this package is for {VERSION >> 16}.{VERSION & 0xFFFF}")
    return loaded


def call(name: str, *arguments: Any) -> None:
    """Calls a function that can fail, and raises what it says."""
    error = c_void_p()
    code = getattr(library(), name)(*arguments, ctypes.byref(error))
    if code == 0:
        return
    text = library().pipeshard_error_text(error).decode("utf-8", "replace")
    minimum = library().pipeshard_error_minimum(error)
    library().pipeshard_error_free(error)
    raise (BudgetTooSmall if code == BUDGET_TOO_SMALL else Error)(code, text, minimum)


def text_of(address: Optional[int]) -> Optional[str]:
    """The text at an address, which is freed."""
    if not address:
        return None
    text = ctypes.string_at(address).decode("utf-8", "replace")
    library().pipeshard_free(address)
    return text


def encoded(text: Optional[str]) -> Optional[bytes]:
    """For C."""
    return None if text is None else text.encode()
