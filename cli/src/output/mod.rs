//! What the program prints: text for people, JSON for programs.

mod error;
mod json;
mod progress;
mod text;

use std::cell::RefCell;
use std::io::{self, BufWriter, IsTerminal, Stdout, Write};

use serde::Serialize;
use volmux::{Error, Result};

pub use error::{report, warn};
pub use json::*;
pub use progress::Bar;
pub use text::*;

/// Standard output, buffered. A reader that went away is no error: what is still printed is lost.
#[derive(Debug)]
pub struct Output {
    json: bool,
    state: RefCell<State>,
}

#[derive(Debug)]
struct State {
    writer: BufWriter<Stdout>,
    terminal: bool,
    closed: bool,
}

impl Output {
    /// Prints JSON or text.
    pub fn new(json: bool) -> Self {
        let stdout = io::stdout();
        let terminal = stdout.is_terminal();
        Output {
            json,
            state: RefCell::new(State {
                writer: BufWriter::with_capacity(1 << 16, stdout),
                terminal,
                closed: false,
            }),
        }
    }

    /// Whether JSON is asked for.
    pub fn json(&self) -> bool {
        self.json
    }

    /// Whether the reader went away, so that going on is pointless for who only prints.
    pub fn is_closed(&self) -> bool {
        self.state.borrow().closed
    }

    /// Prints `text` and a line end.
    ///
    /// # Errors
    /// Those of writing, such as `NoSpace`; not that the reader went away.
    pub fn line(&self, text: &str) -> Result<()> {
        self.write(|w| {
            w.write_all(text.as_bytes())?;
            w.write_all(b"\n")
        })
    }

    /// Prints `document` as one line of JSON.
    ///
    /// # Errors
    /// As [`line`](Self::line).
    pub fn document(&self, document: &impl Serialize) -> Result<()> {
        self.write(|w| {
            serde_json::to_writer(&mut *w, document)?;
            w.write_all(b"\n")
        })
    }

    /// Prints `document` or the text, as asked for.
    ///
    /// # Errors
    /// As [`line`](Self::line).
    pub fn show(&self, document: &impl Serialize, text: impl FnOnce() -> String) -> Result<()> {
        if self.json {
            self.document(document)
        } else {
            self.line(&text())
        }
    }

    /// Prints raw bytes: a script or a man page.
    ///
    /// # Errors
    /// As [`line`](Self::line).
    pub fn bytes(&self, bytes: &[u8]) -> Result<()> {
        self.write(|w| w.write_all(bytes))
    }

    /// Hands everything to the reader.
    ///
    /// # Errors
    /// As [`line`](Self::line).
    pub fn flush(&self) -> Result<()> {
        self.write(|w| w.flush())
    }

    fn write(&self, write: impl FnOnce(&mut BufWriter<Stdout>) -> io::Result<()>) -> Result<()> {
        let state = &mut *self.state.borrow_mut();
        if state.closed {
            return Ok(());
        }
        let written = write(&mut state.writer).and_then(|()| match state.terminal {
            true => state.writer.flush(),
            false => Ok(()),
        });
        match written {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                state.closed = true;
                Ok(())
            }
            Err(error) => {
                // What could not be written must not be tried again when the buffer is dropped.
                state.closed = true;
                Err(Error::from_io("write_output", error))
            }
            Ok(()) => Ok(()),
        }
    }
}
