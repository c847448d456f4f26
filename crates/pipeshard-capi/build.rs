//! Compiles what is in C++ (src/chat.cpp) and C, and names the library.

use std::path::PathBuf;

/// Files in C, and the functions that they stand in for, in all of the library.
const INSTEAD: &[(&str, &[&str])] = &[
    ("environment", &["getenv"]),
    (
        "threads",
        &[
            "pthread_create",
            "pthread_key_create",
            "__cxa_thread_atexit_impl",
        ],
    ),
    (
        "quiet",
        &[
            "fprintf", "printf", "fputs", "puts", "fwrite", "fputc", "putc", "putchar",
        ],
    ),
    ("random", &["arc4random"]),
    (
        "memory",
        &[
            "ggml_backend_buft_alloc_buffer",
            "ggml_gallocr_reserve_n",
            "ggml_gallocr_alloc_graph",
        ],
    ),
];

/// Those of builds with CUDA.
const INSTEAD_OF_CUDA: (&str, &[&str]) = (
    "cuda",
    &[
        "cudaMalloc",
        "cudaFree",
        "cudaMallocHost",
        "cudaFreeHost",
        "cudaStreamCreateWithFlags",
        "cudaStreamDestroy",
    ],
);

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libpipeshard.so.0");
    compile_and_link("src");
}

/// Compiles what lies in the folder `of`, and tells the linker how the library is made. crates/pipeshard-nvigi does the same.
pub fn compile_and_link(of: &str) {
    println!("cargo:rerun-if-changed={of}/chat.cpp");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,defs");
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
        .file(format!("{of}/chat.cpp"))
        .compile("pipeshard-chat");
    let cuda = std::env::var_os("CARGO_FEATURE_CUDA").map(|_| INSTEAD_OF_CUDA);
    for (name, functions) in INSTEAD.iter().copied().chain(cuda) {
        let file = format!("{of}/{name}.c");
        println!("cargo:rerun-if-changed={file}");
        for function in functions {
            println!("cargo:rustc-cdylib-link-arg=-Wl,--wrap={function}");
        }
        cc::Build::new()
            .std("c99")
            .flag("-fvisibility=hidden")
            // printf and fputs are not to become what they are not written as
            .flag("-fno-builtin")
            .warnings(true)
            .extra_warnings(true)
            .file(file)
            .compile(&format!("pipeshard-{name}"));
    }
}
