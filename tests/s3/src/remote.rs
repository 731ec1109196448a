//! The hand on a server in another process.

use std::io::{self, Error, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::{Counts, Kind, Stored};

/// Gives orders to a `volmux-s3-server`. A person can do the same: `curl ENDPOINT/-/counts`,
/// `curl 'ENDPOINT/-/latency?ms=20&kind=put'`, `fail?how=reset&kind=get&times=3&key=PART`,
/// `random?seed=7&per-mille=10`, `heal`, `outage?ms=60000`, `read-only?on=true`.
#[derive(Clone, Debug)]
pub struct Remote {
    /// Host and port.
    address: String,
}

impl Remote {
    /// For the server at `endpoint`, as it printed it.
    pub fn new(endpoint: &str) -> Self {
        let address = endpoint.trim().trim_start_matches("http://");
        Remote {
            address: address.trim_end_matches('/').to_owned(),
        }
    }

    /// Where it is: `http://127.0.0.1:PORT`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What was asked so far.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn counts(&self) -> io::Result<Counts> {
        Ok(serde_json::from_str(&self.order("counts")?)?)
    }

    /// What is stored at the moment.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn stored(&self) -> io::Result<Stored> {
        Ok(serde_json::from_str(&self.order("stored")?)?)
    }

    /// As [`Server::latency`](crate::Server::latency), for all kinds or one.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn latency(&self, kind: Option<Kind>, latency: Duration) -> io::Result<()> {
        let kind = kind.map_or(String::new(), |kind| format!("&kind={kind}"));
        let ms = latency.as_millis();
        self.order(&format!("latency?ms={ms}{kind}")).map(drop)
    }

    /// Any order, as after `/-/`; returns the answer.
    ///
    /// # Errors
    /// If it does not answer, or refuses: the message then is the server's.
    pub fn order(&self, order: &str) -> io::Result<String> {
        let mut stream = TcpStream::connect(&self.address)?;
        write!(
            stream,
            "GET {}{order} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n",
            crate::orders::PREFIX,
            self.address
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let parts = answer.split_once("\r\n\r\n");
        let (head, body) = parts.ok_or_else(|| Error::from(ErrorKind::UnexpectedEof))?;
        if !head.starts_with("HTTP/1.1 200 ") {
            return Err(Error::other(body.to_owned()));
        }
        Ok(body.to_owned())
    }
}
