"""The plug-in set in a process of Python: attach.py FOLDER MODEL SIMULATED. Run by tests/host_library.rs in a process of its own.

What llama-cpp-python does with it is in llama_cpp_python.py.
"""

import sys

import pipeshard

folder, _, simulated = sys.argv[1:4]
attached = pipeshard.attach_llama_cpp(folder, vram="200M", simulated=simulated)
assert attached.report["budget"] in (0, 200 << 20), attached.report
try:
    attached.set_budget("100M")
except pipeshard.Error as why:
    assert "no model" in str(why) or "log" in str(why), why
print("attached")
