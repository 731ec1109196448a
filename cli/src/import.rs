//! `volmux volume import`
//!
//! The volume is filled under another name and gets its own at the end, so a half image never has
//! it, whatever happens.

use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use volmux::transfer::copy_device;
use volmux::{
    Access, ByteSize, Control, CreateOptions, Error, ErrorKind, OpenOptions, Pool, PoolExt, Result,
    SpaceRequest, Volume, VolumeName,
};

use crate::app::{App, STAGING_SUFFIX};
use crate::args::{Format, ImportArgs};
use crate::for_qemu;
use crate::image::ImageFile;
use crate::output::{Bar, TransferDoc, VolumeDoc, made_line};
use crate::qemu_img::{self, QemuImg};
use crate::raw_file::RawFile;
use crate::verify::{check_same, sha256};
use crate::volume::provisioning;

const OP: &str = "import_volume";

/// Makes a volume from an image.
///
/// # Errors
/// Those of the image, of qemu-img and of the pool; then there is no such volume.
pub async fn run(app: &App, args: &ImportArgs) -> Result<u8> {
    let name = app.new_name(&args.name)?;
    let asked: Option<ByteSize> = args.size.as_deref().map(str::parse).transpose()?;
    let pool = &app.pool().await?;
    let image = ImageFile::open(&args.file)?;
    if app.guard(OP, pool.find_volume(&name)).await?.is_some() {
        return Err(Error::new(ErrorKind::AlreadyExists, OP)
            .with("volume", &name)
            .help("delete it first, or choose another name"));
    }
    let (claimed, data) = inspect(app, &image, (args.format, asked)).await?;
    let size = asked.unwrap_or(claimed);
    let usage = app.guard(OP, pool.usage()).await?;
    let request = SpaceRequest {
        provisioned: size,
        reserved: if args.thick { size } else { data },
    };
    pool.policy().admit(&usage, &request, OP)?;
    let staging = staging_name(&name)?;
    app.guard(OP, pool.delete_volume(&staging))
        .await
        .map_err(|e| match e.kind() {
            ErrorKind::Busy => e.help(format!("another import of {name} may be running")),
            _ => e,
        })?;
    let (bar, control) = app.progress("import");
    let import = Import {
        app,
        pool,
        args,
        image: &image,
        staging: &staging,
        control: &control,
        bar: &bar,
    };
    let (volume, hash) = import.make(&name, size).await?;
    drop(bar);
    show(app, &volume, args, &image.path, (claimed, hash.as_deref()))?;
    app.warn_of_pressure(pool.as_ref()).await;
    Ok(0)
}

fn show(
    app: &App,
    volume: &Volume,
    args: &ImportArgs,
    path: &Path,
    (image_size, sha256): (ByteSize, Option<&str>),
) -> Result<()> {
    let document = TransferDoc {
        schema: "volmux.import.v1",
        volume: VolumeDoc::from(volume),
        file: path,
        format: args.format.name(),
        image_size,
        verified: args.verify,
        sha256,
    };
    app.out.show(&document, || {
        let text = format!("imported {} from {}", made_line(volume), path.display());
        match sha256 {
            Some(hash) => format!("{text}\nverified, sha256 {hash}"),
            None => text,
        }
    })
}

/// What the image claims as its virtual size, and about how much data it holds. Fails if it is not
/// to be read.
async fn inspect(
    app: &App,
    image: &ImageFile,
    (format, asked): (Format, Option<ByteSize>),
) -> Result<(ByteSize, ByteSize)> {
    if format == Format::Raw {
        let length = ByteSize::new(image.length);
        image.check_size(length, asked)?;
        return Ok((length, ByteSize::new(image.occupied())));
    }
    image.check_header(format)?;
    let qemu = QemuImg::find(app.cancel.clone())?;
    let node = qemu_img::node(&image.reopen_path(), format, image.block)?;
    let here = |error: Error| error.with("path", image.path.display());
    let info = qemu.info(node.clone(), format).await.map_err(here)?;
    if let Some(reason) = info.objection(format) {
        return Err(image.refuse(reason));
    }
    image.check_size(info.virtual_size, asked)?;
    qemu.check(node, format).await.map_err(here)?;
    Ok((info.virtual_size, info.actual_size.min(info.virtual_size)))
}

/// The name of a volume while it is filled: `NAME.importing`, shortened where that is too long.
fn staging_name(name: &VolumeName) -> Result<VolumeName> {
    let room = VolumeName::MAX_LEN - STAGING_SUFFIX.len();
    let text = name.as_str();
    if text.len() <= room {
        return VolumeName::new(format!("{text}{STAGING_SUFFIX}"));
    }
    let hash = Sha256::digest(text);
    let short = &text[..room - 9];
    let mark: String = hash
        .iter()
        .take(4)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    VolumeName::new(format!("{short}-{mark}{STAGING_SUFFIX}"))
}

/// One import.
struct Import<'a> {
    app: &'a App,
    pool: &'a Arc<dyn Pool>,
    args: &'a ImportArgs,
    image: &'a ImageFile,
    staging: &'a VolumeName,
    control: &'a Control,
    bar: &'a Bar,
}

impl Import<'_> {
    /// Makes, fills and names the volume, or leaves nothing.
    async fn make(&self, name: &VolumeName, size: ByteSize) -> Result<(Volume, Option<String>)> {
        let options = CreateOptions {
            size,
            provisioning: provisioning(self.args.thick),
        };
        let work = async {
            let create = self.pool.create_volume(self.staging, options);
            let made = self.app.guard(OP, create).await?;
            let hash = match self.args.format {
                Format::Raw => self.fill_raw(made.virtual_size).await?,
                _ => self.fill_by_qemu(made.virtual_size).await?,
            };
            self.control.check(OP)?;
            let volume = self.pool.rename_volume(self.staging, name).await?;
            Ok::<_, Error>((volume, hash))
        };
        match work.await {
            Ok(done) => Ok(done),
            Err(error) => {
                let error = error.with("image", self.image.path.display());
                match self.pool.delete_volume(self.staging).await {
                    Ok(()) => Err(error),
                    Err(left) => {
                        Err(error.with("left_behind", format!("{} ({left})", self.staging)))
                    }
                }
            }
        }
    }

    async fn fill_raw(&self, size: ByteSize) -> Result<Option<String>> {
        let file = self
            .image
            .file
            .try_clone()
            .map_err(|e| Error::from_io(OP, e))?;
        let (name, length) = (self.staging.clone(), self.image.length);
        let source = RawFile::new(file, name, length, Access::ReadOnly);
        let open = self
            .pool
            .open_volume(self.staging, OpenOptions::read_write());
        let target = open.await?;
        copy_device(&source, target.as_ref(), self.control).await?;
        if !self.args.verify {
            return Ok(None);
        }
        self.bar.step("verify image");
        let wanted = sha256(&source, size.bytes(), self.control).await?;
        self.bar.step("verify volume");
        let found = sha256(target.as_ref(), size.bytes(), self.control).await?;
        check_same(OP, &wanted, &found)?;
        Ok(Some(found))
    }

    async fn convert(
        &self,
        qemu: &QemuImg,
        source: (OsString, Format),
        target: OsString,
        size: ByteSize,
    ) -> Result<()> {
        let (to, control) = (target.clone(), self.control);
        qemu.convert_into(source.clone(), to, control, size).await?;
        if self.args.verify {
            self.bar.step("verify");
            if !qemu.same_content(source, target, control, size).await? {
                return check_same(OP, "differs", "differs from the image");
            }
        }
        Ok(())
    }

    async fn fill_by_qemu(&self, size: ByteSize) -> Result<Option<String>> {
        let qemu = QemuImg::find(self.app.cancel.clone())?;
        let format = self.args.format;
        let image = qemu_img::node(&self.image.reopen_path(), format, self.image.block)?;
        let access = Access::ReadWrite;
        for_qemu::with_volume(self.pool, self.staging, access, async |target| {
            self.convert(&qemu, (image, format), target, size).await
        })
        .await?;
        if !self.args.verify {
            return Ok(None);
        }
        self.bar.step("checksum");
        let volume = self
            .pool
            .open_volume(self.staging, OpenOptions::read_only())
            .await?;
        sha256(volume.as_ref(), size.bytes(), self.control)
            .await
            .map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn staging_names_are_valid_and_differ() {
        let name = |text: String| VolumeName::new(text).expect("name");
        let staging = |text: &str| staging_name(&name(text.into())).expect("staging");
        assert_eq!(staging("web-1").as_str(), "web-1.importing");
        let (a, b) = (
            format!("{}a", "x".repeat(126)),
            format!("{}b", "x".repeat(126)),
        );
        assert_ne!(staging(&a), staging(&b));
        assert_eq!(staging(&a).as_str().len(), VolumeName::MAX_LEN);
        assert_eq!(
            staging(&"x".repeat(117)).as_str().len(),
            VolumeName::MAX_LEN
        );
    }
}
