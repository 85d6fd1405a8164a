//! Times as clients write and read them.
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Formats milliseconds since 1970 as RFC 3339 in UTC with milliseconds.
pub fn rfc3339(ms: i64) -> String {
    let time = OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms) * 1_000_000)
        .unwrap_or(OffsetDateTime::UNIX_EPOCH);
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z",
        time.year(),
        u8::from(time.month()),
        time.day(),
        time.hour(),
        time.minute(),
        time.second(),
        time.millisecond()
    )
}

/// Detail of a parameter that is no time.
pub const NO_TIME: &str = "not a time with a zone, such as 2026-11-20T08:00:00Z (RFC 3339; write + as %2B)";

/// Milliseconds since 1970 of an RFC 3339 time with any offset; finer digits are cut off.
pub fn parse(text: &str) -> Option<i64> {
    i64::try_from(nanoseconds(text)?.div_euclid(1_000_000)).ok()
}

/// Same as [`parse`], but finer digits are rounded up.
pub fn parse_up(text: &str) -> Option<i64> {
    i64::try_from(-(-nanoseconds(text)?).div_euclid(1_000_000)).ok()
}

fn nanoseconds(text: &str) -> Option<i128> {
    Some(OffsetDateTime::parse(text, &Rfc3339).ok()?.unix_timestamp_nanos())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn milliseconds_become_text_in_utc() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(1_763_600_000_042), "2025-11-20T00:53:20.042Z");
    }

    #[test]
    fn times_are_read_with_any_offset_and_never_without_one() {
        assert_eq!(parse("2025-11-20T00:53:20.042Z"), Some(1_763_600_000_042));
        assert_eq!(parse("2025-11-20T02:53:20.0429999+02:00"), Some(1_763_600_000_042));
        assert_eq!(parse("1969-12-31T23:59:59.9999Z"), Some(-1));
        assert_eq!(parse_up("2025-11-20T02:53:20.0420001+02:00"), Some(1_763_600_000_043));
        assert_eq!(parse_up("2025-11-20T00:53:20.042Z"), Some(1_763_600_000_042));
        assert_eq!(parse_up("1969-12-31T23:59:59.9999Z"), Some(0));
        for bad in ["2025-11-20T00:53:20", "2025-11-20", "1763600000", "", "2025-02-30T00:00:00Z", "now"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
