//! The lab itself. If these fail, what else is tested in it says nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use volmux_lab::{Disk, Done, End, Lab, Running};

/// More than any wait here takes, on a busy machine too.
const LIMIT: Duration = Duration::from_secs(240);

fn lab() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_volmux-lab"));
    command.stdin(Stdio::null());
    command
}

fn output(command: &mut Command) -> (i32, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().expect("the lab's program");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    let code = status.code().expect("an exit status");
    (code, text(stdout), text(stderr))
}

fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < LIMIT, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Runs a script to its end, which must be a good one.
fn script(lab: &Lab, script: &str) -> Done {
    let done = lab.run(["sh", "-euxc", script]).expect("a lab");
    let done = done.finish().expect("an end");
    assert_eq!(done.end, End::Exit(0), "{}\n{}", done.stderr, done.console);
    done
}

/// Reads lines up to one that is told.
fn read_until(running: &mut Running, wanted: &str) {
    while let Some(line) = running.line().expect("a line") {
        if line == wanted {
            return;
        }
    }
    panic!("the end came before {wanted:?}: {}", running.stderr());
}

#[test]
fn a_command_runs_as_if_it_were_here() {
    let directory = tempfile::tempdir().expect("a directory");
    fs::write(directory.path().join("mine"), "from the host\n").expect("a file");
    let shared = directory.path().join("shared, and 'odd'");
    fs::create_dir(&shared).expect("a directory");
    let inside = "\
        cat mine; echo changed >mine; cat mine; echo \"$PLANET $1\"; id -u; echo trouble >&2
        echo from the guest >\"$2/file\"; blockdev --getsize64 /dev/vda
        readlink -f /dev/disk/by-id/virtio-lab1
        busybox ping -c 1 127.0.0.1 >/dev/null && echo loopback
        echo again >/dev/stderr; exit 7";
    let (code, stdout, stderr) = output(
        lab()
            .current_dir(directory.path())
            .args(["--disk", "3M", "--disk", "5M", "--env", "PLANET=it's Mars"])
            .args([Path::new("--share"), &shared])
            .args(["--", "bash", "-c", inside])
            .args(["bash", "a  'b'"])
            .arg(&shared),
    );
    assert_eq!(
        stdout,
        "from the host\nchanged\nit's Mars a  'b'\n0\n3145728\n/dev/vdb\nloopback\n"
    );
    assert_eq!((code, stderr.as_str()), (7, "trouble\nagain\n"));
    let read = |path: PathBuf| fs::read_to_string(path).expect("a file");
    assert_eq!(read(directory.path().join("mine")), "from the host\n");
    assert_eq!(read(shared.join("file")), "from the guest\n");
}

#[test]
fn a_command_that_is_missing_gives_127() {
    let (code, stdout, stderr) = output(lab().args(["no-such-command", "--time", "1"]));
    assert_eq!((code, stdout.as_str()), (127, ""));
    assert!(stderr.contains("no-such-command: not found"), "{stderr}");
}

#[test]
fn a_time_limit_ends_it() {
    let (code, stdout, stderr) = output(lab().args(["--time", "1.5", "sleep", "1000"]));
    assert_eq!((code, stdout.as_str()), (124, ""));
    assert!(stderr.contains("1.5 s were over"), "{stderr}");
}

#[test]
fn a_kernel_that_fails_is_told_of() {
    let crash = "echo before; echo c >/proc/sysrq-trigger; sleep 1000";
    let (code, stdout, stderr) = output(lab().args(["sh", "-c", crash]));
    assert_eq!((code, stdout.as_str()), (122, "before\n"));
    assert!(stderr.contains("Kernel panic"), "{stderr}");
    assert!(stderr.contains("its kernel failed"), "{stderr}");
}

#[test]
fn a_guest_that_does_not_boot_is_told_of() {
    let directory = tempfile::tempdir().expect("a directory");
    let qemu = directory.path().join("qemu-system-x86_64");
    fs::write(&qemu, "#!/bin/sh\necho no machine today >&2\nexit 1\n").expect("a file");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&qemu, mode).expect("a program");
    let path = format!(
        "{}:{}",
        directory.path().display(),
        std::env::var("PATH").expect("a PATH")
    );
    let (code, _, stderr) = output(lab().env("PATH", path).arg("true"));
    assert_eq!(code, 123);
    assert!(stderr.contains("no machine today"), "{stderr}");
    assert!(stderr.contains("did not boot"), "{stderr}");
}

#[test]
fn wrong_options_are_refused() {
    let here = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    for (options, why) in [
        (&[][..], "required arguments were not provided"),
        (&["--frob", "true"], "unexpected argument '--frob'"),
        (&["--disk", "/no/such", "true"], "write /no/such:SIZE"),
        (&["--disk", "/no/such:4x", "true"], "\"4x\" is no size"),
        (&["--disk", "700", "true"], "multiple of 512"),
        (
            &["--disk", "/no/such/file:4M", "true"],
            "/no/such/file: No such file",
        ),
        (&["--disk", here, "true"], "multiple of 512"),
        (&["--share", "/no/such", "true"], "/no/such: No such file"),
        (&["--share", here, "true"], "not a directory"),
        (&["--env", "NAME", "true"], "NAME=VALUE"),
        (&["--env", "1=2", "true"], "no name of a variable"),
        (&["--time", "soon", "true"], "a number of seconds"),
        (&["--time", "1e9", "true"], "a week at most"),
        (&["--memory", "1", "true"], "256M of memory at least"),
        (&["--kill-file", here, "true"], "is there already"),
    ] {
        let (code, stdout, stderr) = output(lab().args(options));
        assert_eq!((code, stdout.as_str()), (125, ""), "{options:?}");
        assert!(stderr.contains(why), "{options:?}: {stderr}");
    }
}

#[test]
fn the_script_is_the_same_program() {
    let mut script = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/run"));
    let (code, stdout, stderr) = output(script.arg("--help"));
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert!(stdout.contains("the guest did not boot"), "{stdout}");
}

#[test]
fn the_power_is_cut_when_told() {
    let shared = tempfile::tempdir().expect("a directory");
    let file = shared.path().join("now");
    let (code, stdout, stderr) = output(
        lab()
            .arg("--kill-file")
            .arg(&file)
            .arg("--share")
            .arg(shared.path())
            .args(["sh", "-c", "echo before; touch \"$1\"; sleep 1000", "sh"])
            .arg(&file),
    );
    assert_eq!(
        (code, stdout.as_str(), stderr.as_str()),
        (121, "before\n", "")
    );

    let (code, stdout, _) = output(lab().args(["--kill-after", "0.1", "sleep", "1000"]));
    assert_eq!((code, stdout.as_str()), (121, ""));
}

/// Where QEMU runs with a word in its arguments.
fn machines(word: &str) -> Vec<PathBuf> {
    let processes = fs::read_dir("/proc").expect("/proc");
    let paths = processes.map(|entry| entry.expect("an entry").path());
    let with_word = |path: &PathBuf| {
        // Not a process, or one that has just ended.
        let words = fs::read(path.join("cmdline")).unwrap_or_default();
        let words = String::from_utf8_lossy(&words);
        words.starts_with("qemu-system") && words.contains(word)
    };
    paths.filter(with_word).collect()
}

#[test]
fn it_ends_with_its_caller() {
    let shared = tempfile::tempdir().expect("a directory");
    let started = shared.path().join("started");
    let shared_path = shared.path().to_str().expect("UTF-8");
    let mut caller = Command::new("sh")
        .args([
            "-c",
            "\"$@\" & wait",
            "sh",
            env!("CARGO_BIN_EXE_volmux-lab"),
        ])
        .args(["--share", shared_path])
        .args(["sh", "-c", "touch \"$1\"; sleep 1000", "sh"])
        .arg(&started)
        .spawn()
        .expect("a shell");
    wait_for("it does not start", || started.exists());
    assert_eq!(machines(shared_path).len(), 1);
    caller.kill().expect("kill");
    caller.wait().expect("wait");
    wait_for("it outlives its caller", || {
        machines(shared_path).is_empty()
    });
}

#[test]
fn two_run_at_once() {
    let shared = tempfile::tempdir().expect("a directory");
    let path = shared.path().to_str().expect("UTF-8");
    let disk = shared.path().join("disk");
    let meet = |mine: &str, other: &str| {
        let script = format!(
            "touch {path}/{mine}; until [ -e {path}/{other} ]; do sleep 0.1; done; echo met {other}"
        );
        ["sh".to_owned(), "-c".to_owned(), script]
    };
    let lab = Lab::new().share(path);
    let with_disk = lab.clone().disk(Disk::file(&disk, 1 << 20));
    let one = with_disk.run(meet("one", "two")).expect("a lab");
    let refused = with_disk.run(["true"]).expect_err("its disk is in use");
    assert!(
        refused.to_string().contains("another lab uses"),
        "{refused}"
    );
    let two = lab.run(meet("two", "one")).expect("another lab");
    for (running, said) in [(one, "met two\n"), (two, "met one\n")] {
        let done = running.finish().expect("an end");
        assert_eq!((done.end, done.stdout.as_str()), (End::Exit(0), said));
    }
}

/// Writes numbered blocks, tells of each once it is durable, and is cut in the midst of it.
/// Before, one block is written far behind them, and never flushed.
fn blocks_after_power_cut(lab: &Lab) -> Done {
    let mut running = lab
        .run([
            "sh",
            "-euc",
            "
            write() { dd of=/dev/vda bs=4096 seek=$1 count=1 status=none conv=sync,notrunc$2; }
            echo unflushed | dd of=/dev/vda oflag=direct bs=4096 seek=1000 conv=sync status=none
            n=0
            while [ $n -lt 900 ]; do
                n=$((n + 1)); echo block $n | write $n ,fsync; echo $n
            done",
        ])
        .expect("a lab");
    read_until(&mut running, "25");
    running.cut_power().expect("a power cut");
    let mut told = 25;
    while let Some(line) = running.line().expect("a line") {
        told = line.parse().expect("a number");
    }
    assert_eq!(running.finish().expect("an end").end, End::PowerCut);
    let done = script(
        lab,
        "n=0
        while [ $n -lt 900 ]; do
            n=$((n + 1))
            dd if=/dev/vda bs=4096 skip=$n count=1 status=none | tr -d '\\0' | grep . || break
        done
        echo end
        dd if=/dev/vda bs=4096 skip=1000 count=1 status=none | tr -d '\\0'",
    );
    let found: Vec<&str> = done
        .stdout
        .lines()
        .take_while(|line| *line != "end")
        .collect();
    assert!(found.len() >= told, "{told} were told of, found: {found:?}");
    for (index, line) in found.iter().enumerate() {
        assert_eq!(*line, format!("block {}", index + 1));
    }
    done
}

#[test]
fn what_was_flushed_outlives_a_power_cut() {
    let directory = tempfile::tempdir().expect("a directory");
    let lab = Lab::new().disk(Disk::file(directory.path().join("disk"), 8 << 20));
    let found = blocks_after_power_cut(&lab);
    assert!(found.stdout.ends_with("end\nunflushed\n"), "{found:?}");
}

#[test]
fn what_was_not_flushed_is_lost_by_a_volatile_disk() {
    let directory = tempfile::tempdir().expect("a directory");
    let disk = Disk::file(directory.path().join("disk"), 1 << 20);
    let lab = Lab::new().disk(disk).volatile();
    let mut running = lab
        .run([
            "sh",
            "-euc",
            "
            echo flushed | dd of=/dev/vda conv=sync,fsync status=none
            echo unflushed | dd of=/dev/vda oflag=direct seek=8 conv=sync status=none
            echo written; sleep 1000",
        ])
        .expect("a lab");
    read_until(&mut running, "written");
    running.cut_power().expect("a power cut");
    let found = script(&lab, "tr -d '\\0' </dev/vda");
    assert_eq!(found.stdout, "flushed\n");
}

#[test]
fn what_loads_a_module_is_there() {
    let done = script(
        &Lab::new(),
        "test -c /dev/mapper/control
        ! grep -q ^dm_mod /proc/modules
        dmsetup version >/dev/null
        grep -o ^dm_mod /proc/modules
        test -c /dev/loop-control && test -c /dev/net/tun && echo all",
    );
    assert_eq!(done.stdout, "dm_mod\nall\n");
}

#[test]
fn thin_volumes_work_and_outlive_a_power_cut() {
    let directory = tempfile::tempdir().expect("a directory");
    let lab = Lab::new().disk(Disk::file(directory.path().join("disk"), 64 << 20));
    let make = "
        pvcreate -q /dev/vda
        vgcreate -q lab /dev/vda
        lvcreate -q --type thin-pool -L 32M -n pool lab
        lvcreate -q -V 100M -n thin --thinpool pool lab
        echo old | dd of=/dev/lab/thin conv=sync,fsync status=none
        lvcreate -q -s -n before lab/thin
        echo new | dd of=/dev/lab/thin conv=sync,fsync status=none
        echo made
        sleep 1000";
    let mut running = lab.run(["sh", "-euxc", make]).expect("a lab");
    read_until(&mut running, "made");
    running.cut_power().expect("a power cut");
    let found = script(
        &lab,
        "vgchange -q -ay -K lab >/dev/null
        head -c 4 /dev/lab/thin
        head -c 4 /dev/lab/before
        lvs --noheadings -o lv_name,pool_lv,origin lab | sort
        modprobe -a dm-snapshot brd loop nbd nfsd
        vgchange -q -an lab >/dev/null
        lvchange -q -ay -y lab/pool_tmeta >/dev/null 2>&1
        thin_check /dev/lab/pool_tmeta >/dev/null && echo clean",
    );
    let found: Vec<&str> = found.stdout.split_whitespace().collect();
    assert_eq!(
        found,
        [
            "new", "old", "before", "pool", "thin", "pool", "thin", "pool", "clean"
        ]
    );
}
