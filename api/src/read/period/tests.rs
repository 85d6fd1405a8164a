//! Periods against the calendar, and ranges against what any cover must hold.
use proptest::prelude::*;

use super::*;
use crate::rfc3339::{parse, rfc3339};

fn at(text: &str) -> i64 {
    parse(text).expect("a time")
}

fn around(period: Period, now: &str) -> (String, String) {
    let Span { from_ms, to_ms } = period.around(at(now));
    (rfc3339(from_ms), rfc3339(to_ms))
}

fn texts(from: &str, to: &str) -> (String, String) {
    (format!("{from}.000Z"), format!("{to}.000Z"))
}

/// 2026-11-20 is a Friday.
const NOW: &str = "2026-11-20T12:34:56.789Z";

fn kept() -> RollupRetention {
    RollupRetention::at(at(NOW), &config::RetentionSettings::default())
}

#[test]
fn calendar_periods_begin_where_the_calendar_says() {
    let hour = texts("2026-11-20T12:00:00", "2026-11-20T13:00:00");
    assert_eq!(around(Period::Hourly, NOW), hour);
    assert_eq!(around(Period::Daily, NOW), texts("2026-11-20T00:00:00", "2026-11-21T00:00:00"));
    assert_eq!(around(Period::Weekly, NOW), texts("2026-11-16T00:00:00", "2026-11-23T00:00:00"));
    assert_eq!(around(Period::Monthly, NOW), texts("2026-11-01T00:00:00", "2026-12-01T00:00:00"));
}

#[test]
fn a_week_turns_at_midnight_before_monday() {
    let (this, next) = (texts("2026-11-16T00:00:00", "2026-11-23T00:00:00"), "2026-11-23T00:00:00.000Z");
    assert_eq!(around(Period::Weekly, "2026-11-16T00:00:00Z"), this);
    assert_eq!(around(Period::Weekly, "2026-11-22T23:59:59.999Z"), this);
    assert_eq!(around(Period::Weekly, next).0, next);
    // A week over the end of a year.
    let silvester = texts("2026-12-28T00:00:00", "2027-01-04T00:00:00");
    assert_eq!(around(Period::Weekly, "2026-12-31T23:59:59.999Z"), silvester);
    assert_eq!(around(Period::Weekly, "2027-01-01T00:00:00Z"), silvester);
}

#[test]
fn months_have_their_own_lengths() {
    for (now, from, to) in [
        ("2026-12-31T23:59:59.999Z", "2026-12-01T00:00:00", "2027-01-01T00:00:00"),
        ("2027-01-01T00:00:00Z", "2027-01-01T00:00:00", "2027-02-01T00:00:00"),
        ("2027-02-28T23:59:59.999Z", "2027-02-01T00:00:00", "2027-03-01T00:00:00"),
        ("2028-02-29T12:00:00Z", "2028-02-01T00:00:00", "2028-03-01T00:00:00"),
    ] {
        assert_eq!(around(Period::Monthly, now), texts(from, to), "{now}");
    }
}

#[test]
fn a_calendar_period_is_one_range_of_rollups() {
    for (period, resolution) in
        [(Period::Hourly, Hour), (Period::Daily, Day), (Period::Weekly, Day), (Period::Monthly, Day)]
    {
        let span = period.around(at(NOW));
        assert_eq!(span.widened(&kept()), span, "{period:?}");
        let pieces = span.pieces();
        assert_eq!(pieces.len(), 1, "{period:?}: {pieces:?}");
        assert_eq!(pieces[0].resolution, resolution, "{period:?}");
        assert_eq!(Period::from_name(period.name()), Some(period));
    }
}

#[test]
fn a_range_over_days_has_minutes_and_hours_at_its_edges() {
    let span = Span { from_ms: at("2026-11-18T22:50:30Z"), to_ms: at("2026-11-20T02:10:00.001Z") };
    let used = span.widened(&kept());
    let shown = (rfc3339(used.from_ms), rfc3339(used.to_ms));
    assert_eq!(shown, texts("2026-11-18T22:50:00", "2026-11-20T02:11:00"));
    let lengths: Vec<_> =
        used.pieces().iter().map(|piece| (piece.resolution, piece.below - piece.from)).collect();
    assert_eq!(lengths, [(Minute, 10), (Hour, 1), (Day, 1), (Hour, 2), (Minute, 11)]);
}

#[test]
fn where_finer_rollups_are_gone_a_range_grows_to_whole_hours_and_days() {
    let span = Span { from_ms: at("2026-10-01T10:30:00Z"), to_ms: at("2026-10-02T11:45:00Z") };
    let used = span.widened(&kept());
    let shown = (rfc3339(used.from_ms), rfc3339(used.to_ms));
    assert_eq!(shown, texts("2026-10-01T10:00:00", "2026-10-02T12:00:00"));
    let span = Span { from_ms: at("2026-01-01T10:30:00Z"), to_ms: at("2026-01-02T11:45:00Z") };
    let used = span.widened(&kept());
    let shown = (rfc3339(used.from_ms), rfc3339(used.to_ms));
    assert_eq!(shown, texts("2026-01-01T00:00:00", "2026-01-03T00:00:00"));
}

#[test]
fn steps_are_read_in_every_spelling_and_bounded() {
    for (text, minutes) in [("minute", 1), ("hour", 60), ("day", 1_440), ("60", 1), ("300", 5), ("5m", 5)] {
        assert_eq!(step_ms(text), Ok(minutes * 60_000), "{text}");
    }
    assert_eq!(step_ms("1h"), Ok(3_600_000));
    assert_eq!(step_ms("7d"), Ok(7 * DAY_MS));
    for unreadable in ["", "m", "1w", "-60", "+60", "1.5h", " 60", "60 ", "h1", "é", "1é", "1M"] {
        assert_eq!(step_ms(unreadable), Err(NoBuckets::Unreadable), "{unreadable}");
    }
    for bad in ["0", "0m", "59", "61", "90", "401d", "9223372036854775807", "99999999999999999999d"] {
        assert_eq!(step_ms(bad), Err(NoBuckets::Step), "{bad}");
    }
}

#[test]
fn a_series_takes_the_coarsest_rollups_and_refuses_those_that_are_gone() {
    let hours = |back: i64, step: &str| {
        let to_ms = at(NOW);
        let span = Span { from_ms: to_ms - back * 3_600_000, to_ms };
        Buckets::of(span, step_ms(step).expect("a step"), &kept())
    };
    assert_eq!(hours(2, "5m").map(|buckets| buckets.resolution), Ok(Minute));
    assert_eq!(hours(24, "90m").map(|buckets| buckets.resolution), Ok(Minute));
    assert_eq!(hours(24, "2h").map(|buckets| buckets.resolution), Ok(Hour));
    assert_eq!(hours(24 * 300, "2d").map(|buckets| buckets.resolution), Ok(Day));
    assert_eq!(hours(17, "minute"), Err(NoBuckets::TooMany));
    assert_eq!(hours(60, "15m"), Err(NoBuckets::MinutesGone));
    assert_eq!(hours(24 * 91, "25h"), Err(NoBuckets::HoursGone));
}

/// Spans that begin between 100 days before and 2 days after now, up to 40 days long.
fn spans() -> impl Strategy<Value = Span> {
    let now_ms = at(NOW);
    (now_ms - 100 * DAY_MS..now_ms + 2 * DAY_MS, prop_oneof![1..DAY_MS / 8, 1..40 * DAY_MS])
        .prop_map(|(from_ms, length_ms)| Span { from_ms, to_ms: from_ms + length_ms })
}

/// Any retention, also ones that make no sense.
fn kepts() -> impl Strategy<Value = RollupRetention> {
    (0_u32..72, 0_u32..120).prop_map(|(minutes_hours, hours_days)| {
        let retention =
            config::RetentionSettings { minutes_hours, hours_days, ..config::RetentionSettings::default() };
        RollupRetention::at(at(NOW), &retention)
    })
}

proptest! {
    #[test]
    fn pieces_cover_a_range_once_in_order_out_of_rollups_that_are_there(span in spans(), kept in kepts()) {
        let used = span.widened(&kept);
        prop_assert!(used.from_ms <= span.from_ms && used.to_ms >= span.to_ms);
        prop_assert!(span.from_ms - used.from_ms < DAY_MS && used.to_ms - span.to_ms < DAY_MS);
        prop_assert_eq!(used.widened(&kept), used);
        let pieces = used.pieces();
        prop_assert!(pieces.len() <= 5, "{pieces:?}");
        let mut reached_ms = used.from_ms;
        for piece in &pieces {
            let length_ms = piece.resolution.period_ms();
            prop_assert_eq!(i64::from(piece.from) * length_ms, reached_ms);
            prop_assert!(piece.from < piece.below);
            prop_assert!(reached_ms >= kept.since_ms(piece.resolution), "{piece:?} is not kept");
            reached_ms = i64::from(piece.below) * length_ms;
        }
        prop_assert_eq!(reached_ms, used.to_ms);
    }

    #[test]
    fn a_range_grows_only_where_it_must(span in spans()) {
        let kept = kept();
        let used = span.widened(&kept);
        if span.from_ms >= kept.minutes_since_ms + 60_000 {
            prop_assert!(span.from_ms - used.from_ms < 60_000 && used.to_ms - span.to_ms < 60_000);
        }
        if span.from_ms >= kept.hours_since_ms + 3_600_000 {
            prop_assert!(span.from_ms - used.from_ms < 3_600_000 && used.to_ms - span.to_ms < 3_600_000);
        }
    }

    #[test]
    fn buckets_touch_the_range_and_every_period_has_one(span in spans(), minutes in 1_i64..3_000) {
        if let Ok(buckets) = Buckets::of(span, minutes * 60_000, &kept()) {
            let spans: Vec<Span> = buckets.spans().collect();
            prop_assert!(!spans.is_empty() && spans.len() <= 1_000);
            prop_assert_eq!(spans.iter().map(|span| span.length_ms()).sum::<i64>(), buckets.span.length_ms());
            prop_assert!(spans[0].from_ms <= span.from_ms && spans[0].to_ms > span.from_ms);
            let last = spans[spans.len() - 1];
            prop_assert!(last.from_ms < span.to_ms && last.to_ms >= span.to_ms);
            let piece = buckets.piece();
            for period in piece.from..piece.below {
                let at_ms = i64::from(period) * piece.resolution.period_ms();
                let bucket = spans[buckets.index_of(period).expect("inside")];
                prop_assert!(bucket.from_ms <= at_ms);
                prop_assert!(at_ms + piece.resolution.period_ms() <= bucket.to_ms);
            }
            prop_assert_eq!(buckets.index_of(piece.below), None);
            prop_assert_eq!(buckets.index_of(piece.from - 1), None);
        }
    }
}
