//! Operations of the catalogue.

use std::rc::Rc;

use volmux_core::{
    AuditOptions, ByteSize, CreateOptions, ErrorKind, OriginKind, Pool, PoolExt, ResizeOptions,
    Volume,
};

use crate::history::Moment;
use crate::model::{Doubt, Key, Model, Vol};
use crate::sim::{Ended, Failure, Lock, Sim, Step, under_way, volume_name};
use crate::verify::verify;

/// Sizes may be rounded up, by less than this.
const ROUNDING: u64 = 4096;

/// A name that no volume has or may have.
fn free_name(sim: &Sim) -> String {
    loop {
        let name = format!("v{}", sim.below(40));
        if !sim.model.borrow().is_taken(&name) {
            return name;
        }
    }
}

fn some_size(sim: &Sim) -> u64 {
    let mut rng = sim.rng.borrow_mut();
    match rng.below(20) {
        0 => 1 << 40,
        1 => 1 << 30,
        2 => rng.within(1..=2_000_000),
        3 => 4 << 20,
        _ => rng.within(1..=64) * 8192,
    }
}

/// Whether a volume is as the model has it, apart from its size.
fn check_identity(model: &mut Model, key: Key, found: &Volume) -> Step {
    let vol = model.vol(key).clone();
    let wrong = |what: String| Err(Failure(format!("{}: {what}: {found:?}", vol.name)));
    if found.name.as_str() != vol.name {
        return wrong("another name".into());
    }
    let parent = vol
        .origin
        .map(|(kind, parent)| (kind, model.ids.get(&parent).copied()));
    let seen = found
        .origin
        .as_ref()
        .map(|origin| (origin.kind, Some(origin.parent_id)));
    if parent != seen {
        return wrong(format!("the origin should be {parent:?}"));
    }
    match model.ids.get(&key) {
        Some(id) if *id != found.id => wrong(format!("the id should be {id}")),
        Some(_) => Ok(()),
        None => {
            model.ids.insert(key, found.id);
            Ok(())
        }
    }
}

fn check_size(vol: &Vol, found: &Volume) -> Step {
    let bytes = found.virtual_size.bytes();
    if bytes == vol.size {
        return Ok(());
    }
    Err(Failure(format!(
        "{}: {bytes} bytes instead of {}",
        vol.name, vol.size
    )))
}

fn is_rounded(asked: u64, made: u64) -> bool {
    made >= asked && made - asked < ROUNDING
}

/// A change that has been asked for, and the volume that it is about.
struct Attempt {
    sim: Rc<Sim>,
    key: Key,
    asked: Moment,
    before: Option<(Doubt, Moment)>,
    _lock: Lock,
}

impl Attempt {
    fn of(sim: &Rc<Sim>, key: Key, doubt: Doubt) -> Attempt {
        let lock = sim.lock(key, true);
        let mut model = sim.model.borrow_mut();
        let asked = model.moment();
        let before = model.vol(key).doubt.take();
        model.vol(key).doubt = under_way(doubt);
        drop(model);
        Attempt {
            sim: sim.clone(),
            key,
            asked,
            before,
            _lock: lock,
        }
    }

    /// The change came about.
    fn done(&self, change: impl FnOnce(&mut Model) -> Step) -> Step {
        let mut model = self.sim.model.borrow_mut();
        model.vol(self.key).doubt = None;
        model.last_change = model.last_change.max(self.asked);
        change(&mut model)
    }

    /// It did not, and never will; an earlier attempt still may.
    fn refused(&self) -> Step {
        self.sim.model.borrow_mut().vol(self.key).doubt = self.before.clone();
        Ok(())
    }

    /// Whether the volume, which had a writer when this was asked for, has that writer still.
    fn is_held(&self, held: bool) -> bool {
        held && holders(&mut self.sim.model.borrow_mut(), self.key).0
    }
}

/// Makes a volume, or repeats that.
pub async fn create(sim: Rc<Sim>, host: usize, again: Option<Key>) -> Step {
    let Some(pool) = sim.pool(host) else {
        return Ok(());
    };
    let key = again.unwrap_or_else(|| {
        let vol = Vol::new(free_name(&sim), some_size(&sim));
        sim.model.borrow_mut().add(vol)
    });
    let doubt = Doubt::Made {
        asked: 0,
        settled: 0,
    };
    let attempt = Attempt::of(&sim, key, doubt);
    let (name, size) = {
        let mut model = sim.model.borrow_mut();
        let vol = model.vol(key);
        (volume_name(&vol.name), vol.size)
    };
    let options = CreateOptions::thin(ByteSize::new(size));
    let call = pool.create_volume(&name, options);
    match sim
        .call("create", &format!("{name} {size} on {host}"), &[], call)
        .await?
    {
        Ended::Done(made) => attempt.done(|model| {
            made_now(
                model,
                key,
                &made,
                !is_rounded(size, made.virtual_size.bytes()),
            )
        }),
        Ended::Doubtful | Ended::Refused(_) => Ok(()),
    }
}

fn made_now(model: &mut Model, key: Key, made: &Volume, wrong_size: bool) -> Step {
    let vol = model.vol(key);
    if wrong_size {
        return Err(Failure(format!(
            "{}: {} bytes were asked for: {made:?}",
            vol.name, vol.size
        )));
    }
    vol.exists = true;
    vol.size = made.virtual_size.bytes();
    check_identity(model, key, made)
}

/// Names the history that a derived volume has once its making ends, however that comes.
struct Derivation {
    sim: Rc<Sim>,
    source: Key,
    key: Key,
    asked: Moment,
    _lock: Lock,
}

impl Drop for Derivation {
    fn drop(&mut self) {
        let mut model = self.sim.model.borrow_mut();
        let Some(source) = model.vols.get(&self.source) else {
            return;
        };
        let derived = source.history.derived(self.asked);
        if let Some(vol) = model.vols.get_mut(&self.key) {
            vol.history = derived;
        }
    }
}

/// Makes a snapshot, a clone or a copy, or repeats that. Looks at it at once now and then.
pub async fn derive(
    sim: Rc<Sim>,
    host: usize,
    kind: OriginKind,
    source: Key,
    again: Option<Key>,
) -> Step {
    let Some(pool) = sim.pool(host) else {
        return Ok(());
    };
    let (size, settled, first) = {
        let mut model = sim.model.borrow_mut();
        let first = again.and_then(|key| match model.vol(key).doubt {
            Some((Doubt::Made { asked, .. }, _)) => Some(asked),
            _ => None,
        });
        let vol = model.vol(source);
        (vol.size, vol.settled, first)
    };
    let key = again.unwrap_or_else(|| {
        let mut vol = Vol::new(free_name(&sim), size);
        vol.origin = Some((kind, source));
        sim.model.borrow_mut().add(vol)
    });
    let asked = first.unwrap_or_else(|| sim.moment());
    let derivation = Derivation {
        sim: sim.clone(),
        source,
        key,
        asked,
        _lock: sim.lock(source, false),
    };
    let attempt = Attempt::of(&sim, key, Doubt::Made { asked, settled });
    let (from, name) = {
        let mut model = sim.model.borrow_mut();
        let from = volume_name(&model.vol(source).name);
        (from, volume_name(&model.vol(key).name))
    };
    let ended = ask_to_derive(&sim, &*pool, kind, (&from, &name), host).await?;
    drop(derivation);
    let Ended::Done(made) = ended else {
        return Ok(());
    };
    attempt.done(|model| {
        let bytes = made.virtual_size.bytes();
        // Made by an earlier attempt, it has the size that the source had then, and asking for the
        // same again gives it as it is (contract, 2).
        let earlier = again.is_some() && bytes == model.vol(key).size;
        made_now(model, key, &made, bytes != size && !earlier)
    })?;
    drop(attempt);
    if sim.chance(400) {
        verify(&sim, host, key).await?;
    }
    Ok(())
}

async fn ask_to_derive(
    sim: &Sim,
    pool: &dyn Pool,
    kind: OriginKind,
    (from, name): (&volmux_core::VolumeName, &volmux_core::VolumeName),
    host: usize,
) -> Step<Ended<Volume>> {
    let subject = format!("{from} as {name} on {host}");
    match kind {
        OriginKind::Snapshot => {
            let call = pool.snapshot_volume(from, name, Default::default());
            sim.call("snapshot", &subject, &[], call).await
        }
        OriginKind::Clone => {
            let call = pool.clone_volume(from, name, Default::default());
            sim.call("clone", &subject, &[], call).await
        }
        OriginKind::Copy => {
            let call = pool.copy_volume(from, name, Default::default());
            sim.call("copy", &subject, &[], call).await
        }
    }
}

/// Whether the volume has a writer who must be in the way, and whether it might have one.
fn holders(model: &mut Model, key: Key) -> (bool, bool) {
    let vol = model.vol(key);
    let (writer, unclosed) = (vol.writer, vol.unclosed);
    let holds = |id: &usize| model.handles.get(id).is_some_and(|handle| !handle.fenced);
    (
        writer.as_ref().is_some_and(holds),
        unclosed || writer.is_some(),
    )
}

fn busy(maybe: bool) -> &'static [ErrorKind] {
    if maybe { &[ErrorKind::Busy] } else { &[] }
}

/// Deletes a volume.
pub async fn delete(sim: Rc<Sim>, host: usize, key: Key) -> Step {
    let Some(pool) = sim.pool(host) else {
        return Ok(());
    };
    let attempt = Attempt::of(&sim, key, Doubt::Deleted);
    let (name, (held, maybe)) = {
        let mut model = sim.model.borrow_mut();
        (volume_name(&model.vol(key).name), holders(&mut model, key))
    };
    let call = pool.delete_volume(&name);
    match sim
        .call("delete", &format!("{name} on {host}"), busy(maybe), call)
        .await?
    {
        Ended::Done(()) if attempt.is_held(held) => {
            Err(Failure(format!("{name}: deleted while it was open")))
        }
        Ended::Done(()) => attempt.done(|model| {
            model.vols.remove(&key);
            Ok(())
        }),
        Ended::Refused(_) => attempt.refused(),
        Ended::Doubtful => Ok(()),
    }
}

/// Gives a volume another name.
pub async fn rename(sim: Rc<Sim>, host: usize, key: Key) -> Step {
    let Some(pool) = sim.pool(host) else {
        return Ok(());
    };
    let to = free_name(&sim);
    let attempt = Attempt::of(&sim, key, Doubt::Renamed(to.clone()));
    let name = volume_name(&sim.model.borrow_mut().vol(key).name);
    let new = volume_name(&to);
    let call = pool.rename_volume(&name, &new);
    match sim
        .call("rename", &format!("{name} to {to} on {host}"), &[], call)
        .await?
    {
        Ended::Done(made) => attempt.done(|model| {
            model.vol(key).name = to;
            check_identity(model, key, &made)
        }),
        Ended::Doubtful | Ended::Refused(_) => Ok(()),
    }
}

/// Changes the size, or tries the same again.
pub async fn resize(sim: Rc<Sim>, host: usize, key: Key, again: Option<u64>) -> Step {
    let Some(pool) = sim.pool(host) else {
        return Ok(());
    };
    let (before, size) = {
        let before = sim.model.borrow_mut().vol(key).size;
        let new = match sim.below(4) {
            0 => before + 1 + sim.below(1 << 20),
            1 => before + 4096 * sim.below(64),
            2 => 1 + sim.below(before),
            _ => (before / 2).div_ceil(4096) * 4096,
        };
        (before, again.unwrap_or(new).max(1))
    };
    let attempt = Attempt::of(&sim, key, Doubt::Resized(size));
    let (name, (held, maybe)) = {
        let mut model = sim.model.borrow_mut();
        (volume_name(&model.vol(key).name), holders(&mut model, key))
    };
    let options = ResizeOptions {
        size: ByteSize::new(size),
        allow_shrink: size < before,
    };
    let shrinks = size.div_ceil(512) < before.div_ceil(512);
    let allowed = busy(maybe && shrinks);
    let call = pool.resize_volume(&name, options);
    let subject = format!("{name} from {before} to {size} on {host}");
    match sim.call("resize", &subject, allowed, call).await? {
        Ended::Done(made) if made.virtual_size.bytes() < before && attempt.is_held(held) => {
            Err(Failure(format!("{name}: shrunk while it was open")))
        }
        Ended::Done(made) => attempt.done(|model| {
            let bytes = made.virtual_size.bytes();
            if !is_rounded(size, bytes) {
                return Err(Failure(format!("{subject}: {made:?}")));
            }
            resized(model.vol(key), bytes);
            check_identity(model, key, &made)
        }),
        Ended::Refused(_) => attempt.refused(),
        Ended::Doubtful => Ok(()),
    }
}

/// The volume has another size.
pub fn resized(vol: &mut Vol, size: u64) {
    if size < vol.size {
        vol.history.cut(size);
        vol.settled += 1;
    }
    vol.size = size;
}

/// Puts a volume back to a snapshot of it, or tries that again.
pub async fn revert(sim: Rc<Sim>, host: usize, key: Key, snapshot: Key) -> Step {
    let Some(pool) = sim.pool(host) else {
        return Ok(());
    };
    let attempt = Attempt::of(&sim, key, Doubt::Reverted(snapshot));
    let _source = sim.lock(snapshot, false);
    // What it will hold must be known exactly.
    if !sim.model.borrow_mut().vol(snapshot).history.is_settled()
        && !verify(&sim, host, snapshot).await?
    {
        return attempt.refused();
    }
    let (name, from, (held, maybe)) = {
        let mut model = sim.model.borrow_mut();
        let name = volume_name(&model.vol(key).name);
        let from = volume_name(&model.vol(snapshot).name);
        (name, from, holders(&mut model, key))
    };
    let call = pool.revert_volume(&name, &from, Default::default());
    match sim
        .call(
            "revert",
            &format!("{name} to {from} on {host}"),
            busy(maybe),
            call,
        )
        .await?
    {
        Ended::Done(_) if attempt.is_held(held) => {
            Err(Failure(format!("{name}: reverted while it was open")))
        }
        Ended::Done(made) => attempt.done(|model| {
            reverted(model, key, snapshot);
            check_identity(model, key, &made)?;
            check_size(model.vol(key), &made)
        }),
        Ended::Refused(_) => attempt.refused(),
        Ended::Doubtful => Ok(()),
    }
}

/// The volume holds what the snapshot holds.
pub fn reverted(model: &mut Model, key: Key, snapshot: Key) {
    let from = model.vol(snapshot);
    let (history, size) = (from.history.derived(0), from.size);
    let vol = model.vol(key);
    vol.history = history;
    vol.size = size;
    vol.settled += 1;
}

/// Collects what nobody needs, or audits.
pub async fn collect(sim: Rc<Sim>, host: usize, repair: Option<bool>) -> Step {
    let Some(pool) = sim.pool(host) else {
        return Ok(());
    };
    let subject = format!("on {host}");
    let Some(repair) = repair else {
        sim.call("gc", &subject, &[ErrorKind::Busy], sim.world.collect(pool))
            .await?;
        return Ok(());
    };
    let audit = pool.audit(AuditOptions { repair });
    match sim
        .call("audit", &subject, &[ErrorKind::Busy], audit)
        .await?
    {
        Ended::Done(report) => {
            let damaged = |f: &&volmux_core::Finding| f.kind == volmux_core::FindingKind::Damaged;
            match report.findings.iter().find(damaged) {
                Some(finding) => Err(Failure(format!("audit: {finding:?}"))),
                None => Ok(()),
            }
        }
        _ => Ok(()),
    }
}

/// Lists the volumes. All that nobody is about to change must be there, as they are known.
pub async fn list(sim: Rc<Sim>, host: usize) -> Step {
    let Some(pool) = sim.pool(host) else {
        return Ok(());
    };
    let asked = sim.moment();
    let steady = sim.model.borrow().which(Vol::is_firm);
    let quiet = steady.len() == sim.model.borrow().vols.len();
    let locks: Vec<Lock> = steady.iter().map(|key| sim.lock(*key, false)).collect();
    let ended = sim
        .call("list", &format!("on {host}"), &[], pool.volumes())
        .await?;
    drop(locks);
    let Ended::Done(found) = ended else {
        return Ok(());
    };
    let mut model = sim.model.borrow_mut();
    for key in steady {
        let vol = model.vol(key).clone();
        let seen = found.iter().find(|found| found.name.as_str() == vol.name);
        let Some(seen) = seen else {
            return Err(Failure(format!("list: {} is not there", vol.name)));
        };
        check_identity(&mut model, key, seen)?;
        check_size(&vol, seen)?;
    }
    // Nothing was under way when this began, nor since.
    if quiet && model.last_change < asked && model.vols.values().all(Vol::is_firm) {
        let extra = found
            .iter()
            .find(|found| !model.is_taken(found.name.as_str()));
        if let Some(extra) = extra {
            return Err(Failure(format!("list: {} should not be there", extra.name)));
        }
    }
    Ok(())
}
