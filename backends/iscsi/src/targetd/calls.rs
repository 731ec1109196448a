//! The calls of targetd that a pool needs (its API.md, version 0.7), and what they return.

use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};
use serde_json::json;
use volmux_core::{ByteSize, Result};
use volmux_iscsi_initiator::Credentials;

use super::client::{CallError, Client, Repeat};
use super::names::Store;

/// A pool as `pool_list` tells it.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct ListedPool {
    pub name: String,
    size: u64,
    free_size: u64,
    #[serde(rename = "type")]
    pub kind: String,
    uuid: Option<Identity>,
}

/// A volume as `vol_list` tells it.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct ListedVolume {
    pub name: String,
    pub size: u64,
    #[serde(deserialize_with = "text")]
    pub uuid: String,
}

/// An export as `export_list` tells it.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct ListedExport {
    pub initiator_wwn: String,
    pub lun: u64,
    pub vol_name: String,
    #[serde(deserialize_with = "text")]
    pub vol_uuid: String,
    pub pool: String,
}

/// LVM's are text, those of ZFS are numbers, of pools at least.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
enum Identity {
    Number(u64),
    Text(String),
}

fn text<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    Ok(match Identity::deserialize(from)? {
        Identity::Number(number) => number.to_string(),
        Identity::Text(text) => text,
    })
}

impl ListedPool {
    /// What the array keeps volumes in. targetd does not say; but a pool of ZFS has a number as its
    /// UUID (`zfs.py`), and a thin pool of LVM is `group/pool` (`lvm.py`, `get_vg_lv`).
    pub fn store(&self) -> Store {
        match &self.uuid {
            Some(Identity::Number(_)) => Store::Zfs,
            _ if self.name.contains('/') => Store::LvmThin,
            _ => Store::LvmLinear,
        }
    }

    /// Its size and what of it is in use, in bytes.
    ///
    /// Of a thin pool targetd tells what is free by the occupancy of data and metadata together,
    /// which it takes for millionths of a percent (`lvm.py`, `block_pools`). libblockdev 2 and 3
    /// give it in whole percents: a full pool seems to be free but for a millionth. What is that
    /// small is put right. It can't be meant: the metadata alone takes more.
    pub fn size_and_used(&self) -> (ByteSize, ByteSize) {
        let used = self.size.saturating_sub(self.free_size);
        let hundred_millionths = u128::from(used) * 100_000_000 / u128::from(self.size.max(1));
        let used = match self.store() {
            Store::LvmThin if hundred_millionths <= 201 => {
                let percent = hundred_millionths.min(100);
                (u128::from(self.size) * percent / 100) as u64
            }
            _ => used,
        };
        (ByteSize::new(self.size), ByteSize::new(used))
    }
}

impl Client {
    pub async fn pool_list(&self) -> Result<Vec<ListedPool>, CallError> {
        self.call("pool_list", json!({}), Repeat::Always).await
    }

    pub async fn vol_list(&self, pool: &str) -> Result<Vec<ListedVolume>, CallError> {
        self.call("vol_list", json!({ "pool": pool }), Repeat::Always)
            .await
    }

    pub async fn vol_create(&self, pool: &str, name: &str, size: u64) -> Result<(), CallError> {
        let params = json!({ "pool": pool, "name": name, "size": size });
        self.change("vol_create", params).await
    }

    pub async fn vol_destroy(&self, pool: &str, name: &str) -> Result<(), CallError> {
        let params = json!({ "pool": pool, "name": name });
        self.change("vol_destroy", params).await
    }

    /// Without a size: with one it takes two steps, of which the first may be all that is done.
    pub async fn vol_copy(&self, pool: &str, from: &str, to: &str) -> Result<(), CallError> {
        let params = json!({ "pool": pool, "vol_orig": from, "vol_new": to });
        self.change("vol_copy", params).await
    }

    pub async fn vol_resize(&self, pool: &str, name: &str, size: u64) -> Result<(), CallError> {
        let params = json!({ "pool": pool, "name": name, "size": size });
        self.change("vol_resize", params).await
    }

    pub async fn export_list(&self) -> Result<Vec<ListedExport>, CallError> {
        self.call("export_list", json!({}), Repeat::Always).await
    }

    pub async fn export_create(
        &self,
        pool: &str,
        volume: &str,
        initiator: &str,
        lun: u64,
    ) -> Result<(), CallError> {
        let params = json!({ "pool": pool, "vol": volume, "initiator_wwn": initiator, "lun": lun });
        self.change("export_create", params).await
    }

    /// Only for an export that there is: if there is none it leaves an initiator behind, and a
    /// target.
    pub async fn export_destroy(
        &self,
        pool: &str,
        volume: &str,
        initiator: &str,
    ) -> Result<(), CallError> {
        let params = json!({ "pool": pool, "vol": volume, "initiator_wwn": initiator });
        self.change("export_destroy", params).await
    }

    /// Without `mutual` the target need not prove who it is.
    pub async fn initiator_set_auth(
        &self,
        initiator: &str,
        chap: &Credentials,
        mutual: Option<&Credentials>,
    ) -> Result<(), CallError> {
        let secret = |of: &Credentials| String::from_utf8_lossy(&of.secret).into_owned();
        let params = json!({
            "initiator_wwn": initiator,
            "in_user": chap.name,
            "in_pass": secret(chap),
            "out_user": mutual.map(|mutual| &mutual.name),
            "out_pass": mutual.map(secret),
        });
        // Twice is as good as once.
        let done = self.call("initiator_set_auth", params, Repeat::Always);
        done.await.map(|IgnoredAny| ())
    }

    async fn change(
        &self,
        method: &'static str,
        params: serde_json::Value,
    ) -> Result<(), CallError> {
        let done = self.call(method, params, Repeat::Unsent).await;
        done.map(|IgnoredAny| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(text: &str) -> ListedPool {
        serde_json::from_str(text).expect(text)
    }

    #[test]
    fn the_store_shows_in_name_and_identity() {
        let thin = r#"{"name":"vg/pool","size":104857600,"free_size":104857580,"type":"block",
                       "uuid":"O72nLH-h3Zt-aWVe-03ny-be3S-7lBj-aWw5J2"}"#;
        assert_eq!(pool(thin).store(), Store::LvmThin);
        assert_eq!(pool(&thin.replace("/pool", "")).store(), Store::LvmLinear);
        let zfs = r#"{"name":"tank/x","size":9,"free_size":4,"type":"block","uuid":123}"#;
        assert_eq!(pool(zfs).store(), Store::Zfs);
        assert_eq!(pool(zfs).size_and_used().1.bytes(), 5);
        let fs = r#"{"name":"/mnt","size":9,"free_size":4,"type":"fs"}"#;
        assert_eq!(pool(fs).kind, "fs");
    }

    #[test]
    fn occupancy_that_was_told_a_million_times_too_small_is_put_right() {
        let thin = |size: u64, free: u64| {
            let text =
                format!(r#"{{"name":"v/p","size":{size},"free_size":{free},"type":"block"}}"#);
            pool(&text).size_and_used().1.bytes()
        };
        // As measured: 8 % of the data and 11 % of the metadata.
        assert_eq!(thin(104_857_600, 104_857_580), 104_857_600 / 100 * 19);
        assert_eq!(thin(104_857_600, 104_857_600), 0);
        let tib = 1 << 40;
        // 97 % and 60 %.
        let told = tib - tib * 157 / 100_000_000 - 1;
        assert_eq!(thin(tib, told), tib);
        assert_eq!(thin(tib, tib / 2), tib / 2);
        assert_eq!(thin(tib, 0), tib);
        assert_eq!(thin(0, 0), 0);
        assert_eq!(thin(1 << 20, 2 << 20), 0);
        assert_eq!(thin(u64::MAX, 0), u64::MAX);
    }

    #[test]
    fn identities_may_be_numbers() {
        let volume: ListedVolume =
            serde_json::from_str(r#"{"name":"a","size":1,"uuid":17}"#).expect("right");
        assert_eq!(volume.uuid, "17");
        serde_json::from_str::<ListedVolume>(r#"{"name":"a","size":-1,"uuid":"x"}"#)
            .expect_err("a size");
    }
}
