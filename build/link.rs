//! The build script of every crate but `pipeshard-sys`, for cargo hands link arguments to the targets of one package only.

fn main() {
    // Executables and libpipeshard.so lie beside llama.cpp's libraries, tests one folder deeper.
    println!("cargo:rustc-link-arg=-Wl,-rpath,$ORIGIN:$ORIGIN/..");
    println!("cargo:rustc-link-arg=-Wl,--as-needed");
    // What of the debug information does not go into a file of its own, at the linker's better level of compression; names of
    // functions that nobody links with are a part of that file.
    println!("cargo:rustc-link-arg=-Wl,--compress-debug-sections=zlib");
    println!("cargo:rustc-link-arg=-Wl,-O2");
    println!("cargo:rustc-link-arg=-Wl,--discard-all");
}
