//! The file itself: what it shows, what it needs, and whether header and code say the same.

use super::{cc, done, prefix, repository, scratch};
use std::collections::BTreeSet;
use std::process::Command;

/// What the library may need: libraries of the system, and CUDA's of which there is no archive.
const NEEDED: &[&str] = &[
    "ld-linux-x86-64.so.2",
    "libc.so.6",
    "libgcc_s.so.1",
    "libm.so.6",
];
const NEEDED_WITH_CUDA: &[&str] = &["libcublas.so.12", "libcublas.so.13", "libcuda.so.1"];

/// The newest glibc whose symbols it may use.
const GLIBC: (u32, u32) = (2, 34);

fn header() -> String {
    let path = prefix().join("include/pipeshard.h");
    std::fs::read_to_string(path).expect("the header")
}

fn library() -> String {
    let path = prefix().join("lib/libpipeshard.so.0");
    path.display().to_string()
}

fn run(program: &str, args: &[&str]) -> String {
    done(Command::new(program).args(args).arg(library()))
}

/// A program of one file that has to compile; what it prints.
fn program(name: &str, text: &str, flags: &[&str]) -> String {
    let folder = scratch("host_library");
    let ending = if flags.contains(&"c++") { "cpp" } else { "c" };
    let (source, program) = (folder.join(format!("{name}.{ending}")), folder.join(name));
    std::fs::write(&source, text).expect("a file");
    let mut cc = cc();
    cc.arg("-pedantic")
        .args(flags)
        .arg(&source)
        .arg("-o")
        .arg(&program);
    done(cc.arg("-L").arg(prefix().join("lib")).arg("-lpipeshard"));
    done(Command::new(&program).env("LD_LIBRARY_PATH", prefix().join("lib")))
}

#[test]
fn the_header_compiles_alone() {
    let text = "#include <pipeshard.h>\n\
        static pipeshard_limits limits = PIPESHARD_INIT(pipeshard_limits);\n\
        int main(void) {\n\
            pipeshard_model_config m = PIPESHARD_INIT(pipeshard_model_config);\n\
            pipeshard_device * gpu = 0;\n\
            m.path = \"model.gguf\";\n\
            pipeshard_device_close(gpu);\n\
            return !(m.size == sizeof m && m.flags == 0 && limits.size == sizeof limits && limits.moved_ms == 0 &&\n\
                     pipeshard_version() == PIPESHARD_VERSION);\n\
        }\n";
    program("header99", text, &["-std=c99"]);
    program("header17", text, &["-std=c17"]);
    program("header-cpp17", text, &["-x", "c++", "-std=c++17"]);
    program("header-cpp11", text, &["-x", "c++", "-std=c++11"]);
}

#[test]
fn only_the_functions_of_the_header_are_visible() {
    let header = header();
    let declared = header
        .lines()
        .filter(|line| line.starts_with("PIPESHARD_API"));
    let names = declared.filter_map(|line| {
        let before = line.split('(').next()?;
        before.rsplit([' ', '*']).next().map(str::to_owned)
    });
    let names: BTreeSet<String> = names.collect();
    assert!(
        names.len() > 30 && names.iter().all(|n| n.starts_with("pipeshard_")),
        "{names:?}"
    );
    let symbols = run("nm", &["-D", "--defined-only"]);
    let mut visible = BTreeSet::new();
    for line in symbols.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        // 'u' is a symbol that glibc keeps the library in memory for
        assert_eq!(words[1], "T", "{line}");
        visible.insert(words[2].to_owned());
    }
    assert_eq!(visible, names);
}

#[test]
fn it_needs_what_every_system_has() {
    let dynamic = run("readelf", &["-d", "-W"]);
    let between = |line: &str| Some(line.split_once('[')?.1.split_once(']')?.0.to_owned());
    let all = |tag: &str| -> Vec<String> {
        let lines = dynamic.lines().filter(|line| line.contains(tag));
        lines.filter_map(between).collect()
    };
    for needed in all("(NEEDED)") {
        let allowed = NEEDED.contains(&&*needed)
            || cfg!(feature = "cuda") && NEEDED_WITH_CUDA.contains(&&*needed);
        assert!(allowed, "{needed} is needed");
    }
    assert_eq!(all("(SONAME)"), ["libpipeshard.so.0"]);
    assert_eq!(all("(RUNPATH)"), ["$ORIGIN"]);
    // what must not be: text relocations, and flags that keep it in memory
    for flag in ["TEXTREL", "NODELETE", "STATIC_TLS"] {
        assert!(!dynamic.contains(flag), "{flag}");
    }
    let symbols = run("objdump", &["-T"]);
    let versions = symbols.split("GLIBC_").skip(1).filter_map(|rest| {
        let number = rest
            .split(|c: char| !c.is_ascii_digit() && c != '.')
            .next()?;
        let mut parts = number.split('.').map(|part| part.parse::<u32>().ok());
        Some((parts.next()??, parts.next()??))
    });
    let newest = versions.max().expect("a version");
    assert!(newest <= GLIBC, "symbols of glibc {newest:?} are used");
    for other in ["GLIBCXX_", "CXXABI_", "GOMP"] {
        assert!(!symbols.contains(other), "symbols of {other} are used");
    }
}

/// C's type for one of types.rs.
fn c_type(rust: &str) -> String {
    let named = rust
        .strip_prefix("Option<")
        .and_then(|t| t.strip_suffix("Fn>"));
    if let Some(named) = named {
        return format!("pipeshard_{}_fn", named.to_lowercase());
    }
    let known = [
        ("u32", "uint32_t"),
        ("i32", "int32_t"),
        ("u64", "uint64_t"),
        ("f32", "float"),
        ("f64", "double"),
        ("usize", "size_t"),
        ("*const c_char", "const char *"),
        ("*const c_void", "const void *"),
        ("*mut c_void", "void *"),
        ("*const *const c_char", "const char * const *"),
    ];
    let found = known.iter().find(|(ours, _)| *ours == rust);
    let (_, theirs) = found.unwrap_or_else(|| panic!("no type in C for {rust}"));
    (*theirs).to_owned()
}

/// `DeviceConfig` as `pipeshard_device_config`.
fn c_name(rust: &str) -> String {
    let mut name = "pipeshard".to_owned();
    for c in rust.chars() {
        match c.is_uppercase() {
            true => name.extend(['_', c.to_ascii_lowercase()]),
            false => name.push(c),
        }
    }
    name
}

#[test]
fn structs_are_laid_out_as_in_the_header() {
    let path = repository().join("crates/pipeshard-capi/src/types.rs");
    let types = std::fs::read_to_string(path).expect("types.rs");
    let mut text = "#include <pipeshard.h>\n#include <stddef.h>\n".to_owned();
    let mut checks = String::new();
    let structs = types.split("#[repr(C)]").skip(1).map(|part| {
        let body = part.split_once("pub struct ")?.1;
        let (name, body) = body.split_once(" {")?;
        Some((name, body.split_once('}')?.0))
    });
    let structs: Vec<(&str, &str)> = structs.map(|s| s.expect("a struct")).collect();
    for (name, body) in &structs {
        let theirs = c_name(name);
        text += "typedef struct {\n";
        for member in body
            .lines()
            .filter_map(|line| line.trim().strip_prefix("pub "))
        {
            let (member, kind) = member
                .trim_end_matches(',')
                .split_once(": ")
                .expect("a member");
            text += &format!("    {} {member};\n", c_type(kind));
            checks += &format!(
                "_Static_assert(offsetof({name}, {member}) == offsetof({theirs}, {member}) &&\n\
                 __builtin_types_compatible_p(__typeof__((({name} *) 0)->{member}), __typeof__((({theirs} *) 0)->{member})),\n\
                 \"{theirs}.{member}\");\n"
            );
        }
        text += &format!("}} {name};\n");
        checks += &format!("_Static_assert(sizeof({name}) == sizeof({theirs}), \"{theirs}\");\n");
    }
    let declared = header()
        .lines()
        .filter(|l| l.starts_with("} pipeshard_"))
        .count();
    assert_eq!(structs.len(), declared, "structs of the header");
    text += &checks;
    text += "int main(void) { return 0; }\n";
    program("layout", &text, &["-std=gnu11", "-Wno-pedantic"]);
}

#[test]
fn codes_are_named_as_in_the_header() {
    let header = header();
    let codes = header.lines().filter_map(|line| {
        let mut words = line
            .strip_prefix("#define PIPESHARD_E_")?
            .split_whitespace();
        Some((words.next()?, words.next()?.parse::<i32>().ok()?))
    });
    let codes: Vec<(&str, i32)> = codes.collect();
    assert!(codes.len() > 12);
    let values: BTreeSet<i32> = codes.iter().map(|(_, value)| *value).collect();
    assert_eq!(values.len(), codes.len());
    let mut text = "#include <pipeshard.h>\n#include <stdio.h>\nint main(void) {\n".to_owned();
    for (_, value) in &codes {
        text += &format!("puts(pipeshard_result_name({value}));\n");
    }
    let said = program("codes", &(text + "return 0; }\n"), &["-std=c99"]);
    let names: Vec<String> = codes
        .iter()
        .map(|(name, _)| format!("PIPESHARD_E_{name}"))
        .collect();
    assert_eq!(said.lines().collect::<Vec<_>>(), names);
    // and the numbers that the code returns are those
    let path = repository().join("crates/pipeshard-capi/src/failure.rs");
    let failure = std::fs::read_to_string(path).expect("failure.rs");
    for (name, value) in codes {
        let camel: String = name
            .split('_')
            .map(|word| word[..1].to_owned() + &word[1..].to_lowercase())
            .collect();
        assert!(
            failure.contains(&format!("    {camel} = {value},")),
            "{camel} = {value}"
        );
    }
}
