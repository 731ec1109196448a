//! LVM pools against lvm2's own commands that do the same. All of one comparison in one run, taking
//! turns, medians. In the lab: `make bench-lvm`.
//!
//! The rival has a volume group of its own, just like volmux's, so that neither changes what the other
//! knows; both always hold equally many volumes. Groups lie on memory, so that a flush costs the
//! same for everybody.
//!
//! `cargo bench … -- change list` runs only those parts.

use std::env;
use std::fs;
use std::process::{Command, Stdio};
use std::sync::Arc;

use futures::TryStreamExt;
use tokio::runtime::Runtime;
use volmux::lvm::{LvmConfig, LvmPool};
use volmux::{ByteSize, CloneOptions, CreateOptions, Pool, SnapshotOptions, VolumeName};
use volmux_bench::{Result, Samples, count, header, ratio};
use volmux_conformance::lvm::{ScratchGroup, lvm};

const MIB: u64 = 1 << 20;
const SIZE: ByteSize = ByteSize::gib(1);
/// Volumes that are there all the time.
const BESIDE: usize = 8;
const LISTED: usize = 1000;

fn main() -> Result<()> {
    header("LVM pools, in the lab: only ratios say something of other machines")?;
    let arguments: Vec<String> = env::args().skip(1).collect();
    let wanted = |part| {
        let mut named = arguments.iter().filter(|a| !a.starts_with("--")).peekable();
        named.peek().is_none() || named.any(|name| name == part)
    };
    if wanted("change") {
        change()?;
    }
    if wanted("list") {
        list()?;
    }
    Ok(())
}

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Create,
    Snapshot,
    Clone,
    Delete,
}

/// One turn; it leaves everything as it was.
const TURN: [(Operation, &str); 6] = [
    (Operation::Create, "a-volume"),
    (Operation::Snapshot, "a-snapshot"),
    (Operation::Clone, "a-clone"),
    (Operation::Delete, "a-clone"),
    (Operation::Delete, "a-snapshot"),
    (Operation::Delete, "a-volume"),
];
/// What snapshots and clones are made of.
const SOURCE: &str = "beside-0";

fn change() -> Result<()> {
    let runtime = Runtime::new()?;
    let group = || ScratchGroup::with_pool(64 * MIB, 4 * MIB);
    let (ours, rival) = (Ours::new(&runtime, group())?, Rival(group()));
    for number in 0..BESIDE {
        let name = format!("beside-{number}");
        ours.pool.run(&runtime, Operation::Create, &name)?;
        rival.run(Operation::Create, &name)?;
    }
    println!("info -- in groups of {BESIDE} volumes, with the pool open");
    let turn = |operation, name: &str| ours.pool.run(&runtime, operation, name);
    take_turns(1, &rival, turn)?; // whoever does it first finds nothing in the caches
    let open = take_turns(40, &rival, turn)?;
    for times in &open {
        times.print();
        ratio(&times.goal(), &times.ours, &times.rival);
    }
    println!("info -- the same, with the pool opened anew for each, as the command line does");
    let anew = take_turns(10, &rival, |operation, name| {
        let pool = Opened::new(&runtime, &ours.group)?;
        pool.run(&runtime, operation, name)?;
        Ok(pool.0.processes_started())
    })?;
    anew.iter().for_each(Times::print);
    // The most that it can be, if nobody else changes the group.
    let processes = anew
        .iter()
        .chain(&open)
        .filter(|times| times.operation == Operation::Snapshot);
    let most = processes.map(|times| times.processes).max();
    count("lvm-processes-per-snapshot", most.unwrap_or_default());
    Ok(())
}

/// Has both do all of [`TURN`], so many times; `ours` returns how many processes that took.
fn take_turns(
    repeats: usize,
    rival: &Rival,
    ours: impl Fn(Operation, &str) -> Result<u64>,
) -> Result<[Times; 4]> {
    let mut all = [
        Operation::Create,
        Operation::Snapshot,
        Operation::Clone,
        Operation::Delete,
    ]
    .map(Times::new);
    for repeat in 0..repeats {
        for (operation, name) in TURN {
            let times = &mut all[operation as usize];
            // Nobody always comes first.
            for side in [repeat % 2, (repeat + 1) % 2] {
                if side == 0 {
                    let processes = times.ours.time(|| ours(operation, name))?;
                    times.processes = times.processes.max(processes);
                } else {
                    times.rival.time(|| rival.run(operation, name))?;
                }
            }
        }
    }
    Ok(all)
}

/// The times of one operation.
struct Times {
    operation: Operation,
    ours: Samples,
    rival: Samples,
    /// The most that ours started.
    processes: u64,
}

impl Times {
    fn new(operation: Operation) -> Self {
        let (ours, rival) = match operation {
            Operation::Create => ("volmux create_volume", "lvcreate --virtualsize"),
            Operation::Snapshot => ("volmux snapshot_volume", "lvcreate --snapshot -pr"),
            Operation::Clone => ("volmux clone_volume", "lvcreate --snapshot -prw"),
            Operation::Delete => ("volmux delete_volume", "lvremove"),
        };
        Times {
            operation,
            ours: Samples::new(ours),
            rival: Samples::new(rival),
            processes: 0,
        }
    }

    fn goal(&self) -> String {
        let name = match self.operation {
            Operation::Create => "lvm-create-vs-lvcreate",
            Operation::Snapshot => "lvm-snapshot-vs-lvcreate",
            Operation::Clone => "lvm-clone-vs-lvcreate",
            Operation::Delete => "lvm-delete-vs-lvremove",
        };
        name.into()
    }

    fn print(&self) {
        println!("info {}, processes: {}", self.ours, self.processes);
        self.rival.print();
        let more = self.ours.median().as_secs_f64() - self.rival.median().as_secs_f64();
        println!("info {:?}: {:+.3} ms", self.operation, more * 1e3);
    }
}

/// A pool of volmux's, and the group that it lies in.
struct Ours {
    pool: Opened,
    group: ScratchGroup,
}

impl Ours {
    fn new(runtime: &Runtime, group: ScratchGroup) -> Result<Self> {
        let pool = Opened::new(runtime, &group)?;
        Ok(Ours { pool, group })
    }
}

/// An open pool.
struct Opened(Arc<LvmPool>);

impl Opened {
    fn new(runtime: &Runtime, group: &ScratchGroup) -> Result<Self> {
        let config = LvmConfig::thin(group.name(), "pool");
        Ok(Opened(runtime.block_on(LvmPool::open(config))?))
    }

    /// Returns how many processes it took.
    fn run(&self, runtime: &Runtime, operation: Operation, name: &str) -> Result<u64> {
        let (pool, before) = (&self.0, self.0.processes_started());
        let (source, name) = (VolumeName::new(SOURCE)?, VolumeName::new(name)?);
        runtime.block_on(async {
            match operation {
                Operation::Create => {
                    let options = CreateOptions::thin(SIZE);
                    pool.create_volume(&name, options).await.map(drop)
                }
                Operation::Snapshot => {
                    let options = SnapshotOptions::default();
                    pool.snapshot_volume(&source, &name, options)
                        .await
                        .map(drop)
                }
                Operation::Clone => {
                    let options = CloneOptions::default();
                    pool.clone_volume(&source, &name, options).await.map(drop)
                }
                Operation::Delete => pool.delete_volume(&name).await,
            }
        })?;
        Ok(pool.processes_started() - before)
    }

    /// How many volumes are listed.
    fn list(&self, runtime: &Runtime) -> Result<usize> {
        let all = self.0.list_volumes();
        let number = all.try_fold(0, |number, _| async move { Ok(number + 1) });
        Ok(runtime.block_on(number)?)
    }
}

/// A group in which lvm2's commands are run as a script would, with tags like ours.
struct Rival(ScratchGroup);

impl Rival {
    const TAGS: [&str; 3] = [
        "volmux.id=9b2d1c1e-5a4f-4d8e-9c61-3f1c0a7e5d24",
        "volmux.created=1764345678901234567",
        "volmux.origin=snapshot:4f0c7a52-6f8e-4b11-8f5e-0d6c2b9a7e13:beside-0",
    ];

    fn run(&self, operation: Operation, name: &str) -> Result<()> {
        let path = |lv: &str| format!("{}/{lv}", self.0.name());
        let (pool, source, target) = (path("pool"), path(SOURCE), path(name));
        let size = format!("{}b", SIZE.bytes());
        let permission = if operation == Operation::Snapshot {
            "-pr"
        } else {
            "-prw"
        };
        let mut args = match operation {
            Operation::Create => vec!["lvcreate", "-y", "-T", &pool, "-V", &size],
            Operation::Snapshot | Operation::Clone => {
                vec!["lvcreate", "-y", "-s", permission, &source]
            }
            Operation::Delete => vec!["lvremove", "-f", "-y", &target],
        };
        if operation != Operation::Delete {
            args.extend(["-n", name, "-ky", "-an"]);
            let number = 2 + usize::from(operation != Operation::Create);
            for tag in &Self::TAGS[..number] {
                args.extend(["--addtag", tag]);
            }
        }
        bare(&args).map(drop)
    }
}

/// Runs a command of lvm2, in the environment in which volmux does, and returns what it printed.
fn bare(args: &[&str]) -> Result<String> {
    let mut command = Command::new("/usr/sbin/lvm");
    command.args(args).env_clear().env("LC_ALL", "C");
    command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    command.env("LVM_SUPPRESS_FD_WARNINGS", "1");
    let output = command.stdin(Stdio::null()).output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{command:?}: {}: {}", output.status, said.trim()).into());
    }
    Ok(String::from_utf8(output.stdout)?)
}

fn list() -> Result<()> {
    println!("info -- list of {LISTED} volumes");
    let runtime = Runtime::new()?;
    let group = ScratchGroup::with_pool(64 * MIB, 4 * MIB);
    fill(&runtime, &group)?;
    let mut first = Samples::new("volmux: open the pool, list_volumes");
    let mut again = Samples::new("volmux: list_volumes again");
    let mut lvs = Samples::new("lvs --reportformat json");
    let mut processes = [0; 2];
    for turn in 0..24 {
        let mut ours = || -> Result<()> {
            let (pool, found) = first.time(|| -> Result<_> {
                let pool = Opened::new(&runtime, &group)?;
                let found = pool.list(&runtime)?;
                Ok((pool, found))
            })?;
            expect(found, LISTED)?;
            processes[0] = pool.0.processes_started();
            expect(again.time(|| pool.list(&runtime))?, LISTED)?;
            processes[1] = pool.0.processes_started() - processes[0];
            Ok(())
        };
        let mut rival = || -> Result<()> {
            let printed = lvs.time(|| bare(&["lvs", "--reportformat", "json", group.name()]))?;
            // The pool is shown as well.
            expect(printed.matches("\"lv_name\"").count(), LISTED + 1)
        };
        if turn % 2 == 0 {
            ours()?;
            rival()?;
        } else {
            rival()?;
            ours()?;
        }
    }
    println!("info {first}, processes: {}", processes[0]);
    println!("info {again}, processes: {}", processes[1]);
    lvs.print();
    ratio("lvm-list-1000-vs-lvs", &first, &lvs);
    Ok(())
}

fn expect(found: usize, wanted: usize) -> Result<()> {
    if found != wanted {
        return Err(format!("{found} found, {wanted} wanted").into());
    }
    Ok(())
}

/// Makes the volumes that are listed: one as always, the rest by writing it so many times into the
/// group's metadata. As long as they are not active, nobody asks the thin pool for them.
fn fill(runtime: &Runtime, group: &ScratchGroup) -> Result<()> {
    let pool = Opened::new(runtime, group)?;
    pool.run(runtime, Operation::Create, "volume-0000")?;
    let file = tempfile::NamedTempFile::new_in("/dev/shm")?;
    let path = file.path().to_str().ok_or("a path that is no UTF-8")?;
    lvm(&["lvchange", "-an", &format!("{}/pool", group.name())]);
    lvm(&["vgcfgbackup", "-f", path, group.name()]);
    let text = fs::read_to_string(path)?;
    fs::write(path, copied(&text).ok_or("metadata of another kind")?)?;
    lvm(&["vgcfgrestore", "--force", "-f", path, group.name()]);
    lvm(&["vgchange", "-ay", group.name()]);
    Ok(())
}

/// LVM's metadata, with many volumes like `volume-0000`.
fn copied(text: &str) -> Option<String> {
    const END: &str = "\n\t\t}\n";
    let start = text.find("\t\tvolume-0000 {\n")?;
    let end = start + text[start..].find(END)? + END.len();
    let one = &text[start..end];
    // Each identity: where it begins, and how long it is.
    let uuid = one.find("id = \"")? + 6;
    let id = one.find("volmux.id=")? + 10;
    let mut all = text[..end].to_owned();
    for number in 1..LISTED {
        let mut copy = one.to_owned();
        copy.replace_range(uuid + 32..uuid + 38, &format!("{number:06}"));
        copy.replace_range(id + 32..id + 36, &format!("{number:04}"));
        let copy = copy.replace("volume-0000", &format!("volume-{number:04}"));
        all += &copy.replace("device_id = 1\n", &format!("device_id = {}\n", number + 1));
    }
    Some(all + &text[end..])
}
