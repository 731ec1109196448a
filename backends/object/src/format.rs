use std::sync::Arc;
use bytes::Bytes;
use volmux_core::Result;
use crate::config::ObjectConfig;
use crate::ids::Ids;
use crate::seal::Seal;
use crate::store::Store;
pub(crate) struct Format { pub(crate) seal: Seal }
pub(crate) async fn read(op: &'static str, store: &Store, _c: &ObjectConfig) -> Result<Option<Format>> {
    let Some(b) = store.get(op, "pool.json").await? else { return Ok(None) };
    let id: uuid::Uuid = String::from_utf8_lossy(&b).parse().unwrap_or_default();
    Ok(Some(Format { seal: Seal::plain(id) }))
}
pub(crate) async fn create(op: &'static str, store: &Store, c: &ObjectConfig, ids: &Arc<Ids>) -> Result<Format> {
    store.put_new(op, "pool.json", Bytes::from(ids.uuid().to_string())).await?;
    Ok(read(op, store, c).await?.unwrap_or(Format { seal: Seal::plain(uuid::Uuid::nil()) }))
}
