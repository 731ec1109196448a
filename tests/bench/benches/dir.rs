//! Directory pools on XFS against what people run today: `cp --reflink`, `qemu-img convert`, and a
//! plain directory scan. All of one comparison in one run, taking turns, medians. Needs root.
//!
//! The file system lies on memory, so that a flush costs the same for everybody; the last part
//! repeats the snapshots on the disk that the project lies on.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bytes::Bytes;
use futures::TryStreamExt;
use tokio::runtime::Runtime;
use volmux::nfs::{DirConfig, DirPool};
use volmux::{
    Access, AttachOptions, AttachTarget, ByteSize, CloneOptions, Control, CopyOptions,
    CreateOptions, Holder, OpenOptions, Pool, Sharing, SnapshotOptions, Volume, VolumeName,
};
use volmux_bench::{Result, Samples, count, header, peak_rss_bytes, ratio, run};
use volmux_conformance::scratch::LoopFs;

const MIB: u64 = 1 << 20;
const LISTED: usize = 10_000;
/// The argument that makes this program list a pool and tell how much memory that took.
const LIST: &str = "list-and-tell-memory";

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if let [first, directory] = arguments.as_slice()
        && first == LIST
    {
        return list_and_tell_memory(Path::new(directory));
    }
    header("directory pools on XFS with reflinks, on a loop device on memory")?;
    // `cargo bench … -- copy list` runs only those parts.
    let wanted = |part| {
        let mut named = arguments.iter().filter(|a| !a.starts_with("--")).peekable();
        named.peek().is_none() || named.any(|name| name == part)
    };
    let bench = Bench::new(LoopFs::xfs_in_memory(12 << 30))?;
    for (part, run) in [
        ("snapshot", snapshot as fn(&Bench) -> Result<()>),
        ("pieces", snapshot_of_pieces),
        ("copy", copy),
        ("list", list),
    ] {
        if wanted(part) {
            run(&bench)?;
        }
    }
    if wanted("disk") {
        snapshot_on_disk()?;
    }
    Ok(())
}

fn snapshot(bench: &Bench) -> Result<()> {
    println!("info -- snapshot and clone of 1 GiB in one piece");
    let source = bench.volume_in_one_piece("whole", 1024 * MIB)?;
    let times = Reflinks::measure(bench, &source, 41)?;
    times.print();
    ratio("dir-snapshot-vs-cp-reflink", &times.snapshot, &times.cp);
    bench.delete(&source)
}

fn snapshot_of_pieces(bench: &Bench) -> Result<()> {
    println!("info -- snapshot and clone of 10,000 scattered pieces of 4 KiB");
    let source = bench.volume_in_pieces("pieces", 10_000, 4 << 10, 64 << 10)?;
    Reflinks::measure(bench, &source, 5)?.print();
    bench.delete(&source)
}

fn snapshot_on_disk() -> Result<()> {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
    println!(
        "info -- the same with the file system on an image in {}",
        directory.display()
    );
    let bench = Bench::new(LoopFs::xfs_in(directory, 4 << 30))?;
    let source = bench.volume_in_one_piece("whole", 1024 * MIB)?;
    Reflinks::measure(&bench, &source, 9)?.print();
    Ok(())
}

/// A pool, and beside it on the same file system a place for what the rivals make.
struct Bench {
    runtime: Runtime,
    scratch: LoopFs,
    pool: Arc<dyn Pool>,
    rivals: PathBuf,
}

impl Bench {
    fn new(scratch: LoopFs) -> Result<Self> {
        let runtime = Runtime::new()?;
        let (root, rivals) = (scratch.path().join("pool"), scratch.path().join("rivals"));
        fs::create_dir(&root)?;
        fs::create_dir(&rivals)?;
        let pool = runtime.block_on(DirPool::open(DirConfig::new(root)))?;
        Ok(Bench {
            runtime,
            scratch,
            pool,
            rivals,
        })
    }

    fn root(&self) -> PathBuf {
        self.scratch.path().join("pool")
    }

    /// Writes everything back, so that what was done so far does not slow what comes next.
    fn settle(&self) -> Result<()> {
        Ok(rustix::fs::syncfs(File::open(self.scratch.path())?)?)
    }

    fn volume_in_one_piece(&self, name: &str, size: u64) -> Result<Volume> {
        self.volume_in_pieces(name, size / MIB, MIB, MIB)
    }

    /// A volume of `pieces` times `stride` bytes, with data in the first `length` bytes of each.
    fn volume_in_pieces(
        &self,
        name: &str,
        pieces: u64,
        length: u64,
        stride: u64,
    ) -> Result<Volume> {
        let name = VolumeName::new(name)?;
        let pattern: Vec<u8> = (0..length)
            .map(|i| (i.wrapping_mul(37) >> 3) as u8 | 1)
            .collect();
        let pattern = Bytes::from(pattern);
        self.runtime.block_on(async {
            let options = CreateOptions::thin(ByteSize::new(pieces * stride));
            self.pool.create_volume(&name, options).await?;
            let device = self
                .pool
                .open_volume(&name, OpenOptions::read_write())
                .await?;
            for piece in 0..pieces {
                device.write_at(piece * stride, pattern.clone()).await?;
            }
            device.flush().await?;
            drop(device);
            let volume = self.pool.volume(&name).await?;
            let fragments = volume.fragments.map_or("?".into(), |n| n.to_string());
            println!("info source: {} in {fragments} pieces", volume.virtual_size);
            Ok(volume)
        })
    }

    /// The file that holds a volume.
    fn file(&self, volume: &Volume) -> Result<PathBuf> {
        let holder = Holder::new("bench")?;
        let options = AttachOptions {
            holder: holder.clone(),
            access: Access::ReadOnly,
            sharing: Sharing::Exclusive,
        };
        let attachment = self
            .runtime
            .block_on(self.pool.attach_volume(&volume.name, options))?;
        self.runtime
            .block_on(self.pool.detach_volume(&volume.name, &holder))?;
        match attachment.target {
            AttachTarget::File { path } => Ok(path),
            other => Err(format!("a directory pool gave {other:?}").into()),
        }
    }

    fn delete(&self, volume: &Volume) -> Result<()> {
        self.runtime
            .block_on(self.pool.delete_volume(&volume.name))?;
        self.settle()
    }

    /// Times `work`, which makes a volume, and removes it again outside the time.
    fn time_making<F>(&self, samples: &mut Samples, work: F) -> Result<()>
    where
        F: AsyncFnOnce(VolumeName) -> volmux::Result<Volume>,
    {
        let name = VolumeName::new("made")?;
        let made = samples.time(|| self.runtime.block_on(work(name)))?;
        self.delete(&made)
    }
}

/// The times of everything that shares blocks.
struct Reflinks {
    snapshot: Samples,
    clone: Samples,
    cp: Samples,
    cp_and_sync: Samples,
    ficlone: Samples,
    durable: Samples,
}

impl Reflinks {
    fn measure(bench: &Bench, source: &Volume, rounds: usize) -> Result<Self> {
        let file = bench.file(source)?;
        let mut times = Reflinks {
            snapshot: Samples::new("volmux snapshot_volume"),
            clone: Samples::new("volmux clone_volume"),
            cp: Samples::new("cp --reflink=always"),
            cp_and_sync: Samples::new("cp --reflink=always, fsync of file and directory"),
            ficlone: Samples::new("bare FICLONE"),
            durable: Samples::new("create, FICLONE, fsync of file and directory"),
        };
        bench.settle()?;
        for _ in 0..rounds {
            bench.time_making(&mut times.snapshot, async |name| {
                let options = SnapshotOptions::default();
                bench
                    .pool
                    .snapshot_volume(&source.name, &name, options)
                    .await
            })?;
            times.rivals(bench, &file)?;
            bench.time_making(&mut times.clone, async |name| {
                let options = CloneOptions::default();
                bench.pool.clone_volume(&source.name, &name, options).await
            })?;
        }
        Ok(times)
    }

    fn rivals(&mut self, bench: &Bench, file: &Path) -> Result<()> {
        let target = bench.rivals.join("made");
        let forget = || -> Result<()> {
            fs::remove_file(&target)?;
            bench.settle()
        };
        let directory = File::open(&bench.rivals)?;
        let cp = || {
            let arguments = [
                Path::new("--reflink=always"),
                Path::new("--"),
                file,
                &target,
            ];
            run("cp", arguments)
        };
        self.cp.time(cp)?;
        forget()?;
        self.cp_and_sync.time(|| -> Result<()> {
            cp()?;
            File::open(&target)?.sync_all()?;
            Ok(directory.sync_all()?)
        })?;
        forget()?;
        let source = File::open(file)?;
        let made = File::create_new(&target)?;
        self.ficlone
            .time(|| rustix::fs::ioctl_ficlone(&made, &source))?;
        drop(made);
        forget()?;
        self.durable.time(|| -> Result<()> {
            let made = File::create_new(&target)?;
            rustix::fs::ioctl_ficlone(&made, &source)?;
            made.sync_all()?;
            Ok(directory.sync_all()?)
        })?;
        forget()
    }

    fn print(&self) {
        let all = [
            &self.snapshot,
            &self.clone,
            &self.cp,
            &self.cp_and_sync,
            &self.ficlone,
            &self.durable,
        ];
        all.into_iter().for_each(Samples::print);
        for (what, samples) in [("snapshot", &self.snapshot), ("clone", &self.clone)] {
            let over = samples.median().as_secs_f64() - self.ficlone.median().as_secs_f64();
            println!(
                "info {what} takes {:.3} ms more than the bare FICLONE",
                over * 1e3
            );
        }
    }
}

/// `qemu-img convert` is given an fsync afterwards: our copy is durable when it returns.
fn copy(bench: &Bench) -> Result<()> {
    println!("info -- copy of 8 GiB that hold 512 MiB in 8192 pieces");
    let source = bench.volume_in_pieces("sparse", 8192, 64 << 10, MIB)?;
    let file = bench.file(&source)?;
    let target = bench.rivals.join("made");
    let mut ours = Samples::new("volmux copy_volume");
    let mut convert = Samples::new("qemu-img convert");
    let mut convert_and_sync = Samples::new("qemu-img convert, fsync");
    let moved = Arc::new(AtomicU64::new(0));
    run("cat", [&file])?; // both find the source in the page cache
    bench.settle()?;
    for round in 0..7 {
        let watch = Arc::clone(&moved);
        let control = Control::new().with_progress(move |p| watch.store(p.done, Ordering::Relaxed));
        let name = VolumeName::new("made")?;
        let options = CopyOptions { control };
        let made = ours.time(|| {
            bench
                .runtime
                .block_on(bench.pool.copy_volume(&source.name, &name, options))
        })?;
        if round == 0 {
            run("cmp", [&file, &bench.file(&made)?])?;
        }
        bench.delete(&made)?;

        convert_and_sync.time(|| -> Result<()> {
            let arguments = ["convert", "-f", "raw", "-O", "raw"].map(Path::new);
            convert.time(|| run("qemu-img", arguments.into_iter().chain([&*file, &*target])))?;
            Ok(File::open(&target)?.sync_all()?)
        })?;
        fs::remove_file(&target)?;
        bench.settle()?;
    }
    [&ours, &convert, &convert_and_sync]
        .into_iter()
        .for_each(Samples::print);
    ratio("dir-copy-vs-qemu-img-convert", &ours, &convert_and_sync);
    count("dir-copy-bytes-moved", moved.load(Ordering::Relaxed));
    bench.delete(&source)
}

fn list(bench: &Bench) -> Result<()> {
    println!("info -- list of {LISTED} volumes");
    let start = Instant::now();
    for number in 0..LISTED {
        let name = VolumeName::new(format!("volume-{number:05}"))?;
        let options = CreateOptions::thin(ByteSize::gib(1));
        bench
            .runtime
            .block_on(bench.pool.create_volume(&name, options))?;
        let file = File::create_new(bench.rivals.join(name.as_str()))?;
        file.set_len(1 << 30)?;
    }
    println!(
        "info made {LISTED} volumes and as many plain files in {:.1} s",
        start.elapsed().as_secs_f64()
    );
    bench.settle()?;

    let mut ours = Samples::new("volmux list_volumes");
    let mut first = Samples::new("volmux list_volumes, first in a process");
    let mut scan = Samples::new("read_dir and stat of a directory of plain files");
    for _ in 0..21 {
        let found = ours.time(|| bench.runtime.block_on(drain(bench.pool.as_ref())))?;
        expect(found, LISTED)?;
        // A pool object remembers records; a new one has none.
        let pool = bench
            .runtime
            .block_on(DirPool::open(DirConfig::new(bench.root())))?;
        let found = first.time(|| bench.runtime.block_on(drain(pool.as_ref())))?;
        expect(found, LISTED)?;
        let found = scan.time(|| -> Result<usize> {
            let mut sizes = 0;
            for entry in fs::read_dir(&bench.rivals)? {
                sizes += usize::from(entry?.metadata()?.len() == 1 << 30);
            }
            Ok(sizes)
        })?;
        expect(found, LISTED)?;
    }
    [&ours, &first, &scan].into_iter().for_each(Samples::print);
    ratio("dir-list-10k-vs-scandir-stat", &ours, &scan);

    let status = Command::new(env::current_exe()?)
        .arg(LIST)
        .arg(bench.root())
        .status()?;
    if !status.success() {
        return Err(format!("the process that lists: {status}").into());
    }
    list_with_the_program(bench)
}

async fn drain(pool: &dyn Pool) -> Result<usize> {
    let all = pool.list_volumes();
    Ok(all.try_fold(0, |n, _| async move { Ok(n + 1) }).await?)
}

fn expect(found: usize, wanted: usize) -> Result<()> {
    if found != wanted {
        return Err(format!("{found} found, {wanted} wanted").into());
    }
    Ok(())
}

fn list_and_tell_memory(root: &Path) -> Result<()> {
    let before = peak_rss_bytes()?;
    Runtime::new()?.block_on(async {
        let pool = DirPool::open(DirConfig::new(root)).await?;
        expect(drain(pool.as_ref()).await?, LISTED)
    })?;
    let after = peak_rss_bytes()?;
    println!(
        "info memory of the process that lists: {:.1} MiB at most, {:.1} MiB before",
        after as f64 / MIB as f64,
        before as f64 / MIB as f64
    );
    count(
        "dir-list-10k-peak-rss-mib",
        format_args!("{:.1}", after as f64 / MIB as f64),
    );
    Ok(())
}

/// For information: the command line, if its path is given in VOLMUX.
fn list_with_the_program(bench: &Bench) -> Result<()> {
    let Some(program) = env::var_os("VOLMUX") else {
        println!("info volmux volume list: not measured, as VOLMUX does not name the program");
        return Ok(());
    };
    let url = format!("dir://{}", bench.root().display());
    for format in [&[][..], &["--json"]] {
        let mut samples = Samples::new(format!("volmux volume list {}", format.join(" ")));
        for _ in 0..5 {
            let status = samples.time(|| {
                let mut command = Command::new(&program);
                command.args(["-p", &url, "volume", "list"]).args(format);
                command.stdin(Stdio::null()).stdout(Stdio::null()).status()
            })?;
            if !status.success() {
                return Err(format!("volmux volume list: {status}").into());
            }
        }
        samples.print();
    }
    Ok(())
}
