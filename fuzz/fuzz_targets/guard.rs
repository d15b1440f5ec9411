//! What a broker sends, in pieces of any size: what comes out of the guard is what went in where lapin can read it, and where
//! it cannot, lapin can read what stands in its place.
#![no_main]

use amq_protocol::frame::parse_frame;
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use projection_runtime::fuzzing::guarded;

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    piece: u8,
    /// Type, channel and payload of each frame.
    frames: Vec<(u8, u16, &'a [u8])>,
    rest: &'a [u8],
}

fuzz_target!(|input: Input<'_>| {
    let mut bytes = Vec::new();
    let mut frames = Vec::new();
    for (kind, channel, payload) in &input.frames {
        // Method, header, body, and what is none of them.
        let kind = [1, 2, 3, 8, *kind][usize::from(*kind) % 5];
        let size = u32::try_from(payload.len()).unwrap_or(0).to_be_bytes();
        let frame = [&[kind], &channel.to_be_bytes()[..], &size, payload, &[206]].concat();
        bytes.extend_from_slice(&frame);
        frames.push(frame);
    }
    bytes.extend_from_slice(input.rest);
    let out = guarded(&bytes, usize::from(input.piece));
    assert_eq!(out, guarded(&bytes, usize::MAX), "the pieces do not matter");
    // Up to the first byte that is no frame's.
    let mut rest = &out[..];
    for frame in frames.iter().take_while(|frame| frame[0] != b'A') {
        if parse_frame(frame.as_slice()).is_ok() && frame[0] != 2 {
            assert!(rest.starts_with(frame), "{frame:?} came out as {rest:?}");
        }
        let size = rest.get(3..7).map(|size| u32::from_be_bytes(size.try_into().unwrap()) as usize + 8);
        let Some(next) = size.and_then(|size| rest.get(size..)) else { return };
        if frame[0] == 2 && frame.len() >= 22 {
            assert!(parse_frame(rest).is_ok(), "the header {frame:?} became {rest:?}");
        }
        rest = next;
    }
});
