//! A life of the programs that use the pool: what they do until they are killed.

use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt};
use volmux_core::OriginKind;

use crate::data::{self, Change};
use crate::model::{Doubt, Key, Vol};
use crate::shape::{ACTIONS, Action, End, Shape};
use crate::sim::{Death, Ended, Host, Sim, Step};
use crate::verify::{verify, verify_writer};
use crate::view::HostStore;
use crate::{control, doubt};

type Work = Pin<Box<dyn Future<Output = Step>>>;

/// Most volumes at a time.
const VOLUMES: usize = 10;

/// Opens the pool on a host. `false` if the store did not let it.
pub async fn start_host(sim: &Rc<Sim>, number: usize) -> Step<bool> {
    for _ in 0..20 {
        let store = HostStore::new(sim.store.clone());
        let seed = sim.rng.borrow_mut().next_u64();
        let open = sim.world.open(store.clone(), seed);
        if let Ended::Done(pool) = sim
            .call("start", &format!("host {number}"), &[], open)
            .await?
        {
            sim.hosts.borrow_mut()[number] = Some(Host {
                pool,
                store,
                death: Rc::new(Death::default()),
            });
            return Ok(true);
        }
        store.die();
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
    Ok(false)
}

/// A host dies, with everything that ran on it.
pub fn kill_host(sim: &Rc<Sim>, number: usize) {
    let host = sim.hosts.borrow_mut()[number].take();
    if let Some(host) = host {
        sim.note("die", &[number as u64], || format!("host {number}"));
        host.store.die();
        host.death.come();
        sim.model.borrow_mut().crash(Some(number));
    }
}

/// What one life does, to its end.
pub async fn live(sim: Rc<Sim>, shape: Rc<Shape>, end: End, first: bool) -> Step {
    *sim.hosts.borrow_mut() = vec![None; shape.hosts];
    for number in 0..shape.hosts {
        if !start_host(&sim, number).await? && number == 0 {
            return Ok(());
        }
    }
    if !first && sim.chance(500) {
        look_at_everything(&sim).await?;
    }
    let mut under_way: FuturesUnordered<Work> = FuturesUnordered::new();
    for _ in 0..shape.steps {
        while under_way.len() >= shape.together {
            under_way.next().await.unwrap_or(Ok(()))?;
        }
        if let Some(work) = choose(&sim, &shape) {
            under_way.push(work);
        }
        let pause = Duration::from_millis(sim.below(shape.pause + 1));
        let pause = tokio::time::sleep(pause);
        tokio::pin!(pause);
        loop {
            tokio::select! {
                biased;
                Some(done) = under_way.next() => done?,
                () = &mut pause => break,
            }
        }
    }
    while let Some(done) = under_way.next().await {
        done?;
    }
    if end == End::Clean {
        flush_everything(&sim).await?;
        look_at_everything(&sim).await?;
    }
    Ok(())
}

async fn flush_everything(sim: &Rc<Sim>) -> Step {
    let handles: Vec<usize> = sim.model.borrow().handles.keys().copied().collect();
    for id in handles {
        data::flush(sim.clone(), id).await?;
        if sim.chance(500) {
            verify_writer(sim, id).await?;
        }
    }
    Ok(())
}

/// Settles what is in doubt and looks at each volume, as well as the store lets it.
pub async fn look_at_everything(sim: &Rc<Sim>) -> Step {
    let keys: Vec<Key> = sim.model.borrow().vols.keys().copied().collect();
    for key in keys {
        let Some(host) = sim.host() else {
            return Ok(());
        };
        let in_doubt = sim
            .model
            .borrow()
            .vols
            .get(&key)
            .is_some_and(|vol| vol.doubt.is_some());
        if in_doubt {
            doubt::look(sim.clone(), host, key).await?;
        }
        let firm = sim.model.borrow().vols.get(&key).is_some_and(Vol::is_firm);
        if firm {
            verify(sim, host, key).await?;
        }
    }
    match sim.host() {
        Some(host) => control::list(sim.clone(), host).await,
        None => Ok(()),
    }
}

/// Something to do, or nothing if that which chance chose cannot be done now.
fn choose(sim: &Rc<Sim>, shape: &Shape) -> Option<Work> {
    let index = sim.rng.borrow_mut().weighted(&shape.weights)?;
    let host = sim.host();
    let action = instead(sim, ACTIONS[index].0);
    if action == Action::Crash {
        return crash(sim, shape);
    }
    let (host, work) = match on_handle(sim, action) {
        Some(found) => found?,
        None => (host?, work(sim, action, host?)?),
    };
    let death = sim.hosts.borrow().get(host)?.as_ref()?.death.clone();
    Some(Box::pin(async move {
        tokio::select! {
            biased;
            () = death.wait() => Ok(()),
            done = work => done,
        }
    }))
}

/// What is missing for an action, if something is.
fn instead(sim: &Sim, action: Action) -> Action {
    let model = sim.model.borrow();
    if action != Action::Crash && !model.vols.values().any(|vol| vol.exists) {
        Action::Create
    } else if is_on_handle(action) && model.handles.is_empty() {
        Action::Open
    } else {
        action
    }
}

fn crash(sim: &Rc<Sim>, shape: &Shape) -> Option<Work> {
    let number = sim.below(shape.hosts as u64) as usize;
    let sim = sim.clone();
    Some(Box::pin(async move {
        kill_host(&sim, number);
        let pause = sim.below(5000);
        tokio::time::sleep(Duration::from_millis(pause)).await;
        let gone = sim.hosts.borrow()[number].is_none();
        if gone {
            start_host(&sim, number).await?;
        }
        Ok(())
    }))
}

fn work(sim: &Rc<Sim>, action: Action, host: usize) -> Option<Work> {
    use Action as A;
    let s = sim.clone();
    Some(match action {
        A::Open => {
            let key = some(sim, |vol| {
                free(vol) && !vol.is_snapshot() && vol.writer.is_none()
            })?;
            let take_over = sim.model.borrow_mut().vol(key).unclosed && sim.chance(700);
            Box::pin(data::open(s, host, key, take_over))
        }
        A::TakeOver => {
            let key = some(sim, |vol| free(vol) && !vol.is_snapshot())?;
            let take_over = sim.chance(800);
            Box::pin(data::open(s, host, key, take_over))
        }
        A::Duel => {
            let key = some(sim, |vol| {
                free(vol) && !vol.is_snapshot() && vol.writer.is_none()
            })?;
            Box::pin(data::duel(s, [host, sim.host()?], key))
        }
        A::Verify => {
            let key = some(sim, Vol::is_firm)?;
            Box::pin(async move { verify(&s, host, key).await.map(drop) })
        }
        A::Create => {
            let few = sim.model.borrow().vols.len() < VOLUMES;
            few.then_some(())?;
            Box::pin(control::create(s, host, None))
        }
        A::CreateAgain => {
            let key = some(sim, |vol| free(vol) && vol.origin.is_none())?;
            Box::pin(control::create(s, host, Some(key)))
        }
        A::Snapshot | A::Clone | A::Copy => return derive(sim, action, host),
        A::Delete => {
            // What a volume may have been reverted to must stay, to compare.
            let model = sim.model.borrow().vols.clone();
            let needed = |key: Key| {
                model.values().any(|vol| {
                    matches!(vol.doubt, Some((Doubt::Reverted(snapshot), _)) if snapshot == key)
                })
            };
            let mut keys = sim.model.borrow().which(free);
            keys.retain(|key| !needed(*key));
            Box::pin(control::delete(s, host, sim.pick(&keys)?))
        }
        A::Rename => Box::pin(control::rename(s, host, some(sim, free)?)),
        A::Resize => {
            let key = some(sim, |vol| free(vol) && !vol.is_snapshot())?;
            Box::pin(control::resize(s, host, key, None))
        }
        A::Revert => return revert(sim, host),
        A::Collect => Box::pin(control::collect(s, host, None)),
        A::Audit => {
            let repair = sim.chance(500);
            Box::pin(control::collect(s, host, Some(repair)))
        }
        A::List => Box::pin(control::list(s, host)),
        A::Retry => Box::pin(doubt::retry(s, host, some(sim, doubtful)?)),
        A::Look => Box::pin(doubt::look(s, host, some(sim, doubtful)?)),
        A::Seal => {
            let key = some(sim, |vol| doubtful(vol) && can_be_sealed(vol))?;
            Box::pin(doubt::seal(s, host, key))
        }
        _ => {
            let pause = Duration::from_millis(sim.below(120_000));
            Box::pin(async move {
                tokio::time::sleep(pause).await;
                Ok(())
            })
        }
    })
}

fn free(vol: &Vol) -> bool {
    vol.is_firm() && vol.used == 0
}

fn doubtful(vol: &Vol) -> bool {
    vol.doubt.is_some() && !vol.changing && vol.used == 0
}

fn can_be_sealed(vol: &Vol) -> bool {
    let lasting = !matches!(vol.doubt, Some((Doubt::Made { .. } | Doubt::Renamed(_), _)));
    lasting && vol.exists && !vol.is_snapshot() && vol.writer.is_none()
}

fn some(sim: &Sim, wanted: impl Fn(&Vol) -> bool) -> Option<Key> {
    let keys = sim.model.borrow().which(wanted);
    sim.pick(&keys)
}

/// Something to do with what is open, and on which host that is: outer `None` where `action` is
/// nothing of that sort.
fn on_handle(sim: &Rc<Sim>, action: Action) -> Option<Option<(usize, Work)>> {
    is_on_handle(action).then(|| work_on_handle(sim, action))
}

fn is_on_handle(action: Action) -> bool {
    use Action as A;
    matches!(
        action,
        A::Write
            | A::Zero
            | A::Discard
            | A::Read
            | A::Flush
            | A::Refresh
            | A::Close
            | A::VerifyWriter
    )
}

fn work_on_handle(sim: &Rc<Sim>, action: Action) -> Option<(usize, Work)> {
    let ids: Vec<usize> = sim.model.borrow().handles.keys().copied().collect();
    let id = sim.pick(&ids)?;
    let mut model = sim.model.borrow_mut();
    let handle = model.handles[&id].clone();
    let Some(vol) = model.vols.get(&handle.vol) else {
        // Its volume is gone: only one that lost the volume may see that.
        model.handles.remove(&id);
        return None;
    };
    let changing = vol.changing;
    drop(model);
    let s = sim.clone();
    let work: Work = match action {
        _ if handle.fenced => Box::pin(data::close(s, id)),
        Action::Write => Box::pin(data::burst(s, id)),
        Action::Zero => Box::pin(data::change(s, id, Change::Zero)),
        Action::Discard => Box::pin(data::change(s, id, Change::Discard)),
        Action::Read => Box::pin(data::read(s, id)),
        Action::Flush => Box::pin(data::flush(s, id)),
        Action::Refresh => Box::pin(data::refresh(s, id)),
        Action::Close if !changing => Box::pin(data::close(s, id)),
        Action::VerifyWriter if !changing => {
            Box::pin(async move { verify_writer(&s, id).await.map(drop) })
        }
        _ => return None,
    };
    Some((handle.host, work))
}

fn derive(sim: &Rc<Sim>, action: Action, host: usize) -> Option<Work> {
    if sim.model.borrow().vols.len() >= VOLUMES {
        return None;
    }
    let (kind, source) = match action {
        Action::Snapshot => (
            OriginKind::Snapshot,
            some(sim, |vol| vol.is_firm() && !vol.is_snapshot())?,
        ),
        Action::Copy => (
            OriginKind::Copy,
            some(sim, |vol| vol.is_firm() && vol.size <= 4 << 20)?,
        ),
        _ => (OriginKind::Clone, some(sim, Vol::is_firm)?),
    };
    Some(Box::pin(control::derive(
        sim.clone(),
        host,
        kind,
        source,
        None,
    )))
}

fn revert(sim: &Rc<Sim>, host: usize) -> Option<Work> {
    let snapshots = sim
        .model
        .borrow()
        .which(|vol| vol.is_firm() && vol.is_snapshot());
    let snapshot = sim.pick(&snapshots)?;
    let (_, key) = sim.model.borrow_mut().vol(snapshot).origin?;
    let there = sim.model.borrow().vols.get(&key).is_some_and(free);
    there.then(|| -> Work { Box::pin(control::revert(sim.clone(), host, key, snapshot)) })
}
