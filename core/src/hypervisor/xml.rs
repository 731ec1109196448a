//! A little XML: elements with attributes, and text in the innermost.

use super::{OP, invalid};
use crate::{Error, ErrorKind, Result};

/// An element.
pub(super) struct Element {
    name: &'static str,
    attributes: Vec<(&'static str, String)>,
    children: Vec<Element>,
    text: Option<String>,
}

impl Element {
    pub(super) fn new(name: &'static str) -> Self {
        Element {
            name,
            attributes: Vec::new(),
            children: Vec::new(),
            text: None,
        }
    }

    pub(super) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.attributes.push((name, value.into()));
        self
    }

    pub(super) fn child(mut self, child: Element) -> Self {
        self.children.push(child);
        self
    }

    pub(super) fn children(mut self, children: impl IntoIterator<Item = Element>) -> Self {
        self.children.extend(children);
        self
    }

    pub(super) fn text(mut self, text: impl Into<String>) -> Self {
        self.text = Some(text.into());
        self
    }

    /// The element in lines, without a line end at the end.
    ///
    /// # Errors
    /// `Unsupported` for characters that XML has no way to write.
    pub(super) fn render(&self) -> Result<String> {
        let mut out = String::new();
        self.render_at(0, &mut out)?;
        Ok(out)
    }

    fn render_at(&self, depth: usize, out: &mut String) -> Result<()> {
        let indent = "  ".repeat(depth);
        out.push_str(&format!("{indent}<{}", self.name));
        for (name, value) in &self.attributes {
            out.push_str(&format!(" {name}='{}'", escape(value)?));
        }
        if let Some(text) = &self.text {
            out.push_str(&format!(">{}</{}>", escape(text)?, self.name));
        } else if self.children.is_empty() {
            out.push_str("/>");
        } else {
            out.push('>');
            for child in &self.children {
                out.push('\n');
                child.render_at(depth + 1, out)?;
            }
            out.push_str(&format!("\n{indent}</{}>", self.name));
        }
        Ok(())
    }
}

/// `text` for an attribute in either quotes, or for an element.
pub(super) fn escape(text: &str) -> Result<String> {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '\'' => escaped.push_str("&apos;"),
            '"' => escaped.push_str("&quot;"),
            // Bare ones become spaces in an attribute.
            '\t' | '\n' | '\r' => escaped.push_str(&format!("&#{};", u32::from(c))),
            '\0'..'\u{20}' | '\u{fffe}' | '\u{ffff}' => return Err(unwritable(text, c)),
            c => escaped.push(c),
        }
    }
    Ok(escaped)
}

fn unwritable(text: &str, c: char) -> Error {
    invalid(
        "text",
        text,
        &format!("XML has no way to write the character {c:?}"),
    )
    .with_kind(ErrorKind::Unsupported)
    .with_op(OP)
    .help("keep the pool at another path")
}
