//! AMQP properties beside a message's body; `docs/messages.md` documents them for other programs.
use std::sync::Arc;

use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};

use crate::model::message::Outgoing;

/// AMQP's number for a message that survives a restart of the broker.
const PERSISTENT: u8 = 2;

/// Header with the traces of a message's requests.
const TRACES: &str = "forebay-traces";

pub(super) fn properties_of(message: &Outgoing) -> BasicProperties {
    let properties = BasicProperties::default()
        .with_delivery_mode(PERSISTENT)
        .with_content_type("application/json".into())
        .with_message_id(message.id.to_string().into());
    let Some(traces) = &message.traces else { return properties };
    let mut headers = FieldTable::default();
    headers.insert(TRACES.into(), AMQPValue::LongString(traces.as_bytes().into()));
    properties.with_headers(headers)
}

/// Traces of a message. `None` also when the header holds something else.
pub(super) fn traces_of(properties: &BasicProperties) -> Option<Arc<str>> {
    match properties.headers().as_ref()?.inner().get(TRACES)? {
        AMQPValue::LongString(text) => std::str::from_utf8(text.as_bytes()).ok().map(Into::into),
        _ => None,
    }
}
