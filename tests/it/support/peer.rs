//! Programs of other people that the tests talk to.

use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

/// Where a peer is installed; `None`, said aloud, where it is not. With `CI` set that is a failure.
pub fn find(name: &str) -> Option<PathBuf> {
    let unpacked = std::env::var_os("PEERS_ROOT")
        .map(PathBuf::from)
        .into_iter()
        .flat_map(|root| [root.join("usr/sbin"), root.join("usr/bin")]);
    let usual = ["/usr/sbin", "/usr/bin", "/usr/local/bin", "/sbin", "/bin"].map(PathBuf::from);
    let found = usual.into_iter().chain(unpacked).map(|folder| folder.join(name)).find(|path| path.exists());
    if found.is_none() {
        assert!(std::env::var_os("CI").is_none(), "{name} is not installed");
        println!("skipped: {name} is not installed");
    }
    found
}

/// Debian's own Python, for which Debian packages the libraries; `None` where one of the modules is missing.
pub fn python(modules: &[&str]) -> Option<PathBuf> {
    let python = find("python3")?;
    let import = format!("import {}", modules.join(", "));
    let works = Command::new(&python).args(["-c", &import]).output().unwrap().status.success();
    if !works {
        assert!(std::env::var_os("CI").is_none(), "python3 lacks one of {modules:?}");
        println!("skipped: python3 lacks one of {modules:?}");
    }
    works.then_some(python)
}

/// The library that gives a process another clock.
pub fn faketime() -> Option<String> {
    find("faketime")?;
    let folders = std::fs::read_dir("/usr/lib").unwrap().map(|entry| entry.unwrap().path());
    let library = folders.map(|folder| folder.join("faketime/libfaketimeMT.so.1")).find(|path| path.exists());
    Some(library.expect("faketime without its library").to_str().unwrap().to_owned())
}

/// A process that ends with the test.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// Runs it with `input` on its standard input; it must succeed.
pub fn run_with_input(command: &mut Command, input: &str) {
    let output = output_of_input(command, input);
    assert!(
        output.status.success(),
        "{command:?}\n{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

pub fn takes_input(command: &mut Command, input: &str) -> bool {
    output_of_input(command, input).status.success()
}

fn output_of_input(command: &mut Command, input: &str) -> Output {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}
