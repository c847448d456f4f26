//! llama.cpp's own tools with the flags, and without.

mod common;

use common::{assert_accounted, finish, finish_text, scratch, smollm2, synthetic, tool, Finished};
use pipeshard::report::Report;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

fn completion(flags: &[&str]) -> Finished {
    let finished = finish_text(|| {
        let mut command = tool("llama-completion");
        command.arg("-m").arg(smollm2());
        command.args(["-p", "The capital of France is", "-n", "32", "--temp", "0"]);
        command
            .args(["-c", "512", "-t", "1", "-no-cnv"])
            .args(flags);
        command
    });
    assert!(finished.succeeded(), "{}", finished.stderr);
    finished
}

fn report_in(path: &Path) -> Report {
    let text = std::fs::read_to_string(path).expect("a report");
    let report = serde_json::from_str(&text).expect("a report of this build");
    assert_accounted(&report);
    report
}

#[test]
fn a_completion_is_the_same_as_without() {
    let stock = completion(&["--no-repack"]);
    assert!(stock.stdout.contains("Paris"), "{}", stock.stdout);
    assert!(!stock.stderr.contains("pipeshard"));
    let file = scratch("tools").join("completion.json");
    let path = file.display().to_string();
    let ours = completion(&[
        "--pipeshard",
        "--pipeshard-vram",
        "40M",
        "--pipeshard-sim",
        "vram=1G",
        "--pipeshard-report",
        &path,
    ]);
    assert_eq!(stock.stdout, ours.stdout);
    assert!(ours.said().contains("pipeshard: engaged on SIM0"));
    let report = report_in(&file);
    assert!(report.engaged && report.errors.is_empty());
    let model = smollm2().metadata().expect("the demo model").len();
    assert!(report.peak.total <= 40 << 20 && 40 << 20 < model);
    // 31 tokens after the first, which comes with the prompt
    assert!(report.passes.decode >= 31 && report.graph_reuses > 0);
    assert!(report.units.decode.host > 0);
}

#[test]
fn the_environment_is_as_good_as_flags() {
    let file = scratch("tools").join("environment.json");
    let mut command = tool("llama-completion");
    command.arg("-m").arg(synthetic("tiny-llama", &[]));
    command.args([
        "-p", "abcdefgh", "-n", "4", "-c", "512", "-t", "1", "-no-cnv",
    ]);
    command.env("LLAMA_ARG_PIPESHARD", "1");
    command.env("LLAMA_ARG_PIPESHARD_VRAM", "48M");
    command.env("LLAMA_ARG_PIPESHARD_SIM", "vram=48M");
    command.env("LLAMA_ARG_PIPESHARD_REPORT", &file);
    let finished = finish(&mut command);
    assert!(finished.succeeded(), "{}", finished.stderr);
    let report = report_in(&file);
    assert!(report.engaged);
    assert_eq!(report.budget, 48 << 20);
}

fn bench(flags: &[&str]) -> Finished {
    let mut command = tool("llama-bench");
    command.arg("-m").arg(synthetic("tiny-llama", &[]));
    command.args(["-p", "64", "-n", "4", "-r", "1", "-t", "1", "-o", "csv"]);
    let finished = finish(command.args(flags));
    assert!(finished.succeeded(), "{}", finished.stderr);
    finished
}

#[test]
fn a_benchmark_runs() {
    let stock = bench(&[]);
    assert!(!stock.stderr.contains("pipeshard:"), "{}", stock.stderr);
    let file = scratch("tools").join("bench.json");
    let path = file.display().to_string();
    let ours = bench(&[
        "--pipeshard",
        "--pipeshard-vram",
        "16M",
        "--pipeshard-sim",
        "vram=16M",
        "--pipeshard-report",
        &path,
    ]);
    // a header, a prompt and a generation
    for finished in [&stock, &ours] {
        assert_eq!(finished.stdout.lines().count(), 3, "{}", finished.stdout);
    }
    let report = report_in(&file);
    assert!(report.engaged && report.errors.is_empty(), "{report:?}");
    assert!(report.passes.prompt > 0 && report.passes.decode > 0);
    assert!(report.bytes_streamed > 0);
    assert!(report.peak.total <= 16 << 20);
}

#[test]
fn another_context_finds_residents_where_they_were() {
    let file = scratch("tools").join("contexts.json");
    let path = file.display().to_string();
    bench(&[
        "--pipeshard",
        "--pipeshard-vram",
        "1G",
        "--pipeshard-sim",
        "vram=2G",
        "--pipeshard-report",
        &path,
    ]);
    let report = report_in(&file);
    // one context for the prompt, another for the generation
    assert!(report.engaged && report.contexts >= 2, "{report:?}");
    assert_eq!(report.bytes_streamed, 0);
    assert!(report.bytes_uploaded > 0 && report.bytes_uploaded <= report.peak.resident);
}

#[test]
fn cells_leave_room_for_the_ubatch_that_was_chosen() {
    let mut command = tool("llama-completion");
    let model = synthetic("tiny-llama", &["--layers", "12"]);
    command.arg("-m").arg(model);
    command.args(["-p", "a", "-n", "1", "-c", "6000", "-b", "6000", "-t", "1"]);
    command.args(["-v", "-no-cnv", "--no-warmup", "--pipeshard-vram", "72M"]);
    command.args(["--pipeshard-sim", "vram=1G,pcie=2G,flops=20T,cpu=20G"]);
    let finished = finish(&mut command);
    assert!(finished.succeeded(), "{}", finished.stderr);
    let lines = || finished.stderr.lines();
    assert!(lines().any(|line| line.contains("ubatches of 1024 tokens suit")));
    // all cells take 108 MiB: those in VRAM leave room for the compute buffers of such an ubatch at the first try
    assert!(!lines().any(|line| line.contains("did not fit")));
    let ubatch = lines().rfind(|line| line.contains("n_ubatch"));
    assert!(
        ubatch.is_some_and(|line| line.ends_with("= 1024")),
        "{ubatch:?}"
    );
    assert!(lines().any(|line| line.contains("SIM0_Host KV buffer size")));
}

#[test]
fn the_flags_are_explained() {
    for name in [
        "llama-completion",
        "llama-cli",
        "llama-server",
        "llama-bench",
    ] {
        let help = finish(tool(name).arg("--help"));
        for flag in [
            "--pipeshard ",
            "--pipeshard-vram SIZE",
            "--pipeshard-sim SPEC",
            "--pipeshard-report FILE",
            "LLAMA_ARG_PIPESHARD_VRAM",
        ] {
            let text = help.stdout.clone() + &help.stderr;
            assert!(text.contains(flag), "{name} --help says nothing of {flag}");
        }
    }
}

#[test]
fn a_simulated_gpu_is_listed() {
    let mut command = tool("llama-bench");
    command.args(["--list-devices", "--pipeshard-sim", "vram=3G"]);
    let listed = finish(&mut command);
    assert!(listed.succeeded());
    let text = listed.stdout + &listed.stderr;
    assert!(text.contains("SIM0") && text.contains("3 GiB"), "{text}");
}

/// A server that ends with the test.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // it may have ended by itself
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// One request over a connection of its own; the status line and the body.
fn request(port: u16, head: &str, body: &str) -> Option<(String, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream
        .set_read_timeout(Some(Duration::from_secs(60)))
        .ok()?;
    let length = body.len();
    write!(
        stream,
        "{head} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.lines().next()?.to_string(), body.to_string()))
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    listener.local_addr().expect("its address").port()
}

fn serve(flags: &[&str]) -> (Server, u16) {
    let port = free_port();
    let mut command = tool("llama-server");
    command.arg("-m").arg(synthetic("tiny-llama", &[]));
    command.args(["--host", "127.0.0.1", "--port", &port.to_string()]);
    command.args(["-c", "1024", "-t", "1", "-np", "1", "--temp", "0"]);
    command
        .args(flags)
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    let mut child = command.stderr(Stdio::piped()).spawn().expect("a server");
    // its log is read to the end, or it would wait for a reader
    if let Some(stderr) = child.stderr.take() {
        std::thread::spawn(move || BufReader::new(stderr).lines().for_each(drop));
    }
    let server = Server(child);
    let start = Instant::now();
    while request(port, "GET /health", "").is_none_or(|(status, _)| !status.contains("200")) {
        assert!(
            start.elapsed() < Duration::from_secs(90),
            "the server does not become ready"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    (server, port)
}

fn ask(port: u16) -> String {
    let prompt = "abcdefgh".repeat(8);
    let body = format!("{{\"prompt\":\"{prompt}\",\"n_predict\":8,\"temperature\":0}}");
    let (status, answer) = request(port, "POST /completion", &body).expect("an answer");
    assert!(status.contains("200"), "{status}: {answer}");
    let start = answer.find('{').expect("JSON");
    let end = answer.rfind('}').expect("JSON");
    let json: serde_json::Value =
        serde_json::from_str(&answer[start..=end]).expect("JSON in one piece");
    json["content"].as_str().expect("a text").to_string()
}

#[test]
fn a_server_answers() {
    let (stock, port) = serve(&["--no-repack"]);
    let expected = ask(port);
    drop(stock);
    assert!(!expected.is_empty());
    let file = scratch("tools").join("server.json");
    let path = file.display().to_string();
    let (mut server, port) = serve(&[
        "--pipeshard",
        "--pipeshard-vram",
        "64M",
        "--pipeshard-sim",
        "vram=1G",
        "--pipeshard-report",
        &path,
    ]);
    assert_eq!(ask(port), expected);
    assert_eq!(ask(port), expected);
    // asked to stop, it writes its report
    let pid = i32::try_from(server.0.id()).expect("a process id");
    // SAFETY: the process is our child and has not been waited for, so the id is its own.
    unsafe { libc::kill(pid, libc::SIGTERM) };
    let start = Instant::now();
    while matches!(server.0.try_wait(), Ok(None)) {
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "the server does not stop"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    let report = report_in(&file);
    assert!(report.engaged && report.errors.is_empty(), "{report:?}");
    assert!(report.passes.prompt > 0 && report.passes.decode > 0);
    assert!(report.peak.total <= 64 << 20);
}
