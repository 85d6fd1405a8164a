//! Times as clients see them.
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// RFC 3339 in UTC with milliseconds, from milliseconds since 1970.
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

/// Milliseconds since 1970 of an RFC 3339 time with any offset; what is finer is cut off.
pub fn parse(text: &str) -> Option<i64> {
    let time = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    i64::try_from(time.unix_timestamp_nanos().div_euclid(1_000_000)).ok()
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
        for bad in ["2025-11-20T00:53:20", "2025-11-20", "1763600000", "", "2025-02-30T00:00:00Z", "now"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
