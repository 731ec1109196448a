//! What ssh complains of, as the kind of error that fits.

use volmux_core::{Error, ErrorKind};

use super::config::RemoteConfig;

/// What is kept of complaints, in bytes.
pub(super) const LONGEST_COMPLAINT: usize = 8 << 10;

/// Text from a standard error, of which only the end is kept.
#[derive(Clone, Debug, Default)]
pub(super) struct Complaints(String);

impl Complaints {
    /// Adds a line.
    pub(super) fn add(&mut self, line: &[u8]) {
        let line = &line[line.len().saturating_sub(LONGEST_COMPLAINT)..];
        self.0.push_str(&String::from_utf8_lossy(line));
        self.0.push('\n');
        if self.0.len() > LONGEST_COMPLAINT {
            let over = self.0.len() - LONGEST_COMPLAINT;
            let cut = (over..).find(|&at| self.0.is_char_boundary(at));
            self.0.drain(..cut.unwrap_or(over));
        }
    }

    /// All that is kept, in one line.
    pub(super) fn text(&self) -> String {
        // A frame is around some warnings.
        let lines = self
            .0
            .lines()
            .map(|line| line.trim_matches(['@', ' ', '\r']));
        let lines = lines.filter(|line| !line.is_empty());
        lines.collect::<Vec<_>>().join("; ")
    }
}

/// What OpenSSH (9.2) says when it fails, in the order in which it is looked for: kind, and what to
/// do.
const COMPLAINTS: &[(&str, ErrorKind, &str)] = &[
    (
        "REMOTE HOST IDENTIFICATION HAS CHANGED",
        ErrorKind::Unauthenticated,
        "the host has another key than known_hosts says: find out why before anything else. If it \
         was set up anew, take the old key out (ssh-keygen -R) and add the new one",
    ),
    (
        "host key is known for",
        ErrorKind::InvalidConfig,
        "get the host's key (ssh-keyscan), compare its fingerprint with that on the host's console \
         (ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub), and add it to known_hosts",
    ),
    (
        "Host key verification failed",
        ErrorKind::Unauthenticated,
        "see what known_hosts says of this host",
    ),
    (
        "UNPROTECTED PRIVATE KEY FILE",
        ErrorKind::InvalidConfig,
        "let nobody else read the key (chmod 600)",
    ),
    (
        "not accessible",
        ErrorKind::InvalidConfig,
        "see that the file with the key is there, and may be read",
    ),
    (
        "Load key",
        ErrorKind::InvalidConfig,
        "see that the file holds a private key without a passphrase",
    ),
    (
        "Permission denied (",
        ErrorKind::Unauthenticated,
        "see that the user there exists, and has this public key in authorized_keys",
    ),
    (
        "Too many authentication failures",
        ErrorKind::Unauthenticated,
        "name the file with the right key",
    ),
    (
        "Temporary failure in name resolution",
        ErrorKind::Unavailable,
        "see why the name server does not answer",
    ),
    (
        "Could not resolve hostname",
        ErrorKind::InvalidConfig,
        "see that the host's name is right",
    ),
    (
        "no matching",
        ErrorKind::InvalidConfig,
        "ssh here and sshd there have no algorithm in common",
    ),
    (
        "Bad configuration option",
        ErrorKind::InvalidConfig,
        "OpenSSH 8.7 or newer is needed here",
    ),
    (
        "an't open user config file",
        ErrorKind::InvalidConfig,
        "see that ssh's configuration file is there",
    ),
    (
        "Connection refused",
        ErrorKind::Unavailable,
        "see that sshd runs there, and on this port",
    ),
    (
        "timed out",
        ErrorKind::Unavailable,
        "see that the host is up, and that no firewall is between",
    ),
    (
        "No route to host",
        ErrorKind::Unavailable,
        "see that the host is up, and the network works",
    ),
];

/// ssh itself failed: that is its exit code 255, which a program that was killed there has, too.
pub(super) fn of_ssh(op: &'static str, complaints: &Complaints) -> Error {
    let text = complaints.text();
    let found = COMPLAINTS.iter().find(|(part, _, _)| text.contains(part));
    let (kind, help) = match found {
        Some((_, kind, help)) => (*kind, *help),
        None => (
            ErrorKind::Unavailable,
            "call again; if it goes on, see what sshd there and its kernel log",
        ),
    };
    let reason = match text.is_empty() {
        true => "the connection was lost, or the program there was killed".to_owned(),
        false => format!("ssh failed: {text}"),
    };
    Error::new(kind, op).reason(reason).help(help)
}

/// The program there can't be started: exit codes 126 and 127.
pub(super) fn of_program(
    op: &'static str,
    config: &RemoteConfig,
    complaints: &Complaints,
) -> Error {
    Error::new(ErrorKind::InvalidConfig, op)
        .with("program", &config.program)
        .reason(format!("it can't be started there: {}", complaints.text()))
        .help("install volmux on that host, or name the program by its absolute path there")
}

/// It broke down: exit code 101.
pub(super) fn of_panic(op: &'static str, complaints: &Complaints) -> Error {
    Error::new(ErrorKind::Internal, op)
        .reason(format!(
            "the program there broke down: {}",
            complaints.text()
        ))
        .help("report what it says")
}

/// It does not know what it was told: exit code 2.
pub(super) fn of_usage(op: &'static str, config: &RemoteConfig, complaints: &Complaints) -> Error {
    Error::new(ErrorKind::InvalidConfig, op)
        .with("program", &config.program)
        .reason(format!(
            "it does not know this command line: {}",
            complaints.text()
        ))
        .help("install the same version of volmux there as here")
}

/// What came is not what volmux prints.
pub(super) fn of_answer(op: &'static str, wrong: &str, complaints: &Complaints) -> Error {
    let text = complaints.text();
    let said = if text.is_empty() {
        ""
    } else {
        "; it also said: "
    };
    Error::new(ErrorKind::InvalidConfig, op)
        .reason(format!(
            "that is not an answer of volmux: {wrong}{said}{text}"
        ))
        .help(
            "see that the login shell there prints nothing by itself, and that the program is \
             volmux, of the same version as here",
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_end_of_endless_complaints_is_kept() {
        let mut complaints = Complaints::default();
        for _ in 0..100 {
            complaints.add("é".repeat(1000).as_bytes());
        }
        complaints.add(&[b'x'; 100_000]);
        complaints.add(b"  the end\r");
        assert!(complaints.0.len() <= LONGEST_COMPLAINT);
        assert!(
            complaints.text().ends_with("x; the end"),
            "{}",
            complaints.text()
        );
    }

    #[test]
    fn what_is_not_known_is_passed_on() {
        let mut complaints = Complaints::default();
        let lost = of_ssh("usage", &complaints);
        assert_eq!(lost.kind(), ErrorKind::Unavailable);
        complaints.add(b"Something new");
        let error = of_ssh("usage", &complaints);
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert_eq!(error.get("reason"), Some("ssh failed: Something new"));
    }
}
