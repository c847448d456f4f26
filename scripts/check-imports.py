#!/usr/bin/env python3
"""Fails where modules import each other in a circle: in every crate, between the folders, and between the files of each folder.

It reads `use` lines. What a `mod.rs` re-exports counts as an import of the file that has it, and a `pub use` as no import of
its own. Tests are left out.
"""

import re
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CRATES = [ROOT, *sorted((ROOT / "crates").iterdir()), ROOT / "lab"]
# Folders whose files are known to import each other.
ALLOWED: set[str] = set()

COMMENT = re.compile(r"//[^\n]*")
USE = re.compile(r"^[ \t]*(pub(?:\([^)]*\))?[ \t]+)?use\s+([^;]+);", re.M)


def without_tests(text):
    """The text without comments and `#[cfg(test)] mod tests { … }`, which end files here."""
    return re.split(r"#\[cfg\(test\)\]\s*(?:pub(?:\([^)]*\))?\s+)?mod \w+ \{", COMMENT.sub("", text))[0]


def leaves(tree, before=()):
    """All paths of a `use` tree, each as a tuple of names."""
    tree = tree.strip()
    if "{" not in tree:
        yield before + tuple(part.strip() for part in tree.split(" as ")[0].split("::") if part.strip())
        return
    head, rest = tree.split("{", 1)
    before += tuple(part.strip() for part in head.split("::") if part.strip())
    depth, start, body = 0, 0, rest.rsplit("}", 1)[0] + ","
    for at, char in enumerate(body):
        depth += (char == "{") - (char == "}")
        if char == "," and depth == 0:
            if body[start:at].strip():
                yield from leaves(body[start:at], before)
            start = at + 1


class Crate:
    def __init__(self, source):
        self.source = source
        self.files = {}  # module path -> file
        for file in sorted(source.rglob("*.rs")):
            parts = list(file.relative_to(source).with_suffix("").parts)
            if "tests" in parts or parts == ["main"]:
                continue
            if parts[-1] in ("mod", "lib"):
                parts.pop()
            self.files[tuple(parts)] = file
        self.uses = {module: self.read(module) for module in self.files}
        self.exports = {}
        for module, uses in self.uses.items():
            exported = ((path[-1], path) for public, path in uses if public)
            self.exports[module] = dict(exported)

    def read(self, module):
        """Whether it is public, and the absolute path, of each `use` of this crate's own modules."""
        found = []
        for public, tree in USE.findall(without_tests(self.files[module].read_text())):
            for path in leaves(tree):
                at = self.absolute(module, path)
                if at is not None:
                    found.append((bool(public), at))
        return found

    def absolute(self, module, path):
        if path[0] == "crate":
            return path[1:]
        if path[0] == "self":
            return module + path[1:]
        if path[0] == "super":
            while path and path[0] == "super":
                module, path = module[:-1], path[1:]
            return module + path
        return module + path if module + path[:1] in self.files else None

    def file_of(self, path, deep=0):
        """The module that has what a path names."""
        known = max((n for n in range(len(path) + 1) if path[:n] in self.files), default=0)
        module = path[:known]
        if known < len(path) and deep < 8:
            exported = self.exports[module].get(path[known])
            if exported is not None and exported != path[: known + 1]:
                return self.file_of(exported + path[known + 1 :], deep + 1)
        return module

    def edges(self):
        """Imports between the parts of each folder: folder -> part -> the parts that it imports."""
        graphs = defaultdict(lambda: defaultdict(set))
        folders = {path[:-1] for path in self.files if path}
        for module, uses in self.uses.items():
            for target in {self.file_of(path) for public, path in uses if not public}:
                if target == module:
                    continue
                # a module with files below it is a part of its own folder
                here, there = (p + ("mod",) if p in folders else p for p in (module, target))
                same = next(n for n in range(len(here) + 1) if here[: n + 1] != there[: n + 1])
                graphs[here[:same]][here[same]].add(there[same])
        return graphs


def circles(graph):
    """Sets of parts that reach each other."""

    def reached(start):
        seen, wait = set(), list(graph.get(start, ()))
        while wait:
            part = wait.pop()
            if part not in seen:
                seen.add(part)
                wait.extend(graph.get(part, ()))
        return seen

    reach = {part: reached(part) for part in graph}
    found = {frozenset(o for o in reach[part] if part in reach.get(o, ())) for part in graph if part in reach[part]}
    return sorted(sorted(circle) for circle in found)


def main():
    failed = False
    for crate in CRATES:
        source = crate / "src"
        for folder, graph in sorted(Crate(source).edges().items()):
            name = str(source.joinpath(*folder).relative_to(ROOT))
            for circle in circles(graph):
                arrows = (f"{a} -> {b}" for a in circle for b in sorted(graph[a]) if b in circle)
                print(f"{name}: {', '.join(circle)} import each other\n    " + ", ".join(arrows))
                failed |= name not in ALLOWED
    return failed


if __name__ == "__main__":
    sys.exit(main())
