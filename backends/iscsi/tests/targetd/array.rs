//! What targetd does with its calls, as far as its API.md tells and as it was seen to answer.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::tgt::Tgt;

pub const POOL: &str = "vg/pool";
pub const EXTENT: u64 = 4 << 20;

/// An error of JSON-RPC.
pub type Refused = (i64, String);

#[derive(Debug, Clone, PartialEq)]
pub struct Export {
    pub initiator: String,
    pub lun: u64,
    pub volume: String,
}

/// The array.
#[derive(Debug)]
pub struct Array {
    pub pool: String,
    /// LVM's is text, that of ZFS a number.
    pub pool_uuid: Value,
    pub size: u64,
    pub free: u64,
    /// Sizes and UUIDs by name.
    pub volumes: BTreeMap<String, (u64, String)>,
    pub exports: Vec<Export>,
    /// Of volumes that are not in the pool: initiator and number.
    pub elsewhere: Vec<(String, u64)>,
    /// What initiators have to show, as `initiator_set_auth` was told.
    pub auth: BTreeMap<String, Value>,
    /// LVM activates what `vol_copy` makes.
    pub activates: bool,
    /// The thin pool fails, and a plain volume is made instead.
    pub falls_back: bool,
    inactive: BTreeSet<String>,
    pub tgt: Option<Tgt>,
}

impl Array {
    pub fn new(tgt: Option<Tgt>) -> Array {
        Array {
            pool: POOL.into(),
            pool_uuid: json!("O72nLH-h3Zt-aWVe-03ny-be3S-7lBj-aWw5J2"),
            size: 1 << 40,
            free: 1 << 40,
            volumes: BTreeMap::new(),
            exports: Vec::new(),
            elsewhere: Vec::new(),
            auth: BTreeMap::new(),
            activates: true,
            falls_back: false,
            inactive: BTreeSet::new(),
            tgt,
        }
    }

    /// A volume that is there already.
    pub fn add(&mut self, name: &str, size: u64) {
        // As LVM's, but for two characters: tgt takes no longer serial numbers.
        let random: String = uuid::Uuid::new_v4().simple().to_string();
        let parts = [6, 4, 4, 4, 4, 4, 4].iter().scan(0, |at, length| {
            let part = &random[*at..*at + length];
            *at += length;
            Some(part.to_owned())
        });
        let uuid = parts.collect::<Vec<_>>().join("-");
        if let Some(tgt) = &self.tgt {
            tgt.make_volume(name, size);
        }
        self.volumes.insert(name.to_owned(), (size, uuid));
    }

    pub fn export(&mut self, initiator: &str, lun: u64, volume: &str) {
        self.exports.push(Export {
            initiator: initiator.into(),
            lun,
            volume: volume.into(),
        });
    }

    pub fn call(&mut self, method: &str, params: &Value) -> Result<Value, Refused> {
        let text = |key: &str| params[key].as_str().map(str::to_owned);
        let text = |key: &str| text(key).ok_or_else(wrong_arguments);
        let number = |key: &str| params[key].as_u64().ok_or_else(wrong_arguments);
        if let Some(pool) = params["pool"].as_str().filter(|pool| *pool != self.pool) {
            return Err((-110, format!("Invalid pool ({pool})")));
        }
        match method {
            "pool_list" => Ok(json!([
                {"name": "/mnt/btrfs", "size": 5, "free_size": 3, "type": "fs"},
                {"name": self.pool, "size": self.size, "free_size": self.free, "type": "block",
                 "uuid": self.pool_uuid},
            ])),
            "vol_list" => Ok(self.list()),
            "vol_create" => self.create(&text("name")?, number("size")?),
            "vol_destroy" => self.destroy(&text("name")?),
            "vol_copy" => self.copy(&text("vol_orig")?, &text("vol_new")?),
            "vol_resize" => self.resize(&text("name")?, number("size")?),
            "export_list" => Ok(self.list_exports()),
            "export_create" => {
                self.export_create(&text("vol")?, &text("initiator_wwn")?, number("lun")?)
            }
            "export_destroy" => self.export_destroy(&text("vol")?, &text("initiator_wwn")?),
            "initiator_set_auth" => {
                let initiator = text("initiator_wwn")?;
                if let Some(tgt) = &mut self.tgt {
                    tgt.authenticate(params);
                }
                self.auth.insert(initiator, params.clone());
                Ok(Value::Null)
            }
            _ => Err((-32601, format!("method {method} not found"))),
        }
    }

    fn list(&self) -> Value {
        let volumes = self.volumes.iter();
        volumes
            .map(|(name, (size, uuid))| json!({"name": name, "size": size, "uuid": uuid}))
            .collect()
    }

    fn list_exports(&self) -> Value {
        let elsewhere = self.elsewhere.iter().map(|(initiator, lun)| {
            json!({"initiator_wwn": initiator, "lun": lun, "vol_name": "other", "vol_size": 512,
                   "pool": "other/pool", "vol_uuid": "UYf2U3-DVwl-eTXz-nHfD-IGA3-o1Nb-xxq0Sm"})
        });
        let own = self.exports.iter().map(|e| {
            let gone = (0, format!("gone-{}", e.volume));
            let (size, uuid) = self.volumes.get(&e.volume).unwrap_or(&gone);
            json!({"initiator_wwn": e.initiator, "lun": e.lun, "vol_name": e.volume,
                   "vol_size": size, "pool": self.pool, "vol_uuid": uuid})
        });
        own.chain(elsewhere).collect()
    }

    fn create(&mut self, name: &str, size: u64) -> Result<Value, Refused> {
        if self.volumes.contains_key(name) {
            return Err((-50, "Volume with that name exists".into()));
        }
        if size == 0 {
            return Err((
                -1,
                "LVMError: Process reported exit code 3: --size may not be zero".into(),
            ));
        }
        if !self.falls_back {
            self.add(name, size.next_multiple_of(EXTENT));
        }
        Ok(Value::Null)
    }

    fn known(&self, name: &str) -> Result<(u64, String), Refused> {
        let missing = || (-103, format!("Volume {name} not found in pool {POOL}"));
        self.volumes.get(name).cloned().ok_or_else(missing)
    }

    fn destroy(&mut self, name: &str) -> Result<Value, Refused> {
        self.known(name)?;
        if self.exports.iter().any(|export| export.volume == name) {
            return Err((
                -303,
                format!("Volume '{name}' cannot be removed while exported"),
            ));
        }
        self.volumes.remove(name);
        if let Some(tgt) = &self.tgt {
            tgt.delete_volume(name);
        }
        Ok(Value::Null)
    }

    fn copy(&mut self, from: &str, to: &str) -> Result<Value, Refused> {
        let (size, _) = self.known(from)?;
        if self.volumes.contains_key(to) {
            return Err((-50, "Volume with that name exists".into()));
        }
        self.add(to, size);
        if let Some(tgt) = &self.tgt {
            tgt.copy_volume(from, to);
        }
        if !self.activates {
            self.inactive.insert(to.to_owned());
        }
        Ok(Value::Null)
    }

    fn resize(&mut self, name: &str, size: u64) -> Result<Value, Refused> {
        let (before, uuid) = self.known(name)?;
        if before >= size {
            return Err((
                -32602,
                format!("Size {size} need a larger than size in original volume"),
            ));
        }
        let size = size.next_multiple_of(EXTENT);
        self.volumes.insert(name.into(), (size, uuid));
        if let Some(tgt) = &self.tgt {
            tgt.resize_volume(name, size);
        }
        Ok(Value::Null)
    }

    fn export_create(&mut self, volume: &str, initiator: &str, lun: u64) -> Result<Value, Refused> {
        let rts = |message: &str| Err((-1, format!("RTSLibError: {message}")));
        let Ok((_, uuid)) = self.known(volume) else {
            return Err((
                -1,
                format!("LVMError: Failed to find logical volume \"vg/{volume}\""),
            ));
        };
        if lun > 255 {
            return rts("Mapped LUN must be 0 to 255");
        }
        if self.inactive.contains(volume) {
            return rts(&format!(
                "Device /dev/vg/{volume} is not a TYPE_DISK block device"
            ));
        }
        let taken = self
            .exports
            .iter()
            .find(|e| e.initiator == initiator && e.lun == lun);
        match taken {
            Some(there) if there.volume == volume => return Ok(Value::Null),
            Some(_) => return rts("This MappedLUN already exists in configFS"),
            None => {}
        }
        let elsewhere = (initiator.to_owned(), lun);
        if self.elsewhere.contains(&elsewhere) {
            return rts("This MappedLUN already exists in configFS");
        }
        self.export(initiator, lun, volume);
        if let Some(tgt) = &mut self.tgt {
            tgt.export(volume, initiator, lun, &uuid);
        }
        Ok(Value::Null)
    }

    fn export_destroy(&mut self, volume: &str, initiator: &str) -> Result<Value, Refused> {
        let found = |e: &Export| e.volume == volume && e.initiator == initiator;
        let Some(at) = self.exports.iter().position(found) else {
            // What targetd really does then: it leaves an initiator behind. No call may be like
            // that.
            return Err((
                -151,
                format!("Volume '{volume}' not found in {initiator} exports"),
            ));
        };
        let export = self.exports.remove(at);
        let more = self.exports.iter().any(|e| e.initiator == initiator);
        if !more {
            self.auth.remove(initiator);
        }
        if let Some(tgt) = &mut self.tgt {
            tgt.unexport(initiator, export.lun, more);
        }
        Ok(Value::Null)
    }
}

fn wrong_arguments() -> Refused {
    (-32602, "invalid method arguments(s)".into())
}
