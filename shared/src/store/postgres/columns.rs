//! Conversion of values between the columns of the server and the types of the model.
use time::OffsetDateTime;
use uuid::Uuid;

use super::failure::{PgFailure, corrupt};
use crate::model::id::ItemKey;
use crate::model::idempotency::Fingerprint;

const YEAR_9999_END_MS: i64 = 253_402_300_799_999;

pub fn to_ms(at: OffsetDateTime) -> i64 {
    i64::try_from(at.unix_timestamp_nanos() / 1_000_000).expect("nanoseconds have 96 bits at most")
}

/// Returns the nearest time that the server and the calendar hold: a message may carry any number.
pub fn from_ms(at_ms: i64) -> OffsetDateTime {
    let nanoseconds = i128::from(clamp_ms(at_ms)) * 1_000_000;
    OffsetDateTime::from_unix_timestamp_nanos(nanoseconds).expect("a time from 1970 to 9999")
}

/// Clamps milliseconds to the times of [`from_ms`].
pub fn clamp_ms(at_ms: i64) -> i64 {
    at_ms.clamp(0, YEAR_9999_END_MS)
}

/// Decodes a stored key of an item.
pub fn item(id: Uuid) -> Result<ItemKey, PgFailure> {
    ItemKey::from_uuid(id).ok_or_else(|| corrupt(&format!("{id} is stored and is no key of an item")))
}

/// Decodes a stored fingerprint.
pub fn fingerprint(bytes: &[u8]) -> Result<Fingerprint, PgFailure> {
    let bytes = bytes.try_into().map_err(|_| corrupt("a stored fingerprint does not have 16 bytes"))?;
    Ok(Fingerprint(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_number_becomes_a_time_and_a_usual_one_itself() {
        for (at_ms, stored) in [(-1, 0), (i64::MIN, 0), (1_763_600_000_123, 1_763_600_000_123)] {
            assert_eq!(to_ms(from_ms(at_ms)), stored);
        }
        assert_eq!(from_ms(i64::MAX).year(), 9999);
    }
}
