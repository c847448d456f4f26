#!/usr/bin/env python3
"""Fails where the documents do not hold together, or do not agree with the code.

* Every relative link and every #anchor in the Markdown files resolves.
* Every flag `--pipeshard…` and every variable `PIPESHARD_…` in the code stands in docs/options.md, and the other way round;
  the switches `PIPESHARD_DEBUG_…` stand in docs/development.md. Every flag of the `pipeshard` tool stands in its command's
  section of docs/options.md, and the other way round.
* Every variable of the tools has a flag, or docs/options.md says why it has none.
* Every message that docs/troubleshooting.md lists, unless it is marked as llama.cpp's, is one of the code.
* README.md and docs/benchmarks.md stay short.
* Words that hide what is meant are not used outside of code.

With `--root FOLDER` it checks another copy of the repository.
"""

import argparse
import os
import re
import sys
import unicodedata
from pathlib import Path

MOST_LINES = {"README.md": 140, "docs/benchmarks.md": 150}

# Written by programs, or quoting words of the code.
GENERATED = {"docs/compatibility.md"}

# What is not written in prose, and what to write instead.
WORDS = {
    r"beside": "while, next to, compared with",
    r"cells?": "KV cache, tokens",
    r"as far as": "where, if",
    r"comes to|came to": "is, amounts to",
    r"nobody|whoever": "say who",
    r"makes? do": "say what happens",
    r"holds? (?:one|it) fast": "pins",
    r"(?:were|was|are|is) to be": "target: …",
    r"theirs|ours": "stock's, pipeshard's",
    r"(?<!there\s)(?:is|are) no (?!longer|more\b|larger|slower|faster|worse|better)\w+": "is not a …",
    r"all the same": "anyway",
    r"on its own account": "for itself",
}

# Files of the code that may name flags and variables.
CODE = {".rs", ".py", ".sh", ".patch", ".h", ".c", ".cpp", ".toml"}
CODE_NAMES = {"Makefile", "run"}
NOT_OURS = {"target", ".git", "vendor", "shared", "node_modules"}
FLAG = re.compile(r"(?<![\w-])--pipeshard(?:-[a-z]+)*(?![a-z_])")
VARIABLE = re.compile(r"(?<![A-Za-z0-9_])(?:LLAMA_ARG_)?PIPESHARD(?:_[A-Z0-9]+)+(?![A-Z0-9_*…])")
VARIABLE_ALONE = re.compile(r"(?<![A-Za-z0-9_])LLAMA_ARG_PIPESHARD(?![A-Z0-9_])")
SWITCH = "PIPESHARD_DEBUG_"
# Names of the same kind that are no variables of the environment: those of C.
MACRO = re.compile(r"^\s*#\s*define\s+(PIPESHARD_[A-Z0-9_]+)", re.M)

FENCE = re.compile(r"^(```|~~~).*?^\1[^\S\n]*$", re.M | re.S)
COMMENT = re.compile(r"<!--.*?-->", re.S)
INLINE = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)", re.S)
LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\[\]]*\])*\]\(\s*<?([^()\s<>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
HEADING = re.compile(r"^#{1,6}\s+(.*?)\s*#*$", re.M)
ARGUMENT = re.compile(r"#\[arg\((?P<how>(?:[^()]|\((?:[^()]|\([^()]*\))*\))*)\)\]\s*pub (?P<name>\w+)\s*:", re.S)


def blank(match):
    """As many lines, and nothing in them."""
    return "\n" * match.group().count("\n")


def prose(text):
    """Without code blocks, comments and code within lines; lines keep their numbers."""
    return INLINE.sub(blank, COMMENT.sub(blank, FENCE.sub(blank, text)))


def slug(heading):
    """The anchor that GitHub makes of a heading."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").strip().lower()
    kept = (c for c in text if c in " -_" or unicodedata.category(c)[0] in "LN")
    return "".join(kept).replace(" ", "-")


def anchors(text):
    """All anchors of a page."""
    found, seen = set(), {}
    for heading in HEADING.findall(FENCE.sub(blank, text)):
        name = slug(heading)
        count = seen.get(name, 0)
        seen[name] = count + 1
        found.add(f"{name}-{count}" if count else name)
    return found | set(re.findall(r"<a (?:id|name)=\"([^\"]+)\"", text))


class Check:
    """Reads a repository and collects what is wrong."""

    def __init__(self, root):
        self.root = root
        self.faults = []
        pages = [*root.glob("*.md"), *root.glob("docs/**/*.md"), *root.glob("*/README.md")]
        self.pages = {page.relative_to(root).as_posix(): page.read_text() for page in sorted(set(pages))}

    def fault(self, where, what):
        self.faults.append(f"{where}: {what}")

    def page(self, name):
        """A page that has to be there."""
        if name not in self.pages:
            self.fault(name, "is missing")
        return self.pages.get(name, "")

    def links(self):
        for name, text in self.pages.items():
            body = INLINE.sub(lambda m: "x" * len(m.group()) if "](" in m.group() else m.group(), FENCE.sub(blank, text))
            for match in LINK.finditer(body):
                target = match.group(1)
                if re.match(r"[a-z][a-z0-9+.-]*:", target):
                    continue
                where = f"{name}:{body.count(chr(10), 0, match.start()) + 1}"
                path, _, anchor = target.partition("#")
                file = (self.root / name).parent / path if path else self.root / name
                if not file.exists():
                    self.fault(where, f"there is no {target}")
                elif anchor and file.suffix == ".md" and anchor not in anchors(file.read_text()):
                    self.fault(where, f"{path or name} has no heading #{anchor}")

    def lengths(self):
        for name, most in MOST_LINES.items():
            lines = self.page(name).count("\n")
            if lines > most:
                self.fault(name, f"{lines} lines, {most} at most")

    def words(self):
        words = {word.replace(" ", r"\s+"): instead for word, instead in WORDS.items()}
        patterns = [(re.compile(rf"\b(?:{word})\b", re.I), instead) for word, instead in words.items()]
        for name, text in self.pages.items():
            if name in GENERATED:
                continue
            body = prose(text)
            for pattern, instead in patterns:
                for match in pattern.finditer(body):
                    line = body.count("\n", 0, match.start()) + 1
                    self.fault(f"{name}:{line}", f"'{' '.join(match.group().split())}' (write: {instead})")

    def code(self):
        """The text of all code but this script."""
        for folder, folders, files in os.walk(self.root):
            folders[:] = sorted(set(folders) - NOT_OURS)
            for file in map(Path, sorted(files)):
                if (file.suffix in CODE or file.name in CODE_NAMES) and file.name != Path(__file__).name:
                    yield (Path(folder) / file).read_text(errors="replace")

    def names(self):
        options, development = self.page("docs/options.md"), self.page("docs/development.md")
        flags, switches, variables = self.flags_of_tools(), self.known_switches(), set()
        macros = set()
        for text in self.code():
            variables.update(VARIABLE.findall(text))
            variables.update(VARIABLE_ALONE.findall(text))
            macros.update(MACRO.findall(text))
        # the header of the library for programs defines its codes; what the code reads from the environment it does not define
        variables -= macros
        variables = {name for name in variables if not f"{name}_".startswith(SWITCH)}
        told = set(FLAG.findall(options)), {*VARIABLE.findall(options), *VARIABLE_ALONE.findall(options)}
        told_switches = {name for name in VARIABLE.findall(development) if name.startswith(SWITCH)}
        for page, kind, here, there in (
            ("docs/options.md", "flag", flags, told[0]),
            ("docs/options.md", "variable", variables, told[1]),
            ("docs/development.md", "switch", switches, told_switches),
        ):
            for name in sorted(here - there):
                self.fault(page, f"the {kind} {name} of the code is missing")
            for name in sorted(there - here):
                self.fault(page, f"no code knows the {kind} {name}")
        for name, text in self.pages.items():
            for flag in sorted(set(FLAG.findall(text)) - flags):
                self.fault(name, f"no code knows the flag {flag}")

    def reasons(self):
        """A variable of the tools has a flag, or docs/options.md says why it has none."""
        page = self.page("docs/options.md")
        sections = {part.split("\n", 1)[0]: part for part in re.split(r"(?m)^## ", page)}
        rows = lambda title: re.findall(r"(?m)^\|(.+)\|$", sections.get(title, ""))[2:]
        columns = lambda row: [column.strip() for column in row.split("|")]
        explained = set()
        for row in map(columns, rows("Environment variables without a flag")):
            for variable in VARIABLE.findall(row[0]):
                if variable.startswith("LLAMA_ARG_"):
                    self.fault("docs/options.md", f"{variable} has no flag, although llama.cpp gives each LLAMA_ARG_ one")
                if len(row) < 4 or not row[3]:
                    self.fault("docs/options.md", f"nothing says why {variable} has no flag")
                explained.add(variable)
        building = sections.get("Building, demo and tests", "")
        if not building.split("\n", 1)[-1].lstrip().startswith("No flags: "):
            self.fault("docs/options.md", "nothing says why what is for building and tests has no flags")
        explained |= set(VARIABLE.findall(building))
        patches = "".join(file.read_text() for file in self.root.glob("patches/*.patch"))
        given = dict(re.findall(r"\{ \"(--pipeshard(?:-[a-z]+)*)\", +\"([A-Z_]+)\"", patches))
        told = {row[0].split("`")[1].split(" ")[0]: row[1].strip("`") for row in map(columns, rows("Flags of llama.cpp's tools"))}
        for flag in sorted(given.keys() | told.keys()):
            if given.get(flag) != told.get(flag):
                self.fault("docs/options.md", f"{flag} is {given.get(flag)} in the patches, {told.get(flag)} on the page")
        for variable in sorted(set(VARIABLE.findall(page)) - explained - set(given.values())):
            if not variable.startswith(SWITCH):
                self.fault("docs/options.md", f"{variable} has neither a flag nor a reason why not")

    def messages(self):
        code = "\n".join(self.code())
        code = re.sub(r'\\\n\s*|"\s*\n\+\s*"', "", code)  # texts that go on in the next line, in Rust and in patches
        code = re.sub(r"\{[^{}\n\"]{0,40}\}", "…", re.sub(r"\s+", " ", code))
        text = self.page("docs/troubleshooting.md")
        for match in re.finditer(r"^\* ((?:`[^`]+`(?:, (?:then )?| or )?)+)( \(llama\.cpp's\))?", text, re.M):
            for message in re.findall(r"`([^`]+)`", match.group(1)) if not match.group(2) else ():
                pieces = (piece.strip(" '`:") for piece in re.split(r"[…;]", " ".join(message.split())))
                for piece in pieces:
                    if len(piece) > 12 and piece not in code:
                        line = text.count("\n", 0, match.start()) + 1
                        self.fault(f"docs/troubleshooting.md:{line}", f"no code says '{piece}'")

    def flags_of_tools(self):
        """The flags that patches/ give to llama.cpp's tools."""
        text = "".join(file.read_text() for file in self.root.glob("patches/*.patch"))
        return set(re.findall(r"\{ \"(--pipeshard(?:-[a-z]+)*)\",", text))

    def known_switches(self):
        """The switches for tests that src/hook/config.rs lists."""
        text = (self.root / "src/hook/config.rs").read_text()
        listed = re.search(r"const SWITCHES\b[^=]*=\s*\[(.*?)\];", text, re.S)
        return set(re.findall(r"PIPESHARD_DEBUG_\w+", listed.group(1)))

    def commands(self):
        """The flags of each command of `pipeshard`, by clap's attributes, and the tables of docs/options.md."""
        options = self.page("docs/options.md")
        sections = re.split(r"(?m)^(?=`pipeshard (\w+))", options.partition("## The `pipeshard` tool")[2].partition("\n## ")[0])
        told = {}
        for command, section in zip(sections[1::2], sections[2::2]):
            head = section.split("\n", 1)[0].split(":", 1)[0]
            first = " ".join([head, *re.findall(r"^\|([^|]*)\|", section, re.M)])
            told[command] = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", first))
        source = self.root / "crates/pipeshard-cli/src"
        for command in sorted({*told, *("plan", "profile", "bench", "verify", "trace", "eval")}):
            files = sorted((source / command).glob("*.rs")) or [source / f"{command}.rs"]
            text = "".join(file.read_text() for file in files if file.exists())
            flags = set()
            for match in ARGUMENT.finditer(text):
                named = re.search(r"\blong\b(?:\s*=\s*\"([^\"]+)\")?", match["how"])
                if named:
                    flags.add("--" + (named.group(1) or match["name"].replace("_", "-")))
            for flag in sorted(flags - told.get(command, set())):
                self.fault("docs/options.md", f"{flag} of pipeshard {command} is missing")
            for flag in sorted(told.get(command, set()) - flags):
                self.fault("docs/options.md", f"pipeshard {command} has no {flag}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parent.parent)
    check = Check(parser.parse_args().root.resolve())
    check.links()
    check.lengths()
    check.words()
    check.names()
    check.commands()
    check.reasons()
    check.messages()
    for fault in check.faults:
        print(fault, file=sys.stderr)
    if check.faults:
        sys.exit(f"check-docs: {len(check.faults)} faults in the documents")


if __name__ == "__main__":
    main()
