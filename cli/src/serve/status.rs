//! `volmux export --status`

use std::time::Duration;

use volmux::{Access, ByteSize, Result};
use volmux_gateway::{ExportStatus, RequestStatus, Status, status_of};

use super::listen::address;
use crate::app::App;

/// Shows how a running server is.
///
/// # Errors
/// Those of the address and of asking.
pub async fn show(app: &App, at: &str) -> Result<u8> {
    let status = app
        .guard("gateway_status", status_of(&address(at)?))
        .await?;
    app.out.show(&status, || text(&status))?;
    Ok(0)
}

fn text(status: &Status) -> String {
    let seconds = Duration::from_secs(status.uptime_seconds as u64);
    let mut lines = vec![
        format!(
            "up {} since {}",
            humantime::format_duration(seconds),
            status.started
        ),
        format!(
            "listening on {}{}",
            status.addresses.join(", "),
            if status.tls { " with TLS" } else { "" }
        ),
        format!(
            "connections {} of {}; {} so far, {} turned away, {} handshakes failed",
            status.connections,
            status.limits.connections,
            status.connections_total,
            status.turned_away_total,
            status.handshakes_failed_total
        ),
        format!(
            "requests under way {} of {}",
            ByteSize::new(status.in_flight_bytes),
            ByteSize::new(status.limits.in_flight_total)
        ),
        String::new(),
        format!(
            "{:<32} {:<10} {:>10} {:>7} {:>7} {:>10} {:>10} {:>10} {:>7} CLIENTS",
            "EXPORT", "ACCESS", "SIZE", "CONNS", "FLIGHT", "REQUESTS", "READ", "WRITTEN", "ERRORS"
        ),
    ];
    lines.extend(status.exports.iter().map(line));
    lines.join("\n")
}

fn line(export: &ExportStatus) -> String {
    let sum = |count: fn(&RequestStatus) -> u64| export.requests.values().map(count).sum::<u64>();
    let bytes = |op: &str| {
        let counted = export.requests.get(op).copied().unwrap_or_default();
        ByteSize::new(counted.bytes)
    };
    let size = export
        .size
        .map_or_else(|| "-".into(), |size| ByteSize::new(size).to_string());
    let clients = match export.clients.is_empty() {
        true => "-".into(),
        false => export.clients.join(", "),
    };
    format!(
        "{:<32} {:<10} {size:>10} {:>7} {:>7} {:>10} {:>10} {:>10} {:>7} {clients}",
        export.name,
        match export.access {
            Access::ReadOnly => "read-only",
            Access::ReadWrite => "read-write",
        },
        export.connections,
        export.in_flight,
        sum(|r| r.requests),
        bytes("read"),
        bytes("write"),
        sum(|r| r.errors),
    )
}
