//! NBD URIs.

use std::fmt::Write;
use std::os::unix::ffi::OsStrExt;

use volmux_core::VolumeName;

use crate::options::Address;

impl Address {
    /// The NBD URI of an export at this address, as clients take it, by the
    /// [specification](https://github.com/NetworkBlockDevice/nbd/blob/master/doc/uri.md);
    /// without a volume that of the default export. `tls` asks the client for TLS.
    pub fn uri(&self, volume: Option<&VolumeName>, tls: bool) -> String {
        let secure = if tls { "s" } else { "" };
        let export = volume.map_or("", VolumeName::as_str);
        match self {
            Address::Tcp(address) => format!("nbd{secure}://{address}/{export}"),
            Address::Unix(path) => {
                let mut uri = format!("nbd{secure}+unix:///{export}?socket=");
                for byte in path.as_os_str().as_bytes() {
                    match byte {
                        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' => uri.push(char::from(*byte)),
                        b'-' | b'.' | b'_' | b'~' | b'/' => uri.push(char::from(*byte)),
                        _ => write!(uri, "%{byte:02X}").expect("writing to a string succeeds"),
                    }
                }
                uri
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;

    #[test]
    fn uris_are_as_the_specification_has_them() {
        let web = VolumeName::new("web-1.a+b_c").expect("name");
        let unix = |path: &[u8]| Address::Unix(OsStr::from_bytes(path).into());
        let tcp = |address: &str| Address::Tcp(address.parse().expect("address"));
        for (address, volume, tls, uri) in [
            (
                unix(b"/run/a.sock"),
                Some(&web),
                false,
                "nbd+unix:///web-1.a+b_c?socket=/run/a.sock",
            ),
            (unix(b"/run/a"), None, true, "nbds+unix:///?socket=/run/a"),
            (
                unix(b"/a b/%&?#\xff"),
                None,
                false,
                "nbd+unix:///?socket=/a%20b/%25%26%3F%23%FF",
            ),
            (
                tcp("127.0.0.1:10809"),
                Some(&web),
                false,
                "nbd://127.0.0.1:10809/web-1.a+b_c",
            ),
            (tcp("[::1]:1"), None, true, "nbds://[::1]:1/"),
        ] {
            assert_eq!(address.uri(volume, tls), uri);
        }
    }
}
