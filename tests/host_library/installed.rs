//! The library as it is installed: examples are built by what the installation says of itself, and run.

use super::{compiler, done, finish, prefix, repository, scratch, smollm2, succeeds};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Whether a program is there. Without it a part of a test is left out.
fn is_there(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok();
    if !found {
        eprintln!("there is no {program}: what needs it was not tested");
    }
    found
}

/// An example in strict C99, by pkg-config where that is there.
fn example(name: &str) -> PathBuf {
    let lib = prefix().join("lib");
    let flags = match is_there("pkg-config") {
        true => {
            let mut ask = Command::new("pkg-config");
            ask.env("PKG_CONFIG_PATH", lib.join("pkgconfig"));
            done(ask.args(["--cflags", "--libs", "pipeshard"]))
        }
        false => format!(
            "-I{}/include -L{}/lib -lpipeshard",
            prefix().display(),
            prefix().display()
        ),
    };
    let program = scratch("host_library").join(name);
    let source = prefix().join(format!("share/doc/pipeshard/examples/{name}.c"));
    let mut cc = Command::new(compiler());
    cc.args([
        "-std=c99",
        "-O2",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-pedantic",
    ]);
    cc.arg(&source).arg("-o").arg(&program);
    cc.args(flags.split_whitespace());
    done(cc.arg(format!("-Wl,-rpath,{}", lib.display())));
    program
}

/// Runs a program with a text as its standard input, from a pipe.
fn told(program: &Path, args: &[&str], input: &str) -> super::Finished {
    let mut shell = Command::new("sh");
    shell.args([
        "-c",
        "input=$1; shift; printf %s \"$input\" | \"$@\"",
        "sh",
        input,
    ]);
    shell.arg(program).args(args);
    finish(&mut shell)
}

#[test]
fn the_chat_answers_while_keys_change_its_budget() {
    let (program, model) = (example("chat"), smollm2());
    let model = model.display().to_string();
    let args = [&*model, "60", "vram=1G"];
    let said = told(
        &program,
        &args,
        "Name the capital of France.\n--+Name the capital of Italy.\n",
    );
    assert!(said.succeeded(), "{}", said.stderr);
    let answers: Vec<&str> = said.stdout.lines().collect();
    assert!(
        said.stdout.contains("Paris") && said.stdout.contains("Rome"),
        "{answers:?}"
    );
    let budgets = said
        .stderr
        .split("[budget ")
        .skip(1)
        .filter_map(|rest| rest.split(' ').next()?.parse::<f64>().ok());
    let budgets: Vec<f64> = budgets.collect();
    assert_eq!(budgets.len(), 3, "{}", said.stderr);
    assert!(
        budgets[0] < 60.0 && budgets[1] <= budgets[0] && budgets[2] > budgets[1],
        "{budgets:?}"
    );
    let unchanged = told(
        &program,
        &args,
        "Name the capital of France.\nName the capital of Italy.\n",
    );
    assert_eq!(unchanged.stdout, said.stdout);
    assert!(!unchanged.stderr.contains("[budget"));
    // ended by a key, and by a mistake
    let ended = told(&program, &args, "Count to one thousand.\nq");
    assert!(
        ended.succeeded() && ended.stdout.len() < 1000,
        "{}",
        ended.stderr
    );
    for (args, what) in [
        (["/nowhere.gguf", "60", "vram=1G"], "/nowhere.gguf"),
        ([&*model, "60", "vram=x"], "vram"),
        ([&*model, "0.001", "vram=1G"], "budget"),
    ] {
        let failed = told(&program, &args, "Hello\n");
        assert!(
            !failed.succeeded() && failed.stderr.contains(what),
            "{}",
            failed.stderr
        );
    }
}

#[test]
fn the_game_gives_a_level_its_memory() {
    let model = smollm2().display().to_string();
    let mut game = Command::new(example("game"));
    let played = finish(game.args([&*model, "140", "60", "vram=1G"]));
    assert!(played.succeeded(), "{}", played.stderr);
    assert!(played.stdout.len() > 40, "{}", played.stdout);
    let frames: Vec<&str> = played
        .stderr
        .lines()
        .filter(|l| l.starts_with("[frame "))
        .collect();
    assert_eq!(frames.len(), 2, "{}", played.stderr);
    assert!(
        frames[0].contains("may have 80 MiB") && frames[1].contains("may have 140 MiB"),
        "{frames:?}"
    );
    assert_eq!(played.stderr.lines().count(), 2, "{}", played.stderr);
}

/// The C blocks of a page.
fn blocks(page: &str) -> Vec<String> {
    let text = std::fs::read_to_string(repository().join(page)).expect("a page");
    let parts = text.split("```c\n").skip(1);
    let blocks = parts.filter_map(|part| Some(part.split_once("\n```")?.0.to_owned()));
    blocks.collect()
}

#[test]
fn what_the_documents_show_compiles_and_runs() {
    let folder = scratch("host_library");
    let compile = |name: &str, text: &str| {
        let (source, program) = (folder.join(format!("{name}.c")), folder.join(name));
        std::fs::write(&source, text).expect("a file");
        let mut cc = super::cc();
        cc.args(["-std=c99", "-pedantic"])
            .arg(&source)
            .arg("-o")
            .arg(&program);
        super::linked(&mut cc, &prefix().join("lib"));
        done(cc.arg("-lpipeshard"));
        program
    };
    let shown = blocks("docs/embedding.md");
    let whole = shown.iter().find(|block| block.contains("int main(void)"));
    let whole = whole
        .expect("a program")
        .replace("model.gguf", &smollm2().display().to_string());
    // a short answer will do
    let whole = whole.replace(
        "    return 0; /* anything",
        "    return ++pieces == 8; /* anything",
    );
    let program = compile(
        "embedding",
        &whole.replace(
            "static int print_it",
            "static int pieces;\nstatic int print_it",
        ),
    );
    let said = finish(&mut Command::new(program));
    assert!(said.succeeded() && said.stdout.len() > 8, "{}", said.stdout);
    assert!(said.stderr.contains("cancelled"), "{}", said.stderr);
    // pieces of programs, in one around them
    for (number, piece) in shown
        .iter()
        .filter(|block| !block.contains("int main"))
        .enumerate()
    {
        let around = format!(
            "#include <pipeshard.h>\nvoid show(const char * text, size_t length);\n\
             void piece(pipeshard_device * gpu, pipeshard_session * guard, pipeshard_event event, pipeshard_error * why);\n\
             void show(const char * text, size_t length) {{ (void) text, (void) length; }}\n\
             void piece(pipeshard_device * gpu, pipeshard_session * guard, pipeshard_event event, pipeshard_error * why) {{\n\
             (void) gpu, (void) guard, (void) event, (void) why;\n{piece}\n{}}}\nint main(void) {{ return 0; }}\n",
            if piece.contains("int code") { "(void) code;\n" } else { "" }
        );
        compile(&format!("embedding-{number}"), &around);
    }
    let five = blocks("README.md").concat();
    let around = format!(
        "#include <pipeshard.h>\n\
         static int print_it(void * user, const char * text, size_t length) {{ (void) user, (void) text, (void) length; return 0; }}\n\
         int main(void) {{\n\
         pipeshard_device_config d = PIPESHARD_INIT(pipeshard_device_config);\n\
         pipeshard_model_config m = PIPESHARD_INIT(pipeshard_model_config);\n\
         pipeshard_device * gpu = NULL; pipeshard_model * model = NULL; pipeshard_session * chat = NULL;\n\
         {five}\nreturn 0;\n}}\n"
    );
    compile("readme", &around);
}

#[test]
fn cmake_finds_it() {
    if !is_there("cmake") {
        return;
    }
    let build = scratch("host_library").join("cmake");
    let _ = std::fs::remove_dir_all(&build);
    let examples = prefix().join("share/doc/pipeshard/examples");
    let configure = |more: &[&str]| {
        let mut cmake = Command::new("cmake");
        cmake
            .arg("-S")
            .arg(&examples)
            .arg("-B")
            .arg(&build)
            .args(more);
        cmake.arg(format!("-DCMAKE_PREFIX_PATH={}", prefix().display()));
        cmake
    };
    done(&mut configure(&[]));
    done(Command::new("cmake").arg("--build").arg(&build));
    let model = smollm2().display().to_string();
    let said = told(
        &build.join("chat"),
        &[&model, "60", "vram=1G"],
        "Name the capital of France.\n",
    );
    assert!(
        said.succeeded() && said.stdout.contains("Paris"),
        "{}",
        said.stderr
    );
    // another version is asked for: `find_package(pipeshard 0.1)` is not answered with 0.2
    let other = scratch("host_library").join("cmake-other");
    std::fs::create_dir_all(&other).expect("a folder");
    let text =
        "cmake_minimum_required(VERSION 3.13)\nproject(other C)\nfind_package(pipeshard 0.1)\n\
        if(pipeshard_FOUND)\n  message(FATAL_ERROR \"found\")\nendif()\n\
        find_package(Pipeshard 0.2.0 REQUIRED)\n";
    std::fs::write(other.join("CMakeLists.txt"), text).expect("a file");
    let mut cmake = Command::new("cmake");
    cmake
        .arg("-S")
        .arg(&other)
        .arg("-B")
        .arg(other.join("build"));
    done(cmake.arg(format!("-DCMAKE_PREFIX_PATH={}", prefix().display())));
}

#[test]
fn it_is_installed_below_destdir() {
    let stage = scratch("host_library").join("stage");
    let _ = std::fs::remove_dir_all(&stage);
    let target = super::tools()
        .parent()
        .map(Path::to_path_buf)
        .expect("a folder");
    let mut install = Command::new(repository().join("scripts/install-host-library.sh"));
    install
        .env("CARGO_TARGET_DIR", target)
        .env("PREFIX", "/opt/pipeshard")
        .env("DESTDIR", &stage);
    let _ = prefix(); // builds it
    done(&mut install);
    let installed = stage.join("opt/pipeshard");
    for (link, to) in [
        ("libpipeshard.so", "libpipeshard.so.0"),
        ("libpipeshard.so.0", "libpipeshard.so.0.2.0"),
    ] {
        let points = std::fs::read_link(installed.join("lib").join(link)).expect("a link");
        assert_eq!(points, Path::new(to));
    }
    // nothing says where it was built, or staged
    for file in [
        "lib/pkgconfig/pipeshard.pc",
        "lib/cmake/pipeshard/pipeshard-config.cmake",
    ] {
        let text = std::fs::read_to_string(installed.join(file)).expect("a file");
        assert!(
            !text.contains('@') && !text.contains(&stage.display().to_string()),
            "{text}"
        );
    }
    let mut again = Command::new(repository().join("scripts/install-host-library.sh"));
    again.env("PREFIX", "not/a/whole/path");
    let refused = finish(&mut again);
    assert!(
        !refused.succeeded() && refused.stderr.contains("whole path"),
        "{}",
        refused.stderr
    );
}

#[test]
fn a_host_has_no_leak_and_touches_no_memory_that_is_not_its_own() {
    if !is_there("valgrind") {
        return;
    }
    let mut command = super::host_under(
        &[
            "valgrind",
            "--quiet",
            "--error-exitcode=3",
            "--undef-value-errors=no",
            "--leak-check=full",
            "--errors-for-leak-kinds=definite,indirect",
        ],
        &super::compiled("minimal", &[]),
    );
    succeeds(&mut command);
}
