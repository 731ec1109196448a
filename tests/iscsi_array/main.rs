//! Arrays of tgt: what happens when the target dies, forgets, or shows something else, and who is let
//! in.

mod access;
mod audit;
mod flushes;
mod gone;
mod luns;
mod restart;
#[path = "../writer/mod.rs"]
mod writer;

use std::path::PathBuf;
use std::sync::Arc;

use volmux::{
    Access, AttachOptions, BlockDevice, ByteSize, CreateOptions, Error, Holder, OpenOptions, Pool,
    Sharing, VolumeName,
};
use volmux_conformance::iscsi::Tgtd;
use volmux_conformance::scratch::LoopFs;
use volmux_conformance::{checked_name, on};

const MIB: u64 = 1 << 20;
const ARRAY: &str = "iqn.2026-11.org.volmux.test:array";

/// A target over a directory on XFS, and an array of both.
struct Scene {
    tgtd: Tgtd,
    fs: LoopFs,
    options: String,
}

impl Scene {
    /// Before any runtime: its threads must see what is mounted.
    fn new() -> Scene {
        let fs = LoopFs::xfs(320 * MIB);
        std::fs::create_dir(fs.path().join("store")).expect("a directory");
        Scene {
            tgtd: Tgtd::start(),
            fs,
            options: String::new(),
        }
    }

    fn root(&self) -> PathBuf {
        self.fs.path().join("store")
    }

    fn url(&self) -> String {
        let store = format!("dir://{}?init=true", self.root().display());
        self.tgtd.url(ARRAY, &store) + &self.options
    }

    async fn pool(&self) -> Arc<dyn Pool> {
        let pool = volmux::registry().open(&self.url()).await;
        pool.expect("the array opens")
    }

    /// The file that holds a volume's data, of which there is one.
    fn data(&self) -> PathBuf {
        let files = std::fs::read_dir(self.root().join("data")).expect("the store's files");
        let files: Vec<PathBuf> = files.map(|file| file.expect("a file").path()).collect();
        assert_eq!(files.len(), 1, "{files:?}");
        files[0].clone()
    }
}

fn n(name: &str) -> VolumeName {
    checked_name(name)
}

fn host(name: &str) -> Holder {
    Holder::new(format!("iqn.2026-11.org.volmux.test:{name}")).expect("a holder")
}

fn writing(name: &str) -> AttachOptions {
    AttachOptions {
        holder: host(name),
        access: Access::ReadWrite,
        sharing: Sharing::Exclusive,
    }
}

async fn create(pool: &dyn Pool, name: &str, size: u64) {
    let options = CreateOptions::thin(ByteSize::new(size));
    pool.create_volume(&n(name), options).await.expect("create");
}

async fn writer(pool: &dyn Pool, name: &str) -> Arc<dyn BlockDevice> {
    let open = pool.open_volume(&n(name), OpenOptions::read_write()).await;
    open.expect("open for writing")
}

/// With the causes, as a person sees it with `-v`.
fn told(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}
