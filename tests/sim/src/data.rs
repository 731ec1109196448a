//! Operations of open volumes.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use volmux_core::{Access, BlockDevice, ByteRange, ErrorKind, OpenOptions, Sharing, ZeroOptions};

use crate::history::{Group, Shared, View};
use crate::model::{Handle, Key};
use crate::pattern;
use crate::sim::{Ended, Failure, Sim, Step, volume_name};
use crate::verify::verify_writer;

const BLOCK: u64 = 4096;

/// What is done to the content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Data is written.
    Write,
    /// Zeros are written.
    Zero,
    /// The range is given back.
    Discard,
}

/// A request's hold on its handle.
struct Hold {
    sim: Rc<Sim>,
    id: usize,
    device: Arc<dyn BlockDevice>,
    group: Shared,
    vol: Key,
}

impl Hold {
    fn of(sim: &Rc<Sim>, id: usize) -> Option<Hold> {
        let mut model = sim.model.borrow_mut();
        let handle = model.handles.get_mut(&id)?;
        if handle.still || handle.fenced {
            return None;
        }
        handle.requests += 1;
        Some(Hold {
            sim: sim.clone(),
            id,
            device: handle.device.clone(),
            group: handle.group.clone(),
            vol: handle.vol,
        })
    }

    fn subject(&self, range: &ByteRange) -> String {
        let ByteRange { offset, length } = range;
        format!("{} h{} {offset}+{length}", self.device.name(), self.id)
    }

    /// Told that somebody else has the volume: that must be so, and it is final.
    fn fenced(&self, what: &str) -> Step {
        let mut model = self.sim.model.borrow_mut();
        let (contested, name) = {
            let vol = model.vols.get(&self.vol);
            (
                vol.is_none_or(|vol| vol.contested),
                vol.map(|vol| vol.name.clone()),
            )
        };
        if !contested && self.group.borrow().is_alive() {
            let name = name.unwrap_or_default();
            return Err(Failure(format!(
                "{what} {name}: fenced, though nobody took it over"
            )));
        }
        if let Some(handle) = model.handles.get_mut(&self.id) {
            handle.fenced = true;
        }
        Ok(())
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let Some(handle) = self.sim.model.borrow_mut().handles.get_mut(&self.id) {
            handle.requests -= 1;
        }
    }
}

/// A range: mostly in the first blocks, where others write too, and seldom aligned in no way.
fn some_range(sim: &Sim, size: u64) -> ByteRange {
    let mut rng = sim.rng.borrow_mut();
    let area = match rng.below(10) {
        0..6 => size.min(32 * BLOCK),
        6..9 => size.min(96 * BLOCK),
        _ => size,
    };
    let unit = *rng.pick(&[BLOCK, BLOCK, BLOCK, 512, 1]);
    let longest = *rng.pick(&[BLOCK, BLOCK, 3 * BLOCK, 16 * BLOCK, 64 * BLOCK]);
    let longest = if unit == BLOCK {
        longest
    } else {
        longest.min(6 * BLOCK)
    };
    let mut offset = rng.below(area) / unit * unit;
    if rng.chance(30) {
        offset = size.saturating_sub(rng.below(3 * BLOCK) / unit * unit + 1) / unit * unit;
    }
    let length = (rng.below(longest / unit) + 1) * unit;
    ByteRange::from_to(offset, (offset + length).min(size))
}

/// Changes something through the handle.
pub async fn change(sim: Rc<Sim>, id: usize, change: Change) -> Step {
    let Some(hold) = Hold::of(&sim, id) else {
        return Ok(());
    };
    let range = some_range(&sim, hold.device.size());
    let (what, content) = match change {
        Change::Write => (
            "write",
            pattern::id(sim.seed, sim.model.borrow_mut().next_write()),
        ),
        Change::Zero => ("zero", 0),
        Change::Discard => ("discard", 0),
    };
    let asked = sim.moment();
    let number = hold
        .group
        .borrow_mut()
        .ask(content, range.offset..range.end(), asked);
    let options = ZeroOptions {
        may_discard: sim.chance(500),
        fast_only: false,
    };
    let device = hold.device.clone();
    let request = async {
        match change {
            Change::Write => {
                let data = pattern::fill(content, range.offset, range.length as usize);
                device.write_at(range.offset, data.into()).await
            }
            Change::Zero => device.write_zeroes(range, options).await,
            Change::Discard => device.discard(range).await,
        }
    };
    let subject = format!(
        "{} = {}",
        hold.subject(&range),
        crate::history::name(content)
    );
    // Some requests are given up half-way.
    let patience = sim
        .chance(20)
        .then(|| Duration::from_millis(sim.below(100)));
    let call = sim.call(what, &subject, &[ErrorKind::Fenced], request);
    let ended = match patience {
        None => call.await?,
        Some(patience) => match tokio::time::timeout(patience, call).await {
            Ok(ended) => ended?,
            Err(_) => Ended::Doubtful,
        },
    };
    let now = sim.moment();
    hold.group
        .borrow_mut()
        .end(number, now, matches!(ended, Ended::Done(())));
    match ended {
        Ended::Refused(_) => hold.fenced(what),
        _ => Ok(()),
    }
}

/// Writes several times, one after the other or all at once.
pub async fn burst(sim: Rc<Sim>, id: usize) -> Step {
    let times = 1 + sim.below(6);
    if sim.chance(500) {
        for _ in 0..times {
            change(sim.clone(), id, Change::Write).await?;
        }
        return Ok(());
    }
    let writes = (0..times).map(|_| change(sim.clone(), id, Change::Write));
    for done in futures::future::join_all(writes).await {
        done?;
    }
    Ok(())
}

/// Reads something through the handle, and checks it.
pub async fn read(sim: Rc<Sim>, id: usize) -> Step {
    let Some(hold) = Hold::of(&sim, id) else {
        return Ok(());
    };
    let range = some_range(&sim, hold.device.size());
    let asked = sim.moment();
    let request = hold.device.read_at(range.offset, range.length as usize);
    let subject = hold.subject(&range);
    match sim
        .call("read", &subject, &[ErrorKind::Fenced], request)
        .await?
    {
        Ended::Refused(_) => hold.fenced("read"),
        Ended::Doubtful => Ok(()),
        Ended::Done(bytes) => {
            let model = sim.model.borrow();
            let Some(vol) = model.vols.get(&hold.vol) else {
                return Ok(());
            };
            if !hold.group.borrow().is_alive() {
                return Ok(());
            }
            if bytes.len() as u64 != range.length {
                return Err(Failure(format!(
                    "{subject}: {} bytes were read",
                    bytes.len()
                )));
            }
            let checked = vol.history.check(range.offset, &bytes, View::writer(asked));
            checked.map_err(|wrong| Failure(format!("read {subject}: {wrong}")))
        }
    }
}

/// Flushes.
pub async fn flush(sim: Rc<Sim>, id: usize) -> Step {
    let Some(hold) = Hold::of(&sim, id) else {
        return Ok(());
    };
    let asked = sim.moment();
    let subject = format!("{} h{id}", hold.device.name());
    match sim
        .call("flush", &subject, &[ErrorKind::Fenced], hold.device.flush())
        .await?
    {
        Ended::Refused(_) => hold.fenced("flush"),
        Ended::Doubtful => Ok(()),
        Ended::Done(()) => {
            let now = sim.moment();
            let flushed = hold.group.borrow_mut().flushed(asked, now);
            flushed.map_err(|wrong| Failure(format!("flush {subject}: {wrong}")))
        }
    }
}

/// Looks the size up.
pub async fn refresh(sim: Rc<Sim>, id: usize) -> Step {
    let Some(hold) = Hold::of(&sim, id) else {
        return Ok(());
    };
    if !sim.model.borrow_mut().vol(hold.vol).is_firm() {
        return Ok(());
    }
    let _lock = sim.lock(hold.vol, false);
    let subject = format!("{} h{id}", hold.device.name());
    match sim
        .call(
            "refresh",
            &subject,
            &[ErrorKind::Fenced],
            hold.device.refresh(),
        )
        .await?
    {
        Ended::Refused(_) => hold.fenced("refresh"),
        Ended::Doubtful => Ok(()),
        Ended::Done(size) => {
            let mut model = sim.model.borrow_mut();
            let vol = model.vol(hold.vol);
            let firm = vol.doubt.is_none() && hold.group.borrow().is_alive();
            if firm && size != vol.size {
                return Err(Failure(format!(
                    "{subject}: {size} bytes, not {}",
                    vol.size
                )));
            }
            Ok(())
        }
    }
}

/// Opens a volume for writing.
pub async fn open(sim: Rc<Sim>, host: usize, key: Key, take_over: bool) -> Step {
    let Some(pool) = sim.pool(host) else {
        return Ok(());
    };
    let _lock = sim.lock(key, true);
    let (name, held) = {
        let mut model = sim.model.borrow_mut();
        let vol = model.vol(key);
        vol.contested |= take_over || vol.unclosed;
        (volume_name(&vol.name), vol.writer)
    };
    // Somebody who was fenced, or should have been, holds nothing any more.
    let holder = held.filter(|id| {
        let model = sim.model.borrow();
        model.handles.get(id).is_some_and(|handle| !handle.fenced)
    });
    let options = OpenOptions {
        access: Access::ReadWrite,
        sharing: Sharing::Exclusive,
        take_over,
    };
    let maybe_busy = sim.model.borrow_mut().vol(key).unclosed || held.is_some();
    let mut allowed = vec![];
    if maybe_busy && !take_over {
        allowed.push(ErrorKind::Busy);
    }
    let subject = format!(
        "{name} on {host}{}",
        if take_over { " (take over)" } else { "" }
    );
    let call = pool.open_volume(&name, options);
    let device = match sim.call("open", &subject, &allowed, call).await? {
        Ended::Done(device) => device,
        Ended::Doubtful | Ended::Refused(_) => {
            sim.model.borrow_mut().vol(key).unclosed = true;
            return Ok(());
        }
    };
    let holder = holder.filter(|id| sim.model.borrow().handles.contains_key(id));
    if let (Some(holder), false) = (holder, take_over) {
        return Err(Failure(format!(
            "open {subject}: succeeded, though h{holder} has it open"
        )));
    }
    let id = opened(&sim, host, key, device)?;
    if sim.chance(600) {
        verify_writer(&sim, id).await?;
    }
    Ok(())
}

/// A volume has been opened for writing.
fn opened(sim: &Sim, host: usize, key: Key, device: Arc<dyn BlockDevice>) -> Step<usize> {
    let mut model = sim.model.borrow_mut();
    let now = model.moment();
    let id = model.next_key();
    let vol = model.vol(key);
    if device.size() != vol.size {
        let (found, size) = (device.size(), vol.size);
        return Err(Failure(format!(
            "{}: opened with {found} bytes, not {size}",
            vol.name
        )));
    }
    let group = vol.history.begin_writer(now);
    (vol.writer, vol.unclosed, vol.contested) = (Some(id), false, false);
    let handle = Handle {
        host,
        vol: key,
        device,
        group,
        requests: 0,
        fenced: false,
        still: false,
    };
    model.handles.insert(id, handle);
    Ok(id)
}

/// Closes a volume, flushed or not.
pub async fn close(sim: Rc<Sim>, id: usize) -> Step {
    if sim.chance(600) {
        flush(sim.clone(), id).await?;
    }
    let mut model = sim.model.borrow_mut();
    // Whoever counts on the volume being open must not be disappointed.
    let idle = |handle: &Handle| {
        let changing = model.vols.get(&handle.vol).is_some_and(|vol| vol.changing);
        handle.requests == 0 && !handle.still && !changing
    };
    if model.handles.get(&id).is_some_and(idle) {
        let device = model.handles[&id].device.clone();
        model.drop_handle(id);
        drop(model);
        sim.note("close", &[id as u64], || format!("h{id}"));
        drop(device);
    }
    Ok(())
}

/// Two hosts take a volume over at the same time and write it: one of them gets it.
pub async fn duel(sim: Rc<Sim>, hosts: [usize; 2], key: Key) -> Step {
    let _lock = sim.lock(key, true);
    let (name, size, group) = {
        let mut model = sim.model.borrow_mut();
        let now = model.moment();
        let vol = model.vol(key);
        vol.contested = true;
        let before = vol.writer.take();
        vol.unclosed = true;
        let group = vol.history.begin_writer(now);
        if let Some(id) = before {
            model.drop_handle(id);
        }
        let vol = model.vol(key);
        (volume_name(&vol.name), vol.size, group)
    };
    let (a, b) = futures::future::join(
        to_the_death(
            &sim,
            hosts[0],
            duellist(&sim, hosts[0], &name, size, &group),
        ),
        to_the_death(
            &sim,
            hosts[1],
            duellist(&sim, hosts[1], &name, size, &group),
        ),
    )
    .await;
    let (a, b) = (a?, b?);
    // Each had the volume when the other's flush was asked for, which one of them cannot have.
    if let (Some((a_open, a_flush)), Some((b_open, b_flush))) = (a, b)
        && a_open < b_flush
        && b_open < a_flush
    {
        return Err(Failure(format!(
            "duel {name}: both hosts wrote and flushed"
        )));
    }
    group.borrow_mut().close();
    Ok(())
}

/// Of one whose flush succeeded: when the volume was open, and when the flush was asked for.
type Shot = Option<(u64, u64)>;

/// Nothing is heard any more of who runs on a host that dies.
async fn to_the_death(
    sim: &Sim,
    host: usize,
    duellist: impl Future<Output = Step<Shot>>,
) -> Step<Shot> {
    let death = match sim.hosts.borrow().get(host) {
        Some(Some(host)) => host.death.clone(),
        _ => return Ok(None),
    };
    tokio::select! {
        biased;
        () = death.wait() => Ok(None),
        shot = duellist => shot,
    }
}

async fn duellist(
    sim: &Rc<Sim>,
    host: usize,
    name: &volmux_core::VolumeName,
    size: u64,
    group: &Shared,
) -> Step<Shot> {
    let Some(pool) = sim.pool(host) else {
        return Ok(None);
    };
    let options = OpenOptions {
        take_over: true,
        ..OpenOptions::read_write()
    };
    let subject = format!("{name} on {host}");
    let fenced = [ErrorKind::Fenced, ErrorKind::Busy];
    let opened = sim
        .call(
            "duel-open",
            &subject,
            &fenced,
            pool.open_volume(name, options),
        )
        .await?;
    let Ended::Done(device) = opened else {
        return Ok(None);
    };
    let open = sim.moment();
    let range = some_range(sim, size);
    let content = pattern::id(sim.seed, sim.model.borrow_mut().next_write());
    let asked = sim.moment();
    let number = group
        .borrow_mut()
        .ask(content, range.offset..range.end(), asked);
    let data = pattern::fill(content, range.offset, range.length as usize);
    let subject = format!("{subject} {}+{}", range.offset, range.length);
    let write = device.write_at(range.offset, data.into());
    let wrote = sim.call("duel-write", &subject, &fenced, write).await?;
    let done = matches!(wrote, Ended::Done(()));
    // Ended only with the duel: the other's write may come before or after.
    let flush_asked = sim.moment();
    let flushed = match done {
        true => {
            sim.call("duel-flush", &subject, &fenced, device.flush())
                .await?
        }
        false => Ended::Doubtful,
    };
    let flushed = matches!(flushed, Ended::Done(()));
    let now = sim.moment();
    let mut group = group.borrow_mut();
    if flushed {
        Group::end(&mut group, number, now, true);
        let later = sim.moment();
        let sound = group.flushed(later, later);
        sound.map_err(|wrong| Failure(format!("duel {subject}: {wrong}")))?;
    } else {
        Group::end(&mut group, number, now, false);
    }
    Ok(flushed.then_some((open, flush_asked)))
}
