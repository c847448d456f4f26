"""The structs of llama-cpp-python, made those of the llama.cpp here.

A package that is built for another llama.cpp passes structs of another size: answers are wrong, or the process crashes. No release of
llama-cpp-python was made for llama.cpp b11549, so what FITS lacks is put into its source while it is imported, and other releases are
refused.
"""

import importlib.abc
import importlib.machinery
import importlib.metadata
import sys
from types import ModuleType
from typing import Any, Optional

from ._errors import UNSUPPORTED, Error

#: The release that is made to fit: python/tests/llama_cpp_python.py compares the sizes of its structs with llama.cpp's.
FITS = "0.3.36"

#: What llama_context_params has had since: the bytes of a cache of experts, behind the types of the KV cache.
_BEFORE = b'("type_v", ctypes.c_int),\n        ("abort_callback"'
_SINCE = b'("type_v", ctypes.c_int),\n        ("moe_cache_size", ctypes.c_size_t),\n        ("abort_callback"'

_MODULE = "llama_cpp.llama_cpp"


def _refused(found: str) -> Error:
    return Error(
        UNSUPPORTED,
        f"llama-cpp-python {found} is installed, whose structs are not known to be those of the llama.cpp here. Answers would be wrong, or "
        f"the process would crash. Install {FITS}: CMAKE_ARGS=-DLLAMA_BUILD=OFF pip install --no-binary llama-cpp-python "
        f"llama-cpp-python=={FITS}",
    )


class _Loader(importlib.machinery.SourceFileLoader):
    """Loads the module with the structs, whatever was compiled of it before."""

    def get_code(self, fullname: str) -> Any:
        path = self.get_filename(fullname)
        source = self.get_data(path)
        if source.count(_BEFORE) != 1:
            raise _refused("with other sources than the release's")
        return self.source_to_code(source.replace(_BEFORE, _SINCE), path)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds that module, and nothing else."""

    def find_spec(self, fullname: str, path: Any, target: Optional[ModuleType] = None) -> Optional[importlib.machinery.ModuleSpec]:
        if fullname != _MODULE:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.origin is not None:
            spec.loader = _Loader(fullname, spec.origin)
        return spec


def fit() -> None:
    """Has llama_cpp imported with the structs of the llama.cpp here. Raises Error where that is not known how."""
    try:
        found = importlib.metadata.version("llama_cpp_python")
    except importlib.metadata.PackageNotFoundError:
        # nothing that could be imported
        return
    if found != FITS:
        raise _refused(found)
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
