//! Lines of bounded length from a stream that nobody trusts.

use std::io;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

/// What is read at once.
const STEP: usize = 16 << 10;

/// Reads lines. A line that is longer than the limit, or ends without a line end, is an error.
#[derive(Debug)]
pub(super) struct Lines<R> {
    reader: R,
    buffer: BytesMut,
    /// So many bytes of the buffer hold no line end.
    searched: usize,
    limit: usize,
    ended: bool,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    /// Lines of at most `limit` bytes.
    pub(super) fn new(reader: R, limit: usize) -> Self {
        Lines {
            reader,
            buffer: BytesMut::new(),
            searched: 0,
            limit,
            ended: false,
        }
    }

    /// Lines of at most `limit` bytes from now on.
    pub(super) fn limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// Drops what was read of a line.
    pub(super) fn forget(&mut self) {
        self.buffer.clear();
        self.searched = 0;
    }

    /// The next line, without its end; `None` at the end of the stream, also when asked again.
    /// Nothing is lost if the future is dropped.
    ///
    /// # Errors
    /// `InvalidData` for a line that is too long; `UnexpectedEof` for one that breaks off; those of
    /// reading.
    pub(super) async fn next(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            let fresh = &self.buffer[self.searched..];
            if let Some(at) = fresh.iter().position(|&byte| byte == b'\n') {
                let mut line = self.buffer.split_to(self.searched + at + 1);
                self.searched = 0;
                line.truncate(line.len() - 1);
                return Ok(Some(line.freeze()));
            }
            self.searched = self.buffer.len();
            if self.buffer.len() > self.limit {
                let text = format!("a line is longer than {} bytes", self.limit);
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
            if !self.ended {
                self.buffer.reserve(STEP);
                self.ended = self.reader.read_buf(&mut self.buffer).await? == 0;
            } else if self.buffer.is_empty() {
                return Ok(None);
            } else {
                self.forget();
                let text = "the last line breaks off";
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn all(text: &str, limit: usize) -> (Vec<String>, Option<io::ErrorKind>) {
        let mut lines = Lines::new(text.as_bytes(), limit);
        let mut read = Vec::new();
        loop {
            match lines.next().await {
                Ok(Some(line)) => read.push(String::from_utf8_lossy(&line).into_owned()),
                Ok(None) => return (read, None),
                Err(error) => return (read, Some(error.kind())),
            }
        }
    }

    #[tokio::test]
    async fn lines_come_whole_or_as_an_error() {
        let owned = |lines: &[&str]| lines.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(all("", 9).await, (vec![], None));
        assert_eq!(all("a\n\nbc\n", 9).await, (owned(&["a", "", "bc"]), None));
        let cut = Some(io::ErrorKind::UnexpectedEof);
        assert_eq!(all("a\nbc", 9).await, (owned(&["a"]), cut));
        let long = format!("a\n{}", "x".repeat(STEP * 3));
        let (read, error) = all(&long, STEP).await;
        assert_eq!(
            (read, error),
            (owned(&["a"]), Some(io::ErrorKind::InvalidData))
        );
    }

    #[tokio::test]
    async fn a_line_without_end_takes_no_more_than_its_limit() {
        let mut lines = Lines::new(tokio::io::repeat(b'x'), 1 << 20);
        let error = lines.next().await.expect_err("endless");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(
            lines.buffer.capacity() <= 4 << 20,
            "{}",
            lines.buffer.capacity()
        );
    }
}
