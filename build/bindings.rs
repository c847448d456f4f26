//! `crates/pipeshard-sys`: what bindgen reads from llama.cpp's headers.

use std::path::PathBuf;
use std::process::Command;

use bindgen::{Builder, EnumVariation, Formatter};

use crate::context::Context;
use crate::source::Source;
use crate::Result;

/// Writes `bindings.rs` into cargo's folder.
pub fn generate(context: &Context, source: &Source) -> Result<()> {
    let header = context.root.join("ggml-pipeshard/bindings.h");
    let mut builder = Builder::default()
        .header(header.to_string_lossy())
        .default_enum_style(EnumVariation::Consts)
        .prepend_enum_name(false)
        .derive_copy(true)
        .derive_debug(true)
        .layout_tests(true)
        .generate_comments(false)
        .formatter(Formatter::Prettyplease)
        .allowlist_item("(ggml|gguf|llama|mtmd)_.*")
        .allowlist_item("(GGML|GGUF|LLAMA)_.*");
    for include in ["include", "ggml/include", "ggml/src", "tools/mtmd"] {
        builder = builder.clang_arg(format!("-I{}", source.dir.join(include).display()));
    }
    if let Some(dir) = compiler_headers() {
        // libclang without its own headers (stddef.h and such), as wheels carry it, takes those of gcc.
        builder = builder
            .clang_arg("-idirafter")
            .clang_arg(dir.to_string_lossy());
    }
    let bindings = builder.generate().map_err(|e| {
        format!("the bindings to llama.cpp could not be generated: {e}\n`make setup` installs libclang where it is missing.")
    })?;
    let path = context.out.join("bindings.rs");
    bindings
        .write_to_file(&path)
        .map_err(|e| format!("cannot write {}: {e}", path.display()))
}

fn compiler_headers() -> Option<PathBuf> {
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let output = Command::new(compiler)
        .arg("-print-file-name=include")
        .output()
        .ok()?;
    let dir = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim());
    dir.is_absolute().then_some(dir)
}
