//! Guests that boot from volumes by what is rendered of their attachments, and by nothing else.

mod faults;
mod frozen;
mod lab;
mod life;
mod live;
mod plug;

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use volmux_conformance::iscsi::Tgtd;
use volmux_conformance::scratch::LoopFs;
use volmux_guest::{
    Disk, Guest, HOST, Image, Reached, STOP, Said, Store, Way, array, directory_url, name,
};

const MIB: u64 = 1 << 20;
/// Another one than the [`HOST`] who has a volume, and wants it.
const OTHER: &str = "iqn.2026-11.org.volmux.test:other";

/// A pool with the image of a guest in the volume `guest`.
struct Scene {
    // In this order: what runs ends before what it works on.
    store: Store,
    image: Image,
    way: Way,
    directory: TempDir,
    tgtd: Option<Tgtd>,
    /// What the pool is in.
    _place: Box<dyn Any>,
}

impl Scene {
    fn on_xfs() -> Scene {
        Scene::in_directory(LoopFs::xfs(512 * MIB), Way::Attach)
    }

    fn on_ext4() -> Scene {
        Scene::in_directory(LoopFs::ext4(512 * MIB), Way::Attach)
    }

    fn on_loop_devices() -> Scene {
        Scene::in_directory(LoopFs::xfs(512 * MIB), Way::LoopDevice)
    }

    fn in_directory(fs: LoopFs, way: Way) -> Scene {
        let store = Store::open(&directory_url(&fs));
        Scene::new(store, way, None, fs)
    }

    fn in_memory() -> Scene {
        Scene::new(Store::open("memory:"), Way::Gateway, None, ())
    }

    /// An object pool in a directory.
    fn of_objects() -> Scene {
        let fs = LoopFs::xfs(512 * MIB);
        let store = Store::open(&format!("file+object://{}", fs.path().display()));
        Scene::new(store, Way::Gateway, None, fs)
    }

    /// An array of tgt over a directory on XFS, which asks for CHAP.
    fn of_an_array() -> Scene {
        let fs = LoopFs::xfs(512 * MIB);
        let (tgtd, store) = array(&fs);
        Scene::new(store, Way::Attach, Some(tgtd), fs)
    }

    fn new(store: Store, way: Way, tgtd: Option<Tgtd>, place: impl Any) -> Scene {
        let image = Image::new();
        store.import(&image, "guest");
        Scene {
            store,
            image,
            way,
            directory: tempfile::tempdir().expect("a directory"),
            tgtd,
            _place: Box::new(place),
        }
    }

    /// Makes a volume reachable for a guest of this host.
    fn reach(&self, volume: &str) -> Reached {
        let socket = self.directory.path().join(volume);
        self.store.reach(volume, self.way, &socket)
    }

    fn boot(&self, reached: &Reached, work: &[&str]) -> Guest {
        Guest::boot(&self.image, &disk(reached), work)
    }

    /// A whole boot from a volume.
    fn run(&self, volume: &str, work: &[&str]) -> Said {
        let reached = self.reach(volume);
        let said = self.boot(&reached, work).finish();
        self.store.leave(reached);
        said
    }
}

/// What QEMU is given.
fn disk(reached: &Reached) -> Disk {
    Disk::of(&reached.attached, &reached.options())
}
