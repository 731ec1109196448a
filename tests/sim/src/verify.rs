//! Looks at whole volumes.

use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use volmux_core::{BlockDevice, ErrorKind, ExtentQuery, OpenOptions};

use crate::history::{History, Verdict, View};
use crate::model::Key;
use crate::sim::{Ended, Failure, Sim, Step, volume_name};

/// Volumes up to this size are read from end to end, others where something was written.
const WHOLE: u64 = 512 << 10;
const PIECE: u64 = 128 << 10;

/// What was read of a volume.
pub type Content = Vec<(u64, Bytes)>;

fn wanted(sim: &Sim, histories: &[&History], size: u64) -> Vec<Range<u64>> {
    let mut ranges = Vec::new();
    if size <= WHOLE {
        ranges.push(0..size);
    } else {
        for history in histories {
            for range in history.touched(size) {
                ranges.push(range.start.saturating_sub(4096)..(range.end + 4096).min(size));
            }
        }
        for _ in 0..3 {
            let at = sim.below(size);
            ranges.push(at..(at + 5000).min(size));
        }
    }
    ranges.sort_by_key(|range| range.start);
    let mut pieces: Vec<Range<u64>> = Vec::new();
    let mut done = 0;
    for range in ranges {
        let mut at = range.start.max(done);
        while at < range.end {
            let end = range.end.min(at + PIECE);
            pieces.push(at..end);
            at = end;
        }
        done = done.max(range.end);
    }
    pieces
}

/// Reads what is worth it. `None` if the store failed meanwhile, or the device was fenced, which it
/// may be if `contested`.
pub async fn gather(
    sim: &Sim,
    device: &Arc<dyn BlockDevice>,
    histories: &[&History],
    size: u64,
    contested: bool,
) -> Step<Option<Content>> {
    let mut content = Content::new();
    let allowed: &[ErrorKind] = if contested { &[ErrorKind::Fenced] } else { &[] };
    for range in wanted(sim, histories, size) {
        let length = (range.end - range.start) as usize;
        let read = device.read_at(range.start, length);
        let subject = format!("{} {}+{length}", device.name(), range.start);
        match sim.call("look", &subject, allowed, read).await? {
            Ended::Done(bytes) if bytes.len() != length => {
                return Err(Failure(format!(
                    "{subject}: {} bytes were read",
                    bytes.len()
                )));
            }
            Ended::Done(bytes) => content.push((range.start, bytes)),
            Ended::Doubtful | Ended::Refused(_) => return Ok(None),
        }
    }
    Ok(Some(content))
}

/// Whether the content is one that the history allows.
pub fn judge(history: &History, content: &Content, view: View) -> Result<Verdict, String> {
    let mut verdict = Verdict::default();
    for (offset, bytes) in content {
        history.look(*offset, bytes, view, &mut verdict)?;
    }
    Ok(verdict)
}

/// Opens a volume for reading and looks at all of it. `false` if the store failed meanwhile.
pub async fn verify(sim: &Rc<Sim>, host: usize, key: Key) -> Step<bool> {
    let Some(pool) = sim.pool(host) else {
        return Ok(false);
    };
    let _lock = sim.lock(key, false);
    let (name, asked) = {
        let mut model = sim.model.borrow_mut();
        let asked = model.moment();
        (model.vol(key).name.clone(), asked)
    };
    let name = volume_name(&name);
    let subject = format!("{name} on {host}");
    let open = pool.open_volume(&name, OpenOptions::read_only());
    let device = match sim.call("open-ro", &subject, &[], open).await? {
        Ended::Done(device) => device,
        _ => return Ok(false),
    };
    let (history, size, quiet) = {
        let mut model = sim.model.borrow_mut();
        let vol = model.vol(key);
        (vol.history.clone(), vol.size, vol.writer.is_none())
    };
    if device.size() != size {
        return Err(Failure(format!(
            "{subject}: opened with {} bytes, not {size}",
            device.size()
        )));
    }
    let Some(content) = gather(sim, &device, &[&history], size, false).await? else {
        return Ok(false);
    };
    {
        let mut model = sim.model.borrow_mut();
        let vol = model.vol(key);
        let verdict = judge(&vol.history, &content, View::reader(asked))
            .map_err(|wrong| Failure(format!("{subject}: {wrong}")))?;
        // Else a writer may have gone on while this was read.
        if quiet && vol.writer.is_none() {
            let sound = vol.history.conclude(&verdict);
            sound.map_err(|wrong| Failure(format!("{subject}: {wrong}")))?;
            if vol.is_snapshot() {
                vol.history.settle(&verdict, size, true);
                vol.settled += 1;
            }
        }
    }
    extents(sim, &*pool, key, &content).await
}

/// What lies outside the extents must be zeros.
async fn extents(
    sim: &Rc<Sim>,
    pool: &dyn volmux_core::Pool,
    key: Key,
    content: &Content,
) -> Step<bool> {
    let (name, exact) = {
        let mut model = sim.model.borrow_mut();
        let vol = model.vol(key);
        (vol.name.clone(), vol.history.is_settled())
    };
    if !exact || sim.chance(700) {
        return Ok(true);
    }
    let name = volume_name(&name);
    let asked = async {
        let extents = pool.extents(&name, ExtentQuery::allocated()).await?;
        extents.collect_joined().await
    };
    let found = match sim.call("extents", name.as_str(), &[], asked).await? {
        Ended::Done(found) => found,
        _ => return Ok(false),
    };
    for (offset, bytes) in content {
        let mut at = *offset;
        let end = offset + bytes.len() as u64;
        let inside = found.iter().filter(|e| e.end() > *offset && e.offset < end);
        for (from, to) in inside.map(|e| (e.offset, e.end())).chain([(end, end)]) {
            let hole = at..from.clamp(at, end);
            let part = &bytes[(hole.start - offset) as usize..(hole.end - offset) as usize];
            if part.iter().any(|byte| *byte != 0) {
                return Err(Failure(format!("{name}: data in the hole {hole:?}")));
            }
            at = to.min(end);
        }
    }
    Ok(true)
}

/// Looks at all of a volume through the handle that writes it. `false` if that could not be done.
pub async fn verify_writer(sim: &Rc<Sim>, id: usize) -> Step<bool> {
    let (handle, history, size) = {
        let mut model = sim.model.borrow_mut();
        let Some(handle) = model.handles.get_mut(&id) else {
            return Ok(false);
        };
        if handle.requests > 0 || handle.still || handle.fenced {
            return Ok(false);
        }
        handle.still = true;
        let handle = handle.clone();
        let vol = model.vol(handle.vol);
        (
            handle.clone(),
            vol.history.clone(),
            vol.size.min(handle.device.size()),
        )
    };
    let _lock = sim.lock(handle.vol, false);
    let read = gather(sim, &handle.device, &[&history], size, true).await?;
    let mut model = sim.model.borrow_mut();
    let now = model.moment();
    if let Some(handle) = model.handles.get_mut(&id) {
        handle.still = false;
    }
    let vol = model.vol(handle.vol);
    let superseded = !handle.group.borrow().is_alive();
    let Some(content) = read else {
        if !superseded && !vol.contested && !sim.faulty.get() {
            return Err(Failure(format!(
                "{}: fenced, though nobody took it over",
                vol.name
            )));
        }
        return Ok(false);
    };
    if superseded {
        return Ok(false);
    }
    let wrong = |name: &str, wrong| Failure(format!("{name}: {wrong}"));
    let verdict =
        judge(&vol.history, &content, View::writer(now)).map_err(|text| wrong(&vol.name, text))?;
    vol.history
        .conclude(&verdict)
        .map_err(|text| wrong(&vol.name, text))?;
    vol.history.settle(&verdict, size, true);
    vol.settled += 1;
    Ok(true)
}
