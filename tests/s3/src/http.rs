//! As much of HTTP/1.1 as S3's clients speak.

use std::io::{self, Error, ErrorKind, IoSlice, Read, Write};
use std::net::TcpStream;

use bytes::{Buf, Bytes};

/// The longest request line with headers, in bytes.
const HEAD_LIMIT: usize = 64 << 10;
const BODY_LIMIT: usize = 1 << 30;
const HEADERS: usize = 64;

/// A request, as it came.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// Path and query, still percent-encoded.
    pub(crate) target: String,
    headers: Vec<(String, String)>,
    pub(crate) body: Bytes,
}

impl Request {
    /// The header `name`, which is given in lower case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut found = self.headers.iter().filter(|(header, _)| header == name);
        found.next().map(|(_, value)| value.as_str())
    }

    /// All headers, their names in lower case.
    pub(crate) fn headers(&self) -> &[(String, String)] {
        &self.headers
    }

    /// The path, still percent-encoded.
    pub(crate) fn path(&self) -> &str {
        self.target
            .split_once('?')
            .map_or(&*self.target, |(path, _)| path)
    }

    /// What follows the question mark, still percent-encoded.
    pub(crate) fn query(&self) -> &str {
        self.target.split_once('?').map_or("", |(_, query)| query)
    }
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, String)>,
    /// The user's own headers of an object.
    pub(crate) stored: Vec<(String, String)>,
    pub(crate) body: Bytes,
    /// What a HEAD request would have got in bytes.
    pub(crate) length: Option<u64>,
}

impl Response {
    pub(crate) fn new(status: u16) -> Self {
        Response {
            status,
            headers: Vec::new(),
            stored: Vec::new(),
            body: Bytes::new(),
            length: None,
        }
    }

    pub(crate) fn with(mut self, header: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((header, value.into()));
        self
    }

    pub(crate) fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    /// S3's way to say what is wrong.
    pub(crate) fn error(status: u16, code: &str, message: &str) -> Self {
        let text = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code>\
             <Message>{message}</Message></Error>"
        );
        Response::new(status)
            .with("content-type", "application/xml")
            .body(text)
    }

    fn head(&self) -> String {
        let length = self.length.unwrap_or(self.body.len() as u64);
        let mut head = format!(
            "HTTP/1.1 {} {}\r\ncontent-length: {length}\r\n",
            self.status,
            reason(self.status)
        );
        let mut add = |name: &str, value: &str| {
            head.push_str(name);
            head.push_str(": ");
            head.push_str(value);
            head.push_str("\r\n");
        };
        self.headers
            .iter()
            .for_each(|(name, value)| add(name, value));
        self.stored
            .iter()
            .for_each(|(name, value)| add(name, value));
        head.push_str("\r\n");
        head
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        204 => "No Content",
        206 => "Partial Content",
        304 => "Not Modified",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        409 => "Conflict",
        412 => "Precondition Failed",
        416 => "Range Not Satisfiable",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        _ => "Unknown",
    }
}

/// The server's side of a connection.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    /// What was received and is not used yet.
    buffer: Vec<u8>,
}

impl Connection {
    pub(crate) fn new(stream: TcpStream) -> Self {
        Connection {
            stream,
            buffer: Vec::with_capacity(16 << 10),
        }
    }

    pub(crate) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// The next request; `None` once the client is gone.
    pub(crate) fn receive(&mut self) -> io::Result<Option<Request>> {
        let mut request = loop {
            if let Some((request, used)) = parse(&self.buffer)? {
                self.buffer.drain(..used);
                break request;
            }
            if self.buffer.len() > HEAD_LIMIT {
                return Err(invalid("the headers are too long"));
            }
            let before = self.buffer.len();
            self.buffer.resize(before + (16 << 10), 0);
            let received = self.stream.read(&mut self.buffer[before..]);
            self.buffer
                .truncate(before + received.as_ref().copied().unwrap_or(0));
            if received? == 0 {
                return Ok(None);
            }
        };
        let length = match request.header("content-length") {
            Some(length) => length.parse().map_err(|_| invalid("no length"))?,
            None if request.header("transfer-encoding").is_some() => {
                return Err(invalid("chunked bodies are not understood"));
            }
            None => 0,
        };
        if length > BODY_LIMIT {
            return Err(invalid("the body is too long"));
        }
        if request
            .header("expect")
            .is_some_and(|value| value.eq_ignore_ascii_case("100-continue"))
        {
            self.stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        request.body = self.body(length)?;
        Ok(Some(request))
    }

    fn body(&mut self, length: usize) -> io::Result<Bytes> {
        let there = self.buffer.len().min(length);
        // Fresh zeroed memory costs nothing until it is written.
        let mut body = vec![0; length];
        body[..there].copy_from_slice(&self.buffer[..there]);
        self.buffer.drain(..there);
        self.stream.read_exact(&mut body[there..])?;
        Ok(body.into())
    }

    /// Sends the head, and half of the body.
    pub(crate) fn send_half(&mut self, response: &Response) -> io::Result<()> {
        self.stream.write_all(response.head().as_bytes())?;
        let half = response.body.len() / 2;
        self.stream.write_all(&response.body[..half])
    }

    pub(crate) fn send(&mut self, response: &Response) -> io::Result<()> {
        let head = response.head();
        let mut parts = Buf::chain(head.as_bytes(), &response.body[..]);
        while parts.has_remaining() {
            let mut slices = [IoSlice::new(&[]), IoSlice::new(&[])];
            let used = parts.chunks_vectored(&mut slices);
            match self.stream.write_vectored(&slices[..used]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(sent) => parts.advance(sent),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn invalid(what: &'static str) -> Error {
    Error::new(ErrorKind::InvalidData, what)
}

/// The request without its body, and its length, once it is there in full.
fn parse(buffer: &[u8]) -> io::Result<Option<(Request, usize)>> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS];
    let mut parsed = httparse::Request::new(&mut headers);
    let status = parsed
        .parse(buffer)
        .map_err(|error| Error::new(ErrorKind::InvalidData, error))?;
    let httparse::Status::Complete(used) = status else {
        return Ok(None);
    };
    let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
    let request = Request {
        method: parsed.method.unwrap_or_default().to_owned(),
        target: parsed.path.unwrap_or_default().to_owned(),
        headers: parsed
            .headers
            .iter()
            .map(|header| (header.name.to_ascii_lowercase(), text(header.value)))
            .collect(),
        body: Bytes::new(),
    };
    Ok(Some((request, used)))
}
