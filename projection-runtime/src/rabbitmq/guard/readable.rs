//! What of a message's frames lapin can read, and what it gets in place of the rest.

use amq_protocol::frame::parse_frame;

use super::frames::{AFTER, BEFORE};

/// A header of a message whose properties could not be read: why.
pub(in crate::rabbitmq) const UNREADABLE: &str = "x-unreadable";
/// A header beside it: the properties, as they came.
const UNREADABLE_PROPERTIES: &str = "x-unreadable-properties";

/// Most levels of tables and arrays in a header. lapin's parser needs about 1 KiB of stack for each.
const MOST_LEVELS: usize = 64;
/// The payload of a header frame: class, weight and size of the body; then the flags of the properties.
const BEFORE_FLAGS: usize = 12;
const END: u8 = 0xce;
/// The class `basic`, and its methods that announce a message: `deliver` and `get-ok`.
const BASIC: u16 = 60;
const DELIVER: u16 = 60;
const GET_OK: u16 = 71;
/// Flags of the properties: `content-type`, `content-encoding`, `headers`; and that there are more flags.
const CONTENT_TYPE: u16 = 1 << 15;
const CONTENT_ENCODING: u16 = 1 << 14;
const HEADERS: u16 = 1 << 13;
const MORE_FLAGS: u16 = 1;
/// The largest frame that a broker agrees to if nothing else is configured.
const FRAME: usize = 128 << 10;

/// Whether lapin can read the names in a method: consumer tag, exchange and routing key.
pub(super) enum Names {
    Readable,
    /// What is not UTF-8 of them is replaced; the names, escaped.
    Replaced(String),
}

/// Returns whether a method, by its class and number, announces a message.
pub(super) fn announces_message(method: &[u8]) -> bool {
    matches!(method, [c, d, m, n]
        if u16::from_be_bytes([*c, *d]) == BASIC && [DELIVER, GET_OK].contains(&u16::from_be_bytes([*m, *n])))
}

/// Returns the size of the body that a whole header frame announces.
pub(super) fn body_size(frame: &[u8]) -> Option<u64> {
    let size = frame.get(BEFORE + 4..BEFORE + BEFORE_FLAGS)?;
    Some(u64::from_be_bytes(size.try_into().ok()?))
}

/// Replaces what is not UTF-8 in the names of a frame that announces a message, byte by byte.
pub(super) fn names(frame: &mut [u8]) -> Names {
    if parse_frame(&*frame).is_ok() {
        return Names::Readable;
    }
    let is_delivery = frame.get(BEFORE + 2..BEFORE + 4) == Some(&DELIVER.to_be_bytes());
    let mut at = BEFORE + 4;
    let mut replaced = Vec::new();
    // A delivery begins with the consumer tag; delivery tag and flag follow.
    let skips: &[usize] = if is_delivery { &[0, 9, 0] } else { &[9, 0] };
    for skip in skips {
        at += skip;
        let Some(length) = frame.get(at).map(|length| usize::from(*length)) else { break };
        let Some(name) = frame.get_mut(at + 1..at + 1 + length) else { break };
        if std::str::from_utf8(name).is_err() {
            replaced.push(name.escape_ascii().to_string());
            name.iter_mut().filter(|byte| !byte.is_ascii()).for_each(|byte| *byte = b'?');
        }
        at += 1 + length;
    }
    Names::Replaced(replaced.join(" "))
}

/// Returns the header frame of a message: as it is, or one with the reason in place of its properties if lapin cannot read
/// them, or if the names before it were not readable.
pub(super) fn header(frame: &[u8], names: Option<String>) -> Vec<u8> {
    let reason = match names {
        Some(names) => format!("the exchange or the routing key is not UTF-8: {names}"),
        None => match reason(frame) {
            None => return frame.to_vec(),
            Some(reason) => reason,
        },
    };
    replacement(frame, &reason)
}

/// Why lapin could not read a header frame.
fn reason(frame: &[u8]) -> Option<String> {
    match headers(frame).and_then(levels) {
        None => Some("the properties are malformed".to_owned()),
        Some(levels) if levels > MOST_LEVELS => {
            Some(format!("the headers are nested more than {MOST_LEVELS} levels deep"))
        }
        Some(_) => match parse_frame(frame) {
            Ok(_) => None,
            Err(_) => Some("a property, or the name of a header, is not UTF-8".to_owned()),
        },
    }
}

/// The table of the headers; empty if there is none.
fn headers(frame: &[u8]) -> Option<&[u8]> {
    let payload = frame.get(BEFORE..frame.len().checked_sub(AFTER)?)?;
    let flags = u16::from_be_bytes(*payload.get(BEFORE_FLAGS..)?.first_chunk()?);
    if flags & MORE_FLAGS != 0 {
        return None;
    }
    let mut rest = payload.get(BEFORE_FLAGS + 2..)?;
    for flag in [CONTENT_TYPE, CONTENT_ENCODING] {
        if flags & flag != 0 {
            let length = usize::from(*rest.first()?);
            rest = rest.get(1 + length..)?;
        }
    }
    if flags & HEADERS == 0 { Some(&[]) } else { long(rest).map(|(table, _)| table) }
}

/// Splits off what has its length in four bytes before it.
fn long(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    rest.split_at_checked(u32::from_be_bytes(*length) as usize)
}

/// Returns how many levels a table has, or more than [`MOST_LEVELS`]. Not by recursion, whose depth is what is counted.
fn levels(table: &[u8]) -> Option<usize> {
    /// A table, or an array, and what of it is left.
    struct Open<'a> {
        is_table: bool,
        rest: &'a [u8],
    }
    let mut open = vec![Open { is_table: true, rest: table }];
    let mut most = 0;
    while let Some(last) = open.last_mut() {
        if last.rest.is_empty() {
            open.pop();
            continue;
        }
        if last.is_table {
            let length = usize::from(*last.rest.first()?);
            last.rest = last.rest.get(1 + length..)?;
        }
        let (kind, rest) = last.rest.split_first()?;
        let size = match kind {
            b'V' => 0,
            b't' | b'b' | b'B' => 1,
            b's' | b'U' | b'u' => 2,
            b'I' | b'i' | b'f' => 4,
            b'D' => 5,
            b'L' | b'l' | b'd' | b'T' => 8,
            b'S' | b'x' | b'A' | b'F' => {
                let (inner, after) = long(rest)?;
                last.rest = after;
                if matches!(kind, b'A' | b'F') {
                    open.push(Open { is_table: *kind == b'F', rest: inner });
                    most = most.max(open.len());
                    if most > MOST_LEVELS {
                        return Some(most);
                    }
                }
                continue;
            }
            _ => return None,
        };
        last.rest = rest.get(size..)?;
    }
    Some(most)
}

/// A header frame with the reason, and the original properties as bytes: all of them, unless the frame would get too large
/// by the reason.
fn replacement(frame: &[u8], reason: &str) -> Vec<u8> {
    let payload = frame.get(BEFORE..frame.len() - AFTER).unwrap_or_default();
    let (before, properties) = payload.split_at(BEFORE_FLAGS.min(payload.len()));
    let largest = frame.len().max(FRAME);
    let (reason, room) = (reason.as_bytes(), largest.saturating_sub(reason.len() + 256));
    let properties = &properties[..properties.len().min(room)];

    let mut table = Vec::with_capacity(properties.len() + reason.len() + 64);
    let mut entry = |name: &str, kind: u8, value: &[u8]| {
        table.extend(u8::try_from(name.len()).unwrap_or_default().to_be_bytes());
        table.extend(name.as_bytes());
        table.push(kind);
        table.extend(size(value.len()));
        table.extend(value);
    };
    entry(UNREADABLE, b'S', reason);
    entry(UNREADABLE_PROPERTIES, b'x', properties);

    let mut replaced = frame[..3].to_vec();
    replaced.extend(size(before.len() + 2 + 4 + table.len()));
    replaced.extend(before);
    replaced.extend(HEADERS.to_be_bytes());
    replaced.extend(size(table.len()));
    replaced.extend(table);
    replaced.push(END);
    replaced
}

fn size(of: usize) -> [u8; 4] {
    u32::try_from(of).unwrap_or(u32::MAX).to_be_bytes()
}
