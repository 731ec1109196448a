//! The Python module against the same in Rust: reading 1 GiB in pieces of 1 MiB from a directory pool in
//! memory, in turns; and what a call costs that only looks something up.

use std::env;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use volmux::blocking::{Device, Pool};
use volmux::{ByteSize, CreateOptions, OpenOptions, VolumeName};
use volmux_bench::{Contender, Result, contest, header, ratio_of_turns};

const MIB: usize = 1 << 20;
const SIZE: usize = 1 << 30;
const TURNS: usize = 11;
/// Calls that are measured together.
const CALLS: u32 = 2000;

fn main() -> Result<()> {
    header("the Python module, on a directory pool in memory")?;
    let scratch = tempfile::tempdir_in("/dev/shm")?;
    let url = format!("dir://{}", scratch.path().display());
    let pool = Pool::open(&volmux::registry(), &url)?;
    let name = VolumeName::new("disk")?;
    fill(&pool, &name)?;
    reads(&pool, &name, &url)?;
    calls()
}

fn fill(pool: &Pool, name: &VolumeName) -> Result<()> {
    let size = ByteSize::new(SIZE as u64);
    pool.create_volume(name, CreateOptions::thin(size))?;
    let device = pool.open_volume(name, OpenOptions::read_write())?;
    for offset in (0..SIZE).step_by(MIB) {
        device.write_at(offset as u64, vec![(offset / MIB) as u8 | 1; MIB])?;
    }
    Ok(device.flush()?)
}

fn reads(pool: &Pool, name: &VolumeName, url: &str) -> Result<()> {
    let device = pool.open_volume(name, OpenOptions::read_only())?;
    let mut buffer = vec![0; MIB];
    let (view, bytes, into) = (
        Python::start(url)?,
        Python::start(url)?,
        Python::start(url)?,
    );
    let all = contest(
        TURNS,
        vec![
            Contender::new("Rust: read_at", "MiB/s", || read(&device, |_| ())),
            Contender::new("Python: read_view", "MiB/s", || view.ask("read_view")),
            Contender::new("Python: read_at", "MiB/s", || bytes.ask("read_at")),
            Contender::new("Rust: read_at, into a buffer", "MiB/s", || {
                read(&device, |data| buffer.copy_from_slice(data))
            }),
            Contender::new("Python: read_into", "MiB/s", || into.ask("read_into")),
        ],
    )?;
    let [rust, view, bytes, rust_into, into] = all.as_slice() else {
        return Err("five took part".into());
    };
    ratio_of_turns("python-read-1m-vs-rust", view, rust);
    ratio_of_turns("python-read-bytes-1m-vs-rust", bytes, rust);
    ratio_of_turns("python-read-into-1m-vs-rust", into, rust_into);
    Ok(())
}

/// Reads all of it, and tells how many MiB a second.
fn read(device: &Device, mut look: impl FnMut(&[u8])) -> Result<f64> {
    let start = Instant::now();
    for offset in (0..SIZE).step_by(MIB) {
        look(&device.read_at(offset as u64, MIB)?);
    }
    Ok((SIZE / MIB) as f64 / start.elapsed().as_secs_f64())
}

/// On a pool that answers at once, so that nothing but the way there and back is measured.
fn calls() -> Result<()> {
    println!("info -- a call that looks a volume up, on a pool in memory");
    let pool = Pool::open(&volmux::registry(), "memory:")?;
    let name = VolumeName::new("disk")?;
    pool.create_volume(&name, CreateOptions::thin(ByteSize::mib(1)))?;
    let python = Python::start("memory:")?;
    contest(
        TURNS,
        vec![
            Contender::new("Rust: volume", "us", || {
                let start = Instant::now();
                for _ in 0..CALLS {
                    pool.volume(&name)?;
                }
                Ok(start.elapsed().as_secs_f64() * 1e6 / f64::from(CALLS))
            }),
            Contender::new("Python: volume", "us", || python.ask("volume")),
            Contender::new("Python: await volume_async", "us", || {
                python.ask("volume_async")
            }),
            Contender::new("Python: 100 volume_async at once, each", "us", || {
                python.ask("volume_async_100")
            }),
            Contender::new("Python: closed device, nothing is done", "us", || {
                python.ask("nothing")
            }),
        ],
    )
    .map(drop)
}

/// A Python that has the pool open and does what it is asked for.
struct Python {
    child: std::cell::RefCell<(Child, ChildStdin, BufReader<ChildStdout>)>,
}

impl Python {
    fn start(url: &str) -> Result<Self> {
        let program = env::var("VOLMUX_PYTHON").map_err(|_| "run it by `make bench-python`")?;
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/python/measure.py");
        let mut child = Command::new(program)
            .args([script, url])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let input = child.stdin.take().ok_or("it has an input")?;
        let output = child.stdout.take().ok_or("it has an output")?;
        Ok(Python {
            child: (child, input, BufReader::new(output)).into(),
        })
    }

    fn ask(&self, what: &str) -> Result<f64> {
        let mut child = self.child.borrow_mut();
        writeln!(child.1, "{what}")?;
        let mut line = String::new();
        child.2.read_line(&mut line)?;
        Ok(line.trim().parse()?)
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        let child = &mut self.child.get_mut().0;
        let _ = child.kill();
        let _ = child.wait();
    }
}
