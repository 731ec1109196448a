//! A raw image file or block device as a [`BlockDevice`], so that data moves to and from it as
//! between volumes.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream;
use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use rustix::io::Errno;
use volmux::{
    Access, BlockDevice, ByteRange, Error, ErrorKind, ExtentStream, Grade, Result, VolumeName,
    ZeroOptions,
};

/// An open raw image.
#[derive(Debug)]
pub struct RawFile {
    file: Arc<File>,
    /// The volume that it is imported to or exported from.
    name: VolumeName,
    size: u64,
    access: Access,
}

impl RawFile {
    /// `file` as the image of volume `name`, with `size` bytes.
    pub fn new(file: File, name: VolumeName, size: u64, access: Access) -> Self {
        RawFile {
            file: Arc::new(file),
            name,
            size,
            access,
        }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        range: ByteRange,
        work: impl FnOnce(&File) -> std::io::Result<T> + Send + 'static,
    ) -> Result<T> {
        let op = match self.access {
            Access::ReadOnly => "read_image",
            Access::ReadWrite => "write_image",
        };
        range.check_within(self.size, op)?;
        let file = self.file.clone();
        match tokio::task::spawn_blocking(move || work(&file)).await {
            Ok(done) => done.map_err(|e| {
                Error::from_io(op, e)
                    .with("offset", range.offset)
                    .with("length", range.length)
            }),
            Err(error) => Err(Error::new(ErrorKind::Internal, op).with_source(error)),
        }
    }
}

/// The data within the first `size` bytes of `file`; all of it where the file system can't tell.
pub fn data_extents(file: &File, size: u64) -> std::io::Result<Vec<ByteRange>> {
    let mut extents = Vec::new();
    let mut at = 0;
    while at < size {
        let start = match seek(file, SeekFrom::Data(at)) {
            Ok(start) if start < size => start,
            Ok(_) | Err(Errno::NXIO) => break,
            Err(Errno::INVAL | Errno::OPNOTSUPP) => at,
            Err(error) => return Err(error.into()),
        };
        let end = match seek(file, SeekFrom::Hole(start)) {
            Ok(end) => end.min(size),
            Err(Errno::INVAL | Errno::OPNOTSUPP) => size,
            // Cut off between the two calls: reading it will tell.
            Err(Errno::NXIO) => size,
            Err(error) => return Err(error.into()),
        };
        extents.push(ByteRange::from_to(start, end));
        at = end;
    }
    Ok(extents)
}

#[async_trait]
impl BlockDevice for RawFile {
    fn name(&self) -> &VolumeName {
        &self.name
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn access(&self) -> Access {
        self.access
    }

    async fn refresh(&self) -> Result<u64> {
        // What is copied is the image as it was when the copy began.
        Ok(self.size)
    }

    async fn read_at(&self, offset: u64, length: usize) -> Result<Bytes> {
        self.blocking(ByteRange::new(offset, length as u64), move |file| {
            let mut data = vec![0; length];
            file.read_exact_at(&mut data, offset)?;
            Ok(Bytes::from(data))
        })
        .await
    }

    async fn write_at(&self, offset: u64, data: Bytes) -> Result<()> {
        self.blocking(ByteRange::new(offset, data.len() as u64), move |file| {
            file.write_all_at(&data, offset)
        })
        .await
    }

    async fn flush(&self) -> Result<()> {
        self.blocking(ByteRange::new(0, 0), File::sync_all).await
    }

    async fn discard(&self, range: ByteRange) -> Result<()> {
        let options = ZeroOptions {
            may_discard: true,
            ..ZeroOptions::default()
        };
        self.write_zeroes(range, options).await
    }

    async fn write_zeroes(&self, range: ByteRange, options: ZeroOptions) -> Result<()> {
        let how = if options.may_discard {
            FallocateFlags::PUNCH_HOLE
        } else {
            FallocateFlags::ZERO_RANGE
        };
        self.blocking(range, move |file| {
            if range.is_empty() {
                return Ok(());
            }
            let flags = how | FallocateFlags::KEEP_SIZE;
            match fallocate(file, flags, range.offset, range.length) {
                Err(Errno::OPNOTSUPP | Errno::INVAL) if options.fast_only => {
                    Err(Errno::OPNOTSUPP.into())
                }
                Err(Errno::OPNOTSUPP | Errno::INVAL) => write_zeros(file, range),
                done => done.map_err(Into::into),
            }
        })
        .await
    }

    async fn extents(&self, range: ByteRange) -> Result<ExtentStream> {
        let size = self.size;
        let extents = self
            .blocking(range, move |file| data_extents(file, size))
            .await?;
        let within = extents
            .into_iter()
            .map(move |extent| extent.intersect(&range))
            .filter(|extent| !extent.is_empty())
            .map(Ok);
        Ok(ExtentStream::new(Grade::Superset, 1, stream::iter(within)))
    }
}

fn write_zeros(file: &File, range: ByteRange) -> std::io::Result<()> {
    let zeros = vec![0; 1 << 20];
    let mut at = range.offset;
    while at < range.end() {
        let length = (range.end() - at).min(zeros.len() as u64) as usize;
        file.write_all_at(&zeros[..length], at)?;
        at += length as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_reads_writes_zeroes_and_tells_holes() {
        let file = tempfile::tempfile().expect("file");
        file.set_len(1 << 20).expect("size");
        let name = VolumeName::new("a").expect("name");
        let raw = RawFile::new(file, name, 1 << 20, Access::ReadWrite);
        assert_eq!(
            raw.extents(ByteRange::new(0, 1 << 20))
                .await
                .expect("e")
                .collect_joined()
                .await
                .expect("none"),
            []
        );
        raw.write_at(1 << 16, Bytes::from(vec![7; 1 << 16]))
            .await
            .expect("write");
        let extents = raw
            .extents(ByteRange::new(0, 1 << 20))
            .await
            .expect("extents");
        assert_eq!(
            extents.collect_joined().await.expect("one"),
            [ByteRange::new(1 << 16, 1 << 16)]
        );
        let zeros = ByteRange::new(1 << 16, 4096);
        raw.write_zeroes(zeros, ZeroOptions::default())
            .await
            .expect("zeroes");
        raw.discard(ByteRange::new(1 << 17, 100))
            .await
            .expect("discard");
        let data = raw.read_at(1 << 16, 4097).await.expect("read");
        assert!(data[..4096].iter().all(|&b| b == 0));
        assert_eq!(data[4096], 7);
        raw.flush().await.expect("flush");
        let error = raw.read_at(1 << 20, 1).await.expect_err("past the end");
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }

    #[test]
    fn zeros_can_be_written_where_the_file_system_has_no_call_for_it() {
        let file = tempfile::tempfile().expect("file");
        file.write_all_at(&[9; 3 << 20], 0).expect("fill");
        write_zeros(&file, ByteRange::new(10, 2 << 20)).expect("zeros");
        let mut data = vec![1; 3 << 20];
        file.read_exact_at(&mut data, 0).expect("read");
        let end = 10 + (2 << 20);
        assert!(data[..10].iter().all(|&b| b == 9));
        assert!(data[10..end].iter().all(|&b| b == 0));
        assert!(data[end..].iter().all(|&b| b == 9));
    }
}
