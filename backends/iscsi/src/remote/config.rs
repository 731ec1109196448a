//! Where the other host is, and how to get at the pool there.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use volmux_core::{ChapReference, Error, ErrorKind, PoolUrl, Result};

pub(super) const OPEN: &str = "open_pool";

/// The longest text that goes onto a command line from a configuration or a caller, in bytes.
const LONGEST_TEXT: usize = 4096;

/// A pool on another host. [`new`](Self::new) says what is set where nothing else is.
#[derive(Clone, Debug)]
pub struct RemoteConfig {
    /// The host: a name, or a numeric address without brackets.
    pub host: String,
    /// The port of sshd there. 22.
    pub port: u16,
    /// The user there, who may run `cat` and the program, and whose login shell is a POSIX shell
    /// that prints nothing by itself.
    pub user: String,
    /// The file with the private key, which has no passphrase. `None`: what ssh uses by itself, an
    /// agent included. As an absolute path, like all files here.
    pub key: Option<PathBuf>,
    /// The file with the host's key. `None`: the files that ssh uses by itself. A host whose key is
    /// not in it is refused.
    pub known_hosts: Option<PathBuf>,
    /// A configuration file for ssh, such as for a jump host. `None`: none is read. What is set
    /// here, and everything that keeps the connection safe, goes before it.
    pub ssh_config: Option<PathBuf>,
    /// The program `ssh` here. `/usr/bin/ssh`.
    pub ssh: PathBuf,
    /// The program there: a name in that user's search path, or an absolute path. `volmux`.
    pub program: String,
    /// The pool there: its URL, or its name in the configuration file there. Holds no secret.
    pub pool: String,
    /// Within which a call is answered, connecting included; in a list of volumes or extents, each
    /// of them. Also within which open volumes are told of a new size. 2 minutes.
    pub deadline: Duration,
    /// Within which long work (copies, reverts, audits, …) is done, or tells of progress once more.
    /// 6 hours.
    pub work_deadline: Duration,
    /// What initiators here prove with who they are. It stands in every attachment to an iSCSI
    /// target instead of what the pool there says, as that names files there.
    pub chap: Option<ChapReference>,
    /// What targets prove with who they are, likewise.
    pub mutual_chap: Option<ChapReference>,
}

impl RemoteConfig {
    /// `pool` on `host`, as `user`.
    pub fn new(
        user: impl Into<String>,
        host: impl Into<String>,
        pool: impl Into<String>,
    ) -> RemoteConfig {
        RemoteConfig {
            host: host.into(),
            port: 22,
            user: user.into(),
            key: None,
            known_hosts: None,
            ssh_config: None,
            ssh: "/usr/bin/ssh".into(),
            program: "volmux".into(),
            pool: pool.into(),
            deadline: Duration::from_secs(120),
            work_deadline: Duration::from_secs(6 * 3600),
            chap: None,
            mutual_chap: None,
        }
    }

    /// `user@host`, with the port where it is not SSH's own.
    pub(super) fn place(&self) -> String {
        let host = match self.host.contains(':') {
            true => format!("[{}]", self.host),
            false => self.host.clone(),
        };
        match self.port {
            22 => format!("{}@{host}", self.user),
            port => format!("{}@{host}:{port}", self.user),
        }
    }

    /// Refuses what can't be right, or would mean something else to ssh, to the shell there or to
    /// the program.
    ///
    /// # Errors
    /// `InvalidConfig` that names the option.
    pub(super) fn check(&self) -> Result<()> {
        let word = |extra: &str, text: &str| {
            let fits = |c: char| c.is_ascii_alphanumeric() || extra.contains(c);
            !text.is_empty()
                && text.len() <= 255
                && !text.starts_with('-')
                && text.chars().all(fits)
        };
        if !word("._-:%", &self.host) {
            return Err(wrong(
                "host",
                &self.host,
                "this is no host's name or address",
            ));
        }
        if !word("._-", &self.user) {
            return Err(wrong("user", &self.user, "this is no user's name"));
        }
        if self.port == 0 {
            return Err(wrong("port", 0, "a port is 1 to 65535"));
        }
        if !word("._-+/", &self.program) {
            let reason = "a program is a name or an absolute path of letters, digits and ._-+/";
            return Err(wrong("program", &self.program, reason));
        }
        check_path("ssh", Some(&self.ssh))?;
        check_path("key", self.key.as_deref())?;
        check_path("known_hosts", self.known_hosts.as_deref())?;
        check_path("ssh_config", self.ssh_config.as_deref())?;
        for (what, time) in [
            ("deadline", self.deadline),
            ("work_deadline", self.work_deadline),
        ] {
            let seconds = time.as_secs_f64();
            if !(1.0..=30.0 * 86400.0).contains(&seconds) {
                return Err(wrong(what, seconds, "it is 1 second to 30 days"));
            }
        }
        check_pool(&self.pool)
    }
}

fn wrong(option: &'static str, value: impl fmt::Display, reason: &str) -> Error {
    Error::new(ErrorKind::InvalidConfig, OPEN)
        .with("option", format!("{option}={value}"))
        .reason(reason)
}

/// ssh reads paths in options as configuration: with quotes, `%` and `$`.
fn check_path(option: &'static str, path: Option<&Path>) -> Result<()> {
    let Some(path) = path else { return Ok(()) };
    let plain = |c: char| !c.is_control() && !"\"\\%$".contains(c);
    match path.to_str() {
        Some(text) if path.is_absolute() && text.chars().all(plain) => Ok(()),
        _ => Err(wrong(
            option,
            path.display(),
            "it is an absolute path without quotes, backslashes, % and $",
        )),
    }
}

fn check_pool(pool: &str) -> Result<()> {
    // It is not shown before it is known to hold no password.
    let refuse = |reason: &str| Err(Error::new(ErrorKind::InvalidConfig, OPEN).reason(reason));
    if pool.is_empty() || pool.len() > LONGEST_TEXT || pool.chars().any(char::is_control) {
        return refuse("the pool there is a URL or a name, of 1 to 4096 bytes");
    }
    match pool.contains([':', '@', '/']) {
        true => pool.parse::<PoolUrl>().map(drop),
        false => Ok(()),
    }
}

/// A text of the caller's that goes onto the command line as it is.
///
/// # Errors
/// `InvalidInput` if it can't.
pub(super) fn check_text(op: &'static str, key: &'static str, text: &str) -> Result<()> {
    if text.contains('\0') || text.len() > LONGEST_TEXT {
        return Err(Error::new(ErrorKind::InvalidInput, op)
            .with(key, text.chars().take(80).collect::<String>())
            .reason("it is 4096 bytes at most, and no NUL is among them"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usual_configurations_pass() {
        for (host, pool) in [
            (
                "array-1.example.org",
                "iscsi://10.0.0.1/iqn.x?store=dir:///srv/a",
            ),
            ("10.0.0.1", "fast"),
            ("fe80::1%eth0", "memory:"),
        ] {
            let config = RemoteConfig::new("root", host, pool);
            config.check().expect(host);
        }
        assert_eq!(RemoteConfig::new("me", "a", "p").place(), "me@a");
        let mut config = RemoteConfig::new("me", "::1", "p");
        config.port = 2222;
        assert_eq!(config.place(), "me@[::1]:2222");
    }

    #[test]
    fn what_would_mean_something_else_is_refused() {
        let refused = |what: &str, change: &dyn Fn(&mut RemoteConfig)| {
            let mut config = RemoteConfig::new("root", "host", "dir:///srv");
            change(&mut config);
            let error = config.check().expect_err(what);
            assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{what}");
            let shown = format!("{error:?}");
            assert!(!shown.contains("canary"), "{shown}");
        };
        for host in [
            "",
            "-oProxyCommand=x",
            "a b",
            "a\n",
            "a;b",
            "u@h",
            "$(x)",
            "[::1]",
        ] {
            refused(host, &|config| config.host = host.into());
        }
        for user in ["", "-l", "a b", "a@b", "a;b", "%h"] {
            refused(user, &|config| config.user = user.into());
        }
        for program in ["", "-i", "A=b", "volmux --json", "a;b", "$HOME/volmux"] {
            refused(program, &|config| config.program = program.into());
        }
        for path in [
            "", "key", "~/key", "/a\"b", "/a%h", "/$HOME/x", "/a\nb", "/a\\b",
        ] {
            refused(path, &|config| config.key = Some(path.into()));
            refused(path, &|config| config.known_hosts = Some(path.into()));
            refused(path, &|config| config.ssh_config = Some(path.into()));
            refused(path, &|config| config.ssh = path.into());
        }
        for pool in [
            "",
            "a\nb",
            "s3://me:canary@host/",
            "me:canary@host",
            &"x".repeat(5000),
        ] {
            refused(pool, &|config| config.pool = pool.into());
        }
        refused("port", &|config| config.port = 0);
        refused("deadline", &|config| config.deadline = Duration::ZERO);
        refused("work", &|config| config.work_deadline = Duration::MAX);
    }
}
