//! Quoting, for any text.

use proptest::prelude::*;

use super::*;

/// What a POSIX shell makes of one word without expansions.
fn shell_word(word: &str) -> Option<String> {
    let mut text = String::new();
    let mut chars = word.chars();
    while let Some(c) = chars.next() {
        match c {
            '\'' => loop {
                match chars.next()? {
                    '\'' => break,
                    c => text.push(c),
                }
            },
            '\\' => text.push(chars.next()?),
            c if c.is_ascii_alphanumeric() || "_@%+=:,./-".contains(c) => text.push(c),
            _ => return None,
        }
    }
    Some(text)
}

/// What PowerShell makes of strings and characters that are joined by `+`.
fn powershell_value(expression: &str) -> Option<String> {
    let inner = expression
        .strip_prefix('(')
        .and_then(|e| e.strip_suffix(')'))
        .unwrap_or(expression);
    let mut units: Vec<u16> = Vec::new();
    let mut rest = inner;
    let mut first = true;
    while !rest.is_empty() {
        if !first {
            rest = rest.strip_prefix(" + ")?;
        }
        if let Some(quoted) = rest.strip_prefix('\'') {
            let mut chars = quoted.char_indices().peekable();
            loop {
                let (at, c) = chars.next()?;
                if c != '\'' {
                    // Others than these might end the string.
                    assert!(c == ' ' || c.is_ascii_graphic(), "{c:?}");
                    units.push(c as u16);
                } else if chars.peek().is_some_and(|(_, c)| *c == '\'') {
                    chars.next();
                    units.push('\'' as u16);
                } else {
                    rest = &quoted[at + 1..];
                    break;
                }
            }
        } else {
            assert!(!first, "a character is no string: {expression}");
            let code = rest.strip_prefix("[char]0x")?;
            units.push(u16::from_str_radix(code.get(..4)?, 16).ok()?);
            rest = &code[4..];
        }
        first = false;
    }
    String::from_utf16(&units).ok()
}

fn unescape(xml: &str) -> String {
    let mut text = String::new();
    let mut rest = xml;
    while let Some(at) = rest.find('&') {
        text.push_str(&rest[..at]);
        let end = at + rest[at..].find(';').expect("an entity ends");
        text.push_str(match &rest[at + 1..end] {
            "amp" => "&",
            "lt" => "<",
            "gt" => ">",
            "apos" => "'",
            "quot" => "\"",
            "#9" => "\t",
            "#10" => "\n",
            "#13" => "\r",
            other => panic!("an entity {other}"),
        });
        rest = &rest[end + 1..];
    }
    text + rest
}

/// As XML 1.0 defines Char.
fn xml_can_write(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\r' | '\u{20}'..='\u{fffd}' | '\u{10000}'..)
}

/// Mostly what means something somewhere.
fn odd_text() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        3 => "[ '\"\\\\&<>,;:=$`%{}()\\[\\]#!*?~|^\t\n\r-]{1,3}",
        2 => "[a-z0-9/.]{1,4}",
        1 => prop::sample::select(vec!["é", "‘", "’", "‚", "‛", "“", "😀", "]]>", "''"])
            .prop_map(String::from),
        1 => any::<char>().prop_map(String::from),
    ];
    prop::collection::vec(part, 0..12).prop_map(|parts| parts.concat())
}

proptest! {
    #[test]
    fn a_shell_gets_the_word_back(text in odd_text()) {
        let quoted = quote::shell(&text);
        prop_assert_eq!(shell_word(&quoted), Some(text));
        prop_assert!(!quoted.is_empty());
    }

    #[test]
    fn powershell_gets_the_text_back(text in odd_text()) {
        prop_assert_eq!(powershell_value(&quote::powershell(&text)), Some(text));
    }

    #[test]
    fn xml_is_escaped_or_refused(text in odd_text()) {
        match xml::escape(&text) {
            Ok(escaped) => {
                prop_assert!(!escaped.contains(['<', '>', '\'', '"', '\n', '\t', '\r']));
                prop_assert_eq!(unescape(&escaped), text);
            }
            Err(error) => {
                prop_assert!(!text.chars().all(xml_can_write), "{error}");
                prop_assert_eq!(error.kind(), ErrorKind::Unsupported);
            }
        }
    }

    #[test]
    fn arguments_survive_the_shell(text in odd_text()) {
        let attached = attachment(Access::ReadWrite, file(&format!("/{text}")));
        let done = attached.render(Hypervisor::Qemu, &RenderOptions::default());
        prop_assume!(!text.contains('\0'));
        let done = done.expect("rendered");
        prop_assert!(!done.text.contains('\n'), "one line");
        let path: serde_json::Value = serde_json::from_str(&done.arguments[1]).expect("JSON");
        prop_assert_eq!(path["file"]["filename"].as_str(), Some(&*format!("/{text}")));
        let quoted: Vec<_> = done.arguments.iter().map(|a| quote::shell(a)).collect();
        prop_assert_eq!(quoted.join(" "), done.text);
    }

    #[test]
    fn xl_takes_the_path_as_it_is_or_not_at_all(text in odd_text()) {
        let attached = attachment(Access::ReadOnly, file(&format!("/{text}")));
        match attached.render(Hypervisor::Xl, &RenderOptions::default()) {
            Ok(done) => {
                let (_, target) = done.text.split_once(",target=").expect("a target");
                prop_assert_eq!(target, format!("/{text}"));
                prop_assert!(!done.text.contains(['\'', '"', '\\', '\n']));
                prop_assert!(!target.contains(','));
            }
            Err(error) => prop_assert_eq!(error.kind(), ErrorKind::Unsupported),
        }
    }
}
