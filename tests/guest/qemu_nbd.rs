//! The guest itself, without volmux: served by `qemu-nbd` from a raw file. If this fails, the other
//! tests with guests say nothing about volmux.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use volmux_guest::{Disk, Guest, Image};

struct QemuNbd(Child);

impl QemuNbd {
    fn serve(file: &Path, socket: &Path) -> QemuNbd {
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--", "qemu-nbd", "-t", "-f", "raw"])
            .args(["--discard=unmap", "-x", "disk", "-k"])
            .args([socket, file])
            .stdin(Stdio::null());
        let mut server = command
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}; run .ci/setup"));
        let start = Instant::now();
        while !socket.exists() {
            let ended = server.try_wait().expect("wait");
            assert!(ended.is_none(), "qemu-nbd: {ended:?}");
            assert!(start.elapsed() < Duration::from_secs(30), "no socket");
            std::thread::sleep(Duration::from_millis(10));
        }
        QemuNbd(server)
    }
}

impl Drop for QemuNbd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_guest_tells_what_it_wrote_and_finds_it_again() {
    let image = Image::new();
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("socket");
    let _server = QemuNbd::serve(&image.disk(), &socket);
    let disk = Disk::new(&socket, "disk");
    let work = ["boots", "write", "trim", "record", "records=20"];
    let first = Guest::boot(&image, &disk, &work).finish();
    assert_eq!(first.number("boots"), 1);
    assert_eq!(first.lines("sum").len(), 8);
    assert_eq!(first.lines("junk"), ["junk written", "junk trimmed"]);
    assert_eq!(first.lines("record").len(), 20);
    Image::assert_in_order(&image.disk());

    let mut read_only = disk.clone();
    read_only.read_only = true;
    let found = Guest::boot(&image, &read_only, &["sums", "records"]).finish();
    assert_eq!(found.lines("sum"), first.lines("sum"));
    assert_eq!(found.number("records"), 20);
}
