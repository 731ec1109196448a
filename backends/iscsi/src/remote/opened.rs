//! Volumes that were opened through a pool, so that they see the sizes that it gives them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use volmux_core::{BlockDevice, VolumeName};

/// Volumes that are open, by the name that they have now as far as this pool gave it.
#[derive(Debug, Default)]
pub(super) struct Opened(Mutex<Vec<(VolumeName, Weak<dyn BlockDevice>)>>);

impl Opened {
    /// Adds one.
    pub(super) fn add(&self, name: &VolumeName, device: &Arc<dyn BlockDevice>) {
        let mut all = self.lock();
        all.retain(|(_, device)| device.strong_count() > 0);
        all.push((name.clone(), Arc::downgrade(device)));
    }

    /// A volume has another name.
    pub(super) fn renamed(&self, name: &VolumeName, to: &VolumeName) {
        for (known, _) in self.lock().iter_mut().filter(|(known, _)| known == name) {
            *known = to.clone();
        }
    }

    /// A volume has another size: has the open ones look, each within `limit`. One that can't look
    /// goes on with the size that it knows.
    pub(super) async fn resized(&self, name: &VolumeName, limit: Duration) {
        let of_name = |(known, device): &(VolumeName, Weak<dyn BlockDevice>)| {
            (known == name).then(|| device.upgrade()).flatten()
        };
        let devices: Vec<_> = self.lock().iter().filter_map(of_name).collect();
        let looks = devices.iter().map(|device| async move {
            match tokio::time::timeout(limit, device.refresh()).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => tracing::warn!(%name, %error, "the new size is not seen yet"),
                Err(_) => tracing::warn!(%name, "the new size is not seen yet"),
            }
        });
        futures::future::join_all(looks).await;
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(VolumeName, Weak<dyn BlockDevice>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use async_trait::async_trait;
    use bytes::Bytes;
    use volmux_core::{Access, ByteRange, Error, ErrorKind, ExtentStream, Result, ZeroOptions};

    use super::*;

    /// A volume that sees a new size only if it looks.
    #[derive(Debug)]
    struct Lazy {
        name: VolumeName,
        seen: AtomicU64,
        stored: Option<u64>,
    }

    #[async_trait]
    impl BlockDevice for Lazy {
        fn name(&self) -> &VolumeName {
            &self.name
        }

        fn size(&self) -> u64 {
            self.seen.load(Ordering::SeqCst)
        }

        fn access(&self) -> Access {
            Access::ReadWrite
        }

        async fn refresh(&self) -> Result<u64> {
            let Some(size) = self.stored else {
                return Err(Error::new(ErrorKind::Unavailable, "refresh"));
            };
            self.seen.store(size, Ordering::SeqCst);
            Ok(size)
        }

        async fn read_at(&self, _: u64, _: usize) -> Result<Bytes> {
            Err(Error::new(ErrorKind::Unsupported, "read_at"))
        }

        async fn write_at(&self, _: u64, _: Bytes) -> Result<()> {
            Err(Error::new(ErrorKind::Unsupported, "write_at"))
        }

        async fn flush(&self) -> Result<()> {
            Err(Error::new(ErrorKind::Unsupported, "flush"))
        }

        async fn discard(&self, _: ByteRange) -> Result<()> {
            Err(Error::new(ErrorKind::Unsupported, "discard"))
        }

        async fn write_zeroes(&self, _: ByteRange, _: ZeroOptions) -> Result<()> {
            Err(Error::new(ErrorKind::Unsupported, "write_zeroes"))
        }

        async fn extents(&self, _: ByteRange) -> Result<ExtentStream> {
            Err(Error::new(ErrorKind::Unsupported, "extents"))
        }
    }

    fn device(name: &VolumeName, stored: Option<u64>) -> Arc<dyn BlockDevice> {
        let (name, seen) = (name.clone(), AtomicU64::new(1));
        Arc::new(Lazy { name, seen, stored })
    }

    #[tokio::test]
    async fn open_volumes_look_and_follow_renames() {
        let name = |text| VolumeName::new(text).expect("name");
        let (a, b, c) = (name("a"), name("b"), name("c"));
        let opened = Opened::default();
        let (first, other) = (device(&a, Some(2)), device(&b, Some(3)));
        let lame = device(&a, None);
        for (name, device) in [(&a, &first), (&b, &other), (&a, &lame)] {
            opened.add(name, device);
        }
        opened.resized(&a, Duration::from_secs(60)).await;
        assert_eq!((first.size(), other.size(), lame.size()), (2, 1, 1));
        opened.renamed(&b, &c);
        opened.resized(&b, Duration::from_secs(60)).await;
        assert_eq!(other.size(), 1);
        opened.resized(&c, Duration::from_secs(60)).await;
        assert_eq!(other.size(), 3);
        drop((first, other, lame));
        opened.add(&a, &device(&a, None));
        assert_eq!(opened.lock().len(), 1, "closed ones are forgotten");
    }
}
