//! Periods of time that a question about metrics means, and the rollups that answer it.
//!
//! Pure: the handlers pass the time in. Rollups of different lengths hold the same points while they are kept
//! ([`RollupRetention`]), and merging them is exact, so the figures of a range do not depend on the rollups
//! that it is made of.
use shared::config;
use shared::model::rollup::Resolution;
use shared::store::rules::points::{HOURS_BACK_MS_MAX, MINUTES_BACK_MS_MAX};
use time::{Date, Duration, OffsetDateTime};

use self::Resolution::{Day, Hour, Minute};

/// Longest range of a question in days.
pub const RANGE_DAYS_MAX: i64 = 400;

/// Largest number of buckets in one series.
pub const BUCKETS_MAX: i64 = 1_000;

/// Time before their deletion from which rollups are no longer asked for: clocks differ, and a question takes
/// its time.
const MARGIN_MS: i64 = 5 * 60 * 1_000;

const DAY_MS: i64 = 86_400_000;

/// The calendar periods that a summary can be asked for, in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Period {
    Hourly,
    Daily,
    /// A week from Monday.
    Weekly,
    Monthly,
}

/// A range of time: `from_ms <= time < to_ms`, in milliseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Span {
    pub from_ms: i64,
    pub to_ms: i64,
}

/// Times since which all rollups of a length are there, in milliseconds since 1970. Those of days are never
/// deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RollupRetention {
    pub minutes_since_ms: i64,
    pub hours_since_ms: i64,
}

/// Rollups of one length that follow each other: `from <= period < below`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    pub resolution: Resolution,
    pub from: i32,
    pub below: i32,
}

/// Buckets of equal length, aligned to multiples of it since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buckets {
    pub span: Span,
    pub step_ms: i64,
    pub resolution: Resolution,
}

/// Reason for which a series cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoBuckets {
    #[error("a step is `minute`, `hour`, `day`, a number of seconds, or a number with m, h or d")]
    Unreadable,
    #[error("a step is a multiple of a minute, and at most {RANGE_DAYS_MAX} days")]
    Step,
    #[error("a series has {BUCKETS_MAX} buckets at most: take a longer step or a shorter range")]
    TooMany,
    #[error("minutes that old are not kept: take a step of hours or days")]
    MinutesGone,
    #[error("hours that old are not kept: take a step of days")]
    HoursGone,
}

impl Period {
    pub fn from_name(name: &str) -> Option<Self> {
        let all = [Self::Hourly, Self::Daily, Self::Weekly, Self::Monthly];
        all.into_iter().find(|period| period.name() == name)
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Hourly => "hourly",
            Self::Daily => "daily",
            Self::Weekly => "weekly",
            Self::Monthly => "monthly",
        }
    }

    /// The whole period that holds a time.
    pub fn around(self, now_ms: i64) -> Span {
        /// 1970 began on a Thursday.
        const FIRST_MONDAY_MS: i64 = 4 * DAY_MS;
        let aligned = |first_ms: i64, length_ms: i64| {
            let from_ms = floor(now_ms - first_ms, length_ms) + first_ms;
            Span { from_ms, to_ms: from_ms + length_ms }
        };
        match self {
            Self::Hourly => aligned(0, Hour.period_ms()),
            Self::Daily => aligned(0, DAY_MS),
            Self::Weekly => aligned(FIRST_MONDAY_MS, 7 * DAY_MS),
            Self::Monthly => month_around(now_ms),
        }
    }
}

impl RollupRetention {
    /// Rollups that are there at a time. With any retention, points that are old when they come write no
    /// minutes, or no hours either. Where hours are gone, minutes are of no use.
    pub fn at(now_ms: i64, retention: &config::RetentionSettings) -> Self {
        let minutes_ms = (i64::from(retention.minutes_hours) * Hour.period_ms()).min(MINUTES_BACK_MS_MAX);
        let hours_ms = (i64::from(retention.hours_days) * DAY_MS).min(HOURS_BACK_MS_MAX);
        Self {
            minutes_since_ms: now_ms - minutes_ms.min(hours_ms) + MARGIN_MS,
            hours_since_ms: now_ms - hours_ms + MARGIN_MS,
        }
    }

    fn since_ms(&self, resolution: Resolution) -> i64 {
        match resolution {
            Minute => self.minutes_since_ms,
            Hour => self.hours_since_ms,
            Day => i64::MIN,
        }
    }
}

impl Span {
    /// The smallest span around this one that has all its rollups.
    pub fn widened(self, kept: &RollupRetention) -> Self {
        let floor_to = |length: Resolution| floor(self.from_ms, length.period_ms());
        let from_ms = Resolution::ALL
            .into_iter()
            .find(|length| floor_to(*length) >= kept.since_ms(*length))
            .map_or(self.from_ms, floor_to);
        // An end within an hour needs the minutes of that hour, or the minutes since the beginning.
        let needed_since_ms = |length: Resolution| match length {
            Minute => floor(self.to_ms, Hour.period_ms()).max(from_ms),
            Hour => floor(self.to_ms, DAY_MS).max(from_ms),
            Day => i64::MAX,
        };
        let to_ms = Resolution::ALL
            .into_iter()
            .find(|length| needed_since_ms(*length) >= kept.since_ms(*length))
            .map_or(self.to_ms, |length| ceil(self.to_ms, length.period_ms()));
        Self { from_ms, to_ms }
    }

    /// The rollups that make up a span of whole minutes: days inside, hours around them, minutes
    /// at the edges; ascending, each time once.
    pub fn pieces(self) -> Vec<Piece> {
        let mut pieces = Vec::with_capacity(5);
        cover(self, &Resolution::ALL, &mut pieces);
        pieces
    }

    pub fn length_ms(self) -> i64 {
        self.to_ms - self.from_ms
    }
}

impl Buckets {
    /// The buckets that touch a span.
    pub fn of(span: Span, step_ms: i64, kept: &RollupRetention) -> Result<Self, NoBuckets> {
        let span = Span { from_ms: floor(span.from_ms, step_ms), to_ms: ceil(span.to_ms, step_ms) };
        if span.length_ms() / step_ms > BUCKETS_MAX {
            return Err(NoBuckets::TooMany);
        }
        let divides = |length: &Resolution| step_ms % length.period_ms() == 0;
        let resolution = Resolution::ALL.into_iter().rfind(divides).ok_or(NoBuckets::Step)?;
        if span.from_ms >= kept.since_ms(resolution) {
            return Ok(Self { span, step_ms, resolution });
        }
        Err(if resolution == Minute { NoBuckets::MinutesGone } else { NoBuckets::HoursGone })
    }

    /// Rollups of all buckets, in one piece.
    pub fn piece(&self) -> Piece {
        piece(self.span, self.resolution)
    }

    /// Index of the bucket that a period of the piece belongs to.
    pub fn index_of(&self, period: i32) -> Option<usize> {
        let at_ms = i64::from(period) * self.resolution.period_ms();
        let inside = (self.span.from_ms..self.span.to_ms).contains(&at_ms);
        inside.then(|| usize::try_from((at_ms - self.span.from_ms) / self.step_ms).ok()).flatten()
    }

    pub fn spans(&self) -> impl Iterator<Item = Span> + use<> {
        let Self { span, step_ms, .. } = *self;
        let count = span.length_ms() / step_ms;
        (0..count).map(move |number| {
            let from_ms = span.from_ms + number * step_ms;
            Span { from_ms, to_ms: from_ms + step_ms }
        })
    }
}

/// A step as clients write it, in milliseconds: `minute`, `90`, `5m`, `1h`, `1d`.
pub fn step_ms(text: &str) -> Result<i64, NoBuckets> {
    let text = match text {
        "minute" => "1m",
        "hour" => "1h",
        "day" => "1d",
        _ => text,
    };
    let units = [('m', Minute.period_ms()), ('h', Hour.period_ms()), ('d', DAY_MS)];
    let with_unit = units.into_iter().find_map(|(unit, ms)| Some((text.strip_suffix(unit)?, ms)));
    let (digits, unit_ms) = with_unit.unwrap_or((text, 1_000));
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(NoBuckets::Unreadable);
    }
    let number: i64 = digits.parse().map_err(|_| NoBuckets::Step)?;
    let step_ms = number.checked_mul(unit_ms).ok_or(NoBuckets::Step)?;
    let is_whole = step_ms > 0 && step_ms % Minute.period_ms() == 0;
    if is_whole && step_ms <= RANGE_DAYS_MAX * DAY_MS { Ok(step_ms) } else { Err(NoBuckets::Step) }
}

/// Covers a span: its aligned part with the coarsest length, the rest at both ends with the finer ones.
fn cover(span: Span, lengths: &[Resolution], pieces: &mut Vec<Piece>) {
    let Some((&coarsest, finer)) = lengths.split_last() else { return };
    let length_ms = coarsest.period_ms();
    let inner = Span { from_ms: ceil(span.from_ms, length_ms), to_ms: floor(span.to_ms, length_ms) };
    if inner.from_ms >= inner.to_ms {
        return cover(span, finer, pieces);
    }
    cover(Span { to_ms: inner.from_ms, ..span }, finer, pieces);
    pieces.push(piece(inner, coarsest));
    cover(Span { from_ms: inner.to_ms, ..span }, finer, pieces);
}

fn piece(span: Span, resolution: Resolution) -> Piece {
    let Span { from_ms, to_ms } = span;
    Piece { resolution, from: resolution.period_of(from_ms), below: resolution.period_of(to_ms) }
}

fn floor(at_ms: i64, length_ms: i64) -> i64 {
    at_ms.div_euclid(length_ms) * length_ms
}

fn ceil(at_ms: i64, length_ms: i64) -> i64 {
    floor(at_ms + length_ms - 1, length_ms)
}

fn month_around(now_ms: i64) -> Span {
    let now = OffsetDateTime::from_unix_timestamp(now_ms.div_euclid(1_000));
    let date = now.unwrap_or(OffsetDateTime::UNIX_EPOCH).date();
    let first_of_month = |date: Date| date.replace_day(1).expect("every month has a first day");
    let first = first_of_month(date);
    // 31 days after the first day of a month is always the next month.
    let next = first_of_month(first + Duration::days(31));
    let at_ms = |date: Date| date.midnight().assume_utc().unix_timestamp() * 1_000;
    Span { from_ms: at_ms(first), to_ms: at_ms(next) }
}

#[cfg(test)]
mod tests;
