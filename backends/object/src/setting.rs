//! How single settings are read.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use serde::Deserializer;
use serde::de::Visitor;
use volmux_core::ByteSize;

/// A size, as a number of bytes or with a unit.
pub(crate) fn size<'de, D: Deserializer<'de>>(from: D) -> Result<Option<ByteSize>, D::Error> {
    from.deserialize_any(Text {
        what: "a size such as 8MiB",
        parse: |text| {
            let size = text.parse::<ByteSize>();
            size.map_err(|error| error.get("reason").unwrap_or("not a size").to_owned())
        },
    })
    .map(Some)
}

/// A time, as a number of seconds or with a unit.
pub(crate) fn time<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
    from.deserialize_any(Text {
        what: "a time such as 30s",
        parse: |text| match text.parse() {
            Ok(seconds) => Ok(Duration::from_secs(seconds)),
            Err(_) => humantime::parse_duration(text).map_err(|error| error.to_string()),
        },
    })
    .map(Some)
}

/// Reads a value from its text; a number is as good.
struct Text<T> {
    what: &'static str,
    parse: fn(&str) -> Result<T, String>,
}

impl<T> Visitor<'_> for Text<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what)
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<T, E> {
        let wrong = |reason| E::custom(format!("not {}: {reason}", self.what));
        (self.parse)(text).map_err(wrong)
    }

    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<T, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<T, E> {
        self.visit_str(&number.to_string())
    }
}

/// Checks the address of a store. The error is a reason and what helps.
pub(crate) fn endpoint(text: &str, allow_http: bool) -> Result<(), (&'static str, &'static str)> {
    const HELP: &str = "write https://host or https://host:port";
    let url = url::Url::parse(text).map_err(|_| ("this is not an address", HELP))?;
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() {
        return Err((
            "an address must not hold credentials or a query",
            "give credentials in the environment or in credentials_file",
        ));
    }
    let Some(host) = url.host_str() else {
        return Err(("the host is missing", HELP));
    };
    match url.scheme() {
        "https" => Ok(()),
        "http" if allow_http || is_loopback(host) => Ok(()),
        "http" => Err((
            "without TLS, credentials and data could be read on the way",
            "write https://, or allow_http=true in a network that you trust",
        )),
        _ => Err(("it must begin with https://", HELP)),
    }
}

/// Whether an address is one of this machine.
pub(crate) fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || address.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}
