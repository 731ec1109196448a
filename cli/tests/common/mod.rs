//! A pool in a temporary directory, and the program run on it.
#![allow(dead_code, missing_docs)]

pub mod qemu;
pub mod serving;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

/// How a run ended.
#[derive(Debug)]
pub struct Done {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Done {
    /// What was printed, after a success.
    #[track_caller]
    pub fn ok(&self) -> &str {
        assert_eq!(self.code, Some(0), "{self:?}");
        &self.stdout
    }

    /// The one document that was printed, after a success.
    #[track_caller]
    pub fn json(&self) -> Value {
        let documents = self.documents();
        assert_eq!(documents.len(), 1, "{self:?}");
        documents.into_iter().next().expect("one")
    }

    /// The documents that were printed, after a success.
    #[track_caller]
    pub fn documents(&self) -> Vec<Value> {
        self.ok();
        lines(&self.stdout)
    }

    /// The one error, with this exit code.
    #[track_caller]
    pub fn error(&self, code: i32, kind: &str) -> Value {
        assert_eq!(self.code, Some(code), "{self:?}");
        let errors = lines(&self.stderr);
        assert_eq!(errors.len(), 1, "{self:?}");
        let error = errors.into_iter().next().expect("one");
        assert_eq!(error["schema"], "volmux.error.v1", "{error}");
        assert_eq!(error["kind"], kind, "{error}");
        error
    }
}

/// Each line as JSON.
#[track_caller]
pub fn lines(text: &str) -> Vec<Value> {
    let parse = |line: &str| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
    text.lines().map(parse).collect()
}

/// A temporary directory with a pool in `pool`.
#[derive(Debug)]
pub struct Place {
    dir: TempDir,
}

impl Place {
    pub fn new() -> Self {
        let place = Place {
            dir: tempfile::tempdir().expect("temporary directory"),
        };
        fs::create_dir(place.path("pool")).expect("pool directory");
        place
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn text(&self, name: &str) -> String {
        self.path(name).to_str().expect("UTF-8").to_owned()
    }

    pub fn url(&self) -> String {
        format!("dir://{}", self.text("pool"))
    }

    /// The program, with nothing from the environment that it would heed.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_volmux"));
        command
            .args(args)
            .env_remove("VOLMUX_CONFIG")
            .env_remove("VOLMUX_QEMU_IMG")
            .env("VOLMUX_POOL", self.url())
            .env("HOME", self.dir.path())
            .env("TMPDIR", self.dir.path())
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    pub fn run(&self, args: &[&str]) -> Done {
        finish(self.command(args).spawn().expect("spawn"))
    }

    /// With `--json`.
    pub fn json(&self, args: &[&str]) -> Done {
        let mut all = vec!["--json"];
        all.extend(args);
        self.run(&all)
    }

    /// A file of `size` bytes with data in two places.
    pub fn image(&self, name: &str, size: u64) -> PathBuf {
        use std::os::unix::fs::FileExt;
        let path = self.path(name);
        let file = fs::File::create(&path).expect("create");
        file.set_len(size).expect("size");
        let data: Vec<u8> = (0..300_000u32)
            .flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes())
            .collect();
        file.write_all_at(&data, 1 << 20).expect("write");
        file.write_all_at(b"the end", size - 7).expect("write");
        path
    }

    /// Everything in the pool's directory.
    pub fn pool_state(&self) -> BTreeMap<PathBuf, String> {
        let mut state = BTreeMap::new();
        walk(&self.path("pool"), &mut state);
        state
    }

    /// How many sockets and directories for such are in the temporary directory of the program.
    pub fn sockets(&self) -> usize {
        let entries = fs::read_dir(self.dir.path()).expect("list").flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.filter(|name| name.starts_with("volmux-")).count()
    }

    /// The volumes' names.
    pub fn names(&self) -> Vec<String> {
        let volumes = self.json(&["volume", "list", "--sort", "name"]).documents();
        volumes
            .iter()
            .map(|v| v["name"].as_str().expect("name").to_owned())
            .collect()
    }

    /// A stand-in for qemu-img that notes its pid in `pid` and hangs in `hang`, and is the real
    /// one otherwise.
    pub fn fake_qemu_img(&self, hang: &str) -> PathBuf {
        self.script(&format!(
            "if [ \"$1\" = {hang} ]; then echo $$ > '{0}.new'; /bin/mv '{0}.new' '{0}'; exec /bin/sleep 1000; fi\n\
             exec /usr/bin/qemu-img \"$@\"",
            self.text("pid")
        ))
    }

    /// A program with this body.
    pub fn script(&self, body: &str) -> PathBuf {
        let path = self.path("qemu-img");
        fs::write(&path, format!("#!/bin/sh\n{body}\n")).expect("script");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("mode");
        path
    }
}

/// A volume's document with what differs from run to run replaced.
pub fn normal(mut volume: Value) -> Value {
    let id = volume["id"].as_str().expect("id");
    assert_eq!(id.len(), 36, "{id}");
    let created = volume["created"].as_str().expect("created");
    assert!(created.len() == 27 && created.ends_with('Z'), "{created}");
    volume["id"] = "ID".into();
    volume["created"] = "TIME".into();
    if let Some(parent) = volume["origin"].get_mut("parent_id") {
        *parent = "PARENT".into();
    }
    volume
}

pub fn finish(child: Child) -> Done {
    let output = child.wait_with_output().expect("wait");
    Done {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).expect("UTF-8"),
        stderr: String::from_utf8(output.stderr).expect("UTF-8"),
    }
}

/// Waits until it holds; what it waits for is certain to come, so the limit is only for failures.
#[track_caller]
pub fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < Duration::from_secs(120), "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub fn alive(pid: &str) -> bool {
    // A zombie has no command line.
    fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty())
}

pub fn qemu_img(args: &[&str]) {
    let output = Command::new("/usr/bin/qemu-img")
        .args(args)
        .output()
        .expect("qemu-img");
    assert!(output.status.success(), "qemu-img {args:?}: {output:?}");
}

fn walk(dir: &Path, state: &mut BTreeMap<PathBuf, String>) {
    for entry in fs::read_dir(dir).expect("list") {
        let path = entry.expect("entry").path();
        let metadata = fs::symlink_metadata(&path).expect("metadata");
        if metadata.is_dir() {
            walk(&path, state);
            state.insert(path, "directory".into());
            continue;
        }
        let content = fs::read(&path).expect("read");
        let hash = Sha256::digest(&content);
        let state_of = format!("{} {} {hash:x}", metadata.ino(), metadata.blocks());
        state.insert(path, state_of);
    }
}

pub fn sha256_of(path: &str) -> String {
    let output = Command::new("sha256sum")
        .arg(path)
        .output()
        .expect("sha256sum");
    String::from_utf8(output.stdout).expect("UTF-8")[..64].to_owned()
}

pub fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}
