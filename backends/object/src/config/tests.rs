use proptest::prelude::*;

use super::*;

fn parse(url: &str) -> Result<ObjectConfig> {
    ObjectConfig::from_url(&url.parse().expect("a URL"))
}

#[test]
fn every_scheme_names_its_place() {
    for (url, shown) in [
        ("s3://bucket/some/prefix/", "s3://bucket/some/prefix"),
        ("s3://Bucket", "s3://Bucket"),
        ("az://container/x", "az://container/x"),
        ("gs://bucket.with.dots/x", "gs://bucket.with.dots/x"),
        ("file+object:///srv/a%20b", "file+object:///srv/a b"),
        ("memory+object:", "memory+object:"),
    ] {
        let config = parse(url).expect(url);
        assert_eq!(config.location.to_string(), shown);
    }
}

#[test]
fn options_are_read_and_have_defaults() {
    let config = parse(
        "s3://b/p?endpoint=http://127.0.0.1:9000&region=x&flush=journal&journal=/j&journal_size=2G\
         &cache=64MiB&disk_cache=/c&disk_cache_size=1000000000&object_size=4M&compression=zstd\
         &encryption=aes-256-gcm&key_env=KEY&timeout=5min&request_timeout=7&gc=1h&capacity=1T\
         &overcommit_limit=3&path_style=true&init=true&read_only=true&credentials_file=/x",
    )
    .expect("all of them");
    assert_eq!(config.cache_bytes(), 64 << 20);
    assert_eq!(config.object_bytes(), 4 << 20);
    assert_eq!(config.journal_bytes(), 2 << 30);
    assert_eq!(config.disk_cache_bytes(), 1_000_000_000);
    assert_eq!(
        (config.flush, config.compression),
        (Flush::Journal, Some(Compression::Zstd))
    );
    assert_eq!(config.encryption, Some(Encryption::Aes256Gcm));
    assert_eq!(config.timeout, Some(Duration::from_secs(300)));
    assert_eq!(config.request_timeout, Some(Duration::from_secs(7)));
    assert_eq!(config.gc_interval(), Some(Duration::from_secs(3600)));
    assert_eq!(
        config.policy().expect("a policy").overcommit_limit,
        Some(3.0)
    );
    assert!(config.init && config.read_only);
    let config = parse("memory+object:?gc=0").expect("defaults");
    assert_eq!(
        (config.cache_bytes(), config.object_bytes()),
        (256 << 20, 8 << 20)
    );
    assert_eq!((config.gc_interval(), config.flush), (None, Flush::Store));
}

#[test]
fn what_is_wrong_is_named() {
    for (url, named) in [
        ("s3:///prefix", "bucket"),
        ("s3://b:9000/x", "port"),
        ("s3://b/a//b", "prefix"),
        ("s3://b/a/../b", ""),
        ("s3://b/a%20b", "prefix"),
        ("file+object://host/dir", "absolute path"),
        ("file+object:dir", "absolute path"),
        ("memory+object:///x", "no place"),
        ("s3://b?colour=red", "colour"),
        ("s3://b?cache=1", "cache"),
        ("s3://b?cache=lots", "not a size"),
        ("s3://b?timeout=soon", "not a time"),
        ("s3://b?timeout=0", "timeout"),
        ("s3://b?object_size=32MiB", "object_size"),
        ("s3://b?flush=journal", "journal"),
        ("s3://b?journal=/j", "journal"),
        ("s3://b?journal_size=1G", "journal_size"),
        ("s3://b?flush=journal&journal=j", "absolute"),
        ("s3://b?disk_cache_size=1G", "disk_cache"),
        ("s3://b?compression=rar", "compression"),
        ("s3://b?encryption=aes-256-gcm", "no key"),
        ("s3://b?encryption=rot13&key_env=K", "rot13"),
        ("s3://b?key_env=K&key_file=/k", "key_file"),
        ("s3://b?key=abc", "key"),
        ("s3://b?endpoint=http://store.example", "TLS"),
        ("s3://b?endpoint=store.example", "endpoint"),
        ("s3://b?endpoint=ftp://store.example", "https"),
        ("s3://b?endpoint=https://a:b@store.example", "credentials"),
        ("s3://b?account=x", "account"),
        ("az://c?region=x", "region"),
        ("memory+object:?endpoint=https://x", "endpoint"),
        ("s3://b?warn_percent=200", "warn_percent"),
    ] {
        let error = match parse(url) {
            Err(error) => error,
            // The URL's own rules made something harmless of it.
            Ok(config) => {
                assert!(named.is_empty(), "{url}");
                assert_eq!(config.location.to_string(), "s3://b/b");
                continue;
            }
        };
        assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{url}");
        assert!(error.to_string().contains(named), "{url}: {error}");
    }
    parse("s3://b?endpoint=http://store.example&allow_http=true").expect("asked for");
    parse("s3://b?endpoint=http://[::1]:9000").expect("this machine");
}

#[test]
fn sizes_and_times_may_be_numbers_where_a_file_has_them() {
    let config: ObjectConfig =
        serde_json::from_str(r#"{"cache": 67108864, "timeout": 5, "gc": "1h"}"#).expect("JSON");
    assert_eq!(config.cache_bytes(), 64 << 20);
    assert_eq!(config.timeout, Some(Duration::from_secs(5)));
    assert!(serde_json::from_str::<ObjectConfig>(r#"{"cache": -1}"#).is_err());
}

proptest! {
    #[test]
    fn no_url_makes_it_panic(
        scheme in "(s3|az|gs|file[+]object|memory[+]object)",
        rest in "(//)?[a-z0-9.:/%-]{0,30}",
        option in "(cache|timeout|endpoint|key_env|flush|gc|object_size)",
        value in "[a-zA-Z0-9:/.%-]{0,12}",
    ) {
        let text = format!("{scheme}:{rest}?{option}={value}");
        if let Ok(url) = text.parse::<PoolUrl>()
            && let Ok(config) = ObjectConfig::from_url(&url)
        {
            prop_assert!(config.check().is_ok());
        }
    }
}
