//! Each call of an open volume, through the hook.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::StreamExt;

use super::{Call, Hook, each_item};
use crate::{Access, BlockDevice, ByteRange, ExtentStream, Result, VolumeName, ZeroOptions};

#[derive(Debug)]
pub(super) struct LayerDevice<H> {
    pub(super) inner: Arc<dyn BlockDevice>,
    pub(super) hook: Arc<H>,
    pub(super) label: Arc<str>,
}

impl<H: Hook> LayerDevice<H> {
    fn call(&self, op: &'static str, range: Option<ByteRange>) -> Call {
        Call {
            range,
            data: true,
            ..Call::new(op, &self.label).on(self.inner.name())
        }
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl<H: Hook> BlockDevice for LayerDevice<H> {
    fn name(&self) -> &VolumeName {
        self.inner.name()
    }

    fn size(&self) -> u64 {
        self.inner.size()
    }

    fn access(&self) -> Access {
        self.inner.access()
    }

    async fn refresh(&self) -> Result<u64> {
        let call = self.call("refresh", None);
        self.hook.around(&call, self.inner.refresh()).await
    }

    async fn read_at(&self, offset: u64, length: usize) -> Result<Bytes> {
        let call = self.call("read_at", Some(ByteRange::new(offset, length as u64)));
        let work = self.inner.read_at(offset, length);
        self.hook.around(&call, work).await
    }

    async fn write_at(&self, offset: u64, data: Bytes) -> Result<()> {
        let range = ByteRange::new(offset, data.len() as u64);
        let call = self.call("write_at", Some(range));
        let work = self.inner.write_at(offset, data);
        self.hook.around(&call, work).await
    }

    async fn flush(&self) -> Result<()> {
        let call = self.call("flush", None);
        self.hook.around(&call, self.inner.flush()).await
    }

    async fn discard(&self, range: ByteRange) -> Result<()> {
        let call = self.call("discard", Some(range));
        self.hook.around(&call, self.inner.discard(range)).await
    }

    async fn write_zeroes(&self, range: ByteRange, options: ZeroOptions) -> Result<()> {
        let call = self.call("write_zeroes", Some(range));
        let work = self.inner.write_zeroes(range, options);
        self.hook.around(&call, work).await
    }

    async fn extents(&self, range: ByteRange) -> Result<ExtentStream> {
        let call = self.call("extents", Some(range));
        let extents = self.hook.around(&call, self.inner.extents(range)).await?;
        let (grade, granularity) = (extents.grade(), extents.granularity());
        let extents = each_item(self.hook.clone(), call, extents.boxed());
        Ok(ExtentStream::new(grade, granularity, extents))
    }
}
