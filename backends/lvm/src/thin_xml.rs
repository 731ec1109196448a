//! What `thin_dump`, `thin_delta` and `thin_ls` print, line by line.

use volmux_core::ByteRange;

/// One line of `thin_dump` or `thin_delta`. Numbers are in chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// The pool begins; a chunk has so many sectors (512 bytes).
    Pool {
        /// Sectors of a chunk.
        sectors: u64,
    },
    /// The mappings of a thin device begin.
    Device {
        /// Its number in the pool.
        id: u64,
        /// So many chunks are mapped.
        mapped: u64,
    },
    /// The differences of two thin devices begin.
    Diff {
        /// The first.
        left: u64,
        /// The second.
        right: u64,
    },
    /// Chunks that are mapped, or that differ.
    Chunks {
        /// The first.
        begin: u64,
        /// How many.
        length: u64,
    },
    /// Chunks that do not differ.
    Same,
    /// The device or the differences end.
    EndOfList,
    /// The pool ends.
    EndOfPool,
    /// Nothing is there.
    Blank,
}

impl Line {
    /// `None` for what the tools don't print, as far as is known here.
    pub fn parse(line: &str) -> Option<Line> {
        let line = line.trim();
        match line {
            "" => return Some(Line::Blank),
            "</device>" | "</diff>" => return Some(Line::EndOfList),
            "</superblock>" => return Some(Line::EndOfPool),
            _ => {}
        }
        let tag = line.strip_prefix('<')?.strip_suffix('>')?;
        let (tag, alone) = match tag.strip_suffix('/') {
            Some(tag) => (tag, true),
            None => (tag, false),
        };
        let (name, attributes) = tag.split_once(' ')?;
        let number = |key: &str| attribute(attributes, key)?.parse::<u64>().ok();
        let chunks = |begin: Option<u64>, length: Option<u64>| {
            Some(Line::Chunks {
                begin: begin?,
                length: length.filter(|&length| length > 0)?,
            })
        };
        match (name, alone) {
            ("superblock", false) => Some(Line::Pool {
                sectors: number("data_block_size").filter(|&sectors| sectors > 0)?,
            }),
            ("device", false) => Some(Line::Device {
                id: number("dev_id")?,
                mapped: number("mapped_blocks")?,
            }),
            ("diff", false) => Some(Line::Diff {
                left: number("left")?,
                right: number("right")?,
            }),
            ("single_mapping", true) => chunks(number("origin_block"), Some(1)),
            ("range_mapping", true) => chunks(number("origin_begin"), number("length")),
            ("different" | "left_only" | "right_only", true) => {
                chunks(number("begin"), number("length"))
            }
            ("same", true) => Some(Line::Same),
            _ => None,
        }
    }
}

/// The value of `key` among `a="1" b="2"`.
fn attribute<'a>(mut attributes: &'a str, key: &str) -> Option<&'a str> {
    loop {
        let (name, rest) = attributes.trim_start().split_once("=\"")?;
        let (value, rest) = rest.split_once('"')?;
        if name == key {
            return Some(value);
        }
        attributes = rest;
    }
}

/// What the list is to be about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// What this thin device maps.
    Device(u32),
    /// Where these two differ.
    Diff(u32, u32),
}

/// Why output can't be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// This line, where it stands.
    Line,
    /// It does not end where it should.
    Incomplete,
    /// There are fewer or more chunks than the list itself says.
    Count,
    /// The thin device is not in it.
    NoDevice,
}

/// Reads the output of one tool, and vouches for its being whole.
#[derive(Debug)]
pub struct List {
    subject: Subject,
    state: State,
    chunk: u64,
    /// End of the last chunks.
    end: u64,
    /// Chunks that are still to come, if that is known.
    missing: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Start,
    Pool,
    List,
    Listed,
    End,
}

impl List {
    /// Expects `subject`.
    pub fn new(subject: Subject) -> List {
        List {
            subject,
            state: State::Start,
            chunk: 0,
            end: 0,
            missing: None,
        }
    }

    /// Takes the next line. `Some` if it lists chunks: their bytes.
    pub fn line(&mut self, line: &str) -> Result<Option<ByteRange>, Wrong> {
        let line = Line::parse(line).ok_or(Wrong::Line)?;
        self.state = match (self.state, line) {
            (state, Line::Blank) => state,
            (State::Start, Line::Pool { sectors }) => {
                self.chunk = sectors.checked_mul(512).ok_or(Wrong::Line)?;
                State::Pool
            }
            (State::Pool, Line::Device { id, mapped }) if self.is_device(id) => {
                self.missing = Some(mapped);
                State::List
            }
            (State::Pool, Line::Diff { left, right }) if self.is_diff(left, right) => State::List,
            (State::List, Line::Chunks { begin, length }) => {
                return self.chunks(begin, length).map(Some);
            }
            (State::List, Line::Same) => State::List,
            (State::List, Line::EndOfList) if self.missing.unwrap_or(0) > 0 => {
                return Err(Wrong::Count);
            }
            (State::List, Line::EndOfList) => State::Listed,
            (State::Listed, Line::EndOfPool) => State::End,
            (State::Pool, Line::EndOfPool) => return Err(Wrong::NoDevice),
            _ => return Err(Wrong::Line),
        };
        Ok(None)
    }

    /// All lines were there.
    pub fn finish(&self) -> Result<(), Wrong> {
        match self.state {
            State::End => Ok(()),
            _ => Err(Wrong::Incomplete),
        }
    }

    fn is_device(&self, id: u64) -> bool {
        matches!(self.subject, Subject::Device(wanted) if u64::from(wanted) == id)
    }

    fn is_diff(&self, left: u64, right: u64) -> bool {
        matches!(self.subject, Subject::Diff(l, r) if (u64::from(l), u64::from(r)) == (left, right))
    }

    fn chunks(&mut self, begin: u64, length: u64) -> Result<ByteRange, Wrong> {
        let end = begin.checked_add(length).ok_or(Wrong::Line)?;
        // Bytes have to fit 64 bits.
        end.checked_mul(self.chunk).ok_or(Wrong::Line)?;
        if begin < self.end {
            return Err(Wrong::Line);
        }
        if let Some(missing) = &mut self.missing {
            *missing = missing.checked_sub(length).ok_or(Wrong::Count)?;
        }
        self.end = end;
        Ok(ByteRange::new(begin * self.chunk, length * self.chunk))
    }
}

/// Joins extents that touch, and cuts them to a range.
#[derive(Debug)]
pub struct Joined {
    range: ByteRange,
    last: Option<ByteRange>,
}

impl Joined {
    /// Only what is in `range` comes out.
    pub fn new(range: ByteRange) -> Joined {
        Joined { range, last: None }
    }

    /// Takes the next extent, in ascending order. `Some` is one that nothing is joined to any more.
    pub fn push(&mut self, extent: ByteRange) -> Option<ByteRange> {
        let extent = extent.intersect(&self.range);
        if extent.is_empty() {
            return None;
        }
        match &mut self.last {
            Some(last) if last.end() == extent.offset => {
                last.length += extent.length;
                None
            }
            last => last.replace(extent),
        }
    }

    /// The last one.
    pub fn finish(&mut self) -> Option<ByteRange> {
        self.last.take()
    }
}

/// What a thin device occupies, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Occupied {
    /// All that is mapped.
    pub mapped: u64,
    /// Of it, what no other thin device maps.
    pub exclusive: u64,
}

/// A line of `thin_ls --no-headers -o DEV,MAPPED_BYTES,EXCLUSIVE_BYTES`. `None` if it is not one.
pub fn occupied(line: &str) -> Option<(u32, Occupied)> {
    let mut words = line.split_ascii_whitespace();
    let id = words.next()?.parse().ok()?;
    let mapped = words.next()?.parse().ok()?;
    let exclusive = words.next()?.parse().ok()?;
    match words.next() {
        None => Some((id, Occupied { mapped, exclusive })),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    // As thin-provisioning-tools 0.9.0 print it.
    const DUMP: &str = r#"<superblock uuid="" time="1" transaction="2" flags="0" version="2" data_block_size="128" nr_data_blocks="0">
  <device dev_id="1" mapped_blocks="5" transaction="0" creation_time="0" snap_time="1">
    <single_mapping origin_block="1" data_block="4" time="1"/>
    <single_mapping origin_block="2" data_block="2" time="0"/>
    <single_mapping origin_block="5" data_block="3" time="0"/>
    <range_mapping origin_begin="8" data_begin="5" length="2" time="1"/>
  </device>
</superblock>
"#;
    const EMPTY: &str = r#"<superblock uuid="" time="1" transaction="2" flags="0" version="2" data_block_size="128" nr_data_blocks="0">
</superblock>
"#;
    const DELTA: &str = r#"<superblock uuid="" time="1" transaction="2" data_block_size="128" nr_data_blocks="0">
  <diff left="1" right="2">
    <right_only begin="0" length="1"/>
    <different begin="1" length="1"/>
    <same begin="2" length="1"/>
    <same begin="5" length="1"/>
    <left_only begin="8" length="2"/>
  </diff>
</superblock>
"#;
    const CHUNK: u64 = 64 << 10;

    fn read(subject: Subject, output: &str) -> Result<Vec<(u64, u64)>, Wrong> {
        let mut list = List::new(subject);
        let mut joined = Joined::new(ByteRange::new(0, u64::MAX));
        let mut extents = Vec::new();
        for line in output.lines() {
            extents.extend(list.line(line)?.and_then(|extent| joined.push(extent)));
        }
        list.finish()?;
        extents.extend(joined.finish());
        let chunks = |e: ByteRange| (e.offset / CHUNK, e.length / CHUNK);
        Ok(extents.into_iter().map(chunks).collect())
    }

    #[test]
    fn a_dump_is_read() {
        let found = read(Subject::Device(1), DUMP).expect("whole");
        assert_eq!(found, [(1, 2), (5, 1), (8, 2)]);
    }

    #[test]
    fn a_delta_is_read() {
        let found = read(Subject::Diff(1, 2), DELTA).expect("whole");
        assert_eq!(found, [(0, 2), (8, 2)]);
    }

    #[test]
    fn a_device_that_is_not_there_is_missed() {
        assert_eq!(read(Subject::Device(9), EMPTY), Err(Wrong::NoDevice));
        assert_eq!(read(Subject::Device(9), DUMP), Err(Wrong::Line));
        assert_eq!(read(Subject::Diff(2, 1), DELTA), Err(Wrong::Line));
        assert_eq!(read(Subject::Device(1), DELTA), Err(Wrong::Line));
    }

    #[test]
    fn output_that_ends_early_is_never_taken_for_whole() {
        for (subject, output) in [
            (Subject::Device(1), DUMP),
            (Subject::Diff(1, 2), DELTA),
            (Subject::Device(1), EMPTY),
        ] {
            let whole = output.trim_end().len();
            for cut in 0..whole {
                assert!(read(subject, &output[..cut]).is_err(), "{}", &output[..cut]);
            }
        }
    }

    #[test]
    fn a_line_that_is_missing_is_missed() {
        let lines: Vec<&str> = DUMP.lines().collect();
        for left_out in 0..lines.len() {
            let mut lines = lines.clone();
            lines.remove(left_out);
            assert!(
                read(Subject::Device(1), &lines.join("\n")).is_err(),
                "{left_out}"
            );
        }
    }

    #[test]
    fn lines_out_of_order_and_absurd_numbers_are_refused() {
        let swapped = DUMP.replace("origin_block=\"5\"", "origin_block=\"2\"");
        assert_eq!(read(Subject::Device(1), &swapped), Err(Wrong::Line));
        for number in [
            "18446744073709551615",
            "99999999999999999999",
            "-1",
            "",
            "0",
        ] {
            let absurd = DUMP.replace("length=\"2\"", &format!("length=\"{number}\""));
            assert!(read(Subject::Device(1), &absurd).is_err(), "{number}");
            let absurd = DUMP.replace("size=\"128\"", &format!("size=\"{number}\""));
            assert!(read(Subject::Device(1), &absurd).is_err(), "{number}");
        }
        let shared = DUMP.replace("<single_mapping", "<ref");
        assert_eq!(read(Subject::Device(1), &shared), Err(Wrong::Line));
    }

    #[test]
    fn extents_are_cut_to_the_range() {
        let mut joined = Joined::new(ByteRange::from_to(10, 25));
        assert_eq!(joined.push(ByteRange::from_to(0, 10)), None);
        assert_eq!(joined.push(ByteRange::from_to(10, 12)), None);
        assert_eq!(joined.push(ByteRange::from_to(12, 14)), None);
        assert_eq!(
            joined.push(ByteRange::from_to(20, 40)),
            Some(ByteRange::from_to(10, 14))
        );
        assert_eq!(joined.finish(), Some(ByteRange::from_to(20, 25)));
        assert_eq!(joined.finish(), None);
    }

    #[test]
    fn what_is_occupied_is_read() {
        let occupied_is = |mapped, exclusive| Occupied { mapped, exclusive };
        let found = occupied("1 327680 196608 ").expect("a line");
        assert_eq!(found, (1, occupied_is(327_680, 196_608)));
        for wrong in [
            "",
            "1",
            "1 2",
            "1 2 3 4",
            "x 2 3",
            "1 2 -3",
            "4294967296 1 1",
        ] {
            assert_eq!(occupied(wrong), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn any_line_is_read_or_refused(line in "\\PC{0,80}") {
            let _ = Line::parse(&line);
            let _ = occupied(&line);
        }

        #[test]
        fn any_lines_that_look_right_are_read_or_refused(
            picked in prop::collection::vec((0..18usize, any::<u64>()), 0..30)
        ) {
            let lines: Vec<&str> = DUMP.lines().chain(DELTA.lines()).chain(EMPTY.lines()).collect();
            let mut list = List::new(Subject::Device(1));
            for (pick, number) in picked {
                let line = lines[pick % lines.len()].replace("=\"1\"", &format!("=\"{number}\""));
                let _ = list.line(&line);
            }
            let _ = list.finish();
        }
    }
}
