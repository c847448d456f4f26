#!/usr/bin/env python3
"""Turns patches/ into a git repository in which they can be edited or rebased, and back.

    patches.py open DIR            makes DIR: the pinned llama.cpp, then one commit per patch; stops at one that does
                                   not apply, with what could be applied in the work tree and the rest in *.rej
    patches.py continue DIR        commits what the work tree has for that patch, and goes on with the next
    patches.py save DIR            writes patches/ from the commits of DIR

Edit a patch as git does it: change files in DIR, `git commit --fixup=COMMIT`, `git rebase -i --autosquash pristine`, save.
"""

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PATCHES = ROOT / "patches"
WHO = ["-c", "user.name=patches", "-c", "user.email=patches@localhost", "-c", "core.abbrev=7"]


class PatchError(Exception):
    """A message for the person who ran this."""


def git(directory: Path, *args: str, check: bool = True) -> str:
    result = subprocess.run(["git", *WHO, *args], cwd=directory, text=True, capture_output=True)
    if check and result.returncode != 0:
        raise PatchError(f"git {' '.join(args[:2])} failed in {directory}:\n{result.stdout}{result.stderr}")
    return result.stdout


def parts(patch: Path) -> tuple[str, str]:
    """A patch's message, and its diff."""
    message, _, diff = patch.read_text().partition("\n---\n")
    return message, diff


def commit(directory: Path, patch: Path) -> None:
    git(directory, "add", "-A", "-f", ".")
    git(directory, "commit", "-q", "-m", f"{patch.stem}\n\n{parts(patch)[0]}")


def apply_from(directory: Path, patches: list[Path]) -> None:
    for patch in patches:
        diff = parts(patch)[1]
        command = ["git", *WHO, "apply", "--whitespace=nowarn", "--reject", "-"]
        result = subprocess.run(command, cwd=directory, input=diff, text=True, capture_output=True)
        if result.returncode != 0:
            rejected = [str(p.relative_to(directory)) for p in directory.rglob("*.rej")]
            raise PatchError(
                f"{patch.name} does not apply as it is. Put in by hand what is in\n  " + "\n  ".join(rejected) +
                f"\nremove these files, then: scripts/patches.py continue {directory}"
            )
        commit(directory, patch)
        print(f"applied {patch.name}")


def open_repository(directory: Path) -> None:
    if directory.exists():
        raise PatchError(f"{directory} exists: name a folder that does not")
    fetch = [sys.executable, str(ROOT / "scripts/fetch.py"), "llama.cpp", "--extract", str(directory)]
    if subprocess.run(fetch, stdout=sys.stderr).returncode != 0:
        raise PatchError("the pinned llama.cpp could not be fetched (see above)")
    git(directory, "init", "-q", ".")
    git(directory, "add", "-A", "-f", ".")
    git(directory, "commit", "-q", "-m", "pristine")
    git(directory, "tag", "pristine")
    apply_from(directory, sorted(PATCHES.glob("*.patch")))


def continue_after(directory: Path) -> None:
    left = list(directory.rglob("*.rej"))
    if left:
        raise PatchError("not put in yet: " + ", ".join(str(p.relative_to(directory)) for p in left))
    done = int(git(directory, "rev-list", "--count", "pristine..HEAD"))
    patches = sorted(PATCHES.glob("*.patch"))
    commit(directory, patches[done])
    apply_from(directory, patches[done + 1:])


def save(directory: Path) -> None:
    if git(directory, "status", "--porcelain"):
        raise PatchError(f"{directory} has changes that are not committed")
    written = set()
    for entry in git(directory, "rev-list", "--reverse", "pristine..HEAD").split():
        name, _, message = git(directory, "log", "-1", "--format=%B", entry).strip().partition("\n\n")
        diff = git(directory, "diff", "--no-renames", f"{entry}^", entry)
        (PATCHES / f"{name}.patch").write_text(f"{message}\n---\n{diff}")
        written.add(f"{name}.patch")
    for patch in PATCHES.glob("*.patch"):
        if patch.name not in written:
            patch.unlink()
    print(f"wrote {len(written)} patches")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["open", "continue", "save"])
    parser.add_argument("directory", type=Path, metavar="DIR")
    options = parser.parse_args()
    work = {"open": open_repository, "continue": continue_after, "save": save}[options.what]
    try:
        work(options.directory.resolve())
        return 0
    except (PatchError, OSError) as error:
        print(f"patches: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
