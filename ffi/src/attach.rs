//! Attached volumes, and where hosts find them.

use std::ffi::{CString, c_char};
use std::mem::MaybeUninit;

use volmux::{AttachOptions, AttachTarget, Attachment, ChapReference, Holder, Result};

use crate::args::Call;
use crate::enums::{ACCESS, SHARING, vmx_access, vmx_target};
use crate::error::vmx_error;
use crate::guard::{self, free};
use crate::plain::{Plain, VMX_NONE};
use crate::pool::vmx_pool;
use crate::status::vmx_status;
use crate::text::{path, shown, text};

/// How to attach.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct vmx_attach_options {
    /// Who the volume is for: the name of a host or a virtual machine, 1 to 255 printable ASCII
    /// characters without spaces.
    pub holder: *const c_char,
    /// A `vmx_access`.
    pub access: u32,
    /// A `vmx_sharing`.
    pub sharing: u32,
}

// SAFETY: a pointer of 8 bytes and two numbers of 4.
unsafe impl Plain for vmx_attach_options {
    const FIRST_SIZE: usize = 16;
}

/// Where a host finds a volume that is attached. It holds nothing of the pool: freeing it does not
/// detach. Any number of threads may read it at once.
///
/// All accessors take NULL, and give NULL, `VMX_READ_ONLY`, `VMX_TARGET_OTHER` or `VMX_NONE` for it.
/// Paths are as the system has them, which need not be UTF-8.
#[derive(Debug)]
pub struct vmx_attachment {
    attachment: Attachment,
    volume: CString,
    id: CString,
    holder: CString,
    path: Option<CString>,
    iscsi: Option<Iscsi>,
    nbd: Option<CString>,
}

/// What there is of an iSCSI target in texts.
#[derive(Debug)]
struct Iscsi {
    portal: CString,
    target: CString,
    lun: u64,
    serial: CString,
    chap: Option<Chap>,
    mutual_chap: Option<Chap>,
}

#[derive(Debug)]
struct Chap {
    user: CString,
    secret: CString,
}

impl Chap {
    fn of(reference: Option<&ChapReference>) -> Option<Chap> {
        reference.map(|chap| Chap {
            user: text(chap.user.as_str()),
            secret: path(&chap.secret),
        })
    }
}

impl vmx_attachment {
    pub(crate) fn attachment(&self) -> &Attachment {
        &self.attachment
    }

    pub(crate) fn new(attachment: Attachment) -> Self {
        let place = match &attachment.target {
            AttachTarget::File { path }
            | AttachTarget::BlockDevice { path }
            | AttachTarget::Qcow2 { path } => Some(path),
            _ => None,
        };
        let iscsi = match &attachment.target {
            AttachTarget::Iscsi {
                portal,
                target,
                lun,
                serial,
                chap,
                mutual_chap,
            } => Some(Iscsi {
                portal: text(portal.as_str()),
                target: text(target.as_str()),
                lun: *lun,
                serial: text(serial.as_str()),
                chap: Chap::of(chap.as_ref()),
                mutual_chap: Chap::of(mutual_chap.as_ref()),
            }),
            _ => None,
        };
        let nbd = match &attachment.target {
            AttachTarget::Nbd {
                address,
                export,
                tls,
            } => Some(text(address.uri(export, *tls))),
            _ => None,
        };
        vmx_attachment {
            volume: text(attachment.volume.as_str()),
            id: text(attachment.id.to_string()),
            holder: text(attachment.holder.as_str()),
            path: place.map(|place| path(place)),
            iscsi,
            nbd,
            attachment,
        }
    }
}

/// # Safety
/// `holder` is NULL or ends with NUL.
pub(crate) unsafe fn holder(call: Call, holder: *const c_char) -> Result<Holder> {
    // SAFETY: the caller vouches for it.
    let holder = unsafe { call.text(holder, "holder")? };
    Holder::new(holder).map_err(|error| error.with_op(call.op).with("argument", "holder"))
}

/// Makes a volume reachable for a host and says how. Lasts until `vmx_detach_volume`, beyond this
/// process. The same holder may repeat it. `options_size` is the size of the options; `attachment`
/// may be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmx_attach_volume(
    pool: Option<&vmx_pool>,
    name: *const c_char,
    options: *const vmx_attach_options,
    options_size: usize,
    attachment: Option<&mut MaybeUninit<*mut vmx_attachment>>,
    err: Option<&mut MaybeUninit<*mut vmx_error>>,
) -> vmx_status {
    guard::call("attach_volume", err, |call| {
        let pool = vmx_pool::of(call, pool)?;
        // SAFETY: texts end with NUL, and structures have the size that callers say.
        let (name, given, holder) = unsafe {
            let name = call.name(name, "name")?;
            let given = call.input(options, options_size, "options")?;
            (name, given, holder(call, given.holder)?)
        };
        let options = AttachOptions {
            holder,
            access: call.one_of(&ACCESS, given.access, "access")?,
            sharing: call.one_of(&SHARING, given.sharing, "sharing")?,
        };
        let made = pool.attach_volume(&name, options)?;
        if let Some(out) = attachment {
            out.write(Box::into_raw(Box::new(vmx_attachment::new(made))));
        }
        Ok(())
    })
}

/// Ends what `vmx_attach_volume` began, with everything flushed. Succeeds when the holder has
/// nothing attached, or the volume is gone. Fails with `VMX_BUSY` while the host still uses it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmx_detach_volume(
    pool: Option<&vmx_pool>,
    name: *const c_char,
    holder: *const c_char,
    err: Option<&mut MaybeUninit<*mut vmx_error>>,
) -> vmx_status {
    guard::call("detach_volume", err, |call| {
        let pool = vmx_pool::of(call, pool)?;
        // SAFETY: texts end with NUL.
        let (name, holder) = unsafe { (call.name(name, "name")?, self::holder(call, holder)?) };
        pool.detach_volume(&name, &holder)
    })
}

/// The volume.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_attachment_volume(attachment: Option<&vmx_attachment>) -> *const c_char {
    shown(attachment.map(|attachment| &attachment.volume))
}

/// The volume's identity: a stable serial number for the guest's disk.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_attachment_id(attachment: Option<&vmx_attachment>) -> *const c_char {
    shown(attachment.map(|attachment| &attachment.id))
}

/// Who it is attached to.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_attachment_holder(attachment: Option<&vmx_attachment>) -> *const c_char {
    shown(attachment.map(|attachment| &attachment.holder))
}

/// For reading only, or for writing too.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_attachment_access(attachment: Option<&vmx_attachment>) -> vmx_access {
    let none = vmx_access::VMX_READ_ONLY;
    attachment.map_or(none, |attachment| attachment.attachment.access.into())
}

/// What the host finds.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_attachment_target(attachment: Option<&vmx_attachment>) -> vmx_target {
    let none = vmx_target::VMX_TARGET_OTHER;
    attachment.map_or(none, |attachment| (&attachment.attachment.target).into())
}

/// The absolute path of a file, a block device or a qcow2 image; otherwise NULL.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_attachment_path(attachment: Option<&vmx_attachment>) -> *const c_char {
    shown(attachment.and_then(|attachment| attachment.path.as_ref()))
}

/// NBD: the URI of the export, as clients take it; otherwise NULL.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_attachment_nbd_uri(attachment: Option<&vmx_attachment>) -> *const c_char {
    shown(attachment.and_then(|attachment| attachment.nbd.as_ref()))
}

fn iscsi(attachment: Option<&vmx_attachment>) -> Option<&Iscsi> {
    attachment.and_then(|attachment| attachment.iscsi.as_ref())
}

/// iSCSI: the address of the portal, `host:port`; otherwise NULL.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_attachment_iscsi_portal(
    attachment: Option<&vmx_attachment>,
) -> *const c_char {
    shown(iscsi(attachment).map(|iscsi| &iscsi.portal))
}

/// iSCSI: the name of the target (IQN); otherwise NULL.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_attachment_iscsi_target(
    attachment: Option<&vmx_attachment>,
) -> *const c_char {
    shown(iscsi(attachment).map(|iscsi| &iscsi.target))
}

/// iSCSI: the number of the logical unit; otherwise `VMX_NONE`.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_attachment_iscsi_lun(attachment: Option<&vmx_attachment>) -> u64 {
    iscsi(attachment).map_or(VMX_NONE, |iscsi| iscsi.lun)
}

/// iSCSI: the unit serial number (VPD page 80h); otherwise NULL. A host that finds another one has
/// a wrong disk before it, and must not write to it.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_attachment_iscsi_serial(
    attachment: Option<&vmx_attachment>,
) -> *const c_char {
    shown(iscsi(attachment).map(|iscsi| &iscsi.serial))
}

/// iSCSI: the name by which the initiator proves who it is; NULL without CHAP.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_attachment_chap_user(attachment: Option<&vmx_attachment>) -> *const c_char {
    let chap = iscsi(attachment).and_then(|iscsi| iscsi.chap.as_ref());
    shown(chap.map(|chap| &chap.user))
}

/// iSCSI: the absolute path of the file that holds the initiator's secret; NULL without CHAP.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_attachment_chap_secret(attachment: Option<&vmx_attachment>) -> *const c_char {
    let chap = iscsi(attachment).and_then(|iscsi| iscsi.chap.as_ref());
    shown(chap.map(|chap| &chap.secret))
}

/// iSCSI: the name by which the target proves who it is; NULL without mutual CHAP.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_attachment_mutual_chap_user(
    attachment: Option<&vmx_attachment>,
) -> *const c_char {
    let chap = iscsi(attachment).and_then(|iscsi| iscsi.mutual_chap.as_ref());
    shown(chap.map(|chap| &chap.user))
}

/// iSCSI: the absolute path of the file that holds the target's secret; NULL without mutual CHAP.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_attachment_mutual_chap_secret(
    attachment: Option<&vmx_attachment>,
) -> *const c_char {
    let chap = iscsi(attachment).and_then(|iscsi| iscsi.mutual_chap.as_ref());
    shown(chap.map(|chap| &chap.secret))
}

/// Frees what is known of an attachment, and does not detach. NULL is fine.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_attachment_free(attachment: Option<Box<vmx_attachment>>) {
    free(attachment);
}
