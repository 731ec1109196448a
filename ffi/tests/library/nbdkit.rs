//! `examples/nbdkit-volmux.c` in a server, and clients of it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::build::{crate_folder, folder, run, said, shared_library};

/// Builds the plugin.
fn plugin(library: &Path) -> PathBuf {
    let source = crate_folder().join("../examples/nbdkit-volmux.c");
    let plugin = library.join("nbdkit-volmux.so");
    let mut gcc = Command::new("gcc");
    gcc.args(["-std=gnu11", "-g", "-O1", "-Wall", "-Wextra", "-Werror"]);
    gcc.args(["-shared", "-fPIC", "-o"])
        .arg(&plugin)
        .arg(source);
    gcc.arg("-I").arg(crate_folder().join("include"));
    gcc.arg("-L").arg(library).arg("-lvolmux");
    gcc.arg(format!("-Wl,-rpath,{}", library.display()));
    run(&mut gcc);
    plugin
}

/// nbdkit in the background, as it is by default: the process that was started has ended.
struct Server {
    process: String,
    uri: String,
    _place: TempDir,
}

impl Server {
    fn start(plugin: &Path, parameters: &[&str]) -> Server {
        // nbdkit leaves its socket behind.
        let folder = folder();
        let place = folder.path();
        let (socket, pid) = (place.join("socket"), place.join("pid"));
        let mut nbdkit = Command::new("nbdkit");
        nbdkit.arg("-U").arg(&socket).arg("-P").arg(&pid);
        nbdkit.arg(plugin).args(parameters);
        // Held open by the server, its output would have no end.
        let log = fs::File::create(place.join("log")).expect("a file");
        nbdkit
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let status = nbdkit.status().expect("nbdkit");
        let log = || fs::read_to_string(place.join("log")).unwrap_or_default();
        assert!(status.success(), "{}", log());
        // It is written once the server listens.
        for _ in 0..600 {
            let process = fs::read_to_string(&pid).unwrap_or_default();
            if process.ends_with('\n') {
                return Server {
                    process: process.trim().to_owned(),
                    uri: format!("nbd+unix:///?socket={}", socket.display()),
                    _place: folder,
                };
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("nbdkit does not serve: {}", log());
    }

    fn is_there(&self) -> bool {
        Path::new("/proc").join(&self.process).exists()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = Command::new("kill").arg(&self.process).status();
        for _ in 0..600 {
            if !self.is_there() {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let _ = Command::new("kill").args(["-9", &self.process]).status();
    }
}

#[test]
fn a_volume_is_served_by_nbdkit() {
    let place = folder();
    let library = shared_library(place.path());
    let plugin = plugin(&library);
    let pool = place.path().join("pool");
    fs::create_dir(&pool).expect("a folder");
    let dir = format!("pool=dir://{}", pool.display());
    for pool in ["pool=memory:", dir.as_str()] {
        let parameters = [pool, "volume=disk", "size=32M"];
        let server = Server::start(&plugin, &parameters);
        let info = run(Command::new("nbdinfo").arg(&server.uri));
        for line in [
            "export-size: 33554432",
            "can_flush: true",
            "can_fua: true",
            "can_multi_conn: true",
            "can_trim: true",
            "can_zero: true",
            "can_fast_zero: true",
            "is_read_only: false",
        ] {
            assert!(info.contains(line), "{line}\n{info}");
        }
        let map = run(Command::new("nbdinfo").arg("--map").arg(&server.uri));
        assert_eq!(map.split_whitespace().nth(1), Some("33554432"), "{map}");
        assert!(map.contains("hole,zero"), "{map}");
        verify(&server.uri, place.path());
        let map = run(Command::new("nbdinfo")
            .args(["--map", "--totals"])
            .arg(&server.uri));
        assert!(map.contains("data"), "{map}");
    }
    // It was flushed, closed, and is still there.
    let parameters = [dir.as_str(), "volume=disk", "readonly=true"];
    let server = Server::start(&plugin, &parameters);
    let info = run(Command::new("nbdinfo").arg(&server.uri));
    assert!(info.contains("is_read_only: true"), "{info}");
    let map = run(Command::new("nbdinfo")
        .args(["--map", "--totals"])
        .arg(&server.uri));
    assert!(map.contains("data"), "{map}");
}

/// fio writes at random, over several connections, with flushes and discards, and reads back.
fn verify(uri: &str, place: &Path) {
    for (job, options) in [
        (
            "write",
            vec![
                "--rw=randwrite",
                "--fsync=16",
                "--numjobs=2",
                "--offset_increment=16m",
            ],
        ),
        ("trim", vec!["--rw=randtrim", "--norandommap"]),
        ("again", vec!["--rw=randrw", "--bsrange=4k-64k"]),
    ] {
        let mut fio = Command::new("fio");
        fio.current_dir(place);
        fio.args([
            "--name=job",
            "--ioengine=nbd",
            "--iodepth=16",
            "--bs=4k",
            "--size=16m",
        ]);
        fio.arg(format!("--uri={uri}")).args(options);
        fio.args(["--randrepeat=1", "--group_reporting", "--minimal"]);
        if job != "trim" {
            fio.args(["--verify=crc32c", "--verify_fatal=1", "--do_verify=1"]);
        } else {
            fio.arg("--number_ios=500");
        }
        run(&mut fio);
    }
}

/// What a server that never began has told.
fn refused(plugin: &Path, parameters: &[&str]) -> String {
    let child: Child = Command::new("nbdkit")
        .args(["-f", "-U", "-"])
        .arg(plugin)
        .args(parameters)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("nbdkit");
    let output = child.wait_with_output().expect("its end");
    assert!(!output.status.success(), "{}", said(&output));
    said(&output)
}

#[test]
fn wrong_parameters_are_told_before_the_server_is_in_the_background() {
    let place = folder();
    let plugin = plugin(&shared_library(place.path()));
    for (parameters, told) in [
        (&["pool=memory:"][..], "give pool=URL and volume=NAME"),
        (&["pool=memory:", "volume=disk"], "not found"),
        (&["pool=floppy:", "volume=disk"], "known schemes"),
        (
            &["pool=memory:", "volume=disk", "colour=red"],
            "no parameter colour",
        ),
        (&["pool=memory:", "volume=a/b", "size=1M"], "is not allowed"),
    ] {
        let said = refused(&plugin, parameters);
        assert!(said.contains(told), "{parameters:?}: {said}");
    }
}
