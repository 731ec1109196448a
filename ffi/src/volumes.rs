//! Volumes of a pool, one by one.

use std::mem::MaybeUninit;
use std::ptr;
use std::sync::{Mutex, PoisonError};

use volmux::blocking::{Threads, Volumes};

use crate::error::vmx_error;
use crate::guard::{self, free};
use crate::pool::vmx_pool;
use crate::status::vmx_status;
use crate::volume::vmx_volume;

/// The volumes of a pool, each looked up when it is asked for. Several threads may ask at once;
/// each gets another volume.
#[derive(Debug)]
pub struct vmx_volumes {
    items: Mutex<Volumes>,
    threads: Threads,
}

/// Begins to list the volumes of a pool, in no particular order. Volumes made or deleted meanwhile
/// may or may not appear.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_list_volumes(
    pool: Option<&vmx_pool>,
    volumes: Option<&mut MaybeUninit<*mut vmx_volumes>>,
    err: Option<&mut MaybeUninit<*mut vmx_error>>,
) -> vmx_status {
    guard::call("list_volumes", err, |call| {
        let pool = vmx_pool::of(call, pool)?;
        let out = call.out(volumes, "volumes")?;
        let items = Mutex::new(pool.list_volumes());
        let threads = pool.threads().clone();
        out.write(Box::into_raw(Box::new(vmx_volumes { items, threads })));
        Ok(())
    })
}

/// The next volume; `*volume` is NULL after the last, and the status `VMX_OK`. After an error,
/// which tells of one volume that cannot be read, it goes on with the next call.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_next_volume(
    volumes: Option<&vmx_volumes>,
    volume: Option<&mut MaybeUninit<*mut vmx_volume>>,
    err: Option<&mut MaybeUninit<*mut vmx_error>>,
) -> vmx_status {
    guard::call("list_volumes", err, |call| {
        let volumes = call.given(volumes, "volumes")?;
        let out = call.out(volume, "volume")?;
        call.may_wait(&volumes.threads)?;
        let mut items = volumes.items.lock().unwrap_or_else(PoisonError::into_inner);
        match items.next().transpose()? {
            Some(volume) => vmx_volume::give(Some(out), volume),
            None => _ = out.write(ptr::null_mut()),
        }
        Ok(())
    })
}

/// Frees a listing, at its end or before. NULL is fine.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_volumes_free(volumes: Option<Box<vmx_volumes>>) {
    free(volumes);
}
