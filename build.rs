//! Builds the patched llama.cpp and the bindings to it.
//!
//! Everything native lives in `<target>/native`, which all cargo profiles share:
//!
//! ```text
//! pristine-<sha256>/   the pinned source as it came, without what is not built
//! src/                 the same with patches and headers applied; a file is written only when its content changes
//! build-<features>/    CMake's build folder of that source
//! build.log            what CMake, ninja and the compilers said in the latest run
//! ```
//!
//! The tools and libraries are then linked into `<target>/<profile>`, where they find each other without a library path.

#[path = "build/bindings.rs"]
mod bindings;
#[path = "build/context.rs"]
mod context;
#[path = "build/install.rs"]
mod install;
#[path = "build/native.rs"]
mod native;
#[path = "build/source.rs"]
mod source;
#[path = "build/sync.rs"]
mod sync;

use context::Context;

/// An error is a text for the person who ran cargo: what happened, then what to do.
type Result<T> = std::result::Result<T, String>;

fn run() -> Result<()> {
    let context = Context::from_cargo()?;
    if native::is_build_step() {
        native::build_step(&context);
        return Ok(());
    }
    context.announce();
    let _lock = context.lock()?;
    let source = source::prepare(&context)?;
    bindings::generate(&context, &source)?;
    native::build(&context, &source)?;
    install::into_profile(&context)?;
    println!("cargo:source={}", source.dir.display());
    println!("cargo:rustc-env=PIPESHARD_BUILD_ID={}", source.build_id);
    println!("cargo:rustc-env=PIPESHARD_LLAMA_COMMIT={}", source.commit);
    Ok(())
}

fn main() {
    if let Err(message) = run() {
        eprintln!("\nerror: {message}\n");
        std::process::exit(1);
    }
}
