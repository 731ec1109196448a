//! Finding out what became of changes that were not answered.

use std::rc::Rc;

use volmux_core::{Access, OpenOptions, Pool, PoolExt, Sharing, Volume};

use crate::control::{self, resized, reverted};
use crate::history::{Moment, View};
use crate::model::{Doubt, Key, Vol};
use crate::sim::{Ended, Failure, Sim, Step, volume_name};
use crate::verify::{gather, judge};

/// Does the same again, which must lead to the same.
pub async fn retry(sim: Rc<Sim>, host: usize, key: Key) -> Step {
    let (doubt, origin) = {
        let mut model = sim.model.borrow_mut();
        let vol = model.vol(key);
        (vol.doubt.clone(), vol.origin)
    };
    let Some((doubt, _)) = doubt else {
        return Ok(());
    };
    match (doubt, origin) {
        (Doubt::Made { .. }, None) => control::create(sim, host, Some(key)).await,
        (Doubt::Made { settled, .. }, Some((kind, source))) => {
            let same = {
                let model = sim.model.borrow();
                let source = model.vols.get(&source);
                source.is_some_and(|source| source.is_firm() && source.settled == settled)
            };
            if same {
                control::derive(sim, host, kind, source, Some(key)).await
            } else {
                look(sim, host, key).await
            }
        }
        (Doubt::Deleted, _) => control::delete(sim, host, key).await,
        (Doubt::Resized(size), _) => control::resize(sim, host, key, Some(size)).await,
        (Doubt::Reverted(snapshot), _) => {
            let there = sim
                .model
                .borrow()
                .vols
                .get(&snapshot)
                .is_some_and(Vol::is_firm);
            if there {
                control::revert(sim, host, key, snapshot).await
            } else {
                look(sim, host, key).await
            }
        }
        (Doubt::Renamed(_), _) => look(sim, host, key).await,
    }
}

async fn find(sim: &Sim, pool: &dyn Pool, name: &str, host: usize) -> Step<Option<Option<Volume>>> {
    let wanted = volume_name(name);
    let call = pool.find_volume(&wanted);
    match sim
        .call("find", &format!("{name} on {host}"), &[], call)
        .await?
    {
        Ended::Done(found) => Ok(Some(found)),
        _ => Ok(None),
    }
}

/// Looks whether the change came about.
pub async fn look(sim: Rc<Sim>, host: usize, key: Key) -> Step {
    let Some(pool) = sim.pool(host) else {
        return Ok(());
    };
    let _lock = sim.lock(key, true);
    let (vol, asked) = {
        let mut model = sim.model.borrow_mut();
        let asked = model.moment();
        (model.vol(key).clone(), asked)
    };
    let Some((doubt, since)) = vol.doubt.clone() else {
        return Ok(());
    };
    let sealed = sim.model.borrow().is_sealed(since);
    let Some(found) = find(&sim, &*pool, &vol.name, host).await? else {
        return Ok(());
    };
    let known = sim.model.borrow().ids.get(&key).copied();
    let ours = found.filter(|found| known.is_none_or(|id| id == found.id));
    match doubt {
        Doubt::Renamed(to) => {
            let Some(new) = find(&sim, &*pool, &to, host).await? else {
                return Ok(());
            };
            let new = new.filter(|new| Some(new.id) == known);
            renamed(&sim, key, &to, (ours.is_some(), new.is_some()), sealed)
        }
        Doubt::Reverted(snapshot) => {
            let Some(ours) = ours else {
                return Err(Failure(format!("{}: gone", vol.name)));
            };
            tell_reverted(&sim, &*pool, key, snapshot, &ours, (sealed, asked)).await
        }
        other => settled(&sim, key, &other, ours.as_ref(), sealed),
    }
}

fn settled(sim: &Sim, key: Key, doubt: &Doubt, ours: Option<&Volume>, sealed: bool) -> Step {
    let mut model = sim.model.borrow_mut();
    let vol = model.vol(key);
    match (doubt, ours) {
        (Doubt::Made { .. }, Some(ours)) => {
            let (bytes, size) = (ours.virtual_size.bytes(), vol.size);
            if bytes < size || bytes - size >= 4096 {
                return Err(Failure(format!("{}: {bytes} bytes, not {size}", vol.name)));
            }
            (vol.exists, vol.size, vol.doubt) = (true, bytes, None);
            model.ids.insert(key, ours.id);
        }
        (Doubt::Made { .. }, None) if sealed => {
            model.vols.remove(&key);
        }
        (Doubt::Deleted, None) => {
            model.vols.remove(&key);
        }
        (Doubt::Deleted, Some(_)) if sealed => vol.doubt = None,
        (Doubt::Resized(_), None) => return Err(Failure(format!("{}: gone", vol.name))),
        (Doubt::Resized(size), Some(ours)) => {
            let bytes = ours.virtual_size.bytes();
            if bytes >= *size && bytes - size < 4096 {
                resized(vol, bytes);
                vol.doubt = None;
            } else if bytes != vol.size {
                let text = format!(
                    "{}: {bytes} bytes, neither {} nor {size}",
                    vol.name, vol.size
                );
                return Err(Failure(text));
            } else if sealed {
                vol.doubt = None;
            }
        }
        _ => {}
    }
    Ok(())
}

fn renamed(sim: &Sim, key: Key, to: &str, found: (bool, bool), sealed: bool) -> Step {
    let mut model = sim.model.borrow_mut();
    let vol = model.vol(key);
    match found {
        (false, true) => {
            vol.name = to.into();
            vol.doubt = None;
        }
        (true, false) if sealed => vol.doubt = None,
        (true, false) => {}
        // Between the two looks it may have come about.
        (true, true) | (false, false) if !sealed => {}
        _ => return Err(Failure(format!("{} to {to}: found {found:?}", vol.name))),
    }
    Ok(())
}

/// Tells by the content whether a revert came about.
async fn tell_reverted(
    sim: &Rc<Sim>,
    pool: &dyn Pool,
    key: Key,
    snapshot: Key,
    ours: &Volume,
    (sealed, asked): (bool, Moment),
) -> Step {
    let name = &ours.name;
    let open = pool.open_volume(name, OpenOptions::read_only());
    let Ended::Done(device) = sim.call("open-ro", name.as_str(), &[], open).await? else {
        return Ok(());
    };
    let (vol, after) = {
        let mut model = sim.model.borrow_mut();
        let after = model.vols.get(&snapshot).cloned();
        (model.vol(key).clone(), after)
    };
    let Some(after) = after else {
        return Err(Failure(format!(
            "{name}: its snapshot was deleted meanwhile"
        )));
    };
    let histories = [&vol.history, &after.history];
    let Some(content) = gather(sim, &device, &histories, device.size(), false).await? else {
        return Ok(());
    };
    let view = View::reader(asked);
    let old = device.size() == vol.size && judge(&vol.history, &content, view).is_ok();
    let new = device.size() == after.size && judge(&after.history, &content, view).is_ok();
    let mut model = sim.model.borrow_mut();
    match (old, new) {
        (false, true) => {
            reverted(&mut model, key, snapshot);
            model.vol(key).doubt = None;
        }
        (false, false) => {
            let (old, new) = (judge(&vol.history, &content, view), after.size);
            let text = format!("{name}: neither as before nor reverted to {new} bytes: {old:?}");
            return Err(Failure(text));
        }
        // Where both are the same it does not matter, once nothing can come any more.
        _ if sealed => model.vol(key).doubt = None,
        _ => {}
    }
    Ok(())
}

/// Opens a volume for writing of which a change is in doubt. From then on the change must not come
/// about any more: its writer would lose what was flushed.
pub async fn seal(sim: Rc<Sim>, host: usize, key: Key) -> Step {
    let Some(pool) = sim.pool(host) else {
        return Ok(());
    };
    let name = {
        let _lock = sim.lock(key, true);
        let name = {
            let mut model = sim.model.borrow_mut();
            let vol = model.vol(key);
            vol.unclosed = true;
            volume_name(&vol.name)
        };
        let options = OpenOptions {
            access: Access::ReadWrite,
            sharing: Sharing::Exclusive,
            take_over: true,
        };
        let gone = [volmux_core::ErrorKind::NotFound];
        let open = pool.open_volume(&name, options);
        let opened = sim
            .call("open-doubtful", &format!("{name} on {host}"), &gone, open)
            .await?;
        let Ended::Done(device) = opened else {
            return Ok(());
        };
        drop(device);
        name
    };
    sim.note("sealed", &[key as u64], || name.to_string());
    {
        let mut model = sim.model.borrow_mut();
        if let Some((_, since)) = &mut model.vol(key).doubt {
            // Anything that succeeded was later.
            *since = 0;
        }
        model.last_change = model.last_change.max(1);
    }
    look(sim, host, key).await
}
