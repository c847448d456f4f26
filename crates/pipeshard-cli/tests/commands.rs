//! The tool that is installed: it has the commands that users need, and no others.

use std::process::Command;

#[test]
fn it_has_the_commands_that_users_need() {
    let tool = Command::new(env!("CARGO_BIN_EXE_pipeshard"))
        .arg("--help")
        .output()
        .expect("the tool can be started");
    assert!(tool.status.success());
    let help = String::from_utf8_lossy(&tool.stdout);
    let commands = help.split("Commands:").nth(1).expect("a list of commands");
    let commands = commands.split("Options:").next().unwrap_or(commands);
    let names: Vec<&str> = (commands.lines())
        .filter_map(|line| line.strip_prefix("  ")?.split_whitespace().next())
        .collect();
    assert_eq!(
        names,
        ["plan", "tune", "profile", "bench", "verify", "trace", "top", "help"]
    );
}
