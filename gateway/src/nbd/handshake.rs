//! The handshake: fixed newstyle, options until the client chooses an export.

use std::io;
use std::sync::Arc;

use futures::StreamExt;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use volmux_core::{Error, ErrorKind, Origin, OriginKind, Volume, VolumeName};

use super::extents::{ALLOCATION, CHANGED_SINCE, Context, ContextKind, NAMESPACE};
use super::request::Session;
use super::wire::{
    ContextRequest, INIT_MAGIC, InfoRequest, Mode, OPTION_MAGIC, OPTION_REPLY_MAGIC, STRING_LENGTH,
    handshake_flag, info, option, reply, transmission_flag as flag,
};
use crate::client::Peer;
use crate::export::{Catalog, Preview, chain};
use crate::options::Limits;

/// An option longer than the limit is read over up to here, so that the client can be told.
const SKIPPED: u32 = 1 << 20;
/// So many options are enough for anybody.
const OPTIONS: usize = 128;
/// The most contexts that one connection selects, and what lists have at most.
const CONTEXTS: usize = 16;
const EXPORTS_LISTED: usize = 65_536;
const CONTEXTS_LISTED: usize = 1024;
const PREFERRED_BLOCK: u32 = 4096;

/// How a handshake went on.
pub(crate) enum Chosen {
    /// The client wants TLS, and was told to begin.
    Tls,
    /// The transmission begins.
    Export(Session),
    /// The client went away in order.
    Aborted,
}

/// Why a handshake failed.
#[derive(Debug)]
pub(crate) enum Failed {
    Io(io::Error),
    /// What the client did wrong.
    Violation(String),
    /// The export that it asked for in the old way could not be had.
    Refused,
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        Failed::Io(error)
    }
}

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Failed::Io(error) => write!(f, "{error}"),
            Failed::Violation(what) => f.write_str(what),
            Failed::Refused => f.write_str("the export was refused"),
        }
    }
}

/// What a handshake is about.
#[derive(Clone, Debug)]
pub(crate) struct Terms {
    pub(crate) catalog: Arc<Catalog>,
    pub(crate) limits: Limits,
    pub(crate) peer: Peer,
    /// The client must begin with TLS.
    pub(crate) tls_required: bool,
}

/// What a client can do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ClientFlags {
    /// It has options other than the oldest, and understands that one is refused.
    fixed: bool,
    no_zeroes: bool,
}

/// Sends the greeting and reads the client's flags.
///
/// # Errors
/// The connection broke, or the client sent flags that there are not.
pub(crate) async fn greet<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
) -> Result<ClientFlags, Failed> {
    let offered = handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES;
    let mut greeting = Vec::with_capacity(18);
    greeting.extend(INIT_MAGIC.to_be_bytes());
    greeting.extend(OPTION_MAGIC.to_be_bytes());
    greeting.extend(offered.to_be_bytes());
    stream.write_all(&greeting).await?;
    let flags = stream.read_u32().await?;
    if flags & !u32::from(offered) != 0 {
        let text = format!("client flags {flags:#x}, which were not offered");
        return Err(Failed::Violation(text));
    }
    Ok(ClientFlags {
        fixed: flags & u32::from(handshake_flag::FIXED_NEWSTYLE) != 0,
        no_zeroes: flags & u32::from(handshake_flag::NO_ZEROES) != 0,
    })
}

/// Answers options until the client has chosen an export. `secure`: TLS has begun.
///
/// # Errors
/// The connection broke, or the client broke the protocol.
pub(crate) async fn options<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    terms: &Terms,
    secure: bool,
    client: ClientFlags,
) -> Result<Chosen, Failed> {
    let mut haggling = Haggling {
        terms,
        secure,
        client,
        structured: false,
        extended: false,
        contexts: None,
        replies: Vec::new(),
    };
    for _ in 0..OPTIONS {
        let magic = stream.read_u64().await?;
        if magic != OPTION_MAGIC {
            let text = format!("an option that begins with {magic:#018x}");
            return Err(Failed::Violation(text));
        }
        let option = stream.read_u32().await?;
        let length = stream.read_u32().await?;
        if !client.fixed && option != option::EXPORT_NAME {
            let text = format!("option {option} without fixed newstyle");
            return Err(Failed::Violation(text));
        }
        if length > terms.limits.option_length {
            haggling.skip(stream, option, length).await?;
            continue;
        }
        let mut data = vec![0; length as usize];
        stream.read_exact(&mut data).await?;
        let next = haggling.answer(option, &data).await;
        if !haggling.replies.is_empty() {
            stream.write_all(&haggling.replies).await?;
            stream.flush().await?;
            haggling.replies.clear();
        }
        if let Some(chosen) = next? {
            return Ok(chosen);
        }
    }
    Err(Failed::Violation(format!("more than {OPTIONS} options")))
}

/// What was agreed on so far.
struct Haggling<'a> {
    terms: &'a Terms,
    secure: bool,
    client: ClientFlags,
    structured: bool,
    extended: bool,
    /// The export that contexts were selected for, and the contexts.
    contexts: Option<(VolumeName, Vec<Context>)>,
    /// Replies to the present option.
    replies: Vec<u8>,
}

impl Haggling<'_> {
    async fn skip<S: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        stream: &mut S,
        option: u32,
        length: u32,
    ) -> Result<(), Failed> {
        if length > SKIPPED || option == option::EXPORT_NAME {
            return Err(Failed::Violation(format!("an option of {length} bytes")));
        }
        let mut data = (&mut *stream).take(length.into());
        let skipped = tokio::io::copy(&mut data, &mut tokio::io::sink()).await?;
        if skipped < length.into() {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        self.refuse(option, reply::ERR_TOO_BIG, "the option is too long");
        stream.write_all(&self.replies).await?;
        stream.flush().await?;
        self.replies.clear();
        Ok(())
    }

    async fn answer(&mut self, option: u32, data: &[u8]) -> Result<Option<Chosen>, Failed> {
        if self.terms.tls_required && !self.secure {
            return self.answer_before_tls(option, data);
        }
        match option {
            option::EXPORT_NAME => return self.export_name(data).await.map(Some),
            option::ABORT => {
                self.ack(option);
                return Ok(Some(Chosen::Aborted));
            }
            option::STARTTLS if self.secure => {
                self.refuse(option, reply::ERR_INVALID, "TLS has begun already");
            }
            option::STARTTLS => {
                self.refuse(option, reply::ERR_POLICY, "this server has no TLS");
            }
            option::LIST if !data.is_empty() => self.not_empty(option),
            option::LIST => self.list().await,
            option::INFO => self.info(data).await,
            option::GO => return self.go(data).await,
            option::STRUCTURED_REPLY if !data.is_empty() => self.not_empty(option),
            option::STRUCTURED_REPLY if self.extended => {
                let text = "extended headers were agreed on";
                self.refuse(option, reply::ERR_EXT_HEADER_REQD, text);
            }
            option::STRUCTURED_REPLY => {
                self.structured = true;
                self.ack(option);
            }
            option::EXTENDED_HEADERS if !data.is_empty() => self.not_empty(option),
            option::EXTENDED_HEADERS => {
                self.extended = true;
                self.ack(option);
            }
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => {
                self.meta_contexts(option, data).await;
            }
            _ => self.refuse(option, reply::ERR_UNSUP, "an option that is not known"),
        }
        Ok(None)
    }

    /// A client without TLS learns nothing.
    fn answer_before_tls(&mut self, option: u32, data: &[u8]) -> Result<Option<Chosen>, Failed> {
        match option {
            option::STARTTLS if data.is_empty() => {
                self.ack(option);
                return Ok(Some(Chosen::Tls));
            }
            option::STARTTLS => self.not_empty(option),
            option::ABORT => {
                self.ack(option);
                return Ok(Some(Chosen::Aborted));
            }
            option::EXPORT_NAME => {
                let text = "an export was asked for without TLS, which is required".to_owned();
                return Err(Failed::Violation(text));
            }
            _ => {
                let peer = self.terms.peer;
                tracing::warn!(%peer, option, "refused: the client does not begin with TLS");
                self.refuse(option, reply::ERR_TLS_REQD, "TLS is required");
            }
        }
        Ok(None)
    }

    async fn list(&mut self) {
        let mut names = self.terms.catalog.names().take(EXPORTS_LISTED);
        while let Some(name) = names.next().await {
            match name {
                Ok(name) => {
                    let mut data = (name.as_str().len() as u32).to_be_bytes().to_vec();
                    data.extend(name.as_str().as_bytes());
                    self.reply(option::LIST, reply::SERVER, &data);
                }
                // One that can't be read does not hide the others.
                Err(error) => tracing::warn!(error = %chain(&error), "left out of the list"),
            }
        }
        self.ack(option::LIST);
    }

    async fn info(&mut self, data: &[u8]) {
        let Some(request) = InfoRequest::parse(data) else {
            return self.refuse(option::INFO, reply::ERR_INVALID, "malformed");
        };
        let found = async {
            let name = self.terms.catalog.resolve(request.name)?;
            self.terms.catalog.preview(&name).await
        };
        match found.await {
            Ok(preview) => {
                let flags = self.flags(&preview.volume.name, preview.writable);
                self.information(
                    option::INFO,
                    &request,
                    &preview.volume.name,
                    preview.size,
                    flags,
                );
                self.ack(option::INFO);
            }
            Err(error) => self.refuse_export(option::INFO, request.name, &error),
        }
    }

    async fn go(&mut self, data: &[u8]) -> Result<Option<Chosen>, Failed> {
        let Some(request) = InfoRequest::parse(data) else {
            self.refuse(option::GO, reply::ERR_INVALID, "malformed");
            return Ok(None);
        };
        match self.begin(request.name).await {
            Ok((session, flags)) => {
                let name = session.export.name().clone();
                self.information(option::GO, &request, &name, session.size, flags);
                self.ack(option::GO);
                Ok(Some(Chosen::Export(session)))
            }
            Err(error) => {
                self.refuse_export(option::GO, request.name, &error);
                Ok(None)
            }
        }
    }

    /// The old way to choose an export, which has no error replies.
    async fn export_name(&mut self, name: &[u8]) -> Result<Chosen, Failed> {
        if self.extended {
            let text = "NBD_OPT_EXPORT_NAME after extended headers".to_owned();
            return Err(Failed::Violation(text));
        }
        match self.begin(name).await {
            Ok((session, flags)) => {
                self.replies.extend(session.size.to_be_bytes());
                self.replies.extend(flags.to_be_bytes());
                if !self.client.no_zeroes {
                    self.replies.extend([0; 124]);
                }
                Ok(Chosen::Export(session))
            }
            Err(error) => {
                self.log_refusal(name, &error);
                Err(Failed::Refused)
            }
        }
    }

    async fn begin(&mut self, name: &[u8]) -> Result<(Session, u16), Error> {
        let name = self.terms.catalog.resolve(name)?;
        let (export, size) = self.terms.catalog.attach(&name, self.terms.peer).await?;
        let flags = self.flags(&name, export.writable());
        // Contexts that were selected for another export count for nothing.
        let contexts = self.contexts.take().filter(|(chosen, _)| *chosen == name);
        let session = Session {
            export,
            mode: self.mode(),
            size,
            request_length: self.terms.limits.request_length.into(),
            contexts: contexts.map(|(_, contexts)| contexts).unwrap_or_default(),
        };
        Ok((session, flags))
    }

    fn mode(&self) -> Mode {
        match (self.structured, self.extended) {
            (_, true) => Mode::Extended,
            (true, false) => Mode::Structured,
            (false, false) => Mode::Simple,
        }
    }

    /// The transmission flags.
    fn flags(&self, name: &VolumeName, writable: bool) -> u16 {
        let mut flags = flag::HAS_FLAGS
            | flag::SEND_FLUSH
            | flag::SEND_FUA
            | flag::CAN_MULTI_CONN
            | flag::SEND_CACHE;
        if writable {
            flags |= flag::SEND_WRITE_ZEROES | flag::SEND_FAST_ZERO;
            if self.terms.catalog.discards() {
                flags |= flag::SEND_TRIM;
            }
        } else {
            flags |= flag::READ_ONLY;
        }
        if self.mode() != Mode::Simple {
            flags |= flag::SEND_DF;
        }
        let selected = self.contexts.as_ref();
        if self.extended && selected.is_some_and(|(chosen, all)| chosen == name && !all.is_empty())
        {
            flags |= flag::BLOCK_STATUS_PAYLOAD;
        }
        flags
    }

    fn information(
        &mut self,
        option: u32,
        request: &InfoRequest<'_>,
        name: &VolumeName,
        size: u64,
        flags: u16,
    ) {
        let mut data = info::EXPORT.to_be_bytes().to_vec();
        data.extend(size.to_be_bytes());
        data.extend(flags.to_be_bytes());
        self.reply(option, reply::INFO, &data);
        if request.wanted.contains(&info::NAME) {
            let mut data = info::NAME.to_be_bytes().to_vec();
            data.extend(name.as_str().as_bytes());
            self.reply(option, reply::INFO, &data);
        }
        if request.wanted.contains(&info::BLOCK_SIZE) {
            let mut data = info::BLOCK_SIZE.to_be_bytes().to_vec();
            for size in [1, PREFERRED_BLOCK, self.terms.limits.request_length] {
                data.extend(size.to_be_bytes());
            }
            self.reply(option, reply::INFO, &data);
        }
    }

    async fn meta_contexts(&mut self, option: u32, data: &[u8]) {
        let set = option == option::SET_META_CONTEXT;
        if set {
            // Whatever becomes of this request, the one before it is gone.
            self.contexts = None;
        }
        let Some(request) = ContextRequest::parse(data) else {
            return self.refuse(option, reply::ERR_INVALID, "malformed");
        };
        if self.mode() == Mode::Simple {
            let text = "contexts need structured replies or extended headers";
            return self.refuse(option, reply::ERR_INVALID, text);
        }
        let found = async {
            let name = self.terms.catalog.resolve(request.name)?;
            let preview = self.terms.catalog.preview(&name).await?;
            let kinds = self.matching(&preview, &request.queries, set).await?;
            Ok((name, kinds))
        };
        let (name, kinds) = match found.await {
            Ok(found) => found,
            Err(error) => return self.refuse_export(option, request.name, &error),
        };
        if set && kinds.len() > CONTEXTS {
            return self.refuse(option, reply::ERR_TOO_BIG, "too many contexts");
        }
        let mut contexts = Vec::with_capacity(kinds.len());
        for (index, kind) in kinds.into_iter().enumerate() {
            // In a list the number means nothing.
            let id = if set { index as u32 + 1 } else { 0 };
            let mut data = id.to_be_bytes().to_vec();
            data.extend(kind.name().as_bytes());
            self.reply(option, reply::META_CONTEXT, &data);
            contexts.push(Context { id, kind });
        }
        if set {
            self.contexts = Some((name, contexts));
        }
        self.ack(option);
    }

    /// The contexts that `queries` ask for, each once.
    async fn matching(
        &self,
        preview: &Preview,
        queries: &[&[u8]],
        set: bool,
    ) -> Result<Vec<ContextKind>, Error> {
        let mut kinds = Vec::new();
        let add = |kinds: &mut Vec<ContextKind>, kind: ContextKind| {
            if !kinds.contains(&kind) {
                kinds.push(kind);
            }
        };
        let everything = [ALLOCATION.as_bytes(), NAMESPACE.as_bytes()];
        let queries = if queries.is_empty() && !set {
            &everything[..]
        } else {
            queries
        };
        for query in queries.iter().filter_map(|q| std::str::from_utf8(q).ok()) {
            if query == ALLOCATION || (query == "base:" && !set) {
                add(&mut kinds, ContextKind::Allocation);
            } else if (query == NAMESPACE || query == CHANGED_SINCE) && !set {
                let mut volumes = self.terms.catalog.pool().list_volumes();
                while let Some(volume) = volumes.next().await {
                    let Ok(volume) = volume else { continue };
                    if is_earlier(&volume, &preview.volume) && kinds.len() < CONTEXTS_LISTED {
                        add(
                            &mut kinds,
                            ContextKind::ChangedSince(volume.name, volume.id),
                        );
                    }
                }
            } else if let Some(snapshot) = query.strip_prefix(CHANGED_SINCE)
                && let Ok(snapshot) = VolumeName::new(snapshot)
            {
                match self.terms.catalog.pool().volume(&snapshot).await {
                    Ok(volume) if is_earlier(&volume, &preview.volume) => {
                        add(&mut kinds, ContextKind::ChangedSince(snapshot, volume.id));
                    }
                    Ok(_) => {}
                    Err(error) if error.kind() == ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(kinds)
    }

    fn not_empty(&mut self, option: u32) {
        self.refuse(option, reply::ERR_INVALID, "this option has no data");
    }

    fn ack(&mut self, option: u32) {
        self.reply(option, reply::ACK, &[]);
    }

    fn refuse_export(&mut self, option: u32, name: &[u8], error: &Error) {
        self.log_refusal(name, error);
        let kind = match error.kind() {
            ErrorKind::NotFound | ErrorKind::InvalidInput => reply::ERR_UNKNOWN,
            ErrorKind::Fenced | ErrorKind::Unavailable | ErrorKind::TimedOut => reply::ERR_SHUTDOWN,
            _ => reply::ERR_POLICY,
        };
        // Only what the client may know: not paths, not other clients.
        let name = String::from_utf8_lossy(&name[..name.len().min(256)]);
        let text = format!("export {name:?}: {}", error.kind());
        self.refuse(option, kind, &text);
    }

    fn log_refusal(&self, name: &[u8], error: &Error) {
        let name = String::from_utf8_lossy(&name[..name.len().min(256)]);
        let peer = self.terms.peer;
        tracing::warn!(export = ?name, %peer, error = %chain(error), "refused");
    }

    fn refuse(&mut self, option: u32, kind: u32, text: &str) {
        let mut text = text.to_owned();
        while text.len() > STRING_LENGTH {
            text.pop();
        }
        self.reply(option, kind, text.as_bytes());
    }

    fn reply(&mut self, option: u32, kind: u32, data: &[u8]) {
        self.replies.extend(OPTION_REPLY_MAGIC.to_be_bytes());
        self.replies.extend(option.to_be_bytes());
        self.replies.extend(kind.to_be_bytes());
        self.replies.extend((data.len() as u32).to_be_bytes());
        self.replies.extend(data);
    }
}

/// Whether a client of `volume` may learn how it differs from `other`: a snapshot of the volume; if
/// the volume is a snapshot, another of the same parent; if it is a clone, the snapshot that it was
/// made from. With any other volume it could find out what a stranger's disk holds, by writing
/// guesses.
fn is_earlier(other: &Volume, volume: &Volume) -> bool {
    let Some(Origin {
        kind: OriginKind::Snapshot,
        parent_id: other_parent,
        ..
    }) = &other.origin
    else {
        return false;
    };
    if other.id == volume.id {
        return false;
    }
    let own = match &volume.origin {
        Some(origin) if origin.kind == OriginKind::Snapshot => origin.parent_id == *other_parent,
        Some(origin) => origin.parent_id == other.id,
        None => false,
    };
    own || *other_parent == volume.id
}
