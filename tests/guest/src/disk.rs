//! What QEMU is given for a guest's disks.

use volmux::hypervisor::{Hypervisor, RenderOptions};
use volmux::{Access, Attachment};

/// The disks of a guest, of which the first is the one that it boots from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// QEMU's arguments.
    pub arguments: Vec<String>,
    /// The guest can't write it.
    pub read_only: bool,
}

impl Disk {
    /// An attached volume: what is rendered of it, and nothing else.
    ///
    /// # Panics
    /// If it can't be rendered.
    pub fn of(attached: &Attachment, options: &RenderOptions) -> Disk {
        let rendered = attached.render(Hypervisor::Qemu, options);
        Disk {
            arguments: rendered.expect("rendered").arguments,
            read_only: attached.access == Access::ReadOnly,
        }
    }

    /// The same with another disk, or another device, besides.
    #[must_use]
    pub fn and(mut self, arguments: impl IntoIterator<Item = impl Into<String>>) -> Disk {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }
}
