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

fn disk(socket: &Path, read_only: bool) -> Disk {
    let on = if read_only { "on" } else { "off" };
    let backend = format!(
        "driver=nbd,node-name=disk,server.type=unix,server.path={},export=disk,discard=unmap,\
         read-only={on}",
        socket.display()
    );
    let arguments = [
        "-blockdev",
        &backend,
        "-device",
        "virtio-blk-pci,drive=disk",
    ];
    Disk {
        arguments: arguments.map(str::to_owned).to_vec(),
        read_only,
    }
}

#[test]
fn a_guest_tells_what_it_wrote_and_finds_it_again() {
    let image = Image::new();
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("socket");
    let _server = QemuNbd::serve(&image.disk(), &socket);
    let writable = disk(&socket, false);
    let work = ["boots", "write", "trim", "record"];
    let mut first = Guest::boot(&image, &writable, &work);
    first.wait_for("record 20");
    let first = first.end();
    assert_eq!(first.number("boots"), 1);
    assert_eq!(first.lines("sum").len(), 8);
    assert_eq!(first.lines("junk"), ["junk written", "junk trimmed"]);
    let last = first.number("record");
    assert_eq!(first.lines("record").len() as u64, last);
    Image::assert_in_order(&image.disk());

    let read_only = disk(&socket, true);
    let found = Guest::boot(&image, &read_only, &["sums", "records"]).finish();
    assert_eq!(found.lines("sum"), first.lines("sum"));
    assert_eq!(found.number("records"), last);
}
