//! Clause 11: what a pool can't do is said beforehand and refused, with nothing changed.

use super::retried::exclusive;
use super::*;
use volmux::{
    Access, ByteRange, ByteSize, CreateOptions, Error, ErrorKind, ExtentQuery, OpenOptions,
    ResizeOptions, Sharing, Support,
};

pub(crate) async fn c11_capabilities_are_those_expected(ctx: &Ctx<'_>) {
    let capabilities = ctx.pool().capabilities();
    for ((name, found), (_, expected)) in capabilities.iter().zip(ctx.expect.capabilities.iter()) {
        assert_eq!(found, expected, "{name}");
    }
    ctx.filled("a", MIB, 1).await;
    assert_eq!(ctx.pool().capabilities(), capabilities, "they stay");
    let other = ctx.other_handle().await.capabilities();
    assert_eq!(other, capabilities, "they are the same everywhere");
}

pub(crate) async fn c11_what_is_not_supported_is_refused(ctx: &Ctx<'_>) {
    for (capability, support) in ctx.expect.capabilities.iter() {
        if support == Support::None {
            assert_unsupported(ctx, capability).await;
        } else {
            assert_supported(ctx, capability).await;
        }
    }
}

/// One call that needs `capability`, on a volume of its own.
async fn attempt(ctx: &Ctx<'_>, capability: &str) -> (&'static str, Result<(), Error>) {
    let (pool, name, new) = (ctx.pool(), n("unsupported"), n("new"));
    let size = ByteSize::new(MIB);
    match capability {
        "snapshot" => {
            let result = pool.snapshot_volume(&name, &new, Default::default()).await;
            ("snapshot_volume", result.map(drop))
        }
        "clone" => {
            let result = pool.clone_volume(&name, &new, Default::default()).await;
            ("clone_volume", result.map(drop))
        }
        "revert" => {
            if ctx.expect.capabilities.snapshot != Support::None {
                ctx.snapshot("unsupported", "the-snapshot").await;
            }
            let snapshot = n("the-snapshot");
            let result = pool
                .revert_volume(&name, &snapshot, Default::default())
                .await;
            ("revert_volume", result.map(drop))
        }
        "thin" => {
            let result = pool.create_volume(&new, CreateOptions::thin(size)).await;
            ("create_volume", result.map(drop))
        }
        "thick" => {
            let result = pool.create_volume(&new, CreateOptions::thick(size)).await;
            ("create_volume", result.map(drop))
        }
        "shrink" => {
            let options = ResizeOptions {
                size: ByteSize::new(MIB / 2),
                allow_shrink: true,
            };
            let result = pool.resize_volume(&name, options).await;
            ("resize_volume", result.map(drop))
        }
        "discard" => {
            let device = ctx.writer("unsupported").await;
            ("discard", device.discard(ByteRange::new(0, MIB)).await)
        }
        "changed_extents" => {
            let query = ExtentQuery::changed_since(name.clone());
            let result = pool.extents(&name, query).await;
            ("extents", result.map(drop))
        }
        "attach" => {
            let options = exclusive("iqn.2026-11.org.volmux:host-1");
            let holder = options.holder.clone();
            let result = pool.attach_volume(&name, options).await;
            if result.is_ok() {
                pool.detach_volume(&name, &holder).await.expect("detach");
            }
            ("attach_volume", result.map(drop))
        }
        "adopt" => {
            let what = ctx.place_foreign(&pattern(1, MIB as usize)).await;
            let result = pool.adopt_volume(&what, &new).await;
            ("adopt_volume", result.map(drop))
        }
        "shared_writers" => {
            let options = OpenOptions {
                access: Access::ReadWrite,
                sharing: Sharing::Shared,
                take_over: false,
            };
            let result = pool.open_volume(&name, options).await;
            ("open_volume", result.map(drop))
        }
        "fencing" => {
            let options = OpenOptions {
                take_over: true,
                ..OpenOptions::read_write()
            };
            let result = pool.open_volume(&name, options).await;
            ("open_volume", result.map(drop))
        }
        other => panic!("no call is known that needs {other}"),
    }
}

/// Asserts that a call that needs `capability` returns `Unsupported` and changes nothing.
pub(crate) async fn assert_unsupported(ctx: &Ctx<'_>, capability: &str) {
    ctx.filled("unsupported", MIB, 1).await;
    let before = ctx.state().await;
    let (op, result) = attempt(ctx, capability).await;
    let volume = match op {
        "snapshot_volume" | "clone_volume" | "create_volume" | "adopt_volume" => "new",
        _ => "unsupported",
    };
    ctx.refused(result, ErrorKind::Unsupported, op, volume, &before)
        .await;
    ctx.delete("unsupported").await;
}

async fn assert_supported(ctx: &Ctx<'_>, capability: &str) {
    ctx.filled("unsupported", MIB, 1).await;
    let (op, result) = attempt(ctx, capability).await;
    result.unwrap_or_else(|error| panic!("{capability} is expected of {op}: {error:?}"));
    for name in ctx.names().await {
        ctx.delete(&name).await;
    }
}
