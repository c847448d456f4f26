"""The plug-in set in a process of Python: attach.py FOLDER MODEL [SIMULATED]. Run by tests/host_library.rs in a process of its own.

With llama-cpp-python installed it generates as well.
"""

import importlib.util
import sys

import pipeshard

folder, model, simulated = sys.argv[1:4]
attached = pipeshard.attach_llama_cpp(folder, vram="200M", simulated=simulated)
if importlib.util.find_spec("llama_cpp") is None:
    assert attached.report["budget"] in (0, 200 << 20), attached.report
    try:
        attached.set_budget("100M")
    except pipeshard.Error as why:
        assert "no model" in str(why) or "log" in str(why), why
    print("attached, without llama_cpp")
    sys.exit()

import llama_cpp  # noqa: E402

llama = llama_cpp.Llama(model, n_ctx=512, n_threads=1, n_gpu_layers=-1, verbose=False)
first = llama("abcd", max_tokens=12, temperature=0.0)["choices"][0]["text"]
attached.set_budget("40M")
second = llama("abcd", max_tokens=12, temperature=0.0)["choices"][0]["text"]
assert first == second, (first, second)
report = attached.report
assert report["engaged"] and report["budget"] == 40 << 20, report
print(f"attached, with llama_cpp {llama_cpp.__version__}")
