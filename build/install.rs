//! Leaving the tools and libraries in `<target>/<profile>`, and telling rustc how to link with them.

use std::env;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::{symlink, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use crate::context::{find_program, Context};
use crate::native::TOOLS;
use crate::Result;

/// Prefix of the stamp, a list of what was put into the profile's folder, whose name ends in the variant.
const STAMP: &str = ".llama.cpp-";

/// Puts the build's files into the profile's folder, takes those of another variant out, and prints the linker's part.
pub fn into_profile(context: &Context) -> Result<()> {
    if context.host_library {
        return link_archives(context);
    }
    let bin = context.build_dir().join("build/bin");
    let mut names = Vec::new();
    let entries = fs::read_dir(&bin).map_err(|e| format!("cannot list {}: {e}", bin.display()))?;
    for entry in entries {
        let name = entry
            .map_err(|e| format!("cannot list {}: {e}", bin.display()))?
            .file_name();
        if is_ours(&name) {
            names.push(name.to_string_lossy().into_owned());
        }
    }
    names.sort();

    let own_stamp = context
        .profile
        .join(format!("{STAMP}{}", context.variant()));
    for stamp in stamps(&context.profile)? {
        for name in fs::read_to_string(&stamp).unwrap_or_default().lines() {
            if !names.iter().any(|n| n == name) {
                remove(&context.profile.join(name))?;
            }
        }
        if stamp != own_stamp {
            remove(&stamp)?;
        }
    }
    for name in &names {
        place(&bin.join(name), &context.profile.join(name))?;
    }
    write_stamp(&own_stamp, &names)?;

    // A build of another variant removes this stamp, and a file that is not there makes cargo run this program again.
    println!("cargo:rerun-if-changed={}", own_stamp.display());
    println!(
        "cargo:rustc-link-search=native={}",
        context.profile.display()
    );
    for library in ["llama", "ggml", "ggml-base"] {
        println!("cargo:rustc-link-lib=dylib={library}");
    }
    Ok(())
}

/// The archives of the library for hosts, those that use others first; they become parts of the Rust library.
const ARCHIVES: [(&str, &str); 8] = [
    ("tools/mtmd", "mtmd"),
    ("vendor/hash", "vendor-hash"),
    ("common", "llama-common"),
    ("common", "llama-common-base"),
    ("src", "llama"),
    ("ggml/src", "ggml"),
    ("ggml/src", "ggml-cpu"),
    ("ggml/src", "ggml-base"),
];

/// Prints the linker's part for ggml-cuda: CUDA's runtime is linked in, cuBLAS is found in the library's folder or by the host.
fn link_cuda(context: &Context) -> Result<()> {
    let built = || {
        context
            .build_dir()
            .join("build/ggml/src/ggml-cuda/libggml-cuda.a")
    };
    let archive = context.ggml_cuda.clone().unwrap_or_else(built);
    let folder = archive
        .parent()
        .filter(|_| archive.is_file())
        .ok_or_else(|| {
            format!(
                "there is no {}: PIPESHARD_GGML_CUDA names an archive libggml-cuda.a",
                archive.display()
            )
        })?;
    let toolkit = env::var_os("CUDA_PATH").map(PathBuf::from);
    let toolkit = toolkit.or_else(|| Some(find_program("nvcc")?.parent()?.parent()?.to_owned()));
    let toolkit = toolkit.ok_or("CUDA's toolkit was not found: set CUDA_PATH to its folder")?;
    println!("cargo:rerun-if-changed={}", archive.display());
    println!("cargo:rustc-link-search=native={}", folder.display());
    println!(
        "cargo:rustc-link-search=native={}",
        toolkit.join("lib64").display()
    );
    println!("cargo:rustc-link-lib=static:-bundle=ggml-cuda");
    println!("cargo:rustc-link-lib=static:-bundle=cudadevrt");
    println!("cargo:rustc-link-lib=static:-bundle=cudart_static");
    println!("cargo:rustc-link-lib=dylib=cublas");
    Ok(())
}

/// Prints the linker's part for archives.
fn link_archives(context: &Context) -> Result<()> {
    let build = context.build_dir().join("build");
    for (folder, archive) in ARCHIVES {
        println!(
            "cargo:rustc-link-search=native={}",
            build.join(folder).display()
        );
        println!("cargo:rustc-link-lib=static:-bundle={archive}");
        // those before it use the CPU's backend, this one what comes behind
        if context.cuda && archive == "ggml-cpu" {
            link_cuda(context)?;
        }
    }
    // A game brings a C++ library of its own, perhaps an older one.
    let found = Command::new(env::var_os("CXX").unwrap_or_else(|| "c++".into()))
        .arg("-print-file-name=libstdc++.a")
        .output()
        .map_err(|e| format!("cannot run the C++ compiler: {e}"))?;
    let path = PathBuf::from(String::from_utf8_lossy(&found.stdout).trim());
    let folder = path.parent().filter(|_| path.is_absolute()).ok_or(
        "libstdc++.a was not found: the library for hosts is linked with it (Debian: libstdc++-12-dev)",
    )?;
    println!("cargo:rustc-link-search=native={}", folder.display());
    println!("cargo:rustc-link-lib=static:-bundle=stdc++");
    Ok(())
}

fn is_ours(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    TOOLS.contains(&name.as_ref()) || (name.starts_with("lib") && name.contains(".so"))
}

fn stamps(dir: &Path) -> Result<Vec<PathBuf>> {
    let failed = |e: std::io::Error| format!("cannot list {}: {e}", dir.display());
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with(STAMP) {
            found.push(path);
        }
    }
    Ok(found)
}

/// Writes the list with a time stamp in the past: cargo would take a newer one for a change of its inputs.
fn write_stamp(path: &Path, names: &[String]) -> Result<()> {
    let failed = |e: std::io::Error| format!("cannot write {}: {e}", path.display());
    fs::write(path, names.join("\n") + "\n").map_err(failed)?;
    let file = File::options().append(true).open(path).map_err(failed)?;
    file.set_modified(SystemTime::UNIX_EPOCH).map_err(failed)
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(format!("cannot remove {}: {e}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Makes `to` what `from` is: the same link, or a hard link to the file, or a copy where that cannot be.
fn place(from: &Path, to: &Path) -> Result<()> {
    let failed = |e: std::io::Error| format!("cannot put {} in place: {e}", to.display());
    let kind = fs::symlink_metadata(from).map_err(failed)?;
    if kind.is_symlink() {
        let target = fs::read_link(from).map_err(failed)?;
        if fs::read_link(to).is_ok_and(|present| present == target) {
            return Ok(());
        }
        remove(to)?;
        return symlink(target, to).map_err(failed);
    }
    let same =
        fs::symlink_metadata(to).is_ok_and(|m| (m.dev(), m.ino()) == (kind.dev(), kind.ino()));
    if same {
        return Ok(());
    }
    remove(to)?;
    fs::hard_link(from, to)
        .or_else(|_| fs::copy(from, to).map(|_| ()))
        .map_err(failed)
}
