"""The structs, functions and constants of pipeshard/_c.py are those of the header. Needs a C compiler.

TEST_HEADER names the header; the checkout's own where it is not set.
"""

import ctypes
import os
import re
import subprocess
import tempfile
import unittest
from pathlib import Path

import pipeshard
from pipeshard import _c, _errors

HEADER = Path(
    os.environ.get("TEST_HEADER") or Path(__file__).resolve().parents[2] / "crates/pipeshard-capi/include/pipeshard.h"
)


def printed(lines: "list[str]") -> "list[str]":
    """What a C program prints that consists of these lines."""
    text = '#include "{}"\n#include <stddef.h>\n#include <stdio.h>\nint main(void) {{\n{}\nreturn 0;\n}}\n'
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder, "layout.c"), Path(folder, "layout")
        source.write_text(text.format(HEADER, "\n".join(lines)))
        subprocess.run([os.environ.get("CC", "cc"), "-o", program, source], check=True)
        return subprocess.run([program], check=True, capture_output=True, text=True).stdout.split("\n")[:-1]


class Layout(unittest.TestCase):
    def test_structs(self) -> None:
        lines, expected = [], []
        for name, struct in _c.STRUCTS.items():
            lines.append(f'printf("{name} %zu\\n", sizeof({name}));')
            expected.append(f"{name} {ctypes.sizeof(struct)}")
            for member, *_ in struct._fields_:
                place = getattr(struct, member)
                lines.append(
                    f'printf("{name}.{member} %zu %zu\\n", offsetof({name}, {member}), sizeof((({name} *) 0)->{member}));'
                )
                expected.append(f"{name}.{member} {place.offset} {place.size}")
        self.assertEqual(printed(lines), expected)

    def test_no_struct_is_missing(self) -> None:
        declared = re.findall(r"^} (pipeshard_\w+);", HEADER.read_text(), re.M)
        self.assertEqual(sorted(declared), sorted(_c.STRUCTS))

    def test_no_function_is_missing(self) -> None:
        declared = re.findall(r"^PIPESHARD_API .*?\b(pipeshard_\w+)\(", HEADER.read_text(), re.M)
        self.assertEqual(sorted(declared), sorted(name for name, *_ in _c.FUNCTIONS))

    def test_numbers_of_arguments(self) -> None:
        functions = re.findall(r"^PIPESHARD_API .*?\b(pipeshard_\w+)\(([^;]*)\);", HEADER.read_text(), re.M)
        counts = {name: 0 if given == "void" else given.count(",") + 1 for name, given in functions}
        self.assertEqual(counts, {name: len(arguments) for name, _, arguments in _c.FUNCTIONS})

    def test_constants(self) -> None:
        found = dict(re.findall(r"^#define PIPESHARD_(\w+)\s+(-?\w+)", HEADER.read_text(), re.M))
        codes = {name[2:]: int(value) for name, value in found.items() if name.startswith("E_")}
        ours = {name: value for name, value in vars(_errors).items() if isinstance(value, int)}
        self.assertEqual(codes, ours)
        self.assertEqual(codes, {name: getattr(pipeshard, name) for name in codes})
        for name in ("EVENT_TEXT", "EVENT_DONE", "EVENT_ENDED"):
            self.assertEqual(int(found[name]), getattr(_c, name))
        self.assertEqual(int(found["VERSION"].rstrip("u"), 16), _c.VERSION)
        self.assertEqual(int(found["DEVICE_NO_PAGE_LOCK"].rstrip("u")), _c.NO_PAGE_LOCK)
        for name in ("BUDGET_ROUND_TRIP", "BUDGET_SLEEP"):
            self.assertEqual(int(found[name].rstrip("u")), getattr(_c, name))


if __name__ == "__main__":
    unittest.main()
