//! The build script of every crate but `pipeshard-sys`, for cargo hands link arguments to the targets of one package only.

fn main() {
    // Executables and libpipeshard.so lie beside llama.cpp's libraries, tests one folder deeper.
    println!("cargo:rustc-link-arg=-Wl,-rpath,$ORIGIN:$ORIGIN/..");
    println!("cargo:rustc-link-arg=-Wl,--as-needed");
    // What of the debug information does not go into a file of its own.
    println!("cargo:rustc-link-arg=-Wl,--compress-debug-sections=zlib");
}
