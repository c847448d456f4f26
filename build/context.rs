//! Where things are, what was asked for, and which tools do the work.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::Result;

/// Variables that change what is built.
const WATCHED_VARIABLES: [&str; 13] = [
    "PIPESHARD_LLAMA_DIR",
    "PIPESHARD_CMAKE_ARGS",
    "PIPESHARD_TOOLS",
    "PIPESHARD_CACHE",
    "PIPESHARD_GGML_CUDA",
    "CUDA_PATH",
    "XDG_CACHE_HOME",
    "CMAKE",
    "LIBCLANG_PATH",
    "CC",
    "CXX",
    "CFLAGS",
    "CXXFLAGS",
];

/// Paths in the repository that change what is built; folders count with all that is in them.
const WATCHED_PATHS: [&str; 6] = [
    "build.rs",
    "build",
    "patches",
    "vendor",
    "ggml-pipeshard",
    "scripts/fetch.py",
];

/// One run of the build script.
pub struct Context {
    /// The repository.
    pub root: PathBuf,
    /// Cargo's private folder for this run: the bindings go there.
    pub out: PathBuf,
    /// `<target>/<profile>`, where executables are left.
    pub profile: PathBuf,
    /// `<target>/native`, shared by the profiles.
    pub native: PathBuf,
    /// An llama.cpp checkout to use in place of the pinned archive.
    pub llama_dir: Option<PathBuf>,
    /// Arguments for CMake that the user added.
    pub cmake_args: Vec<String>,
    pub cuda: bool,
    pub vulkan: bool,
    pub avx512: bool,
    /// Archives for the library for hosts, in place of shared libraries and tools.
    pub host_library: bool,
    /// An archive of ggml-cuda that was built elsewhere, for the library for hosts: half an hour less.
    pub ggml_cuda: Option<PathBuf>,
}

impl Context {
    /// Reads cargo's environment. Fails where cargo's folders are not laid out as expected.
    pub fn from_cargo() -> Result<Self> {
        let path = |name: &str| {
            env::var_os(name)
                .map(PathBuf::from)
                .ok_or_else(|| format!("{name} is not set: this program is run by cargo"))
        };
        let out = path("OUT_DIR")?;
        // <target>/<profile>/build/pipeshard-sys-<hash>/out
        let profile = out
            .ancestors()
            .nth(3)
            .ok_or_else(|| format!("{} is not below a cargo profile folder", out.display()))?
            .to_path_buf();
        let native = profile
            .parent()
            .ok_or_else(|| format!("{} has no parent folder", profile.display()))?
            .join("native");
        // CMake insists on the path that it saw first, by whichever link one comes here
        let native = fs::create_dir_all(&native)
            .and_then(|()| native.canonicalize())
            .map_err(|e| format!("cannot make {}: {e}", native.display()))?;
        let context = Context {
            // this program is that of crates/pipeshard-sys
            root: path("CARGO_MANIFEST_DIR")?
                .ancestors()
                .nth(2)
                .ok_or("crates/pipeshard-sys lies in no repository")?
                .to_path_buf(),
            out,
            profile,
            native,
            llama_dir: env::var_os("PIPESHARD_LLAMA_DIR")
                .filter(|v| !v.is_empty())
                .map(PathBuf::from),
            cmake_args: env::var("PIPESHARD_CMAKE_ARGS")
                .unwrap_or_default()
                .split_whitespace()
                .map(str::to_owned)
                .collect(),
            cuda: env::var_os("CARGO_FEATURE_CUDA").is_some(),
            vulkan: env::var_os("CARGO_FEATURE_VULKAN").is_some(),
            avx512: env::var_os("CARGO_FEATURE_AVX512").is_some(),
            host_library: env::var_os("CARGO_FEATURE_HOST_LIBRARY").is_some(),
            ggml_cuda: env::var_os("PIPESHARD_GGML_CUDA")
                .filter(|v| !v.is_empty())
                .map(PathBuf::from),
        };
        context.adopt_own_tools();
        Ok(context)
    }

    /// Tells cargo when this program has to run again.
    pub fn announce(&self) {
        for name in WATCHED_VARIABLES {
            println!("cargo:rerun-if-env-changed={name}");
        }
        for path in WATCHED_PATHS {
            println!("cargo:rerun-if-changed={}", self.root.join(path).display());
        }
        if let Some(dir) = &self.llama_dir {
            for part in [
                "CMakeLists.txt",
                "cmake",
                "common",
                "ggml",
                "include",
                "src",
                "tools",
            ] {
                println!("cargo:rerun-if-changed={}", dir.join(part).display());
            }
        }
    }

    /// Keeps builds of other profiles out of `<target>/native` until the returned file is dropped.
    pub fn lock(&self) -> Result<File> {
        let path = self.native.join(".lock");
        let file =
            File::create(&path).map_err(|e| format!("cannot make {}: {e}", path.display()))?;
        file.lock()
            .map_err(|e| format!("cannot lock {}: {e}", path.display()))?;
        Ok(file)
    }

    /// Whether ggml-cuda is built: not where the library for hosts is linked with one that is there.
    pub fn builds_cuda(&self) -> bool {
        self.cuda && !(self.host_library && self.ggml_cuda.is_some())
    }

    /// Names what llama.cpp is built with; builds with different names do not share a build folder.
    pub fn variant(&self) -> String {
        let mut name = if self.avx512 { "avx512" } else { "avx2" }.to_owned();
        for (on, part) in [
            (self.builds_cuda(), "-cuda"),
            (self.vulkan, "-vulkan"),
            (self.host_library, "-host-library"),
        ] {
            if on {
                name.push_str(part);
            }
        }
        if self.llama_dir.is_some() {
            name.push_str("-checkout");
        }
        name
    }

    /// The patched source. A checkout named by the user has its own, so that going back to the pin rebuilds nothing.
    pub fn source_dir(&self) -> PathBuf {
        self.native.join(if self.llama_dir.is_some() {
            "src-checkout"
        } else {
            "src"
        })
    }

    /// CMake's folder for the present features.
    pub fn build_dir(&self) -> PathBuf {
        self.native.join(format!("build-{}", self.variant()))
    }

    /// What the native tools print goes there, for cargo hides it.
    pub fn log_file(&self) -> PathBuf {
        self.native.join("build.log")
    }

    /// Uses the tools that `scripts/bootstrap.sh` put into the project's cache, where it did; a variable of the user wins.
    fn adopt_own_tools(&self) {
        let cache = env::var_os("PIPESHARD_CACHE")
            .map(PathBuf::from)
            .or_else(|| {
                let base = env::var_os("XDG_CACHE_HOME")
                    .map(PathBuf::from)
                    .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cache")));
                base.map(|b| b.join("pipeshard"))
            });
        let Some(tools) = cache.map(|c| c.join("tools")) else {
            return;
        };
        let bin = tools.join("bin");
        if bin.is_dir() {
            let mut paths: Vec<PathBuf> = env::var_os("PATH")
                .map(|p| env::split_paths(&p).collect())
                .unwrap_or_default();
            // They are there because the system's were missing, or because the user asked for these.
            paths.insert(0, bin);
            if let Ok(joined) = env::join_paths(paths) {
                env::set_var("PATH", joined);
            }
        }
        let libclang = tools.join("lib");
        if env::var_os("LIBCLANG_PATH").is_none() && libclang.join("libclang.so").exists() {
            env::set_var("LIBCLANG_PATH", libclang);
        }
    }
}

/// The first program of that name on the PATH.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let paths = env::var_os("PATH")?;
    env::split_paths(&paths)
        .map(|dir| dir.join(name))
        .find(|file| is_executable(file))
}

fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    fs::metadata(file).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}
