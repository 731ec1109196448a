//! A QEMU that is told what the program, or the library, renders.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::{Value, json};
use volmux::hypervisor::{DiskBus, Hypervisor, RenderOptions};
use volmux::{Access, Attachment};

/// A virtual machine that never runs, driven by QMP; killed when dropped.
#[derive(Debug)]
pub struct Qemu {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    /// What its qemu-io printed, which comes on standard output too, before the answer.
    printed: String,
}

impl Qemu {
    /// Starts it with these arguments besides; what it said instead if it does not take them.
    pub fn try_start(arguments: &[String]) -> Result<Qemu, String> {
        let mut child = Command::new("/usr/bin/qemu-system-x86_64")
            .args(["-nodefaults", "-no-user-config", "-display", "none"])
            .args(["-machine", "pc,accel=tcg", "-m", "16", "-S"])
            .args(["-device", "virtio-scsi-pci,id=scsi0", "-qmp", "stdio"])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("qemu-system-x86_64");
        let input = child.stdin.take().expect("stdin");
        let output = BufReader::new(child.stdout.take().expect("stdout"));
        let mut qemu = Qemu {
            child,
            input,
            output,
            printed: String::new(),
        };
        // It greets before it has looked at all of its arguments.
        let greeted = qemu.line().is_some();
        let _ = writeln!(qemu.input, "{{\"execute\": \"qmp_capabilities\"}}");
        if greeted && qemu.line().is_some() {
            return Ok(qemu);
        }
        let mut stderr = qemu.child.stderr.take().expect("stderr");
        let mut said = String::new();
        stderr.read_to_string(&mut said).expect("read");
        Err(said)
    }

    #[track_caller]
    pub fn start(arguments: &[String]) -> Qemu {
        Qemu::try_start(arguments).unwrap_or_else(|said| panic!("{arguments:?}: {said}"))
    }

    /// The next document.
    fn line(&mut self) -> Option<Value> {
        loop {
            let mut line = String::new();
            if self.output.read_line(&mut line).expect("read") == 0 {
                return None;
            }
            if line.starts_with('{') {
                return Some(serde_json::from_str(&line).expect("JSON"));
            }
            self.printed.push_str(&line);
        }
    }

    /// Sends a command as it is, and gives back its answer.
    pub fn send(&mut self, command: &str) -> Result<Value, Value> {
        writeln!(self.input, "{command}").expect("write");
        loop {
            let mut answer = self.line().expect("it goes on");
            if !answer["return"].is_null() {
                return Ok(answer["return"].take());
            }
            if !answer["error"].is_null() {
                return Err(answer["error"].take());
            }
        }
    }

    #[track_caller]
    pub fn execute(&mut self, name: &str, arguments: &Value) -> Value {
        let command = json!({ "execute": name, "arguments": arguments });
        let answer = self.send(&command.to_string());
        answer.unwrap_or_else(|error| panic!("{command}: {error}"))
    }

    /// What qemu-io says after a command on the one disk, by way of the guest's device.
    #[track_caller]
    pub fn io(&mut self, command: &str) -> String {
        let disks = self.execute("query-block", &json!({}));
        let device = disks[0]["qdev"].as_str().expect("a device").to_owned();
        let line = format!("qemu-io -d {device} \"{command}\"");
        self.printed.clear();
        let said = self.execute("human-monitor-command", &json!({ "command-line": line }));
        format!("{}{}", said.as_str().expect("text"), self.printed)
    }

    /// Checks the one disk: its format, that it is read-only or not, its serial number, and that it
    /// goes past the page cache and flushes.
    #[track_caller]
    pub fn check_disk(&mut self, attached: &Attachment, node: &str, format: &str, direct: bool) {
        let disks = self.execute("query-block", &json!({}));
        let disks = disks.as_array().expect("disks");
        assert_eq!(disks.len(), 1, "{disks:?}");
        let disk = &disks[0]["inserted"];
        assert_eq!(disk["node-name"], node, "{disk}");
        assert_eq!(disk["drv"], format, "{disk}");
        assert_eq!(disk["ro"], attached.access == Access::ReadOnly, "{disk}");
        assert_eq!(disk["cache"]["direct"], direct, "{disk}");
        assert_eq!(disk["cache"]["no-flush"], false, "{disk}");
        assert_eq!(disk["cache"]["writeback"], true, "{disk}");
        let path = format!("/machine/peripheral/{node}");
        let serial = json!({ "path": path, "property": "serial" });
        let serial = self.execute("qom-get", &serial);
        assert_eq!(serial, attached.id.to_string());
        let nodes = self.execute("query-named-block-nodes", &json!({ "flat": true }));
        let nodes = nodes.as_array().expect("nodes");
        let below = format!("{node}-f");
        let file = nodes.iter().find(|n| n["node-name"] == below);
        let file = file.unwrap_or_else(|| panic!("{nodes:?}"));
        assert_eq!(file["ro"], attached.access == Access::ReadOnly, "{file}");
        assert_eq!(file["cache"]["direct"], direct, "{file}");
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Gives `attached` to a QEMU by its command line, and to one by QMP; both take it, with a disk on
/// either bus. The last one comes back.
#[track_caller]
pub fn give(attached: &Attachment, options: &RenderOptions, format: &str) -> Qemu {
    let direct = !options.page_cache;
    for bus in [DiskBus::Virtio, DiskBus::Scsi] {
        let options = RenderOptions {
            bus,
            ..options.clone()
        };
        let line = attached.render(Hypervisor::Qemu, &options).expect("qemu");
        let node = line.node.expect("a node");
        let mut qemu = Qemu::start(&line.arguments);
        qemu.check_disk(attached, &node, format, direct);
    }
    let commands = attached.render(Hypervisor::Qmp, options).expect("qmp");
    let node = commands.node.expect("a node");
    let mut qemu = Qemu::start(&[]);
    for command in &commands.arguments {
        let answer = qemu.send(command);
        answer.unwrap_or_else(|error| panic!("{command}: {error}"));
    }
    qemu.check_disk(attached, &node, format, direct);
    qemu
}
