//! Points in; summaries, series and types out.
use api::rfc3339::rfc3339;
use reqwest::{Method, Response};
use serde_json::{Value, json};
use shared::model::write::YEAR_MS;

use crate::support::{Installation, cluster_with, json, on_both_pairs, problem};

const MINUTE_MS: i64 = 60_000;
const HOUR_MS: i64 = 60 * MINUTE_MS;
const DAY_MS: i64 = 24 * HOUR_MS;

fn now_ms() -> i64 {
    shared::runtime::clock::now_ms()
}

fn point(kind: &str, at_ms: i64, value: f64) -> Value {
    json!({"timestamp": rfc3339(at_ms), "value": value, "type": kind})
}

/// Sends points in requests of 1,000 and expects all of them to be accepted.
async fn record(installation: &Installation, points: &[Value]) {
    for points in points.chunks(1_000) {
        let response = installation.post("/v1/metrics", &json!(points).to_string()).await;
        assert_eq!(response.status(), 202);
        assert_eq!(json(response).await["accepted"], points.len());
    }
}

async fn ask(installation: &Installation, replica: usize, what: &str, kind: &str, rest: &str) -> Response {
    let path = format!("/v1/metrics/{what}?type={kind}&{rest}");
    installation.at(replica, Method::GET, &path).send().await.expect("an answer")
}

async fn summary(installation: &Installation, kind: &str, rest: &str) -> Value {
    let response = ask(installation, 0, "summary", kind, rest).await;
    assert_eq!(response.status(), 200);
    json(response).await
}

fn range(from_ms: i64, to_ms: i64) -> String {
    format!("from={}&to={}", rfc3339(from_ms), rfc3339(to_ms))
}

/// Query of two days around now.
fn around_now() -> String {
    range(now_ms() - DAY_MS, now_ms() + DAY_MS)
}

async fn wait_for_count(installation: &Installation, kind: &str, rest: &str, count: usize) -> Value {
    installation
        .wait_for(&format!("{count} points of {kind}"), async || {
            let summary = summary(installation, kind, rest).await;
            (summary["count"] == count).then_some(summary)
        })
        .await
}

/// Compares the figures with those of sorting and adding up. `sum` is the exact sum.
fn assert_figures(figures: &Value, values: &[f64], sum: f64) {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let count = sorted.len();
    assert_eq!(figures["count"], count);
    if count == 0 {
        assert_eq!(figures["sum"], 0.0);
        for name in ["average_value", "min", "max", "p50", "p95", "p99"] {
            assert_eq!(figures[name], Value::Null, "{name}");
        }
        return;
    }
    assert_eq!(figures["sum"].as_f64(), Some(sum));
    assert_eq!(figures["min"].as_f64(), Some(sorted[0]));
    assert_eq!(figures["max"].as_f64(), Some(sorted[count - 1]));
    let average = figures["average_value"].as_f64().expect("a number");
    assert_eq!(average.to_bits(), (sum / count as f64).to_bits(), "{average}");
    for (name, percent) in [("p50", 50), ("p95", 95), ("p99", 99)] {
        let expected = sorted[(count * percent).div_ceil(100) - 1];
        let reported = figures[name].as_f64().expect("a number");
        let allowed = (expected.abs() * 0.01).max(1e-9) * (1.0 + 1e-9);
        assert!((reported - expected).abs() <= allowed, "{name}: {reported} for {expected}");
    }
}

/// Numbers that look random, the same in each run.
fn noise() -> impl Iterator<Item = u64> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    })
}

/// Values with ten binary places, so that integers sum them exactly.
fn values(count: usize) -> (Vec<f64>, f64) {
    // The numbers have every magnitude, negative and positive.
    let number = |bits: u64| (i32::try_from(bits >> 33).expect("31 bits") - (1 << 30)) >> (bits % 30);
    let thousandths: Vec<i32> = noise().take(count).map(number).collect();
    let sum: i64 = thousandths.iter().map(|value| i64::from(*value)).sum();
    (thousandths.iter().map(|value| f64::from(*value) / 1_024.0).collect(), sum as f64 / 1_024.0)
}

on_both_pairs! {
    async fn a_point_is_accepted_then_summarised(installation) {
        let body = point("latency", now_ms(), 12.5).to_string();
        let response = installation.post("/v1/metrics", &body).await;
        assert_eq!(response.status(), 202);
        let location = response.headers()["location"].to_str().expect("text").to_owned();
        let accepted = json(response).await;
        assert_eq!(location, format!("/v1/receipts/{}", accepted["id"].as_str().expect("an id")));
        wait_for_count(&installation, "latency", &around_now(), 1).await;
        let receipt = json(installation.get(&location).await).await;
        assert_eq!((&receipt["kind"], &receipt["status"]), (&json!("point"), &json!("applied")));
        let (from_ms, to_ms) = (now_ms() / HOUR_MS * HOUR_MS - HOUR_MS, now_ms() / HOUR_MS * HOUR_MS + HOUR_MS);
        let summary = summary(&installation, "latency", &range(from_ms, to_ms)).await;
        assert_eq!(summary, json!({
            "type": "latency", "period": "custom", "from": rfc3339(from_ms), "to": rfc3339(to_ms),
            "count": 1, "average_value": 12.5, "min": 12.5, "max": 12.5, "sum": 12.5,
            "p50": 12.5, "p95": 12.5, "p99": 12.5,
            "external_data": {"status": "disabled", "external_metric_context": null},
        }));
    }

    async fn an_array_and_lines_are_accepted_as_one_and_bad_points_told_by_index(installation) {
        let good = point("many", now_ms(), 1.0);
        let array = json!([good, {"timestamp": "now", "value": 1, "type": "many"}, good, 5]).to_string();
        let accepted = json(installation.post("/v1/metrics", &array).await).await;
        assert_eq!((&accepted["accepted"], accepted["ids"].as_array().expect("ids").len()), (&json!(2), 2));
        assert_eq!(accepted["rejected"][0]["index"], 1);
        assert_eq!(accepted["rejected"][0]["problem"]["errors"][0]["pointer"], "/timestamp");
        assert_eq!(accepted["rejected"][1]["index"], 3);
        let request = installation.at(0, Method::POST, "/v1/metrics").header("content-type", "application/x-ndjson");
        let lines = format!("{good}\n\n{{\"timestamp\":\n{good}\n{good}");
        let accepted = json(request.body(lines).send().await.expect("an answer")).await;
        assert_eq!(accepted["accepted"], 3);
        assert_eq!(accepted["rejected"][0]["problem"]["status"], 400);
        wait_for_count(&installation, "many", &around_now(), 5).await;
    }

    async fn figures_are_those_that_sorting_and_adding_gives(installation) {
        let (values, sum) = values(3_000);
        let now_ms = now_ms();
        let points: Vec<Value> = values
            .iter()
            .zip(noise())
            .map(|(value, bits)| point("noise", now_ms - i64::try_from(bits % 86_000_000).expect("small"), *value))
            .collect();
        record(&installation, &points).await;
        let rest = range(now_ms - DAY_MS, now_ms + MINUTE_MS);
        let figures = wait_for_count(&installation, "noise", &rest, values.len()).await;
        assert_figures(&figures, &values, sum);
    }

    async fn figures_of_extreme_values_are_right_too(installation) {
        let now_ms = now_ms();
        // The large values cancel out, so that one rounding gives the exact sum.
        let extremes = [1e290, -1e290, 0.0, 0.0, -2.5, 1e-9, 1e290, -1e290, 0.0];
        let points = extremes.map(|value| point("extreme", now_ms, value));
        record(&installation, &points).await;
        let figures = wait_for_count(&installation, "extreme", &around_now(), extremes.len()).await;
        assert_figures(&figures, &extremes, -2.5 + 1e-9);
        let minus_zero = format!(r#"{{"timestamp":"{}","value":-0.0,"type":"zero"}}"#, rfc3339(now_ms));
        assert_eq!(installation.post("/v1/metrics", &minus_zero).await.status(), 202);
        let figures = wait_for_count(&installation, "zero", &around_now(), 1).await;
        for name in ["min", "max", "sum", "average_value", "p50"] {
            assert_eq!(figures[name].to_string(), "0.0", "{name}");
        }
        let tiny = [5e-324, 1e-9, 1e-9, 3e-9];
        record(&installation, &tiny.map(|value| point("tiny", now_ms, value))).await;
        let figures = wait_for_count(&installation, "tiny", &around_now(), tiny.len()).await;
        assert_figures(&figures, &tiny, 5e-9);
    }

    async fn a_value_that_could_overflow_a_sum_is_refused_and_the_largest_ones_add_up(installation) {
        let at = rfc3339(now_ms());
        for _ in 0..2 {
            let body = format!(r#"{{"timestamp":"{at}","value":1e308,"type":"large"}}"#);
            let refused = problem(installation.post("/v1/metrics", &body).await, 422).await;
            assert_eq!(refused["errors"][0]["pointer"], "/value");
            let body = format!(r#"{{"timestamp":"{at}","value":1e290,"type":"large"}}"#);
            assert_eq!(installation.post("/v1/metrics", &body).await.status(), 202);
        }
        let figures = wait_for_count(&installation, "large", &around_now(), 2).await;
        assert_figures(&figures, &[1e290, 1e290], 2e290);
    }

    async fn each_bad_point_gets_its_status_and_is_pointed_at(installation) {
        let now = rfc3339(now_ms());
        let with = |timestamp: &str, value: &str, kind: &str| {
            format!(r#"{{"timestamp":{timestamp},"value":{value},"type":{kind}}}"#)
        };
        let (at, old) = (format!("\"{now}\""), rfc3339(now_ms() - 20 * YEAR_MS - MINUTE_MS));
        let (ahead, long) = (rfc3339(now_ms() + HOUR_MS + MINUTE_MS), format!("\"{}\"", "x".repeat(129)));
        let with_time = |timestamp: &str| with(&format!("\"{timestamp}\""), "1", "\"bad\"");
        let value = |value: &str| with(&at, value, "\"bad\"");
        let kind = |kind: &str| with(&at, "1", kind);
        let good = value("1");
        let (rest, key) = (&good[1..], |key: &str| format!(r#"{{"idempotency_key":{key},{}"#, &good[1..]));
        let cases: Vec<(u16, Option<&str>, String)> = vec![
            (400, None, value("NaN")),
            (400, None, value("Infinity")),
            (400, None, value("-Infinity")),
            (400, None, value("01")),
            (400, None, value(".5")),
            (400, None, value("+5")),
            (400, None, String::new()),
            (400, None, format!("{{\"value\":\"x\",{}", &rest[..9])),
            (400, None, "{".into()),
            (400, None, format!("{good}}}")),
            (400, None, format!("[{good},")),
            (422, Some("/value"), value("1e999")),
            (422, Some("/value"), value("-1e999")),
            (422, Some("/value"), value("1e308")),
            (422, Some("/value"), value("1.0001e290")),
            (422, Some("/value"), value("\"1\"")),
            (422, Some("/value"), value("null")),
            (422, Some("/value"), value("true")),
            (422, Some("/value"), value("[1]")),
            (422, Some("/value"), value("{\"$serde_json::private::Number\":\"1\"}")),
            (422, Some("/timestamp"), with_time(now.trim_end_matches('Z'))),
            (422, Some("/timestamp"), with_time("1970-01-01T00:00:00Z")),
            (422, Some("/timestamp"), with_time("2100-01-01T00:00:00Z")),
            (422, Some("/timestamp"), with_time("9999-12-31T23:59:59.999999999Z")),
            (422, Some("/timestamp"), with_time("2026-02-30T00:00:00Z")),
            (422, Some("/timestamp"), with_time("")),
            (422, Some("/timestamp"), with_time("now")),
            (422, Some("/timestamp"), with_time(&old)),
            (422, Some("/timestamp"), with_time(&ahead)),
            (422, Some("/timestamp"), with("1763600000000", "1", "\"bad\"")),
            (422, Some("/timestamp"), with("null", "1", "\"bad\"")),
            (422, Some("/type"), kind("\"\\ud800\"")),
            (422, Some("/type"), kind("\"..\"")),
            (422, Some("/type"), kind("\"\"")),
            (422, Some("/type"), kind(&long)),
            (422, Some("/type"), kind("\"a b\"")),
            (422, Some("/type"), kind("\"ä\"")),
            (422, Some("/type"), kind("\"a/b\"")),
            (422, Some("/type"), kind("\"\\u0000\"")),
            (422, Some("/type"), kind("\"a\\nb\"")),
            (422, Some("/type"), kind("\"'; drop table rollups; --\"")),
            (422, Some("/type"), kind("5")),
            (422, Some("/type"), kind("null")),
            (422, Some("/idempotency_key"), key("\"\"")),
            (422, Some("/idempotency_key"), key(&format!("\"{}\"", "k".repeat(256)))),
            (422, Some("/idempotency_key"), key("5")),
            (422, Some("/idempotency_key"), key("null")),
            (422, Some("/extra"), format!("{{\"extra\":1,{rest}")),
            (422, Some("/Value"), format!("{{\"Value\":1,{rest}")),
            (422, Some(""), format!("{{\"value\":1,{rest}")),
            (422, Some(""), format!("{{\"type\":\"bad\",{rest}")),
            (422, Some(""), "{}".into()),
            (422, Some(""), format!("{{\"timestamp\":{at},\"value\":1}}")),
            (422, Some(""), "null".into()),
            (422, Some(""), "5".into()),
            (422, Some(""), "[]".into()),
            (422, None, format!("[[{at},1,\"bad\"]]")),
            (422, None, format!("[{}]", value("1e999"))),
        ];
        for (status, pointer, body) in &cases {
            let response = installation.post("/v1/metrics", body).await;
            assert_eq!(response.status(), *status, "{body}");
            let reported = problem(response, *status).await;
            if let Some(pointer) = pointer {
                assert_eq!(reported["errors"][0]["pointer"], *pointer, "{body}: {reported}");
            }
        }
        let figures = summary(&installation, "bad", &around_now()).await;
        assert_figures(&figures, &[], 0.0);
    }

    async fn times_with_any_offset_are_taken_up_to_both_ends_of_what_is_allowed(installation) {
        let edges = [now_ms() - 20 * YEAR_MS + MINUTE_MS, now_ms() - 90 * DAY_MS, now_ms() + HOUR_MS - MINUTE_MS];
        for at_ms in edges {
            let shifted = rfc3339(at_ms + 2 * HOUR_MS).replace('Z', "456+02:00");
            let body = json!({"timestamp": shifted, "value": 1, "type": "edges"}).to_string();
            assert_eq!(installation.post("/v1/metrics", &body).await.status(), 202, "{shifted}");
            wait_for_count(&installation, "edges", &range(at_ms - 1, at_ms + 1), 1).await;
        }
        let both = range(now_ms() - 92 * DAY_MS, now_ms() + DAY_MS);
        wait_for_count(&installation, "edges", &both, 2).await;
    }

    async fn a_past_of_years_is_in_the_figures_of_days_and_in_none_finer(installation) {
        let noon_ms = (now_ms() - 285 * DAY_MS) / DAY_MS * DAY_MS + DAY_MS / 2;
        let body = point("past", noon_ms, 12.5).to_string();
        assert!([201, 202].contains(&installation.post("/api/metrics", &body).await.status().as_u16()));
        let years_ago = |years: i64| point("past", noon_ms - years * 365 * DAY_MS, 1.0);
        let many = json!([years_ago(1), years_ago(21), years_ago(19), years_ago(60), {"value": 1}]).to_string();
        let reported = json(installation.post("/v1/metrics", &many).await).await;
        assert_eq!(reported["accepted"], 2);
        let rejected = reported["rejected"].as_array().expect("an array");
        assert_eq!(rejected.iter().map(|item| &item["index"]).collect::<Vec<_>>(), [1, 3, 4]);
        for item in &rejected[..2] {
            assert_eq!(item["problem"]["errors"][0]["pointer"], "/timestamp", "{item}");
        }
        let detail = &rejected[1]["problem"]["errors"][0]["detail"];
        assert!(detail.as_str().expect("text").contains("20 years"), "{detail}");
        let all_bad = installation.post("/v1/metrics", &json!([years_ago(21)]).to_string()).await;
        assert_eq!(problem(all_bad, 422).await["rejected"][0]["index"], 0);
        for years in [0, 1, 19] {
            let at_ms = noon_ms - years * 365 * DAY_MS;
            let hour = range(at_ms, at_ms + HOUR_MS);
            let figures = wait_for_count(&installation, "past", &hour, 1).await;
            // The range is widened to the day.
            let day_ms = at_ms - DAY_MS / 2;
            assert_eq!((&figures["from"], &figures["to"]), (&rfc3339(day_ms).into(), &rfc3339(day_ms + DAY_MS).into()));
            let days = json(ask(&installation, 0, "series", "past", &format!("{hour}&step=day")).await).await;
            assert_eq!(days["buckets"][0]["count"], 1);
            problem(ask(&installation, 0, "series", "past", &format!("{hour}&step=hour")).await, 422).await;
        }
    }

    async fn an_average_is_the_exact_sum_divided_by_the_count_and_rounded_once(installation) {
        let values = [45.91, 26.93, 54.8, 95.71, 0.57, 78.37, 82.05, 88.62, 74.05, 80.91];
        let at_ms = now_ms();
        record(&installation, &values.map(|value| point("average", at_ms, value))).await;
        let figures = wait_for_count(&installation, "average", &around_now(), values.len()).await;
        // Adding up and dividing gives 62.791999999999994.
        assert_eq!(figures["average_value"].as_f64(), Some(62.792));
    }

    async fn media_types_encodings_and_sizes_are_checked(installation) {
        let good = point("bad", now_ms(), 1.0).to_string();
        let send = async |headers: &[(&str, &str)], body: String| {
            let request = installation.at(0, Method::POST, "/v1/metrics");
            let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
            request.body(body).send().await.expect("an answer")
        };
        let json_type = ("content-type", "application/json");
        problem(send(&[], good.clone()).await, 415).await;
        problem(send(&[("content-type", "text/csv")], good.clone()).await, 415).await;
        problem(send(&[json_type, ("content-encoding", "gzip")], good.clone()).await, 415).await;
        let many = format!("[{}]", vec![good.as_str(); 1_001].join(","));
        problem(send(&[json_type], many).await, 413).await;
        let blanks = " ".repeat(installation.config.server.item_bytes_max);
        let large = good.replacen(':', &format!(":{blanks}"), 1);
        problem(send(&[json_type], large.clone()).await, 413).await;
        let accepted = json(send(&[json_type], format!("[{good},{large}]")).await).await;
        assert_eq!((&accepted["accepted"], &accepted["rejected"][0]["problem"]["status"]), (&json!(1), &json!(413)));
        let accepted = json(send(&[("content-type", "application/x-ndjson")], format!("{large}\n{good}")).await).await;
        assert_eq!((&accepted["accepted"], &accepted["rejected"][0]["index"]), (&json!(1), &json!(0)));
        let whole = " ".repeat(installation.config.server.body_bytes_max) + &good;
        problem(send(&[json_type], whole).await, 413).await;
        wait_for_count(&installation, "bad", &around_now(), 2).await;
        let refused = installation.get("/v1/metrics").await;
        assert_eq!(refused.headers()["allow"], "POST");
        problem(refused, 405).await;
        problem(installation.post("/v1/metrics/summary", "{}").await, 405).await;
    }

    async fn calendar_periods_hold_the_points_of_now_and_ranges_those_of_their_times(installation) {
        let now_ms = now_ms();
        let ages_ms = [0, 20 * MINUTE_MS, 3 * HOUR_MS, 47 * HOUR_MS, 3 * DAY_MS, 40 * DAY_MS, 89 * DAY_MS];
        let at = |age_ms: i64| (now_ms - age_ms) / MINUTE_MS * MINUTE_MS + 30_000;
        let points: Vec<Value> =
            ages_ms.iter().zip(1..).map(|(age_ms, value)| point("ages", at(*age_ms), f64::from(value))).collect();
        record(&installation, &points).await;
        let all = range(now_ms - 90 * DAY_MS, now_ms + HOUR_MS);
        wait_for_count(&installation, "ages", &all, ages_ms.len()).await;
        // Ages are rounded to the minute within two days, to the hour within 90: each age is read
        // by itself, and with all later ones.
        for (index, age_ms) in ages_ms.iter().enumerate() {
            let (from_ms, to_ms) = if *age_ms < 2 * DAY_MS {
                (at(*age_ms) - 30_000, at(*age_ms) + 30_000)
            } else {
                let hour_ms = at(*age_ms) / HOUR_MS * HOUR_MS;
                (hour_ms, hour_ms + HOUR_MS)
            };
            let alone = summary(&installation, "ages", &range(from_ms, to_ms)).await;
            let value = f64::from(u32::try_from(index + 1).expect("small"));
            assert_figures(&alone, &[value], value);
            assert_eq!((&alone["from"], &alone["to"]), (&json!(rfc3339(from_ms)), &json!(rfc3339(to_ms))));
            let since: Vec<f64> = (1..=index + 1).map(|value| value as f64).collect();
            let reported = summary(&installation, "ages", &range(from_ms, now_ms + HOUR_MS)).await;
            assert_figures(&reported, &since, since.iter().sum());
        }
        for period in ["hourly", "daily", "weekly", "monthly"] {
            let reported = summary(&installation, "ages", &format!("period={period}")).await;
            assert_eq!(reported["period"], period);
            let inside: Vec<f64> = ages_ms
                .iter()
                .zip(1_u8..)
                .filter(|(age_ms, _)| {
                    let at = rfc3339(at(**age_ms));
                    reported["from"].as_str() <= Some(&at) && Some(&*at) < reported["to"].as_str()
                })
                .map(|(_, value)| f64::from(value))
                .collect();
            assert_figures(&reported, &inside, inside.iter().sum());
        }
    }

    async fn a_series_has_every_bucket_with_its_figures(installation) {
        let hour_ms = now_ms() / HOUR_MS * HOUR_MS - HOUR_MS;
        let minutes = [0, 0, 4, 5, 59];
        let points: Vec<Value> = minutes
            .iter()
            .zip(1..)
            .map(|(minute, value)| point("series", hour_ms + minute * MINUTE_MS, f64::from(value)))
            .collect();
        record(&installation, &points).await;
        wait_for_count(&installation, "series", &around_now(), minutes.len()).await;
        let rest = format!("{}&step=5m", range(hour_ms + 1, hour_ms + HOUR_MS));
        let series = json(ask(&installation, 0, "series", "series", &rest).await).await;
        assert_eq!((&series["type"], &series["step_seconds"]), (&json!("series"), &json!(300)));
        assert_eq!((&series["from"], &series["to"]), (&json!(rfc3339(hour_ms)), &json!(rfc3339(hour_ms + HOUR_MS))));
        let buckets = series["buckets"].as_array().expect("buckets");
        assert_eq!(buckets.len(), 12);
        let expected: &[&[f64]] = &[&[1.0, 2.0, 3.0], &[4.0], &[], &[], &[], &[], &[], &[], &[], &[], &[], &[5.0]];
        let mut from_ms = hour_ms;
        for (bucket, values) in buckets.iter().zip(expected) {
            assert_eq!(bucket["from"], rfc3339(from_ms));
            from_ms += 5 * MINUTE_MS;
            assert_eq!(bucket["to"], rfc3339(from_ms));
            assert_figures(bucket, values, values.iter().sum());
        }
        for (step, rows) in [("hour", 1), ("3600", 1), ("1d", 1), ("minute", 60)] {
            let rest = format!("{}&step={step}", range(hour_ms, hour_ms + HOUR_MS));
            let series = json(ask(&installation, 0, "series", "series", &rest).await).await;
            let buckets = series["buckets"].as_array().expect("buckets");
            assert_eq!(buckets.len(), rows, "{step}");
            let counts: u64 = buckets.iter().map(|bucket| bucket["count"].as_u64().expect("a count")).sum();
            assert_eq!(counts, 5, "{step}");
        }
    }

    async fn what_cannot_be_asked_is_refused_with_its_parameter(installation) {
        let day = range(now_ms() - DAY_MS, now_ms());
        for (path, parameter) in [
            ("summary?period=daily".to_owned(), "type"),
            ("summary?type=a%00&period=daily".into(), "type"),
            ("summary?type=a&period=yearly".into(), "period"),
            ("summary?type=a".into(), "period"),
            (format!("summary?type=a&period=daily&{day}"), "period"),
            (format!("summary?type=a&type=b&{day}"), "type"),
            ("summary?type=a&from=2026-01-01T00:00:00&to=2026-01-02T00:00:00Z".into(), "from"),
            (format!("summary?type=a&{}", range(now_ms(), now_ms())), "to"),
            (format!("summary?type=a&{}", range(now_ms() - 401 * DAY_MS, now_ms())), "to"),
            (format!("series?type=a&{day}"), "step"),
            (format!("series?type=a&{day}&step=30"), "step"),
            (format!("series?type=a&{day}&step=minute"), "step"),
            (format!("series?type=a&{}&step=minute", range(now_ms() - 3 * DAY_MS, now_ms() - 3 * DAY_MS + 1)), "from"),
            (format!("series?type=a&{}&step=hour", range(now_ms() - 91 * DAY_MS, now_ms() - 90 * DAY_MS)), "from"),
            ("types?limit=0".into(), "limit"),
            ("types?prefix=%00".into(), "prefix"),
            ("types?sort=up".into(), "sort"),
        ] {
            let refused = problem(installation.get(&format!("/v1/metrics/{path}")).await, 422).await;
            assert_eq!(refused["errors"][0]["parameter"], parameter, "{path}");
        }
    }

    async fn types_are_listed_by_name_in_pages(installation) {
        let names = ["b", "a:2", "a:1", "B", "a:3"];
        record(&installation, &names.map(|name| point(name, now_ms(), 1.0))).await;
        for name in names {
            wait_for_count(&installation, name, &around_now(), 1).await;
        }
        let page = async |query: &str| json(installation.get(&format!("/v1/metrics/types?{query}")).await).await;
        assert_eq!(page("limit=3").await, json!({"items": ["B", "a:1", "a:2"], "next": "a:2"}));
        assert_eq!(page("limit=3&after=a:2").await, json!({"items": ["a:3", "b"], "next": null}));
        assert_eq!(page("prefix=a:").await, json!({"items": ["a:1", "a:2", "a:3"], "next": null}));
        assert_eq!(page("prefix=c").await, json!({"items": [], "next": null}));
    }

    async fn a_summary_tells_its_etag_and_answers_304_until_it_changes(installation) {
        record(&installation, &[point("etag", now_ms(), 1.0)]).await;
        let rest = around_now();
        wait_for_count(&installation, "etag", &rest, 1).await;
        // The event may come after the answer that has the point in it.
        let response = installation
            .wait_for("an answer from memory", async || {
                let response = ask(&installation, 0, "summary", "etag", &rest).await;
                (response.headers()["cache-status"] == "forebay; hit").then_some(response)
            })
            .await;
        let etag = response.headers()["etag"].to_str().expect("text").to_owned();
        assert_eq!(response.headers()["cache-control"], "no-cache");
        assert_eq!(response.headers()["content-type"], "application/json");
        assert!(response.headers().contains_key("age"));
        for known in [etag.as_str(), "*", &format!("\"x\", W/{etag}")] {
            let path = format!("/v1/metrics/summary?type=etag&{rest}");
            let request = installation.at(0, Method::GET, &path).header("if-none-match", known);
            let response = request.send().await.expect("an answer");
            assert_eq!(response.status(), 304, "{known}");
            assert_eq!(response.headers()["etag"], etag.as_str());
        }
        record(&installation, &[point("etag", now_ms(), 2.0)]).await;
        wait_for_count(&installation, "etag", &rest, 2).await;
        let path = format!("/v1/metrics/summary?type=etag&{rest}");
        let request = installation.at(0, Method::GET, &path).header("if-none-match", &etag);
        assert_eq!(request.send().await.expect("an answer").status(), 200);
        let head = installation.at(0, Method::HEAD, &path).send().await.expect("an answer");
        assert_eq!(head.status(), 200);
        assert_eq!(head.text().await.expect("a body"), "");
    }

    async fn a_point_that_is_waited_for_is_told_as_stored_and_is_in_the_next_summary(installation) {
        let rest = around_now();
        for count in 1..=20_usize {
            let at_ms = now_ms();
            let body = point("waited", at_ms, -0.0).to_string();
            let path = if count % 2 == 0 { "/v1/metrics" } else { "/api/metrics" };
            let request = installation.at(0, Method::POST, path).header("content-type", "application/json");
            let request = request.header("prefer", "wait=30").body(body);
            let response = request.send().await.expect("an answer");
            assert_eq!(response.status(), 201, "{path}");
            let stored = json(response).await;
            let id = stored["id"].as_str().expect("an id");
            assert_eq!(
                stored.to_string(),
                json!({"id": id, "timestamp": rfc3339(at_ms), "value": 0.0, "type": "waited"}).to_string()
            );
            assert_eq!(summary(&installation, "waited", &rest).await["count"], count);
        }
    }

    async fn the_short_paths_are_the_same(installation) {
        let response = installation.post("/api/metrics", &point("short", now_ms(), 3.0).to_string()).await;
        assert!([201, 202].contains(&response.status().as_u16()), "{}", response.status());
        wait_for_count(&installation, "short", "period=monthly", 1).await;
        let short = json(installation.get("/api/metrics/summary?type=short&period=monthly").await).await;
        assert_eq!(short, summary(&installation, "short", "period=monthly").await);
        problem(installation.get("/api/metrics/summary?type=short").await, 422).await;
        problem(installation.post("/api/metrics", "{}").await, 422).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn points_reach_the_cached_summaries_of_every_replica_by_events() {
    let no_expiry = |config: &mut shared::config::Config| config.cache.ttl_ms = 3_600_000;
    cluster_with("summaries", no_expiry, |installation| async move {
        let rest = around_now();
        for count in 0..10_usize {
            for replica in 0..2 {
                installation
                    .wait_for("the new count from memory", async || {
                        let response = ask(&installation, replica, "summary", "shared", &rest).await;
                        let hit = response.headers()["cache-status"] == "forebay; hit";
                        (hit && json(response).await["count"] == count).then_some(())
                    })
                    .await;
            }
            record(&installation, &[point("shared", now_ms(), 1.0)]).await;
        }
        installation
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_store_is_away_points_are_accepted_and_known_summaries_are_answered_stale() {
    crate::outages::behind_proxies("metrics", async |installation, proxies| {
        let rest = around_now();
        record(&installation, &[point("known", now_ms(), 1.0)]).await;
        wait_for_count(&installation, "known", &rest, 1).await;
        proxies.store.down(true);
        record(&installation, &[point("known", now_ms(), 2.0)]).await;
        installation
            .wait_for("a stale answer", async || {
                let response = ask(&installation, 0, "summary", "known", &rest).await;
                assert_eq!(response.status(), 200);
                let is_stale = response.headers()["cache-status"] == "forebay; hit; detail=stale";
                assert_eq!(json(response).await["count"], 1);
                is_stale.then_some(())
            })
            .await;
        let unknown = ask(&installation, 0, "summary", "unknown", &rest).await;
        assert!(unknown.headers().contains_key("retry-after"));
        problem(unknown, 503).await;
        proxies.store.down(false);
        wait_for_count(&installation, "known", &rest, 2).await;
        installation
    })
    .await;
}
