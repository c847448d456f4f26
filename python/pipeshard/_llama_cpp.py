"""The plug-in for llama.cpp, in llama-cpp-python."""

import ctypes
import json
import os
import sys
from pathlib import Path
from typing import Any, Dict, Optional, Union

from ._errors import INVALID, Error
from ._handles import Size, bytes_of
from ._structs import fit


class Attached:
    """The plug-in, in this process."""

    def __init__(self, ggml: ctypes.CDLL, base: ctypes.CDLL) -> None:
        ggml.ggml_backend_reg_by_name.restype = ctypes.c_void_p
        ggml.ggml_backend_reg_by_name.argtypes = [ctypes.c_char_p]
        base.ggml_backend_reg_get_proc_address.restype = ctypes.c_void_p
        base.ggml_backend_reg_get_proc_address.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
        self._base = base
        self._registry = ggml.ggml_backend_reg_by_name(b"pipeshard")
        if not self._registry:
            raise ImportError("llama.cpp did not load libpipeshard.so; what it printed says why")

    def _function(self, name: str, result: Any, *arguments: Any) -> Any:
        address = self._base.ggml_backend_reg_get_proc_address(self._registry, name.encode())
        if not address:
            raise ImportError(f"libpipeshard.so has no {name}: it is older than this package")
        return ctypes.CFUNCTYPE(result, *arguments)(address)

    def set_budget(self, budget: Size) -> None:
        """Changes the budget. When this returns, what was given up has been given back."""
        size = bytes_of(budget)
        if not self._function("pipeshard_set_budget", ctypes.c_bool, ctypes.c_uint64)(size):
            raise Error(INVALID, f"the budget was not changed to {size} bytes; the log says why")

    @property
    def report(self) -> Dict[str, Any]:
        """All that was counted so far (docs/report.md)."""
        text = self._function("pipeshard_report", ctypes.c_void_p)()
        if not text:
            return {}
        try:
            return dict(json.loads(ctypes.string_at(text)))
        finally:
            self._function("pipeshard_free", None, ctypes.c_void_p)(text)


def attach_llama_cpp(
    folder: Union[str, "os.PathLike[str]"],
    *,
    vram: Size,
    simulated: Optional[str] = None,
    report: Union[None, str, "os.PathLike[str]"] = None,
) -> Attached:
    """Lets llama-cpp-python run inside a budget of `vram`. To be called before llama_cpp is imported for the first time.

    `folder` is the one with libllama.so and libpipeshard.so, such as target/release after `make build`: llama_cpp uses the libraries in
    it in place of its own. Where the installed llama-cpp-python is not the release that is known to fit, Error says which one is.
    `simulated`: a simulated GPU, such as "vram=8G". `report`: a file for the report, which is written at the end.
    """
    if "llama_cpp" in sys.modules:
        raise RuntimeError("llama_cpp was imported already: call attach_llama_cpp before")
    place = Path(folder).resolve()
    for name in ("libllama.so", "libggml.so", "libggml-base.so", "libpipeshard.so"):
        if not (place / name).exists():
            raise FileNotFoundError(f"{place} has no {name}: it is the folder that `make build` fills, target/release")
    fit()
    os.environ["LLAMA_CPP_LIB_PATH"] = str(place)
    os.environ["MTMD_CPP_LIB"] = str(place / "libmtmd.so")
    os.environ["PIPESHARD_LIBRARY"] = str(place / "libpipeshard.so")
    os.environ["LLAMA_ARG_PIPESHARD"] = "1"
    os.environ["LLAMA_ARG_PIPESHARD_VRAM"] = str(bytes_of(vram))
    for variable, value in (("LLAMA_ARG_PIPESHARD_SIM", simulated), ("LLAMA_ARG_PIPESHARD_REPORT", report)):
        if value is not None:
            os.environ[variable] = os.fspath(value)
    # in the global scope, as llama_cpp loads them: it finds these
    base = ctypes.CDLL(str(place / "libggml-base.so"), mode=ctypes.RTLD_GLOBAL)
    ggml = ctypes.CDLL(str(place / "libggml.so"), mode=ctypes.RTLD_GLOBAL)
    ggml.ggml_backend_load_all_from_path.argtypes = [ctypes.c_char_p]
    ggml.ggml_backend_load_all_from_path.restype = None
    ggml.ggml_backend_load_all_from_path(os.fsencode(place))
    return Attached(ggml, base)
