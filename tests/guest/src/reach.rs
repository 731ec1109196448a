//! How a host gets at the volumes of a pool, so that guests can boot from them.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use volmux::hypervisor::RenderOptions;
use volmux::{AttachTarget, Attachment, ErrorKind, Holder};
use volmux_conformance::iscsi::Tgtd;
use volmux_conformance::scratch::LoopFs;
use volmux_gateway::{ExportOptions, Exports, Limits, Listen, ServeOptions, Server, serve};

use crate::{Store, name};

/// Who has the volumes: the name of an iSCSI initiator, which every pool takes.
pub const HOST: &str = "iqn.2026-11.org.volmux.test:host";
/// The secret of an [`array()`].
pub const SECRET: &str = "a-secret-of-chap";
/// How long a server may take to stop, and QEMU to let go of a disk.
pub const STOP: Duration = Duration::from_secs(60);

/// The way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// They are attached.
    Attach,
    /// They are attached, and a loop device is put on their files.
    LoopDevice,
    /// They are served.
    Gateway,
}

/// A volume that a guest can be booted from.
#[derive(Debug)]
pub struct Reached {
    /// What is to be rendered.
    pub attached: Attachment,
    server: Option<Server>,
    device: Option<LoopDevice>,
}

impl Reached {
    /// How to render it.
    pub fn options(&self) -> RenderOptions {
        RenderOptions {
            host_device: self.device.as_ref().map(|device| device.path.clone()),
            ..RenderOptions::default()
        }
    }

    /// What a virtio disk can show of the serial number, as the guest's work `plugged` takes it.
    pub fn serial(&self) -> String {
        format!("serial={:.20}", self.attached.id.to_string())
    }
}

impl Store {
    /// Makes a volume reachable for guests of this host, on `socket` if it is served.
    pub fn reach(&self, volume: &str, way: Way, socket: &Path) -> Reached {
        if way == Way::Gateway {
            return self.serve(volume, socket);
        }
        let attached = self.attach(volume, HOST).expect("attach");
        let device = (way == Way::LoopDevice).then(|| LoopDevice::of(&attached));
        Reached {
            attached,
            server: None,
            device,
        }
    }

    fn serve(&self, volume: &str, socket: &Path) -> Reached {
        let options = ServeOptions {
            exports: Exports::Volumes(vec![ExportOptions::read_write(name(volume))]),
            listen: vec![Listen::Unix(socket.to_owned())],
            tls: None,
            statistics: None,
            limits: Limits::default(),
        };
        let served = serve(Arc::clone(&self.pool), options);
        let server = self.on(served).expect("serve");
        let holder = Holder::new(HOST).expect("a holder");
        let attached = self.on(server.attachment(0, &name(volume), holder));
        Reached {
            attached: attached.expect("it is served"),
            server: Some(server),
            device: None,
        }
    }

    /// The end of that.
    pub fn leave(&self, reached: Reached) {
        drop(reached.device);
        match reached.server {
            Some(server) => self.on(server.stop(STOP)).expect("stop"),
            None => self.detach_soon(reached.attached.volume.as_str()),
        }
    }

    /// QEMU may have a disk for a moment after its guest has let it go.
    fn detach_soon(&self, volume: &str) {
        let start = Instant::now();
        loop {
            match self.detach(volume, HOST) {
                Err(error) if error.kind() == ErrorKind::Busy && start.elapsed() < STOP => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                detached => return detached.expect("detach"),
            }
        }
    }
}

/// The URL of a directory pool on `fs`.
pub fn directory_url(fs: &LoopFs) -> String {
    let root = fs.path().join("pool");
    fs::create_dir_all(&root).expect("the pool's directory");
    format!("dir://{}?init=true", root.display())
}

/// An array of tgt over a directory pool on `fs`, which asks for CHAP.
pub fn array(fs: &LoopFs) -> (Tgtd, Store) {
    let secret = fs.path().join("secret");
    fs::write(&secret, SECRET).expect("a secret");
    let tgtd = Tgtd::start();
    let url = tgtd.url("iqn.2026-11.org.volmux.test:array", &directory_url(fs));
    let chap = format!("&chap_user=volmux&chap_file={}", secret.display());
    (tgtd, Store::open(&(url + &chap)))
}

/// A loop device on an attached file. It goes when this is dropped, and when the test is killed.
#[derive(Debug)]
struct LoopDevice {
    path: PathBuf,
    _open: File,
}

impl LoopDevice {
    fn of(attached: &Attachment) -> LoopDevice {
        let AttachTarget::File { path } = &attached.target else {
            panic!("no file: {attached:?}");
        };
        let path = losetup(&["--find", "--show"], path);
        let path = PathBuf::from(path.trim());
        let open = File::open(&path).expect("the device");
        // While it is open that only says that it is to go with who has it open last.
        losetup(&["--detach"], &path);
        LoopDevice { path, _open: open }
    }
}

fn losetup(arguments: &[&str], path: &Path) -> String {
    let mut command = Command::new("/sbin/losetup");
    let output = command.args(arguments).arg(path).output().expect("losetup");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("UTF-8")
}
