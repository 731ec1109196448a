//! What C programs cannot bring about: panics, and targets that no pool of a test has.

use std::ffi::{CStr, c_char, c_void};
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};

use volmux::blocking::{Pool, Threads};
use volmux::layers::{Call, Hook, Layer};
use volmux::memory::MemoryPool;
use volmux::{
    Access, AttachTarget, Attachment, ChapReference, Holder, NbdAddress, Result, VolumeId,
    VolumeName,
};

use crate::*;

/// Panics in every call, once it is asked to.
#[derive(Debug)]
struct Panics(Arc<AtomicBool>);

impl Hook for Panics {
    const EACH_ITEM: bool = true;

    async fn around<T: Send>(
        &self,
        call: &Call,
        work: impl Future<Output = Result<T>> + Send,
    ) -> Result<T> {
        assert!(!self.0.load(Ordering::Relaxed), "in {}", call.op);
        work.await
    }
}

/// A pool with an open volume `v`, and the switch that makes both panic.
fn panicking() -> (vmx_pool, vmx_device, Arc<AtomicBool>) {
    let switch = Arc::new(AtomicBool::new(false));
    let pool = Layer::around(MemoryPool::unlimited(), Panics(switch.clone()));
    let pool = Pool::new(pool, &Threads::new().expect("threads"));
    let name = VolumeName::new("v").expect("a name");
    let size = volmux::CreateOptions::thin(volmux::ByteSize::mib(1));
    pool.create_volume(&name, size).expect("create");
    let device = pool.open_volume(&name, volmux::OpenOptions::read_write());
    let device = vmx_device::new(device.expect("open"));
    switch.store(true, Ordering::Relaxed);
    (vmx_pool::new(pool), device, switch)
}

fn shown(text: *const c_char) -> Option<String> {
    if text.is_null() {
        return None;
    }
    // SAFETY: it came from an accessor, and its handle is still there.
    let text = unsafe { CStr::from_ptr(text) };
    Some(text.to_str().expect("UTF-8").to_owned())
}

/// Checks that a panic has become an error that tells of it.
fn is_internal(status: vmx_status, error: Option<Box<vmx_error>>, op: &str) {
    assert_eq!(status, vmx_status::VMX_INTERNAL, "{op}");
    let error = error.expect("an error");
    assert_eq!(vmx_error_status(Some(&error)), vmx_status::VMX_INTERNAL);
    assert_eq!(shown(vmx_error_op(Some(&error))).as_deref(), Some(op));
    // SAFETY: the key ends with NUL.
    let told = shown(unsafe { vmx_error_get(Some(&error), c"panic".as_ptr()) });
    assert_eq!(told, Some(format!("in {op}")));
}

/// Makes a call that panics.
fn call(op: &str, call: impl FnOnce(Option<&mut MaybeUninit<*mut vmx_error>>) -> vmx_status) {
    let mut err = MaybeUninit::new(ptr::null_mut());
    let status = call(Some(&mut err));
    // SAFETY: it was NULL, and only ever becomes an error that is the caller's.
    let error = unsafe {
        let error = err.assume_init();
        (!error.is_null()).then(|| Box::from_raw(error))
    };
    is_internal(status, error, op);
}

#[test]
fn panics_end_at_the_boundary() {
    let (pool, device, _) = panicking();
    let (pool, device) = (Some(&pool), Some(&device));
    let name = c"v".as_ptr();
    let mut byte = 0u8;
    let byte = ptr::from_mut(&mut byte).cast::<c_void>();
    // SAFETY: texts end with NUL, the buffer has a byte, and NULL is allowed where it is given.
    unsafe {
        call("delete_volume", |err| vmx_delete_volume(pool, name, err));
        call("rename_volume", |err| {
            vmx_rename_volume(pool, name, name, None, err)
        });
        call("read_at", |err| vmx_read(device, 0, byte, 1, err));
        call("write_at", |err| vmx_write(device, 0, byte, 1, err));
        call("write_zeroes", |err| {
            vmx_write_zeroes(device, 0, 1, ptr::null(), 0, err)
        });
        call("audit", |err| {
            let mut report = MaybeUninit::uninit();
            vmx_audit_pool(pool, ptr::null(), 0, Some(&mut report), err)
        });
    }
    call("flush", |err| vmx_flush(device, err));
    call("discard", |err| vmx_discard(device, 0, 1, err));
    call("refresh", |err| vmx_refresh_device(device, None, err));
    call("list_volumes", |err| {
        let mut volumes = MaybeUninit::uninit();
        let begun = vmx_list_volumes(pool, Some(&mut volumes), None);
        if begun != vmx_status::VMX_OK {
            return vmx_list_volumes(pool, Some(&mut volumes), err);
        }
        let mut volume = MaybeUninit::uninit();
        // SAFETY: it was written, for the call has succeeded.
        let volumes = unsafe { Box::from_raw(volumes.assume_init()) };
        let status = vmx_next_volume(Some(&volumes), Some(&mut volume), err);
        vmx_volumes_free(Some(volumes));
        status
    });
    // Without a place for the error there is none.
    assert_eq!(vmx_flush(device, None), vmx_status::VMX_INTERNAL);
}

type Start<'a> = Box<dyn Fn() -> vmx_status + 'a>;
type Told = (vmx_status, Option<Box<vmx_error>>);

unsafe extern "C" fn tell(data: *mut c_void, status: vmx_status, error: *mut vmx_error) {
    // SAFETY: it is the sender of the test, which waits for this.
    let sender = unsafe { &*data.cast::<Sender<Told>>() };
    // SAFETY: the error is the callback's.
    let error = (!error.is_null()).then(|| unsafe { Box::from_raw(error) });
    sender.send((status, error)).expect("the test waits");
}

#[test]
fn panics_of_requests_reach_their_callbacks_once() {
    let (pool, device, switch) = panicking();
    let (sender, receiver) = channel::<Told>();
    let data = ptr::from_ref(&sender).cast_mut().cast::<c_void>();
    let device = Some(&device);
    let mut byte = 0u8;
    let byte = ptr::from_mut(&mut byte).cast::<c_void>();
    let callback: vmx_completion = Some(tell);
    // SAFETY: the byte and the sender are there until each callback was called.
    let starts: [(&str, Start<'_>); 5] = unsafe {
        [
            (
                "read_at",
                Box::new(move || vmx_read_async(device, 0, byte, 1, callback, data, None)),
            ),
            (
                "write_at",
                Box::new(move || vmx_write_async(device, 0, byte, 1, callback, data, None)),
            ),
            (
                "write_zeroes",
                Box::new(move || {
                    vmx_write_zeroes_async(device, 0, 1, ptr::null(), 0, callback, data, None)
                }),
            ),
            (
                "flush",
                Box::new(move || vmx_flush_async(device, callback, data, None)),
            ),
            (
                "discard",
                Box::new(move || vmx_discard_async(device, 0, 1, callback, data, None)),
            ),
        ]
    };
    for (op, start) in &starts {
        assert_eq!(start(), vmx_status::VMX_OK);
        let (status, error) = receiver.recv().expect("a callback");
        is_internal(status, error, op);
    }
    // The threads have survived.
    switch.store(false, Ordering::Relaxed);
    assert_eq!(
        vmx_flush_async(device, callback, data, None),
        vmx_status::VMX_OK
    );
    let (status, error) = receiver.recv().expect("a callback");
    assert!(status == vmx_status::VMX_OK && error.is_none());
    assert!(receiver.try_recv().is_err());
    vmx_pool_free(Some(Box::new(pool)));
}

#[test]
fn panics_of_any_sort_become_errors() {
    for (payload, told) in [
        (
            Box::new(7) as Box<dyn std::any::Any + Send>,
            "of an unknown sort",
        ),
        (Box::new("a text"), "a text"),
        (Box::new(String::from("an\0other")), "an\0other"),
    ] {
        let error = guard::panicked("op", &*payload);
        assert_eq!(error.get("panic"), Some(told));
        assert_eq!(error.kind(), volmux::ErrorKind::Internal);
        // What C takes for the end of a text is not in one.
        let error = vmx_error::new(&error);
        assert!(shown(vmx_error_message(Some(&error))).is_some());
    }
    assert_eq!(guard::quiet(1, || panic!("quietly")), 1);
}

fn attached(target: AttachTarget) -> vmx_attachment {
    vmx_attachment::new(Attachment {
        volume: VolumeName::new("v").expect("a name"),
        id: VolumeId::from_u128(1),
        holder: Holder::new("host").expect("a holder"),
        access: Access::ReadWrite,
        target,
    })
}

#[test]
fn every_target_tells_what_it_is() {
    let path = || "/dev/vg/v".into();
    for (target, kind) in [
        (
            AttachTarget::File { path: path() },
            vmx_target::VMX_TARGET_FILE,
        ),
        (
            AttachTarget::BlockDevice { path: path() },
            vmx_target::VMX_TARGET_BLOCK_DEVICE,
        ),
        (
            AttachTarget::Qcow2 { path: path() },
            vmx_target::VMX_TARGET_QCOW2,
        ),
    ] {
        let attachment = attached(target);
        let attachment = Some(&attachment);
        assert_eq!(vmx_attachment_target(attachment), kind);
        assert_eq!(
            shown(vmx_attachment_path(attachment)).as_deref(),
            Some("/dev/vg/v")
        );
        assert_eq!(shown(vmx_attachment_iscsi_portal(attachment)), None);
        assert_eq!(shown(vmx_attachment_nbd_uri(attachment)), None);
        assert_eq!(vmx_attachment_iscsi_lun(attachment), VMX_NONE);
        assert_eq!(
            vmx_attachment_access(attachment),
            vmx_access::VMX_READ_WRITE
        );
    }
}

#[test]
fn an_iscsi_target_tells_all() {
    let chap = |user: &str| ChapReference {
        user: user.into(),
        secret: format!("/run/{user}").into(),
    };
    let attachment = attached(AttachTarget::Iscsi {
        portal: "san:3260".into(),
        target: "iqn.2026-01.example:v".into(),
        lun: 7,
        serial: "0001".into(),
        chap: Some(chap("initiator")),
        mutual_chap: Some(chap("target")),
    });
    let attachment = Some(&attachment);
    assert_eq!(
        vmx_attachment_target(attachment),
        vmx_target::VMX_TARGET_ISCSI
    );
    assert_eq!(vmx_attachment_iscsi_lun(attachment), 7);
    for (text, told) in [
        (vmx_attachment_iscsi_portal(attachment), "san:3260"),
        (
            vmx_attachment_iscsi_target(attachment),
            "iqn.2026-01.example:v",
        ),
        (vmx_attachment_iscsi_serial(attachment), "0001"),
        (vmx_attachment_chap_user(attachment), "initiator"),
        (vmx_attachment_chap_secret(attachment), "/run/initiator"),
        (vmx_attachment_mutual_chap_user(attachment), "target"),
        (vmx_attachment_mutual_chap_secret(attachment), "/run/target"),
        (vmx_attachment_volume(attachment), "v"),
        (vmx_attachment_holder(attachment), "host"),
        (
            vmx_attachment_id(attachment),
            "00000000-0000-0000-0000-000000000001",
        ),
    ] {
        assert_eq!(shown(text).as_deref(), Some(told));
    }
    assert_eq!(shown(vmx_attachment_path(attachment)), None);
}

#[test]
fn an_nbd_target_tells_its_uri() {
    let attachment = attached(AttachTarget::Nbd {
        address: NbdAddress::Tcp {
            host: "::1".into(),
            port: 10809,
        },
        export: "v".into(),
        tls: true,
    });
    let attachment = Some(&attachment);
    assert_eq!(
        vmx_attachment_target(attachment),
        vmx_target::VMX_TARGET_NBD
    );
    let uri = shown(vmx_attachment_nbd_uri(attachment));
    assert_eq!(uri.as_deref(), Some("nbds://[::1]:10809/v"));
    assert_eq!(shown(vmx_attachment_path(attachment)), None);
}
