//! Words for a POSIX shell.
//!
//! sshd hands the command line to the user's login shell, as one text. Words go there in single
//! quotes, between which a shell leaves everything as it is.

/// `words` as a command line that a POSIX shell takes apart into the same words, whatever is in
/// them but NUL, which no command line can hold.
pub(super) fn command_line<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    let mut line = String::new();
    for word in words {
        if !line.is_empty() {
            line.push(' ');
        }
        line.push('\'');
        line.push_str(&word.replace('\'', r"'\''"));
        line.push('\'');
    }
    line
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;

    /// What a shell makes of the words.
    fn through(shell: &str, words: &[String]) -> Vec<String> {
        let line = command_line(words.iter().map(String::as_str));
        let script = format!("printf '%s\\0' {line}");
        let output = Command::new(shell)
            .args(["-c", &script])
            .output()
            .expect("shell");
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        let mut parts: Vec<String> = text.split('\0').map(str::to_owned).collect();
        assert_eq!(parts.pop().as_deref(), Some(""));
        parts
    }

    #[test]
    fn hostile_words_stay_words() {
        let words = [
            "",
            "'",
            "''",
            "'; touch /tmp/x; '",
            "$(id)",
            "`id`",
            "a b",
            "*",
            "~",
            "~root",
            "#",
            "-rf",
            "!!",
            "\\",
            "\\'",
            "\"",
            "a\nb",
            "\n",
            "&",
            "|",
            ">x",
            "{a,b}",
            "=ls",
            "a=b",
            "é",
            "\u{1b}[2J",
            "%s",
            "\t",
            "$'x'",
            "\r\n",
        ];
        let words: Vec<String> = words.map(str::to_owned).into();
        for shell in ["/bin/sh", "/bin/bash"] {
            assert_eq!(through(shell, &words), words, "{shell}");
        }
    }

    /// Any word, or one of what shells know.
    const WORD: &str = "(?s)[^\0]{0,12}|['\"\\\\$`!\n *;&|<>(){}~#=-]{0,8}";

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_words_stay_words(
            words in prop::collection::vec(WORD, 1..8),
        ) {
            prop_assert_eq!(through("/bin/sh", &words), words);
        }
    }
}
