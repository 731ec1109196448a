//! `volmux volume extents`

use futures::StreamExt;
use volmux::{ByteRange, ByteSize, ExtentKind, ExtentQuery, Result, VolumeName};

use crate::app::App;
use crate::output::{ExtentDoc, ExtentsDoc, ExtentsEndDoc};

const OP: &str = "extents";

/// Prints the extents as they come.
///
/// # Errors
/// Those of the pool.
pub async fn run(
    app: &App,
    name: &str,
    changed_since: Option<&str>,
    (offset, length): (Option<&str>, Option<&str>),
) -> Result<u8> {
    let name = VolumeName::new(name)?;
    let since = changed_since.map(VolumeName::new).transpose()?;
    let offset: ByteSize = offset.map(str::parse).transpose()?.unwrap_or_default();
    let length: Option<ByteSize> = length.map(str::parse).transpose()?;
    let pool = app.pool().await?;
    let size = app
        .guard(OP, pool.volume(&name))
        .await?
        .virtual_size
        .bytes();
    let offset = offset.bytes();
    let range = match length {
        Some(length) => ByteRange::new(offset, length.bytes()),
        None => ByteRange::from_to(offset, size),
    };
    range.check_within(size, OP)?;
    let query = ExtentQuery {
        kind: since
            .clone()
            .map_or(ExtentKind::Allocated, ExtentKind::ChangedSince),
        range: Some(range),
    };
    let mut stream = app.guard(OP, pool.extents(&name, query)).await?;
    let head = ExtentsDoc {
        schema: "volmux.extents.v1",
        volume: name.as_str(),
        changed_since: since.as_ref().map(VolumeName::as_str),
        offset: range.offset,
        length: range.length,
        grade: stream.grade().to_string(),
        granularity: stream.granularity(),
    };
    app.out
        .show(&head, || format!("{:>20} {:>20}", "OFFSET", "LENGTH"))?;
    let (mut count, mut bytes) = (0, 0);
    while let Some(extent) = app
        .guard(OP, async { stream.next().await.transpose() })
        .await?
    {
        if app.out.is_closed() {
            return Ok(0);
        }
        let document = ExtentDoc {
            schema: "volmux.extent.v1",
            offset: extent.offset,
            length: extent.length,
        };
        app.out.show(&document, || {
            format!("{:>20} {:>20}", extent.offset, extent.length)
        })?;
        count += 1;
        bytes += extent.length;
    }
    let end = ExtentsEndDoc {
        schema: "volmux.extents_end.v1",
        count,
        bytes,
    };
    app.out.show(&end, || {
        format!(
            "{count} extents, {} ({bytes} bytes), {}, in blocks of {}",
            ByteSize::new(bytes),
            head.grade,
            ByteSize::new(head.granularity)
        )
    })?;
    Ok(0)
}
