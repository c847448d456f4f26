//! llama.cpp's own build: CMake and ninja, into `<target>/native/build-<features>`.
//!
//! The `cmake` crate prints to standard output, which cargo keeps to itself until the end. So the build script starts
//! itself once more with its output going to a log that can be watched, and repeats the end of it when something fails.

use std::env;
use std::fs::{self, File};
use std::process::{Command, Stdio};

use crate::context::{find_program, Context};
use crate::source::Source;
use crate::Result;

/// Set for the second start of this program; its value is llama.cpp's commit.
const STEP: &str = "PIPESHARD_NATIVE_STEP";

/// How many lines of the log an error repeats.
const LOG_TAIL: usize = 40;

/// The executables that are built and left in `<target>/<profile>`.
pub const TOOLS: [&str; 8] = [
    "llama-cli",
    "llama-completion",
    "llama-server",
    "llama-bench",
    "llama-batched-bench",
    "llama-perplexity",
    "llama-quantize",
    "llama-mtmd-cli",
];

/// The executables to build: all, or those that `PIPESHARD_TOOLS` names (none, if it is empty).
fn wanted_tools() -> Vec<String> {
    match env::var("PIPESHARD_TOOLS") {
        Ok(names) => names.split_whitespace().map(str::to_owned).collect(),
        Err(_) => TOOLS.map(str::to_owned).to_vec(),
    }
}

/// Whether llama-server gets its web page, which Node builds; stock llama.cpp would download it where there is no Node.
fn builds_web_page() -> bool {
    find_program("npm").is_some() && wanted_tools().iter().any(|tool| tool == "llama-server")
}

/// Says where llama-server has no web page, and why.
fn warn_without_web_page(context: &Context) {
    let server = wanted_tools().iter().any(|tool| tool == "llama-server");
    let page = context.build_dir().join("build/tools/ui/dist/index.html");
    if !server || page.is_file() {
        return;
    }
    let why = match builds_web_page() {
        true => format!(
            "npm could not build it, see {}",
            context.log_file().display()
        ),
        false => "npm is not on the PATH; install Node.js and build again to have it".to_owned(),
    };
    println!(
        "cargo:warning=llama-server is built without its web page (its API is complete): {why}"
    );
}

/// Whether this is the second start.
pub fn is_build_step() -> bool {
    env::var_os(STEP).is_some()
}

/// Configures and builds in a process of its own.
pub fn build(context: &Context, source: &Source) -> Result<()> {
    if find_program("cmake").is_none() && env::var_os("CMAKE").is_none() {
        return Err(
            "cmake is not on the PATH. `make setup` installs what the build needs.".to_owned(),
        );
    }
    if context.avx512 && !host_has_avx512() {
        println!("cargo:warning=this CPU lacks the AVX-512 extensions that feature avx512 builds for: the tools will not run here");
    }
    let path = context.log_file();
    let failed = |e: std::io::Error| format!("cannot write {}: {e}", path.display());
    let log = File::create(&path).map_err(failed)?;
    let program = env::current_exe().map_err(|e| format!("cannot find this program: {e}"))?;
    let status = Command::new(program)
        .env(STEP, &source.commit)
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null())
        .stdout(log.try_clone().map_err(failed)?)
        .stderr(log)
        .status()
        .map_err(|e| format!("cannot start the native build: {e}"))?;
    if status.success() {
        warn_without_web_page(context);
        return Ok(());
    }
    let text = fs::read(&path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let tail = lines[lines.len().saturating_sub(LOG_TAIL)..].join("\n");
    Err(format!(
        "llama.cpp did not build. The end of {}:\n{tail}",
        path.display()
    ))
}

/// The second start: runs CMake. It panics on failure, which the log then shows.
pub fn build_step(context: &Context) {
    let commit = env::var(STEP).unwrap_or_default();
    let on_off = |on: bool| if on { "ON" } else { "OFF" };
    let mut config = cmake::Config::new(context.source_dir());
    config
        .out_dir(context.build_dir())
        .profile("Release")
        // The flags of a plain CMake build: our tools are to be as fast as stock ones.
        .define("CMAKE_C_FLAGS", env::var_os("CFLAGS").unwrap_or_default())
        .define(
            "CMAKE_CXX_FLAGS",
            env::var_os("CXXFLAGS").unwrap_or_default(),
        )
        .define("CMAKE_ASM_FLAGS", "")
        // Tools and libraries find each other where they lie, and what they link outside (CUDA) where it was found.
        .define("CMAKE_BUILD_WITH_INSTALL_RPATH", "ON")
        .define("CMAKE_INSTALL_RPATH", "$ORIGIN")
        .define("CMAKE_INSTALL_RPATH_USE_LINK_PATH", "ON")
        // A new libggml-base.so is no reason to link everything that uses it again.
        .define("CMAKE_LINK_DEPENDS_NO_SHARED", "ON")
        .define("GGML_NATIVE", "OFF")
        .define("GGML_CUDA", on_off(context.builds_cuda()))
        .define("GGML_VULKAN", on_off(context.vulkan))
        .define("LLAMA_BUILD_COMMIT", commit)
        .define("LLAMA_BUILD_NUMBER", "0")
        // llama.cpp would ask git for its version, and be told this repository's.
        .define("GIT_EXE", "OFF");
    for off in [
        "LLAMA_BUILD_APP",
        "LLAMA_BUILD_EXAMPLES",
        "LLAMA_BUILD_TESTS",
        "LLAMA_OPENSSL",
        "LLAMA_USE_PREBUILT_UI",
    ] {
        config.define(off, "OFF");
    }
    match context.host_library {
        true => host_library(&mut config, context.builds_cuda()),
        false => {
            config.define("BUILD_SHARED_LIBS", "ON");
            config.define("GGML_BACKEND_DL", "ON");
            config.define("LLAMA_BUILD_UI", on_off(builds_web_page()));
        }
    }
    if env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|arch| arch == "x86_64") {
        cpu_variant(&mut config, context.avx512);
    }
    if find_program("ninja").is_some() {
        config.generator("Ninja");
    }
    if let Some(ccache) = find_program("ccache") {
        config.define("CMAKE_C_COMPILER_LAUNCHER", &ccache);
        config.define("CMAKE_CXX_COMPILER_LAUNCHER", &ccache);
        if context.builds_cuda() {
            config.define("CMAKE_CUDA_COMPILER_LAUNCHER", &ccache);
        }
        // Another clone of the repository finds in the cache what this one compiled.
        if env::var_os("CCACHE_BASEDIR").is_none() {
            config.env("CCACHE_BASEDIR", &context.native);
            config.env("CCACHE_NOHASHDIR", "1");
        }
    }
    for argument in &context.cmake_args {
        config.configure_arg(argument);
    }
    // The library, with the backends that it loads.
    config.build_target("llama");
    match context.host_library {
        true => {
            config.build_arg("mtmd").build_arg("llama-common");
        }
        false => wanted_tools().iter().for_each(|tool| {
            config.build_arg(tool);
        }),
    }
    config.build();
}

/// Archives that survive in a process which has another llama.cpp, and leave nothing behind when they are unloaded.
fn host_library(config: &mut cmake::Config, cuda: bool) {
    // An object that the process has only once (STB_GNU_UNIQUE) would keep the library mapped.
    let unique = |flags: &str| {
        let flags = env::var(flags).unwrap_or_default();
        format!("{flags} -fno-gnu-unique")
    };
    config
        .define("BUILD_SHARED_LIBS", "OFF")
        .define("GGML_BACKEND_DL", "OFF")
        .define("CMAKE_POSITION_INDEPENDENT_CODE", "ON")
        .define("CMAKE_CXX_FLAGS", unique("CXXFLAGS"))
        .define("CMAKE_C_VISIBILITY_PRESET", "hidden")
        .define("CMAKE_CXX_VISIBILITY_PRESET", "hidden")
        // OpenMP changes the environment and keeps threads; the host says how many threads there are, and of which priority.
        .define("GGML_OPENMP", "OFF")
        .define("GGML_CCACHE", "OFF")
        .define("LLAMA_BUILD_TOOLS", "OFF")
        .define("LLAMA_BUILD_MTMD", "ON")
        .define("LLAMA_BUILD_UI", "OFF")
        // mtmd would start ffmpeg.
        .define("LLAMA_SUBPROCESS", "OFF")
        .define("MTMD_VIDEO", "OFF");
    if cuda {
        // The host's allocator is asked for device memory; it has no virtual memory to give.
        config.define("GGML_CUDA_NO_VMM", "ON");
        config.define("CMAKE_CUDA_VISIBILITY_PRESET", "hidden");
    }
}

#[cfg(target_arch = "x86_64")]
fn host_has_avx512() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vbmi")
        && is_x86_feature_detected!("avx512vnni")
        && is_x86_feature_detected!("avx512bf16")
}

#[cfg(not(target_arch = "x86_64"))]
fn host_has_avx512() -> bool {
    false
}

/// One CPU variant. AMX is never on: many virtual machines advertise it and then fault.
fn cpu_variant(config: &mut cmake::Config, avx512: bool) {
    for feature in ["SSE42", "AVX", "AVX2", "FMA", "F16C", "BMI2"] {
        config.define(format!("GGML_{feature}"), "ON");
    }
    for feature in ["AVX512", "AVX512_VBMI", "AVX512_VNNI", "AVX512_BF16"] {
        config.define(format!("GGML_{feature}"), if avx512 { "ON" } else { "OFF" });
    }
    for feature in ["AMX_TILE", "AMX_INT8", "AMX_BF16"] {
        config.define(format!("GGML_{feature}"), "OFF");
    }
}
