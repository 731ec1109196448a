//! Shell completions and man pages.

use std::path::Path;

use clap::CommandFactory;
use clap_complete::Shell;
use volmux::{Error, Result};

use crate::app::App;
use crate::args::Cli;

/// Prints the completion script of `shell`.
///
/// # Errors
/// Those of printing.
pub fn completions(app: &App, shell: Shell) -> Result<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "volmux", &mut script);
    app.out.bytes(&script)?;
    Ok(0)
}

/// Prints the main page, or writes all pages into `dir`.
///
/// # Errors
/// Those of writing.
pub fn man(app: &App, dir: Option<&Path>) -> Result<u8> {
    let wrong = |error| Error::from_io("write_man_pages", error);
    match dir {
        Some(dir) => clap_mangen::generate_to(Cli::command(), dir)
            .map_err(|e| wrong(e).with("path", dir.display()))?,
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(Cli::command())
                .render(&mut page)
                .map_err(wrong)?;
            app.out.bytes(&page)?;
        }
    }
    Ok(0)
}
