//! Image files from elsewhere. Nothing in them is trusted: no path in an image is followed, and the
//! format is the one that the caller gave.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{OFlags, SeekFrom, seek};
use serde::Deserialize;
use volmux::{ByteSize, Error, ErrorKind, Result};

use crate::args::Format;
use crate::vhdx;

const OP: &str = "import_volume";
/// An image that claims more than this is taken for broken or hostile unless the caller says the
/// size too. It is the most that VHDX can hold.
pub const MAX_UNASKED: ByteSize = ByteSize::new(64 << 40);

/// An image that is to be read.
#[derive(Debug)]
pub struct ImageFile {
    /// Absolute, without symlinks.
    pub path: PathBuf,
    pub file: File,
    /// Length in bytes.
    pub length: u64,
    /// A block device, not a file.
    pub block: bool,
}

impl ImageFile {
    /// Opens a file or block device for reading.
    ///
    /// # Errors
    /// `NotFound`, `PermissionDenied`; `InvalidInput` for anything else than a file or block device.
    pub fn open(path: &Path) -> Result<Self> {
        let wrong = |e| Error::from_io(OP, e).with("path", path.display());
        let path = path.canonicalize().map_err(wrong)?;
        // Without NONBLOCK, opening a FIFO would wait for a writer.
        let file = OpenOptions::new()
            .read(true)
            .custom_flags((OFlags::NONBLOCK | OFlags::NOFOLLOW).bits() as i32)
            .open(&path)
            .map_err(wrong)?;
        let metadata = file.metadata().map_err(wrong)?;
        let block = metadata.file_type().is_block_device();
        let length = match (metadata.is_file(), block) {
            (true, _) => metadata.len(),
            (_, true) => seek(&file, SeekFrom::End(0)).map_err(|e| wrong(e.into()))?,
            _ => {
                return Err(Error::new(ErrorKind::InvalidInput, OP)
                    .with("path", path.display())
                    .reason("it is neither a file nor a block device"));
            }
        };
        Ok(ImageFile {
            path,
            file,
            length,
            block,
        })
    }

    /// A path by which another program opens this very file, whatever its own path leads to by then.
    pub fn reopen_path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd()).into()
    }

    /// What the file itself occupies.
    pub fn occupied(&self) -> u64 {
        match self.file.metadata() {
            Ok(metadata) if !self.block => metadata.blocks().saturating_mul(512).min(self.length),
            _ => self.length,
        }
    }

    /// `InvalidInput` about this image.
    pub fn refuse(&self, reason: impl std::fmt::Display) -> Error {
        Error::new(ErrorKind::InvalidInput, OP)
            .with("path", self.path.display())
            .reason(reason)
    }

    /// Looks at the header, before any other program reads the image, for references to other
    /// files and for encryption.
    ///
    /// # Errors
    /// `InvalidInput` if there is such, or it is not of `format`.
    pub fn check_header(&self, format: Format) -> Result<()> {
        let read = |offset| {
            let mut block = [0; 512];
            let mut filled = 0;
            while filled < block.len() {
                let at = offset + filled as u64;
                match self.file.read_at(&mut block[filled..], at) {
                    Ok(0) => break,
                    Ok(n) => filled += n,
                    Err(e) => return Err(Error::from_io(OP, e).with("path", self.path.display())),
                }
            }
            Ok(block)
        };
        let checked = match format {
            Format::Raw => Ok(()),
            Format::Qcow2 => check_qcow2(&read(0)?),
            Format::Vhdx => match check_vhdx(&read(0)?) {
                Ok(()) if vhdx::has_parent(read)? => Err(PARENT),
                checked => checked,
            },
            Format::Vpc => check_vpc(&read(0)?, &read(self.length.saturating_sub(512))?),
        };
        checked.map_err(|reason| match reason {
            PARENT => self.refuse(reason).help(
                "merge it into its parent where it was made (in Hyper-V: remove the checkpoint, or \
                 Merge-VHD), and import that",
            ),
            _ => self.refuse(reason),
        })
    }

    /// Checks a virtual size that the image claims; `asked` is the size that the caller gave.
    ///
    /// # Errors
    /// `InvalidInput` for no bytes, more than `asked`, or an absurd number.
    pub fn check_size(&self, claimed: ByteSize, asked: Option<ByteSize>) -> Result<()> {
        let refuse = |reason: String| self.refuse(reason).with("image_size", claimed.bytes());
        if claimed == ByteSize::ZERO {
            return Err(refuse("the image is empty".into()));
        }
        match asked {
            Some(asked) if asked < claimed => Err(refuse(format!(
                "the image has {claimed} and does not fit into {asked}"
            ))
            .help("give --size at least the image's size, or leave it out")),
            None if claimed > MAX_UNASKED => Err(refuse(format!(
                "the image claims {claimed}, more than {MAX_UNASKED}"
            ))
            .help("give --size if that is meant")),
            _ => Ok(()),
        }
    }
}

/// What `qemu-img info` says of an image.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ImageInfo {
    pub virtual_size: ByteSize,
    format: String,
    #[serde(default)]
    pub actual_size: ByteSize,
    backing_filename: Option<String>,
    full_backing_filename: Option<String>,
    #[serde(default)]
    encrypted: bool,
    format_specific: Option<FormatSpecific>,
}

#[derive(Debug, Deserialize)]
struct FormatSpecific {
    #[serde(default)]
    data: SpecificData,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct SpecificData {
    data_file: Option<String>,
    #[serde(default)]
    data_file_raw: bool,
    encrypt: Option<serde_json::Value>,
    #[serde(default)]
    corrupt: bool,
}

impl ImageInfo {
    /// Why an image is not to be read, if so.
    pub fn objection(&self, format: Format) -> Option<String> {
        let specific = self.format_specific.as_ref().map(|f| &f.data);
        if self.format != format.name() {
            Some(format!("qemu-img takes it for {}", self.format))
        } else if self.backing_filename.is_some() || self.full_backing_filename.is_some() {
            Some("it refers to a backing file, which is not followed".into())
        } else if specific.is_some_and(|s| s.data_file.is_some() || s.data_file_raw) {
            Some("its data is in another file, which is not followed".into())
        } else if self.encrypted || specific.is_some_and(|s| s.encrypt.is_some()) {
            Some("it is encrypted".into())
        } else if specific.is_some_and(|s| s.corrupt) {
            Some("it is marked as corrupt; qemu-img check may repair it".into())
        } else {
            None
        }
    }
}

fn be32(block: &[u8; 512], at: usize) -> u32 {
    u32::from_be_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

fn be64(block: &[u8; 512], at: usize) -> u64 {
    u64::from(be32(block, at)) << 32 | u64::from(be32(block, at + 4))
}

/// docs/interop/qcow2.rst of QEMU.
fn check_qcow2(header: &[u8; 512]) -> Result<(), &'static str> {
    if !header.starts_with(b"QFI\xfb") {
        return Err("it is not a qcow2 image");
    }
    let version = be32(header, 4);
    if !(2..=3).contains(&version) {
        return Err("it is a qcow image of a version that is not known");
    }
    if be64(header, 8) != 0 {
        return Err("it refers to a backing file, which is not followed");
    }
    if be32(header, 32) != 0 {
        return Err("it is encrypted");
    }
    if version == 3 && be64(header, 72) & 1 << 2 != 0 {
        return Err("its data is in another file, which is not followed");
    }
    Ok(())
}

/// Why a differencing image is not read.
const PARENT: &str = "it refers to a parent image, which is not followed";

/// MS-VHDX 2.2.1. Parents are in the metadata region.
fn check_vhdx(header: &[u8; 512]) -> Result<(), &'static str> {
    match header.starts_with(b"vhdxfile") {
        true => Ok(()),
        false => Err("it is not a vhdx image"),
    }
}

/// "Virtual Hard Disk Image Format Specification": the footer is the last sector and, but for fixed
/// images, the first too. QEMU reads a differencing image as if its parent were all zeros.
fn check_vpc(first: &[u8; 512], last: &[u8; 512]) -> Result<(), &'static str> {
    const DIFFERENCING: u32 = 4;
    let footers: Vec<_> = [first, last]
        .into_iter()
        .filter(|block| block.starts_with(b"conectix"))
        .collect();
    if footers.is_empty() {
        return Err("it is not a vpc (VHD) image");
    }
    if !last.starts_with(b"conectix") {
        return Err("the footer at its end is missing: it seems to be cut off");
    }
    if footers
        .iter()
        .any(|footer| be32(footer, 60) == DIFFERENCING)
    {
        return Err(PARENT);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn qcow2() -> [u8; 512] {
        let mut header = [0; 512];
        header[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
        header
    }

    #[test]
    fn references_to_other_files_are_seen() {
        assert_eq!(check_qcow2(&qcow2()), Ok(()));
        for (at, value, word) in [
            (0, b'X', "not a qcow2"),
            (7, 9, "version"),
            (15, 1, "backing"),
            (35, 1, "encrypted"),
            (79, 4, "another file"),
        ] {
            let mut header = qcow2();
            header[at] = value;
            let reason = check_qcow2(&header).expect_err(word);
            assert!(reason.contains(word), "{reason}");
        }
        // A version 2 header ends before the feature bits.
        let mut old = qcow2();
        (old[7], old[79]) = (2, 4);
        assert_eq!(check_qcow2(&old), Ok(()));
    }

    #[test]
    fn differencing_disks_are_seen() {
        let none = [0; 512];
        let mut footer = none;
        footer[..8].copy_from_slice(b"conectix");
        footer[63] = 3;
        assert_eq!(check_vpc(&footer, &footer), Ok(()));
        assert_eq!(check_vpc(&none, &footer), Ok(()));
        let mut parent = footer;
        parent[63] = 4;
        assert!(check_vpc(&parent, &footer).is_err());
        assert!(check_vpc(&footer, &parent).is_err());
        assert!(check_vpc(&none, &none).is_err());
        assert!(check_vpc(&footer, &none).is_err());
        assert!(check_vhdx(&none).is_err());
    }

    #[test]
    fn what_an_image_must_not_have_is_seen_in_its_info() {
        let info = |extra: &str| -> ImageInfo {
            let text = format!("{{\"virtual-size\":1,\"format\":\"qcow2\"{extra}}}");
            serde_json::from_str(&text).expect("info")
        };
        assert_eq!(info("").objection(Format::Qcow2), None);
        assert!(info("").objection(Format::Vhdx).is_some());
        for extra in [
            ",\"backing-filename\":\"/etc/shadow\"",
            ",\"full-backing-filename\":\"x\"",
            ",\"encrypted\":true",
            ",\"format-specific\":{\"type\":\"qcow2\",\"data\":{\"data-file\":\"x\"}}",
            ",\"format-specific\":{\"type\":\"qcow2\",\"data\":{\"data-file-raw\":true}}",
            ",\"format-specific\":{\"type\":\"qcow2\",\"data\":{\"encrypt\":{\"format\":\"aes\"}}}",
            ",\"format-specific\":{\"type\":\"qcow2\",\"data\":{\"corrupt\":true}}",
        ] {
            assert!(info(extra).objection(Format::Qcow2).is_some(), "{extra}");
        }
    }

    proptest! {
        #[test]
        fn no_header_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 512), kind in 0..3) {
            let mut block: [u8; 512] = bytes.try_into().unwrap();
            match kind {
                0 => block[..4].copy_from_slice(b"QFI\xfb"),
                1 => block[..8].copy_from_slice(b"vhdxfile"),
                _ => block[..8].copy_from_slice(b"conectix"),
            }
            let _ = (check_qcow2(&block), check_vhdx(&block), check_vpc(&block, &block));
        }
    }
}
