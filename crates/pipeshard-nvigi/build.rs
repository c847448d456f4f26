//! Compiles what is in C and C++, as crates/pipeshard-capi does, whose source this library is made of.

#[allow(dead_code)] // its own main
#[path = "../pipeshard-capi/build.rs"]
mod library;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=../pipeshard-capi/build.rs");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,nvigi.plugin.gpt.ggml.pipeshard.so");
    library::compile_and_link("../pipeshard-capi/src");
}
