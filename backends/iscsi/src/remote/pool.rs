//! The pool: one run of the program there for each operation.

use std::sync::Arc;

use async_trait::async_trait;
use futures::stream::BoxStream;
use volmux_core::{
    Access, AttachOptions, Attachment, AuditOptions, AuditReport, BlockDevice, Capabilities,
    CloneOptions, Collected, Control, CopyOptions, CreateOptions, ExtentKind, ExtentQuery,
    ExtentStream, FlattenOptions, Holder, OpenOptions, Pool, Provisioning, ResizeOptions, Result,
    RevertOptions, Sharing, SnapshotOptions, ThinPolicy, Usage, Volume, VolumeName,
};

use super::calls::{Command, RemotePool, about};
use super::config::check_text;
use super::documents::{AttachmentDoc, CollectedDoc, DeleteDoc, DetachDoc, PoolDoc};
use super::streams;

#[async_trait]
impl Pool for RemotePool {
    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    fn policy(&self) -> ThinPolicy {
        self.policy
    }

    async fn usage(&self) -> Result<Usage> {
        let command = Command {
            op: "usage",
            words: &["pool", "info"],
            names: &[],
        };
        let info: PoolDoc = self.call(command).await?.document()?;
        Ok(info.usage())
    }

    async fn create_volume(&self, name: &VolumeName, options: CreateOptions) -> Result<Volume> {
        let size = options.size.bytes().to_string();
        let command = Command {
            op: "create_volume",
            words: match options.provisioning {
                Provisioning::Thin => &["volume", "create"],
                Provisioning::Thick => &["volume", "create", "--thick"],
            },
            names: &[name.as_str(), &size],
        };
        let made = self.volume_of(command, name).await;
        made.map_err(|error| about(name, error))
    }

    async fn volume(&self, name: &VolumeName) -> Result<Volume> {
        let command = Command {
            op: "volume",
            words: &["volume", "info"],
            names: &[name.as_str()],
        };
        let found = self.volume_of(command, name).await;
        found.map_err(|error| about(name, error))
    }

    fn list_volumes(&self) -> BoxStream<'static, Result<Volume>> {
        let command = Command {
            op: "list_volumes",
            words: &["volume", "list"],
            names: &[],
        };
        streams::volumes(self.ssh.clone(), command.words(&self.ssh.config, None))
    }

    async fn resize_volume(&self, name: &VolumeName, options: ResizeOptions) -> Result<Volume> {
        let size = options.size.bytes().to_string();
        let command = Command {
            op: "resize_volume",
            words: match options.allow_shrink {
                true => &["volume", "resize", "--shrink"],
                false => &["volume", "resize"],
            },
            names: &[name.as_str(), &size],
        };
        let made = self.volume_of(command, name).await;
        // Also of a call that broke off the work may be done.
        self.opened.resized(name, self.ssh.config.deadline).await;
        made.map_err(|error| about(name, error))
    }

    async fn rename_volume(&self, name: &VolumeName, to: &VolumeName) -> Result<Volume> {
        let command = Command {
            op: "rename_volume",
            words: &["volume", "rename"],
            names: &[name.as_str(), to.as_str()],
        };
        let made = self.volume_of(command, to).await;
        if made.is_ok() {
            self.opened.renamed(name, to);
        }
        made.map_err(|error| about(name, error))
    }

    async fn delete_volume(&self, name: &VolumeName) -> Result<()> {
        let command = Command {
            op: "delete_volume",
            words: &["volume", "delete"],
            names: &[name.as_str()],
        };
        let gone = self.call(command).await.and_then(|answer| {
            let document: DeleteDoc = answer.document()?;
            match document.name == *name {
                true => Ok(()),
                false => Err(answer.wrong("it tells of another volume")),
            }
        });
        gone.map_err(|error| about(name, error))
    }

    async fn snapshot_volume(
        &self,
        source: &VolumeName,
        name: &VolumeName,
        options: SnapshotOptions,
    ) -> Result<Volume> {
        let what = ("snapshot_volume", "snapshot");
        self.volume_of_work(what, &[source, name], name, &options.control)
            .await
    }

    async fn clone_volume(
        &self,
        source: &VolumeName,
        name: &VolumeName,
        options: CloneOptions,
    ) -> Result<Volume> {
        let what = ("clone_volume", "clone");
        self.volume_of_work(what, &[source, name], name, &options.control)
            .await
    }

    async fn copy_volume(
        &self,
        source: &VolumeName,
        name: &VolumeName,
        options: CopyOptions,
    ) -> Result<Volume> {
        let what = ("copy_volume", "copy");
        self.volume_of_work(what, &[source, name], name, &options.control)
            .await
    }

    async fn revert_volume(
        &self,
        name: &VolumeName,
        snapshot: &VolumeName,
        options: RevertOptions,
    ) -> Result<Volume> {
        let what = ("revert_volume", "revert");
        self.volume_of_work(what, &[name, snapshot], name, &options.control)
            .await
    }

    async fn flatten_volume(&self, name: &VolumeName, options: FlattenOptions) -> Result<Volume> {
        let what = ("flatten_volume", "flatten");
        self.volume_of_work(what, &[name], name, &options.control)
            .await
    }

    async fn adopt_volume(&self, what: &str, name: &VolumeName) -> Result<Volume> {
        check_text("adopt_volume", "what", what)?;
        let command = Command {
            op: "adopt_volume",
            words: &["volume", "adopt"],
            names: &[what, name.as_str()],
        };
        let made = self.volume_of(command, name).await;
        made.map_err(|error| about(name, error))
    }

    async fn open_volume(
        &self,
        name: &VolumeName,
        options: OpenOptions,
    ) -> Result<Arc<dyn BlockDevice>> {
        if options.take_over && options.access == Access::ReadWrite {
            let what = ("open_volume", "take-over");
            self.volume_of_work(what, &[name], name, &Control::new())
                .await?;
        }
        let array = Arc::new(self.clone());
        let device = self.opener.open(array, name, options).await?;
        self.opened.add(name, &device);
        Ok(device)
    }

    async fn extents(&self, name: &VolumeName, query: ExtentQuery) -> Result<ExtentStream> {
        let mut options = Vec::new();
        if let ExtentKind::ChangedSince(snapshot) = &query.kind {
            options.push(format!("--changed-since={snapshot}"));
        }
        if let Some(range) = query.range {
            options.push(format!("--offset={}", range.offset));
            options.push(format!("--length={}", range.length));
        }
        let options = options.iter().map(String::as_str);
        let words: Vec<&str> = ["volume", "extents"].into_iter().chain(options).collect();
        let command = Command {
            op: "extents",
            words: &words,
            names: &[name.as_str()],
        };
        let words = command.words(&self.ssh.config, None);
        let stream = streams::extents(&self.ssh, &words, name, &query).await;
        stream.map_err(|error| about(name, error))
    }

    async fn attach_volume(&self, name: &VolumeName, options: AttachOptions) -> Result<Attachment> {
        let mut words = vec!["volume", "attach"];
        if options.access == Access::ReadOnly {
            words.push("--read-only");
        }
        if options.sharing == Sharing::Shared {
            words.push("--shared");
        }
        let command = Command {
            op: "attach_volume",
            words: &words,
            names: &[name.as_str(), options.holder.as_str()],
        };
        let attached = self.call(command).await.and_then(|answer| {
            let document: AttachmentDoc = answer.document()?;
            let config = &self.ssh.config;
            let attached = document
                .into_attachment(config.chap.clone(), config.mutual_chap.clone())
                .map_err(|wrong| answer.wrong(&wrong))?;
            let meant = attached.volume == *name
                && attached.holder == options.holder
                && attached.access == options.access;
            match meant {
                true => Ok(attached),
                false => Err(answer.wrong(&format!("another attachment: {attached:?}"))),
            }
        });
        attached.map_err(|error| about(name, error))
    }

    async fn detach_volume(&self, name: &VolumeName, holder: &Holder) -> Result<()> {
        let command = Command {
            op: "detach_volume",
            words: &["volume", "detach"],
            names: &[name.as_str(), holder.as_str()],
        };
        let gone = self.call(command).await.and_then(|answer| {
            let document: DetachDoc = answer.document()?;
            match document.name == *name && document.holder == *holder {
                true => Ok(()),
                false => Err(answer.wrong("it tells of another attachment")),
            }
        });
        gone.map_err(|error| about(name, error))
    }

    async fn audit(&self, options: AuditOptions) -> Result<AuditReport> {
        let command = Command {
            op: "audit",
            words: match options.repair {
                true => &["pool", "audit", "--repair"],
                false => &["pool", "audit"],
            },
            names: &[],
        };
        self.report(command, &Control::new()).await
    }

    async fn scrub(&self, control: Control) -> Result<AuditReport> {
        let command = Command {
            op: "scrub",
            words: &["pool", "scrub"],
            names: &[],
        };
        self.report(command, &control).await
    }

    async fn collect_garbage(&self) -> Result<Collected> {
        let command = Command {
            op: "collect_garbage",
            words: &["pool", "gc"],
            names: &[],
        };
        let answer = self.work(command, &Control::new()).await?;
        let collected: CollectedDoc = answer.document()?;
        Ok(Collected {
            freed: collected.freed,
            objects: collected.objects,
        })
    }
}
