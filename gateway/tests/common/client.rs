//! A client for tests: raw bytes and the handshake. It panics at whatever a server must not do.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use volmux_gateway::Address;

use super::stream::Stream;
use super::transmission::Pending;
use super::wire::{self, Mode, info, opt, rep};

/// No wait lasts longer.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// One reply to an option.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OptionReply {
    pub kind: u32,
    pub data: Vec<u8>,
}

impl OptionReply {
    /// The text of an error.
    pub fn text(&self) -> String {
        assert!(self.kind & rep::ERROR != 0, "not an error: {self:?}");
        String::from_utf8(self.data.clone()).expect("the text of an error is UTF-8")
    }
}

/// What a server says of an export.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExportInfo {
    pub size: u64,
    pub flags: u16,
    pub name: Option<String>,
    pub description: Option<String>,
    /// Minimum, preferred, maximum.
    pub block_size: Option<[u32; 3]>,
}

/// A connection to a server.
#[derive(Debug)]
pub struct Client {
    pub(super) stream: Stream,
    received: Vec<u8>,
    /// How much of it was taken.
    taken: usize,
    pub mode: Mode,
    /// Of the export, once there is one.
    pub export: ExportInfo,
    /// The contexts that are selected.
    pub contexts: BTreeMap<u32, String>,
    pub(super) pending: BTreeMap<u64, Pending>,
    pub(super) next_cookie: u64,
}

impl Client {
    /// Connects and reads the server's greeting.
    pub fn connect(address: &Address) -> Client {
        let mut client = Client::connect_silently(address);
        client.read_greeting();
        client
    }

    fn read_greeting(&mut self) {
        assert_eq!(self.u64(), wire::GREETING);
        assert_eq!(self.u64(), wire::I_HAVE_OPT);
        let flags = self.u16();
        assert_eq!(flags, 3, "fixed newstyle and no zeroes, nothing else");
    }

    /// Connects and reads nothing.
    pub fn connect_silently(address: &Address) -> Client {
        Client::over(Stream::connect(address).expect("connect"))
    }

    fn over(stream: Stream) -> Client {
        Client {
            stream,
            received: Vec::new(),
            taken: 0,
            mode: Mode::Simple,
            export: ExportInfo::default(),
            contexts: BTreeMap::new(),
            pending: BTreeMap::new(),
            next_cookie: 0x1122_3344_5566_7788,
        }
    }

    /// As [`greeted`](Self::greeted), from one of this host's own addresses.
    pub fn from_address(server: SocketAddr, from: IpAddr) -> Client {
        use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
        let socket = socket(AddressFamily::INET, SocketType::STREAM, None).expect("a socket");
        bind(&socket, &SocketAddr::new(from, 0)).expect("an address of this host");
        connect(&socket, &server).expect("connect");
        let stream = TcpStream::from(socket);
        stream
            .set_read_timeout(Some(PATIENCE))
            .expect("a time limit");
        let mut client = Client::over(Stream::Tcp(stream));
        client.read_greeting();
        client.client_flags(wire::FIXED_NEWSTYLE | wire::NO_ZEROES);
        client
    }

    /// Connected, and the usual client flags are sent.
    pub fn greeted(address: &Address) -> Client {
        let mut client = Client::connect(address);
        client.client_flags(wire::FIXED_NEWSTYLE | wire::NO_ZEROES);
        client
    }

    /// Ready for requests to `export`.
    pub fn open(address: &Address, export: &str, mode: Mode) -> Client {
        Client::open_with(address, export, mode, &[])
    }

    /// Ready for requests to `export`, with these metadata contexts.
    pub fn open_with(address: &Address, export: &str, mode: Mode, contexts: &[&str]) -> Client {
        let mut client = Client::greeted(address);
        client.negotiate(mode);
        if !contexts.is_empty() {
            let selected = client.select(export, contexts);
            assert_eq!(selected.len(), contexts.len(), "{selected:?}");
        }
        client.go(export);
        client
    }

    /// Asks for `mode`.
    pub fn negotiate(&mut self, mode: Mode) {
        match mode {
            Mode::Simple => {}
            Mode::Structured => self.acknowledged(opt::STRUCTURED_REPLY, &[]),
            Mode::Extended => self.acknowledged(opt::EXTENDED_HEADERS, &[]),
        }
        self.mode = mode;
    }

    // Bytes.

    /// Sends bytes as they are.
    #[track_caller]
    pub fn send(&mut self, bytes: &[u8]) {
        self.try_send(bytes).expect("send");
    }

    /// Sends bytes to a server that may have gone away.
    pub fn try_send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)?;
        self.stream.flush()
    }

    /// The next `length` bytes.
    #[track_caller]
    pub fn receive(&mut self, length: usize) -> Vec<u8> {
        while self.received.len() - self.taken < length {
            self.received.drain(..std::mem::take(&mut self.taken));
            let have = self.received.len();
            self.received.resize(have + (64 << 10), 0);
            let got = self.stream.read(&mut self.received[have..]);
            let got = got.unwrap_or_else(|e| panic!("waiting for {length} bytes: {e}"));
            self.received.truncate(have + got);
            assert!(got > 0, "the server hung up after {have} of {length} bytes");
        }
        let bytes = self.received[self.taken..self.taken + length].to_vec();
        self.taken += length;
        bytes
    }

    pub(super) fn u16(&mut self) -> u16 {
        u16::from_be_bytes(self.receive(2).try_into().expect("2 bytes"))
    }

    pub(super) fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.receive(4).try_into().expect("4 bytes"))
    }

    pub(super) fn u64(&mut self) -> u64 {
        u64::from_be_bytes(self.receive(8).try_into().expect("8 bytes"))
    }

    /// The server closes the connection, and sends nothing before that.
    #[track_caller]
    pub fn expect_end(&mut self) {
        let rest = self.rest();
        assert!(
            rest.is_empty(),
            "{} bytes too many: {rest:02x?}",
            rest.len()
        );
    }

    /// All that the server still sends before it closes the connection.
    #[track_caller]
    pub fn rest(&mut self) -> Vec<u8> {
        let mut rest = self.received.split_off(self.taken);
        let mut chunk = vec![0; 64 << 10];
        loop {
            match self.stream.read(&mut chunk) {
                Ok(0) => return rest,
                Ok(got) => rest.extend(&chunk[..got]),
                Err(error) => match error.kind() {
                    // A server that closes with unread input resets the connection; one that hangs
                    // up on a TLS client leaves its closing message out.
                    ErrorKind::ConnectionReset
                    | ErrorKind::BrokenPipe
                    | ErrorKind::ConnectionAborted
                    | ErrorKind::UnexpectedEof => return rest,
                    _ => panic!("the server does not hang up: {error}"),
                },
            }
        }
    }

    /// The server ends TLS in order, and then the connection.
    #[track_caller]
    pub fn expect_tls_end(&mut self) {
        let got = self.stream.read(&mut [0; 16]);
        assert_eq!(got.expect("TLS's closing message comes first"), 0);
    }

    /// Some bytes, from a server that may have gone away.
    pub fn try_receive(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; 4096];
        match self.stream.read(&mut bytes)? {
            0 => Err(ErrorKind::UnexpectedEof.into()),
            got => Ok(bytes[..got].to_vec()),
        }
    }

    /// The other end.
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Number of bytes that came and were not asked for yet.
    pub fn has_received(&self) -> usize {
        self.received.len() - self.taken
    }

    // Handshake.

    /// Sends the client flags.
    pub fn client_flags(&mut self, flags: u32) {
        self.send(&flags.to_be_bytes());
    }

    /// Sends an option and reads its replies; the last one is final.
    #[track_caller]
    pub fn option(&mut self, option: u32, data: &[u8]) -> Vec<OptionReply> {
        self.send(&wire::option(option, data));
        self.option_replies(option)
    }

    /// Reads the replies to an option.
    #[track_caller]
    pub fn option_replies(&mut self, option: u32) -> Vec<OptionReply> {
        let mut replies = Vec::new();
        loop {
            assert_eq!(self.u64(), wire::OPTION_REPLY);
            assert_eq!(self.u32(), option, "a reply to this option");
            let kind = self.u32();
            let length = self.u32() as usize;
            assert!(length <= 64 << 10, "a reply of {length} bytes");
            let data = self.receive(length);
            let reply = OptionReply { kind, data };
            let last = match (kind, option) {
                (rep::ACK, _) => {
                    assert_eq!(length, 0, "an ACK has no data");
                    true
                }
                (rep::SERVER, opt::LIST)
                | (rep::INFO, opt::INFO | opt::GO)
                | (rep::META_CONTEXT, opt::LIST_META_CONTEXT | opt::SET_META_CONTEXT) => false,
                _ => {
                    assert!(kind & rep::ERROR != 0, "{reply:?} to option {option}");
                    assert!(reply.text().len() <= 4096, "a text has 4096 bytes at most");
                    assert!(!reply.text().contains('\0'), "a text holds no NUL");
                    true
                }
            };
            replies.push(reply);
            if last {
                return replies;
            }
        }
    }

    /// An option that is answered with `ACK` alone.
    #[track_caller]
    pub fn acknowledged(&mut self, option: u32, data: &[u8]) {
        let replies = self.option(option, data);
        assert_eq!(replies.len(), 1, "{replies:?}");
        assert_eq!(replies[0].kind, rep::ACK, "{replies:?}");
    }

    /// An option that is refused in this way; the text of the refusal.
    #[track_caller]
    pub fn refused(&mut self, option: u32, data: &[u8], kind: u32) -> String {
        let replies = self.option(option, data);
        assert_eq!(replies.len(), 1, "{replies:?}");
        let text = replies[0].text();
        assert_eq!(
            replies[0].kind, kind,
            "{:#x}, not {kind:#x}: {text}",
            replies[0].kind
        );
        text
    }

    /// The names of all exports.
    pub fn list(&mut self) -> Vec<String> {
        let mut replies = self.option(opt::LIST, &[]);
        let last = replies.pop().expect("there is a last one");
        assert_eq!(last.kind, rep::ACK, "{last:?}");
        let name = |reply: OptionReply| {
            let (length, rest) = reply.data.split_at_checked(4).expect("a length");
            let length = u32::from_be_bytes(length.try_into().expect("4 bytes")) as usize;
            assert!(length <= rest.len(), "the name fits the reply");
            String::from_utf8(rest[..length].to_vec()).expect("a name is UTF-8")
        };
        replies.into_iter().map(name).collect()
    }

    /// `INFO` with every kind of information.
    pub fn info(&mut self, export: &str) -> ExportInfo {
        let asked = [info::NAME, info::DESCRIPTION, info::BLOCK_SIZE];
        let replies = self.option(opt::INFO, &wire::go(export, &asked));
        parse_info(&replies)
    }

    /// `GO`, which must succeed.
    #[track_caller]
    pub fn go(&mut self, export: &str) {
        let replies = self.option(opt::GO, &wire::go(export, &[info::BLOCK_SIZE]));
        self.export = parse_info(&replies);
    }

    /// The old way to an export; NO_ZEROES decides on the padding.
    pub fn export_name(&mut self, export: &str, no_zeroes: bool) {
        self.send(&wire::option(opt::EXPORT_NAME, export.as_bytes()));
        self.export.size = self.u64();
        self.export.flags = self.u16();
        if !no_zeroes {
            assert_eq!(self.receive(124), [0; 124]);
        }
    }

    /// `LIST_META_CONTEXT`: the names.
    pub fn list_contexts(&mut self, export: &str, queries: &[&str]) -> Vec<String> {
        let replies = self.option(opt::LIST_META_CONTEXT, &wire::meta(export, queries));
        let contexts = parse_contexts(replies);
        contexts.into_iter().map(|(_, name)| name).collect()
    }

    /// `SET_META_CONTEXT`: the names selected.
    pub fn select(&mut self, export: &str, queries: &[&str]) -> Vec<String> {
        let replies = self.option(opt::SET_META_CONTEXT, &wire::meta(export, queries));
        let contexts = parse_contexts(replies);
        let names = contexts.iter().map(|(_, name)| name.clone()).collect();
        let selected = contexts.len();
        self.contexts = contexts.into_iter().collect();
        assert_eq!(self.contexts.len(), selected, "each context has its own id");
        names
    }

    /// The id of a selected context.
    pub fn context(&self, name: &str) -> u32 {
        let found = self.contexts.iter().find(|(_, n)| *n == name);
        *found.unwrap_or_else(|| panic!("{name} is not selected")).0
    }

    /// Asks for TLS and begins it. `Err` if the TLS handshake fails.
    pub fn start_tls(
        mut self,
        config: Arc<rustls::ClientConfig>,
        server: &str,
    ) -> io::Result<Client> {
        self.acknowledged(opt::STARTTLS, &[]);
        self.begin_tls(config, server)
    }

    /// Begins TLS, which was asked for. `Err` if the TLS handshake fails.
    pub fn begin_tls(
        mut self,
        config: Arc<rustls::ClientConfig>,
        server: &str,
    ) -> io::Result<Client> {
        if let Some(first) = self.received.get(self.taken) {
            assert_eq!(
                *first, 0x15,
                "nothing but an alert comes before the client's hello"
            );
            return Err(ErrorKind::ConnectionAborted.into());
        }
        let name = server.to_owned().try_into().expect("a server's name");
        let tls = rustls::ClientConnection::new(config, name).map_err(io::Error::other)?;
        let plain = std::mem::replace(&mut self.stream, Stream::None);
        let mut tls = rustls::StreamOwned::new(tls, plain);
        while tls.conn.is_handshaking() {
            let (read, wrote) = tls.conn.complete_io(&mut tls.sock)?;
            if (read, wrote) == (0, 0) {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
        self.stream = Stream::Tls(Box::new(tls));
        Ok(self)
    }
}

fn parse_contexts(mut replies: Vec<OptionReply>) -> Vec<(u32, String)> {
    let last = replies.pop().expect("there is a last one");
    assert_eq!(last.kind, rep::ACK, "{last:?}");
    let context = |reply: OptionReply| {
        let (id, name) = reply.data.split_at_checked(4).expect("an id");
        let id = u32::from_be_bytes(id.try_into().expect("4 bytes"));
        let name = String::from_utf8(name.to_vec()).expect("a context's name is UTF-8");
        let (namespace, _) = name.split_once(':').expect("a name has a namespace");
        assert!(!namespace.is_empty());
        (id, name)
    };
    replies.into_iter().map(context).collect()
}

/// Reads the replies to a successful `INFO` or `GO`.
#[track_caller]
pub fn parse_info(replies: &[OptionReply]) -> ExportInfo {
    let (last, replies) = replies.split_last().expect("there is a last one");
    assert_eq!(
        last.kind,
        rep::ACK,
        "{last:?}: {}",
        String::from_utf8_lossy(&last.data)
    );
    let mut export = ExportInfo::default();
    let mut seen = Vec::new();
    for reply in replies {
        let (kind, data) = reply.data.split_at_checked(2).expect("a kind");
        let kind = u16::from_be_bytes(kind.try_into().expect("2 bytes"));
        assert!(!seen.contains(&kind), "information {kind} comes twice");
        seen.push(kind);
        let number = |at: usize| {
            let bytes = data[at..at + 4].try_into().expect("4 bytes");
            u32::from_be_bytes(bytes)
        };
        let text = || String::from_utf8(data.to_vec()).expect("a text is UTF-8");
        match kind {
            info::EXPORT => {
                assert_eq!(data.len(), 10);
                export.size = u64::from(number(0)) << 32 | u64::from(number(4));
                export.flags = u16::from_be_bytes([data[8], data[9]]);
            }
            info::NAME => export.name = Some(text()),
            info::DESCRIPTION => export.description = Some(text()),
            info::BLOCK_SIZE => {
                assert_eq!(data.len(), 12);
                export.block_size = Some([number(0), number(4), number(8)]);
            }
            _ => panic!("nobody asked for information {kind}"),
        }
    }
    assert!(seen.contains(&info::EXPORT), "size and flags must be told");
    assert_eq!(export.flags & 1, 1, "HAS_FLAGS must always be set");
    export
}
