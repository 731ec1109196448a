//! `volmux volume export`
//!
//! The image is written beside its place and moved there when it is whole and on disk.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions as FileOptions, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{OFlags, SeekFrom, seek};
use tempfile::NamedTempFile;
use volmux::transfer::copy_device;
use volmux::{
    Access, BlockDevice, ByteRange, ByteSize, Control, Error, ErrorKind, OpenOptions, Pool, Result,
    Volume, VolumeName, ZeroOptions,
};

use crate::app::App;
use crate::args::{ExportArgs, Format};
use crate::for_qemu;
use crate::output::{Bar, TransferDoc, VolumeDoc};
use crate::qemu_img::{self, QemuImg};
use crate::raw_file::RawFile;
use crate::verify::{check_same, sha256};

const OP: &str = "export_volume";
/// Characters that tempfile adds.
const RANDOM: usize = 6;

/// Where an image goes.
#[derive(Debug, PartialEq, Eq)]
enum Destination {
    /// A file that is replaced or, without leave, made.
    File { path: PathBuf, replace: bool },
    /// A block device that is overwritten.
    Device(PathBuf),
}

/// Writes a volume to an image.
///
/// # Errors
/// Those of the pool, of qemu-img and of the file; then no image appears.
pub async fn run(app: &App, args: &ExportArgs) -> Result<u8> {
    let name = VolumeName::new(&args.name)?;
    let destination = destination(&args.file, args.force, args.format)?;
    let pool = app.pool().await?;
    let volume = app.guard(OP, pool.volume(&name)).await?;
    check_limits(&volume, args.format)?;
    let (bar, control) = app.progress("export");
    let export = Export {
        app,
        pool: &pool,
        volume: &volume,
        format: args.format,
        verify: args.verify,
        control: &control,
        bar: &bar,
    };
    let (Destination::File { path, .. } | Destination::Device(path)) = &destination;
    let done = match &destination {
        Destination::File { path, replace } => export.to_file(path, *replace).await,
        Destination::Device(path) => export.to_device(path).await,
    };
    let (size, hash) = done.map_err(|e| e.with("image", path.display()))?;
    drop(bar);
    let document = TransferDoc {
        schema: "volmux.export.v1",
        volume: VolumeDoc::from(&volume),
        file: path,
        format: args.format.name(),
        image_size: size,
        verified: args.verify,
        sha256: hash.as_deref(),
    };
    app.out.show(&document, || {
        let text = format!(
            "exported {name} ({}) to {}",
            volume.virtual_size,
            path.display()
        );
        match &hash {
            Some(hash) => format!("{text}\nverified, sha256 {hash}"),
            None => text,
        }
    })?;
    if size > volume.virtual_size {
        app.warn(&format!(
            "{} images can't have {} bytes; this one has {}, the rest is zeros",
            args.format.name(),
            volume.virtual_size.bytes(),
            size.bytes()
        ));
    }
    Ok(0)
}

/// Checks where the image is to go.
fn destination(path: &Path, force: bool, format: Format) -> Result<Destination> {
    let wrong = |e| Error::from_io(OP, e).with("path", path.display());
    let refuse = |kind, reason: &str| {
        Error::new(kind, OP)
            .with("path", path.display())
            .reason(reason)
    };
    let absolute = std::path::absolute(path).map_err(wrong)?;
    let found = match fs::symlink_metadata(&absolute) {
        Ok(metadata) if metadata.is_symlink() => {
            if !force {
                let error = refuse(ErrorKind::InvalidInput, "it is a symlink");
                return Err(error.help("name the file itself, or use --force to follow it"));
            }
            return destination(&absolute.canonicalize().map_err(wrong)?, true, format);
        }
        Ok(metadata) => Some(metadata.file_type()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(wrong(error)),
    };
    match found {
        Some(file_type) if file_type.is_file() && !force => {
            Err(refuse(ErrorKind::AlreadyExists, "the file exists")
                .help("choose another name, or use --force to replace it"))
        }
        Some(file_type) if file_type.is_block_device() => match (force, format) {
            (true, Format::Raw) => Ok(Destination::Device(absolute)),
            (true, _) => Err(refuse(
                ErrorKind::InvalidInput,
                "only raw goes to a block device",
            )),
            (false, _) => Err(refuse(ErrorKind::InvalidInput, "it is a block device")
                .help("--force overwrites it")),
        },
        Some(file_type) if !file_type.is_file() => {
            Err(refuse(ErrorKind::InvalidInput, "it is not a file"))
        }
        _ if absolute.file_name().is_none() => {
            Err(refuse(ErrorKind::InvalidInput, "it is not a file's name"))
        }
        _ => Ok(Destination::File {
            path: absolute,
            replace: force,
        }),
    }
}

/// Refuses what a format can't hold, before anything is written.
fn check_limits(volume: &Volume, format: Format) -> Result<()> {
    let most = match format {
        Format::Raw | Format::Qcow2 => return Ok(()),
        Format::Vpc => ByteSize::gib(2040),
        Format::Vhdx => ByteSize::gib(64 << 10),
    };
    if volume.virtual_size <= most {
        return Ok(());
    }
    Err(Error::new(ErrorKind::InvalidInput, OP)
        .with("volume", &volume.name)
        .reason(format!(
            "it has {}, and {} holds {most}",
            volume.virtual_size,
            format.name()
        ))
        .help("use another format"))
}

/// What the names of unfinished images begin with.
fn partial_prefix(file_name: &OsStr) -> OsString {
    // A name can have 255 bytes.
    let bytes = file_name.as_bytes();
    let mut prefix = OsStr::from_bytes(&bytes[..bytes.len().min(230)]).to_owned();
    prefix.push(".partial-");
    prefix
}

/// Removes unfinished images of exports that were killed. Who still writes one holds its lock.
fn remove_stale(dir: &Path, prefix: &OsStr) -> std::io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let ours = name
            .as_bytes()
            .strip_prefix(prefix.as_bytes())
            .is_some_and(|rest| rest.len() == RANDOM && rest.iter().all(u8::is_ascii_alphanumeric));
        if !ours || !entry.file_type()?.is_file() {
            continue;
        }
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32;
        let opened = FileOptions::new()
            .read(true)
            .custom_flags(flags)
            .open(entry.path());
        if opened.is_ok_and(|file| file.try_lock().is_ok()) {
            tracing::info!(path = %entry.path().display(), "removing an unfinished image");
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// A new, locked, empty file beside `path`; gone when it is dropped.
fn new_partial(path: &Path) -> Result<NamedTempFile> {
    let wrong = |e| Error::from_io(OP, e);
    let (dir, file_name) = (
        path.parent().unwrap_or(path),
        path.file_name().unwrap_or_default(),
    );
    let prefix = partial_prefix(file_name);
    remove_stale(dir, &prefix).map_err(wrong)?;
    let partial = tempfile::Builder::new()
        .prefix(&prefix)
        .rand_bytes(RANDOM)
        // As any program makes files; the umask takes away from it.
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(dir)
        .map_err(wrong)?;
    partial.as_file().lock().map_err(wrong)?;
    Ok(partial)
}

/// Moves a whole image to its place, durably.
fn publish(partial: NamedTempFile, path: &Path, replace: bool) -> Result<()> {
    let wrong = |e| Error::from_io(OP, e);
    partial.as_file().sync_all().map_err(wrong)?;
    let moved = match replace {
        true => partial.persist(path),
        false => partial.persist_noclobber(path),
    };
    moved.map_err(|e| wrong(e.error))?;
    let dir = File::open(path.parent().unwrap_or(path)).map_err(wrong)?;
    dir.sync_all().map_err(wrong)
}

/// One export.
struct Export<'a> {
    app: &'a App,
    pool: &'a Arc<dyn Pool>,
    volume: &'a Volume,
    format: Format,
    verify: bool,
    control: &'a Control,
    bar: &'a Bar,
}

impl Export<'_> {
    async fn to_file(&self, path: &Path, replace: bool) -> Result<(ByteSize, Option<String>)> {
        let partial = new_partial(path)?;
        let done = match self.format {
            Format::Raw => self.fill_raw(partial.as_file()).await?,
            _ => self.fill_by_qemu(partial.path()).await?,
        };
        self.control.check(OP)?;
        publish(partial, path, replace)?;
        Ok(done)
    }

    async fn reader(&self) -> Result<Arc<dyn BlockDevice>> {
        let open = self
            .pool
            .open_volume(&self.volume.name, OpenOptions::read_only());
        self.app.guard(OP, open).await
    }

    fn raw_file(&self, file: &File, size: u64) -> Result<RawFile> {
        let file = file.try_clone().map_err(|e| Error::from_io(OP, e))?;
        let name = self.volume.name.clone();
        Ok(RawFile::new(file, name, size, Access::ReadWrite))
    }

    async fn fill_raw(&self, file: &File) -> Result<(ByteSize, Option<String>)> {
        let source = self.reader().await?;
        let size = source.size();
        file.set_len(size).map_err(|e| Error::from_io(OP, e))?;
        self.copy(source.as_ref(), &self.raw_file(file, size)?)
            .await
    }

    async fn to_device(&self, path: &Path) -> Result<(ByteSize, Option<String>)> {
        let wrong = |e| Error::from_io(OP, e);
        // On a block device EXCL fails while it is mounted or otherwise in use.
        let file = FileOptions::new()
            .read(true)
            .write(true)
            .custom_flags(OFlags::EXCL.bits() as i32)
            .open(path)
            .map_err(wrong)?;
        let room = seek(&file, SeekFrom::End(0)).map_err(|e| wrong(e.into()))?;
        let source = self.reader().await?;
        let size = source.size();
        if room < size {
            return Err(Error::new(ErrorKind::NoSpace, OP)
                .reason(format!("the device has {room} bytes, the volume {size}")));
        }
        let target = self.raw_file(&file, size)?;
        // Unlike a new file a device does not read as zeros where nothing is copied.
        for at in (0..size).step_by(1 << 30) {
            self.control.check(OP)?;
            let range = ByteRange::from_to(at, size.min(at + (1 << 30)));
            target.write_zeroes(range, ZeroOptions::default()).await?;
        }
        self.copy(source.as_ref(), &target).await
    }

    async fn copy(
        &self,
        source: &dyn BlockDevice,
        target: &RawFile,
    ) -> Result<(ByteSize, Option<String>)> {
        let size = source.size();
        copy_device(source, target, self.control).await?;
        if !self.verify {
            return Ok((ByteSize::new(size), None));
        }
        self.bar.step("verify volume");
        let wanted = sha256(source, size, self.control).await?;
        self.bar.step("verify image");
        let found = sha256(target, size, self.control).await?;
        check_same(OP, &wanted, &found)?;
        Ok((ByteSize::new(size), Some(found)))
    }

    async fn fill_by_qemu(&self, partial: &Path) -> Result<(ByteSize, Option<String>)> {
        let qemu = QemuImg::find(self.app.cancel.clone())?;
        let (format, size) = (self.format, self.volume.virtual_size);
        let image = || qemu_img::new_file(partial);
        let (name, access) = (&self.volume.name, Access::ReadOnly);
        for_qemu::with_volume(self.pool, name, access, async |source| {
            let target = (image(), format);
            qemu.convert_to_new(source.clone(), target, self.control, size)
                .await?;
            if self.verify {
                self.bar.step("verify");
                let target = (image(), format);
                if !qemu
                    .same_content(target, source, self.control, size)
                    .await?
                {
                    return check_same(OP, "differs", "differs from the volume");
                }
            }
            Ok(())
        })
        .await?;
        let made = qemu.info(image(), format).await?.virtual_size;
        if made < size {
            return Err(Error::new(ErrorKind::Corrupt, OP)
                .with("volume", &self.volume.name)
                .reason(format!(
                    "the image got {made}, less than the volume's {size}"
                )));
        }
        if !self.verify {
            return Ok((made, None));
        }
        self.bar.step("checksum");
        let hash = sha256(self.reader().await?.as_ref(), size.bytes(), self.control).await?;
        Ok((made, Some(hash)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_unlocked_leftovers_of_the_same_file_are_removed() {
        let dir = tempfile::tempdir().expect("dir");
        let target = dir.path().join("a.raw");
        let other = dir.path().join("a.raw.partial-notours");
        fs::write(&other, "x").expect("write");
        fs::write(dir.path().join("a.raw.partial-ABC123"), "x").expect("write");
        let first = new_partial(&target).expect("partial");
        let second = new_partial(&target).expect("partial");
        assert!(first.path().exists() && second.path().exists() && other.exists());
        assert_eq!(fs::read_dir(dir.path()).expect("list").count(), 3);
        publish(first, &target, false).expect("publish");
        let error = publish(second, &target, false).expect_err("taken");
        assert_eq!(error.kind(), ErrorKind::AlreadyExists);
        assert_eq!(fs::read_dir(dir.path()).expect("list").count(), 2);
    }

    #[test]
    fn the_longest_file_name_leaves_room() {
        let name = "x".repeat(255);
        assert!(partial_prefix(OsStr::new(&name)).len() + RANDOM <= 255);
    }
}
