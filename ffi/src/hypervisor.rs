//! What hypervisors are given of an attached volume.

use std::ffi::{CString, c_char};
use std::mem::MaybeUninit;
use std::path::PathBuf;

use volmux::Result;
use volmux::hypervisor::{Descriptor, DiskBus, Hypervisor, RenderOptions};

use crate::args::Call;
use crate::attach::vmx_attachment;
use crate::error::vmx_error;
use crate::guard::{self, free};
use crate::plain::Plain;
use crate::status::vmx_status;
use crate::text::{shown, text};

/// Who a volume is rendered for.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum vmx_hypervisor {
    /// Arguments of QEMU's command line (QEMU 7.2 and newer).
    VMX_QEMU = 0,
    /// Commands of QEMU's machine protocol, one JSON document a line (QEMU 7.2 and newer).
    VMX_QMP = 1,
    /// A `<disk>` of libvirt's domain XML (libvirt 9.0 and newer, QEMU driver).
    VMX_LIBVIRT = 2,
    /// A disk string of Xen's xl (Xen 4.17 and newer).
    VMX_XL = 3,
    /// What `Datapath.attach` of a SMAPIv3 plugin answers (XenServer, XCP-ng).
    VMX_SMAPIV3 = 4,
    /// A PowerShell script for a Hyper-V host.
    VMX_HYPERV = 5,
}

/// The controller on which the guest finds the disk.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum vmx_disk_bus {
    /// virtio-blk. Guests see the first 20 characters of the serial number.
    VMX_BUS_VIRTIO = 0,
    /// A disk on a SCSI controller, which the virtual machine must have (virtio-scsi).
    VMX_BUS_SCSI = 1,
}

const BUSES: [DiskBus; 2] = [DiskBus::Virtio, DiskBus::Scsi];

/// What to render besides the attachment. All zeros is right for a disk that has one writer: what
/// is NULL has its default.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct vmx_render_options {
    /// QEMU's name for the block node and the device: 1 to 29 characters of
    /// `[A-Za-z][A-Za-z0-9-._]*` (made of the volume's name and id).
    pub node: *const c_char,
    /// The disk's name in libvirt's XML and xl's string (`vda`, `sda` on SCSI, `xvda` for Xen).
    pub device: *const c_char,
    /// QEMU's id of the bus that the device is put on, such as a PCIe root port (QEMU chooses).
    pub bus_id: *const c_char,
    /// The usage by which libvirt knows the CHAP secret (the CHAP user's name).
    pub secret_usage: *const c_char,
    /// The directory of QEMU's TLS credentials, for NBD with TLS (`/etc/pki/qemu`).
    pub tls_credentials: *const c_char,
    /// A block device on which the host already has the volume's content, because the caller
    /// connected it. It is what is rendered then. Absolute path.
    pub host_device: *const c_char,
    /// For Hyper-V: a VHDX image to which the caller wrote the volume's content, as a Windows host
    /// names it. It is what is rendered then.
    pub vhdx: *const c_char,
    /// A `vmx_disk_bus`.
    pub bus: u32,
    /// 1: the volume is attached with `VMX_SHARED`, so other writers must be let in.
    pub shared: u32,
    /// 1: go through the host's page cache. Only for file systems without `O_DIRECT`.
    pub page_cache: u32,
    /// 0.
    pub reserved: u32,
}

// SAFETY: pointers of 8 bytes, and four numbers of 4.
unsafe impl Plain for vmx_render_options {
    const FIRST_SIZE: usize = 72;
}

impl vmx_render_options {
    /// # Safety
    /// Its texts are NULL or end with NUL.
    unsafe fn read(&self, call: Call) -> Result<RenderOptions> {
        let text = |text, argument| -> Result<Option<String>> {
            // SAFETY: the caller vouches for it.
            let text = unsafe { call.text_if_given(text, argument) };
            Ok(text?.map(str::to_owned))
        };
        call.one_of(&[0], self.reserved, "reserved")?;
        let options = RenderOptions {
            node: text(self.node, "node")?,
            device: text(self.device, "device")?,
            bus: call.one_of(&BUSES, self.bus, "bus")?,
            bus_id: text(self.bus_id, "bus_id")?,
            shared: call.flag(self.shared, "shared")?,
            page_cache: call.flag(self.page_cache, "page_cache")?,
            secret_usage: text(self.secret_usage, "secret_usage")?,
            tls_credentials: text(self.tls_credentials, "tls_credentials")?.map(PathBuf::from),
            host_device: text(self.host_device, "host_device")?.map(PathBuf::from),
            vhdx: text(self.vhdx, "vhdx")?,
        };
        Ok(options)
    }
}

/// What a hypervisor is given. No secret is in it, only where the secret lies. Any number of
/// threads may read it at once. All accessors take NULL, and give NULL or 0 for it.
#[derive(Debug)]
pub struct vmx_descriptor {
    text: CString,
    arguments: Vec<CString>,
    node: Option<CString>,
    serial: Option<CString>,
}

impl vmx_descriptor {
    fn new(descriptor: Descriptor) -> Self {
        vmx_descriptor {
            text: text(descriptor.text),
            arguments: descriptor.arguments.into_iter().map(text).collect(),
            node: descriptor.node.map(text),
            serial: descriptor.serial.map(text),
        }
    }
}

/// What a hypervisor (a `vmx_hypervisor`) must be given to use an attached volume. Formats are
/// always given and never probed; what is attached for reading only is rendered read-only. Nothing
/// is run. `options` may be NULL.
///
/// `VMX_UNSUPPORTED`, with another way to do it, if the hypervisor can't use this target or can't
/// be told a part of it. Nothing is left out silently.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmx_render_attachment(
    attachment: Option<&vmx_attachment>,
    hypervisor: u32,
    options: *const vmx_render_options,
    options_size: usize,
    descriptor: Option<&mut MaybeUninit<*mut vmx_descriptor>>,
    err: Option<&mut MaybeUninit<*mut vmx_error>>,
) -> vmx_status {
    guard::call("render_attachment", err, |call| {
        let out = call.out(descriptor, "descriptor")?;
        let attachment = call.given(attachment, "attachment")?;
        let hypervisor = call.one_of(&Hypervisor::ALL, hypervisor, "hypervisor")?;
        let options = match options.is_null() {
            true => RenderOptions::default(),
            // SAFETY: structures have the size that callers say, and their texts end with NUL.
            false => unsafe { call.input(options, options_size, "options")?.read(call)? },
        };
        let rendered = attachment.attachment().render(hypervisor, &options)?;
        out.write(Box::into_raw(Box::new(vmx_descriptor::new(rendered))));
        Ok(())
    })
}

/// All of it. QEMU's arguments are quoted for a POSIX shell, in one line.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_descriptor_text(descriptor: Option<&vmx_descriptor>) -> *const c_char {
    shown(descriptor.map(|descriptor| &descriptor.text))
}

/// How many parts the text has: QEMU's arguments, the QMP commands; otherwise 1.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_descriptor_argument_count(descriptor: Option<&vmx_descriptor>) -> usize {
    descriptor.map_or(0, |descriptor| descriptor.arguments.len())
}

/// One of them, to be handed over as it is and never through a shell; NULL past the last.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_descriptor_argument(
    descriptor: Option<&vmx_descriptor>,
    index: usize,
) -> *const c_char {
    shown(descriptor.and_then(|descriptor| descriptor.arguments.get(index)))
}

/// The block node that holds the disk's content, where QEMU has one; otherwise NULL.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_descriptor_node(descriptor: Option<&vmx_descriptor>) -> *const c_char {
    shown(descriptor.and_then(|descriptor| descriptor.node.as_ref()))
}

/// The serial number that the guest's disk gets: the volume's id. NULL where that can't be said.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_descriptor_serial(descriptor: Option<&vmx_descriptor>) -> *const c_char {
    shown(descriptor.and_then(|descriptor| descriptor.serial.as_ref()))
}

/// Frees a descriptor. NULL is fine.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_descriptor_free(descriptor: Option<Box<vmx_descriptor>>) {
    free(descriptor);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_those_of_the_list() {
        let numbers = [
            (vmx_hypervisor::VMX_QEMU, "qemu"),
            (vmx_hypervisor::VMX_QMP, "qmp"),
            (vmx_hypervisor::VMX_LIBVIRT, "libvirt"),
            (vmx_hypervisor::VMX_XL, "xl"),
            (vmx_hypervisor::VMX_SMAPIV3, "smapiv3"),
            (vmx_hypervisor::VMX_HYPERV, "hyperv"),
        ];
        assert_eq!(numbers.len(), Hypervisor::ALL.len());
        for (number, name) in numbers {
            assert_eq!(Hypervisor::ALL[number as usize].name(), name);
        }
    }
}
