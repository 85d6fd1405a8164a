//! Logs of both programs: where they go and in which form. Lines hold no bodies and no secrets.
use std::fmt;
use std::io::IsTerminal;

use tracing::Subscriber;
use tracing::field::Field;
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::{Writer, debug_fn};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, fmt as lines};

use crate::config::{LogFormat, Telemetry};

/// Sends the logs of this process to standard error, which leaves standard output to commands
/// that print something. A second call changes nothing, so tests may call it.
///
/// A line that cannot be written is lost, and nothing else is: to say so on standard error panics when
/// that is a file on a full disk (`files_that_take_no_more_lose_nothing_and_heal_by_themselves`).
pub fn init_logs(telemetry: &Telemetry) {
    let terminal = std::io::stderr().is_terminal();
    // Any text in it counts, by convention (no-color.org).
    let colours = terminal && std::env::var_os("NO_COLOR").is_none_or(|text| text.is_empty());
    let json = match telemetry.log_format {
        LogFormat::Auto => !terminal,
        LogFormat::Text => false,
        LogFormat::Json => true,
    };
    // The filter was checked with the configuration; a wrong one must not silence a program.
    let filter = EnvFilter::try_new(&telemetry.log_filter).unwrap_or_else(|_| EnvFilter::new("info"));
    // An error says that there is a subscriber already.
    let _ = if json {
        json_logs(filter, std::io::stderr).try_init()
    } else {
        text_logs(filter, colours, std::io::stderr).try_init()
    };
}

/// One JSON object per line: `timestamp`, `level`, `target`, `message` and the event's fields
/// beside them.
pub fn json_logs<W>(filter: EnvFilter, writer: W) -> impl Subscriber + Send + Sync
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let format = lines().json().flatten_event(true).with_current_span(false).with_span_list(false);
    format.log_internal_errors(false).with_env_filter(filter).with_writer(writer).finish()
}

/// One line per event for people. Control characters are escaped: a client's text must not look like a line
/// or a colour of our own.
pub fn text_logs<W>(filter: EnvFilter, colours: bool, writer: W) -> impl Subscriber + Send + Sync
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let field = |writer: &mut Writer<'_>, field: &Field, value: &dyn fmt::Debug| {
        let text = format!("{value:?}");
        if field.name() != "message" {
            write!(writer, "{}=", field.name())?;
        }
        let (mut rest, control) = (&*text, |character: char| character.is_control());
        while let Some((at, character)) = rest.char_indices().find(|(_, character)| control(*character)) {
            write!(writer, "{}{}", &rest[..at], character.escape_default())?;
            rest = &rest[at + character.len_utf8()..];
        }
        writer.write_str(rest)
    };
    let fields = debug_fn(field).delimited(" ");
    let format = lines().fmt_fields(fields).with_ansi(colours).log_internal_errors(false);
    format.with_env_filter(filter).with_writer(writer).finish()
}
