//! Volumes served over NBD.

use std::ffi::{CString, c_char, c_int};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::net::AddressFamily;
use rustix::net::sockopt::{socket_acceptconn, socket_domain};
use volmux::blocking::Pool;
use volmux::{Error, ErrorKind, Result};
use volmux_gateway::{
    Address, ClientCertificates, ExportOptions, Exports, Limits, Listen, ServeOptions, Server, Tls,
};

use crate::args::Call;
use crate::attach::{self, vmx_attachment};
use crate::enums::{ACCESS, SHARING};
use crate::error::vmx_error;
use crate::guard::{self, free};
use crate::plain::Plain;
use crate::pool::vmx_pool;
use crate::status::vmx_status;
use crate::text::{given_away, shown, text};

/// One volume that is served. Unlike other structures this one, as an element of an array, never
/// grows.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct vmx_export_volume {
    /// Its name, which is the export's too.
    pub name: *const c_char,
    /// A `vmx_access`. A snapshot can only be read.
    pub access: u32,
    /// A `vmx_sharing`. `VMX_EXCLUSIVE`: a volume that is written has one client at a time, with as
    /// many connections as it wants.
    pub sharing: u32,
}

/// What is served, where, and within which limits. All zeros is a beginning: what is 0 or NULL has
/// its default.
///
/// NBD has no access control: who can open the Unix socket, or reach the TCP address, can use the
/// volumes. With TLS and `tls_verify_clients` only who has a certificate can.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct vmx_export_options {
    /// The volumes, each open from the start to the end. If it is only one, it is the default
    /// export too.
    pub volumes: *const vmx_export_volume,
    /// How many they are.
    pub volume_count: usize,
    /// 1, with no volumes given: every volume of the pool, those made later too. Each is open while
    /// it has a client.
    pub every_volume: u32,
    /// With `every_volume`: a `vmx_access`. Snapshots are always read-only.
    pub access: u32,
    /// With `every_volume`: a `vmx_sharing`.
    pub sharing: u32,
    /// 1: let in only clients with a certificate of the authority in `ca-cert.pem`.
    pub tls_verify_clients: u32,
    /// Where to listen: `unix:/absolute/path` or `tcp:IP:PORT`; port 0 takes a free one. With
    /// `listen_fds` there is at least one place.
    pub listen: *const *const c_char,
    /// How many they are.
    pub listen_count: usize,
    /// Unix or TCP sockets that listen already, as a service manager hands them over. They are
    /// duplicated: the caller may close its own.
    pub listen_fds: *const c_int,
    /// How many they are.
    pub listen_fd_count: usize,
    /// NULL, or demand TLS with `server-cert.pem`, `server-key.pem` and `ca-cert.pem` from this
    /// directory.
    pub tls_directory: *const c_char,
    /// NULL, or where `/metrics` (Prometheus) and `/status` (JSON) are answered over HTTP, as in
    /// `listen`. It has no access control of its own.
    pub statistics: *const c_char,
    /// Connections at a time, 1 to 4096 (256).
    pub connections: u64,
    /// How long a client may take from connecting to choosing its export, in milliseconds (10000).
    pub handshake_milliseconds: u64,
    /// How long the pool may take for a request before the client is told that it failed, in
    /// milliseconds (60000).
    pub request_milliseconds: u64,
    /// With `every_volume`: how long a volume stays open for a client that vanished and may come
    /// back, in milliseconds (60000).
    pub release_milliseconds: u64,
    /// The longest option of a handshake, in bytes, 4096 to 65536 (8192).
    pub option_length: u64,
    /// The longest read or write, in bytes, 1 MiB to 64 MiB (32 MiB).
    pub request_length: u64,
    /// Requests of one connection that are worked on at a time (256).
    pub in_flight_requests: u64,
    /// Bytes of the requests that one connection has under way (64 MiB).
    pub in_flight_per_connection: u64,
    /// Bytes of the requests that all connections have under way (512 MiB).
    pub in_flight_total: u64,
}

// SAFETY: pointers and numbers of 8 bytes, and four numbers of 4 in a row.
unsafe impl Plain for vmx_export_options {
    const FIRST_SIZE: usize = 152;
}

/// A running export. Any number of threads may use it at once.
#[derive(Debug)]
pub struct vmx_export {
    server: Mutex<Option<Server>>,
    addresses: Vec<Address>,
    shown: Vec<CString>,
    statistics: Option<CString>,
    tls: bool,
    // The threads that it runs on end with the pool, so it is last.
    pool: Pool,
}

impl vmx_export {
    /// One of the addresses.
    fn address(&self, call: Call, index: usize) -> Result<&Address> {
        let address = self.addresses.get(index);
        address.ok_or_else(|| call.wrong("index", "there are not so many"))
    }

    fn lock(&self, call: Call) -> Result<MutexGuard<'_, Option<Server>>> {
        call.at_home(self.pool.threads())?;
        Ok(self.server.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for vmx_export {
    fn drop(&mut self) {
        let server = self
            .server
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        let Some(server) = server.take() else {
            return;
        };
        if self.pool.threads().are_elsewhere() {
            std::mem::forget(server);
            return;
        }
        // The threads of its connections must not outlive those of the pool.
        let threads = self.pool.threads().clone();
        let kept = threads.clone();
        let end = async move {
            // It was told to end at once, so that clients were cut off is no news.
            let _ = server.stop(Duration::ZERO).await;
            drop(kept);
        };
        match tokio::runtime::Handle::try_current() {
            Err(_) => drop(threads.block_on("stop", end)),
            // Freed in a callback.
            Ok(_) => drop(threads.spawn("stop", end)),
        }
    }
}

/// Serves volumes of a pool over NBD, until `vmx_stop_export`. Fails, with nothing served, if a
/// volume cannot be opened or a place not be listened on. `options_size` is the size of the options.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmx_start_export(
    pool: Option<&vmx_pool>,
    options: *const vmx_export_options,
    options_size: usize,
    exported: Option<&mut MaybeUninit<*mut vmx_export>>,
    err: Option<&mut MaybeUninit<*mut vmx_error>>,
) -> vmx_status {
    guard::call("serve", err, |call| {
        let pool = vmx_pool::of(call, pool)?;
        // SAFETY: structures have the size that callers say, and what they point to is there.
        let options = unsafe { served(call, call.input(options, options_size, "options")?)? };
        let out = call.out(exported, "exported")?;
        let tls = options.tls.is_some();
        let serve = volmux_gateway::serve(pool.inner().clone(), options);
        let server = pool.threads().block_on(call.op, serve)??;
        let addresses = server.addresses().to_vec();
        let export = vmx_export {
            shown: addresses.iter().map(|a| text(a.to_string())).collect(),
            statistics: server.statistics_address().map(|a| text(a.to_string())),
            server: Mutex::new(Some(server)),
            addresses,
            tls,
            pool: pool.clone(),
        };
        out.write(Box::into_raw(Box::new(export)));
        Ok(())
    })
}

/// # Safety
/// What `given` points to is there, as often as it says.
unsafe fn served(call: Call, given: vmx_export_options) -> Result<ServeOptions> {
    // SAFETY: the caller vouches for it.
    let (places, sockets, directory, statistics) = unsafe {
        (
            call.array(given.listen, given.listen_count, "listen")?,
            call.array(given.listen_fds, given.listen_fd_count, "listen_fds")?,
            call.text_if_given(given.tls_directory, "tls_directory")?,
            call.text_if_given(given.statistics, "statistics")?,
        )
    };
    let clients = match call.flag(given.tls_verify_clients, "tls_verify_clients")? {
        true => ClientCertificates::Required,
        false => ClientCertificates::NotAsked,
    };
    let place = |address: &str| Ok(Listen::from(address.parse::<Address>()?));
    let mut listen = Vec::new();
    for address in places {
        // SAFETY: the caller vouches for it.
        listen.push(place(unsafe { call.text(*address, "listen")? })?);
    }
    for socket in sockets {
        // SAFETY: the caller's descriptors stay open during the call.
        listen.push(unsafe { duplicate(call, *socket)? });
    }
    let tls = directory.map(|directory| Tls::from_directory(Path::new(directory), clients));
    Ok(ServeOptions {
        // SAFETY: the caller vouches for it.
        exports: unsafe { exports(call, &given)? },
        listen,
        tls: tls.transpose()?,
        statistics: statistics.map(place).transpose()?,
        limits: limits(call, &given)?,
    })
}

/// A socket that listens already.
///
/// # Safety
/// Nobody closes it during the call.
unsafe fn duplicate(call: Call, socket: c_int) -> Result<Listen> {
    let wrong = |reason| call.wrong("listen_fds", reason).with("fd", socket);
    if socket < 0 {
        return Err(wrong("this is no descriptor"));
    }
    // SAFETY: it is not -1, and the caller vouches for the rest.
    let borrowed = unsafe { BorrowedFd::borrow_raw(socket) };
    let own = borrowed.try_clone_to_owned();
    let own = own.map_err(|error| wrong("this is no open descriptor").with_source(error))?;
    if !socket_acceptconn(&own).unwrap_or(false) {
        return Err(wrong("this is no socket that listens"));
    }
    match socket_domain(&own) {
        Ok(AddressFamily::UNIX) => Ok(Listen::UnixListener(own.into())),
        Ok(AddressFamily::INET | AddressFamily::INET6) => Ok(Listen::TcpListener(own.into())),
        _ => Err(wrong("this is neither a Unix nor a TCP socket")),
    }
}

/// # Safety
/// The volumes that `given` points to are there.
unsafe fn exports(call: Call, given: &vmx_export_options) -> Result<Exports> {
    let every = call.flag(given.every_volume, "every_volume")?;
    if every == (given.volume_count > 0) {
        return Err(call.wrong("volumes", "give either volumes or every_volume"));
    }
    if every {
        return Ok(Exports::EveryVolume {
            access: call.one_of(&ACCESS, given.access, "access")?,
            sharing: call.one_of(&SHARING, given.sharing, "sharing")?,
        });
    }
    let mut volumes = Vec::new();
    // SAFETY: the caller vouches for it.
    for volume in unsafe { call.array(given.volumes, given.volume_count, "volumes")? } {
        volumes.push(ExportOptions {
            // SAFETY: the caller vouches for it.
            volume: unsafe { call.name(volume.name, "volumes")? },
            access: call.one_of(&ACCESS, volume.access, "access")?,
            sharing: call.one_of(&SHARING, volume.sharing, "sharing")?,
        });
    }
    Ok(Exports::Volumes(volumes))
}

fn limits(call: Call, given: &vmx_export_options) -> Result<Limits> {
    let default = Limits::default();
    let time = |milliseconds: u64, default: Duration| match milliseconds {
        0 => default,
        _ => Duration::from_millis(milliseconds),
    };
    // One that does not fit is too large, and is refused as such.
    let small = |number: u64, default: u32| match number {
        0 => default,
        _ => u32::try_from(number).unwrap_or(u32::MAX),
    };
    let count = |number: u64, default: usize| match number {
        0 => default,
        _ => usize::try_from(number).unwrap_or(usize::MAX),
    };
    let large = |number: u64, default: u64| if number == 0 { default } else { number };
    let limits = Limits {
        connections: count(given.connections, default.connections),
        handshake_time: time(given.handshake_milliseconds, default.handshake_time),
        request_time: time(given.request_milliseconds, default.request_time),
        release_time: time(given.release_milliseconds, default.release_time),
        option_length: small(given.option_length, default.option_length),
        request_length: small(given.request_length, default.request_length),
        in_flight_requests: count(given.in_flight_requests, default.in_flight_requests),
        in_flight_per_connection: large(
            given.in_flight_per_connection,
            default.in_flight_per_connection,
        ),
        in_flight_total: large(given.in_flight_total, default.in_flight_total),
    };
    limits.check().map_err(|error| error.with_op(call.op))?;
    Ok(limits)
}

/// At how many addresses it listens.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_export_address_count(exported: Option<&vmx_export>) -> usize {
    exported.map_or(0, |export| export.shown.len())
}

/// An address that it listens at, counted from 0, as in the options; a port 0 is replaced by the
/// real one. NULL past the last.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_export_address(exported: Option<&vmx_export>, index: usize) -> *const c_char {
    shown(exported.and_then(|export| export.shown.get(index)))
}

/// Where it answers `/metrics` and `/status`; NULL if it does not.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_export_statistics_address(exported: Option<&vmx_export>) -> *const c_char {
    shown(exported.and_then(|export| export.statistics.as_ref()))
}

/// The NBD URI of a volume at an address (counted from 0), as clients take it; `volume` may be
/// NULL, for the default export. `*uri` is the caller's, for `vmx_string_free`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmx_get_export_uri(
    exported: Option<&vmx_export>,
    index: usize,
    volume: *const c_char,
    uri: Option<&mut MaybeUninit<*mut c_char>>,
    err: Option<&mut MaybeUninit<*mut vmx_error>>,
) -> vmx_status {
    guard::call("export_uri", err, |call| {
        let export = call.given(exported, "exported")?;
        call.at_home(export.pool.threads())?;
        let address = export.address(call, index)?;
        let volume = match volume.is_null() {
            true => None,
            // SAFETY: texts end with NUL.
            false => Some(unsafe { call.name(volume, "volume")? }),
        };
        let out = call.out(uri, "uri")?;
        out.write(given_away(&text(address.uri(volume.as_ref(), export.tls))));
        Ok(())
    })
}

/// How a host reaches a served volume at an address (counted from 0), as of a volume that is attached:
/// for what hypervisors are given. It attaches nothing; `holder` is whom it is meant for.
/// `VMX_NOT_FOUND` for a volume that is not served.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn vmx_get_export_attachment(
    exported: Option<&vmx_export>,
    index: usize,
    volume: *const c_char,
    holder: *const c_char,
    attachment: Option<&mut MaybeUninit<*mut vmx_attachment>>,
    err: Option<&mut MaybeUninit<*mut vmx_error>>,
) -> vmx_status {
    guard::call("export_attachment", err, |call| {
        let export = call.given(exported, "exported")?;
        // SAFETY: texts end with NUL.
        let (name, holder) = unsafe {
            let name = call.name(volume, "volume")?;
            (name, attach::holder(call, holder)?)
        };
        let out = call.out(attachment, "attachment")?;
        call.may_wait(export.pool.threads())?;
        export.address(call, index)?;
        let server = export.lock(call)?;
        let stopped = || call.wrong("exported", "it was stopped");
        let work = server
            .as_ref()
            .ok_or_else(stopped)?
            .attachment(index, &name, holder);
        drop(server);
        let made = export.pool.threads().block_on(call.op, work)??;
        let made = vmx_attachment::new(made);
        out.write(Box::into_raw(Box::new(made)));
        Ok(())
    })
}

/// What an export does now, as the JSON that `/status` has. `*json` is the caller's, for
/// `vmx_string_free`. `VMX_INVALID_INPUT` once it was stopped.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_get_export_status(
    exported: Option<&vmx_export>,
    json: Option<&mut MaybeUninit<*mut c_char>>,
    err: Option<&mut MaybeUninit<*mut vmx_error>>,
) -> vmx_status {
    guard::call("export_status", err, |call| {
        let server = call.given(exported, "exported")?.lock(call)?;
        let out = call.out(json, "json")?;
        let stopped = || call.wrong("exported", "it was stopped");
        let status = server.as_ref().ok_or_else(stopped)?.status();
        let status = serde_json::to_string(&status)
            .map_err(|error| Error::new(ErrorKind::Internal, call.op).with_source(error))?;
        out.write(given_away(&text(status)));
        Ok(())
    })
}

/// Ends an export in order: nobody is let in any more, requests under way are answered, and every
/// volume is flushed and closed. What was answered is then durable. `VMX_TIMED_OUT` if clients or
/// the pool took longer and were cut off: it has ended then too. Stopping again is fine.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_stop_export(
    exported: Option<&vmx_export>,
    within_milliseconds: u64,
    err: Option<&mut MaybeUninit<*mut vmx_error>>,
) -> vmx_status {
    guard::call("stop", err, |call| {
        let export = call.given(exported, "exported")?;
        // A day is for ever, and does not overflow when it is added to a time.
        let within = Duration::from_millis(within_milliseconds.min(86_400_000));
        call.may_wait(export.pool.threads())?;
        let Some(server) = export.lock(call)?.take() else {
            return Ok(());
        };
        export
            .pool
            .threads()
            .block_on(call.op, server.stop(within))?
    })
}

/// Frees an export. NULL is fine. One that was not stopped ends at once: clients are cut off.
#[unsafe(no_mangle)]
pub extern "C" fn vmx_export_free(exported: Option<Box<vmx_export>>) {
    free(exported);
}
