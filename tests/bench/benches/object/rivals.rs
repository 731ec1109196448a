//! The rivals: s3backer and `qemu-nbd` on qcow2.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use volmux_bench::{Result, Server, run};

use super::store::Store;
use super::{BUCKET, Place, path};

/// A volume of s3backer, which is a file on a FUSE mount, and `nbdkit`, which serves that file.
pub struct S3backer {
    server: Option<Server>,
    mount: PathBuf,
    process: Child,
}

impl S3backer {
    /// With blocks of `block` (`4k`), which is also what it puts and gets at a time.
    pub fn start(place: &Place, store: &Store, block: &str, size: u64) -> Result<Self> {
        let name = format!("s3backer-{block}");
        let mount = place.mounts.path().join(&name);
        std::fs::create_dir_all(&mount)?;
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--", "s3backer", "-f"])
            .arg(format!("--baseURL={}/", store.endpoint()))
            .args(["--accessId=bench", "--accessKey=bench"])
            .arg(format!("--size={size}"))
            .arg(format!("--blockSize={block}"))
            .arg(format!("--prefix={name}-"))
            // 256 MiB, as our pools have by default.
            .arg(format!(
                "--blockCacheSize={}",
                if block == "4k" { 65_536 } else { 2048 }
            ))
            .args(["--md5CacheSize=0", "--md5CacheTime=0", "--minWriteDelay=0"])
            .args(["--noAutoDetect", "--force", "--quiet", "--filename=volume"])
            .args([BUCKET.as_ref(), mount.as_os_str()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let process = command
            .spawn()
            .map_err(|error| format!("{command:?}: {error}"))?;
        let mut started = S3backer {
            server: None,
            mount,
            process,
        };
        let file = started.mount.join("volume");
        let start = Instant::now();
        while !file.exists() {
            if let Some(status) = started.process.try_wait()? {
                return Err(format!("{command:?}: {status}").into());
            }
            if start.elapsed() > Duration::from_secs(30) {
                return Err(format!("{command:?}: nothing is mounted").into());
            }
            sleep(Duration::from_millis(5));
        }
        let socket = place.socket(&name);
        let arguments = ["-f", "-U", path(&socket), "file", path(&file)];
        started.server = Some(Server::start("nbdkit", arguments, &socket)?);
        Ok(started)
    }

    /// Its NBD server.
    pub fn server(&self) -> &Server {
        self.server.as_ref().expect("there from the start")
    }
}

impl Drop for S3backer {
    fn drop(&mut self) {
        self.server = None;
        // What fails here ends with this process's mount namespace.
        let _ = run("umount", ["-l".as_ref(), self.mount.as_os_str()]);
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// `qemu-nbd` on a qcow2 file on the disk, past the page cache.
pub fn qemu_nbd(place: &Place, size: u64) -> Result<Server> {
    let (file, socket) = (place.disk.path().join("qcow2"), place.socket("qemu-nbd"));
    let size = size.to_string();
    run(
        "qemu-img",
        ["create", "-q", "-f", "qcow2", path(&file), &size],
    )?;
    let arguments = [
        "-k",
        path(&socket),
        "-t",
        "-e",
        "8",
        "-f",
        "qcow2",
        "--cache=none",
        "--aio=io_uring",
        path(&file),
    ];
    Server::start("qemu-nbd", arguments, &socket)
}
