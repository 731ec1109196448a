//! Each pool call, through the hook.

use std::sync::Arc;

use async_trait::async_trait;
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};

use super::device::LayerDevice;
use super::{Call, Hook, Layer, each_item};
use crate::{
    AttachOptions, Attachment, AuditOptions, AuditReport, BlockDevice, Capabilities, CloneOptions,
    Collected, Control, CopyOptions, CreateOptions, ExtentQuery, ExtentStream, FlattenOptions,
    Holder, OpenOptions, Pool, ResizeOptions, Result, RevertOptions, SnapshotOptions, ThinPolicy,
    Usage, Volume, VolumeName,
};

impl<H: Hook> Layer<H> {
    fn call(&self, op: &'static str, volume: &VolumeName) -> Call {
        Call::new(op, &self.label).on(volume)
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl<H: Hook> Pool for Layer<H> {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn policy(&self) -> ThinPolicy {
        self.inner.policy()
    }

    async fn usage(&self) -> Result<Usage> {
        let call = Call::new("usage", &self.label);
        self.hook.around(&call, self.inner.usage()).await
    }

    async fn create_volume(&self, name: &VolumeName, options: CreateOptions) -> Result<Volume> {
        let call = self.call("create_volume", name);
        let work = self.inner.create_volume(name, options);
        self.hook.around(&call, work).await
    }

    async fn volume(&self, name: &VolumeName) -> Result<Volume> {
        let call = self.call("volume", name);
        self.hook.around(&call, self.inner.volume(name)).await
    }

    fn list_volumes(&self) -> BoxStream<'static, Result<Volume>> {
        let (inner, hook) = (self.inner.clone(), self.hook.clone());
        let call = Call::new("list_volumes", &self.label);
        stream::once(async move {
            let start = async { Ok(inner.list_volumes()) };
            let volumes = hook.around(&call, start).await?;
            Ok(each_item(hook, call, volumes))
        })
        .try_flatten()
        .boxed()
    }

    async fn resize_volume(&self, name: &VolumeName, options: ResizeOptions) -> Result<Volume> {
        let call = self.call("resize_volume", name);
        let work = self.inner.resize_volume(name, options);
        self.hook.around(&call, work).await
    }

    async fn rename_volume(&self, name: &VolumeName, to: &VolumeName) -> Result<Volume> {
        let call = self.call("rename_volume", name);
        let work = self.inner.rename_volume(name, to);
        self.hook.around(&call, work).await
    }

    async fn delete_volume(&self, name: &VolumeName) -> Result<()> {
        let call = self.call("delete_volume", name);
        let work = self.inner.delete_volume(name);
        self.hook.around(&call, work).await
    }

    async fn snapshot_volume(
        &self,
        source: &VolumeName,
        name: &VolumeName,
        mut options: SnapshotOptions,
    ) -> Result<Volume> {
        let call = self
            .call("snapshot_volume", name)
            .watching(&mut options.control);
        let work = self.inner.snapshot_volume(source, name, options);
        self.hook.around(&call, work).await
    }

    async fn clone_volume(
        &self,
        source: &VolumeName,
        name: &VolumeName,
        mut options: CloneOptions,
    ) -> Result<Volume> {
        let call = self
            .call("clone_volume", name)
            .watching(&mut options.control);
        let work = self.inner.clone_volume(source, name, options);
        self.hook.around(&call, work).await
    }

    async fn copy_volume(
        &self,
        source: &VolumeName,
        name: &VolumeName,
        mut options: CopyOptions,
    ) -> Result<Volume> {
        let call = self
            .call("copy_volume", name)
            .watching(&mut options.control);
        let work = self.inner.copy_volume(source, name, options);
        self.hook.around(&call, work).await
    }

    async fn revert_volume(
        &self,
        name: &VolumeName,
        snapshot: &VolumeName,
        mut options: RevertOptions,
    ) -> Result<Volume> {
        let call = self
            .call("revert_volume", name)
            .watching(&mut options.control);
        let work = self.inner.revert_volume(name, snapshot, options);
        self.hook.around(&call, work).await
    }

    async fn flatten_volume(
        &self,
        name: &VolumeName,
        mut options: FlattenOptions,
    ) -> Result<Volume> {
        let call = self
            .call("flatten_volume", name)
            .watching(&mut options.control);
        let work = self.inner.flatten_volume(name, options);
        self.hook.around(&call, work).await
    }

    async fn adopt_volume(&self, what: &str, name: &VolumeName) -> Result<Volume> {
        let call = self.call("adopt_volume", name);
        let work = self.inner.adopt_volume(what, name);
        self.hook.around(&call, work).await
    }

    async fn open_volume(
        &self,
        name: &VolumeName,
        options: OpenOptions,
    ) -> Result<Arc<dyn BlockDevice>> {
        let call = self.call("open_volume", name);
        let work = self.inner.open_volume(name, options);
        let inner = self.hook.around(&call, work).await?;
        Ok(Arc::new(LayerDevice {
            inner,
            hook: self.hook.clone(),
            label: self.label.clone(),
        }))
    }

    async fn extents(&self, name: &VolumeName, query: ExtentQuery) -> Result<ExtentStream> {
        let call = self.call("extents", name);
        let work = self.inner.extents(name, query);
        let extents = self.hook.around(&call, work).await?;
        let (grade, granularity) = (extents.grade(), extents.granularity());
        let extents = each_item(self.hook.clone(), call, extents.boxed());
        Ok(ExtentStream::new(grade, granularity, extents))
    }

    async fn attach_volume(&self, name: &VolumeName, options: AttachOptions) -> Result<Attachment> {
        let call = self.call("attach_volume", name);
        let work = self.inner.attach_volume(name, options);
        self.hook.around(&call, work).await
    }

    async fn detach_volume(&self, name: &VolumeName, holder: &Holder) -> Result<()> {
        let call = self.call("detach_volume", name);
        let work = self.inner.detach_volume(name, holder);
        self.hook.around(&call, work).await
    }

    async fn audit(&self, options: AuditOptions) -> Result<AuditReport> {
        let call = Call::new("audit", &self.label);
        self.hook.around(&call, self.inner.audit(options)).await
    }

    async fn scrub(&self, control: Control) -> Result<AuditReport> {
        let call = Call::new("scrub", &self.label);
        self.hook.around(&call, self.inner.scrub(control)).await
    }

    async fn collect_garbage(&self) -> Result<Collected> {
        let call = Call::new("collect_garbage", &self.label);
        self.hook.around(&call, self.inner.collect_garbage()).await
    }
}
