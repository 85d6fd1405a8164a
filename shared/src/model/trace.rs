//! W3C trace contexts beside a message: they map each item to the request that brought it, so that the
//! status of an item is found from the trace of its request.
//!
//! They are hints. No decision about applying depends on them, so nothing here is an error: text that
//! cannot be read is no trace. They do not stand in the message's body, because a consumer that does not
//! know them must read the message all the same (`docs/decisions/0014-traces.md`).
use std::fmt;
use std::sync::Arc;

/// Traces that one message carries at most; further ones are dropped.
pub const TRACES_MAX: usize = 16;

/// Characters of a `traceparent` of version 00, with which a newer one begins, too.
const LENGTH: usize = 55;

/// Content of a `traceparent` header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceParent {
    trace_id: u128,
    parent_id: u64,
    /// True when the sender keeps this trace.
    pub is_sampled: bool,
}

impl TraceParent {
    /// Reads version 00 strictly, and the part of a newer version that it shares with 00, as the
    /// specification demands. `None` when it is invalid.
    pub fn parse(header: &[u8]) -> Option<Self> {
        let (known, more) = header.split_at_checked(LENGTH)?;
        if [2, 35, 52].iter().any(|dash| known[*dash] != b'-') {
            return None;
        }
        let version = hexadecimal(&known[..2])?;
        let is_framed = if version == 0 { more.is_empty() } else { matches!(more, [] | [b'-', ..]) };
        let (trace_id, parent_id) = (hexadecimal(&known[3..35])?, hexadecimal(&known[36..52])?);
        let is_sampled = hexadecimal(&known[53..])? & 1 == 1;
        let is_valid = version != 0xff && is_framed && trace_id != 0 && parent_id != 0;
        let parent_id = u64::try_from(parent_id).expect("16 digits are 64 bits");
        is_valid.then_some(Self { trace_id, parent_id, is_sampled })
    }

    /// Id of the trace as it stands in headers and logs: 32 hexadecimal digits.
    pub fn trace_id(&self) -> String {
        format!("{:032x}", self.trace_id)
    }
}

/// Writes version 00. Of the flags only `sampled` is known.
impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { trace_id, parent_id, is_sampled } = self;
        write!(f, "00-{trace_id:032x}-{parent_id:016x}-{:02x}", u8::from(*is_sampled))
    }
}

/// Reads 32 digits at most, in lower case.
fn hexadecimal(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0, |value: u128, digit| {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(value << 4 | u128::from(digit))
    })
}

/// Traces of the requests in one message, [`TRACES_MAX`] at most.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traces(Vec<Traced>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Traced {
    first: usize,
    items: usize,
    parent: TraceParent,
}

impl Traces {
    /// Adds the trace of the request whose `items` begin at the index `first`; `false` when there is no
    /// room.
    pub fn add(&mut self, first: usize, items: usize, parent: TraceParent) -> bool {
        let has_room = self.0.len() < TRACES_MAX;
        if has_room {
            self.0.push(Traced { first, items, parent });
        }
        has_room
    }

    /// Encodes as `[[first,items,"00-…"],…]`; `None` when there are none.
    pub fn encode(&self) -> Option<Arc<str>> {
        let each = |Traced { first, items, parent }: &Traced| format!(r#"[{first},{items},"{parent}"]"#);
        let each: Vec<String> = self.0.iter().map(each).collect();
        (!each.is_empty()).then(|| format!("[{}]", each.join(",")).into())
    }

    /// Decodes the text of another process. Parts that are no trace are left out.
    pub fn decode(text: &str) -> Self {
        let read = serde_json::from_str::<Vec<(usize, usize, Box<str>)>>(text).unwrap_or_default();
        let traced = |(first, items, parent): (usize, usize, Box<str>)| {
            TraceParent::parse(parent.as_bytes()).map(|parent| Traced { first, items, parent })
        };
        Self(read.into_iter().filter_map(traced).take(TRACES_MAX).collect())
    }

    /// Trace of the request that brought the item at `index`.
    pub fn of_item(&self, index: usize) -> Option<TraceParent> {
        let holds = |traced: &&Traced| index.checked_sub(traced.first).is_some_and(|at| at < traced.items);
        self.0.iter().find(holds).map(|traced| traced.parent)
    }

    /// Ids of all traces, for a log line.
    pub fn ids(&self) -> String {
        self.0.iter().map(|traced| traced.parent.trace_id()).collect::<Vec<_>>().join(",")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn parse(header: &str) -> Option<TraceParent> {
        TraceParent::parse(header.as_bytes())
    }

    #[test]
    fn a_header_of_this_version_is_read_strictly() {
        let parent = parse(GOOD).expect("the example of the specification");
        assert!(parent.is_sampled);
        assert_eq!(parent.trace_id(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(parent.to_string(), GOOD);
        for (flags, is_sampled) in [("00", false), ("02", false), ("03", true), ("ff", true)] {
            let read = parse(&format!("{}{flags}", &GOOD[..53])).expect(flags);
            assert_eq!(read.is_sampled, is_sampled, "{flags}");
        }
        for bad in [
            String::new(),
            "0".into(),
            GOOD[..54].into(),
            format!("{GOOD}-"),
            format!("{GOOD}-01"),
            format!(" {GOOD}"),
            GOOD.to_uppercase(),
            GOOD.replace('-', "_"),
            GOOD.replace("4bf9", "4bg9"),
            GOOD.replace("4bf9", "+bf9"),
            GOOD.replace("4bf9", "ä9"),
            GOOD.replace("-01", "-0x"),
            GOOD.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            GOOD.replace("00f067aa0ba902b7", &"0".repeat(16)),
        ] {
            assert_eq!(parse(&bad), None, "{bad}");
        }
    }

    #[test]
    fn of_a_newer_version_is_read_what_it_has_in_common() {
        let newer = |version: &str, more: &str| parse(&format!("{version}{}{more}", &GOOD[2..]));
        for (version, more) in [("01", ""), ("cc", "-what-the-future-holds"), ("fe", "-")] {
            assert_eq!(newer(version, more), parse(GOOD), "{version}{more}");
        }
        for (version, more) in [("ff", ""), ("ff", "-01"), ("01", "."), ("01", "1-x"), ("0A", "")] {
            assert_eq!(newer(version, more), None, "{version}{more}");
        }
    }

    #[test]
    fn a_message_carries_the_first_traces_and_says_that_there_is_no_room() {
        let (mut traces, parent) = (Traces::default(), parse(GOOD).expect("a trace"));
        assert_eq!(traces.encode(), None);
        let added: Vec<bool> = (0..=TRACES_MAX).map(|index| traces.add(index * 2, 1, parent)).collect();
        assert_eq!(added.iter().filter(|added| **added).count(), TRACES_MAX);
        assert!(!added[TRACES_MAX]);
        let decoded = Traces::decode(&traces.encode().expect("some"));
        assert_eq!(decoded, traces);
        let last = (TRACES_MAX - 1) * 2;
        assert_eq!(
            [last, last + 1, last + 2].map(|index| decoded.of_item(index).is_some()),
            [true, false, false]
        );
    }

    #[test]
    fn what_is_no_trace_is_left_out_and_spoils_nothing() {
        for text in ["", "{}", "[1]", r#"[[0,1,"x"]]"#, r#"[[-1,1,""]]"#, "[[0,1]]", "\u{0}"] {
            assert_eq!(Traces::decode(text), Traces::default(), "{text}");
        }
        let mixed = Traces::decode(&format!(r#"[[0,1,"x"],[1,18446744073709551615,"{GOOD}"]]"#));
        assert_eq!(mixed.of_item(0), None);
        assert_eq!(mixed.of_item(usize::MAX), parse(GOOD));
        let many = format!("[{}]", vec![format!(r#"[0,1,"{GOOD}"]"#); 1_000].join(","));
        assert_eq!(Traces::decode(&many).0.len(), TRACES_MAX);
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded_again(
            requests in proptest::collection::vec(
                (1usize..100, proptest::option::of((1u128.., 1u64.., any::<bool>()))), 0..40,
            ),
        ) {
            let (mut traces, mut first, mut expected) = (Traces::default(), 0, Vec::new());
            for (items, context) in requests {
                let parent = context.map(|(trace_id, parent_id, is_sampled)| {
                    TraceParent { trace_id, parent_id, is_sampled }
                });
                let kept = parent.filter(|parent| traces.add(first, items, *parent));
                expected.extend(vec![kept; items]);
                first += items;
            }
            let decoded = traces.encode().map_or_else(Traces::default, |text| Traces::decode(&text));
            prop_assert_eq!(&decoded, &traces);
            let found: Vec<_> = (0..=first).map(|index| decoded.of_item(index)).collect();
            expected.push(None);
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn no_header_does_harm(header in proptest::collection::vec(any::<u8>(), 0..80)) {
            if let Some(parent) = TraceParent::parse(&header) {
                prop_assert_eq!(TraceParent::parse(parent.to_string().as_bytes()), Some(parent));
            }
        }
    }
}
