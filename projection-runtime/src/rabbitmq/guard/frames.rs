//! Cuts what the broker sends into frames. AMQP 0-9-1, 2.3.5: type, channel, size, payload, end.

use std::collections::BTreeMap;

use super::readable::{self, Names};

/// Number of bytes before a frame's payload: type, channel, size.
pub(super) const BEFORE: usize = 7;
/// Number of bytes after it: the end.
pub(super) const AFTER: usize = 1;
/// Types of frames.
const METHOD: u8 = 1;
const HEADER: u8 = 2;
/// A larger frame is not kept here as a whole; lapin refuses it.
const LARGEST: usize = 16 << 20;

/// What comes next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// More bytes are needed.
    NeedsInput,
    /// Bytes for lapin are ready.
    Output,
    /// A message whose body has so many bytes; `admit` lets it through.
    Message(u64),
}

/// The frames of one connection, from the broker to lapin.
#[derive(Debug, Default)]
pub(super) struct Frames {
    input: Vec<u8>,
    /// Number of bytes at the start of `input` that are done.
    used: usize,
    output: Vec<u8>,
    /// Number of bytes at the start of `output` that were taken.
    taken: usize,
    /// Number of bytes of the current frame that still go through unread.
    passing: usize,
    /// Channels on which a delivery was announced whose header follows, each with its names if lapin cannot read them. A
    /// message that the broker returns is announced by another method. It goes through unread: this process published it, so
    /// lapin can read it.
    announced: BTreeMap<u16, Option<String>>,
}

impl Frames {
    pub(super) fn input(&mut self, bytes: &[u8]) {
        self.input.drain(..std::mem::take(&mut self.used));
        self.input.extend_from_slice(bytes);
    }

    /// Returns how many bytes for lapin are ready.
    pub(super) fn ready(&self) -> usize {
        self.output.len() - self.taken
    }

    /// Moves bytes that are ready into the buffer; returns how many.
    pub(super) fn take(&mut self, buffer: &mut [u8]) -> usize {
        let ready = &self.output[self.taken..];
        let length = ready.len().min(buffer.len());
        buffer[..length].copy_from_slice(&ready[..length]);
        self.taken += length;
        if self.taken == self.output.len() {
            self.output.clear();
            self.taken = 0;
        }
        length
    }

    /// Processes the next frame, or a part of one that goes through unread.
    pub(super) fn step(&mut self) -> Step {
        if self.passing > 0 {
            return self.pass();
        }
        let Some((kind, length)) = self.frame() else { return Step::NeedsInput };
        let rest = &self.input[self.used..];
        match kind {
            HEADER if length <= LARGEST && self.announced.contains_key(&channel(rest)) => {
                match rest.get(..length).and_then(readable::body_size) {
                    Some(size) => return Step::Message(size),
                    None if rest.len() < length => return Step::NeedsInput,
                    None => {}
                }
            }
            METHOD if length <= LARGEST => match rest.get(BEFORE..BEFORE + 4) {
                None if length >= BEFORE + 4 + AFTER => return Step::NeedsInput,
                Some(method) if readable::announces_message(method) => {
                    if rest.len() < length {
                        return Step::NeedsInput;
                    }
                    self.announced(length);
                    return Step::Output;
                }
                _ => {}
            },
            _ => {}
        }
        self.passing = length;
        self.pass()
    }

    /// Passes the header of a message on, when there is room for its body.
    pub(super) fn admit(&mut self) {
        if let Some((HEADER, length)) = self.frame() {
            let frame = &self.input[self.used..self.used + length];
            let names = self.announced.remove(&channel(frame)).flatten();
            self.output.extend(readable::header(frame, names));
            self.used += length;
        }
    }

    /// Adds a heartbeat. Call it between frames.
    pub(super) fn heartbeat(&mut self) {
        const HEARTBEAT: [u8; BEFORE + AFTER] = [8, 0, 0, 0, 0, 0, 0, 0xce];
        self.output.extend(HEARTBEAT);
    }

    /// The type and the length of the next frame, if enough of it is there.
    fn frame(&self) -> Option<(u8, usize)> {
        let [kind, _, _, size @ ..] = *self.input[self.used..].first_chunk::<BEFORE>()?;
        // The broker answers a version of the protocol that it does not speak with this, and no frame.
        if kind == b'A' {
            return Some((kind, usize::MAX));
        }
        Some((kind, u32::from_be_bytes(size) as usize + BEFORE + AFTER))
    }

    fn pass(&mut self) -> Step {
        let length = self.passing.min(self.input.len() - self.used);
        if length == 0 {
            return Step::NeedsInput;
        }
        self.output.extend_from_slice(&self.input[self.used..self.used + length]);
        self.used += length;
        self.passing -= length;
        Step::Output
    }

    /// Processes a method that announces a message: replaces unreadable names, and keeps them for the message's header.
    fn announced(&mut self, length: usize) {
        let mut frame = self.input[self.used..self.used + length].to_vec();
        self.used += length;
        let names = match readable::names(&mut frame) {
            Names::Readable => None,
            Names::Replaced(names) => Some(names),
        };
        self.announced.insert(channel(&frame), names);
        self.output.extend(frame);
    }
}

fn channel(frame: &[u8]) -> u16 {
    frame.first_chunk::<3>().map_or(0, |[_, high, low]| u16::from_be_bytes([*high, *low]))
}

#[cfg(any(fuzzing, test))]
/// What lapin gets of these bytes, which come in pieces of `piece` bytes.
pub(crate) fn guarded(bytes: &[u8], piece: usize) -> Vec<u8> {
    let (mut frames, mut guarded) = (Frames::default(), Vec::new());
    let mut buffer = [0; 512];
    for piece in bytes.chunks(piece.max(1)) {
        frames.input(piece);
        loop {
            match frames.step() {
                Step::NeedsInput => break,
                Step::Message(_) => frames.admit(),
                Step::Output => {}
            }
            while let taken @ 1.. = frames.take(&mut buffer) {
                guarded.extend_from_slice(&buffer[..taken]);
            }
        }
    }
    guarded
}

#[cfg(test)]
mod tests {
    use amq_protocol::frame::{AMQPContentHeader, AMQPFrame, WriteContext, gen_frame, parse_frame};
    use lapin::BasicProperties;
    use lapin::types::{AMQPValue, FieldTable};

    use super::guarded;

    fn bytes(frame: &AMQPFrame) -> Vec<u8> {
        gen_frame(frame)(WriteContext::from(Vec::new())).unwrap().into_inner().0
    }

    fn header(properties: BasicProperties) -> Vec<u8> {
        bytes(&AMQPFrame::Header(3, AMQPContentHeader { class_id: 60, body_size: 5, properties }))
    }

    /// A delivery with this routing key.
    fn deliver(key: &[u8]) -> Vec<u8> {
        let mut payload = vec![0, 60, 0, 60, 1, b't'];
        payload.extend(7_u64.to_be_bytes());
        payload.extend([0, 1, b'e', u8::try_from(key.len()).unwrap()]);
        payload.extend(key);
        let mut frame = vec![1, 0, 3];
        frame.extend(u32::try_from(payload.len()).unwrap().to_be_bytes());
        frame.extend(payload);
        frame.push(0xce);
        frame
    }

    fn nested(levels: usize) -> FieldTable {
        let mut table = FieldTable::default();
        for _ in 1..levels {
            let mut outer = FieldTable::default();
            outer.insert("h".into(), AMQPValue::FieldTable(table));
            table = outer;
        }
        table
    }

    #[test]
    fn what_can_be_read_goes_through_as_it_is() {
        let properties = BasicProperties::default().with_type("t".into()).with_headers(nested(64));
        let stream = [
            deliver("City.Ignored".as_bytes()),
            header(properties),
            bytes(&AMQPFrame::Body(3, b"12345".to_vec())),
            bytes(&AMQPFrame::Heartbeat),
            b"AMQP\0\0\x09\x01".to_vec(),
        ]
        .concat();
        for piece in [1, 2, 7, 8, 50, stream.len()] {
            assert_eq!(guarded(&stream, piece), stream, "in pieces of {piece}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_replaced() {
        let deep = header(BasicProperties::default().with_headers(nested(65)));
        let body = bytes(&AMQPFrame::Body(3, b"12345".to_vec()));
        let readable = header(BasicProperties::default().with_type("t".into()));
        for (deliver, header, reason) in [
            (deliver(b"key"), deep, "more than 64 levels"),
            (deliver(b"\xffkey"), readable.clone(), "not UTF-8: \\xffkey"),
        ] {
            let guarded = guarded(&[deliver, header, body.clone(), readable.clone()].concat(), 10);
            let (rest, _) = parse_frame(&*guarded).unwrap();
            let (rest, frame) = parse_frame(rest).unwrap();
            let AMQPFrame::Header(3, header) = frame else { panic!("{frame:?}") };
            assert_eq!(header.body_size, 5);
            let headers = header.properties.headers().as_ref().unwrap().inner();
            let found = headers["x-unreadable"].as_long_string().unwrap().to_string();
            assert!(found.contains(reason), "{found}");
            assert_eq!(rest, [body.clone(), readable.clone()].concat());
        }
    }

    #[test]
    fn no_bytes_make_it_panic() {
        let mut seed = 1_u64;
        let mut next = move || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            seed.to_be_bytes()[0]
        };
        let stream = [deliver(b"key"), header(BasicProperties::default().with_headers(nested(3)))].concat();
        for _ in 0..20_000 {
            let mut bytes = stream.clone();
            for _ in 0..next() % 4 {
                let place = usize::from(next()) % bytes.len();
                bytes[place] = next();
            }
            guarded(&bytes, usize::from(next()));
        }
    }
}
