//! QEMU's machine protocol.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// A connection to the QEMU of a guest.
#[derive(Debug)]
pub struct Qmp {
    stream: BufReader<UnixStream>,
    /// What it told unasked, and nobody has waited for yet.
    events: Vec<Value>,
}

impl Qmp {
    /// Connects as soon as QEMU listens; every answer may take as long as `limit`.
    ///
    /// # Panics
    /// If it does not listen, as everything here if QEMU does not do as it should.
    pub(crate) fn connect(socket: &Path, limit: Duration) -> Qmp {
        let start = Instant::now();
        let stream = loop {
            match UnixStream::connect(socket) {
                Ok(stream) => break stream,
                Err(error) => assert!(start.elapsed() < limit, "QMP: {error}"),
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        let limited = stream.set_read_timeout(Some(limit));
        limited.expect("a limit");
        let mut qmp = Qmp {
            stream: BufReader::new(stream),
            events: Vec::new(),
        };
        let greeting = qmp.next();
        assert!(!greeting["QMP"].is_null(), "{greeting}");
        qmp.execute("qmp_capabilities", &json!({}));
        qmp
    }

    /// Sends a command as it is, and gives back its answer.
    ///
    /// # Errors
    /// What QEMU says instead.
    ///
    /// # Panics
    /// If it does not answer.
    pub fn send(&mut self, command: &str) -> Result<Value, Value> {
        writeln!(self.stream.get_mut(), "{command}").expect("QEMU listens");
        loop {
            let mut answer = self.next();
            if !answer["return"].is_null() {
                return Ok(answer["return"].take());
            }
            if !answer["error"].is_null() {
                return Err(answer["error"].take());
            }
            self.events.push(answer);
        }
    }

    /// Executes a command and gives back its answer.
    ///
    /// # Panics
    /// If QEMU refuses it.
    pub fn execute(&mut self, name: &str, arguments: &Value) -> Value {
        let command = json!({ "execute": name, "arguments": arguments }).to_string();
        let answer = self.send(&command);
        answer.unwrap_or_else(|error| panic!("{command}: {error}"))
    }

    /// Waits for the event `name` of the device `device`.
    ///
    /// # Panics
    /// If it does not come.
    pub fn wait_for(&mut self, name: &str, device: &str) {
        let wanted = |event: &Value| event["event"] == name && event["data"]["device"] == device;
        loop {
            if let Some(at) = self.events.iter().position(wanted) {
                self.events.remove(at);
                return;
            }
            let event = self.next();
            self.events.push(event);
        }
    }

    fn next(&mut self) -> Value {
        let mut line = String::new();
        let read = self.stream.read_line(&mut line);
        let read = read.unwrap_or_else(|error| panic!("QMP: {error}; so far {:?}", self.events));
        assert!(read > 0, "QEMU ended; so far {:?}", self.events);
        serde_json::from_str(&line).expect("JSON")
    }
}
