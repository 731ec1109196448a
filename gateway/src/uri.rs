//! NBD URIs.

use volmux_core::{NbdAddress, VolumeName};

use crate::options::Address;

impl From<&Address> for NbdAddress {
    fn from(address: &Address) -> Self {
        match address {
            Address::Unix(path) => NbdAddress::Unix { path: path.clone() },
            Address::Tcp(address) => NbdAddress::Tcp {
                host: address.ip().to_string(),
                port: address.port(),
            },
        }
    }
}

impl Address {
    /// See [`NbdAddress::uri`]; without a volume, that of the default export.
    pub fn uri(&self, volume: Option<&VolumeName>, tls: bool) -> String {
        NbdAddress::from(self).uri(volume.map_or("", VolumeName::as_str), tls)
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

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
