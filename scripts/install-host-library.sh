#!/usr/bin/env bash
# Installs the library for host programs: `make install PREFIX=/usr/local DESTDIR=`, after `make host-library`.
#
#     include/pipeshard.h
#     lib/libpipeshard.so.VERSION, and the links libpipeshard.so.0 (for programs) and libpipeshard.so (for linkers)
#     lib/pkgconfig/pipeshard.pc, lib/cmake/pipeshard/
#     lib/pipeshard/nvigi.plugin.gpt.ggml.pipeshard.so and include/pipeshard_nvigi.h, if the plug-in was built
#     share/doc/pipeshard/: examples, licences
set -euo pipefail
cd "$(dirname "$0")/.."

prefix=${PREFIX:-/usr/local}
into=${DESTDIR:-}$prefix
library=${CARGO_TARGET_DIR:-target}/host-library/libpipeshard_capi.so
crate=crates/pipeshard-capi
plugin=${CARGO_TARGET_DIR:-target}/host-library/libpipeshard_nvigi.so

case $prefix in
    /*) ;;
    *) echo "install: PREFIX is '$prefix', which is not a whole path" >&2; exit 2 ;;
esac
if [ ! -f "$library" ]; then
    echo "install: there is no $library; build it first: make host-library" >&2
    exit 1
fi
version=$(sed -n 's/^version = "\([0-9.]*\)"$/\1/p' Cargo.toml | head -n 1)
soname=$(sed -n 's/.*-soname,\([^"]*\)".*/\1/p' $crate/build.rs)
if [ -z "$version" ] || [ -z "$soname" ]; then
    echo "install: no version in Cargo.toml, or no name of the library in $crate/build.rs" >&2
    exit 1
fi
IFS=. read -r major minor _ <<<"$version"

fill() { # TEMPLATE FOLDER
    install -d "$2"
    sed -e "s/@VERSION@/$version/g" -e "s/@MAJOR@/$major/g" -e "s/@MINOR@/$minor/g" -e "s/@SONAME@/$soname/g" \
        "$crate/dist/$1.in" >"$2/$1"
    chmod 644 "$2/$1"
}

install -d "$into/include" "$into/lib" "$into/share/doc/pipeshard/examples"
install -m 644 $crate/include/pipeshard.h "$into/include/"
# Next to the old file and then in its place: a program that runs with the old one keeps it.
install -m 755 "$library" "$into/lib/libpipeshard.so.$version.new"
strip --strip-debug "$into/lib/libpipeshard.so.$version.new" # a third of it; names of functions stay, for reports of crashes
mv -f "$into/lib/libpipeshard.so.$version.new" "$into/lib/libpipeshard.so.$version"
ln -sfn "libpipeshard.so.$version" "$into/lib/$soname"
ln -sfn "$soname" "$into/lib/libpipeshard.so"
fill pipeshard.pc "$into/lib/pkgconfig"
fill pipeshard-config.cmake "$into/lib/cmake/pipeshard"
fill pipeshard-config-version.cmake "$into/lib/cmake/pipeshard"
install -m 644 examples/chat.c examples/game.c examples/CMakeLists.txt "$into/share/doc/pipeshard/examples/"
install -m 644 LICENSE THIRD-PARTY-NOTICES "$into/share/doc/pipeshard/"
if [ -f "$plugin" ]; then
    name=nvigi.plugin.gpt.ggml.pipeshard.so # hosts look for models in a folder that is called as the file is
    install -d "$into/lib/pipeshard"
    install -m 755 "$plugin" "$into/lib/pipeshard/$name.new"
    strip --strip-debug "$into/lib/pipeshard/$name.new"
    mv -f "$into/lib/pipeshard/$name.new" "$into/lib/pipeshard/$name"
    install -m 644 crates/pipeshard-nvigi/include/pipeshard_nvigi.h "$into/include/"
fi

echo "installed pipeshard $version into $into"
if [ -z "${DESTDIR:-}" ] && [ "$(id -u)" = 0 ] && [ "$prefix" = /usr/local ]; then
    ldconfig || echo "install: run ldconfig, so that programs find $into/lib/$soname" >&2
fi
