"""llama-cpp-python on the plug-in set: llama_cpp_python.py FOLDER MODEL SIMULATED. Run by tests/host_library.rs in a process of its own.

Its answers are those of stock llama.cpp (TEST_EXPECTED), whatever budget there is at each token, and its structs are those of the
llama.cpp in FOLDER: TEST_SIZES has their sizes in bytes, as "llama_model_params=80 ...".
"""

import ctypes
import os
import sys

import pipeshard

MIB = 1 << 20

folder, path, simulated = sys.argv[1:4]
prompt, expected, count = os.environ["TEST_PROMPT"], os.environ["TEST_EXPECTED"], int(os.environ["TEST_TOKENS"])

attached = pipeshard.attach_llama_cpp(folder, vram="120M", simulated=simulated)

import llama_cpp  # noqa: E402

for known in os.environ["TEST_SIZES"].split():
    name, size = known.split("=")
    ours = ctypes.sizeof(getattr(llama_cpp, name))
    assert ours == int(size), f"{name} has {ours} bytes in llama_cpp {llama_cpp.__version__}, and {size} in {folder}"

llama = llama_cpp.Llama(path, n_ctx=512, n_threads=1, n_gpu_layers=-1, verbose=False)


def says(budgets: "list[int]") -> str:
    """An answer, with a change of the budget at each token."""
    text, number = "", 0
    llama.reset()
    for piece in llama(prompt, max_tokens=count, temperature=0.0, stream=True):
        text = text + piece["choices"][0]["text"]
        if budgets:
            attached.set_budget(budgets[number % len(budgets)] * MIB)
        number += 1
    return text


def same(text: str, what: str) -> None:
    assert text == expected, f"{what}: {text!r} in place of {expected!r}"


same(says([]), "120 MiB")
same(says([44, 120, 60, 50]), "budgets that change")
attached.set_budget(44 * MIB)
same(says([]), "44 MiB")
report = attached.report
assert report["engaged"] and report["budget"] == 44 * MIB, report
# the plug-in streams: the answers above are not those of a model that lies on the GPU as a whole
assert report["bytes_streamed"] > 0 and report["budget_changes"] > 3 and report["not_resident"], report
print(f"llama_cpp {llama_cpp.__version__}: {count} tokens three times")
