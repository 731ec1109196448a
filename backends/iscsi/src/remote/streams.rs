//! Lists of volumes and of extents, as they come. A list that breaks off ends with an error.

use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use volmux_core::{
    ByteRange, Error, ErrorKind, ExtentKind, ExtentQuery, ExtentStream, Grade, Result, Volume,
    VolumeName,
};

use super::documents::{ExtentDoc, ExtentsDoc, ExtentsEndDoc, VolumeDoc, parse, schema};
use super::run::{Ending, Event, Run};
use super::ssh::Ssh;

/// Where a list of volumes is.
enum List {
    NotStarted(Arc<Ssh>, Vec<String>),
    /// With the kind of the first volume that could not be read.
    Running(Box<Run>, Option<ErrorKind>),
    Ended,
}

/// The volumes that the program prints if it is started with `words`.
pub(super) fn volumes(ssh: Arc<Ssh>, words: Vec<String>) -> BoxStream<'static, Result<Volume>> {
    stream::unfold(List::NotStarted(ssh, words), |list| async {
        match list.next().await {
            Ok((Some(item), list)) => Some((item, list)),
            Ok((None, _)) => None,
            Err(error) => Some((Err(error), List::Ended)),
        }
    })
    .boxed()
}

impl List {
    /// The next volume, or one that can't be read, and the list after it.
    async fn next(self) -> Result<(Option<Result<Volume>>, List)> {
        let (mut run, first) = match self {
            List::NotStarted(ssh, words) => {
                (Box::new(start(&ssh, "list_volumes", &words).await?), None)
            }
            List::Running(run, first) => (run, first),
            List::Ended => return Ok((None, List::Ended)),
        };
        // What the caller did meanwhile does not count.
        run.restart();
        loop {
            return match run.event().await? {
                Event::Progress(_) => continue,
                Event::Line(line) => {
                    let read = parse::<VolumeDoc>(&line).and_then(VolumeDoc::into_volume);
                    let volume = read.map_err(|wrong| run.wrong(&wrong))?;
                    Ok((Some(Ok(volume)), List::Running(run, first)))
                }
                Event::Problem(error) => {
                    let first = first.or(Some(error.kind()));
                    Ok((Some(Err(error)), List::Running(run, first)))
                }
                Event::End(status) => match run.ended(status, first)? {
                    Ending::Done | Ending::Failed => Ok((None, List::Ended)),
                    Ending::Unclean => Err(run.wrong("exit code 1")),
                },
            };
        }
    }
}

async fn start(ssh: &Arc<Ssh>, op: &'static str, words: &[String]) -> Result<Run> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    Run::start(ssh, op, &words, ssh.config.deadline).await
}

/// Where a list of extents is.
struct Extents {
    run: Run,
    /// All have to be within it.
    range: ByteRange,
    /// Where the last one ended.
    end: u64,
    count: u64,
    bytes: u64,
    /// The list was said to be whole.
    whole: bool,
}

/// The extents that the program prints if it is started with `words`.
///
/// # Errors
/// Those of the program, and of connecting.
pub(super) async fn extents(
    ssh: &Arc<Ssh>,
    words: &[String],
    name: &VolumeName,
    query: &ExtentQuery,
) -> Result<ExtentStream> {
    let mut run = start(ssh, "extents", words).await?;
    let (head, grade) = loop {
        match run.event().await? {
            Event::Progress(_) => {}
            Event::Line(line) => break head(&line, name, query).map_err(|w| run.wrong(&w))?,
            Event::Problem(error) => return Err(error_at_end(&mut run, error).await),
            Event::End(status) => {
                run.ended(status, None)?;
                return Err(run.wrong("it says nothing"));
            }
        }
    };
    let range = ByteRange::new(head.offset, head.length);
    let extents = Extents {
        run,
        range,
        end: range.offset,
        count: 0,
        bytes: 0,
        whole: false,
    };
    let stream = stream::try_unfold(Some(extents), |extents| async {
        let Some(mut extents) = extents else {
            return Ok(None);
        };
        let extent = extents.next().await?;
        Ok(extent.map(|extent| (extent, Some(extents))))
    });
    Ok(ExtentStream::new(grade, head.granularity, stream))
}

/// `error`, unless the exit code tells of something worse.
async fn error_at_end(run: &mut Run, error: Error) -> Error {
    loop {
        return match run.event().await {
            Ok(Event::End(status)) => run.ended(status, Some(error.kind())).err().unwrap_or(error),
            Ok(_) => continue,
            Err(worse) => worse,
        };
    }
}

fn head(
    line: &Bytes,
    name: &VolumeName,
    query: &ExtentQuery,
) -> Result<(ExtentsDoc, Grade), String> {
    let head: ExtentsDoc = parse(line)?;
    let since = match &query.kind {
        ExtentKind::Allocated => None,
        ExtentKind::ChangedSince(snapshot) => Some(snapshot),
    };
    let range = ByteRange::new(head.offset, head.length);
    let asked = head.volume == *name
        && head.changed_since.as_ref() == since
        && query.range.is_none_or(|asked| asked == range)
        && range.offset.checked_add(range.length).is_some();
    if !asked || head.granularity == 0 {
        return Err(format!("extents that were not asked for: {head:?}"));
    }
    let grade = head.grade()?;
    Ok((head, grade))
}

impl Extents {
    async fn next(&mut self) -> Result<Option<ByteRange>> {
        self.run.restart();
        loop {
            match self.run.event().await? {
                Event::Progress(_) => {}
                Event::Line(line) => {
                    let read = self.line(&line);
                    match read.map_err(|wrong| self.run.wrong(&wrong))? {
                        Some(extent) => return Ok(Some(extent)),
                        None => self.whole = true,
                    }
                }
                Event::Problem(error) => return Err(error_at_end(&mut self.run, error).await),
                Event::End(status) => {
                    return match (self.run.ended(status, None)?, self.whole) {
                        (Ending::Done, true) => Ok(None),
                        _ => Err(self.run.wrong("the list of extents breaks off")),
                    };
                }
            }
        }
    }

    /// The extent in a line; none in the last one.
    fn line(&mut self, line: &Bytes) -> Result<Option<ByteRange>, String> {
        if self.whole {
            return Err("the list of extents goes on after its end".into());
        }
        if schema(line).as_deref() == Some("volmux.extents_end.v1") {
            let end: ExtentsEndDoc = parse(line)?;
            return match (end.count, end.bytes) == (self.count, self.bytes) {
                true => Ok(None),
                false => Err(format!("{} extents came, not {}", self.count, end.count)),
            };
        }
        let extent: ExtentDoc = parse(line)?;
        let extent = ByteRange::new(extent.offset, extent.length);
        let within = extent.offset.checked_add(extent.length).is_some()
            && extent.offset >= self.end
            && extent.end() <= self.range.end()
            && !extent.is_empty();
        if !within {
            return Err(format!(
                "an extent out of order or out of range: {extent:?}"
            ));
        }
        self.end = extent.end();
        self.count += 1;
        self.bytes += extent.length;
        Ok(Some(extent))
    }
}
