//! Requests as they come in from the client.

use bytes::{Buf, Bytes, BytesMut};

use super::wire::{BadMagic, Header, Mode};

/// So much is received at once.
const CHUNK: usize = 128 << 10;
/// A longer payload gets memory of its own, and is received straight into it.
const IN_CHUNK: usize = 32 << 10;
/// With less room than this left, the chunk is begun anew.
const LEAST_ROOM: usize = 16 << 10;

/// What becomes of a request whose header is there.
#[derive(Debug)]
pub(crate) enum Admit<T> {
    /// Its payload is wanted.
    Take(T),
    /// Its payload is thrown away.
    Skip(T),
    /// Not now; it stays where it is.
    Wait,
    /// Never, and its payload is too long to be thrown away.
    Refuse(T),
}

/// What the input has.
#[derive(Debug)]
pub(crate) enum Next<T> {
    /// A whole request.
    Request(Header, T, Bytes),
    /// More has to be received.
    Incomplete,
    /// The next request was told to wait.
    Waits,
    /// The next request was refused; nothing after it can be reached.
    Refused(Header, T),
}

#[derive(Debug)]
enum Stage<T> {
    Header,
    /// In the chunk.
    Short(Header, T, usize),
    /// In memory of its own.
    Long(Header, T, BytesMut, usize),
    Skip(Header, T, u64),
}

/// Requests as they come in. `T` is what the caller knows of a request between its header and the
/// end of its payload.
#[derive(Debug)]
pub(crate) struct Input<T> {
    mode: Mode,
    chunk: BytesMut,
    stage: Stage<T>,
}

impl<T> Input<T> {
    pub(crate) fn new(mode: Mode) -> Self {
        Input {
            mode,
            chunk: BytesMut::new(),
            stage: Stage::Header,
        }
    }

    /// Where to receive, and how much at most (more than nothing).
    pub(crate) fn room(&mut self) -> (&mut BytesMut, usize) {
        match &mut self.stage {
            Stage::Long(_, _, data, length) => {
                let missing = *length - data.len();
                (data, missing)
            }
            _ => {
                let room = self.chunk.capacity() - self.chunk.len();
                if room < LEAST_ROOM {
                    self.chunk
                        .reserve(CHUNK - self.chunk.len().min(CHUNK - LEAST_ROOM));
                }
                let room = self.chunk.capacity() - self.chunk.len();
                (&mut self.chunk, room)
            }
        }
    }

    /// The next request. `admit` is asked once its header is there.
    ///
    /// # Errors
    /// What came is no request. Nothing after it can be told apart.
    pub(crate) fn next(
        &mut self,
        admit: impl FnOnce(&Header) -> Admit<T>,
    ) -> Result<Next<T>, BadMagic> {
        if let Stage::Header = self.stage {
            let Some(header) = Header::parse(self.mode, &self.chunk)? else {
                return Ok(Next::Incomplete);
            };
            let payload = header.payload(self.mode);
            let stage = match admit(&header) {
                Admit::Wait => return Ok(Next::Waits),
                Admit::Refuse(ticket) => return Ok(Next::Refused(header, ticket)),
                Admit::Skip(ticket) => Stage::Skip(header, ticket, payload),
                // What is taken was checked against the longest request.
                Admit::Take(ticket) if payload <= IN_CHUNK as u64 => {
                    Stage::Short(header, ticket, payload as usize)
                }
                Admit::Take(ticket) => {
                    let length = payload as usize;
                    Stage::Long(header, ticket, BytesMut::with_capacity(length), length)
                }
            };
            self.chunk.advance(self.mode.request_length());
            self.stage = stage;
        }
        self.take_payload();
        if !self.is_whole() {
            return Ok(Next::Incomplete);
        }
        Ok(match std::mem::replace(&mut self.stage, Stage::Header) {
            Stage::Header => Next::Incomplete,
            Stage::Short(header, ticket, length) => {
                Next::Request(header, ticket, self.chunk.split_to(length).freeze())
            }
            Stage::Long(header, ticket, data, _) => Next::Request(header, ticket, data.freeze()),
            Stage::Skip(header, ticket, _) => Next::Request(header, ticket, Bytes::new()),
        })
    }

    /// Moves what the chunk has of a payload to where it belongs.
    fn take_payload(&mut self) {
        match &mut self.stage {
            Stage::Header | Stage::Short(..) => {}
            Stage::Long(_, _, data, length) => {
                let here = self.chunk.len().min(*length - data.len());
                data.extend_from_slice(&self.chunk[..here]);
                self.chunk.advance(here);
            }
            Stage::Skip(_, _, left) => {
                let here = self
                    .chunk
                    .len()
                    .min(usize::try_from(*left).unwrap_or(usize::MAX));
                self.chunk.advance(here);
                *left -= here as u64;
            }
        }
    }

    fn is_whole(&self) -> bool {
        match &self.stage {
            Stage::Header => false,
            Stage::Short(_, _, length) => self.chunk.len() >= *length,
            Stage::Long(_, _, data, length) => data.len() == *length,
            Stage::Skip(_, _, left) => *left == 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::wire::{REQUEST_MAGIC, command};
    use super::*;

    fn write(cookie: u64, payload: &[u8]) -> Vec<u8> {
        let mut bytes = REQUEST_MAGIC.to_be_bytes().to_vec();
        bytes.extend([0, 0]);
        bytes.extend(command::WRITE.to_be_bytes());
        bytes.extend(cookie.to_be_bytes());
        bytes.extend(0_u64.to_be_bytes());
        bytes.extend((payload.len() as u32).to_be_bytes());
        bytes.extend(payload);
        bytes
    }

    /// Feeds `stream` in pieces of `step`, skips every third request, and lets every fifth wait
    /// once.
    fn requests(stream: &[u8], step: usize) -> Vec<(u64, Vec<u8>)> {
        let mut input = Input::new(Mode::Simple);
        let mut found = Vec::new();
        let mut waited = 0;
        let mut rest = stream;
        loop {
            let next = input
                .next(|header| match header.cookie {
                    c if c % 5 == 0 && waited != c + 1 => {
                        waited = c + 1;
                        Admit::Wait
                    }
                    c if c % 3 == 0 => Admit::Skip(c),
                    c => Admit::Take(c),
                })
                .expect("all have the right magic");
            match next {
                Next::Request(header, cookie, payload) => {
                    assert_eq!(header.cookie, cookie);
                    found.push((cookie, payload.to_vec()));
                }
                Next::Waits => {}
                Next::Refused(..) => panic!("none is refused"),
                Next::Incomplete if rest.is_empty() => return found,
                Next::Incomplete => {
                    let (room, most) = input.room();
                    let (now, later) = rest.split_at(rest.len().min(most).min(step));
                    assert!(!now.is_empty());
                    room.extend_from_slice(now);
                    rest = later;
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn requests_are_the_same_however_they_arrive(
            lengths in prop::collection::vec(prop_oneof![0..100_usize, 30_000..40_000_usize], 1..12),
            step in prop_oneof![1..50_usize, 1000..70_000_usize, Just(usize::MAX)],
        ) {
            let mut stream = Vec::new();
            let mut expected = Vec::new();
            for (cookie, &length) in lengths.iter().enumerate() {
                let payload: Vec<u8> = (0..length).map(|i| (i * 7 + cookie) as u8).collect();
                stream.extend(write(cookie as u64, &payload));
                let skipped = cookie % 3 == 0;
                expected.push((cookie as u64, if skipped { Vec::new() } else { payload }));
            }
            prop_assert_eq!(requests(&stream, step), expected);
        }
    }

    #[test]
    fn what_is_no_request_ends_it() {
        let mut input: Input<()> = Input::new(Mode::Simple);
        input.room().0.extend_from_slice(&[0x11; 28]);
        let next = input.next(|_| panic!("this is no header"));
        assert_eq!(next.err(), Some(BadMagic(0x1111_1111)));
    }

    #[test]
    fn a_chunk_whose_requests_are_done_is_used_again() {
        let mut input = Input::new(Mode::Simple);
        let mut place = None;
        for round in 0..1000_u64 {
            let (room, _) = input.room();
            room.extend_from_slice(&write(round, &[1; 4096]));
            let next = input.next(|_| Admit::Take(()));
            let Ok(Next::Request(_, (), payload)) = next else {
                panic!("{next:?}");
            };
            let here = payload.as_ptr() as usize;
            let first = *place.get_or_insert(here);
            assert!(here.abs_diff(first) < 2 * CHUNK, "memory was taken anew");
        }
    }
}
