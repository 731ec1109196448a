//! A tgtd of its own for each test, without a target: what is tested makes them.

use std::fs::File;
use std::ops::{Deref, DerefMut};
use std::path::PathBuf;

use volmux_iscsi::control::tgt::Tgt;
use volmux_iscsi_initiator::Options;
use volmux_iscsi_server::Setup;

/// A tgtd, and a directory for files.
#[derive(Debug)]
pub struct Server(volmux_iscsi_server::Server);

impl Server {
    /// Starts one. The process ends with the thread that calls this.
    pub fn start() -> Server {
        Server(Setup::new().start())
    }

    /// After [`kill`](volmux_iscsi_server::Server::kill).
    pub fn start_again(&mut self) {
        self.0.start();
    }

    /// What is tested.
    pub fn control(&self) -> Tgt {
        Tgt::new(Some(self.socket()))
    }

    /// For a session with a target.
    pub fn options(&self, target: &str, initiator: &str) -> Options {
        let mut options = Options::new(self.portal(), initiator);
        options.target = Some(target.to_owned());
        options
    }

    /// A sparse file.
    pub fn file(&self, name: &str, size: u64) -> PathBuf {
        let path = self.directory().join(name);
        let file = File::create_new(&path).expect("a new file");
        file.set_len(size).expect("a sparse file");
        path
    }

    /// Has tgtadm do something, as an administrator would. If that fails: why.
    pub fn tgtadm(&self, arguments: &[&str]) -> Result<String, String> {
        self.0.admin(arguments)
    }

    /// As [`tgtadm`](Self::tgtadm), which must succeed.
    pub fn admin(&self, arguments: &str) -> String {
        let words: Vec<&str> = arguments.split_ascii_whitespace().collect();
        let done = self.tgtadm(&words);
        done.unwrap_or_else(|why| panic!("tgtadm {arguments}: {why}"))
    }
}

impl Deref for Server {
    type Target = volmux_iscsi_server::Server;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl DerefMut for Server {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}
