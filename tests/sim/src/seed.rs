//! All lives of one seed.

use std::cell::{Cell, RefCell};
use std::panic::{self, AssertUnwindSafe};
use std::rc::Rc;
use std::time::Duration;

use crate::control;
use crate::data;
use crate::life::{live, look_at_everything, start_host};
use crate::model::{Key, Model, Vol};
use crate::moved::{Counts, Moved};
use crate::rng::Rng;
use crate::shape::{End, Shape};
use crate::sim::{Failure, Sim, Step};
use crate::store::{Flaw, SimStore};
use crate::trace::Trace;
use crate::verify::verify_writer;
use crate::world::World;

/// What a seed came to.
#[derive(Debug)]
pub struct Report {
    /// What went wrong, if anything did.
    pub failure: Option<Failure>,
    /// Of all that happened.
    pub hash: u64,
    /// Number of events.
    pub events: u64,
    /// Number of requests to the store.
    pub requests: u64,
    /// What collections of garbage moved.
    pub moved: Counts,
    /// The text of the trace, if it was asked for.
    pub trace: String,
}

thread_local! {
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
    static CATCH: Cell<bool> = const { Cell::new(false) };
}

/// From now on a panic, wherever it is caught, fails the seed that this thread runs.
pub fn note_panics() {
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if CATCH.get() {
            PANIC.with_borrow_mut(|panic| {
                panic.get_or_insert_with(|| info.to_string());
            });
        } else {
            before(info);
        }
    }));
}

/// Runs a seed.
pub fn run(seed: u64, world: Box<dyn World>, flaw: Option<Flaw>, text: bool) -> Report {
    let trace = Trace::new(text);
    let store = SimStore::new(seed, trace.clone());
    store.break_it(flaw);
    let moved = Moved::default();
    CATCH.set(true);
    PANIC.take();
    let result = panic::catch_unwind(AssertUnwindSafe(|| {
        let sim = Rc::new(Sim {
            world,
            store: store.clone(),
            trace: trace.clone(),
            model: RefCell::new(Model::default()),
            rng: RefCell::new(Rng::new(seed).fork(2)),
            hosts: RefCell::default(),
            faulty: Cell::new(false),
            seed,
        });
        tracing::subscriber::with_default(moved.clone(), || lives(&sim))
    }));
    CATCH.set(false);
    let panicked = PANIC.take();
    let failure = match (result, panicked) {
        (_, Some(panic)) => Some(Failure(format!("a panic: {panic}"))),
        (Ok(result), None) => result.err(),
        (Err(_), None) => Some(Failure("a panic without a message".into())),
    };
    let (hash, events) = trace.summary();
    Report {
        failure,
        hash,
        events,
        requests: store.requests(),
        moved: moved.so_far(),
        trace: trace.text(),
    }
}

fn lives(sim: &Rc<Sim>) -> Step {
    let shape = Rc::new(Shape::by_seed(sim.seed));
    for (number, (faults, end)) in shape.lives.iter().enumerate() {
        let (s, shape, end) = (sim.clone(), shape.clone(), *end);
        sim.faulty.set(faults.any());
        one_life(sim, end, async move {
            s.store.set_faults(faults.clone());
            live(s, shape, end, number == 0).await
        })?;
    }
    sim.faulty.set(false);
    if sim.chance(700) {
        sim.store.settle();
    }
    let s = sim.clone();
    one_life(sim, End::Clean, async move {
        let last = shape
            .lives
            .last()
            .map(|(faults, _)| faults.calm())
            .unwrap_or_default();
        s.store.set_faults(last);
        finale(&s).await
    })
}

/// Runs a life in a runtime of its own, and ends it as it is to end.
fn one_life(sim: &Rc<Sim>, end: End, life: impl Future<Output = Step>) -> Step {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .map_err(|error| Failure(format!("no runtime: {error}")))?;
    let kill_after = match end {
        End::AtRequest(request) => Some(request),
        _ => None,
    };
    let pause = if sim.chance(500) {
        0
    } else {
        sim.below(20_000)
    };
    let result = runtime.block_on(async {
        sim.store.begin_life(pause, kill_after);
        let killed = async {
            if let End::AtTime(time) = end {
                tokio::time::sleep(Duration::from_millis(time)).await;
                sim.store.end_life();
            }
            sim.store.life_is_over().await;
        };
        let result = tokio::select! {
            biased;
            () = killed => Ok(()),
            result = life => result,
        };
        sim.note("end of life", &[], || format!("{end:?}"));
        sim.store.end_life();
        sim.model.borrow_mut().crash(None);
        sim.hosts.borrow_mut().clear();
        result
    });
    drop(runtime);
    result
}

/// Once nothing goes wrong any more, all must be right and all must work.
async fn finale(sim: &Rc<Sim>) -> Step {
    *sim.hosts.borrow_mut() = vec![None; 1];
    start_host(sim, 0).await?;
    // Whatever was under way cannot come about after this.
    control::create(sim.clone(), 0, None).await?;
    look_at_everything(sim).await?;
    let doubtful = sim.model.borrow().which(|vol| vol.doubt.is_some());
    if let Some(key) = doubtful.first() {
        let vol = sim.model.borrow_mut().vol(*key).clone();
        return Err(Failure(format!(
            "{}: {:?} stays in doubt",
            vol.name, vol.doubt
        )));
    }
    control::collect(sim.clone(), 0, None).await?;
    let volumes = sim.model.borrow().which(|vol| !vol.is_snapshot());
    for key in volumes {
        write_once_more(sim, key).await?;
    }
    control::collect(sim.clone(), 0, None).await?;
    control::collect(sim.clone(), 0, Some(true)).await?;
    look_at_everything(sim).await?;
    delete_some(sim).await?;
    control::collect(sim.clone(), 0, None).await?;
    look_at_everything(sim).await?;
    doubt_is_over(sim)
}

async fn write_once_more(sim: &Rc<Sim>, key: Key) -> Step {
    data::open(sim.clone(), 0, key, true).await?;
    let Some(id) = sim.model.borrow_mut().vol(key).writer else {
        return Err(Failure("a volume could not be opened".into()));
    };
    data::change(sim.clone(), id, data::Change::Write).await?;
    data::flush(sim.clone(), id).await?;
    verify_writer(sim, id).await?;
    data::close(sim.clone(), id).await
}

async fn delete_some(sim: &Rc<Sim>) -> Step {
    let keys = sim
        .model
        .borrow()
        .which(|vol| vol.is_firm() && vol.used == 0);
    for key in keys {
        if sim.chance(500) {
            control::delete(sim.clone(), 0, key).await?;
        }
    }
    Ok(())
}

fn doubt_is_over(sim: &Rc<Sim>) -> Step {
    // Only who just closed a volume may still be in the way of deleting it.
    match sim
        .model
        .borrow()
        .which(|vol: &Vol| vol.doubt.is_some())
        .first()
    {
        Some(_) => Err(Failure(
            "a change is in doubt though nothing went wrong".into(),
        )),
        None => Ok(()),
    }
}
