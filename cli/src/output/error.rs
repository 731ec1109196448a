//! Errors and warnings on stderr.

use std::error::Error as StdError;
use std::io::Write;

use serde::{Serialize, Serializer};
use volmux::Error;

/// An error as one JSON document.
#[derive(Serialize)]
struct ErrorDoc<'a> {
    schema: &'static str,
    kind: &'static str,
    op: &'static str,
    #[serde(serialize_with = "context")]
    context: &'a Error,
    cause: Vec<String>,
    retryable: bool,
}

/// A warning as one JSON document.
#[derive(Serialize)]
struct WarningDoc<'a> {
    schema: &'static str,
    message: &'a str,
}

/// The context as an object. The values of a key that occurs twice are joined.
fn context<S: Serializer>(error: &&Error, serializer: S) -> Result<S::Ok, S::Error> {
    let mut joined: Vec<(&str, String)> = Vec::new();
    for (key, value) in error.context() {
        match joined.iter_mut().find(|(k, _)| *k == key) {
            Some((_, values)) => *values = format!("{values}; {value}"),
            None => joined.push((key, value.to_owned())),
        }
    }
    serializer.collect_map(joined)
}

/// The cause, its cause, and so on.
fn causes(error: &Error) -> Vec<String> {
    let mut causes = Vec::new();
    let mut cause = error.source();
    while let Some(this) = cause {
        causes.push(this.to_string());
        cause = this.source();
    }
    causes
}

/// Text that can't move the cursor or forge another line.
fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => plain.push_str("\n    "),
            c if c.is_control() => plain.extend(c.escape_default()),
            c => plain.push(c),
        }
    }
    plain
}

fn json_text(error: &Error) -> String {
    let document = ErrorDoc {
        schema: "volmux.error.v1",
        kind: error.kind().name(),
        op: error.op(),
        context: error,
        cause: causes(error),
        retryable: error.is_retryable(),
    };
    serde_json::to_string(&document)
        .unwrap_or_else(|e| format!("{{\"error\":{:?}}}", e.to_string()))
}

fn human_text(error: &Error) -> String {
    let mut text = format!("error: {}: {}", error.op().replace('_', " "), error.kind());
    let mut line = |key: &str, value: &str| {
        text.push_str(&format!("\n  {key}: {}", plain(value)));
    };
    for (key, value) in error.context().filter(|(key, _)| *key != "help") {
        line(key, value);
    }
    for cause in causes(error) {
        line("cause", &cause);
    }
    // What to do comes last, where it is read.
    for (_, help) in error.context().filter(|(key, _)| *key == "help") {
        line("help", help);
    }
    text
}

/// Prints a line on stderr.
pub(super) fn print(line: &str) {
    // A closed stderr leaves nobody to tell.
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// Tells of `error` on stderr.
pub fn report(error: &Error, json: bool) {
    print(&if json {
        json_text(error)
    } else {
        human_text(error)
    });
}

/// Warns on stderr.
pub fn warn(message: &str, json: bool) {
    if !json {
        return print(&format!("warning: {}", plain(message)));
    }
    let document = WarningDoc {
        schema: "volmux.warning.v1",
        message,
    };
    print(&serde_json::to_string(&document).unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use volmux::ErrorKind;

    use super::*;

    fn sample() -> Error {
        let inner =
            Error::new(ErrorKind::Unavailable, "read").with_source(std::io::Error::other("EIO"));
        Error::new(ErrorKind::NoSpace, "create_volume")
            .with("volume", "web\u{1b}[2J")
            .help("free space\nor add some")
            .reason("full")
            .with("volume", "again")
            .with_source(inner)
    }

    #[test]
    fn json_has_everything() {
        assert_eq!(
            json_text(&sample()),
            "{\"schema\":\"volmux.error.v1\",\"kind\":\"NoSpace\",\"op\":\"create_volume\",\
             \"context\":{\"volume\":\"web\\u001b[2J; again\",\"help\":\"free space\\nor add some\",\
             \"reason\":\"full\"},\"cause\":[\"read: unavailable\",\"EIO\"],\"retryable\":false}"
        );
    }

    #[test]
    fn people_get_lines_with_the_help_last_and_no_control_characters() {
        assert_eq!(
            human_text(&sample()),
            "error: create volume: no space\n  volume: web\\u{1b}[2J\n  reason: full\n  \
             volume: again\n  cause: read: unavailable\n  cause: EIO\n  help: free space\n    \
             or add some"
        );
    }
}
