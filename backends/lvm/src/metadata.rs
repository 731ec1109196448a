//! What thin volumes map, read from the pool's metadata: exact to the chunk.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use futures::stream::{self, Stream, StreamExt};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use volmux_core::{ByteRange, Error, ErrorKind, Result};

use crate::reserved::{Place, Reserved};
pub use crate::thin_xml::Occupied;
use crate::thin_xml::{Joined, List, Subject, Wrong, occupied};

/// Reads the metadata of one thin pool. One at a time on this host; others wait.
#[derive(Clone, Debug)]
pub struct ThinMetadata {
    place: Place,
    tools: PathBuf,
}

/// A tool that prints nothing for so long has come to a halt.
const STALL: Duration = Duration::from_secs(60);
/// `thin_ls` prints only when it has read everything.
const SUMMARY: Duration = Duration::from_secs(600);
/// How long to wait for others who read the metadata.
const PATIENCE: Duration = Duration::from_secs(120);

/// Extents that are handed over together.
const BATCH: usize = 1024;
/// So many batches (16 MiB) are read ahead of whoever uses them: the tool is then through, and the
/// metadata free for others, however slowly the extents are used.
const AHEAD: usize = 1024;

impl ThinMetadata {
    /// The metadata of `group/pool`. `lock` is a file, the same for all who use the pool.
    pub fn new(group: &str, pool: &str, lock: PathBuf) -> ThinMetadata {
        ThinMetadata {
            place: Place {
                group: group.to_owned(),
                pool: pool.to_owned(),
                lock,
                patience: PATIENCE,
            },
            tools: PathBuf::from("/usr/sbin"),
        }
    }

    /// The chunks within `range` that the thin device `id` maps, in bytes, joined, in order.
    /// They hold all writes that were complete before the call.
    ///
    /// # Errors
    /// `Busy` if others read the metadata all the time; in the stream `NotFound` if there is no
    /// such device. A stream that has no error is whole.
    pub async fn allocated(
        &self,
        op: &'static str,
        id: u32,
        range: ByteRange,
    ) -> Result<impl Stream<Item = Result<ByteRange>> + Send + use<>> {
        let arguments = ["-m".into(), "--dev-id".into(), id.to_string()];
        self.list(op, "thin_dump", &arguments, Subject::Device(id), range)
            .await
    }

    /// The chunks within `range` in which the thin device `now` maps something else than `then`, in
    /// bytes, joined, in order. What was written with the same content counts.
    ///
    /// # Errors
    /// As [`allocated`](Self::allocated).
    pub async fn changed(
        &self,
        op: &'static str,
        now: u32,
        then: u32,
        range: ByteRange,
    ) -> Result<impl Stream<Item = Result<ByteRange>> + Send + use<>> {
        let [snap1, snap2] = ["--snap1".into(), "--snap2".into()];
        let arguments = ["-m".into(), snap1, now.to_string(), snap2, then.to_string()];
        self.list(
            op,
            "thin_delta",
            &arguments,
            Subject::Diff(now, then),
            range,
        )
        .await
    }

    /// What each thin device of the pool occupies.
    ///
    /// # Errors
    /// As [`allocated`](Self::allocated).
    pub async fn usage(&self, op: &'static str) -> Result<HashMap<u32, Occupied>> {
        let reserved = Reserved::new(op, &self.place).await?;
        let fields = "DEV,MAPPED_BYTES,EXCLUSIVE_BYTES";
        let arguments = ["-m", "--no-headers", "-o", fields].map(String::from);
        let mut tool = self.start(op, "thin_ls", &arguments)?;
        let mut usage = HashMap::new();
        while let Some(line) = tool.line(SUMMARY).await? {
            let (id, occupied) = occupied(line).ok_or_else(|| tool.wrong(Wrong::Line))?;
            usage.insert(id, occupied);
        }
        tool.end().await?;
        reserved.release().await;
        Ok(usage)
    }

    /// The transaction of the pool in which a thin device was made. `None` if there is none.
    ///
    /// # Errors
    /// As [`allocated`](Self::allocated).
    pub async fn made_in(&self, op: &'static str, id: u32) -> Result<Option<u64>> {
        let reserved = Reserved::new(op, &self.place).await?;
        let arguments = ["-m", "--no-headers", "-o", "DEV,TRANSACTION"].map(String::from);
        let mut tool = self.start(op, "thin_ls", &arguments)?;
        let mut made_in = None;
        while let Some(line) = tool.line(SUMMARY).await? {
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            let [device, transaction] = words[..] else {
                return Err(tool.wrong(Wrong::Line));
            };
            if device.parse() == Ok(id) {
                made_in = transaction.parse().ok();
            }
        }
        tool.end().await?;
        reserved.release().await;
        Ok(made_in)
    }

    async fn list(
        &self,
        op: &'static str,
        program: &'static str,
        arguments: &[String],
        subject: Subject,
        range: ByteRange,
    ) -> Result<impl Stream<Item = Result<ByteRange>> + Send + use<>> {
        let reserved = Reserved::new(op, &self.place).await?;
        let tool = self.start(op, program, arguments)?;
        let (sink, source) = mpsc::channel(AHEAD);
        let work = tokio::spawn(async move {
            let result = pump(tool, List::new(subject), range, &sink).await;
            reserved.release().await;
            result
        });
        Ok(received(op, source, work))
    }

    fn start(&self, op: &'static str, program: &'static str, arguments: &[String]) -> Result<Tool> {
        let path = self.tools.join(program);
        let device = self.place.metadata_device();
        Tool::start(op, &path, arguments, &device).map_err(|error| {
            let missing = error.kind() == std::io::ErrorKind::NotFound;
            let error = Error::from_io(op, error).with("path", path.display());
            if missing {
                error
                    .with_kind(ErrorKind::Unsupported)
                    .reason("the tool is not installed")
                    .help("install the package thin-provisioning-tools")
            } else {
                error.reason("the tool does not start")
            }
        })
    }
}

/// Sends on what the tool lists, until the list, the range or the interest ends.
async fn pump(
    mut tool: Tool,
    mut list: List,
    range: ByteRange,
    sink: &mpsc::Sender<Vec<ByteRange>>,
) -> Result<()> {
    let mut joined = Joined::new(range);
    let mut batch = Vec::new();
    loop {
        let line = tokio::select! {
            biased;
            line = tool.line(STALL) => line?,
            () = sink.closed() => return Ok(()),
        };
        let Some(line) = line else {
            tool.end().await?;
            list.finish().map_err(|wrong| tool.wrong(wrong))?;
            break;
        };
        let extent = match list.line(line) {
            Ok(extent) => extent,
            Err(wrong) => return Err(tool.failed_or(wrong).await),
        };
        let Some(extent) = extent else { continue };
        if extent.offset >= range.end() {
            // The tools can't be told where to stop.
            break;
        }
        batch.extend(joined.push(extent));
        if batch.len() >= BATCH && sink.send(std::mem::take(&mut batch)).await.is_err() {
            return Ok(());
        }
    }
    batch.extend(joined.finish());
    // Nobody may be there any more.
    let _unwanted = sink.send(batch).await;
    Ok(())
}

/// What `work` sends. Ends with its error, and never just ends if it did not come to its end.
fn received(
    op: &'static str,
    source: mpsc::Receiver<Vec<ByteRange>>,
    work: JoinHandle<Result<()>>,
) -> impl Stream<Item = Result<ByteRange>> + Send + use<> {
    let batches = stream::unfold((source, Some(work)), move |(mut source, work)| async move {
        if let Some(batch) = source.recv().await {
            return Some((Ok(batch), (source, work)));
        }
        let error = match work?.await {
            Ok(Ok(())) => return None,
            Ok(Err(error)) => error,
            Err(error) => Error::new(ErrorKind::Internal, op).with_source(error),
        };
        Some((Err(error), (source, None)))
    });
    batches.flat_map(|batch| {
        let extents: Vec<Result<ByteRange>> = match batch {
            Ok(extents) => extents.into_iter().map(Ok).collect(),
            Err(error) => vec![Err(error)],
        };
        stream::iter(extents)
    })
}

/// A running tool, killed if it is dropped.
struct Tool {
    op: &'static str,
    program: PathBuf,
    child: Child,
    output: BufReader<ChildStdout>,
    line: Vec<u8>,
    complaints: Option<JoinHandle<String>>,
}

/// No line of a tool is longer.
const LINE: u64 = 4096;

impl Tool {
    fn start(
        op: &'static str,
        program: &Path,
        arguments: &[String],
        device: &Path,
    ) -> std::io::Result<Tool> {
        let mut child = Command::new(program)
            .args(arguments)
            .arg("--")
            .arg(device)
            .env_clear()
            .env("LC_ALL", "C")
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // What a terminal sends to ours is not for it.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let output = child.stdout.take().expect("piped");
        let complaints = tokio::spawn(beginning(child.stderr.take().expect("piped")));
        Ok(Tool {
            op,
            program: program.to_owned(),
            child,
            output: BufReader::with_capacity(64 << 10, output),
            line: Vec::new(),
            complaints: Some(complaints),
        })
    }

    /// The next line. `None` at the end, or where the output breaks off.
    async fn line(&mut self, patience: Duration) -> Result<Option<&str>> {
        self.line.clear();
        let mut limited = (&mut self.output).take(LINE);
        let read = timeout(patience, limited.read_until(b'\n', &mut self.line)).await;
        match read {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Err(self.error(ErrorKind::of_io(&error)).with_source(error)),
            Err(_) => {
                return Err(self
                    .error(ErrorKind::TimedOut)
                    .reason("the tool has printed nothing for a long time")
                    .help("see the kernel's log for a disk that does not answer"));
            }
        }
        if !self.line.ends_with(b"\n") && (self.line.len() as u64) < LINE {
            return Ok(None);
        }
        match std::str::from_utf8(&self.line) {
            Ok(_) => {}
            Err(_) => return Err(self.wrong(Wrong::Line)),
        }
        Ok(Some(
            std::str::from_utf8(&self.line).expect("seen just now"),
        ))
    }

    /// Fails if the tool did.
    async fn end(&mut self) -> Result<()> {
        let status = match timeout(STALL, self.child.wait()).await {
            Ok(status) => {
                status.map_err(|error| self.error(ErrorKind::Internal).with_source(error))?
            }
            Err(_) => {
                return Err(self
                    .error(ErrorKind::TimedOut)
                    .reason("the tool does not end"));
            }
        };
        if status.success() {
            return Ok(());
        }
        let said = match self.complaints.take() {
            Some(complaints) => complaints.await.unwrap_or_default(),
            None => String::new(),
        };
        let kind = if said.contains("Unable to find mapping tree") {
            ErrorKind::NotFound
        } else {
            ErrorKind::Unavailable
        };
        let first = said.lines().find(|line| !line.trim().is_empty());
        Err(self
            .error(kind)
            .with("status", status)
            .reason(first.unwrap_or("the tool failed and does not say why")))
    }

    /// The tool's own complaint if it has one, or else what is wrong with its output.
    async fn failed_or(&mut self, wrong: Wrong) -> Error {
        if wrong == Wrong::Line {
            return self.wrong(wrong);
        }
        match self.end().await {
            Err(error) => error,
            Ok(()) => self.wrong(wrong),
        }
    }

    fn wrong(&self, wrong: Wrong) -> Error {
        let (kind, reason) = match wrong {
            Wrong::Line => (
                ErrorKind::Unsupported,
                "the tool printed what is not understood",
            ),
            Wrong::Incomplete => (ErrorKind::Unavailable, "the tool's output breaks off"),
            Wrong::Count => (
                ErrorKind::Corrupt,
                "the pool's metadata lists other chunks than it counts",
            ),
            Wrong::NoDevice => (ErrorKind::NotFound, "the pool has no such thin device"),
        };
        let error = self.error(kind).reason(reason);
        if wrong == Wrong::Line {
            let line = String::from_utf8_lossy(&self.line);
            return error
                .with("line", line.trim().chars().take(200).collect::<String>())
                .help("volmux knows thin-provisioning-tools 0.9; report the line");
        }
        error
    }

    fn error(&self, kind: ErrorKind) -> Error {
        Error::new(kind, self.op).with("program", self.program.display())
    }
}

/// The first 4 KiB; the rest is read and forgotten, so that the writer does not wait.
async fn beginning(mut from: impl AsyncRead + Unpin) -> String {
    let mut text = Vec::new();
    // What was read until an error is what there is.
    let _read = (&mut from).take(4096).read_to_end(&mut text).await;
    let _drained = tokio::io::copy(&mut from, &mut tokio::io::sink()).await;
    String::from_utf8_lossy(&text).into_owned()
}

#[cfg(test)]
mod tests;
