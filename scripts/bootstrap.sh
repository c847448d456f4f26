#!/usr/bin/env bash
# Installs what the build needs and the machine lacks: cmake, ninja, libclang, and pip or git where even these are missing.
# From the distribution where this may be done (root on Debian or Ubuntu), else as wheels into the project's own cache.
#   PIPESHARD_BOOTSTRAP=apt    only the distribution
#   PIPESHARD_BOOTSTRAP=pip    only wheels, even where the system has the tools
#   PIPESHARD_BOOTSTRAP=none   install nothing, only say what is missing
set -euo pipefail
cd "$(dirname "$0")/.."

mode=${PIPESHARD_BOOTSTRAP:-auto}
cache=${PIPESHARD_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/pipeshard}
tools=$cache/tools

say() { printf 'setup: %s\n' "$*" >&2; }
fail() { say "$@"; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

case $mode in auto | apt | pip | none) ;; *) fail "PIPESHARD_BOOTSTRAP=$mode: expected apt, pip or none" ;; esac

# --- what only the user can install -------------------------------------------------------------------------------

if ! have cargo; then
    fail "cargo is not on the PATH. Install Rust (rustup's stable toolchain is what is tested) and run this again."
fi
wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
present=$(rustc --version | cut -d' ' -f2)
if [ "$(printf '%s\n%s\n' "$wanted" "$present" | sort -V | head -n 1)" != "$wanted" ]; then
    fail "Rust $present is too old: $wanted or later is needed (with rustup: rustup update stable)."
fi
for program in cc c++; do
    have $program || fail "$program is not on the PATH. Install a C and C++ compiler (Debian, Ubuntu: apt-get install build-essential)."
done
have python3 || fail "python3 is not on the PATH. Install Python 3.8 or later (Debian, Ubuntu: apt-get install python3)."
python3 -c 'import sys; sys.exit(sys.version_info < (3, 8))' || fail "$(python3 --version) is too old: 3.8 or later is needed."

# --- what is missing ----------------------------------------------------------------------------------------------

have_cmake() {
    have cmake || return 1
    local version
    version=$(cmake --version | sed -n 's/^cmake version //p')
    [ "$(printf '3.14\n%s\n' "$version" | sort -V | head -n 1)" = 3.14 ]
}
have_libclang() {
    local dir
    [ -z "${LIBCLANG_PATH:-}" ] || return 0
    for dir in /usr/lib/llvm*/lib /usr/lib64 /usr/lib/*-linux-gnu /usr/local/lib /usr/lib; do
        if compgen -G "$dir/libclang.so*" >/dev/null || compgen -G "$dir/libclang-[0-9]*.so*" >/dev/null; then
            return 0
        fi
    done
    return 1
}
have_pip() { python3 -m pip --version >/dev/null 2>&1; }
have_patcher() { have git || have patch; }
# The wheels' tools, once they are there, are as good as the system's.
own() { [ "$mode" != apt ] && [ -e "$tools/$1" ]; }

missing() {
    own bin/cmake || have_cmake || echo cmake
    own bin/ninja || have ninja || echo ninja-build
    own lib/libclang.so || have_libclang || echo libclang1
    have_pip || echo python3-pip
    have_patcher || echo patch
}

# --- two ways to get it -------------------------------------------------------------------------------------------

may_use_apt() { [ "$mode" != pip ] && have apt-get && [ "$(id -u)" = 0 ]; }

install_with_apt() {
    say "installing from the distribution: $*"
    export DEBIAN_FRONTEND=noninteractive
    apt-get install -y -q --no-install-recommends "$@" >&2 && return 0
    say "refreshing the package lists"
    apt-get update -q >&2 && apt-get install -y -q --no-install-recommends "$@" >&2
}

install_wheels() {
    have_pip || return 1
    say "installing cmake, ninja and libclang as wheels into $tools"
    local fresh=$tools.new
    rm -rf "$fresh"
    mkdir -p "$fresh/bin" "$fresh/lib"
    PIP_ROOT_USER_ACTION=ignore python3 -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: --require-hashes \
        -r vendor/build-tools.txt --target "$fresh/wheels" >&2 || return 1
    ln -s ../wheels/cmake/data/bin/cmake "$fresh/bin/cmake"
    ln -s ../wheels/bin/ninja "$fresh/bin/ninja"
    ln -s ../wheels/clang/native/libclang.so "$fresh/lib/libclang.so"
    "$fresh/bin/cmake" --version >/dev/null && "$fresh/bin/ninja" --version >/dev/null || return 1
    rm -rf "$tools"
    mv "$fresh" "$tools"
}

# --- do it --------------------------------------------------------------------------------------------------------

if [ "$mode" = pip ] && [ ! -e "$tools/bin/cmake" ]; then
    install_wheels || fail "the wheels of vendor/build-tools.txt could not be installed: is pip there, and a package index?"
fi

lacking=$(missing | tr '\n' ' ')
if [ -n "$lacking" ] && [ "$mode" != none ]; then
    if may_use_apt; then
        # ccache is no need, but makes every later build of llama.cpp a matter of seconds.
        have ccache && extra="" || extra=ccache
        # shellcheck disable=SC2086  # lists of words
        install_with_apt $lacking $extra || say "the distribution's packages could not be installed"
        lacking=$(missing | tr '\n' ' ')
    fi
    case $lacking in
        *cmake* | *ninja* | *libclang*)
            if [ "$mode" != apt ]; then
                install_wheels || say "the wheels of vendor/build-tools.txt could not be installed"
                lacking=$(missing | tr '\n' ' ')
            fi
            ;;
    esac
fi
if [ -n "$lacking" ]; then
    fail "still missing: $lacking(names of Debian's and Ubuntu's packages). As root: apt-get install $lacking"
fi
say "cmake, ninja, libclang, pip and a patch tool are there"
