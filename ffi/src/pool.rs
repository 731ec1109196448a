//! Pools.

use std::ffi::{CString, c_char};
use std::mem::MaybeUninit;

use volmux::blocking::{Pool, Threads};
use volmux::{PoolUrl, Result};

use crate::args::Call;
use crate::error::vmx_error;
use crate::guard::{self, free};
use crate::status::vmx_status;
use crate::text::{shown, text};

/// An open pool. Any number of threads may use it at once. Its volumes' devices, listings and
/// exports may outlive it.
#[derive(Debug)]
pub struct vmx_pool {
    pool: Pool,
    url: CString,
}

impl vmx_pool {
    pub(crate) fn new(pool: Pool) -> Self {
        let url = text(pool.to_string());
        vmx_pool { pool, url }
    }

    /// The pool of an argument, in the process that has it.
    pub(crate) fn of(call: Call, pool: Option<&vmx_pool>) -> Result<&Pool> {
        vmx_pool::named(call, pool, "pool")
    }

    /// The same of an argument with another name.
    pub(crate) fn named<'a>(
        call: Call,
        pool: Option<&'a vmx_pool>,
        argument: &'static str,
    ) -> Result<&'a Pool> {
        let pool = &call.given(pool, argument)?.pool;
        call.at_home(pool.threads())?;
        Ok(pool)
    }

    fn give(out: &mut MaybeUninit<*mut vmx_pool>, url: &PoolUrl) -> Result<()> {
        // All pools of a program share their threads: a program may have thousands of pools.
        let threads = Threads::shared()?;
        let registry = volmux::registry();
        let pool = threads.block_on("open_pool", registry.open_url(url))??;
        let pool = vmx_pool::new(Pool::new(pool, &threads));
        out.write(Box::into_raw(Box::new(pool)));
        Ok(())
    }
}

/// Opens the pool at a URL, such as `dir:///srv/volumes` or `lvm://vg/thinpool?warn_percent=80`.
/// Changes nothing in it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmx_open_pool(
    url: *const c_char,
    pool: Option<&mut MaybeUninit<*mut vmx_pool>>,
    err: Option<&mut MaybeUninit<*mut vmx_error>>,
) -> vmx_status {
    guard::call("open_pool", err, |call| {
        // SAFETY: texts end with NUL.
        let url = unsafe { call.text(url, "url")? };
        let out = call.out(pool, "pool")?;
        vmx_pool::give(out, &url.parse()?)
    })
}

/// Opens the pool of a configuration, a JSON object with its URL under `url` and beside it options,
/// each a text, a number or a boolean: `{"url": "dir:///srv/volumes", "warn_percent": 80}`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmx_open_pool_json(
    json: *const c_char,
    pool: Option<&mut MaybeUninit<*mut vmx_pool>>,
    err: Option<&mut MaybeUninit<*mut vmx_error>>,
) -> vmx_status {
    guard::call("open_pool", err, |call| {
        // SAFETY: texts end with NUL.
        let json = unsafe { call.text(json, "json")? };
        let out = call.out(pool, "pool")?;
        vmx_pool::give(out, &PoolUrl::from_json(json)?)
    })
}

/// Its URL, without options.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_pool_url(pool: Option<&vmx_pool>) -> *const c_char {
    shown(pool.map(|pool| &pool.url))
}

/// Frees a pool. NULL is fine. What was opened through it stays open.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_pool_free(pool: Option<Box<vmx_pool>>) {
    free(pool);
}
