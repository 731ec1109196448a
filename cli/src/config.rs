//! The configuration file, and from a pool's name to its URL.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use volmux::{Error, ErrorKind, PoolUrl, Result};

const OP: &str = "read_config";

/// The whole file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    #[serde(default)]
    pools: BTreeMap<String, PoolEntry>,
}

/// One `[pools.NAME]`.
#[derive(Debug, Deserialize)]
struct PoolEntry {
    url: String,
    #[serde(flatten)]
    options: BTreeMap<String, toml::Value>,
}

/// A configuration and where it comes from.
#[derive(Debug, Default)]
pub struct LoadedConfig {
    config: Config,
    path: Option<PathBuf>,
}

/// Whether `text` is a URL and not a pool's name.
fn has_scheme(text: &str) -> bool {
    text.split_once(':').is_some_and(|(scheme, _)| {
        scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
    })
}

/// The URL that `pool` stands for. The configuration file is only read for a name.
///
/// # Errors
/// `InvalidConfig`; `NotFound` for a name that is not configured, with those that are.
pub fn resolve(pool: &str, explicit: Option<&Path>) -> Result<PoolUrl> {
    if has_scheme(pool) {
        return pool.parse();
    }
    load(explicit)?.pool_url(pool)
}

/// Reads the file that was named, or else the first of the usual ones that exists.
fn load(explicit: Option<&Path>) -> Result<LoadedConfig> {
    if let Some(path) = explicit {
        return LoadedConfig::read(path);
    }
    let home = std::env::home_dir().map(|home| home.join(".config/volmux/config.toml"));
    let usual = home
        .into_iter()
        .chain([PathBuf::from("/etc/volmux/config.toml")]);
    for path in usual {
        match LoadedConfig::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            read => return read,
        }
    }
    Ok(LoadedConfig::default())
}

impl LoadedConfig {
    fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .map_err(|e| Error::from_io(OP, e).with("path", path.display()))?;
        Ok(LoadedConfig {
            config: Config::parse(&text).map_err(|e| e.with("path", path.display()))?,
            path: Some(path.to_owned()),
        })
    }

    fn pool_url(&self, name: &str) -> Result<PoolUrl> {
        let here = |error: Error| match &self.path {
            Some(path) => error.with("config", path.display()),
            None => error,
        };
        let Some(entry) = self.config.pools.get(name) else {
            let error = Error::new(ErrorKind::NotFound, "open_pool").with("pool", name);
            return Err(here(error.reason(self.unknown()).help(hint(name))));
        };
        entry.url(name).map_err(|e| here(e.with("pool", name)))
    }

    fn unknown(&self) -> String {
        let known: Vec<&str> = self.config.pools.keys().map(String::as_str).collect();
        match (&self.path, known.is_empty()) {
            (None, _) => "there is no configuration file that could name it".into(),
            (Some(_), true) => "the configuration file names no pool".into(),
            (Some(_), false) => format!("the configured pools are: {}", known.join(", ")),
        }
    }
}

fn hint(name: &str) -> String {
    if name.contains('/') {
        let path = std::path::absolute(name).unwrap_or_else(|_| PathBuf::from(name));
        format!("for a directory write dir://{}", path.display())
    } else {
        format!("give a URL such as dir:///srv/volumes, or add a section [pools.{name}] with a url")
    }
}

impl Config {
    fn parse(text: &str) -> Result<Self> {
        toml::from_str(text).map_err(|error| {
            // toml's own display shows the line of the file, which may hold what is not for logs.
            let mut wrong = Error::new(ErrorKind::InvalidConfig, OP).reason(error.message());
            if let Some(span) = error.span() {
                let line = text[..span.start.min(text.len())].matches('\n').count() + 1;
                wrong = wrong.with("line", line);
            }
            wrong.help(
                "write [pools.NAME] with url = \"dir:///srv/volumes\" and that pool's options",
            )
        })
    }
}

impl PoolEntry {
    fn url(&self, name: &str) -> Result<PoolUrl> {
        let mut url: PoolUrl = self.url.parse()?;
        for (key, value) in &self.options {
            let value = match value {
                toml::Value::String(text) => text.clone(),
                toml::Value::Integer(number) => number.to_string(),
                toml::Value::Float(number) => number.to_string(),
                toml::Value::Boolean(flag) => flag.to_string(),
                other => {
                    return Err(Error::new(ErrorKind::InvalidConfig, OP)
                        .with("key", format!("pools.{name}.{key}"))
                        .reason(format!(
                            "an option is a text, number or boolean, not a {}",
                            other.type_str()
                        )));
                }
            };
            url.set_option(key, value)?;
        }
        Ok(url)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loaded(text: &str) -> LoadedConfig {
        LoadedConfig {
            config: Config::parse(text).expect("valid"),
            path: Some("/x/config.toml".into()),
        }
    }

    #[test]
    fn urls_are_told_from_names() {
        for url in ["dir:///srv", "memory:", "file+object:///x", "s3://b/p"] {
            assert!(has_scheme(url), "{url}");
        }
        for name in ["fast", "", ":", "/srv/x", "./a:b", "9p:x", "a b:c"] {
            assert!(!has_scheme(name), "{name}");
        }
    }

    #[test]
    fn options_are_merged_into_the_url() {
        let config = loaded(
            "[pools.fast]\nurl = \"dir:///srv/fast?init=true\"\nrefuse_percent = 90\n\
             warn_percent = 70.5\nread_only = true\n",
        );
        let url = config.pool_url("fast").expect("url");
        let options: BTreeMap<String, String> = url.options().expect("options");
        let expect = [
            ("init", "true"),
            ("read_only", "true"),
            ("refuse_percent", "90"),
            ("warn_percent", "70.5"),
        ];
        assert_eq!(
            options,
            expect
                .map(|(k, v)| (k.into(), v.into()))
                .into_iter()
                .collect()
        );
    }

    #[test]
    fn an_unknown_pool_lists_the_known_ones() {
        let config = loaded("[pools.b]\nurl = \"dir:///b\"\n[pools.a]\nurl = \"dir:///a\"\n");
        let error = config.pool_url("c").expect_err("unknown");
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert_eq!(error.get("reason"), Some("the configured pools are: a, b"));
        let error = config.pool_url("/srv/x").expect_err("a path");
        assert_eq!(
            error.get("help"),
            Some("for a directory write dir:///srv/x")
        );
    }

    #[test]
    fn wrong_files_are_refused() {
        for (text, part) in [
            ("pool = 1", "unknown field"),
            ("[pools.a]\nurk = \"dir:///a\"", "missing field"),
            ("[pools.a]\nurl = 7", "invalid type"),
            ("[pools", ""),
        ] {
            let error = Config::parse(text).expect_err(text);
            assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{text}");
            let reason = error.get("reason").expect("reason");
            assert!(reason.contains(part), "{reason}");
            assert!(error.get("line").is_some(), "{text}");
        }
    }

    #[test]
    fn wrong_entries_are_refused() {
        for text in [
            "[pools.a]\nurl = \"dir:///a?x=1\"\nx = 2",
            "[pools.a]\nurl = \"dir:///a\"\nx = [1]",
            "[pools.a]\nurl = \"dir:///a\"\n[pools.a.sub]\nx = 1",
            "[pools.a]\nurl = \"s3://user:canary-secret@host/\"",
            "[pools.a]\nurl = \"nonsense\"",
        ] {
            let error = loaded(text).pool_url("a").expect_err(text);
            assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{text}");
            assert!(!format!("{error:?}").contains("canary-secret"));
        }
    }
}
