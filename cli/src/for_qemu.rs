//! A volume as qemu-img can be given it: over NBD, whatever pool it is in.

use std::ffi::OsString;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Duration;

use volmux::{Access, Error, Pool, Result, Sharing, VolumeName};
use volmux_gateway::{ExportOptions, Exports, Limits, Listen, ServeOptions, serve};

use crate::qemu_img;

/// How long the last flush may take.
const STOP_TIME: Duration = Duration::from_secs(600);

/// Serves volume `name` to this user alone, runs `work` with an argument for qemu-img that stands
/// for it, and flushes and closes the volume whatever comes of it.
///
/// # Errors
/// Those of opening, of `work`, and of the last flush.
pub async fn with_volume<T>(
    pool: &Arc<dyn Pool>,
    name: &VolumeName,
    access: Access,
    work: impl AsyncFnOnce(OsString) -> Result<T>,
) -> Result<T> {
    let directory = tempfile::Builder::new()
        .prefix("volmux-")
        .permissions(Permissions::from_mode(0o700))
        .tempdir()
        .map_err(|e| Error::from_io("make_socket", e))?;
    let socket = directory.path().join("nbd");
    let node = qemu_img::nbd_node(&socket, name)?;
    let export = ExportOptions {
        volume: name.clone(),
        access,
        sharing: Sharing::Exclusive,
    };
    let options = ServeOptions {
        exports: Exports::Volumes(vec![export]),
        listen: vec![Listen::Unix(socket)],
        tls: None,
        statistics: None,
        limits: Limits::default(),
    };
    let server = serve(pool.clone(), options).await?;
    let result = work(node).await;
    match (result, server.stop(STOP_TIME).await) {
        (Ok(done), Ok(())) => Ok(done),
        (Ok(_), Err(error)) => Err(error),
        (Err(error), Ok(())) => Err(error),
        (Err(error), Err(left)) => Err(error.with("closing", left)),
    }
}
