//! From a configuration to the store that it names.

use std::sync::Arc;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ClientConfigKey, ObjectStore, RetryConfig};
use volmux_core::{Error, ErrorKind, Result};

use crate::config::{Location, ObjectConfig};
use crate::ids::Ids;
use crate::local::LocalStore;
use crate::secret::Credentials;
use crate::setting::is_loopback;
use crate::store::{Patience, Store};

const OP: &str = "open_pool";

/// A store, and what only a directory has.
#[derive(Debug)]
pub(crate) struct Connected {
    /// The client.
    pub store: Store,
    /// The directory, where the store is one: for its space and for what a crash left in it.
    pub local: Option<LocalStore>,
}

/// The store that `config` names. Sends no request yet.
///
/// # Errors
/// `InvalidConfig` for settings that do not fit together; `NotFound` and the like for a directory.
pub(crate) async fn connect(config: &ObjectConfig, ids: Arc<Ids>) -> Result<Connected> {
    config.check()?;
    let mut local = None;
    let mut below = "";
    let inner: Arc<dyn ObjectStore> = match &config.location {
        Location::Memory => Arc::new(InMemory::new()),
        Location::Directory(_) => {
            let store = directory(config).await?;
            local = Some(store.clone());
            Arc::new(store)
        }
        Location::S3 { bucket, prefix } => {
            below = prefix;
            Arc::new(s3(config, bucket)?)
        }
        Location::Azure { container, prefix } => {
            below = prefix;
            Arc::new(azure(config, container)?)
        }
        Location::Gcs { bucket, prefix } => {
            below = prefix;
            Arc::new(gcs(config, bucket)?)
        }
    };
    let (prefix, shown) = (Path::from(below), config.location.to_string());
    let store = Store::new(inner, prefix, &shown, Patience::of(config), ids);
    Ok(Connected { store, local })
}

impl Patience {
    /// As configured.
    pub(crate) fn of(config: &ObjectConfig) -> Self {
        let default = Patience::default();
        let write = config.timeout.unwrap_or(default.write);
        Patience {
            request: config.request_timeout.unwrap_or(default.request),
            read: write / 2,
            write,
        }
    }
}

async fn directory(config: &ObjectConfig) -> Result<LocalStore> {
    let Location::Directory(path) = &config.location else {
        return Err(config.wrong("location", "this is not a directory"));
    };
    let opened = {
        let path = path.clone();
        tokio::task::spawn_blocking(move || LocalStore::open(&path)).await
    };
    let opened = opened.map_err(|_| Error::new(ErrorKind::Internal, OP))?;
    opened.map_err(|error| {
        let kind = match error.kind() {
            std::io::ErrorKind::NotADirectory => ErrorKind::InvalidConfig,
            _ => ErrorKind::of_io(&error),
        };
        let wrong = Error::new(kind, OP)
            .with("pool", &config.location)
            .reason(&error);
        match kind {
            ErrorKind::NotFound => wrong.help("make the directory first"),
            _ => wrong,
        }
    })
}

/// Retries and deadlines are [`Store`]'s business: here there must be none.
fn once() -> RetryConfig {
    RetryConfig {
        max_retries: 0,
        ..RetryConfig::default()
    }
}

/// The client's own time limit would cut short what the configuration allows.
const NO_LIMIT: &str = "1 day";

/// Whether requests without TLS may be sent: only to an endpoint that was checked.
fn plain(config: &ObjectConfig) -> bool {
    let endpoint = config.endpoint.as_ref();
    let url = endpoint.and_then(|endpoint| url::Url::parse(endpoint).ok());
    url.is_some_and(|url| {
        let loopback = url.host_str().is_some_and(is_loopback);
        url.scheme() == "http" && (loopback || config.allow_http)
    })
}

/// Whether nobody can change what is on its way to an endpoint.
fn is_private(endpoint: &str) -> bool {
    url::Url::parse(endpoint)
        .is_ok_and(|url| url.scheme() == "https" || url.host_str().is_some_and(is_loopback))
}

fn s3(config: &ObjectConfig, bucket: &str) -> Result<impl ObjectStore + use<>> {
    let mut builder = match Credentials::load(config)? {
        None => AmazonS3Builder::from_env(),
        Some(given) => {
            let mut builder = AmazonS3Builder::new();
            for (name, value) in &given.0 {
                let key = key::<AmazonS3ConfigKey>(config, name)?;
                builder = builder.with_config(key, value.as_str());
            }
            builder
        }
    };
    builder = builder
        .with_bucket_name(bucket)
        .with_retry(once())
        .with_config(
            AmazonS3ConfigKey::Client(ClientConfigKey::Timeout),
            NO_LIMIT,
        );
    if let Some(region) = &config.region {
        builder = builder.with_region(region);
    }
    let in_host = config.path_style == Some(false)
        || config.path_style.is_none() && config.endpoint.is_none();
    if let Some(endpoint) = &config.endpoint {
        let endpoint = endpoint.trim_end_matches('/');
        let endpoint = match endpoint.split_once("://") {
            Some((scheme, host)) if in_host => format!("{scheme}://{bucket}.{host}"),
            _ => endpoint.to_owned(),
        };
        builder = builder
            .with_endpoint(endpoint)
            .with_virtual_hosted_style_request(in_host)
            .with_allow_http(plain(config));
    } else if let Some(path_style) = config.path_style {
        builder = builder.with_virtual_hosted_style_request(!path_style);
    }
    let endpoint = builder.get_config_value(&AmazonS3ConfigKey::Endpoint);
    let signed = config.sign_payload || endpoint.is_some_and(|endpoint| !is_private(&endpoint));
    builder
        .with_unsigned_payload(!signed)
        .build()
        .map_err(|error| unusable(config, &error))
}

fn azure(config: &ObjectConfig, container: &str) -> Result<impl ObjectStore + use<>> {
    let mut builder = match Credentials::load(config)? {
        None => MicrosoftAzureBuilder::from_env(),
        Some(given) => {
            let mut builder = MicrosoftAzureBuilder::new();
            for (name, value) in &given.0 {
                let key = key::<AzureConfigKey>(config, name)?;
                builder = builder.with_config(key, value.as_str());
            }
            builder
        }
    };
    builder = builder
        .with_container_name(container)
        .with_retry(once())
        .with_config(AzureConfigKey::Client(ClientConfigKey::Timeout), NO_LIMIT);
    if let Some(account) = &config.account {
        builder = builder.with_account(account);
    }
    if let Some(endpoint) = &config.endpoint {
        builder = builder
            .with_endpoint(endpoint.trim_end_matches('/').to_owned())
            .with_allow_http(plain(config));
    }
    builder.build().map_err(|error| unusable(config, &error))
}

fn gcs(config: &ObjectConfig, bucket: &str) -> Result<impl ObjectStore + use<>> {
    let mut builder = match Credentials::load(config)? {
        None => GoogleCloudStorageBuilder::from_env(),
        Some(given) => {
            let mut builder = GoogleCloudStorageBuilder::new();
            for (name, value) in &given.0 {
                let key = key::<GoogleConfigKey>(config, name)?;
                builder = builder.with_config(key, value.as_str());
            }
            builder
        }
    };
    builder = builder
        .with_bucket_name(bucket)
        .with_retry(once())
        .with_config(GoogleConfigKey::Client(ClientConfigKey::Timeout), NO_LIMIT);
    if let Some(endpoint) = &config.endpoint {
        builder = builder.with_base_url(endpoint.trim_end_matches('/'));
        let allow = ClientConfigKey::AllowHttp;
        builder = builder.with_config(GoogleConfigKey::Client(allow), plain(config).to_string());
    }
    builder.build().map_err(|error| unusable(config, &error))
}

/// The setting that a line of the file of credentials is for.
fn key<K: std::str::FromStr>(config: &ObjectConfig, name: &str) -> Result<K> {
    name.to_ascii_lowercase().parse().map_err(|_| {
        config
            .wrong("credentials_file", format!("{name:?} is not known here"))
            .help("use the names of the environment variables, such as AWS_ACCESS_KEY_ID")
    })
}

/// Settings of which no client can be made. The cause's own text may quote a secret.
fn unusable(config: &ObjectConfig, error: &object_store::Error) -> Error {
    let text = error.to_string();
    let (reason, help) = if text.contains("Account must be specified") {
        ("the storage account is missing", "add account=NAME")
    } else if text.to_ascii_lowercase().contains("service account") {
        (
            "the service account's file cannot be used",
            "check GOOGLE_APPLICATION_CREDENTIALS",
        )
    } else {
        (
            "no client can be made from these settings and credentials",
            "check the endpoint, and the form of the credentials",
        )
    };
    Error::new(ErrorKind::InvalidConfig, OP)
        .with("pool", &config.location)
        .reason(reason)
        .help(help)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    async fn connected(url: &str) -> Result<Connected> {
        let config = ObjectConfig::from_url(&url.parse().expect("a URL"))?;
        connect(&config, Arc::new(Ids::seeded(1))).await
    }

    fn credentials(text: &str) -> (tempfile::TempDir, String) {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("credentials");
        fs::write(&path, text).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("mode set");
        let option = format!("credentials_file={}", path.display());
        (dir, option)
    }

    #[tokio::test]
    async fn clients_are_made_from_files_of_credentials() {
        let (_dir, aws) = credentials("AWS_ACCESS_KEY_ID=a\nAWS_SECRET_ACCESS_KEY=canary\n");
        for url in [
            format!("s3://bucket/x?region=eu-west-1&{aws}"),
            format!("s3://bucket/x?endpoint=http://127.0.0.1:1&path_style=false&{aws}"),
        ] {
            let connected = connected(&url).await.expect("a client");
            assert!(!format!("{connected:?}").contains("canary"));
            assert_eq!(connected.store.to_string(), "s3://bucket/x");
        }
        let (_dir, azure) = credentials("AZURE_STORAGE_ACCOUNT_KEY=Y2FuYXJ5\n");
        let url = format!("az://c/x?account=acc&endpoint=http://127.0.0.1:1/acc&{azure}");
        connected(&url).await.expect("a client");
        let error = connected(&format!("s3://bucket?{azure}"))
            .await
            .expect_err("of another store");
        assert_eq!(error.kind(), ErrorKind::InvalidConfig);
        let (_dir, empty) = credentials("");
        let error = connected(&format!("az://c?{empty}"))
            .await
            .expect_err("no account");
        assert!(error.to_string().contains("account=NAME"), "{error}");
    }

    #[test]
    fn what_travels_without_tls_is_signed() {
        for private in [
            "https://s3.example",
            "http://127.0.0.1:9000",
            "http://[::1]:1/x",
        ] {
            assert!(is_private(private), "{private}");
        }
        for open in [
            "http://10.0.0.1:9000",
            "http://s3.example",
            "s3.example",
            "",
        ] {
            assert!(!is_private(open), "{open}");
        }
    }

    #[tokio::test]
    async fn a_key_of_a_wrong_form_is_not_shown() {
        let (_dir, azure) = credentials("AZURE_STORAGE_ACCOUNT_KEY=can!ary\n");
        let url = format!("az://c/x?account=acc&{azure}");
        let error = connected(&url).await.expect_err("not base64");
        assert_eq!(error.kind(), ErrorKind::InvalidConfig);
        assert!(!format!("{error:?}").contains("can!ary"), "{error:?}");
    }

    #[tokio::test]
    async fn a_directory_must_be_there() {
        let dir = tempfile::tempdir().expect("a directory");
        let url = format!("file+object://{}", dir.path().display());
        let there = connected(&url).await.expect("a store");
        assert!(there.local.is_some());
        let error = connected(&format!("{url}/missing"))
            .await
            .expect_err("missing");
        assert_eq!(error.kind(), ErrorKind::NotFound);
        fs::write(dir.path().join("file"), "x").expect("written");
        let error = connected(&format!("{url}/file")).await.expect_err("a file");
        assert_eq!(error.kind(), ErrorKind::InvalidConfig);
    }

    #[tokio::test]
    async fn stores_in_memory_are_apart() {
        let (a, b) = (
            connected("memory+object:").await,
            connected("memory+object:").await,
        );
        let (a, b) = (a.expect("a store").store, b.expect("a store").store);
        a.put("t", "x", "x".into()).await.expect("put");
        assert_eq!(b.get("t", "x").await.expect("get"), None);
    }
}
