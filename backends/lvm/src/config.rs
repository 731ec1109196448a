//! Configuration of an LVM pool.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use volmux_core::{PoolUrl, Result, ThinPolicy};

/// Configuration of an LVM pool. As a URL: `lvm://group/pool?refuse_percent=90` for thin volumes in
/// a thin pool, `lvm://group` for thick ones in a volume group.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct LvmConfig {
    /// The volume group.
    #[serde(default)]
    pub group: String,
    /// The thin pool in it. Without one, volumes are thick.
    #[serde(default)]
    pub pool: Option<String>,
    /// Refuse everything that would change the pool.
    #[serde(default)]
    pub read_only: bool,
    /// All volumes are one tenant's: a thin pool that hands out chunks without zeroing them first
    /// (`lvcreate -Zn`) is accepted. What another volume held can then be read.
    #[serde(default)]
    pub single_tenant: bool,
    /// From this occupancy on, in percent, of data or metadata, the thin pool is extended before
    /// something is made in it, out of the group's free space.
    pub extend_at: Option<f64>,
    /// By so many percent of its size; 20 if not said.
    pub extend_by: Option<f64>,
    /// Where `lvm` is; `/usr/sbin` if not said.
    pub programs: Option<PathBuf>,
    /// How long one of its commands may take, in seconds; 120 if not said.
    pub timeout: Option<u64>,
    /// See [`ThinPolicy::overcommit_limit`].
    pub overcommit_limit: Option<f64>,
    /// See [`ThinPolicy::warn_percent`].
    pub warn_percent: Option<f64>,
    /// See [`ThinPolicy::refuse_percent`].
    pub refuse_percent: Option<f64>,
}

/// When and by how much a thin pool is extended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ExtendPolicy {
    /// From this occupancy on, in percent.
    pub at: f64,
    /// By so many percent of its size.
    pub by: f64,
}

impl LvmConfig {
    /// The thin pool `pool` of `group`, with every setting at its default.
    pub fn thin(group: impl Into<String>, pool: impl Into<String>) -> Self {
        LvmConfig {
            pool: Some(pool.into()),
            ..LvmConfig::thick(group)
        }
    }

    /// The group `group`, with every setting at its default.
    pub fn thick(group: impl Into<String>) -> Self {
        LvmConfig {
            group: group.into(),
            pool: None,
            read_only: false,
            single_tenant: false,
            extend_at: None,
            extend_by: None,
            programs: None,
            timeout: None,
            overcommit_limit: None,
            warn_percent: None,
            refuse_percent: None,
        }
    }

    /// From an `lvm:` URL.
    ///
    /// # Errors
    /// `InvalidConfig` for a wrong name, a group or pool given as an option, or an unknown option.
    pub fn from_url(url: &PoolUrl) -> Result<Self> {
        const HELP: &str = "write lvm://group/pool, or lvm://group for thick volumes";
        let mut config: LvmConfig = url.options()?;
        if !config.group.is_empty() || config.pool.is_some() {
            return Err(url
                .wrong("group and pool belong before the ?, not into options")
                .help(HELP));
        }
        let Some(group) = url.host().filter(|_| url.port().is_none()) else {
            return Err(url.wrong("the volume group is missing").help(HELP));
        };
        group.clone_into(&mut config.group);
        let path = url.path().trim_start_matches('/');
        let path = path.strip_suffix('/').unwrap_or(path);
        config.pool = Some(path.to_owned()).filter(|path| !path.is_empty());
        config
            .check()
            .map_err(|reason| url.wrong(reason).help(HELP))?;
        Ok(config)
    }

    /// What is wrong with the settings, in a sentence.
    pub(crate) fn check(&self) -> Result<(), String> {
        check_name("group", &self.group)?;
        if let Some(pool) = &self.pool {
            check_name("thin pool", pool)?;
        }
        let marks = [
            ("extend_at", self.extend_at, 1.0, 100.0),
            ("extend_by", self.extend_by, 1.0, 1000.0),
        ];
        for (key, value, least, most) in marks {
            if value.is_some_and(|value| !(least..=most).contains(&value)) {
                return Err(format!("{key} is a percentage from {least} to {most}"));
            }
        }
        if self.pool.is_none() && (self.extend_at.is_some() || self.extend_by.is_some()) {
            return Err("only a thin pool can be extended".into());
        }
        if self.extend_by.is_some() && self.extend_at.is_none() {
            return Err("extend_by needs extend_at".into());
        }
        if self.timeout == Some(0) {
            return Err("no command is done in 0 seconds: timeout must be 1 or more".into());
        }
        Ok(())
    }

    /// When the thin pool is extended.
    pub(crate) fn extend(&self) -> Option<ExtendPolicy> {
        let by = self.extend_by.unwrap_or(20.0);
        self.extend_at.map(|at| ExtendPolicy { at, by })
    }

    /// The thin policy.
    ///
    /// # Errors
    /// `InvalidConfig` for marks out of range.
    pub fn policy(&self) -> Result<ThinPolicy> {
        ThinPolicy::from_settings(
            self.overcommit_limit,
            self.warn_percent,
            self.refuse_percent,
        )
    }
}

/// As lvm2 has it (`man lvm`, "Valid names").
fn check_name(what: &str, name: &str) -> Result<(), String> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"_.+-".contains(&b);
    if name.is_empty() || name.len() > 127 {
        return Err(format!("the name of a {what} has 1 to 127 bytes"));
    }
    if name.starts_with('-') || [".", ".."].contains(&name) || !name.bytes().all(allowed) {
        return Err(format!("{name:?} is no name of a {what}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(url: &str) -> Result<LvmConfig> {
        LvmConfig::from_url(&url.parse().expect("a URL"))
    }

    #[test]
    fn urls_name_group_and_pool() {
        assert_eq!(
            config("lvm://vg/pool").expect("right"),
            LvmConfig::thin("vg", "pool")
        );
        assert_eq!(config("lvm://vg").expect("right"), LvmConfig::thick("vg"));
        assert_eq!(config("lvm://vg/").expect("right"), LvmConfig::thick("vg"));
        let set = config("lvm://vg/pool?extend_at=70&single_tenant=true&timeout=5").expect("right");
        assert_eq!(set.extend(), Some(ExtendPolicy { at: 70.0, by: 20.0 }));
        assert!(set.single_tenant);
    }

    #[test]
    fn upper_case_stays() {
        let url = "lvm://VG_1/Pool";
        assert_eq!(config(url).expect("right"), LvmConfig::thin("VG_1", "Pool"));
    }

    #[test]
    fn wrong_ones_are_refused() {
        for wrong in [
            "lvm:///pool",
            "lvm:vg",
            "lvm://vg:7/pool",
            "lvm://vg/pool/volume",
            "lvm://vg/-x",
            "lvm://vg?pool=x",
            "lvm://vg?extend_at=70",
            "lvm://vg/pool?extend_at=0",
            "lvm://vg/pool?extend_by=20",
            "lvm://vg/pool?timeout=0",
            "lvm://vg/pool?colour=red",
        ] {
            let error = config(wrong).expect_err(wrong);
            assert_eq!(
                error.kind(),
                volmux_core::ErrorKind::InvalidConfig,
                "{wrong}"
            );
        }
    }
}
