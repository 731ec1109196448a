//! Backstores: what LIO knows a file or a block device by. Each volume has one, which the targets
//! of its writers and of its readers share: a block device can be claimed only once.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use volmux_core::{Error, ErrorKind, Result};

use super::tree::Dir;
use crate::control::Export;
use crate::control::backing::Kind;

/// The number of our adapters. Names of backstores are serial numbers; those of others have
/// adapters with other numbers.
const ADAPTER: &str = "8653";
/// Bytes of a file that are given back by one command.
const UNMAPPED: u64 = 1 << 30;
/// File systems give back no less. What stat(2) says is the best size of a transfer, which may be much more.
const GRANULE: u64 = 4096;
/// What the kernel keeps of a path.
const MOST_PATH: usize = 255;

/// A backstore, as it should be.
#[derive(Debug)]
pub struct Wanted<'a> {
    export: &'a Export,
    kind: Kind,
    /// Major and minor number of a block device.
    device: Option<(u32, u32)>,
    /// Whether the device itself takes no writes.
    read_only: bool,
}

impl<'a> Wanted<'a> {
    /// Looks at what an export leads to.
    ///
    /// # Errors
    /// `InvalidInput` for a path that is too long; `PermissionDenied` for a device that can't be
    /// written and should be.
    pub fn new(op: &'static str, export: &'a Export, kind: Kind) -> Result<Wanted<'a>> {
        let wrong = |kind: ErrorKind, reason: &str| {
            let error = Error::new(kind, op).with("path", export.path.display());
            Err(error.reason(reason))
        };
        if export.path.as_os_str().len() > MOST_PATH {
            return wrong(
                ErrorKind::InvalidInput,
                "LIO takes paths of 255 bytes at most",
            );
        }
        let mut wanted = Wanted {
            export,
            kind,
            device: None,
            read_only: false,
        };
        if kind == Kind::Device {
            let about =
                std::fs::metadata(&export.path).map_err(|error| Error::from_io(op, error))?;
            let number = about.rdev();
            let device = (rustix::fs::major(number), rustix::fs::minor(number));
            wanted.device = Some(device);
            wanted.read_only = sys(device, "ro").is_some_and(|ro| ro == 1);
        }
        match wanted.read_only && !export.read_only {
            true => wrong(ErrorKind::PermissionDenied, "the device takes no writes"),
            false => Ok(wanted),
        }
    }
}

/// A number that sysfs tells of a block device.
fn sys((major, minor): (u32, u32), name: &str) -> Option<u64> {
    let path = format!("/sys/dev/block/{major}:{minor}/{name}");
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// A backstore that there is.
#[derive(Clone, Debug)]
pub struct Store {
    pub dir: Dir,
    kind: Kind,
}

impl Store {
    /// The one with that serial number, of that kind.
    fn named(core: &Dir, kind: Kind, serial: &str) -> Store {
        let adapter = match kind {
            Kind::File => format!("fileio_{ADAPTER}"),
            Kind::Device => format!("iblock_{ADAPTER}"),
        };
        Store {
            dir: core.at(&adapter).at(serial),
            kind,
        }
    }

    /// All of ours.
    pub fn all(core: &Dir) -> Result<Vec<Store>> {
        let mut all = Vec::new();
        for kind in [Kind::File, Kind::Device] {
            let adapter = Store::named(core, kind, "").dir;
            let stores = adapter.dirs()?.into_iter();
            all.extend(stores.map(|dir| Store { dir, kind }));
        }
        Ok(all)
    }

    /// The one that a logical unit shows.
    pub fn shown(op: &'static str, path: PathBuf) -> Store {
        let kind = match path.components().rev().nth(1) {
            Some(adapter) if adapter.as_os_str().to_string_lossy().starts_with("iblock_") => {
                Kind::Device
            }
            _ => Kind::File,
        };
        Store {
            dir: Dir { path, op },
            kind,
        }
    }

    pub fn is_at(&self, path: &Path) -> bool {
        self.dir.path == path
    }

    pub fn serial(&self) -> Result<String> {
        let serial = self.dir.at("wwn").get("vpd_unit_serial")?;
        let told = serial.split_once(": ").map_or("", |(_, serial)| serial);
        Ok(told.to_owned())
    }

    pub fn path(&self) -> Result<PathBuf> {
        Ok(self.dir.get("udev_path")?.into())
    }

    /// Its size in bytes.
    pub fn size(&self) -> Result<Option<u64>> {
        Ok(match self.kind {
            Kind::File => after(&self.dir.get("info")?, " Size: "),
            Kind::Device => self
                .device()?
                .and_then(|device| sys(device, "size"))
                .map(|n| n * 512),
        })
    }

    fn device(&self) -> Result<Option<(u32, u32)>> {
        let info = self.dir.get("info")?;
        Ok(after(&info, " Major: ").zip(after(&info, " Minor: ")))
    }

    /// Whether it takes no writes.
    pub fn read_only(&self) -> Result<bool> {
        let told: Option<u32> = after(&self.dir.get("info")?, " readonly: ");
        Ok(self.kind == Kind::Device && told != Some(0))
    }

    fn is_right(&self, wanted: &Wanted<'_>) -> Result<bool> {
        Ok(self.kind == wanted.kind
            && self.dir.get("enable")? == "1"
            && self.serial()? == wanted.export.serial
            && self.path()? == wanted.export.path
            && self.device()? == wanted.device
            && self.read_only()? == wanted.read_only)
    }

    /// Makes the kernel forget it.
    ///
    /// # Errors
    /// `Busy` if a target needs it.
    pub fn remove(&self) -> Result<()> {
        self.dir.remove()
    }
}

/// The number behind a word.
fn after<T: std::str::FromStr>(text: &str, word: &str) -> Option<T> {
    let (_, rest) = text.split_once(word)?;
    let end = rest
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(rest.len());
    rest[..end].parse().ok()
}

/// Those that have an export's serial number, but are not as it wants them; and the right one.
pub fn find(core: &Dir, wanted: &Wanted<'_>) -> Result<(Vec<Store>, Option<Store>)> {
    let (mut wrong, mut right) = (Vec::new(), None);
    for kind in [Kind::File, Kind::Device] {
        let store = Store::named(core, kind, &wanted.export.serial);
        if !store.dir.exists() {
            continue;
        }
        match store.is_right(wanted)? {
            true => right = Some(store),
            false => wrong.push(store),
        }
    }
    Ok((wrong, right))
}

/// Has one made.
///
/// # Errors
/// `Busy` if others have the device.
pub fn make(core: &Dir, wanted: &Wanted<'_>) -> Result<Store> {
    let Wanted { export, .. } = wanted;
    let store = Store::named(core, wanted.kind, &export.serial);
    let dir = &store.dir;
    core.at(&format!("{}_{ADAPTER}", store.prefix())).make()?;
    dir.make()?;
    // Checked before: text without commas.
    let path = export.path.display();
    let control = match wanted.kind {
        // Without that the kernel writes each block through, whatever the initiator wants.
        Kind::File => format!(
            "fd_dev_name={path},fd_dev_size={},fd_buffered_io=1",
            export.size
        ),
        Kind::Device if wanted.read_only => format!("udev_path={path},readonly=1"),
        Kind::Device => format!("udev_path={path}"),
    };
    dir.set("control", control.as_bytes())?;
    dir.set("udev_path", path.to_string().as_bytes())?;
    dir.set("enable", b"1")
        .map_err(|error| match error.kind() {
            ErrorKind::Busy => error
                .with("device", path)
                .reason("somebody else has the device")
                .help("see who: it may be mounted, or in use by device-mapper"),
            _ => error.with("device", path),
        })?;
    let wwn = dir.at("wwn");
    wwn.set("vpd_unit_serial", export.serial.as_bytes())?;
    for (name, value) in [("vendor_id", "VOLMUX"), ("product_id", "VOLUME")] {
        // Older kernels have names of their own.
        if wwn.at(name).exists() {
            wwn.set(name, value.as_bytes())?;
        }
    }
    let attributes = dir.at("attrib");
    for name in ["emulate_tpu", "emulate_tpws"] {
        let thin: &[u8] = if export.thin { b"1" } else { b"0" };
        // A device that discards nothing refuses.
        if let Err(error) = attributes.set(name, thin) {
            tracing::debug!(%error, "no discarding");
        }
    }
    if wanted.kind == Kind::File {
        // A device tells these by itself. For files LIO takes 4 MiB at a time, in blocks of its own.
        let block: u64 = attributes.get("block_size")?.parse().unwrap_or(512);
        for (name, bytes) in [
            ("max_unmap_lba_count", UNMAPPED),
            ("unmap_granularity", GRANULE),
        ] {
            let blocks = (bytes / block).max(1).to_string();
            if let Err(error) = attributes.put(name, &blocks) {
                tracing::debug!(%error, "the kernel's own limits of discarding stay");
            }
        }
    }
    Ok(store)
}

impl Store {
    fn prefix(&self) -> &'static str {
        match self.kind {
            Kind::File => "fileio",
            Kind::Device => "iblock",
        }
    }

    /// Has it show the size of an export. A device's it shows by itself.
    pub fn resize(&self, export: &Export) -> Result<()> {
        match self.kind {
            Kind::File if self.size()? != Some(export.size) => {
                let size = format!("fd_dev_size={}", export.size);
                self.dir.set("control", size.as_bytes())
            }
            _ => Ok(()),
        }
    }
}
