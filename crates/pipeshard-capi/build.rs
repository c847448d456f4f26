//! Compiles what is in C++ (src/chat.cpp), and names the library.

use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-changed=src/chat.cpp");
    println!("cargo:rerun-if-changed=src/environment.c");
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libpipeshard.so.0");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,defs");
    // src/environment.c
    println!("cargo:rustc-cdylib-link-arg=-Wl,--wrap=getenv");
    // The folder of the library first, for what it is linked with (CUDA's libraries).
    println!("cargo:rustc-cdylib-link-arg=-Wl,-rpath,$ORIGIN");
    println!("cargo:rustc-cdylib-link-arg=-Wl,--as-needed");
    println!("cargo:rustc-cdylib-link-arg=-Wl,--compress-debug-sections=zlib");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-O2");
    let source = PathBuf::from(std::env::var("DEP_PIPESHARD_LLAMA_CPP_SOURCE").unwrap_or_default());
    let mut build = cc::Build::new();
    for folder in ["include", "ggml/include", "common", "vendor"] {
        build.include(source.join(folder));
    }
    build
        .cpp(true)
        .std("c++17")
        .flag("-fno-gnu-unique")
        .flag("-fvisibility=hidden")
        // llama.cpp's headers have static functions that not every file uses
        .flag("-Wno-unused-function")
        // pipeshard-sys links the C++ library, as an archive
        .cpp_link_stdlib(None)
        .file("src/chat.cpp")
        .compile("pipeshard-chat");
    cc::Build::new()
        .std("c99")
        .flag("-fvisibility=hidden")
        .warnings(true)
        .extra_warnings(true)
        .file("src/environment.c")
        .compile("pipeshard-environment");
}
