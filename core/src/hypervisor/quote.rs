//! Text in the quotes of a shell and of PowerShell.

/// `text` as one word of a POSIX shell.
pub(super) fn shell(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_@%+=:,./-".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// `text` as a PowerShell expression that yields it.
///
/// All but printable ASCII is written as character codes: Windows PowerShell reads a script without
/// a byte order mark in the system's code page, and takes typographic quotes for quotes.
pub(super) fn powershell(text: &str) -> String {
    let mut parts = Vec::new();
    let mut plain = String::new();
    for c in text.chars() {
        if c == '\'' {
            plain.push_str("''");
        } else if c == ' ' || c.is_ascii_graphic() {
            plain.push(c);
        } else {
            // The first part has to be a string for `+` to join strings.
            if parts.is_empty() || !plain.is_empty() {
                parts.push(format!("'{plain}'"));
                plain.clear();
            }
            let units = c.encode_utf16(&mut [0; 2]).to_vec();
            parts.extend(units.iter().map(|unit| format!("[char]0x{unit:04x}")));
        }
    }
    if parts.is_empty() {
        return format!("'{plain}'");
    }
    if !plain.is_empty() {
        parts.push(format!("'{plain}'"));
    }
    format!("({})", parts.join(" + "))
}
