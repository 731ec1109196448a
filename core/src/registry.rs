//! From a URL or a configuration to an open pool.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use async_trait::async_trait;
use percent_encoding::percent_decode_str;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{Error, ErrorKind, Pool, Result};

const OP: &str = "open_pool";

/// A parsed pool URL: `scheme://host:port/path?key=value`. What its parts mean is the backend's.
///
/// Never holds a secret: a user name or a password in a URL is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolUrl {
    scheme: String,
    host: Option<String>,
    port: Option<u16>,
    path: String,
    options: BTreeMap<String, String>,
}

impl PoolUrl {
    /// Before the first colon, in lower case.
    pub fn scheme(&self) -> &str {
        &self.scheme
    }

    /// Host or first component, where there is one.
    pub fn host(&self) -> Option<&str> {
        self.host.as_deref()
    }

    /// Port, where there is one.
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// Path, percent-decoded.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Adds an option, as a configuration file does.
    ///
    /// # Errors
    /// `InvalidConfig` if the URL has it already.
    pub fn set_option(&mut self, key: impl Into<String>, value: impl Into<String>) -> Result<()> {
        let key = key.into();
        if self.options.contains_key(&key) {
            return Err(self.wrong(format!("option {key:?} is given twice")));
        }
        self.options.insert(key, value.into());
        Ok(())
    }

    /// From a JSON object: its URL under `url`, and beside it options, each a text, a number or a
    /// boolean. So a configuration needs no escapes as those of a URL.
    ///
    /// ```
    /// # use volmux_core::PoolUrl;
    /// let url = PoolUrl::from_json(r#"{"url": "dir:///srv/volumes", "warn_percent": 80}"#)?;
    /// assert_eq!(url.to_string(), "dir:///srv/volumes");
    /// # Ok::<(), volmux_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// `InvalidConfig` for what is none, and for an option that the URL has too.
    pub fn from_json(text: &str) -> Result<Self> {
        let wrong = || {
            Error::new(ErrorKind::InvalidConfig, OP)
                .help(r#"write {"url": "dir:///srv/volumes", "OPTION": VALUE, ...}"#)
        };
        let mut object: serde_json::Map<String, Value> =
            serde_json::from_str(text).map_err(|error| {
                // Its text may hold what is not for logs.
                let (line, column) = (error.line(), error.column());
                wrong()
                    .with("line", line)
                    .with("column", column)
                    .reason("this is not a JSON object")
            })?;
        let mut url: PoolUrl = match object.remove("url") {
            Some(Value::String(url)) => url.parse()?,
            Some(_) => return Err(wrong().reason("the url is not a text")),
            None => return Err(wrong().reason("there is no url")),
        };
        for (key, value) in object {
            let value = match value {
                Value::String(text) => text,
                Value::Number(number) => number.to_string(),
                Value::Bool(flag) => flag.to_string(),
                Value::Null | Value::Array(_) | Value::Object(_) => {
                    let reason = "an option is a text, a number or a boolean";
                    return Err(wrong().with("option", key).reason(reason));
                }
            };
            url.set_option(key, value)?;
        }
        Ok(url)
    }

    /// The options as a backend's typed configuration, which must deny unknown fields.
    ///
    /// # Errors
    /// `InvalidConfig` that names the option.
    pub fn options<T: DeserializeOwned>(&self) -> Result<T> {
        decode_options(&self.options).map_err(|reason| {
            // A wrong value's error doesn't say whose it is: it is that of the option without
            // which there is another error or none.
            let culprit = self.options.iter().find(|(key, _)| {
                let mut others = self.options.clone();
                others.remove(*key);
                decode_options::<T>(&others).err().as_ref() != Some(&reason)
            });
            let error = self.wrong(reason);
            match culprit {
                Some((key, value)) => error.with("option", format!("{key}={value}")),
                None => error,
            }
        })
    }

    /// `InvalidConfig` about this URL, for backends.
    pub fn wrong(&self, reason: impl fmt::Display) -> Error {
        Error::new(ErrorKind::InvalidConfig, OP)
            .with("url", self)
            .reason(reason)
    }
}

fn decode_options<T: DeserializeOwned>(options: &BTreeMap<String, String>) -> Result<T, String> {
    let query = serde_urlencoded::to_string(options).map_err(|error| error.to_string())?;
    serde_urlencoded::from_str(&query).map_err(|error| error.to_string())
}

impl fmt::Display for PoolUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.scheme)?;
        if self.host.is_some() || self.path.starts_with('/') {
            write!(f, "//{}", self.host.as_deref().unwrap_or(""))?;
        }
        if let Some(port) = self.port {
            write!(f, ":{port}")?;
        }
        f.write_str(&self.path)
    }
}

impl FromStr for PoolUrl {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        // The text itself is not shown before it is known to hold no password.
        let wrong = |reason: String| {
            Error::new(ErrorKind::InvalidConfig, OP)
                .reason(reason)
                .help("a pool URL looks like dir:///srv/volumes?option=value")
        };
        let url = url::Url::parse(text).map_err(|e| wrong(format!("not a URL: {e}")))?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(wrong("a URL must not hold a user name or password".into())
                .help("give credentials in a file or in the environment"));
        }
        if url.cannot_be_a_base() && url.path().contains('@') {
            // What stands before a colon is a scheme, also where a person meant a user name.
            return Err(
                wrong("this looks like user:password@host, without a scheme".into())
                    .help("write scheme://host/path, and give credentials in a file"),
            );
        }
        if url.fragment().is_some() {
            return Err(
                wrong("a pool URL has no part after #".into()).help("write %23 for a # in a path")
            );
        }
        let path = percent_decode_str(url.path())
            .decode_utf8()
            .map_err(|_| wrong("the path is not UTF-8".into()))?
            .into_owned();
        if path.contains('\0') {
            return Err(wrong("the path holds a NUL byte".into()));
        }
        let mut parsed = PoolUrl {
            scheme: url.scheme().to_owned(),
            host: url.host_str().filter(|h| !h.is_empty()).map(str::to_owned),
            port: url.port(),
            path,
            options: BTreeMap::new(),
        };
        for (key, value) in url.query_pairs() {
            parsed.set_option(key, value)?;
        }
        Ok(parsed)
    }
}

/// The code for one kind of storage, as the [`Registry`] knows it.
#[async_trait]
pub trait Backend: fmt::Debug + Send + Sync + 'static {
    /// The URL schemes that it serves.
    fn schemes(&self) -> &'static [&'static str];

    /// Opens a pool. Changes nothing in it.
    async fn open(&self, url: &PoolUrl) -> Result<Arc<dyn Pool>>;
}

/// The backends of a program. There is no global one: who makes it decides what is in it.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    backends: Vec<Arc<dyn Backend>>,
}

impl Registry {
    /// An empty registry.
    pub fn new() -> Self {
        Registry::default()
    }

    /// Adds a backend.
    ///
    /// # Panics
    /// If one of its schemes is taken: that is a mistake in the program.
    #[must_use]
    pub fn with(mut self, backend: impl Backend) -> Self {
        for scheme in backend.schemes() {
            assert!(
                !self.schemes().any(|s| s == *scheme),
                "scheme {scheme} is registered twice"
            );
        }
        self.backends.push(Arc::new(backend));
        self
    }

    /// Every known scheme.
    pub fn schemes(&self) -> impl Iterator<Item = &'static str> {
        self.backends
            .iter()
            .flat_map(|b| b.schemes().iter().copied())
    }

    /// Opens the pool at `url`.
    ///
    /// # Errors
    /// `InvalidConfig` for a wrong URL, an unknown scheme (with a list of those known) or option;
    /// otherwise those of the backend.
    pub async fn open(&self, url: &str) -> Result<Arc<dyn Pool>> {
        self.open_url(&url.parse()?).await
    }

    /// Opens the pool at a parsed URL.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn open_url(&self, url: &PoolUrl) -> Result<Arc<dyn Pool>> {
        let backend = self
            .backends
            .iter()
            .find(|b| b.schemes().contains(&url.scheme()));
        match backend {
            Some(backend) => backend.open(url).await,
            None => {
                let mut known: Vec<&str> = self.schemes().collect();
                known.sort_unstable();
                Err(url
                    .wrong(format!("scheme {:?} is not known", url.scheme()))
                    .help(format!("known schemes: {}", known.join(", "))))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::Deserialize;

    use super::*;
    use crate::memory::{MemoryBackend, MemoryPool};

    #[derive(Debug)]
    struct Disk;

    #[async_trait]
    impl Backend for Disk {
        fn schemes(&self) -> &'static [&'static str] {
            &["disk", "adisk"]
        }

        async fn open(&self, _: &PoolUrl) -> Result<Arc<dyn Pool>> {
            Ok(MemoryPool::unlimited())
        }
    }

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Settings {
        size: u64,
        label: Option<String>,
        #[serde(default)]
        init: bool,
    }

    fn parse(url: &str) -> PoolUrl {
        url.parse().expect(url)
    }

    #[test]
    fn a_url_comes_apart_and_shows_all_but_its_options() {
        let url = parse("nfs://Server:2049/a%20b/c?size=5&label=x%26y");
        assert_eq!(url.scheme(), "nfs");
        assert_eq!((url.host(), url.port()), (Some("Server"), Some(2049)));
        assert_eq!(url.path(), "/a b/c");
        assert_eq!(url.to_string(), "nfs://Server:2049/a b/c");
        let settings: Settings = url.options().expect("the options fit");
        assert_eq!((settings.size, settings.init), (5, false));
        assert_eq!(settings.label.as_deref(), Some("x&y"));
        assert_eq!(parse("dir:///srv").to_string(), "dir:///srv");
        assert_eq!(parse("memory:").to_string(), "memory:");
        assert_eq!(parse("MEMORY:").scheme(), "memory");
    }

    #[test]
    fn a_json_object_is_a_url_with_options() {
        let json = r#"{"size": 5, "url": "disk:?label=a%26b", "init": true}"#;
        let settings: Settings = PoolUrl::from_json(json).expect(json).options().expect(json);
        assert_eq!((settings.size, settings.init), (5, true));
        assert_eq!(settings.label.as_deref(), Some("a&b"));
    }

    #[test]
    fn wrong_json_is_refused_and_says_why() {
        for (json, reason) in [
            ("", "not a JSON object"),
            ("[]", "not a JSON object"),
            ("{\"url\": \"memory:\"", "not a JSON object"),
            ("{}", "no url"),
            (r#"{"url": 5}"#, "not a text"),
            (r#"{"url": "x"}"#, "not a URL"),
            (
                r#"{"url": "memory:", "a": null}"#,
                "a text, a number or a boolean",
            ),
            (
                r#"{"url": "memory:", "a": [1]}"#,
                "a text, a number or a boolean",
            ),
            (r#"{"url": "memory:?a=1", "a": 2}"#, "given twice"),
        ] {
            let error = PoolUrl::from_json(json).expect_err(json);
            assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{json}");
            let given = error.get("reason").expect("a reason");
            assert!(given.contains(reason), "{json}: {given}");
        }
        let secret = PoolUrl::from_json(r#"{"url": "memory:", "key": hunter2}"#).expect_err("");
        assert!(!format!("{secret:?}").contains("hunter2"));
    }

    #[test]
    fn wrong_urls_are_refused_and_say_why() {
        for (text, reason) in [
            ("", "not a URL"),
            ("/srv/volumes", "not a URL"),
            ("nfs://host:port/", "not a URL"),
            ("nfs://user@host/x", "user name or password"),
            ("nfs://host/x#y", "#"),
            ("dir:///%ff", "UTF-8"),
            ("dir:///a%00b", "NUL"),
            ("admin:secret@nas", "without a scheme"),
            ("dir:///x?size=1&size=2", "\"size\" is given twice"),
        ] {
            let error = text.parse::<PoolUrl>().expect_err(text);
            assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{text}");
            let given = error.get("reason").expect("a reason");
            assert!(given.contains(reason), "{text}: {given}");
        }
    }

    #[test]
    fn wrong_options_are_named() {
        for (query, named) in [
            ("size=1&colour=red", "colour"),
            ("label=x", "size"),
            ("size=many", "invalid digit"),
        ] {
            let url = parse(&format!("dir:///x?{query}"));
            let error = url.options::<Settings>().expect_err(query);
            assert_eq!(error.kind(), ErrorKind::InvalidConfig);
            assert_eq!(error.get("url"), Some("dir:///x"));
            let reason = error.get("reason").expect("a reason");
            assert!(reason.contains(named), "{query}: {reason}");
        }
        let mut url = parse("dir:///x?size=1");
        url.set_option("label", "one").expect("it is new");
        let error = url.set_option("size", "2").expect_err("it is there");
        assert_eq!(error.kind(), ErrorKind::InvalidConfig);
        let settings: Settings = url.options().expect("the options fit");
        assert_eq!((settings.size, settings.label.as_deref()), (1, Some("one")));
    }

    #[tokio::test]
    async fn an_unknown_scheme_lists_the_known_ones() {
        let registry = Registry::new().with(MemoryBackend).with(Disk);
        registry.open("adisk:").await.expect("the second scheme");
        let error = registry.open("floppy:///x").await.expect_err("unknown");
        assert_eq!(error.kind(), ErrorKind::InvalidConfig);
        assert!(error.get("reason").expect("reason").contains("\"floppy\""));
        assert_eq!(
            error.get("help"),
            Some("known schemes: adisk, disk, memory")
        );
        let error = registry.open("memory:?totl=1").await.expect_err("unknown");
        assert!(
            error.get("reason").expect("reason").contains("totl"),
            "{error}"
        );
    }

    #[test]
    #[should_panic(expected = "scheme memory is registered twice")]
    fn a_scheme_belongs_to_one_backend() {
        let _ = Registry::new().with(MemoryBackend).with(MemoryBackend);
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in "\\PC{0,60}") {
            let _ = text.parse::<PoolUrl>();
        }

        #[test]
        fn parsing_what_looks_like_a_url_never_panics(
            text in "[a-z]{1,4}:/{0,3}[a-z0-9@:%.\\[\\]/?#&=é\\x00-]{0,40}"
        ) {
            if let Ok(url) = text.parse::<PoolUrl>() {
                let shown = url.to_string();
                prop_assert!(shown.starts_with(url.scheme()));
                prop_assert!(shown.contains(url.host().unwrap_or("")));
                prop_assert!(shown.ends_with(url.path()));
                let _ = url.options::<Settings>();
            }
        }

        #[test]
        fn a_url_that_was_parsed_reads_back_as_itself(
            host in "([a-z][a-z0-9.-]{0,20})?", path in "(/[A-Za-z0-9._ @:+-]{1,8}){1,4}"
        ) {
            let url = parse(&format!("nfs://{host}{path}"));
            prop_assert_eq!(parse(&url.to_string()), url);
        }

        #[test]
        fn a_password_never_appears_in_an_error(
            scheme in "(memory|disk|nfs|s3|https)",
            slashes in "(|//)",
            user in "[a-z]{0,8}",
            password in "[A-Z0-9!$%^*+=.,;_~-]{8,16}",
            host in "([a-z]{1,10}|\\[|[a-z]{3}:port)",
            rest in "(/x|\\?size=x|#y|)",
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let registry = Registry::new().with(MemoryBackend).with(Disk);
            let forms = [
                format!("{scheme}://{user}:{password}@{host}{rest}"),
                format!("{scheme}:{slashes}{password}@{host}{rest}"),
                format!("{user}:{password}@{host}{rest}"),
            ];
            for text in &forms[..] {
                if let Err(error) = runtime.block_on(registry.open(text)) {
                    let shown = format!("{error} {error:?}");
                    prop_assert!(!shown.contains(&password), "{} for {}", shown, text);
                } else {
                    prop_assert!(false, "{} opens", text);
                }
            }
        }
    }
}
