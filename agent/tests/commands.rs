//! The command line as its users see it: what goes to stdout and stderr, and the exit status.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may")]

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

/// Runs `tidegate` with `arguments` in `dir`: status, stdout, stderr.
fn tidegate(dir: &Path, arguments: &[&str], stdin: &str) -> (i32, String, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_tidegate"))
        .args(arguments)
        .current_dir(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that does not read its input may be gone already.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    let output = child.wait_with_output().unwrap();
    let real = dir.canonicalize().unwrap().display().to_string();
    let text = |bytes| String::from_utf8(bytes).unwrap().replace(&real, "DIR");
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[track_caller]
fn check(arguments: &[&str], status: i32, stderr: &str) {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(tidegate(dir.path(), arguments, ""), (status, String::new(), stderr.to_owned()), "{arguments:?}");
}

#[test]
fn without_an_agent_the_status_is_3() {
    for command in ["status", "logs", "reload"] {
        check(
            &[command, "--socket", "none.sock"],
            3,
            "error: no agent listens on `none.sock`: No such file or directory (os error 2)\n\n\
             hint: start it with `tidegate run`, or name the socket of one that runs with `--socket`\n",
        );
    }
}

#[test]
fn each_command_has_a_manual_page() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(tidegate(dir.path(), &["man", "pages"], ""), (0, String::new(), String::new()));
    let page = |name: &str| std::fs::read_to_string(dir.path().join(format!("pages/tidegate{name}.1"))).unwrap();
    for (name, says) in
        [("", "tidegate\\-run(1)"), ("-run", "SIGTERM"), ("-dead-letters-replay", "tidegate dead\\-letters replay")]
    {
        assert!(page(name).contains(says), "{}", page(name));
    }
}

#[test]
fn wrong_input_has_status_2_and_a_hint() {
    check(
        &["check"],
        2,
        "error: gateway.toml: there is no such file\n  hint: name the file with `--config FILE`; the getting-started guide has one to copy\n",
    );
    check(
        &["new", "Oven"],
        2,
        "error: `Oven` is not a function name: it must be 1 to 64 of `a-z`, `0-9`, `-` and `_`, and start with a letter or digit\n\n\
         hint: for example `tidegate new threshold-alarm`\n",
    );
    check(
        &["new", "oven", "--language", "python"],
        2,
        "error: `--language python` is not available in this version\n\n\
         hint: use `--language rust`, or bring a component of your own: see the reference of function.toml\n",
    );
    check(
        &["invoke", "--bundle", "oven", "--event", "none.json"],
        2,
        "error: cannot read the event from `none.json`\n  caused by: No such file or directory (os error 2)\n\n\
         hint: name a file, or `-` for stdin\n",
    );
    check(
        &["build", "oven"],
        2,
        "error: DIR/oven/function.toml: there is no such file\n  hint: a function is a folder with a function.toml in it: `tidegate new` makes one\n",
    );
}

#[test]
fn each_problem_of_a_config_is_shown_with_its_hint() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("gateway.toml"), "[mqtt.local]\nurl = \"broker\"\nversoin = 5\n").unwrap();
    let (status, stdout, stderr) = tidegate(dir.path(), &["check"], "");
    assert_eq!((status, stdout.as_str()), (2, ""));
    assert_eq!(
        stderr,
        "error: gateway.toml:2:7: mqtt.local.url: `broker` has no scheme\n  hint: write `mqtt://HOST:PORT`, or `mqtts://HOST:PORT` for TLS\n\
         error: gateway.toml:3:1: mqtt.local.versoin: unknown key `versoin`\n  hint: did you mean `version`?\n\n\
         error: 2 problems\n"
    );
    let (status, stdout, _) = tidegate(dir.path(), &["check", "--json"], "");
    let found: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((status, &found["errors"][1]["key"]), (2, &"mqtt.local.versoin".into()));
}

#[test]
fn a_good_config_is_called_good() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("gateway.toml"), "[stream.readings]\n").unwrap();
    let good = "gateway.toml is good: 0 functions, 0 models, 1 stream\n".to_owned();
    assert_eq!(tidegate(dir.path(), &["check"], ""), (0, good, String::new()));
}

#[test]
fn a_new_function_builds_and_runs_in_any_folder() {
    let dir = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str], stdin| tidegate(dir.path(), arguments, stdin);
    let (status, _, stderr) = run(&["new", "oven"], "");
    assert_eq!((status, stderr.as_str()), (0, ""));
    let (status, stdout, stderr) = run(&["build", "oven"], "");
    assert_eq!(status, 0, "{stderr}");
    assert!(stdout.starts_with("oven/oven-0.1.0.tar.zst ("), "{stdout}");
    for bundle in ["oven", "oven/oven-0.1.0.tar.zst"] {
        let (status, stdout, stderr) =
            run(&["invoke", "--bundle", bundle, "--event", "-"], r#"{"oven":"1","celsius":251.5}"#);
        let sent = "would publish on `alarm/1` of local (QoS 1): {\"oven\":\"1\",\"celsius\":251.5}\n";
        assert_eq!((status, stdout.as_str(), stderr.as_str()), (0, "", sent));
        let (status, stdout, stderr) = run(&["invoke", "--bundle", bundle, "--event", "-"], r#"{"oven":"1"}"#);
        assert_eq!((status, stdout.as_str()), (1, ""));
        assert!(
            stderr.starts_with("error: function `oven` rejected the event: the payload: missing field `celsius`"),
            "{stderr}"
        );
    }
}
